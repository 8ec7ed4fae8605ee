//! Types both ways between FUSE and the union.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo, OpenFlags, Request, TimeOrNow};
use rustix::fs::OFlags;

use crate::types::{Attr, Caller, Entry, FileKind, Ino, SetTime, Timestamp};

/// As good as for ever: 136 years. Every change comes through the mount, so the kernel itself
/// knows when what it remembers is no longer true. (The kernel cuts off at `MAX_JIFFY_OFFSET`,
/// so that the sum of now and this never overflows.)
pub(super) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long the kernel may remember attributes that came from GETATTR or SETATTR: as long as the
/// union stands for them.
pub(super) fn attr_ttl(attr: &Attr) -> Duration {
    if attr.cacheable {
        FOREVER
    } else {
        Duration::ZERO
    }
}

/// How long the kernel may remember the attributes that came with an entry.
///
/// On the wire an entry has a node and, beside it, attributes with an `st_ino`; fuser fills both
/// from `attr.ino`. Where they differ the entry carries the node, and the kernel has to ask for
/// the attributes: GETATTR tells the true `st_ino`.
pub(super) fn entry_attr_ttl(entry: &Entry) -> Duration {
    if has_own_node(entry) {
        Duration::ZERO
    } else {
        attr_ttl(&entry.attr)
    }
}

/// Whether the node of this inode is another number than its `st_ino`.
pub(super) fn has_own_node(entry: &Entry) -> bool {
    entry.node.0 != entry.attr.ino.0
}

/// The attributes of an entry, with the node in the place of the inode number.
pub(super) fn entry_attr(entry: &Entry) -> FileAttr {
    FileAttr {
        ino: INodeNo(entry.node.0),
        ..file_attr(&entry.attr)
    }
}

/// "There is no such name, and you may remember that": node 0.
pub(super) fn no_entry() -> FileAttr {
    dot_attr(Ino(0), FileKind::Regular)
}

/// The attributes of `.` and `..` in a listing, of which the kernel uses number and kind only.
pub(super) fn dot_attr(ino: Ino, kind: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Attributes as GETATTR tells them.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev_to_wire(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The kind of a file.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// Who asks. The kernel sends the file system user and group, and has checked permissions.
///
/// With idmapped mounts it sends them, as they are on the disk, where something is made; everywhere
/// else the number of nobody (`FUSE_INVALID_UIDGID`). Such a caller has no privilege, and could
/// make nothing: the number is no user's.
pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        umask,
    }
}

/// Open flags, which have the same numbers on both sides.
pub(super) fn open_flags(flags: OpenFlags) -> OFlags {
    OFlags::from_bits_retain(flags.0.cast_unsigned())
}

/// A device number from the wire (`new_encode_dev`, 12 bits of major and 20 of minor).
///
/// `st_rdev` widens the same layout: the low 8 bits of the minor, 12 bits of the major, and the
/// rest of the minor above. Within 12 and 20 bits, which is all that Linux has, the two agree.
pub(super) fn rdev_from_wire(rdev: u32) -> u64 {
    u64::from(rdev)
}

/// A device number for the wire.
pub(super) fn rdev_to_wire(rdev: u64) -> u32 {
    // Bits above are majors over 4,095, which no kernel hands out.
    u32::try_from(rdev & u64::from(u32::MAX)).unwrap_or_default()
}

/// A time that SETATTR sets.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// Undoes what fuser does to a time on the wire.
///
/// fuser 0.18 turns the pair (seconds, nanoseconds) of a time before 1970 into
/// `epoch - Duration(-seconds, nanoseconds)`, which is off by twice the nanoseconds; the pair
/// itself is in there, and that is what we take.
fn timestamp(time: SystemTime) -> Timestamp {
    let (before, duration) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(duration) => (false, duration),
        Err(error) => (true, error.duration()),
    };
    let secs = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timestamp {
        secs: if before { -secs } else { secs },
        nanos: duration.subsec_nanos(),
    }
}

/// A time for the wire; this way fuser counts right.
fn system_time(time: Timestamp) -> SystemTime {
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(secs)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(secs)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of a time on the wire (`system_time_from_time`).
    fn as_fuser_decodes(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            SystemTime::UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            SystemTime::UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_before_1970_come_in_as_sent() {
        for (secs, nanos) in [
            (0, 0),
            (0, 5),
            (7, 999_999_999),
            (-1, 0),
            (-1, 500_000_000),
            (-9, 1),
        ] {
            assert_eq!(
                timestamp(as_fuser_decodes(secs, nanos)),
                Timestamp { secs, nanos }
            );
        }
    }

    #[test]
    fn times_go_out_as_they_are() {
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(
            system_time(Timestamp { secs: 3, nanos: 4 }),
            epoch + Duration::new(3, 4)
        );
        assert_eq!(
            system_time(Timestamp {
                secs: -1,
                nanos: 999_999_999
            }),
            epoch - Duration::from_nanos(1)
        );
        // Out of what a SystemTime holds: no panic.
        let _ = system_time(Timestamp {
            secs: i64::MIN,
            nanos: 0,
        });
        let _ = system_time(Timestamp {
            secs: i64::MAX,
            nanos: 999_999_999,
        });
    }

    #[test]
    fn device_numbers_have_one_layout_within_12_and_20_bits() {
        for (major, minor) in [(0, 0), (1, 3), (8, 0x12345), (0xfff, 0xfffff), (259, 256)] {
            let wire = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            assert_eq!(rdev_from_wire(wire), rustix::fs::makedev(major, minor));
            assert_eq!(rdev_to_wire(rustix::fs::makedev(major, minor)), wire);
        }
    }
}
