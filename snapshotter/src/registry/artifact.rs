//! Artifacts beside an image: what refers to its manifest, and changes nothing about it.
//!
//! An artifact is a manifest with a `subject` (OCI image specification 1.1). A registry that knows
//! of that answers what refers to an image; for one that does not, the tag `sha256-<digest>` leads to
//! an index of it, which whoever writes an artifact keeps up to date (OCI distribution specification
//! 1.1, "Referrers Tag Schema").
//!
//! Nobody vouches for an artifact but whoever may push to the repository.

use std::collections::HashMap;

use lamina_fusefs::blob::Digest;
use oci_spec::distribution::Reference;
use oci_spec::image::{
    Descriptor, ImageIndex, ImageIndexBuilder, ImageManifest, ImageManifestBuilder, MediaType,
};

use super::image::{descriptor, digest_of};
use super::push::Body;
use super::{Access, Ask, Registry, RegistryError};

/// When something was made (OCI image specification, annotations.md).
const CREATED: &str = "org.opencontainers.image.created";
/// Where there is nothing to configure (OCI image specification, manifest.md).
const EMPTY: &[u8] = b"{}";
/// Bytes of a blob that are asked for at once.
const PIECE: u64 = 8 << 20;
/// So many artifacts of a type are looked at, the newest first.
const LOOKED_AT: usize = 3;
/// So many pages of what refers to an image are read.
const PAGES: usize = 20;
/// How often a tag is written again that somebody else has written meanwhile.
const TRIES: usize = 4;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A blob of an artifact that is to be pushed, or was pulled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Part {
    /// Its media type.
    pub media_type: String,
    /// What the manifest says of it beside that.
    pub annotations: HashMap<String, String>,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// The manifest of an artifact.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its blobs.
    pub parts: Vec<Descriptor>,
}

/// An artifact with all that belongs to it, ready to be put somewhere.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Made {
    /// Its type.
    pub artifact_type: String,
    /// The digest of the manifest that it refers to.
    pub subject: Digest,
    /// Its manifest.
    pub(super) manifest: Vec<u8>,
    /// Its blobs, and the configuration.
    pub(super) blobs: Vec<Vec<u8>>,
    /// What an index says of it.
    pub(super) entry: Descriptor,
}

impl Made {
    /// Makes one of these parts, which refers to a manifest. An error says what is wrong with it.
    pub fn new(subject: &Descriptor, artifact_type: &str, parts: &[Part]) -> Result<Made, String> {
        let part = |media_type: MediaType, bytes: &[u8]| {
            descriptor(media_type, bytes.len() as u64, Digest::of(bytes))
        };
        let mut layers = Vec::new();
        for one in parts {
            let layer = part(one.media_type.as_str().into(), &one.bytes)?;
            layers.push(with_annotations(layer, one.annotations.clone()));
        }
        let created = jiff::Timestamp::now().to_string();
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .artifact_type(artifact_type)
            .config(part(MediaType::EmptyJSON, EMPTY)?)
            .layers(layers)
            .subject(subject.clone())
            .annotations(HashMap::from([(CREATED.to_owned(), created)]))
            .build()
            .map_err(|error| error.to_string())?;
        let manifest = serde_json::to_vec(&manifest).map_err(|error| error.to_string())?;
        let mut blobs: Vec<_> = parts.iter().map(|part| part.bytes.clone()).collect();
        blobs.push(EMPTY.to_vec());
        Made::of(manifest, blobs)
    }

    /// The one with this manifest and these blobs.
    pub(super) fn of(manifest: Vec<u8>, blobs: Vec<Vec<u8>>) -> Result<Made, String> {
        let told: ImageManifest = serde_json::from_slice(&manifest)
            .map_err(|error| format!("the manifest of an artifact: {error}"))?;
        let (Some(artifact_type), Some(subject)) = (told.artifact_type(), told.subject()) else {
            return Err("the manifest is none of an artifact that refers to an image".to_owned());
        };
        let (size, digest) = (manifest.len() as u64, Digest::of(&manifest));
        let mut entry = descriptor(MediaType::ImageManifest, size, digest)?;
        entry.set_artifact_type(Some(artifact_type.clone()));
        let annotations = told.annotations().clone().unwrap_or_default();
        Ok(Made {
            artifact_type: artifact_type.to_string(),
            subject: digest_of(subject)?,
            manifest,
            blobs,
            entry: with_annotations(entry, annotations),
        })
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

impl Registry {
    /// What refers to the manifest with the digest `subject` and is of this type. An answer that comes in pages
    /// is read as far as these are of the same host, and no more than a few.
    pub fn referrers(
        &self,
        reference: &Reference,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let filter = artifact_type.replace('+', "%2B");
        let beginning = format!("referrers/{subject}?");
        let mut path = format!("{beginning}artifactType={filter}");
        let (mut all, mut only) = (Vec::new(), None::<String>);
        for _ in 0..PAGES {
            let page = self.ask_small(&Ask {
                registry: reference.registry(),
                repository: reference.repository(),
                path,
                accept: INDEX,
                part: None,
                access: Access::Pull,
                most: self.manifest_bytes,
                only: only.as_deref(),
            });
            let (index, next) = match page {
                Ok(page) => {
                    only = Some(page.base);
                    (Some(index_of(reference, &page.bytes)?), page.next)
                }
                // One that knows of no referrers has no such place.
                Err(RegistryError::NotFound { .. }) if only.is_none() => {
                    (self.tagged(Access::Pull, reference, subject)?, None)
                }
                Err(error) => return Err(error),
            };
            let found = index.iter().flat_map(ImageIndex::manifests);
            all.extend(found.filter(|one| is_of(one, artifact_type)).cloned());
            let Some(next) = next.filter(|next| next.starts_with(&beginning)) else {
                return Ok(all);
            };
            path = next;
        }
        tracing::debug!(
            image = reference.whole(),
            PAGES,
            "more pages of what refers to it are not read"
        );
        Ok(all)
    }

    /// The newest artifact of this type that refers to an image.
    pub fn artifact(
        &self,
        reference: &Reference,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Option<Artifact>, RegistryError> {
        let mut all = self.referrers(reference, subject, artifact_type)?;
        all.sort_by_key(|one| std::cmp::Reverse(created(one)));
        let mut failed = None;
        for one in all.iter().take(LOOKED_AT) {
            match self.artifact_at(reference, one, subject, artifact_type) {
                Ok(artifact) => return Ok(Some(artifact)),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// A blob of an artifact, of `most` bytes at most, which is held against its digest.
    pub fn artifact_part(
        &self,
        reference: &Reference,
        part: &Descriptor,
        most: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let wrong = |what: String| RegistryError::Answer {
            url: reference.whole(),
            what,
        };
        let (digest, size) = (digest_of(part).map_err(wrong)?, part.size());
        if size > most {
            return Err(wrong(format!(
                "a part of an artifact has {size} bytes, and no more than {most} are taken"
            )));
        }
        if size <= self.manifest_bytes {
            let bytes = self.get(reference, format!("blobs/{digest}"), "*/*", Some(digest))?;
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < size {
            let end = size.min(at + PIECE);
            bytes.extend(self.part(reference, digest, size, at..end)?);
            at = end;
        }
        if Digest::of(&bytes) != digest {
            return Err(wrong(format!(
                "it answers with something else than {digest}"
            )));
        }
        Ok(bytes)
    }

    /// The newest artifact of this type that refers to an image, with its blobs, which may have `most`
    /// bytes together.
    pub fn pull_artifact(
        &self,
        reference: &Reference,
        subject: Digest,
        artifact_type: &str,
        most: u64,
    ) -> Result<Option<Vec<Part>>, RegistryError> {
        let Some(artifact) = self.artifact(reference, subject, artifact_type)? else {
            return Ok(None);
        };
        let (mut parts, mut left) = (Vec::new(), most);
        for part in &artifact.parts {
            let bytes = self.artifact_part(reference, part, left)?;
            left -= bytes.len() as u64;
            parts.push(Part {
                media_type: part.media_type().to_string(),
                annotations: part.annotations().clone().unwrap_or_default(),
                bytes,
            });
        }
        Ok(Some(parts))
    }

    /// Makes an artifact and puts it beside an image. Answers the digest of its manifest.
    pub fn push_artifact(
        &self,
        reference: &Reference,
        subject: &Descriptor,
        artifact_type: &str,
        parts: &[Part],
    ) -> Result<Digest, RegistryError> {
        let made = Made::new(subject, artifact_type, parts);
        let made = made.map_err(|what| RegistryError::Answer {
            url: reference.whole(),
            what,
        })?;
        self.push_made(reference, &made)?;
        Ok(made.digest())
    }

    /// Puts an artifact beside the image that it refers to. An older one of the same type is not counted any
    /// more.
    pub fn push_made(&self, reference: &Reference, made: &Made) -> Result<(), RegistryError> {
        for bytes in &made.blobs {
            let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
            self.push_blob(reference, digest, size, Body::Bytes(bytes))?;
        }
        let target = made.digest().to_string();
        let pushed = self.push_manifest(reference, &target, MANIFEST, &made.manifest)?;
        if !pushed.notes_subject {
            self.tag(reference, made)?;
        }
        Ok(())
    }

    fn artifact_at(
        &self,
        reference: &Reference,
        at: &Descriptor,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Artifact, RegistryError> {
        let wrong = |what: String| RegistryError::Answer {
            url: reference.whole(),
            what,
        };
        let digest = digest_of(at).map_err(wrong)?;
        let bytes = self.get(
            reference,
            format!("manifests/{digest}"),
            MANIFEST,
            Some(digest),
        )?;
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| wrong(format!("the manifest of an artifact: {error}")))?;
        let its_type = manifest.artifact_type().as_ref().map(ToString::to_string);
        let its_subject = manifest.subject().as_ref().map(digest_of).transpose();
        if its_type.as_deref() != Some(artifact_type) || its_subject != Ok(Some(subject)) {
            return Err(wrong(format!(
                "{digest} is no {artifact_type} that refers to {subject}"
            )));
        }
        Ok(Artifact {
            digest,
            parts: manifest.layers().clone(),
        })
    }

    /// What the tag for `subject` leads to.
    fn tagged(
        &self,
        access: Access,
        reference: &Reference,
        subject: Digest,
    ) -> Result<Option<ImageIndex>, RegistryError> {
        let path = format!("manifests/{}", tag_of(subject));
        match self.get_for(access, reference, path, INDEX, None) {
            Ok(bytes) => index_of(reference, &bytes).map(Some),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds an artifact to what the tag for its subject leads to, instead of others of its type.
    fn tag(&self, reference: &Reference, made: &Made) -> Result<(), RegistryError> {
        let (subject, entry) = (made.subject, &made.entry);
        let wrong = |what: String| RegistryError::Answer {
            url: reference.whole(),
            what,
        };
        // Nobody can lock a tag: whoever wrote it looks whether somebody else did so too.
        for _ in 0..TRIES {
            let known = self.tagged(Access::Push, reference, subject)?;
            if let Some(known) = &known
                && known
                    .manifests()
                    .iter()
                    .any(|one| one.digest() == entry.digest())
            {
                return Ok(());
            }
            let mut index = match known {
                Some(known) => known,
                None => ImageIndexBuilder::default()
                    .schema_version(2u32)
                    .media_type(MediaType::ImageIndex)
                    .manifests(Vec::new())
                    .build()
                    .map_err(|error| wrong(error.to_string()))?,
            };
            let mut all = index.manifests().clone();
            all.retain(|one| !is_of(one, &made.artifact_type));
            all.push(entry.clone());
            index.set_manifests(all);
            let bytes = serde_json::to_vec(&index).map_err(|error| wrong(error.to_string()))?;
            self.push_manifest(reference, &tag_of(subject), INDEX, &bytes)?;
        }
        Err(wrong(format!(
            "others write the tag {} at the same time, again and again",
            tag_of(subject)
        )))
    }
}

/// The tag that leads to what refers to a manifest.
fn tag_of(subject: Digest) -> String {
    format!("sha256-{}", subject.to_hex())
}

fn index_of(reference: &Reference, bytes: &[u8]) -> Result<ImageIndex, RegistryError> {
    serde_json::from_slice(bytes).map_err(|error| RegistryError::Answer {
        url: reference.whole(),
        what: format!("what refers to an image: {error}"),
    })
}

fn is_of(one: &Descriptor, artifact_type: &str) -> bool {
    let its_type = one.artifact_type().as_ref();
    its_type.is_some_and(|its_type| its_type.to_string() == artifact_type)
}

/// When an artifact was made; one that does not say is older than all others.
fn created(one: &Descriptor) -> Option<jiff::Timestamp> {
    let annotations = one.annotations().as_ref()?;
    annotations.get(CREATED)?.parse().ok()
}

fn with_annotations(mut of: Descriptor, annotations: HashMap<String, String>) -> Descriptor {
    of.set_annotations(Some(annotations).filter(|all| !all.is_empty()));
    of
}

#[cfg(test)]
mod tests;
