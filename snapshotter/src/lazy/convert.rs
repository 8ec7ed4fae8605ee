//! Images of any format made into images whose files can be had one by one.
//!
//! Each layer is read from the source, held against its digest and diff ID, and written as eStargz or
//! zstd:chunked; then the image's configuration and manifest are written anew, with the digests that
//! changed. The rest of both stays. The source stays as it is.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use lamina_fusefs::blob::write::{Format, Written, convert as write_blob};
use lamina_fusefs::blob::{Digest, Flaw, Limits};
use oci_spec::image::{Descriptor, MediaType};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::LazyError;
use super::make::{Packing, Shown, check_digest};
use super::pieces::Pieces;
use crate::registry::Registry;
use crate::registry::blob::RemoteBlob;
use crate::registry::image::{Image, Layer, descriptor, parse};
use crate::registry::push::Body;

/// Bytes that are read and written at a time.
const BUFFER: usize = 1 << 20;
/// What the names of annotations begin with that tell of a table of contents: those of the source
/// mean nothing for the new blob.
const FORMATS: [&str; 4] = [
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
];

/// What [`convert`] did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Converted {
    /// The digest of the new manifest.
    pub manifest: Digest,
    /// Each layer: the digest and the bytes of its blob in the source, and of the new one.
    pub layers: Vec<[(Digest, u64); 2]>,
}

/// Writes the image `source`, as it is for this host's platform, to the tag `target` in another format.
/// `begins` is told of each layer before it is read.
pub fn convert(
    registry: &Arc<Registry>,
    source: &str,
    target: &str,
    format: Format,
    limits: &Limits,
    mut begins: impl FnMut(&Layer),
) -> Result<Converted, LazyError> {
    let to = parse(target)?;
    if to.digest().is_some() {
        return Err(LazyError::Unfit(format!(
            "{target}: the new image has another digest: name a tag"
        )));
    }
    let image = registry.image(source)?;
    let (mut manifest, config) = registry.whole(&image)?;
    let (mut layers, mut descriptors, mut diff_ids) = (Vec::new(), Vec::new(), Vec::new());
    for (layer, old) in image.layers.iter().zip(manifest.layers()) {
        begins(layer);
        let file = scratch().map_err(lamina_fusefs::Error::from)?;
        let written = convert_layer(registry, &image, layer, format, &file, limits)?;
        registry.push_blob(&to, written.digest, written.size, Body::File(&file))?;
        layers.push([(layer.digest, layer.size), (written.digest, written.size)]);
        diff_ids.push(written.diff_id.to_string());
        descriptors.push(describe(old, format, written)?);
    }
    let config = with_diff_ids(&config, diff_ids)?;
    let digest = Digest::of(&config);
    registry.push_blob(&to, digest, config.len() as u64, Body::Bytes(&config))?;
    let config = descriptor(MediaType::ImageConfig, config.len() as u64, digest);
    manifest.set_config(config.map_err(LazyError::Unfit)?);
    manifest.set_layers(descriptors);
    manifest.set_media_type(Some(MediaType::ImageManifest));
    let bytes = serde_json::to_vec(&manifest).map_err(|error| unfit(&error))?;
    let tag = to.tag().unwrap_or("latest");
    let media_type = MediaType::ImageManifest.to_string();
    let pushed = registry.push_manifest(&to, tag, &media_type, &bytes)?;
    Ok(Converted {
        manifest: pushed.digest,
        layers,
    })
}

/// Reads a layer to its end, and writes it to `file` in another format.
fn convert_layer(
    registry: &Arc<Registry>,
    image: &Image,
    layer: &Layer,
    format: Format,
    file: &File,
    limits: &Limits,
) -> Result<Written, LazyError> {
    let packing = Packing::of(&layer.media_type).ok_or_else(|| {
        let media_type = &layer.media_type;
        LazyError::Unfit(format!("nothing is known of layers of type {media_type}"))
    })?;
    let blob = RemoteBlob::new(
        Arc::clone(registry),
        image.reference.clone(),
        layer.digest,
        layer.size,
    );
    let mut hash = Sha256::new();
    let mut raw = BufReader::with_capacity(
        BUFFER,
        Shown {
            pieces: Pieces::of(&blob).map_err(lamina_fusefs::Error::from)?,
            to: |bytes: &[u8]| {
                hash.update(bytes);
                Ok(())
            },
        },
    );
    let failed = |source| Flaw::Compression {
        what: "the blob",
        source,
    };
    let to = BufWriter::with_capacity(BUFFER, file);
    let written = match packing {
        Packing::Gzip => write_blob(MultiGzDecoder::new(&mut raw), to, format, limits)?,
        Packing::Zstd => {
            let mut archive = zstd::Decoder::with_buffer(&mut raw).map_err(failed)?;
            archive.window_log_max(limits.window_log).map_err(failed)?;
            write_blob(archive, to, format, limits)?
        }
        Packing::Tar => write_blob(raw.by_ref(), to, format, limits)?,
    };
    io::copy(&mut raw, &mut io::sink()).map_err(failed)?;
    drop(raw);
    check_digest("the blob", Digest::from(hash), layer.digest)?;
    check_digest(
        "the archive in the blob",
        written.source_diff_id,
        layer.diff_id,
    )?;
    Ok(written)
}

/// A file without a name, which is gone when it is closed.
fn scratch() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::TMPFILE.bits().cast_signed())
        .open(std::env::temp_dir())
}

/// The new descriptor of a layer.
fn describe(old: &Descriptor, format: Format, written: Written) -> Result<Descriptor, LazyError> {
    let media_type = match format {
        Format::Estargz => MediaType::ImageLayerGzip,
        Format::ZstdChunked => MediaType::ImageLayerZstd,
    };
    let annotations = old.annotations().iter().flatten();
    let kept = annotations.filter(|(name, _)| !FORMATS.iter().any(|of| name.starts_with(of)));
    let mut annotations: HashMap<String, String> = kept
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    annotations.extend(written.annotations);
    let new = descriptor(media_type, written.size, written.digest);
    let mut new = new.map_err(LazyError::Unfit)?;
    new.set_annotations(Some(annotations));
    Ok(new)
}

/// A configuration with other diff IDs, and otherwise as it was.
fn with_diff_ids(config: &[u8], diff_ids: Vec<String>) -> Result<Vec<u8>, LazyError> {
    let mut config: serde_json::Value =
        serde_json::from_slice(config).map_err(|error| unfit(&error))?;
    let place = config.pointer_mut("/rootfs/diff_ids");
    let place = place.ok_or_else(|| LazyError::Unfit("no diff IDs".to_owned()))?;
    *place = diff_ids.into();
    serde_json::to_vec(&config).map_err(|error| unfit(&error))
}

fn unfit(error: &serde_json::Error) -> LazyError {
    LazyError::Unfit(format!("its manifest or configuration: {error}"))
}
