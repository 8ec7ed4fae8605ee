//! Leases (`fcntl(F_SETLEASE)`): the kernel keeps them for each inode of the mount, as on overlayfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::io::Errno;

use crate::system::each_system;
use crate::tools::{append, fails, read_open, write};

/// Takes or gives up a lease.
#[allow(unsafe_code)]
fn lease(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and F_SETLEASE takes a number.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whoever holds a lease is told by SIGIO that somebody wants the file, and dies of it.
#[allow(unsafe_code)]
fn survive_sigio() {
    // SAFETY: no handler runs; the signal is ignored.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

/// Opens without waiting for whoever holds a lease.
fn open_at_once(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

#[test]
fn a_lease_holds_back_who_would_break_it() {
    survive_sigio();
    each_system(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            append(m.path("file"), "!");
            let path = m.path("file");
            let reader = File::open(&path).unwrap();
            lease(&reader, libc::F_RDLCK).unwrap();
            open_at_once(&path, false).unwrap();
            fails(open_at_once(&path, true), Errno::AGAIN);
            lease(&reader, libc::F_UNLCK).unwrap();
            open_at_once(&path, true).unwrap();
            // A reader is in the way of a lease for writing.
            let writer = OpenOptions::new().write(true).open(&path).unwrap();
            fails(lease(&writer, libc::F_WRLCK), Errno::AGAIN);
            drop(reader);
            lease(&writer, libc::F_WRLCK).unwrap();
            fails(open_at_once(&path, false), Errno::AGAIN);
            drop(writer);
            open_at_once(&path, false).unwrap();
            // A directory has none.
            let directory = File::open(m.path("")).unwrap();
            fails(lease(&directory, libc::F_RDLCK), Errno::INVAL);
        },
    );
}

#[test]
fn a_lease_of_an_image_file_holds_back_its_copy_up() {
    survive_sigio();
    each_system(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let path = m.path("file");
            let reader = File::open(&path).unwrap();
            lease(&reader, libc::F_RDLCK).unwrap();
            fails(open_at_once(&path, true), Errno::AGAIN);
            assert_eq!(read_open(&reader), "image");
            lease(&reader, libc::F_UNLCK).unwrap();
            append(&path, "!");
            assert_eq!(read_open(&File::open(&path).unwrap()), "image!");
        },
    );
}
