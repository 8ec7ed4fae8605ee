//! Writing down what is needed to serve a layer from its blob.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use lamina_fusefs::blob::{Contents, Digest, Toc, estargz, zstd_chunked};
use lamina_fusefs::image::Image;
use lamina_fusefs::types::Attr;

use super::labels::Wanted;
use super::pieces::Pieces;
use super::record::{Format, Record};
use super::{Lazy, LazyError};
use crate::registry::blob::RemoteBlob;
use crate::registry::image;
use crate::store::layout::{BLOB, BLOB_RECORD, BLOB_TABLE, LAYER_INDEX};

/// The digest of an eStargz layer's TOC (stargz-snapshotter, docs/estargz.md).
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Writes into `dir` what is needed to serve a layer that is to stand on the image `below`.
pub(super) fn make(
    lazy: &Lazy,
    wanted: &Wanted,
    below: Option<&Image>,
    dir: &Path,
) -> Result<Attr, LazyError> {
    let image = lazy.images.get(&lazy.registry, &wanted.reference)?;
    // The manifest says what the table of contents has to be, so it must be the one of this image;
    // and the chain ID is what other images would share the layer by.
    let layer = image.layers.iter().find(|layer| {
        layer.digest.to_string() == wanted.digest && layer.chain_id == wanted.chain_id
    });
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
    let (format, contents) = match toc_of(layer)? {
        Some(TocPlace::Estargz(digest)) => (
            Format::Estargz,
            Contents::of_toc(&estargz_toc(lazy, &blob, digest)?, &lazy.limits)?,
        ),
        Some(TocPlace::ZstdChunked { digest, position }) => {
            let toc = zstd_chunked_toc(lazy, &blob, digest, position)?;
            (Format::ZstdChunked, Contents::of_toc(&toc, &lazy.limits)?)
        }
        None if layer.media_type.ends_with("gzip") => {
            (Format::Gzip, pull(lazy, &blob, layer, &dir.join(BLOB))?)
        }
        None => {
            return Err(LazyError::Unfit(format!(
                "a layer of type {} without a table of contents",
                layer.media_type
            )));
        }
    };
    check_implied(&contents, below)?;
    contents.save(&dir.join(LAYER_INDEX), &dir.join(BLOB_TABLE))?;
    let record = Record::new(
        wanted.reference.clone(),
        wanted.digest.clone(),
        layer.size,
        format,
    );
    record.write(&dir.join(BLOB_RECORD))?;
    let root = contents.root();
    root.ok_or_else(|| LazyError::Unfit("it has no root".to_owned()))
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
    let chunked = (
        annotation(zstd_chunked::CHECKSUM),
        annotation(zstd_chunked::POSITION),
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

fn estargz_toc(lazy: &Lazy, blob: &RemoteBlob, digest: Digest) -> Result<Toc, LazyError> {
    let size = blob.size();
    let start = size.saturating_sub(estargz::FOOTER as u64);
    let footer = blob.part(start..size)?;
    let footer = footer.first_chunk().ok_or_else(|| {
        LazyError::Unfit("the blob is shorter than the footer of eStargz".to_owned())
    })?;
    let place = estargz::toc(footer, size, &lazy.limits)?;
    let member = blob.part(place.clone())?;
    Ok(estargz::read(&member, place.start, digest, &lazy.limits)?)
}

fn zstd_chunked_toc(
    lazy: &Lazy,
    blob: &RemoteBlob,
    digest: Digest,
    position: &str,
) -> Result<Toc, LazyError> {
    let (place, length) = zstd_chunked::toc(position, blob.size(), &lazy.limits)?;
    let frame = blob.part(place.clone())?;
    Ok(zstd_chunked::read(&frame, (place.start, length), digest)?)
}

/// Reads an ordinary blob to its end, keeps it, and finds out what is where in it.
fn pull(
    lazy: &Lazy,
    blob: &RemoteBlob,
    layer: &image::Layer,
    at: &Path,
) -> Result<Contents, LazyError> {
    let failed = |source| lamina_fusefs::Error::Path {
        action: "cannot write the blob",
        path: at.to_owned(),
        source,
    };
    let file = File::create_new(at).map_err(failed)?;
    let pieces = Pieces::of(blob).map_err(lamina_fusefs::Error::from)?;
    let ordinary = Contents::of_gzip(
        Keeping {
            pieces,
            file: &file,
        },
        &lazy.limits,
    )?;
    for (what, found, wanted) in [
        ("the blob", ordinary.digest, layer.digest),
        ("the archive in the blob", ordinary.diff_id, layer.diff_id),
    ] {
        if found != wanted {
            return Err(lamina_fusefs::blob::Flaw::Digest {
                what,
                found,
                wanted,
            }
            .into());
        }
    }
    file.sync_all().map_err(failed)?;
    Ok(ordinary.contents)
}

/// Keeps what is read through it in a file.
struct Keeping<'f> {
    pieces: Pieces,
    file: &'f File,
}

impl Read for Keeping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pieces.read(buffer)?;
        self.file
            .write_all(buffer.get(..count).unwrap_or_default())?;
        Ok(count)
    }
}

/// A directory that the blob has files in, but no entry for, is what the layers below have there: its
/// attributes, or a symlink that unpacking follows. Serving the blob would make it a new one.
fn check_implied(contents: &Contents, below: Option<&Image>) -> Result<(), LazyError> {
    let Some(below) = below else {
        return Ok(());
    };
    for path in contents.implied() {
        if below.has(&path)? {
            return Err(LazyError::Unfit(format!(
                "it has files in {}, but no entry for it",
                path.display()
            )));
        }
    }
    Ok(())
}
