//! File handles (`name_to_handle_at(2)`): they open the file they were made of, or nothing.
//!
//! The kernel makes them of node and generation, and finds what it still knows; what it has
//! forgotten is ESTALE, because we don't offer `FUSE_EXPORT_SUPPORT`. Kernel overlayfs makes none
//! without `nfs_export=on`, so these tests run on Lamina alone.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::system::each_lamina;
use crate::tools::{append, fails, read_open, write};

const ROOM: usize = 128;

/// `struct file_handle`, with room.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    opaque: [u8; ROOM],
}

impl Handle {
    #[allow(unsafe_code)]
    fn of(file: &File) -> io::Result<Handle> {
        let mut handle = Handle {
            bytes: ROOM.try_into().unwrap(),
            kind: 0,
            opaque: [0; ROOM],
        };
        let mut mount = 0;
        // SAFETY: the descriptor is open, the path is a C string, and `handle` has the layout of
        // struct file_handle with as many bytes as it says.
        let result = unsafe {
            libc::name_to_handle_at(
                file.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        match result {
            0 => Ok(handle),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn of_path(path: impl AsRef<Path>) -> Handle {
        Handle::of(&File::open(path).unwrap()).unwrap()
    }

    /// Opens it for reading; `mount` is any directory of the mount.
    #[allow(unsafe_code)]
    fn open(&mut self, mount: &File) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: as above; a descriptor that the call makes is nobody else's.
        unsafe {
            match libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut *self).cast(), flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(File::from_raw_fd(fd)),
            }
        }
    }
}

#[test]
fn a_handle_opens_its_file_whatever_its_name() {
    each_lamina(
        |layers| write(layers.bottom("image"), "image"),
        |m| {
            write(m.path("new"), "new");
            let mount = File::open(m.path("")).unwrap();
            for name in ["image", "new"] {
                // Held open, so that the kernel does not forget it.
                let held = File::open(m.path(name)).unwrap();
                let mut handle = Handle::of(&held).unwrap();
                assert_eq!(read_open(&handle.open(&mount).unwrap()), name);
            }
            for name in ["image", "new"] {
                let mut handle = Handle::of_path(m.path(name));
                // The image's file is copied up here, with nobody who has it open.
                fs::rename(m.path(name), m.path("renamed")).unwrap();
                append(m.path("renamed"), "!");
                let held = File::open(m.path("renamed")).unwrap();
                assert_eq!(read_open(&handle.open(&mount).unwrap()), format!("{name}!"));
                drop(held);
                fs::remove_file(m.path("renamed")).unwrap();
                // The kernel keeps the inode until our thread has taken its RELEASE.
                let deadline = Instant::now() + Duration::from_secs(10);
                while handle.open(&mount).is_ok() && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(5));
                }
                fails(handle.open(&mount), Errno::STALE);
            }
        },
    );
}

/// After the hand-over the old handle's node is not to be opened any more, as by
/// `/proc/self/fd/N`.
#[test]
fn a_handle_of_a_file_that_was_handed_over_is_stale() {
    each_lamina(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let mount = File::open(m.path("")).unwrap();
            let reader = File::open(m.path("file")).unwrap();
            let mut old = Handle::of(&reader).unwrap();
            append(m.path("file"), "!");
            fails(old.open(&mount), Errno::STALE);
            let held = File::open(m.path("file")).unwrap();
            let mut new = Handle::of(&held).unwrap();
            assert_eq!(read_open(&new.open(&mount).unwrap()), "image!");
        },
    );
}

/// ext4 gives the number of a removed inode to the next one that is made.
#[test]
fn a_handle_never_opens_another_file() {
    each_lamina(
        |_| {},
        |m| {
            let mount = File::open(m.path("")).unwrap();
            let mut old = Vec::new();
            for round in 0..50 {
                let path = m.path(&format!("file{round}"));
                write(&path, round.to_string());
                let held = File::open(&path).unwrap();
                for (number, handle) in old.iter_mut().enumerate() {
                    match Handle::open(handle, &mount) {
                        // The kernel has not let go of the removed one yet.
                        Ok(removed) => assert_eq!(read_open(&removed), number.to_string()),
                        refused => fails(refused, Errno::STALE),
                    }
                }
                old.push(Handle::of(&held).unwrap());
                drop(held);
                fs::remove_file(&path).unwrap();
            }
        },
    );
}

#[test]
fn a_handle_of_an_earlier_mount_opens_nothing() {
    each_lamina(
        |layers| write(layers.bottom("file"), "image"),
        |m| {
            let mut handle = Handle::of_path(m.path("file"));
            m.remount();
            let _held = File::open(m.path("file")).unwrap();
            fails(handle.open(&File::open(m.path("")).unwrap()), Errno::STALE);
        },
    );
}
