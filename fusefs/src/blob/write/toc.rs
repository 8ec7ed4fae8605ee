//! The table of contents that is written: the JSON that `blob::toc` reads.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::{Flaw, Format};
use crate::blob::entry::{Data, Told, What};
use crate::types::Timestamp;

/// A table of contents that grows with the archive.
#[derive(Debug, Serialize)]
pub(super) struct Toc {
    version: u32,
    entries: Vec<Record>,
}

/// One entry of the JSON; what is zero or empty is left out, as other writers leave it out.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    modtime: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

// serde asks for a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Toc {
    pub(super) fn new() -> Toc {
        Toc {
            version: 1,
            entries: Vec::new(),
        }
    }

    /// Adds an entry, whose chunks have their places in the blob.
    pub(super) fn add(&mut self, told: &Told, format: Format) -> Result<(), Flaw> {
        let failed = |what| Flaw::Entry {
            path: PathBuf::from(&told.name),
            what,
        };
        let text = |text: &OsStr| {
            let text = text.to_str().ok_or_else(|| {
                failed("a name that is no UTF-8, which a table of contents can't tell")
            });
            text.map(String::from)
        };
        let mut record = Record {
            name: text(&told.name)?,
            modtime: modtime(told.mtime).ok_or_else(|| failed("a time that can't be written"))?,
            mode: told.perm.into(),
            uid: told.uid.into(),
            gid: told.gid.into(),
            ..Record::default()
        };
        for (name, value) in &told.xattrs {
            record.xattrs.insert(text(name)?, STANDARD.encode(value));
        }
        match &told.what {
            What::Directory => record.kind = "dir",
            What::Regular(data) => {
                record.kind = "reg";
                self.add_file(record, data, format);
                return Ok(());
            }
            What::HardLink(to) => (record.kind, record.link_name) = ("hardlink", text(to)?),
            What::Symlink(to) => (record.kind, record.link_name) = ("symlink", text(to)?),
            What::CharDevice(major, minor) | What::BlockDevice(major, minor) => {
                record.kind = match told.what {
                    What::CharDevice(..) => "char",
                    _ => "block",
                };
                record.dev_major = (*major).into();
                record.dev_minor = (*minor).into();
            }
            What::Fifo => record.kind = "fifo",
        }
        self.entries.push(record);
        Ok(())
    }

    /// Adds a regular file: a record of it with its first chunk, and one of each further chunk.
    fn add_file(&mut self, mut record: Record, data: &Data, format: Format) {
        record.size = data.size;
        record.digest = data.digest.map_or_else(String::new, |it| it.to_string());
        if let (Format::ZstdChunked, Some(last)) = (format, data.chunks.last()) {
            record.end_offset = last.stretch.end;
        }
        let name = record.name.clone();
        let mut next = Some(record);
        for chunk in &data.chunks {
            let mut record = next.take().unwrap_or_else(|| Record {
                name: name.clone(),
                kind: "chunk",
                ..Record::default()
            });
            record.offset = chunk.stretch.start;
            record.chunk_offset = chunk.offset;
            record.chunk_digest = chunk.digest.to_string();
            // Without a size a chunk is the rest of the file.
            if chunk.len < data.size {
                record.chunk_size = chunk.len;
            }
            self.entries.push(record);
        }
        // An empty file.
        self.entries.extend(next);
    }

    /// Its JSON.
    pub(super) fn json(&self) -> Result<Vec<u8>, Flaw> {
        Ok(serde_json::to_vec(self)?)
    }
}

/// A time as RFC 3339 writes it, in UTC. `None`: it has no such form.
fn modtime(time: Timestamp) -> Option<String> {
    let nanos = i32::try_from(time.nanos).ok()?;
    let time = jiff::Timestamp::new(time.secs, nanos).ok()?;
    Some(time.to_string())
}
