//! Manifests and configurations of images.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_fusefs::blob::Digest;
use oci_spec::distribution::Reference;
use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Platform,
};
use parking_lot::Mutex;
use serde::Deserialize;

use super::http::Answer;
use super::{Access, Ask, Registry, RegistryError};

/// How long what a name means is taken for true: long enough for all layers of one pull.
const FRESH: Duration = Duration::from_mins(1);
/// So many images are remembered.
const IMAGES: usize = 100;

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// An image, as a registry tells it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where it is.
    pub reference: Reference,
    /// Its manifest: what an artifact beside it refers to.
    pub manifest: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The digest of its blob.
    pub digest: Digest,
    /// The bytes of its blob.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What the manifest says of it beside that.
    pub annotations: HashMap<String, String>,
    /// The digest of the archive in it.
    pub diff_id: Digest,
    /// The chain ID of it with the layers below (OCI image specification, config.md).
    pub chain_id: String,
}

/// What a name meant, and since when that is known; the lock is held while somebody asks.
type Slot = Arc<Mutex<Option<(Instant, Arc<Image>)>>>;

/// The images that were asked for lately.
#[derive(Debug, Default)]
pub struct Images(Mutex<HashMap<String, Slot>>);

impl Images {
    /// The image of this name. Whoever asks at the same time waits for the same answer.
    pub fn get(&self, registry: &Registry, name: &str) -> Result<Arc<Image>, RegistryError> {
        self.get_but(registry, name, None)
    }

    /// The same, but never this answer, of which somebody knows that it is out of date.
    pub fn get_but(
        &self,
        registry: &Registry,
        name: &str,
        stale: Option<&Arc<Image>>,
    ) -> Result<Arc<Image>, RegistryError> {
        let slot = {
            let mut images = self.0.lock();
            if images.len() >= IMAGES {
                images.retain(|_, slot| Arc::strong_count(slot) > 1);
            }
            Arc::clone(images.entry(name.to_owned()).or_default())
        };
        let mut known = slot.lock();
        if let Some((since, image)) = &*known
            && since.elapsed() < FRESH
            && stale.is_none_or(|stale| !Arc::ptr_eq(image, stale))
        {
            return Ok(Arc::clone(image));
        }
        let image = Arc::new(registry.image(name)?);
        *known = Some((Instant::now(), Arc::clone(&image)));
        Ok(image)
    }
}

/// Either of what a name may lead to.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Manifest {
    /// Images for several platforms.
    Index(Box<ImageIndex>),
    /// One image.
    Image(Box<ImageManifest>),
}

impl Manifest {
    /// Reads a manifest or an index; if it is none, says so.
    pub(crate) fn read(bytes: &[u8]) -> Result<Manifest, String> {
        serde_json::from_slice(bytes).map_err(|_| "it leads to no manifest of an image".to_owned())
    }
}

/// An index may lead to another one, but not for ever: to so many manifests one after the other.
pub(crate) const DEEPEST: usize = 4;

/// Why an image of too many indexes is none.
pub(crate) const TOO_DEEP: &str = "its index leads to another index, and so on";

impl Registry {
    /// The image of this name, for the platform of this host.
    pub fn image(&self, name: &str) -> Result<Image, RegistryError> {
        let reference = parse(name)?;
        let wrong = |what: String| RegistryError::Answer {
            url: reference.whole(),
            what,
        };
        let mut target = target_of(&reference).to_owned();
        for _ in 0..DEEPEST {
            let (manifest, (size, digest)) = self.manifest(&reference, &target)?;
            match manifest {
                Manifest::Image(manifest) => {
                    return self.image_of(reference, &manifest, size, digest);
                }
                Manifest::Index(index) => {
                    let ours = ours(&index).and_then(digest_of).map_err(wrong)?;
                    target = ours.to_string();
                }
            }
        }
        Err(wrong(TOO_DEEP.to_owned()))
    }

    fn image_of(
        &self,
        reference: Reference,
        manifest: &ImageManifest,
        size: u64,
        digest: Digest,
    ) -> Result<Image, RegistryError> {
        let wrong = |what: String| RegistryError::Answer {
            url: reference.whole(),
            what,
        };
        let config = digest_of(manifest.config()).map_err(wrong)?;
        let config = self.get(&reference, format!("blobs/{config}"), "*/*", Some(config))?;
        let layers = layers_of(manifest, &config).map_err(wrong)?;
        let media_type = manifest.media_type().clone();
        let media_type = media_type.unwrap_or(MediaType::ImageManifest);
        Ok(Image {
            manifest: descriptor(media_type, size, digest).map_err(wrong)?,
            reference,
            layers,
        })
    }

    /// The manifest of this image, and its configuration as it stands there.
    pub fn whole(&self, image: &Image) -> Result<(ImageManifest, Vec<u8>), RegistryError> {
        let reference = &image.reference;
        let wrong = |what: String| RegistryError::Answer {
            url: reference.whole(),
            what,
        };
        let digest = digest_of(&image.manifest).map_err(wrong)?;
        let (manifest, _) = self.manifest(reference, &digest.to_string())?;
        let Manifest::Image(manifest) = manifest else {
            return Err(wrong("its manifest is an index".to_owned()));
        };
        let config = digest_of(manifest.config()).map_err(wrong)?;
        let path = format!("blobs/{config}");
        let config = self.get(reference, path, "*/*", Some(config))?;
        Ok((*manifest, config))
    }

    /// What a tag or a digest leads to, and its size and digest.
    fn manifest(
        &self,
        reference: &Reference,
        target: &str,
    ) -> Result<(Manifest, (u64, Digest)), RegistryError> {
        let bytes = self.manifest_bytes_of(reference, target)?;
        let manifest = Manifest::read(&bytes).map_err(|what| RegistryError::Answer {
            url: reference.whole(),
            what,
        })?;
        Ok((manifest, (bytes.len() as u64, Digest::of(&bytes))))
    }

    /// What a tag or a digest leads to, as it stands in the registry.
    pub(crate) fn manifest_bytes_of(
        &self,
        reference: &Reference,
        target: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let digest = Digest::parse(target);
        self.get(reference, format!("manifests/{target}"), MANIFESTS, digest)
    }

    /// A small thing, which is held against its digest.
    pub(crate) fn get(
        &self,
        reference: &Reference,
        path: String,
        accept: &str,
        digest: Option<Digest>,
    ) -> Result<Vec<u8>, RegistryError> {
        self.get_for(Access::Pull, reference, path, accept, digest)
    }

    /// The same, from where it would be written to.
    pub(super) fn get_for(
        &self,
        access: Access,
        reference: &Reference,
        path: String,
        accept: &str,
        digest: Option<Digest>,
    ) -> Result<Vec<u8>, RegistryError> {
        let answer = self.ask_small(&Ask {
            registry: reference.registry(),
            repository: reference.repository(),
            path,
            accept,
            part: None,
            access,
            most: self.manifest_bytes,
            only: None,
        })?;
        match digest {
            Some(wanted) if Digest::of(&answer.bytes) != wanted => Err(RegistryError::Answer {
                url: answer.url,
                what: format!("it answers with something else than {wanted}"),
            }),
            _ => Ok(answer.bytes),
        }
    }

    /// Asks for something that may have as many bytes as a manifest.
    pub(super) fn ask_small(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        self.ask(ask).map_err(|error| match error {
            RegistryError::TooLarge { url, limit } => RegistryError::Answer {
                url,
                what: format!("it has more than {limit} bytes (see lazy.limits.manifest_mib)"),
            },
            other => other,
        })
    }
}

/// Reads an image's name, as people write it. With a digest that nothing can be held against it is none.
pub fn parse(name: &str) -> Result<Reference, RegistryError> {
    let wrong = |reason: String| RegistryError::Reference {
        reference: name.to_owned(),
        reason,
    };
    let reference = Reference::from_str(name).map_err(|error| wrong(error.to_string()))?;
    match reference.digest() {
        Some(digest) if Digest::parse(digest).is_none() => {
            Err(wrong("only sha256 is known".to_owned()))
        }
        _ => Ok(reference),
    }
}

/// What a name asks a registry for: its digest, or else its tag.
pub(crate) fn target_of(reference: &Reference) -> &str {
    reference.digest().or(reference.tag()).unwrap_or("latest")
}

/// The manifest in an index that is for the platform of this host.
pub(crate) fn ours(index: &ImageIndex) -> Result<&Descriptor, String> {
    let mut manifests = index.manifests().iter();
    let ours = manifests.find(|one| one.platform().as_ref().is_none_or(is_ours));
    ours.ok_or_else(|| "the image is not there for this platform".to_owned())
}

/// The layers of an image, the lowest first, by its manifest and its configuration.
pub(crate) fn layers_of(manifest: &ImageManifest, config: &[u8]) -> Result<Vec<Layer>, String> {
    let config: ImageConfiguration =
        serde_json::from_slice(config).map_err(|error| format!("its configuration: {error}"))?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers().len() {
        return Err("it has not as many layers as diff IDs".to_owned());
    }
    let mut layers: Vec<Layer> = Vec::new();
    for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
        let parsed = Digest::parse(diff_id);
        let parsed = parsed.ok_or_else(|| format!("diff ID {diff_id:?}"))?;
        let chain_id = match layers.last() {
            None => diff_id.clone(),
            Some(below) => chain_id(&below.chain_id, diff_id),
        };
        layers.push(Layer {
            digest: digest_of(layer)?,
            size: layer.size(),
            media_type: layer.media_type().to_string(),
            annotations: layer.annotations().clone().unwrap_or_default(),
            diff_id: parsed,
            chain_id,
        });
    }
    Ok(layers)
}

/// The chain ID of a layer, from that of the layers below and its own diff ID.
fn chain_id(below: &str, diff_id: &str) -> String {
    Digest::of(format!("{below} {diff_id}").as_bytes()).to_string()
}

/// A descriptor of something with this digest.
pub(crate) fn descriptor(
    media_type: MediaType,
    size: u64,
    digest: Digest,
) -> Result<Descriptor, String> {
    let digest = oci_spec::image::Digest::from_str(&digest.to_string());
    let digest = digest.map_err(|error| error.to_string())?;
    Ok(Descriptor::new(media_type, size, digest))
}

/// The digest that a descriptor has.
pub(crate) fn digest_of(descriptor: &Descriptor) -> Result<Digest, String> {
    let text = descriptor.digest().to_string();
    Digest::parse(&text).ok_or_else(|| format!("digest {text}: only sha256 is known"))
}

fn is_ours(platform: &Platform) -> bool {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        // identity.ChainID of a and b in the specification's Go code.
        let (a, b) = (Digest::of(b"a").to_string(), Digest::of(b"b").to_string());
        let expected = Digest::of(format!("{a} {b}").as_bytes()).to_string();
        assert_eq!(chain_id(&a, &b), expected);
    }

    #[test]
    fn names_are_read_as_people_write_them() {
        let name = parse("debian:12").expect("name");
        assert_eq!(
            (name.registry(), name.repository(), name.tag()),
            ("docker.io", "library/debian", Some("12"))
        );
        let local = parse("127.0.0.1:5000/a/b").expect("name");
        assert_eq!(
            (local.registry(), local.repository()),
            ("127.0.0.1:5000", "a/b")
        );
        parse("UPPER CASE").expect_err("no name");
        for (algorithm, digits) in [("sha256", 64), ("sha512", 128)] {
            let name = format!("r.example/a@{algorithm}:{}", "0".repeat(digits));
            assert_eq!(parse(&name).is_ok(), algorithm == "sha256", "{name}");
        }
    }
}
