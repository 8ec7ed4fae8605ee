//! Files of which the upper has some of the data, and the image the others.

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::io::Errno;

use super::*;
use crate::layer::{DirLayer, Layer};
use crate::marks::Data;
use crate::sys::change::faults::{self, Fault};
use crate::sys::extents::BLOCK;
use crate::types::Fh;

/// A bed with a file of so many bytes, none of them zero, and one with a hole.
fn bed_of(base: &Path, length: usize) -> (Bed, Vec<u8>) {
    let dir = tempfile::tempdir_in(base).unwrap();
    for part in ["lower", "upper", "work"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    let bed = Bed { dir };
    let data: Vec<u8> = (1..=251).cycle().take(length).collect();
    fs::write(bed.path("lower/file"), &data).unwrap();
    (bed, data)
}

fn base() -> PathBuf {
    std::env::var_os("LAMINA_MODEL_DIR").map_or_else(|| "/dev/shm".into(), PathBuf::from)
}

fn blocks(count: u64) -> usize {
    usize::try_from(count * BLOCK).unwrap()
}

fn union_of(bed: &Bed) -> Union {
    bed.union().partial_copy_up_from(Some(1))
}

fn open(union: &Union, path: &str, flags: OFlags) -> Fh {
    let opened = union.open(ROOT, walk(union, path).node, flags);
    opened.unwrap().fh
}

fn all(union: &Union, path: &str) -> Vec<u8> {
    let fh = open(union, path, OFlags::RDONLY);
    let mut data = vec![0; 2 << 20];
    let count = union.read(fh, 0, &mut data).unwrap();
    union.release(fh);
    data.truncate(count);
    data
}

fn data_of(bed: &Bed, path: &str) -> Data {
    let root = crate::sys::beneath::open_root(&bed.path("upper")).unwrap();
    marks::data(&Place::at(&Arc::new(root), OsStr::new(path))).unwrap()
}

/// Opens the file for writing, and nothing more.
fn make_partial(bed: &Bed) {
    let union = union_of(bed);
    let fh = open(&union, "file", OFlags::RDWR);
    union.release(fh);
}

fn is_partial(bed: &Bed) -> bool {
    matches!(data_of(bed, "file"), Data::Partial { .. })
}

fn truncate(union: &Union, path: &str, size: u64) -> Result<()> {
    let size = Some(size);
    let change = SetAttr {
        size,
        ..SetAttr::default()
    };
    let node = walk(union, path).node;
    union.setattr(ROOT, node, None, &change).map(drop)
}

#[test]
fn a_byte_that_is_appended_costs_a_block_and_no_time_is_changed_by_opening() {
    let (bed, mut data) = bed_of(&std::env::temp_dir(), blocks(256) + 10);
    let union = union_of(&bed);
    let before = walk(&union, "file").attr;
    let fh = open(&union, "file", OFlags::RDWR);
    let opened = walk(&union, "file").attr;
    assert_eq!((opened.size, opened.mtime), (before.size, before.mtime));
    union.write(fh, before.size, b"!", false).unwrap();
    union.release(fh);
    data.push(b'!');
    assert!(all(&union, "file") == data);
    assert!(is_partial(&bed));
    let on_disk = fs::File::open(bed.path("upper/file")).unwrap();
    on_disk.sync_all().unwrap();
    // One block, and whatever its xattrs take.
    assert!(on_disk.metadata().unwrap().blocks() <= 3 * BLOCK / 512);
    drop(union);
    assert!(all(&union_of(&bed), "file") == data);
}

#[test]
fn a_write_that_a_full_disk_cuts_short_tells_how_much_was_written() {
    let (bed, _) = bed_of(&base(), blocks(8));
    bed.lower("whole", "");
    let union = union_of(&bed);
    for path in ["file", "whole"] {
        let fh = open(&union, path, OFlags::RDWR);
        let data = [b'x'; 3 * 4096];
        let write = || union.write(fh, 8 * BLOCK, &data, false);
        let (written, _) = faults::with(Fault::FullAfter(5000), write);
        assert_eq!(written.unwrap(), 5000, "{path}");
        let (refused, _) = faults::with(Fault::FullAfter(0), write);
        assert_eq!(refused.unwrap_err().errno(), Errno::NOSPC, "{path}");
        union.release(fh);
    }
}

#[test]
fn whole_blocks_are_written_without_a_look_at_the_image() {
    let (bed, mut data) = bed_of(&base(), blocks(8));
    let union = union_of(&bed);
    let fh = open(&union, "file", OFlags::RDWR);
    let piece = vec![b'x'; blocks(2)];
    let write = || union.write(fh, 2 * BLOCK, &piece, false);
    let (written, changes) = faults::with(Fault::Never, write);
    assert_eq!((written.unwrap(), changes), (piece.len(), 1));
    data[blocks(2)..blocks(4)].copy_from_slice(&piece);
    assert!(all(&union, "file") == data);
    union.release(fh);
}

#[test]
fn a_file_that_is_half_there_is_completed_when_it_is_closed() {
    let (bed, mut data) = bed_of(&base(), blocks(8));
    let union = union_of(&bed);
    for half in [blocks(3), blocks(4)] {
        assert!(half == blocks(3) || is_partial(&bed));
        let fh = open(&union, "file", OFlags::RDWR);
        data[..half].fill(b'x');
        union.write(fh, 0, &data[..half], false).unwrap();
        let mtime = walk(&union, "file").attr.mtime;
        union.release(fh);
        assert_eq!(walk(&union, "file").attr.mtime, mtime);
    }
    assert_eq!(data_of(&bed, "file"), Data::Here);
    assert!(fs::read(bed.path("upper/file")).unwrap() == data);
    assert!(all(&union, "file") == data);
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let (bed, mut data) = bed_of(&base(), blocks(8));
    let mut union = union_of(&bed);
    for size in [blocks(5) + 100, blocks(7), blocks(3) + 1, blocks(3) + 9] {
        truncate(&union, "file", size as u64).unwrap();
        data.resize(size, 0);
        assert!(all(&union, "file") == data, "{size}");
        drop(union);
        union = union_of(&bed);
        assert!(all(&union, "file") == data, "{size}, mounted again");
    }
    assert!(is_partial(&bed));
    // A block with the new end in it, and one behind.
    let fh = open(&union, "file", OFlags::RDWR);
    for at in [blocks(3) + 20, blocks(4) + 3] {
        union.write(fh, at as u64, b"!", false).unwrap();
        data.resize(at, 0);
        data.push(b'!');
        assert!(all(&union, "file") == data, "{at}");
    }
}

/// The truncation is one change, the note of it another.
#[test]
fn a_crash_between_a_truncation_and_its_note_shows_it_and_nothing_behind() {
    for note_fails in [false, true] {
        let (bed, mut data) = bed_of(&base(), blocks(8));
        let union = union_of(&bed);
        truncate(&union, "file", 8 * BLOCK).unwrap();
        let fault = if note_fails {
            Fault::FailAfter(1, Errno::IO)
        } else {
            Fault::CrashAfter(1)
        };
        let shorter = || truncate(&union, "file", 3 * BLOCK + 5);
        let (truncated, _) = faults::with(fault, shorter);
        truncated.unwrap();
        assert_eq!(data_of(&bed, "file"), Data::Partial { limit: 8 * BLOCK });
        drop(union);
        let union = union_of(&bed);
        data.truncate(blocks(3) + 5);
        assert!(all(&union, "file") == data);
        // It may not grow until the note is there.
        let longer = || truncate(&union, "file", 5 * BLOCK);
        let (refused, _) = faults::with(Fault::FailAfter(0, Errno::IO), longer);
        refused.unwrap_err();
        assert!(all(&union, "file") == data);
        longer().unwrap();
        data.resize(blocks(5), 0);
        drop(union);
        assert!(all(&union_of(&bed), "file") == data);
    }
}

#[test]
fn space_is_reserved_and_freed_in_a_complete_file() {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for how in [hole, FallocateFlags::KEEP_SIZE, FallocateFlags::empty()] {
        let (bed, mut data) = bed_of(&base(), blocks(8));
        let union = union_of(&bed);
        let fh = open(&union, "file", OFlags::RDWR);
        union.fallocate(ROOT, fh, how, BLOCK, 2 * BLOCK).unwrap();
        assert_eq!(data_of(&bed, "file"), Data::Here);
        if how == hole {
            data[blocks(1)..blocks(3)].fill(0);
        }
        assert!(all(&union, "file") == data);
        // The handle that was there before goes on.
        union.write(fh, 0, b"!", false).unwrap();
        data[0] = b'!';
        assert!(fs::read(bed.path("upper/file")).unwrap() == data);
        union.release(fh);
    }
}

#[test]
fn holes_and_data_are_found_in_both_files() {
    let (bed, _) = bed_of(&base(), blocks(2));
    let lower = fs::OpenOptions::new()
        .write(true)
        .open(bed.path("lower/file"))
        .unwrap();
    lower.set_len(8 * BLOCK).unwrap();
    let union = union_of(&bed);
    let fh = open(&union, "file", OFlags::RDWR);
    union.write(fh, 4 * BLOCK, b"!", false).unwrap();
    union.write(fh, 9 * BLOCK, b"!", false).unwrap();
    let seek = |at, whence| union.seek(fh, at * BLOCK, whence).ok();
    let found: Vec<_> = (0..11)
        .map(|at| (seek(at, Whence::Data), seek(at, Whence::Hole)))
        .map(|(data, hole)| (data.map(|at| at / BLOCK), hole.map(|at| at.div_ceil(BLOCK))))
        .collect();
    let some = |data, hole| (Some(data), Some(hole));
    let wanted = [
        some(0, 2),
        some(1, 2),
        some(4, 2),
        some(4, 3),
        some(4, 5),
        some(9, 5),
        some(9, 6),
        some(9, 7),
        some(9, 8),
        some(9, 10),
        (None, None),
    ];
    assert_eq!(found, wanted);
    union.release(fh);
}

#[test]
fn ranges_are_not_copied_within_the_host_while_a_file_is_partial() {
    let (bed, _) = bed_of(&base(), blocks(8));
    bed.lower("other", "other");
    let union = union_of(&bed);
    let (file, other) = (
        open(&union, "file", OFlags::RDWR),
        open(&union, "other", OFlags::RDONLY),
    );
    for (from, to) in [(file, file), (other, file)] {
        let refused = union.copy_file_range(ROOT, (from, 0), (to, 4096), 5);
        assert_eq!(refused.unwrap_err().errno(), Errno::XDEV);
    }
}

#[test]
fn an_overlay_that_is_not_ours_does_not_take_the_mark_for_its_own() {
    let (bed, _) = bed_of(&base(), blocks(8));
    make_partial(&bed);
    // As a layer, it has no work directory that would say what it was.
    let layers = ["upper", "lower"].map(|dir| {
        let layer = DirLayer::open(&bed.path(dir)).unwrap();
        Arc::new(layer) as Arc<dyn Layer>
    });
    let union = Union::new(Image::new(layers.into()).unwrap(), None).unwrap();
    let opened = union.lookup(NodeId::ROOT, OsStr::new("file"));
    let opened = opened.and_then(|entry| union.open(ROOT, entry.unwrap().node, OFlags::RDONLY));
    assert_eq!(opened.unwrap_err().errno(), Errno::IO);
}

#[test]
fn one_whose_image_is_gone_is_an_error_and_not_half_a_file() {
    let (bed, _) = bed_of(&base(), blocks(8));
    make_partial(&bed);
    fs::remove_file(bed.path("lower/file")).unwrap();
    let union = union_of(&bed);
    let node = walk(&union, "file").node;
    let refused = union.open(ROOT, node, OFlags::RDONLY).unwrap_err();
    assert_eq!(refused.errno(), Errno::IO);
}

#[test]
fn sealing_completes_a_file_that_somebody_has_open() {
    let (bed, mut data) = bed_of(&base(), blocks(40));
    let union = union_of(&bed);
    let fh = open(&union, "file", OFlags::RDWR);
    union.write(fh, 5, b"!", false).unwrap();
    data[5] = b'!';
    union.seal().unwrap();
    assert_eq!(data_of(&bed, "file"), Data::Here);
    assert!(fs::read(bed.path("upper/file")).unwrap() == data);
    let mut seen = vec![0; data.len()];
    union.read(fh, 0, &mut seen).unwrap();
    assert!(seen == data);
}

#[test]
fn without_it_a_partial_file_is_still_read_and_written() {
    let (bed, mut data) = bed_of(&base(), blocks(8));
    bed.lower("new", "long enough");
    make_partial(&bed);
    assert!(is_partial(&bed));
    let union = bed.union().partial_copy_up_from(None);
    assert!(all(&union, "file") == data);
    let fh = open(&union, "file", OFlags::RDWR);
    union.write(fh, 5, b"!", false).unwrap();
    data[5] = b'!';
    assert!(all(&union, "file") == data);
    union.release(fh);
    let new = open(&union, "new", OFlags::RDWR);
    assert_eq!(data_of(&bed, "new"), Data::Here);
    union.release(new);
}

/// A power loss may leave space without data. A write beside it may make ext4 fill it with zeros.
#[test]
fn space_without_data_is_a_hole() {
    let (bed, mut data) = bed_of(&std::env::temp_dir(), blocks(16));
    make_partial(&bed);
    let upper = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(bed.path("upper/file"))
        .unwrap();
    rustix::fs::fallocate(&upper, FallocateFlags::empty(), 2 * BLOCK, 6 * BLOCK).unwrap();
    let mut reserved = vec![0; blocks(16)];
    std::os::unix::fs::FileExt::read_exact_at(&upper, &mut reserved, 0).unwrap();
    for at in [4, 14] {
        let union = union_of(&bed);
        assert!(all(&union, "file") == data);
        let fh = open(&union, "file", OFlags::RDWR);
        union.write(fh, at * BLOCK, b"!", false).unwrap();
        data[blocks(at)] = b'!';
        union.fsync(fh, false).unwrap();
        assert!(all(&union, "file") == data);
        union.release(fh);
    }
    assert!(all(&union_of(&bed), "file") == data);
}

/// What a copy of data that was cut off has left is not the container's.
#[test]
fn data_behind_a_metacopy_mark_mean_nothing() {
    let (bed, mut data) = bed_of(&base(), blocks(8));
    let union = union_of(&bed);
    let mode = Some(0o600);
    let change = SetAttr {
        mode,
        ..SetAttr::default()
    };
    (union.setattr(ROOT, walk(&union, "file").node, None, &change)).unwrap();
    fs::write(bed.path("upper/file"), "garbage").unwrap();
    let before = fs::metadata(bed.path("upper/file")).unwrap().mtime();
    let fh = open(&union, "file", OFlags::RDWR);
    assert_eq!(
        fs::metadata(bed.path("upper/file")).unwrap().mtime(),
        before
    );
    assert!(is_partial(&bed));
    assert!(all(&union, "file") == data);
    union.write(fh, 7, b"!", false).unwrap();
    data[7] = b'!';
    assert!(all(&union, "file") == data);
    union.release(fh);
}

#[test]
fn capabilities_go_with_the_first_write_and_not_before() {
    let (bed, _) = bed_of(&base(), blocks(8));
    let name = OsStr::new("security.capability");
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lower = Arc::new(crate::sys::beneath::open_root(&bed.path("lower")).unwrap());
    let lower = Place::at(&lower, OsStr::new("file"));
    lower.set_xattr(name, &value, XattrFlags::empty()).unwrap();
    let union = union_of(&bed);
    let fh = open(&union, "file", OFlags::RDWR);
    let node = walk(&union, "file").node;
    assert_eq!(union.getxattr(node, name).unwrap(), value);
    union.seal().unwrap();
    assert_eq!(union.getxattr(node, name).unwrap(), value);
    union.release(fh);
}

/// One thing that is done to one file.
#[derive(Clone, Copy, Debug)]
enum Act {
    Write { at: usize, len: usize, byte: u8 },
    Truncate(usize),
    Open(bool),
    Remount,
    Switch,
    Punch { at: usize, len: usize },
    Sync,
}

const LONGEST: usize = 1 << 17;

fn position() -> impl Strategy<Value = usize> {
    let near =
        (0..24_usize, 0..3_usize).prop_map(|(block, by)| (block * 4096 + by).saturating_sub(1));
    prop_oneof![2 => near, 1 => 0..100_000_usize]
}

fn act() -> impl Strategy<Value = Act> {
    let len = || prop_oneof![3 => 1..10_usize, 2 => 4090..4100_usize, 1 => 1..30_000_usize];
    prop_oneof![
        20 => (position(), len(), any::<u8>()).prop_map(|(at, len, byte)| Act::Write { at, len, byte }),
        3 => position().prop_map(Act::Truncate),
        3 => any::<bool>().prop_map(Act::Open),
        2 => Just(Act::Remount),
        1 => Just(Act::Switch),
        1 => (position(), len()).prop_map(|(at, len)| Act::Punch { at, len }),
        1 => Just(Act::Sync),
    ]
}

/// Plays on one file, with a fault every now and then, beside a vector of bytes.
fn play(length: usize, acts: &[(Act, Option<u64>)]) -> Result<(), TestCaseError> {
    let (bed, mut data) = bed_of(&base(), length);
    let mut union = union_of(&bed);
    let mut held = None;
    for (act, fault) in acts {
        let fault = fault.map_or(Fault::Never, |after| Fault::FailAfter(after, Errno::NOSPC));
        match *act {
            Act::Write { at, len, byte } => {
                let fh = *held.get_or_insert_with(|| open(&union, "file", OFlags::RDWR));
                let piece = vec![byte; len];
                let write = || union.write(fh, at as u64, &piece, false);
                let (written, _) = faults::with(fault, write);
                let count = written.unwrap_or(0);
                if count > 0 {
                    data.resize(data.len().max(at + count), 0);
                    data[at..at + count].copy_from_slice(&piece[..count]);
                }
            }
            Act::Truncate(size) => {
                let shorter = || truncate(&union, "file", size as u64);
                if faults::with(fault, shorter).0.is_ok() {
                    data.resize(size, 0);
                }
            }
            Act::Punch { at, len } => {
                let fh = *held.get_or_insert_with(|| open(&union, "file", OFlags::RDWR));
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let punch = || union.fallocate(ROOT, fh, hole, at as u64, len as u64);
                if faults::with(fault, punch).0.is_ok() {
                    let end = (at + len).min(data.len());
                    data[at.min(end)..end].fill(0);
                }
            }
            Act::Open(writes) => {
                if let Some(fh) = held.take() {
                    faults::with(fault, || union.release(fh));
                }
                let flags = if writes { OFlags::RDWR } else { OFlags::RDONLY };
                let opened = union.open(ROOT, walk(&union, "file").node, flags).unwrap();
                if writes {
                    held = Some(opened.fh);
                } else {
                    union.release(opened.fh);
                }
            }
            Act::Remount | Act::Switch => {
                held = None;
                let from = matches!(act, Act::Remount).then_some(1);
                drop(union);
                union = bed.union().partial_copy_up_from(from);
            }
            Act::Sync => {
                if let Some(fh) = held {
                    union.fsync(fh, false).unwrap();
                }
            }
        }
        prop_assert_eq!(
            walk(&union, "file").attr.size,
            data.len() as u64,
            "{:?}",
            act
        );
        let seen = all(&union, "file");
        let differs = seen.iter().zip(&data).position(|(a, b)| a != b);
        prop_assert_eq!((seen.len(), differs), (data.len(), None), "{:?}", act);
    }
    drop(union);
    let union = union_of(&bed);
    prop_assert!(all(&union, "file") == data, "mounted again");
    union.seal().unwrap();
    prop_assert!(
        fs::read(bed.path("upper/file")).unwrap_or(fs::read(bed.path("lower/file")).unwrap())
            == data
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("LAMINA_MODEL_CASES").map_or(80, |n| n.parse().unwrap()),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// `LAMINA_MODEL_CASES`, `LAMINA_MODEL_DIR`: as for the model.
    #[test]
    fn a_partial_file_is_an_ordinary_file(
        length in 1..LONGEST,
        acts in proptest::collection::vec(
            (act(), proptest::option::weighted(0.1, 0..6_u64)), 1..60),
    ) {
        play(length, &acts)?;
    }
}
