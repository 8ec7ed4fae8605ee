//! Looks at everything in an index, once, when it is opened. What passes can be read without
//! asking again: every range lies in its section, and the records are one tree.

use std::os::unix::ffi::OsStrExt;

use super::format::{CHECKSUM, Header, STAMP, XATTR, at, below, checksum, u16_at, u32_at, u64_at};
use super::tree::{Index, kind_of_raw};
use super::{Flaw, Kind};
use crate::layer::EntryKind;
use crate::types::FileKind;

/// The longest name of an entry, and of an xattr.
const NAME_MAX: u32 = 255;
/// The longest value of an xattr (`XATTR_SIZE_MAX`).
const XATTR_MAX: u32 = 65_536;

/// Verifies an index whose header was read.
pub(super) fn verify(index: &Index) -> Result<(), Flaw> {
    let bytes = index.bytes();
    if checksum(bytes) != u64_at(bytes, CHECKSUM.start) {
        return Err(Flaw::Checksum);
    }
    let header = index.header();
    let one_layer = header.layers == 1 && header.places == 0;
    if header.records == 0 || header.layers == 0 || (header.kind == Kind::Layer && !one_layer) {
        return Err(Flaw::Header);
    }
    verify_stamps(index)?;
    verify_xattrs(index)?;
    verify_places(index)?;
    let verifier = Records {
        index,
        header: *header,
    };
    // The records stand in the order of a walk level by level, so the entries of the first
    // directory begin with record 1, those of the next directory follow them, and so on. That
    // leaves room for nothing but one tree.
    let mut next = 1;
    for number in 0..header.records {
        let check = verifier.verify(number, next);
        next = check.map_err(|what| Flaw::Record {
            record: number,
            what,
        })?;
    }
    if next == header.records {
        Ok(())
    } else {
        Err(Flaw::Header)
    }
}

fn verify_stamps(index: &Index) -> Result<(), Flaw> {
    for layer in 0..index.header().layers {
        let start = Header::STAMPS + layer as usize * STAMP;
        let (nanos, reserved) = (
            u32_at(index.bytes(), start + 16),
            u32_at(index.bytes(), start + 20),
        );
        if nanos >= 1_000_000_000 || reserved != 0 {
            return Err(Flaw::Header);
        }
    }
    Ok(())
}

fn verify_xattrs(index: &Index) -> Result<(), Flaw> {
    let header = index.header();
    for entry in 0..header.xattrs {
        let start = header.xattrs_at() + entry as usize * XATTR;
        let field = |offset| u32_at(index.bytes(), start + offset);
        let name = heap(index, field(0), field(4));
        let value = heap(index, field(8), field(12));
        let sound = name.is_some_and(|name| !name.is_empty() && !name.contains(&0))
            && field(4) <= NAME_MAX
            && value.is_some()
            && field(12) <= XATTR_MAX;
        if !sound {
            return Err(Flaw::Table {
                table: "xattr",
                entry,
            });
        }
    }
    Ok(())
}

fn verify_places(index: &Index) -> Result<(), Flaw> {
    let header = index.header();
    for entry in 0..header.places {
        let start = header.places_at() + entry as usize * super::format::PLACE;
        let field = |offset| u32_at(index.bytes(), start + offset);
        let path = heap(index, field(4), field(8));
        let sound = field(0) < header.layers && path.is_some_and(is_inside) && field(12) == 0;
        if !sound {
            return Err(Flaw::Table {
                table: "place",
                entry,
            });
        }
    }
    Ok(())
}

/// Verifies records one after another.
struct Records<'i> {
    index: &'i Index,
    header: Header,
}

impl Records<'_> {
    /// Verifies one record. `next` is the first record that no directory before it has; the answer
    /// is the first that this one does not have either.
    fn verify(&self, number: u32, next: u32) -> Result<u32, &'static str> {
        let record = self.index.record(number);
        let kind = record.get(at::KIND).copied().and_then(kind_of_raw);
        let kind = kind.ok_or("its kind is unknown")?;
        if number >= next {
            return Err("no directory has it");
        }
        self.verify_name(number, record)?;
        self.verify_attributes(record)?;
        self.verify_place(kind, record)?;
        self.verify_text(kind, record)?;
        self.verify_children(number, kind, record, next)
    }

    fn verify_name(&self, number: u32, record: &[u8]) -> Result<(), &'static str> {
        let len = u32::from(u16_at(record, at::NAME_LEN));
        let name = heap(self.index, u32_at(record, at::NAME), len);
        let name = name.ok_or("its name lies outside")?;
        if number == Index::ROOT {
            let is_root = name.is_empty() && u32_at(record, at::PARENT) == Index::ROOT;
            return is_root.then_some(()).ok_or("it is no root");
        }
        if len > NAME_MAX || !is_name(name) {
            return Err("its name can't be one");
        }
        Ok(())
    }

    fn verify_attributes(&self, record: &[u8]) -> Result<(), &'static str> {
        let nanos = [at::ATIME_NANOS, at::MTIME_NANOS, at::CTIME_NANOS];
        if nanos.iter().any(|at| u32_at(record, *at) >= 1_000_000_000) {
            return Err("one of its times can't be one");
        }
        if u16_at(record, at::PERM) > 0o7777 {
            return Err("its permissions can't be some");
        }
        if u16_at(record, at::RESERVED) != 0 || u32_at(record, at::RESERVED_2) != 0 {
            return Err("a reserved field is in use");
        }
        let end =
            u64::from(u32_at(record, at::FIRST_XATTR)) + u64::from(u16_at(record, at::XATTRS));
        if end > u64::from(self.header.xattrs) {
            return Err("its xattrs lie outside");
        }
        Ok(())
    }

    fn verify_place(&self, kind: EntryKind, record: &[u8]) -> Result<(), &'static str> {
        let (source, data) = (u32_at(record, at::SOURCE), u32_at(record, at::DATA));
        if u32_at(record, at::LAYER) >= self.header.layers {
            return Err("there is no such layer");
        }
        if source.max(data) > self.header.places {
            return Err("there is no such place");
        }
        if data != 0 && kind != EntryKind::File(FileKind::Regular) {
            return Err("it has data, and is no file");
        }
        if kind == EntryKind::Whiteout && self.header.kind == Kind::Image {
            return Err("an image has no whiteouts");
        }
        Ok(())
    }

    fn verify_text(&self, kind: EntryKind, record: &[u8]) -> Result<(), &'static str> {
        let (start, len) = (u32_at(record, at::TEXT), u16_at(record, at::TEXT_LEN));
        let text = heap(self.index, start, len.into()).ok_or("its text lies outside")?;
        let mark = record.get(at::BELOW).copied().unwrap_or(below::NOTHING);
        if mark != below::NOTHING {
            let may = matches!(
                kind,
                EntryKind::File(FileKind::Directory | FileKind::Regular)
            );
            if self.header.kind == Kind::Image || !may {
                return Err("it can't have marks");
            }
        }
        let fits = match mark {
            below::NOTHING if kind == EntryKind::File(FileKind::Symlink) => !text.contains(&0),
            below::NOTHING | below::SAME_PATH => text.is_empty(),
            below::REDIRECT => is_inside(text),
            below::SIBLING => is_name(text),
            _ => false,
        };
        fits.then_some(())
            .ok_or("its mark or target makes no sense")
    }

    fn verify_children(
        &self,
        number: u32,
        kind: EntryKind,
        record: &[u8],
        next: u32,
    ) -> Result<u32, &'static str> {
        let (first, count) = (
            u32_at(record, at::FIRST_CHILD),
            u32_at(record, at::CHILDREN),
        );
        if kind != EntryKind::File(FileKind::Directory) {
            let childless = first == 0 && count == 0 && number != Index::ROOT;
            return childless.then_some(next).ok_or("it is no directory");
        }
        let end = next
            .checked_add(count)
            .filter(|end| *end <= self.header.records);
        let end = end
            .filter(|_| first == next)
            .ok_or("its entries lie elsewhere")?;
        for child in first..end {
            if self.index.parent(child) != number {
                return Err("an entry of it names another directory");
            }
            if child > first && self.index.name(child - 1) >= self.index.name(child) {
                return Err("its entries are not in order");
            }
        }
        Ok(end)
    }
}

/// A range of the heap.
fn heap(index: &Index, start: u32, len: u32) -> Option<&[u8]> {
    let end = start.checked_add(len)?;
    let heap = index.bytes().get(index.header().heap_at()..)?;
    heap.get(start as usize..end as usize)
}

/// Whether bytes can be the name of an entry.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Whether a path leads nowhere but down from the root, which is the empty one.
fn is_inside(path: &[u8]) -> bool {
    path.is_empty() || path.split(|byte| *byte == b'/').all(is_name)
}

/// Whether a path can be kept in an index.
pub(super) fn can_be_kept(path: &std::path::Path) -> bool {
    is_inside(path.as_os_str().as_bytes())
}
