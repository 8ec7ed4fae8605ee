//! Layers as an archive in the format of OCI, for `ctr images import`.
//!
//! The archive is never on disk: each layer is packed twice, once to know its digest and size, which
//! stand before it, and once into the pipe. Layers are not compressed: unpacking a compressed one
//! measures gzip first of all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// What begins the name of a whiteout.
const WHITEOUT: &str = ".wh.";

/// A layer, and what it is as an archive.
#[derive(Debug)]
pub struct PackedLayer {
    dir: PathBuf,
    digest: String,
    size: u64,
}

/// An image of some layers.
#[derive(Debug)]
pub struct PackedImage {
    tag: String,
    config: Vec<u8>,
    manifest: Vec<u8>,
    /// The digest of its configuration, which keeps the snapshots.
    pub config_digest: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The key of the snapshot with all its layers.
    pub chain: String,
}

/// Packs layers, the lowest first, to know what they will be.
pub fn pack(layers: &[PathBuf]) -> Result<Vec<PackedLayer>> {
    let packed = layers.iter().map(|dir| {
        let mut hash = Hashing::default();
        write_layer(dir, &mut hash).with_context(|| format!("cannot pack {}", dir.display()))?;
        Ok(PackedLayer {
            dir: dir.clone(),
            size: hash.size,
            digest: hash.digest(),
        })
    });
    packed.collect()
}

impl PackedImage {
    /// The image `tag` of these layers, the lowest first.
    pub fn new(tag: &str, layers: &[PackedLayer]) -> Result<PackedImage> {
        let digests: Vec<_> = layers.iter().map(|layer| &layer.digest).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": digests},
        }))?;
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| descriptor(kind, &layer.digest, layer.size))
            .collect();
        let kind = "application/vnd.oci.image.config.v1+json";
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(kind, &digest(&config), config.len() as u64),
            "layers": layers,
        }))?;
        let chain = digests.into_iter().cloned().reduce(|below, layer| {
            // By the specification of images.
            digest(format!("{below} {layer}").as_bytes())
        });
        Ok(PackedImage {
            tag: tag.to_owned(),
            digest: digest(&manifest),
            config_digest: digest(&config),
            config,
            manifest,
            chain: chain.unwrap_or_default(),
        })
    }

    fn descriptor(&self) -> Value {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut value = descriptor(kind, &self.digest, self.manifest.len() as u64);
        value["annotations"] = json!({"org.opencontainers.image.ref.name": self.tag});
        value
    }
}

/// Writes the archive of these images, of which all layers are among `layers`.
pub fn write(images: &[&PackedImage], layers: &[PackedLayer], to: impl Write) -> Result<()> {
    let mut archive = tar::Builder::new(to);
    file(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    let manifests: Vec<_> = images.iter().map(|image| image.descriptor()).collect();
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    file(&mut archive, "index.json", &serde_json::to_vec(&index)?)?;
    for image in images {
        file(&mut archive, &blob(&image.digest), &image.manifest)?;
        file(&mut archive, &blob(&image.config_digest), &image.config)?;
    }
    for layer in layers {
        let header = header(&blob(&layer.digest), layer.size)?;
        // The bytes of a tar need no filling up to a block, which append does otherwise.
        archive.append(&header, io::empty())?;
        write_layer(&layer.dir, archive.get_mut())?;
    }
    Ok(archive.into_inner()?.flush()?)
}

/// Writes a layer's directory as an archive, always the same one.
fn write_layer(layer: &Path, to: impl Write) -> Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    for entry in WalkDir::new(layer).min_depth(1).sort_by_file_name() {
        let entry = entry?;
        let path = entry.path().strip_prefix(layer)?;
        let metadata = entry.metadata()?;
        let mut header = tar::Header::new_gnu();
        if metadata.file_type().is_char_device() {
            let name = entry.file_name().to_string_lossy();
            header.set_mode(0o644);
            header.set_size(0);
            let path = path.with_file_name(format!("{WHITEOUT}{name}"));
            archive.append_data(&mut header, path, io::empty())?;
            continue;
        }
        header.set_metadata(&metadata);
        if metadata.is_file() {
            archive.append_data(&mut header, path, File::open(entry.path())?)?;
        } else if metadata.is_symlink() {
            archive.append_link(&mut header, path, fs::read_link(entry.path())?)?;
        } else {
            archive.append_data(&mut header, path, io::empty())?;
        }
    }
    Ok(archive.into_inner()?.flush()?)
}

fn file(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    Ok(archive.append(&header(name, bytes.len() as u64)?, bytes)?)
}

fn header(name: &str, size: u64) -> Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": kind, "digest": digest, "size": size})
}

/// Where a blob lies.
fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    let mut hash = Hashing::default();
    hash.hash.update(bytes);
    hash.digest()
}

/// What images call this processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A writer that keeps the digest alone.
#[derive(Default)]
struct Hashing {
    hash: Sha256,
    size: u64,
}

impl Hashing {
    fn digest(self) -> String {
        let bytes = self.hash.finalize();
        let hex = bytes.iter().map(|byte| format!("{byte:02x}"));
        format!("sha256:{}", hex.collect::<String>())
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_bytes_and_chains_those_of_the_specification() {
        assert_eq!(
            digest(b"abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let layer = |digest: &str| PackedLayer {
            dir: PathBuf::new(),
            digest: digest.to_owned(),
            size: 0,
        };
        let one = PackedImage::new("one", &[layer("sha256:a")]).unwrap();
        assert_eq!(one.chain, "sha256:a");
        let two = PackedImage::new("two", &[layer("sha256:a"), layer("sha256:b")]).unwrap();
        assert_eq!(two.chain, digest(b"sha256:a sha256:b"));
    }

    #[test]
    fn the_archive_holds_each_blob_under_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/motd"), "hello").unwrap();
        let layers = pack(&[dir.path().to_owned()]).unwrap();
        let image = PackedImage::new("tag", &layers).unwrap();
        let mut bytes = Vec::new();
        write(&[&image], &layers, &mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            io::copy(&mut entry, &mut bytes).unwrap();
            if name.starts_with("blobs/") {
                assert_eq!(name, blob(&digest(&bytes)));
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5, "{names:?}");
        assert_eq!(names[4], blob(&layers[0].digest));
    }
}
