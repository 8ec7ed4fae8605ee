//! Layers written to disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::layers::{Device, Entry, Layer, Meta, Time, settled};

/// Writes a layer into an empty directory.
pub(crate) fn write_layer(root: &Path, layer: &Layer) {
    let entries = settled(layer);
    for (path, entry) in &entries {
        write_entry(root, &root.join(path), *entry);
    }
    // Last, and upwards: whatever is made changes the times of the directory that it is in.
    for (path, entry) in entries.iter().rev() {
        if let Some(meta) = meta(*entry) {
            set_times(&root.join(path), Some(meta.atime), Some(meta.mtime)).unwrap();
        }
    }
}

fn write_entry(root: &Path, path: &Path, entry: Entry) {
    match entry {
        Entry::Dir { opaque, .. } => {
            if !path.exists() {
                fs::create_dir(path).unwrap();
            }
            if opaque {
                set_xattr(path, "trusted.overlay.opaque", "y").unwrap();
            }
        }
        Entry::File { content, .. } => {
            let file = File::create_new(path).unwrap();
            file.set_len(content.len()).unwrap();
            for (at, data) in content.pieces() {
                file.write_all_at(&data, at).unwrap();
            }
        }
        Entry::Symlink { target, .. } => symlink(target, path).unwrap(),
        Entry::Fifo { .. } => mknod(path, FileType::Fifo, (0, 0)),
        Entry::Node { device, .. } => match device {
            Device::Char(major, minor) => mknod(path, FileType::CharacterDevice, (major, minor)),
            Device::Block(major, minor) => mknod(path, FileType::BlockDevice, (major, minor)),
        },
        Entry::HardLink { to } => fs::hard_link(root.join(to), path).unwrap(),
        Entry::Whiteout => mknod(path, FileType::CharacterDevice, (0, 0)),
    }
    if let Some(meta) = meta(entry) {
        set_meta(path, meta, matches!(entry, Entry::Symlink { .. }));
    }
}

fn mknod(path: &Path, kind: FileType, (major, minor): (u32, u32)) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

/// The attributes of an entry, if it has its own.
fn meta(entry: Entry) -> Option<Meta> {
    match entry {
        Entry::Dir { meta, .. }
        | Entry::File { meta, .. }
        | Entry::Symlink { meta, .. }
        | Entry::Fifo { meta }
        | Entry::Node { meta, .. } => Some(meta),
        Entry::HardLink { .. } | Entry::Whiteout => None,
    }
}

/// Everything but the times. The mode comes after the owner, whose change clears setuid.
fn set_meta(path: &Path, meta: Meta, is_symlink: bool) {
    lchown(path, Some(meta.uid), Some(meta.gid)).unwrap();
    if !is_symlink {
        rustix::fs::chmod(path, Mode::from_raw_mode(meta.mode.0)).unwrap();
    }
    if let Some((name, value)) = meta.xattr {
        // Not every sort of file may have one.
        let _ = set_xattr(path, name, value);
    }
}

fn set_xattr(path: &Path, name: &str, value: &str) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value.as_bytes(), XattrFlags::empty())
}

/// utimensat(2) that follows no symbolic link; `None` leaves a time as it is.
pub(crate) fn set_times(
    path: &Path,
    atime: Option<Time>,
    mtime: Option<Time>,
) -> rustix::io::Result<()> {
    let time = |time: Option<Time>| match time {
        Some(Time(seconds, nanoseconds)) => Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.into(),
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    };
    let times = Timestamps {
        last_access: time(atime),
        last_modification: time(mtime),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// The inode numbers in a tree of what is no directory, and how many links each has.
pub(crate) fn inodes(root: &Path, found: &mut BTreeMap<u64, u64>) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            inodes(&entry.path(), found);
        } else {
            found.insert(meta.ino(), meta.nlink());
        }
    }
}
