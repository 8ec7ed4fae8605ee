//! Writing down what is needed to serve a layer from its blob.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamina_fusefs::blob::{
    Contents, Digest, Flaw, Limits, Toc, estargz, implied_digest, zstd_chunked,
};
use lamina_fusefs::image::Image;
use lamina_fusefs::types::Attr;

use super::labels::Wanted;
use super::pieces::Pieces;
use super::record::{Format, Record};
use super::{Lazy, LazyError, published};
use crate::registry::blob::RemoteBlob;
use crate::registry::image;
use crate::store::layout::{BLOB, BLOB_RECORD, BLOB_TABLE, LAYER_INDEX};

/// A table of contents with more bytes of JSON is read while no other such table is.
const LARGE_TABLE: usize = 16 << 20;
/// The digest of an eStargz layer's TOC (stargz-snapshotter, docs/estargz.md).
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// A table of contents mostly takes less than one of so many bytes of its blob,
const TAIL_OF: u64 = 128;
/// and this is how much is read of the blob's end at least, and at most, before it is known where it is.
const TAIL: Range<u64> = 64 << 10..1 << 20;

/// Writes into `dir` what is needed to serve a layer that is to stand on the image `below`.
pub(super) fn make(
    lazy: &Lazy,
    limits: &Limits,
    wanted: &Wanted,
    below: Option<&Image>,
    dir: &Path,
) -> Result<Attr, LazyError> {
    let mut image = lazy.images.get(&lazy.registry, &wanted.reference)?;
    if find(&image, wanted).is_none() {
        // The tag may have moved since.
        let (registry, name) = (&lazy.registry, &wanted.reference);
        image = lazy.images.get_but(registry, name, Some(&image))?;
    }
    // The manifest says what the table of contents has to be, so it must be the one of this image;
    // and the chain ID is what other images would share the layer by.
    let layer = find(&image, wanted);
    let layer = layer.ok_or_else(|| LazyError::OtherImage {
        reference: wanted.reference.clone(),
        digest: wanted.digest.clone(),
        chain_id: wanted.chain_id.clone(),
    })?;
    let blob = RemoteBlob::new(
        Arc::clone(&lazy.registry),
        image.reference.clone(),
        layer.digest,
        layer.size,
    );
    if is_ordinary_gzip(layer)?
        && let Some(taken) = from_registry(lazy, limits, &image, layer, below, dir)
    {
        let (reference, digest) = (wanted.reference.clone(), wanted.digest.clone());
        let record = Record::new(reference, digest, layer.size, Format::Gzip);
        let mut record = record.of_archive(layer.diff_id.to_string(), false);
        record.file_bytes = taken.file_bytes;
        record.implied = Some(implied_digest(taken.implied).to_string());
        record.write(&dir.join(BLOB_RECORD))?;
        return Ok(taken.root);
    }
    // One after the other, and only when their bytes are here: no registry keeps others waiting.
    let turn = |toc: &Toc| (toc.json.len() > LARGE_TABLE).then(|| lazy.large_table.lock());
    let _turn;
    let (format, contents) = match toc_of(layer)? {
        Some(TocPlace::Estargz(digest)) => {
            let toc = estargz_toc(limits, &blob, digest)?;
            _turn = turn(&toc);
            (Format::Estargz, Contents::of_toc(&toc, limits)?)
        }
        Some(TocPlace::ZstdChunked { digest, position }) => {
            let toc = zstd_chunked_toc(limits, &blob, digest, position)?;
            _turn = turn(&toc);
            (Format::ZstdChunked, Contents::of_toc(&toc, limits)?)
        }
        None => match Packing::of(&layer.media_type) {
            Some(Packing::Gzip) => (Format::Gzip, pull(limits, &blob, layer, &dir.join(BLOB))?),
            Some(packing) => {
                let contents = repack(limits, &blob, layer, packing, &dir.join(BLOB))?;
                (Format::Repacked, contents)
            }
            None => {
                return Err(LazyError::Unfit(format!(
                    "nothing is known of layers of type {}",
                    layer.media_type
                )));
            }
        },
    };
    let implied = contents.implied();
    check_implied(&implied, below)?;
    contents.save(&dir.join(LAYER_INDEX), &dir.join(BLOB_TABLE))?;
    let record = Record::new(
        wanted.reference.clone(),
        wanted.digest.clone(),
        layer.size,
        format,
    );
    // What was read to its end was held against the diff ID.
    let is_verified = matches!(format, Format::Gzip | Format::Repacked);
    let mut record = record.of_archive(layer.diff_id.to_string(), is_verified);
    record.file_bytes = contents.file_bytes();
    record.implied = (!is_verified).then(|| implied_digest(implied).to_string());
    record.write(&dir.join(BLOB_RECORD))?;
    let root = contents.root();
    root.ok_or_else(|| LazyError::Unfit("it has no root".to_owned()))
}

/// The layer of an image that containerd means.
fn find<'i>(image: &'i image::Image, wanted: &Wanted) -> Option<&'i image::Layer> {
    let mut layers = image.layers.iter();
    layers.find(|layer| {
        layer.digest.to_string() == wanted.digest && layer.chain_id == wanted.chain_id
    })
}

/// Whether a layer is one that an index of ours is for: gzip without a table of contents.
pub(super) fn is_ordinary_gzip(layer: &image::Layer) -> Result<bool, LazyError> {
    let is_gzip = Packing::of(&layer.media_type) == Some(Packing::Gzip);
    Ok(is_gzip && toc_of(layer)?.is_none())
}

/// Writes down what an index in the registry tells of a layer, if there is one, and it is to be believed.
/// Whatever is wrong with it is said in the log: the layer is read then as if there were none.
fn from_registry(
    lazy: &Lazy,
    limits: &Limits,
    image: &image::Image,
    layer: &image::Layer,
    below: Option<&Image>,
    dir: &Path,
) -> Option<published::Taken> {
    if !lazy.trusts_indexes_of(&image.reference) {
        return None;
    }
    let found = lazy.indexes.find(&lazy.registry, image, layer);
    let taken = found.and_then(|part| {
        let Some(part) = part else { return Ok(None) };
        let taken = published::take(&lazy.registry, image, layer, &part, dir, limits)?;
        check_implied(&taken.implied, below)?;
        Ok(Some(taken))
    });
    taken.unwrap_or_else(|error| {
        tracing::info!(
            image = image.reference.whole(), layer = %layer.digest, %error,
            "an index in the registry is not used"
        );
        None
    })
}

/// Where a table of contents is.
enum TocPlace<'l> {
    Estargz(Digest),
    ZstdChunked { digest: Digest, position: &'l str },
}

/// What the manifest says of a layer's table of contents.
fn toc_of(layer: &image::Layer) -> Result<Option<TocPlace<'_>>, LazyError> {
    let annotation = |name: &str| layer.annotations.get(name);
    let digest = |text: &String| {
        Digest::parse(text).ok_or_else(|| LazyError::Unfit(format!("{text:?} is no digest")))
    };
    let either = |names: [&str; 2]| names.into_iter().find_map(annotation);
    let chunked = (
        either(zstd_chunked::CHECKSUM),
        either(zstd_chunked::POSITION),
    );
    match (annotation(TOC_DIGEST), chunked) {
        (Some(toc), (None, None)) => Ok(Some(TocPlace::Estargz(digest(toc)?))),
        (None, (Some(toc), Some(position))) => Ok(Some(TocPlace::ZstdChunked {
            digest: digest(toc)?,
            position,
        })),
        (None, (None, None)) => Ok(None),
        // Two tables could tell two stories to two programs.
        _ => Err(LazyError::Unfit(
            "the annotations of the layer contradict each other on its table of contents"
                .to_owned(),
        )),
    }
}

fn estargz_toc(limits: &Limits, blob: &RemoteBlob, digest: Digest) -> Result<Toc, LazyError> {
    let size = blob.size();
    // Most often the table lies in what comes along with the footer.
    let start = size.saturating_sub((size / TAIL_OF).clamp(TAIL.start, TAIL.end));
    let mut tail = blob.part(start..size)?;
    let footer = tail.last_chunk().ok_or_else(|| {
        LazyError::Unfit("the blob is shorter than the footer of eStargz".to_owned())
    })?;
    let place = estargz::toc(footer, size, limits)?;
    tail.truncate(tail.len().saturating_sub(estargz::FOOTER));
    let member = match place.start.checked_sub(start) {
        Some(before) => tail.split_off(
            usize::try_from(before)
                .unwrap_or(tail.len())
                .min(tail.len()),
        ),
        None => [blob.part(place.start..start)?, tail].concat(),
    };
    Ok(estargz::read(&member, place.start, digest, limits)?)
}

fn zstd_chunked_toc(
    limits: &Limits,
    blob: &RemoteBlob,
    digest: Digest,
    position: &str,
) -> Result<Toc, LazyError> {
    let (place, length) = zstd_chunked::toc(position, blob.size(), limits)?;
    let frame = blob.part(place.clone())?;
    Ok(zstd_chunked::read(&frame, (place.start, length), digest)?)
}

/// How an ordinary blob is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
    Tar,
}

impl Packing {
    /// By its media type (OCI image specification, layer.md; docker's for the same).
    pub(super) fn of(media_type: &str) -> Option<Packing> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(Packing::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Packing::Zstd),
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Some(Packing::Tar),
            _ => None,
        }
    }
}

/// Reads an ordinary gzip blob to its end, keeps it, and finds out what is where in it.
fn pull(
    limits: &Limits,
    blob: &RemoteBlob,
    layer: &image::Layer,
    at: &Path,
) -> Result<Contents, LazyError> {
    let mut kept = Kept::create(at)?;
    let pieces = Pieces::of(blob).map_err(lamina_fusefs::Error::from)?;
    let keeping = Shown {
        pieces,
        to: |bytes: &[u8]| kept.file.write_all(bytes),
    };
    let ordinary = Contents::of_gzip(keeping, limits)?;
    check_digest("the blob", ordinary.digest, layer.digest)?;
    check_digest("the archive in the blob", ordinary.diff_id, layer.diff_id)?;
    kept.sync()?;
    Ok(ordinary.contents)
}

/// Reads a blob that can't be read from the middle to its end, and keeps its files, packed anew.
fn repack(
    limits: &Limits,
    blob: &RemoteBlob,
    layer: &image::Layer,
    packing: Packing,
    at: &Path,
) -> Result<Contents, LazyError> {
    let mut kept = Kept::create(at)?;
    let pieces = Pieces::of(blob).map_err(lamina_fusefs::Error::from)?;
    let to = BufWriter::with_capacity(1 << 20, &mut kept.file);
    let ordinary = match packing {
        Packing::Zstd => Contents::of_zstd(pieces, to, limits)?,
        Packing::Gzip | Packing::Tar => Contents::of_tar(pieces, to, limits)?,
    };
    check_digest("the blob", ordinary.digest, layer.digest)?;
    check_digest("the archive in the blob", ordinary.diff_id, layer.diff_id)?;
    kept.sync()?;
    Ok(ordinary.contents)
}

pub(super) fn check_digest(what: &'static str, found: Digest, wanted: Digest) -> Result<(), Flaw> {
    if found == wanted {
        return Ok(());
    }
    Err(Flaw::Digest {
        what,
        found,
        wanted,
    })
}

/// The file that a blob is kept in.
struct Kept<'p> {
    path: &'p Path,
    file: File,
}

impl Kept<'_> {
    fn create(path: &Path) -> Result<Kept<'_>, LazyError> {
        let file = File::create_new(path).map_err(|source| failed_at(path, source))?;
        Ok(Kept { path, file })
    }

    fn sync(&self) -> Result<(), LazyError> {
        let synced = self.file.sync_all();
        Ok(synced.map_err(|source| failed_at(self.path, source))?)
    }
}

fn failed_at(path: &Path, source: io::Error) -> lamina_fusefs::Error {
    lamina_fusefs::Error::Path {
        action: "cannot write the blob",
        path: path.to_owned(),
        source,
    }
}

/// Shows what is read through it to somebody else, too.
pub(super) struct Shown<F> {
    pub(super) pieces: Pieces,
    pub(super) to: F,
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Read for Shown<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pieces.read(buffer)?;
        (self.to)(buffer.get(..count).unwrap_or_default())?;
        Ok(count)
    }
}

/// A directory that the blob has files in, but no entry for, is what the layers below have there: its
/// attributes, or a symlink that unpacking follows. Serving the blob would make it a new one.
fn check_implied(implied: &[PathBuf], below: Option<&Image>) -> Result<(), LazyError> {
    let Some(below) = below else {
        return Ok(());
    };
    for path in implied {
        if below.has(path)? {
            return Err(LazyError::Unfit(format!(
                "it has files in {}, but no entry for it",
                path.display()
            )));
        }
    }
    Ok(())
}
