//! Layers that no honest program writes.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use lamina_fusefs::blob::Digest;
use serde_json::{Value, json};

use super::super::harness::Made;
use super::opt;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Bytes of a block of an archive.
const BLOCK: usize = 512;

/// An archive, put together byte by byte.
#[derive(Clone, Default)]
pub(super) struct Tar(Vec<u8>);

/// One entry, which nobody has looked at.
pub(super) struct Entry<'e> {
    pub(super) name: &'e [u8],
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) link: &'e [u8],
    pub(super) bytes: &'e [u8],
    pub(super) device: (u32, u32),
    /// The size that the header claims, if it is not that of the bytes.
    pub(super) claims: Option<u64>,
}

impl<'e> Entry<'e> {
    pub(super) fn of(name: &'e (impl AsRef<[u8]> + ?Sized), kind: u8, mode: u32) -> Entry<'e> {
        Entry {
            name: name.as_ref(),
            kind,
            mode,
            link: b"",
            bytes: b"",
            device: (0, 0),
            claims: None,
        }
    }
}

impl Tar {
    pub(super) fn add(mut self, entry: &Entry<'_>) -> Tar {
        let size = entry.claims.unwrap_or(entry.bytes.len() as u64);
        let mut header = vec![0; BLOCK];
        let mut set = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, entry.name);
        set(100, format!("{:07o}\0", entry.mode).as_bytes());
        set(108, b"0000000\0");
        set(116, b"0000000\0");
        set(124, format!("{size:011o}\0").as_bytes());
        set(136, b"00000000007\0");
        set(148, b"        ");
        set(156, &[entry.kind]);
        set(157, entry.link);
        set(257, b"ustar\x0000");
        set(329, format!("{:07o}\0", entry.device.0).as_bytes());
        set(337, format!("{:07o}\0", entry.device.1).as_bytes());
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(entry.bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(super) fn file(self, name: &(impl AsRef<[u8]> + ?Sized), bytes: &[u8]) -> Tar {
        self.add(&Entry {
            bytes,
            ..Entry::of(name, b'0', 0o644)
        })
    }

    pub(super) fn mode(self, name: &str, mode: u32, bytes: &[u8]) -> Tar {
        self.add(&Entry {
            bytes,
            ..Entry::of(name, b'0', mode)
        })
    }

    pub(super) fn dir(self, name: &str) -> Tar {
        self.add(&Entry::of(name, b'5', 0o755))
    }

    pub(super) fn dir_mode(self, name: &str, mode: u32) -> Tar {
        self.add(&Entry::of(name, b'5', mode))
    }

    pub(super) fn symlink(self, name: &str, to: &str) -> Tar {
        self.add(&Entry {
            link: to.as_bytes(),
            ..Entry::of(name, b'2', 0o777)
        })
    }

    pub(super) fn link(self, name: &str, to: &str) -> Tar {
        self.add(&Entry {
            link: to.as_bytes(),
            ..Entry::of(name, b'1', 0o644)
        })
    }

    pub(super) fn device(self, name: &str, kind: u8, device: (u32, u32)) -> Tar {
        self.add(&Entry {
            device,
            ..Entry::of(name, kind, 0o666)
        })
    }

    /// An extended header with these records, for the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..rest + 9).find(|length| length.to_string().len() + rest == *length);
            bytes.extend(format!("{} {key}=", length.unwrap_or_default()).as_bytes());
            bytes.extend(*value);
            bytes.push(b'\n');
        }
        self.add(&Entry {
            bytes: &bytes,
            ..Entry::of("pax", b'x', 0o644)
        })
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    /// An ordinary gzip layer.
    pub(super) fn gzip(self) -> Made {
        gzip_of(&self.end())
    }

    /// An ordinary zstd layer.
    pub(super) fn zstd(self) -> Made {
        let tar = self.end();
        let blob = zstd::encode_all(&tar[..], 3).expect("zstd");
        Made::new(ZSTD, blob, Digest::of(&tar))
    }
}

/// An ordinary gzip layer of an archive.
pub(super) fn gzip_of(tar: &[u8]) -> Made {
    Made::new(GZIP, gzip(tar), Digest::of(tar))
}

/// A zstd layer that asks for a window of 2 to this power.
pub(super) fn windowed(tar: &[u8], log: u32) -> Made {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("zstd");
    encoder.window_log(log).expect("window");
    encoder.long_distance_matching(true).expect("window");
    encoder.include_contentsize(false).expect("size");
    encoder.write_all(tar).expect("zstd");
    Made::new(ZSTD, encoder.finish().expect("zstd"), Digest::of(tar))
}

/// A gzip layer of an archive with one file of so many MiB of zeros.
pub(super) fn bomb(mib: usize) -> Made {
    let zeros = vec![0; mib << 20];
    opt(|tar| tar.file("opt/zeros", &zeros))
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

/// An eStargz layer of these files below `opt`, whose table of contents `lie` has changed.
pub(super) fn estargz(files: &[(&str, &[u8])], lie: impl FnOnce(&mut Vec<Value>)) -> Made {
    let mut entries = vec![json!({"type": "dir", "name": "opt/", "mode": 0o755})];
    let dir = Tar::default().dir("opt/").0;
    let (mut blob, mut tar) = (gzip(&dir), dir);
    for (name, bytes) in files {
        let whole = Tar::default().file(*name, bytes).0;
        let (header, data) = whole.split_at(BLOCK);
        blob.extend(gzip(header));
        let digest = Digest::of(bytes).to_string();
        entries.push(json!({
            "type": "reg", "name": name, "mode": 0o644, "size": bytes.len(),
            "digest": digest, "offset": blob.len(), "chunkSize": 0, "chunkDigest": digest,
        }));
        blob.extend(gzip(data));
        tar.extend(&whole);
    }
    lie(&mut entries);
    let toc = json!({"version": 1, "entries": entries}).to_string();
    with_toc(blob, tar, toc.as_bytes(), None)
}

/// The end of an eStargz layer: its table of contents, of which the header may claim another size.
pub(super) fn with_toc(
    mut blob: Vec<u8>,
    mut tar: Vec<u8>,
    toc: &[u8],
    claims: Option<u64>,
) -> Made {
    let start = blob.len();
    let last = Tar::default().add(&Entry {
        bytes: toc,
        claims,
        ..Entry::of("stargz.index.json", b'0', 0o444)
    });
    let last = last.end();
    tar.extend(&last);
    blob.extend(gzip(&last));
    blob.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0]);
    blob.extend(b"SG\x16\x00");
    blob.extend(format!("{start:016x}STARGZ").as_bytes());
    blob.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut made = Made::new(GZIP, blob, Digest::of(&tar));
    made.annotations = json!({TOC_DIGEST: Digest::of(toc).to_string()});
    made
}

/// The annotation that a table of contents is bound to its manifest by.
pub(super) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
