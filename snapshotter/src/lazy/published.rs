//! Indexes of ordinary gzip layers that lie beside their image in the registry.
//!
//! Whoever has read such a layer once knows where in its blob each file is. This is put beside the
//! image as an artifact that refers to it, with one part for each layer, and another host starts
//! from it without reading the blob first. The image itself stays as it is, with its digest.
//!
//! A part is, compressed by zstd: the layer's index, its chunk table (each behind its length, 8 bytes
//! little endian), and the paths of directories that the archive has no entry for, each ended by a
//! zero byte.
//!
//! The image's manifest says nothing of an index, so that nobody vouches for one but whoever may push
//! to the repository. It is believed where the configuration says so, and nowhere else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamina_fusefs::blob::{Contents, Digest, Flaw, Limits, check_told};
use lamina_fusefs::types::Attr;
use oci_spec::image::Descriptor;
use parking_lot::Mutex;

use super::LazyError;
use super::make::{check_digest, is_ordinary_gzip};
use super::pieces::Pieces;
use crate::registry::artifact::{Made, Part};
use crate::registry::blob::RemoteBlob;
use crate::registry::image::{Image, Layer, digest_of};
use crate::registry::{Registry, RegistryError, layout};
use crate::store::layout::{BLOB_TABLE, LAYER_INDEX};

/// The type of the artifact.
pub const INDEX_TYPE: &str = "application/vnd.lamina.index.v1";
/// The media type of its parts.
const PART_TYPE: &str = "application/vnd.lamina.index.layer.v1+zstd";
/// The digest of the layer's blob that a part is about.
const LAYER: &str = "dev.lamina.layer.digest";
/// The most bytes of a part, compressed.
const MOST: u64 = 128 << 20;
/// The most bytes of what is in it.
const MOST_INSIDE: u64 = 512 << 20;
/// The most bytes of paths in it.
const MOST_PATHS: u64 = 4 << 20;
/// How long it is believed that what lies beside an image is what lay there: long enough for all layers of
/// one pull.
const FRESH: Duration = Duration::from_mins(1);
/// So many images are remembered.
const IMAGES: usize = 100;
/// The largest window that its frame may ask for, as a power of two.
const WINDOW_LOG: u32 = 27;
/// How hard it is tried to make it small.
const LEVEL: i32 = 9;

/// What the index of an artifact in files is called there.
const LAYOUT_NAME: &str = "lamina-index";

/// An index that [`index`] has made.
#[derive(Clone, Debug)]
pub struct Indexed {
    /// The image that it is of.
    pub image: Image,
    /// All of it.
    pub artifact: Made,
    /// Each layer that was read, with the bytes of its blob and of its part.
    pub layers: Vec<(Digest, u64, u64)>,
    /// Layers that need no index, or can have none.
    pub left_out: usize,
}

/// Reads the ordinary gzip layers of an image, and makes their index. `begins` is told of each layer before it
/// is read.
pub fn index(
    registry: &Arc<Registry>,
    name: &str,
    limits: &Limits,
    mut begins: impl FnMut(&Layer),
) -> Result<Indexed, LazyError> {
    let image = registry.image(name)?;
    let (mut parts, mut layers) = (Vec::new(), Vec::new());
    for layer in &image.layers {
        if !is_ordinary_gzip(layer)? {
            continue;
        }
        begins(layer);
        let blob = RemoteBlob::new(
            Arc::clone(registry),
            image.reference.clone(),
            layer.digest,
            layer.size,
        );
        let pieces = Pieces::of(&blob).map_err(lamina_fusefs::Error::from)?;
        let ordinary = Contents::of_gzip(pieces, limits)?;
        check_digest("the blob", ordinary.digest, layer.digest)?;
        check_digest("the archive in the blob", ordinary.diff_id, layer.diff_id)?;
        let bytes = pack(&ordinary.contents)?;
        layers.push((layer.digest, layer.size, bytes.len() as u64));
        parts.push(Part {
            media_type: PART_TYPE.to_owned(),
            annotations: HashMap::from([(LAYER.to_owned(), layer.digest.to_string())]),
            bytes,
        });
    }
    if parts.is_empty() {
        return Err(LazyError::Unfit(format!(
            "{name}: no layer of it is ordinary gzip, so there is nothing to index"
        )));
    }
    let artifact = Made::new(&image.manifest, INDEX_TYPE, &parts).map_err(LazyError::Unfit)?;
    Ok(Indexed {
        artifact,
        left_out: image.layers.len() - layers.len(),
        layers,
        image,
    })
}

/// Puts an index beside its image in the registry.
pub fn push(registry: &Registry, indexed: &Indexed) -> Result<(), LazyError> {
    Ok(registry.push_made(&indexed.image.reference, &indexed.artifact)?)
}

/// Writes an index into a directory, which is made, as an OCI image layout.
pub fn write_to(dir: &Path, indexed: &Indexed) -> Result<(), LazyError> {
    Ok(layout::write(dir, &indexed.artifact, LAYOUT_NAME)?)
}

/// Puts an index that [`write_to`] has written beside the image of this name, which it has to be of. Answers
/// the digest of its manifest.
pub fn push_from(registry: &Registry, name: &str, dir: &Path) -> Result<Digest, LazyError> {
    let image = registry.image(name)?;
    let artifact = layout::read(dir)?;
    let subject = digest_of(&image.manifest).map_err(LazyError::Unfit)?;
    if artifact.artifact_type != INDEX_TYPE || artifact.subject != subject {
        return Err(LazyError::Unfit(format!(
            "{}: it is a {} of {}, and the manifest of {name} is {subject}",
            dir.display(),
            artifact.artifact_type,
            artifact.subject
        )));
    }
    registry.push_made(&image.reference, &artifact)?;
    Ok(artifact.digest())
}

/// The parts of an index, or why there are none.
type Parts = Result<Vec<Descriptor>, RegistryError>;
/// What was found beside an image, and when; the lock is held while somebody looks.
type Slot = Arc<Mutex<Option<(Instant, Parts)>>>;

/// The indexes that were looked for lately, by the manifests of their images.
#[derive(Debug, Default)]
pub(super) struct Indexes(Mutex<HashMap<Digest, Slot>>);

impl Indexes {
    /// The part of an image's index that is about a layer, if somebody has put one beside the image. All
    /// layers of an image are looked for once; a registry that does not answer is waited for once.
    pub(super) fn find(
        &self,
        registry: &Registry,
        image: &Image,
        layer: &Layer,
    ) -> Result<Option<Descriptor>, LazyError> {
        let subject = digest_of(&image.manifest).map_err(LazyError::Unfit)?;
        let slot = {
            let mut slots = self.0.lock();
            if slots.len() >= IMAGES {
                slots.retain(|_, slot| Arc::strong_count(slot) > 1);
            }
            Arc::clone(slots.entry(subject).or_default())
        };
        let mut known = slot.lock();
        let is_fresh = |known: &(Instant, Parts)| known.0.elapsed() < FRESH;
        let parts = known.take().filter(is_fresh).unwrap_or_else(|| {
            let artifact = registry.artifact(&image.reference, subject, INDEX_TYPE);
            let parts = artifact.map(|found| found.map(|found| found.parts));
            (Instant::now(), parts.map(Option::unwrap_or_default))
        });
        let (_, parts) = known.insert(parts);
        let parts = parts.as_ref().map_err(Clone::clone)?;
        let wanted = layer.digest.to_string();
        let part = parts.iter().find(|part| {
            let annotations = part.annotations().as_ref();
            annotations.and_then(|all| all.get(LAYER)) == Some(&wanted)
        });
        Ok(part.cloned())
    }
}

/// What a part tells of a layer beside its index and table.
pub(super) struct Taken {
    /// The attributes of its root.
    pub(super) root: Attr,
    /// Bytes of its files.
    pub(super) file_bytes: u64,
    /// The directories that its archive has no entry for.
    pub(super) implied: Vec<PathBuf>,
}

/// Writes what a part tells of a layer into `dir`.
pub(super) fn take(
    registry: &Registry,
    image: &Image,
    layer: &Layer,
    part: &Descriptor,
    dir: &Path,
    limits: &Limits,
) -> Result<Taken, LazyError> {
    let bytes = registry.artifact_part(&image.reference, part, MOST)?;
    let (index, table) = (dir.join(LAYER_INDEX), dir.join(BLOB_TABLE));
    let implied = unpack(&bytes, &index, &table)?;
    let (root, file_bytes) = check_told(&index, &table, (layer.digest, layer.size), limits)??;
    Ok(Taken {
        root,
        file_bytes,
        implied,
    })
}

/// The bytes of a part.
fn pack(contents: &Contents) -> Result<Vec<u8>, LazyError> {
    let (index, table) = contents.to_bytes()?;
    let mut inside = Vec::new();
    for section in [index, table] {
        inside.extend((section.len() as u64).to_le_bytes());
        inside.extend(section);
    }
    for path in contents.implied() {
        inside.extend(path.as_os_str().as_bytes());
        inside.push(0);
    }
    let packed = zstd::encode_all(&inside[..], LEVEL).map_err(Flaw::Source)?;
    Ok(packed)
}

/// Takes a part apart. Nothing of what it writes was looked at.
fn unpack(part: &[u8], index: &Path, table: &Path) -> Result<Vec<PathBuf>, LazyError> {
    let failed = |source| Flaw::Compression {
        what: "an index in the registry",
        source,
    };
    let mut decoder = zstd::Decoder::new(part).map_err(failed)?;
    decoder.window_log_max(WINDOW_LOG).map_err(failed)?;
    let mut inside = decoder.take(MOST_INSIDE);
    for path in [index, table] {
        let mut length = [0; 8];
        inside.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        let mut section = inside.by_ref().take(length);
        write(path, &mut section)?;
        if section.limit() > 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()).into());
        }
    }
    let mut rest = Vec::new();
    let mut paths = inside.take(MOST_PATHS);
    paths.read_to_end(&mut rest).map_err(failed)?;
    if paths.limit() == 0 || paths.get_ref().limit() == 0 {
        return Err(LazyError::Unfit(format!(
            "an index in the registry has more than {MOST_INSIDE} bytes"
        )));
    }
    let paths = rest
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty());
    Ok(paths
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect())
}

fn write(path: &Path, from: &mut impl Read) -> Result<(), LazyError> {
    let written = fs::File::create(path).and_then(|mut file| {
        io::copy(from, &mut file)?;
        file.sync_all()
    });
    let written = written.map_err(|source| lamina_fusefs::Error::Path {
        action: "cannot write",
        path: path.to_owned(),
        source,
    });
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let mut archive = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut entry = |name: &str, bytes: &[u8]| {
            let mut header = [0u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[100..107].copy_from_slice(b"0000644");
            header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
            header[136..147].copy_from_slice(b"00000000000");
            header[156] = b'0';
            header[257..265].copy_from_slice(b"ustar\x0000");
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            let padded = bytes.len().next_multiple_of(512);
            let mut all = header.to_vec();
            all.extend_from_slice(bytes);
            all.resize(512 + padded, 0);
            io::Write::write_all(&mut archive, &all).unwrap();
        };
        entry("a", b"one");
        entry("not/told/b", b"two");
        io::Write::write_all(&mut archive, &[0; 1024]).unwrap();
        let blob = archive.finish().unwrap();
        Contents::of_gzip(&blob[..], &Limits::default())
            .unwrap()
            .contents
    }

    #[test]
    fn a_part_comes_back_as_it_was() {
        let (contents, dir) = (contents(), tempfile::tempdir().unwrap());
        let [index, table] = ["i", "t"].map(|name| dir.path().join(name));
        let implied = unpack(&pack(&contents).unwrap(), &index, &table).unwrap();
        assert_eq!(implied, contents.implied());
        assert!(!implied.is_empty());
        let (index_bytes, table_bytes) = contents.to_bytes().unwrap();
        assert_eq!(fs::read(index).unwrap(), index_bytes);
        assert_eq!(fs::read(table).unwrap(), table_bytes);
    }

    #[test]
    fn a_part_that_was_tampered_with_is_refused_or_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let [index, table] = ["i", "t"].map(|name| dir.path().join(name));
        let sound = zstd::decode_all(&pack(&contents()).unwrap()[..]).unwrap();
        let unpack = |inside: &[u8]| unpack(&zstd::encode_all(inside, 1).unwrap(), &index, &table);
        unpack(&sound).unwrap();
        for length in 0..sound.len() {
            if let Ok(implied) = unpack(&sound[..length]) {
                assert!(implied.len() <= 2);
            }
        }
        let mut long = sound.clone();
        long[7] = 0x7f;
        unpack(&long).unwrap_err();
        super::unpack(b"no zstd", &index, &table).unwrap_err();
        // Millions of paths are not taken, however small they are packed.
        let mut many = sound;
        many.resize(many.len() + usize::try_from(MOST_PATHS).unwrap(), b'/');
        unpack(&many).unwrap_err();
    }
}
