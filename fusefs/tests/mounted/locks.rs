//! Locks between processes: flock, POSIX, and those of open file descriptions.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FlockOperation, fcntl_lock, flock};

use crate::system::each_system;
use crate::tools::{append, open_rw, write};

const HELPER: &str = "LAMINA_TEST_TRY_LOCK";

/// Whether another process gets the lock.
fn another_gets(kind: &str, path: &Path) -> bool {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "locks::helper_that_tries_a_lock"])
        .env(HELPER, format!("{kind}:{}", path.display()))
        .output()
        .unwrap()
        .status
        .success()
}

/// The other process. Run as a test by itself it has nothing to do.
#[test]
fn helper_that_tries_a_lock() {
    let Ok(wanted) = std::env::var(HELPER) else {
        return;
    };
    let (kind, path) = wanted.split_once(':').unwrap();
    let file = open_rw(path);
    match kind {
        "flock" => flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap(),
        "posix" => fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap(),
        "ofd" => lock_description(&file, libc::F_WRLCK).unwrap(),
        _ => panic!("unknown lock {kind}"),
    }
}

/// Locks or unlocks a whole file for its open file description.
#[allow(unsafe_code)]
fn lock_description(file: &File, kind: i32) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and F_OFD_SETLK reads one `flock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn a_lock_keeps_other_processes_out() {
    each_system(
        |layers| write(layers.bottom("image"), "x"),
        |m| {
            // A lock belongs to a file of the upper: the image file's is copied up by the open.
            append(m.path("image"), "y");
            write(m.path("new"), "x");
            for name in ["image", "new"] {
                let path = m.path(name);
                let file = open_rw(&path);

                flock(&file, FlockOperation::LockExclusive).unwrap();
                assert!(!another_gets("flock", &path), "{name}");
                flock(&file, FlockOperation::Unlock).unwrap();
                assert!(another_gets("flock", &path), "{name}");

                fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
                assert!(!another_gets("posix", &path), "{name}");
                fcntl_lock(&file, FlockOperation::Unlock).unwrap();
                assert!(another_gets("posix", &path), "{name}");

                lock_description(&file, libc::F_WRLCK).unwrap();
                assert!(!another_gets("ofd", &path), "{name}");
                assert!(!another_gets("posix", &path), "{name}");
                drop(file);
                assert!(another_gets("ofd", &path), "{name}");
            }
        },
    );
}

#[test]
fn readers_share() {
    each_system(
        |layers| write(layers.bottom("image"), "x"),
        |m| {
            let readers = [
                File::open(m.path("image")).unwrap(),
                File::open(m.path("image")).unwrap(),
            ];
            for reader in &readers {
                flock(reader, FlockOperation::NonBlockingLockShared).unwrap();
            }
            let exclusive = flock(&readers[0], FlockOperation::NonBlockingLockExclusive);
            assert_eq!(exclusive, Err(rustix::io::Errno::WOULDBLOCK));
        },
    );
}
