//! The longest paths and links, positions in a listing that changes, and calls that a file system
//! may refuse.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, RawDir, SeekFrom, fallocate, ioctl_ficlone, seek, syncfs};
use rustix::io::Errno;

use crate::system::{Mounted, each_system};
use crate::tools::{exists, fails, names, open_rw, read, stat, write};

/// The longest path that the kernel takes, without the NUL.
const PATH_MAX: usize = 4095;

/// Directories below `m`, and in them a name that makes a path as long as that.
fn path_of_length(m: &Mounted, length: usize) -> (PathBuf, PathBuf) {
    let mut directory = m.path("deep").into_os_string().into_vec();
    while length - directory.len() > 256 {
        directory.push(b'/');
        directory.extend([b'd'; 200]);
    }
    let rest = length - directory.len() - 1;
    let file = [&*directory, b"/", &vec![b'f'; rest]].concat();
    let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
    (path(directory), path(file))
}

#[test]
fn the_longest_path() {
    each_system(
        |layers| write(layers.bottom("deep/image"), ""),
        |m| {
            let (directory, file) = path_of_length(m, PATH_MAX);
            assert_eq!(file.as_os_str().len(), PATH_MAX);
            fs::create_dir_all(directory).unwrap();
            write(&file, "deep");
            assert_eq!(read(&file), "deep");
            fs::rename(&file, m.path("near")).unwrap();
            fs::rename(m.path("near"), &file).unwrap();
            assert_eq!(stat(&file).len(), 4);
            let (_, too_long) = path_of_length(m, PATH_MAX + 1);
            fails(fs::write(too_long, ""), Errno::NAMETOOLONG);
            m.remount();
            assert_eq!(read(&file), "deep");
            fs::remove_dir_all(m.path("deep")).unwrap();
            assert!(!exists(m.path("deep")));
        },
    );
}

#[test]
fn the_longest_symbolic_link() {
    let target = OsString::from_vec(b"\xff/".repeat(2048)[..PATH_MAX].to_vec());
    each_system(
        |layers| symlink(&target, layers.bottom("image")).unwrap(),
        |m| {
            symlink(&target, m.path("new")).unwrap();
            let too_long = [target.as_bytes(), b"x"].concat();
            fails(
                symlink(OsString::from_vec(too_long), m.path("longer")),
                Errno::NAMETOOLONG,
            );
            for name in ["image", "new"] {
                let read = || fs::read_link(m.path(name)).unwrap().into_os_string();
                assert!(read() == target, "{name}");
                assert!(read() == target, "{name}, from what the kernel remembers");
                assert_eq!(stat(m.path(name)).len(), PATH_MAX as u64);
            }
        },
    );
}

#[test]
fn names_of_every_byte_and_length() {
    each_system(
        |layers| {
            for byte in 1..=255_u8 {
                if ![b'/', b'.'].contains(&byte) {
                    let name = OsString::from_vec(vec![byte; usize::from(byte)]);
                    write(layers.bottom("dir").join(name), "image");
                }
            }
        },
        |m| {
            let all: BTreeSet<_> = names(m.path("dir")).into_iter().collect();
            assert_eq!(all.len(), 253);
            for name in all.iter().step_by(8) {
                let path = m.path("dir").join(name);
                fs::rename(&path, m.path("other")).unwrap();
                assert_eq!(read(m.path("other")), "image");
                fs::rename(m.path("other"), &path).unwrap();
            }
            m.remount();
            assert_eq!(
                names(m.path("dir")).into_iter().collect::<BTreeSet<_>>(),
                all
            );
        },
    );
}

/// The names from a position on, each with the position after it.
fn listed(directory: &File, from: u64) -> Vec<(String, u64)> {
    seek(directory, SeekFrom::Start(from)).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut dir = RawDir::new(directory, &mut buffer);
    let mut all = Vec::new();
    while let Some(entry) = dir.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        all.push((name, entry.next_entry_cookie()));
    }
    all
}

/// telldir and seekdir are `d_off` and lseek.
#[test]
fn a_position_in_a_listing_stays_while_names_change() {
    each_system(
        |layers| {
            for number in 0..100 {
                write(layers.bottom(&format!("dir/image{number}")), "");
            }
        },
        |m| {
            for number in 0..100 {
                write(m.path(&format!("dir/upper{number}")), "");
            }
            let directory = File::open(m.path("dir")).unwrap();
            let all = listed(&directory, 0);
            assert_eq!(all.len(), 202);
            for start in [0, 1, 50, 150, 201] {
                let rest: Vec<_> = listed(&directory, all[start].1);
                assert!(rest == all[start + 1..], "from {start}");
            }
            // What comes after the position goes and comes; the rest is told once.
            let (position, after) = (all[50].1, &all[51..]);
            let is_named = |name: &str| name.starts_with(['i', 'u']);
            let gone = after.iter().find(|(name, _)| is_named(name)).unwrap();
            fs::remove_file(m.path("dir").join(&gone.0)).unwrap();
            write(m.path("dir/new"), "");
            let rest = listed(&directory, position);
            let told: BTreeSet<_> = rest.iter().map(|(name, _)| name).collect();
            assert_eq!(told.len(), rest.len(), "a name came twice");
            for (name, _) in after {
                assert!(told.contains(name) || *name == gone.0, "{name}");
            }
            for (name, _) in &all[..=50] {
                assert!(!told.contains(name), "{name} came again");
            }
            // From the start it is the directory as it is now.
            let now: BTreeSet<_> = listed(&directory, 0)
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            assert!(now.contains("new") && !now.contains(&gone.0));
        },
    );
}

/// The kernel's FUSE passes on these modes of fallocate(2), and knows no FICLONE; overlayfs asks
/// the upper's file system. A program has to be ready for a refusal in any case.
#[test]
fn what_a_file_system_may_refuse_is_refused_properly() {
    each_system(
        |layers| write(layers.bottom("file"), vec![b'x'; 64 << 10]),
        |m| {
            let file = open_rw(m.path("file"));
            let range = (4096, 8192);
            for mode in [
                FallocateFlags::ZERO_RANGE,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            ] {
                fallocate(&file, mode, range.0, range.1).unwrap();
                let mut data = vec![1; 64 << 10];
                file.read_exact_at(&mut data, 0).unwrap();
                let zeroes = data.iter().filter(|byte| **byte == 0).count();
                assert_eq!(zeroes as u64, range.1);
            }
            // A hole that could change the length is refused by the kernel itself.
            let punch = fallocate(&file, FallocateFlags::PUNCH_HOLE, range.0, range.1);
            assert_eq!(punch, Err(Errno::OPNOTSUPP));
            if m.is_lamina() {
                for mode in [
                    FallocateFlags::COLLAPSE_RANGE,
                    FallocateFlags::INSERT_RANGE,
                    FallocateFlags::UNSHARE_RANGE,
                ] {
                    let refused = fallocate(&file, mode, range.0, range.1);
                    assert_eq!(refused, Err(Errno::OPNOTSUPP), "{mode:?}");
                }
                let clone = File::create(m.path("clone")).unwrap();
                assert_eq!(ioctl_ficlone(&clone, &file), Err(Errno::OPNOTSUPP));
            }
            // cp goes on without.
            assert!(crate::tools::sh(m.path(""), "cp --reflink=auto file copy"));
            assert_eq!(
                fs::read(m.path("copy")).unwrap(),
                fs::read(m.path("file")).unwrap()
            );
        },
    );
}

/// The kernel does not forward it to us: it succeeds, and says nothing of the upper's disk.
#[test]
fn syncfs_succeeds() {
    each_system(
        |layers| write(layers.bottom("file"), "x"),
        |m| {
            let file = open_rw(m.path("file"));
            file.write_all_at(b"y", 0).unwrap();
            syncfs(&file).unwrap();
            assert_eq!(read(m.path("file")), "y");
        },
    );
}
