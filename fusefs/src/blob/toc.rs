//! The table of contents of eStargz and zstd:chunked, which is nearly the same JSON
//! (stargz-snapshotter, docs/estargz.md; containers/storage, pkg/chunked/internal/minimal).
//!
//! An entry stands for each of the archive, and behind that of a large file one for each further
//! chunk. eStargz does not say where a chunk ends: that is where the next one begins.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::digest::Digest;
use super::entry::{Chunk, Data, Told, What};
use super::footer::Toc;
use super::limits::{Cap, Limits};
use super::{Compression, Flaw};
use crate::types::Timestamp;

/// The only version that there is.
const VERSION: u32 = 1;

/// Names of eStargz that are no files of the image.
pub(super) const STARGZ_TOC: &str = "stargz.index.json";
pub(super) const PREFETCH_LANDMARK: &str = ".prefetch.landmark";
pub(super) const NO_PREFETCH_LANDMARK: &str = ".no.prefetch.landmark";

/// What Go's JSON writes for a byte that is no UTF-8.
const LOST: char = char::REPLACEMENT_CHARACTER;

/// What a table of contents tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Contents {
    /// All entries, in the order of the archive.
    pub(crate) entries: Vec<Told>,
    /// Up to where in the blob the files are that the maker wants to be fetched first; 0 if there
    /// are none.
    pub(crate) prefetch: u64,
}

/// Reads a table of contents.
pub(crate) fn read(toc: &Toc, limits: &Limits) -> Result<Contents, Flaw> {
    let mut json = serde_json::Deserializer::from_slice(&toc.json);
    let exceeded = Cell::new(None);
    let seed = Seed {
        limits,
        exceeded: &exceeded,
    };
    let records = seed.deserialize(&mut json);
    if let Some(cap) = exceeded.get() {
        return Err(limits.exceeded(cap));
    }
    let records = records?;
    json.end()?;
    let ends = Ends::of(&records, toc);
    let mut contents = Contents {
        entries: Vec::new(),
        prefetch: 0,
    };
    let mut records = records.into_iter().peekable();
    while let Some(first) = records.next() {
        let mut pieces = vec![first.piece()];
        while let Some(more) = records.next_if(|next| next.kind == "chunk") {
            pieces.push(more.piece());
        }
        if toc.compression != Compression::Zstd {
            if is_name(first.name.as_bytes(), PREFETCH_LANDMARK) {
                contents.prefetch = first.offset.min(toc.data_end);
            }
            if is_of_format(first.name.as_bytes()) {
                continue;
            }
        }
        contents.entries.push(first.told(pieces, &ends, limits)?);
    }
    Ok(contents)
}

/// Whether an entry of eStargz with this path is no file of the image.
pub(crate) fn is_of_format(path: &[u8]) -> bool {
    [PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK, STARGZ_TOC]
        .iter()
        .any(|name| is_name(path, name))
}

/// Whether it is this name in the root directory.
fn is_name(path: &[u8], name: &str) -> bool {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.strip_prefix(b"./").unwrap_or(path) == name.as_bytes()
}

/// One entry of the JSON. Numbers that are negative or too large are refused by their types.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    modtime: Option<String>,
    link_name: String,
    mode: u32,
    uid: u32,
    gid: u32,
    dev_major: u32,
    dev_minor: u32,
    xattrs: Option<BTreeMap<String, String>>,
    digest: String,
    offset: u64,
    end_offset: u64,
    inner_offset: u64,
    chunk_offset: u64,
    chunk_size: u64,
    chunk_digest: String,
}

/// What an entry says of one chunk.
struct Piece {
    start: u64,
    skip: u64,
    offset: u64,
    len: u64,
    digest: String,
}

impl Record {
    fn piece(&self) -> Piece {
        Piece {
            start: self.offset,
            skip: self.inner_offset,
            offset: self.chunk_offset,
            len: self.chunk_size,
            digest: self.chunk_digest.clone(),
        }
    }

    fn flaw(&self, what: &'static str) -> Flaw {
        Flaw::Entry {
            path: PathBuf::from(&self.name),
            what,
        }
    }

    fn told(&self, pieces: Vec<Piece>, ends: &Ends, limits: &Limits) -> Result<Told, Flaw> {
        if self.name.contains(LOST) || self.link_name.contains(LOST) {
            return Err(self.flaw("a name that is no UTF-8, of which JSON has lost the bytes"));
        }
        let what = match self.kind.as_str() {
            "dir" => What::Directory,
            "reg" => What::Regular(self.data(pieces, ends, limits)?),
            "symlink" => What::Symlink(OsString::from(&self.link_name)),
            "hardlink" => What::HardLink(OsString::from(&self.link_name)),
            "char" => What::CharDevice(self.dev_major, self.dev_minor),
            "block" => What::BlockDevice(self.dev_major, self.dev_minor),
            "fifo" => What::Fifo,
            "chunk" => return Err(self.flaw("a chunk without a file before it")),
            _ => return Err(self.flaw("an unknown type")),
        };
        Ok(Told {
            name: OsString::from(&self.name),
            what,
            // Some writers leave the type of the file in the mode.
            perm: u16::try_from(self.mode & 0o7777).unwrap_or(0),
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime()?,
            xattrs: self.xattrs(limits)?,
        })
    }

    fn mtime(&self) -> Result<Timestamp, Flaw> {
        let Some(text) = self.modtime.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(Timestamp::default());
        };
        let time: jiff::Timestamp = text.parse().map_err(|_| self.flaw("a time that is none"))?;
        // Before 1970 both parts are negative.
        let nanos = i64::from(time.subsec_nanosecond());
        Ok(Timestamp {
            secs: time.as_second() + nanos.div_euclid(1_000_000_000),
            nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
        })
    }

    fn xattrs(&self, limits: &Limits) -> Result<Vec<(OsString, Vec<u8>)>, Flaw> {
        let mut bytes = 0;
        let mut xattrs = Vec::new();
        for (name, value) in self.xattrs.iter().flatten() {
            if name.contains(LOST) {
                return Err(self.flaw("a name that is no UTF-8, of which JSON has lost the bytes"));
            }
            let value = STANDARD.decode(value);
            let value = value.map_err(|_| self.flaw("an extended attribute that is no Base64"))?;
            bytes += name.len() + value.len();
            if bytes > limits.xattr_bytes {
                return Err(limits.exceeded(Cap::Xattrs));
            }
            xattrs.push((OsString::from(name), value));
        }
        Ok(xattrs)
    }

    /// The bytes of a regular file: its chunks have to be all of it, in order.
    fn data(&self, pieces: Vec<Piece>, ends: &Ends, limits: &Limits) -> Result<Data, Flaw> {
        let digest = match self.digest.as_str() {
            "" => None,
            text => Some(Digest::parse(text).ok_or_else(|| self.flaw("an unknown digest"))?),
        };
        let mut data = Data {
            size: self.size,
            digest,
            chunks: Vec::new(),
        };
        if self.size == 0 {
            return match pieces.len() {
                1 => Ok(data),
                _ => Err(self.flaw("chunks of an empty file")),
            };
        }
        let alone = pieces.len() == 1;
        let starts: Vec<u64> = pieces.iter().map(|piece| piece.start).collect();
        let mut next = 0;
        for (number, piece) in pieces.into_iter().enumerate() {
            let rest = self.size.checked_sub(next).filter(|rest| *rest > 0);
            let rest = rest.ok_or_else(|| self.flaw("chunks beyond the end of the file"))?;
            let len = if piece.len == 0 { rest } else { piece.len };
            if piece.offset != next || len > rest {
                return Err(self.flaw("chunks that are not next to each other"));
            }
            if len.max(piece.skip) > limits.chunk_bytes {
                return Err(limits.exceeded(Cap::Chunk));
            }
            let digest = match piece.digest.as_str() {
                "" if alone => data.digest,
                text => Digest::parse(text),
            };
            let following = starts.get(number + 1).copied();
            let end = ends.of_piece(&piece, following, self.end_offset);
            let end = end.ok_or_else(|| self.flaw("a chunk that lies outside the data"))?;
            if end - piece.start > limits.chunk_bytes.saturating_mul(2) {
                return Err(limits.exceeded(Cap::Chunk));
            }
            data.chunks.push(Chunk {
                offset: next,
                len,
                digest: digest.ok_or_else(|| self.flaw("a chunk without a known digest"))?,
                stretch: piece.start..end,
                skip: piece.skip,
            });
            next += len;
        }
        if next != self.size {
            return Err(self.flaw("bytes that are in no chunk"));
        }
        if !alone && data.digest.is_none() {
            // Nobody could say whether it is a file that is here already.
            return Err(self.flaw("a file of several chunks without a digest"));
        }
        Ok(data)
    }
}

/// Where chunks end in the blob.
enum Ends {
    /// Where another one begins, or the data end: all these places, in order.
    Starts(Vec<u64>),
    /// Where the next chunk of the file begins, or the file ends; not behind this place.
    Told(u64),
}

impl Ends {
    fn of(records: &[Record], toc: &Toc) -> Ends {
        match toc.compression {
            Compression::Zstd => Ends::Told(toc.data_end),
            Compression::Gzip | Compression::Checkpoints => {
                let data = |record: &&Record| record.kind == "reg" || record.kind == "chunk";
                let starts = records.iter().filter(data).map(|record| record.offset);
                let mut starts: Vec<u64> = starts.chain([toc.data_end]).collect();
                starts.retain(|start| *start <= toc.data_end);
                starts.sort_unstable();
                starts.dedup();
                Ends::Starts(starts)
            }
        }
    }

    /// Where a chunk ends, behind its start; `following` is where the next one of its file begins,
    /// `file` where that ends.
    fn of_piece(&self, piece: &Piece, following: Option<u64>, file: u64) -> Option<u64> {
        let end = match self {
            Ends::Starts(starts) => {
                let behind = starts.partition_point(|start| *start <= piece.start);
                starts.get(behind).copied()?
            }
            Ends::Told(data) => {
                let end = following.unwrap_or(file);
                Some(end).filter(|end| end <= data && piece.skip == 0)?
            }
        };
        (end > piece.start).then_some(end)
    }
}

/// Reads all of the JSON, and no more entries than are allowed.
#[derive(Clone, Copy)]
struct Seed<'l> {
    limits: &'l Limits,
    /// The limit that ended it.
    exceeded: &'l Cell<Option<Cap>>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Vec<Record>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<Record>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Vec<Record>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Record>, A::Error> {
        use serde::de::Error;
        let (mut version, mut entries) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" if version.is_none() => version = Some(map.next_value::<u32>()?),
                "entries" if entries.is_none() => {
                    entries = Some(map.next_value_seed(Entries(self))?);
                }
                "version" | "entries" => return Err(A::Error::custom("a field comes twice")),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if version != Some(VERSION) {
            return Err(A::Error::custom(format!("its version is not {VERSION}")));
        }
        entries.ok_or_else(|| A::Error::missing_field("entries"))
    }
}

struct Entries<'l>(Seed<'l>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Vec<Record>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<Record>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<Record>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Record>, A::Error> {
        use serde::de::Error;
        let Seed { limits, exceeded } = self.0;
        let (mut entries, mut chunks) = (0, 0);
        let mut records = Vec::new();
        while let Some(record) = list.next_element::<Record>()? {
            let is_more = record.kind == "chunk";
            entries += usize::from(!is_more);
            chunks += usize::from(is_more || record.size > 0);
            for (count, most, cap) in [
                (entries, limits.entries, Cap::Entries),
                (chunks, limits.chunks, Cap::Chunks),
            ] {
                if count > most {
                    exceeded.set(Some(cap));
                    return Err(A::Error::custom(cap));
                }
            }
            records.push(record);
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests;
