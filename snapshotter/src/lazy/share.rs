//! Profiles beside their images in the registry.
//!
//! A profile is an artifact that refers to one image, though it tells of its repository: whoever pulls
//! the image finds it. A wrong one costs time and bytes, and gives nobody wrong ones.

use lamina_fusefs::blob::Digest;
use oci_spec::distribution::Reference;

use super::profile::{MOST, Profile, repository_of};
use crate::registry::artifact::Part;
use crate::registry::image::{Image, digest_of};
use crate::registry::{Registry, RegistryError};

/// The type of the artifact.
pub const PROFILE_TYPE: &str = "application/vnd.lamina.profile.v1";
/// The media type of its one part.
const PART_TYPE: &str = "application/vnd.lamina.profile.v1+json";

/// The profile beside an image; `None`: there is none.
pub fn pull(registry: &Registry, image: &Image) -> Result<Option<Profile>, RegistryError> {
    let wrong = |what: String| RegistryError::Answer {
        url: image.reference.whole(),
        what,
    };
    let subject = digest_of(&image.manifest).map_err(wrong)?;
    let reference = &image.reference;
    let parts = registry.pull_artifact(reference, subject, PROFILE_TYPE, MOST)?;
    let Some(part) = parts.and_then(|parts| parts.into_iter().next()) else {
        return Ok(None);
    };
    let profile = Profile::parse(&part.bytes);
    let mut profile = profile.map_err(|error| wrong(format!("the profile beside it: {error}")))?;
    // The same image may be called otherwise here, by way of a mirror or a copy.
    profile.repository = repository_of(reference);
    Ok(Some(profile))
}

/// Puts a profile beside an image, instead of the one that is there. Answers the digest of its manifest.
pub fn push(
    registry: &Registry,
    image: &Image,
    profile: &Profile,
) -> Result<Digest, RegistryError> {
    let part = Part {
        media_type: PART_TYPE.to_owned(),
        bytes: profile.to_bytes(),
        ..Part::default()
    };
    registry.push_artifact(&image.reference, &image.manifest, PROFILE_TYPE, &[part])
}

/// Puts a profile beside the image of this name, if there is none; whether it did.
pub(super) fn push_first(
    registry: &Registry,
    name: &str,
    profile: &Profile,
) -> Result<bool, RegistryError> {
    let image = registry.image(name)?;
    if pull(registry, &image)?.is_some() {
        return Ok(false);
    }
    push(registry, &image, profile)?;
    Ok(true)
}

/// The repository of the image that a person names.
pub fn repository_of_name(name: &str) -> Result<(Reference, String), RegistryError> {
    let reference = crate::registry::image::parse(name)?;
    let repository = repository_of(&reference);
    Ok((reference, repository))
}
