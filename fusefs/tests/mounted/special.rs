//! Device nodes, pipes and sockets.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::system::each_system;
use crate::tools::{exists, fails, mknod, mode, stat, whiteout};

#[test]
fn device_nodes_work_and_keep_their_number() {
    each_system(
        |_| {},
        |m| {
            mknod(m.path("null"), FileType::CharacterDevice, (1, 3)).unwrap();
            mknod(m.path("zero"), FileType::CharacterDevice, (1, 5)).unwrap();
            mknod(m.path("large"), FileType::BlockDevice, (0xfff, 0xf_fffe)).unwrap();
            mknod(m.path("block0"), FileType::BlockDevice, (0, 0)).unwrap();
            OpenOptions::new()
                .write(true)
                .open(m.path("null"))
                .unwrap()
                .write_all(b"x")
                .unwrap();
            let mut byte = [1];
            File::open(m.path("zero"))
                .unwrap()
                .read_exact(&mut byte)
                .unwrap();
            assert_eq!(byte, [0]);
            m.remount();
            assert!(stat(m.path("large")).file_type().is_block_device());
            assert_eq!(
                stat(m.path("large")).rdev(),
                rustix::fs::makedev(0xfff, 0xf_fffe)
            );
            assert_eq!(stat(m.path("null")).rdev(), rustix::fs::makedev(1, 3));
            assert_eq!(mode(m.path("null")), 0o644);
            assert!(stat(m.path("block0")).file_type().is_block_device());
        },
    );
}

#[test]
fn regular_files_by_mknod() {
    each_system(
        |layers| whiteout(layers.top("gone")),
        |m| {
            mknod(m.path("gone"), FileType::RegularFile, (0, 0)).unwrap();
            assert!(stat(m.path("gone")).is_file());
            fails(mknod(m.path("gone"), FileType::Fifo, (0, 0)), Errno::EXIST);
        },
    );
}

#[test]
fn pipes_carry_bytes() {
    each_system(
        |layers| mknod(layers.bottom("lower"), FileType::Fifo, (0, 0)).unwrap(),
        |m| {
            mknod(m.path("upper"), FileType::Fifo, (0, 0)).unwrap();
            for name in ["lower", "upper"] {
                let path = m.path(name);
                let writer = thread::spawn(move || fs::write(path, "through").unwrap());
                assert_eq!(fs::read(m.path(name)).unwrap(), b"through");
                writer.join().unwrap();
            }
        },
    );
}

#[test]
fn sockets_connect() {
    each_system(
        |_| {},
        |m| {
            let listener = UnixListener::bind(m.path("socket")).unwrap();
            let path = m.path("socket");
            let client = thread::spawn(move || UnixStream::connect(path).unwrap());
            listener.accept().unwrap().0.write_all(b"hello").unwrap();
            let mut greeting = String::new();
            client
                .join()
                .unwrap()
                .read_to_string(&mut greeting)
                .unwrap();
            assert_eq!(greeting, "hello");
            fs::remove_file(m.path("socket")).unwrap();
            assert!(!exists(m.path("socket")));
        },
    );
}
