//! What a program needs of its image: the bytes that the files it opens take in the blob.
//!
//! Lamina's own profile says which files those are, and the image's table of contents where each
//! is, compressed by itself. So it is what a host would fetch that knew all files beforehand and
//! fetched nothing else.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use lamina_fusefs::blob::{Digest, Limits, estargz};
use lamina_snapshotter::upper_mode::UpperMode;
use serde::Deserialize;

use crate::harness::{Host, Proxy};
use crate::images::Images;

/// The annotation of a layer with the digest of its table of contents.
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// What a program's files are.
pub(crate) struct Needs {
    /// How many there are.
    pub(crate) files: usize,
    /// Their bytes.
    pub(crate) size: u64,
    /// What they take in the blob.
    pub(crate) packed: u64,
    /// Bytes of the blob.
    pub(crate) blob: u64,
}

#[derive(Deserialize)]
struct Toc {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    offset: u64,
}

/// Runs `script` in the eStargz image, and looks up each file that it opened.
pub(crate) fn measure(images: &Images, script: &str) -> Result<Needs> {
    let mut host = Host::start_configured(UpperMode::Union, "[lazy]\nfill = true\n")?;
    let proxy = Proxy::start(images.registry.port())?;
    let image = format!("{}/estargz:t", proxy.address());
    host.ctr.rpull(&image)?;
    host.ctr.first_line("opens", &image, script)?;
    // It ends in order, and writes down what it saw.
    host.restart_snapshotter()?;
    let opened = profile(&host.snapshotter_root().join("profiles"))?;
    let mut needs = Needs {
        files: 0,
        size: 0,
        packed: 0,
        blob: 0,
    };
    for (digest, (size, packed)) in files(images, &mut needs.blob)? {
        if opened.contains(&digest) {
            needs.files += 1;
            needs.size += size;
            needs.packed += packed;
        }
    }
    Ok(needs)
}

/// The digests in all profiles of a directory.
fn profile(dir: &Path) -> Result<HashSet<String>> {
    let mut digests = HashSet::new();
    for entry in fs::read_dir(dir)? {
        let profile: serde_json::Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        let files = profile["files"].as_array().context("no files")?;
        let named = files.iter().filter_map(|file| file["digest"].as_str());
        digests.extend(named.map(str::to_owned));
    }
    Ok(digests)
}

/// Each file of the image by its digest, with its length and what it takes in the blob; `blob` is what
/// all blobs take.
fn files(images: &Images, blob: &mut u64) -> Result<HashMap<String, (u64, u64)>> {
    let manifest = images.get("estargz/manifests/t")?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let mut files = HashMap::new();
    for layer in manifest["layers"].as_array().context("no layers")? {
        let digest = layer["digest"].as_str().context("no digest")?;
        let bytes = images.get(&format!("estargz/blobs/{digest}"))?;
        let toc_digest = layer["annotations"][TOC_DIGEST].as_str();
        let toc_digest = toc_digest.and_then(Digest::parse).context("no TOC")?;
        *blob += bytes.len() as u64;
        let limits = Limits::default();
        let footer = bytes.last_chunk().context("no footer")?;
        let place = estargz::toc(footer, bytes.len() as u64, &limits)?;
        let member = usize::try_from(place.start)?..usize::try_from(place.end)?;
        let toc = estargz::read(&bytes[member], place.start, toc_digest, &limits)?;
        let toc: Toc = serde_json::from_slice(&toc.json)?;
        let mut starts: Vec<u64> = toc.entries.iter().map(|entry| entry.offset).collect();
        starts.push(place.start);
        starts.sort_unstable();
        let mut current: Option<(&str, u64)> = None;
        for entry in &toc.entries {
            match entry.kind.as_str() {
                // Of files that are the same, one is fetched.
                "reg" if files.contains_key(&entry.digest) => current = None,
                "reg" => current = Some((&entry.digest, entry.size)),
                "chunk" => {}
                _ => current = None,
            }
            let (Some((digest, size)), 1..) = (current, entry.offset) else {
                continue;
            };
            let next = starts.partition_point(|start| *start <= entry.offset);
            let end = starts.get(next).copied().unwrap_or(place.start);
            let file = files.entry(digest.to_owned()).or_insert((size, 0));
            file.1 += end - entry.offset;
        }
    }
    Ok(files)
}
