//! Bytes: holes, ranges, mappings, direct I/O, free space.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::system::{each_system, each_system_with_mappings};
use crate::tools::{Map, fails, open_rw, read, stat, write};

const MIB: u64 = 1 << 20;

#[test]
fn large_files_come_back_as_written() {
    each_system(
        |layers| {
            let image: Vec<u8> = (0..5 * MIB).map(|at| (at % 251) as u8).collect();
            write(layers.bottom("image"), image);
        },
        |m| {
            let image = fs::read(m.path("image")).unwrap();
            assert!(
                image
                    .iter()
                    .zip(0_u64..)
                    .all(|(byte, at)| u64::from(*byte) == at % 251)
            );
            write(m.path("copy"), &image);
            assert!(fs::read(m.path("copy")).unwrap() == image);
            m.remount();
            assert!(fs::read(m.path("copy")).unwrap() == image);
            let mut end = [0; 100];
            let copy = File::open(m.path("copy")).unwrap();
            assert_eq!(copy.read_at(&mut end, 5 * MIB - 40).unwrap(), 40);
            assert_eq!(copy.read_at(&mut end, 6 * MIB).unwrap(), 0);
        },
    );
}

#[test]
fn statfs_tells_of_the_upper() {
    each_system(
        |_| {},
        |m| {
            let here = rustix::fs::statvfs(m.path("")).unwrap();
            let below = rustix::fs::statvfs(m.layers.upper()).unwrap();
            assert_eq!(
                here.f_blocks * here.f_frsize,
                below.f_blocks * below.f_frsize
            );
            assert_eq!(here.f_files, below.f_files);
            assert_eq!(here.f_namemax, 255);
        },
    );
}

#[test]
fn fallocate_reserves_and_punches() {
    each_system(
        |layers| write(layers.bottom("file"), vec![b'x'; 1 << 20]),
        |m| {
            let file = open_rw(m.path("file"));
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, punch, 64 << 10, 512 << 10).unwrap();
            assert_eq!(stat(m.path("file")).len(), MIB);
            assert!(stat(m.path("file")).blocks() * 512 <= MIB / 2 + (64 << 10));
            let mut data = vec![0; 1 << 20];
            file.read_exact_at(&mut data, 0).unwrap();
            assert_eq!(data.iter().filter(|byte| **byte == 0).count(), 512 << 10);
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 * MIB).unwrap();
            assert_eq!(stat(m.path("file")).len(), 2 * MIB);
            rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 3 * MIB).unwrap();
            assert_eq!(stat(m.path("file")).len(), 2 * MIB);
        },
    );
}

#[test]
fn seek_finds_data_and_holes() {
    each_system(
        |layers| {
            let file = File::create(layers.bottom("file")).unwrap();
            file.write_all_at(b"data", MIB).unwrap();
            file.set_len(3 * MIB).unwrap();
            file.sync_all().unwrap();
        },
        |m| {
            for file in [File::open(m.path("file")).unwrap(), open_rw(m.path("file"))] {
                let seek = |to| rustix::fs::seek(&file, to);
                assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), Ok(MIB));
                assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), Ok(0));
                let hole = seek(rustix::fs::SeekFrom::Hole(MIB)).unwrap();
                assert!(hole > MIB && hole < 3 * MIB, "{hole}");
                assert_eq!(seek(rustix::fs::SeekFrom::Data(hole)), Err(Errno::NXIO));
                assert_eq!(seek(rustix::fs::SeekFrom::End(-1)), Ok(3 * MIB - 1));
            }
        },
    );
}

#[test]
fn copy_file_range_copies() {
    each_system(
        |layers| write(layers.bottom("from"), "0123456789"),
        |m| {
            let from = File::open(m.path("from")).unwrap();
            let to = File::create(m.path("to")).unwrap();
            let (mut at, mut into) = (2, 1);
            let count = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 5);
            assert_eq!((count, at, into), (Ok(5), 7, 6));
            assert_eq!(read(m.path("to")), "\x0023456");
            fs::copy(m.path("from"), m.path("whole")).unwrap();
            assert_eq!(read(m.path("whole")), "0123456789");
        },
    );
}

#[test]
fn append_mode_writes_at_the_end() {
    each_system(
        |layers| write(layers.bottom("log"), "0"),
        |m| {
            let open = || OpenOptions::new().append(true).open(m.path("log")).unwrap();
            let (mut one, mut two) = (open(), open());
            for _ in 0..3 {
                one.write_all(b"1").unwrap();
                two.write_all(b"2").unwrap();
            }
            assert_eq!(read(m.path("log")), "0121212");
        },
    );
}

#[test]
fn a_shared_mapping_and_the_file_are_one() {
    each_system_with_mappings(
        |layers| write(layers.bottom("file"), vec![b'a'; 8192]),
        |m| {
            let file = open_rw(m.path("file"));
            let mut map = Map::writable(&file);
            let other = Map::read_only(&File::open(m.path("file")).unwrap());
            file.write_all_at(b"written", 0).unwrap();
            assert_eq!(map.get(0), b'w');
            assert_eq!(other.get(0), b'w');
            map.set(100, b'm');
            assert_eq!(other.get(100), b'm');
            let mut byte = [0];
            file.read_exact_at(&mut byte, 100).unwrap();
            assert_eq!(&byte, b"m");
            drop((map, other));
            file.sync_all().unwrap();
            drop(file);
            m.remount();
            assert_eq!(fs::read(m.path("file")).unwrap()[100], b'm');
        },
    );
}

#[test]
fn direct_io_and_the_cache_agree() {
    each_system(
        |layers| write(layers.bottom("file"), vec![b'a'; 16384]),
        |m| {
            let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
            let mut options = OpenOptions::new();
            let direct = options
                .read(true)
                .write(true)
                .custom_flags(flags)
                .open(m.path("file"));
            let direct = direct.unwrap();
            let cached = open_rw(m.path("file"));
            // Direct I/O wants aligned memory.
            let mut memory = vec![0; 3 * 4096];
            let start = memory.as_ptr().align_offset(4096);
            let block = &mut memory[start..start + 4096];
            direct.read_exact_at(block, 4096).unwrap();
            assert!(block.iter().all(|byte| *byte == b'a'));
            block.fill(b'd');
            direct.write_all_at(block, 4096).unwrap();
            let mut byte = [0];
            cached.read_exact_at(&mut byte, 5000).unwrap();
            assert_eq!(&byte, b"d");
            cached.write_all_at(b"c", 4096).unwrap();
            direct.read_exact_at(block, 4096).unwrap();
            assert_eq!(&block[..2], b"cd");
        },
    );
}

#[test]
fn sync_of_files_and_directories() {
    each_system(
        |layers| write(layers.bottom("dir/file"), "x"),
        |m| {
            let file = open_rw(m.path("dir/file"));
            file.write_all_at(b"y", 0).unwrap();
            file.sync_data().unwrap();
            file.sync_all().unwrap();
            File::open(m.path("dir/file")).unwrap().sync_all().unwrap();
            File::open(m.path("dir")).unwrap().sync_all().unwrap();
        },
    );
}

#[test]
fn handles_keep_their_access_mode() {
    each_system(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let mut reader = File::open(m.path("file")).unwrap();
            let mut writer = OpenOptions::new().write(true).open(m.path("file")).unwrap();
            fails(reader.write(b"x"), Errno::BADF);
            fails(writer.read(&mut [0]), Errno::BADF);
            writer.seek(SeekFrom::End(0)).unwrap();
            writer.write_all(b"!").unwrap();
            assert_eq!(read(m.path("file")), "image!");
            fails(File::open(m.path("file/x")), Errno::NOTDIR);
            fails(
                OpenOptions::new().write(true).open(m.path("")),
                Errno::ISDIR,
            );
            fails(
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(m.path("file")),
                Errno::EXIST,
            );
        },
    );
}
