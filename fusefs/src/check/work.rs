//! The work directory: where it lies, what a crash left in it, and the index of hard links.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fstat};
use rustix::io::Errno;

use super::finding::{Finding, Problem};
use super::is_whiteout;
use super::origins::Origins;
use crate::error::Result;
use crate::marks::{Mark, Nlink, encode_origin, parse_nlink};
use crate::sys::beneath::open_beneath;
use crate::sys::dir::{RawEntry, read_dir};
use crate::sys::place::Place;
use crate::types::FileKind;
use crate::upper::{handle_of, is_inside};

/// Checks the work directory of an upper, which is open as `upper.1`.
pub(super) fn check(
    path: &Path,
    work: &OwnedFd,
    upper: (&Path, &OwnedFd),
    origins: &mut Origins<'_>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let mut report = |inside: &Path, problem| findings.push(Finding::new(path, inside, problem));
    let none = Path::new("");
    if fstat(work)?.st_dev != fstat(upper.1)?.st_dev {
        report(none, Problem::OtherFileSystem);
    }
    if is_inside(work, upper.1)? {
        // It is neither's work directory then.
        report(none, Problem::WorkInUpper);
        return Ok(());
    }
    if is_inside(upper.1, work)? {
        report(none, Problem::UpperInWork);
        return Ok(());
    }
    if let Some((inside, entries)) = list(work, "work")? {
        for entry in entries {
            // One of which others are links is kept, by overlayfs too.
            let place = Place::at(&inside, &entry.name);
            if entry.kind != FileKind::CharDevice || !is_whiteout(&place)? {
                report(&Path::new("work").join(entry.name), Problem::Leftover);
            }
        }
    }
    if let Some((index, entries)) = list(work, "index")? {
        for entry in entries {
            let inside = Path::new("index").join(&entry.name);
            for problem in index_entry(&index, &entry, origins)? {
                report(&inside, problem);
            }
        }
    }
    Ok(())
}

/// A directory in the work directory with its entries; `None` if nobody has made it yet.
fn list(work: &OwnedFd, name: &str) -> Result<Option<(Arc<OwnedFd>, Vec<RawEntry>)>> {
    let (path, flags) = (PathBuf::from(name), OFlags::PATH | OFlags::DIRECTORY);
    match open_beneath(work.as_fd(), &path, flags) {
        Ok(dir) => {
            let entries = read_dir(dir.as_fd())?;
            Ok(Some((Arc::new(dir), entries)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn index_entry(
    index: &Arc<OwnedFd>,
    entry: &RawEntry,
    origins: &mut Origins<'_>,
) -> Result<Vec<Problem>> {
    let place = Place::at(index, &entry.name);
    let whiteout = entry.kind == FileKind::CharDevice && is_whiteout(&place)?;
    // The kernel's nfs_export=on keeps directories and whiteouts there too.
    if whiteout || entry.kind == FileKind::Directory {
        return Ok(Vec::new());
    }
    let Some(handle) = handle_of(index, &entry.name) else {
        return Ok(vec![Problem::IndexName]);
    };
    let Some(image) = origins.find(&encode_origin(&handle), None)?.links() else {
        return Ok(vec![Problem::IndexUnknown]);
    };
    let links = i64::try_from(place.stat()?.st_nlink).unwrap_or(i64::MAX);
    let marks = Mark::all_of(&place)?;
    let value = marks.iter().find(|(mark, _)| *mark == Mark::Nlink);
    let count = match value.map(|(_, value)| (value, parse_nlink(value))) {
        None => links,
        Some((_, Some(Nlink::Upper(more)))) => links.saturating_add(more),
        Some((_, Some(Nlink::Image(more)))) => image.saturating_add(more),
        Some((value, None)) => {
            return Ok(vec![Problem::BadValue {
                mark: Mark::Nlink.name(),
                value: value.escape_ascii().to_string(),
            }]);
        }
    };
    // One of the links is the index's own. Each name in the union is one in the upper, or one of
    // the image that nobody has copied up or removed.
    let upper = links - 1;
    if count < upper.max(1) || count > upper.saturating_add(image) {
        return Ok(vec![Problem::IndexLinks {
            count,
            upper,
            image,
        }]);
    }
    Ok(Vec::new())
}
