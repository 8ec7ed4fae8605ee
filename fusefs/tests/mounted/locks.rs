//! Locks between processes: flock, POSIX, and those of open file descriptions.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::thread;

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
        "start" => drop(lock_range(&file, libc::F_SETLK, libc::F_WRLCK, 0..10).unwrap()),
        "end" => drop(lock_range(&file, libc::F_SETLK, libc::F_WRLCK, 10..20).unwrap()),
        "who" => {
            let found = lock_range(&file, libc::F_GETLK, libc::F_WRLCK, 0..20).unwrap();
            assert_eq!(i32::from(found.l_type), libc::F_WRLCK);
            assert_eq!((found.l_start, found.l_len), (0, 10));
            assert_eq!(
                found.l_pid,
                rustix::process::getppid().unwrap().as_raw_pid()
            );
        }
        "waits" => flock(&file, FlockOperation::LockExclusive).unwrap(),
        _ => panic!("unknown lock {kind}"),
    }
}

/// Locks or unlocks a whole file for its open file description.
fn lock_description(file: &File, kind: i32) -> io::Result<()> {
    lock_range(file, libc::F_OFD_SETLK, kind, 0..0).map(drop)
}

/// A call of fcntl(2) on a lock of a range of bytes (`0..0`: all of them). Returns what the kernel
/// says of it, for `F_GETLK`.
#[allow(unsafe_code)]
fn lock_range(file: &File, call: i32, kind: i32, range: Range<i64>) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: range.start,
        l_len: range.end - range.start,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the calls for locks take one `flock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), call, &raw mut lock) } {
        0 => Ok(lock),
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
                // A program that another test is just starting has the description until it runs.
                let mut tries = 0..100;
                assert!(tries.any(|_| another_gets("ofd", &path)), "{name}");
            }
        },
    );
}

#[test]
fn a_lock_of_a_range_keeps_others_out_of_it_alone() {
    each_system(
        |layers| write(layers.bottom("file"), "x"),
        |m| {
            let path = m.path("file");
            let file = open_rw(&path);
            lock_range(&file, libc::F_SETLK, libc::F_WRLCK, 0..10).unwrap();
            assert!(!another_gets("start", &path));
            assert!(another_gets("end", &path));
            assert!(another_gets("who", &path), "F_GETLK tells the holder");
            // POSIX: the close of any descriptor of the file gives the process's locks back.
            drop(open_rw(&path));
            assert!(another_gets("start", &path));
        },
    );
}

#[test]
fn a_lock_that_is_waited_for_comes() {
    each_system(
        |layers| write(layers.bottom("file"), "x"),
        |m| {
            let path = m.path("file");
            let file = open_rw(&path);
            flock(&file, FlockOperation::LockExclusive).unwrap();
            thread::scope(|scope| {
                let waiter = scope.spawn(|| another_gets("waits", &path));
                // Whether it waits already or not: it gets the lock once this one is gone.
                drop(file);
                assert!(waiter.join().unwrap());
            });
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
