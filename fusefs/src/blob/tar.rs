//! A strict reader of tar archives (POSIX.1-2024 pax, "ustar Interchange Format", and the long names
//! of GNU tar).
//!
//! What containerd unpacks is what Go's archive/tar reads. This reader sees the same, or nothing: an
//! archive in which another reader might see other files (a size that comes twice, a sparse file,
//! bytes behind the end) is refused, and its layer is unpacked as any other.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::Flaw;
use super::entry::{Data, Told, What};
use super::limits::{Cap, Limits};
use crate::types::Timestamp;

/// Bytes of a block: a header, or a piece of data.
const BLOCK: usize = 512;
/// The most bytes of an extended header, or of a long name.
const EXTENDED_MAX: u64 = 1 << 20;
/// What the key of an xattr begins with in an extended header.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// An archive that is being read.
pub(crate) struct Archive<R> {
    from: R,
    limits: Limits,
    /// Bytes that were read.
    at: u64,
    /// Bytes of the entry's data that were not read, and of what fills up its last block.
    data: u64,
    filling: u64,
    entries: usize,
    /// Bytes of all files so far.
    bytes: u64,
}

/// What the headers before the one of an entry say of it.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Timestamp>,
    xattrs: Vec<(OsString, Vec<u8>)>,
    xattr_bytes: usize,
}

impl<R: Read> Archive<R> {
    /// Reads from the beginning of an archive.
    pub(crate) fn new(from: R, limits: &Limits) -> Archive<R> {
        Archive {
            from,
            limits: *limits,
            at: 0,
            data: 0,
            filling: 0,
            entries: 0,
            bytes: 0,
        }
    }

    /// The next entry, without a word of where its bytes are: they come by [`Archive::read`], and
    /// begin at [`Archive::at`]. `None` at the end of the archive, when all of it was read.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Told>, Flaw> {
        let mut extended = Extended::default();
        let mut is_extended = false;
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                if is_extended {
                    return Err(flaw(b"", "an extended header of nothing"));
                }
                return Ok(None);
            };
            match header.kind() {
                b'x' => extended.add(&self.extended(&header)?, &self.limits)?,
                b'g' => check_global(&self.extended(&header)?)?,
                b'L' => set(&mut extended.name, name_in(self.extended(&header)?))?,
                b'K' => set(&mut extended.link, name_in(self.extended(&header)?))?,
                _ => return self.entry(&header, extended).map(Some),
            }
            is_extended |= header.kind() != b'g';
        }
    }

    /// What it reads from.
    pub(crate) fn source(&mut self) -> &mut R {
        &mut self.from
    }

    /// What it reads from, at the end.
    pub(crate) fn finish(self) -> R {
        self.from
    }

    /// How many bytes of the archive were read.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Reads data of the entry; 0 at their end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.take(buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return Err(flaw(b"", "the archive ends in the data of a file"));
        }
        self.data -= count as u64;
        Ok(count)
    }

    /// Fills a buffer with data of the entry; an error, if it has no more so many.
    pub(crate) fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), Flaw> {
        while !buffer.is_empty() {
            let count = self.read(buffer)?;
            if count == 0 {
                return Err(flaw(b"", "a file is shorter than its size"));
            }
            buffer = buffer.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<Told, Flaw> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.limits.exceeded(Cap::Entries));
        }
        let is_plain = extended.name.is_none();
        let name = match extended.name {
            Some(name) => name,
            None => header.name(),
        };
        let failed = |what| flaw(&name, what);
        let size = match extended.size {
            Some(size) => size,
            None => number(header.field(124, 12)).ok_or_else(|| failed("its size"))?,
        };
        let link = extended.link.unwrap_or_else(|| header.text(157, 100));
        let device = || {
            let part = |at| number(header.field(at, 8)).and_then(|part| u32::try_from(part).ok());
            part(329).zip(part(337)).ok_or_else(|| failed("its device"))
        };
        let what = match header.kind() {
            // An old archive has no type for directories.
            0 if name.ends_with(b"/") && is_plain && size == 0 => What::Directory,
            0 | b'0' | b'7' if name.ends_with(b"/") => {
                return Err(failed("a file whose name ends as a directory's"));
            }
            0 | b'0' | b'7' => What::Regular(Data {
                size,
                ..Data::default()
            }),
            b'1' => What::HardLink(OsString::from_vec(link)),
            b'2' => What::Symlink(OsString::from_vec(link)),
            b'3' => device().map(|(major, minor)| What::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| What::BlockDevice(major, minor))?,
            b'5' => What::Directory,
            b'6' => What::Fifo,
            b'S' => return Err(failed("a sparse file")),
            _ => return Err(failed("an unknown type")),
        };
        match what {
            What::Regular(_) => {
                self.bytes = self.bytes.saturating_add(size);
                self.limits.check_bytes(self.bytes, None)?;
                self.expect(size);
            }
            // Some readers take so many bytes as data, and others as the next header.
            _ if size != 0 => return Err(failed("data of what is no file")),
            _ => {}
        }
        let owner = |told: Option<u32>, at| {
            told.or_else(|| number(header.field(at, 8)).and_then(|id| u32::try_from(id).ok()))
        };
        let mode = number(header.field(100, 8)).ok_or_else(|| failed("its mode"))?;
        let mtime = match extended.mtime {
            Some(mtime) => mtime,
            None => Timestamp {
                secs: signed(header.field(136, 12)).ok_or_else(|| failed("its time"))?,
                nanos: 0,
            },
        };
        Ok(Told {
            what,
            perm: u16::try_from(mode & 0o7777).unwrap_or(0),
            uid: owner(extended.uid, 108).ok_or_else(|| failed("its owner"))?,
            gid: owner(extended.gid, 116).ok_or_else(|| failed("its group"))?,
            mtime,
            xattrs: extended.xattrs,
            name: OsString::from_vec(name),
        })
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, Flaw> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(flaw(b"", "the archive ends in a header")),
        }
        if block == [0; BLOCK] {
            self.only_zeros()?;
            return Ok(None);
        }
        let header = Header(block);
        header.check()?;
        Ok(Some(header))
    }

    /// The data of an extended header.
    fn extended(&mut self, header: &Header) -> Result<Vec<u8>, Flaw> {
        let size = number(header.field(124, 12)).filter(|size| *size <= EXTENDED_MAX);
        let size = size.ok_or_else(|| flaw(b"", "an extended header that is too large"))?;
        self.expect(size);
        let mut data = Vec::new();
        let mut buffer = [0; BLOCK];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(data),
                count => data.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
        }
    }

    /// So many bytes of data come next.
    fn expect(&mut self, size: u64) {
        self.data = size;
        self.filling = size.wrapping_neg() % BLOCK as u64;
    }

    /// Reads over what is left of an entry.
    fn skip_data(&mut self) -> Result<(), Flaw> {
        let mut buffer = [0; 16 * BLOCK];
        while self.read(&mut buffer)? != 0 {}
        let filling = usize::try_from(std::mem::take(&mut self.filling)).unwrap_or(0);
        let rest = buffer.get_mut(..filling).unwrap_or_default();
        // Some writers (umoci's) end in the last file's data. Go's reader takes that for the end, and so
        // does everybody who pulls such an image.
        self.fill(rest)?;
        Ok(())
    }

    /// Reads to the end of the archive, behind its last entry.
    fn only_zeros(&mut self) -> Result<(), Flaw> {
        let mut buffer = [0; 16 * BLOCK];
        loop {
            let count = self.take(&mut buffer)?;
            let read = buffer.get(..count).unwrap_or_default();
            if read.iter().any(|byte| *byte != 0) {
                return Err(flaw(b"", "bytes behind the end of the archive"));
            }
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// Fills a buffer, but at the end of the archive.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        let mut done = 0;
        while done < buffer.len() {
            match self.take(buffer.get_mut(done..).unwrap_or_default())? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, Flaw> {
        loop {
            match self.from.read(buffer) {
                Ok(count) => {
                    self.at += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Flaw::of_reading("the archive", error)),
            }
        }
    }
}

/// A header of the archive.
struct Header([u8; BLOCK]);

impl Header {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    /// A field of text, which ends at the first NUL byte.
    fn text(&self, at: usize, len: usize) -> Vec<u8> {
        let text = self.field(at, len).split(|byte| *byte == 0).next();
        text.unwrap_or_default().to_vec()
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // GNU tar has other things where ustar has the first part of a long name.
        let prefix = match self.field(257, 6) {
            b"ustar\0" => self.text(345, 155),
            _ => Vec::new(),
        };
        if prefix.is_empty() {
            name
        } else {
            [&prefix[..], b"/", &name].concat()
        }
    }

    fn check(&self) -> Result<(), Flaw> {
        let name = self.text(0, 100);
        if !matches!(self.field(257, 6), b"ustar\0" | b"ustar " | b"\0\0\0\0\0\0") {
            return Err(flaw(&name, "a header of an unknown format"));
        }
        if self.field(508, 4) == b"tar\0" {
            return Err(flaw(&name, "a header of star(1)"));
        }
        let told = number(self.field(148, 8));
        let blank = |(at, byte): (usize, &u8)| {
            if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            }
        };
        let bytes = || self.0.iter().enumerate().map(blank);
        let sum: u64 = bytes().map(u64::from).sum();
        // Some old programs took bytes for signed ones.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if told != Some(sum) && told != u64::try_from(signed).ok() {
            return Err(flaw(&name, "a header with a wrong checksum"));
        }
        Ok(())
    }
}

impl Extended {
    /// Takes the records of an extended header: `LENGTH KEY=VALUE` and a newline each.
    fn add(&mut self, records: &[u8], limits: &Limits) -> Result<(), Flaw> {
        for (key, value) in Records(records).collect::<Result<Vec<_>, _>>()? {
            let failed = |what| flaw(key, what);
            let text = || std::str::from_utf8(value).ok();
            if value.is_empty() && !key.starts_with(XATTR) {
                // "Any header block field or extended header of the same name is in force."
                continue;
            }
            match key {
                b"path" => set(&mut self.name, value.to_vec())?,
                b"linkpath" => set(&mut self.link, value.to_vec())?,
                b"size" => {
                    let size = digits(value).ok_or_else(|| failed("no number"))?;
                    set(&mut self.size, size)?;
                }
                b"uid" | b"gid" => {
                    let id = digits(value).and_then(|id| u32::try_from(id).ok());
                    let id = id.ok_or_else(|| failed("no user or group"))?;
                    let field = match key {
                        b"uid" => &mut self.uid,
                        _ => &mut self.gid,
                    };
                    set(field, id)?;
                }
                b"mtime" => {
                    let time = text().and_then(time).ok_or_else(|| failed("no time"))?;
                    set(&mut self.mtime, time)?;
                }
                b"hdrcharset" if !matches!(value, b"BINARY" | b"ISO-IR 10646 2000 UTF-8") => {
                    return Err(failed("an unknown character set"));
                }
                _ if key.starts_with(b"GNU.sparse.") => return Err(failed("a sparse file")),
                _ => {
                    let Some(name) = key.strip_prefix(XATTR) else {
                        continue;
                    };
                    self.xattr_bytes += name.len() + value.len();
                    if self.xattr_bytes > limits.xattr_bytes {
                        return Err(limits.exceeded(Cap::Xattrs));
                    }
                    let name = OsString::from_vec(name.to_vec());
                    if self.xattrs.iter().any(|(known, _)| *known == name) {
                        return Err(failed("it comes twice"));
                    }
                    self.xattrs.push((name, value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// The records of an extended header.
struct Records<'r>(&'r [u8]);

impl<'r> Iterator for Records<'r> {
    type Item = Result<(&'r [u8], &'r [u8]), Flaw>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = record(self.0);
        let found = record.ok_or_else(|| flaw(b"", "an extended header that makes no sense"));
        self.0 = record.map(|(_, rest)| rest).unwrap_or_default();
        Some(found.map(|(pair, _)| pair))
    }
}

/// The first record, and what is behind it.
#[allow(clippy::type_complexity)] // a pair of pairs, for one caller
fn record(records: &[u8]) -> Option<((&[u8], &[u8]), &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length = digits(records.get(..space)?)?;
    let (record, rest) = records.split_at_checked(usize::try_from(length).ok()?)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
    // A NUL byte ends a value for some readers.
    let is_text = !key.is_empty() && !key.contains(&0);
    let may_be_binary = key.starts_with(XATTR);
    (is_text && (may_be_binary || !value.contains(&0))).then_some(((key, value), rest))
}

/// A header for the rest of the archive may say what changes no entry.
fn check_global(records: &[u8]) -> Result<(), Flaw> {
    for record in Records(records) {
        let (key, _) = record?;
        if key != b"comment" {
            // Go's reader leaves it aside, and others don't.
            return Err(flaw(key, "a field for all entries"));
        }
    }
    Ok(())
}

/// Sets what may be said once.
fn set<T>(field: &mut Option<T>, value: T) -> Result<(), Flaw> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(flaw(b"", "two headers that say the same of an entry")),
    }
}

/// A long name of GNU tar, which ends at the first NUL byte.
fn name_in(data: Vec<u8>) -> Vec<u8> {
    let mut name = data;
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}

/// A number of a header that is not negative: octal digits, or the binary form of GNU tar.
fn number(field: &[u8]) -> Option<u64> {
    signed(field).and_then(|number| u64::try_from(number).ok())
}

/// A number of a header.
fn signed(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement in all bits but the first, the highest first.
        let start = if first & 0x40 == 0 { 0i128 } else { -1 };
        let start = (start << 6) | i128::from(first & 0x3f);
        let value = rest.iter().try_fold(start, |value, byte| {
            value
                .checked_mul(256)
                .map(|value| value | i128::from(*byte))
        });
        return value.and_then(|value| i64::try_from(value).ok());
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    match digits {
        "" => Some(0),
        _ if digits.starts_with('+') => None,
        _ => i64::from_str_radix(digits, 8)
            .ok()
            .filter(|number| *number >= 0),
    }
}

/// A number of an extended header: decimal digits and nothing else.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time of an extended header: decimal seconds, with a fraction.
fn time(text: &str) -> Option<Timestamp> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let places = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = places.fold(0, |nanos, digit| nanos * 10 + i64::from(digit - b'0'));
    let nanos = sign * nanos;
    let secs = i64::try_from(digits(whole.as_bytes())?)
        .ok()?
        .checked_mul(sign)?;
    Some(Timestamp {
        secs: secs.checked_add(nanos.div_euclid(1_000_000_000))?,
        nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).ok()?,
    })
}

fn flaw(path: &[u8], what: &'static str) -> Flaw {
    Flaw::Entry {
        path: PathBuf::from(OsString::from_vec(path.to_vec())),
        what,
    }
}

#[cfg(test)]
mod tests;
