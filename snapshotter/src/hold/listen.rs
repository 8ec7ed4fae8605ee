//! The holder's socket: nobody but its own user can connect, and no second holder takes its place.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with, bind, listen};
use rustix::process::geteuid;

use super::socket;
use crate::error::{Error, Result};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The socket's mode: whoever can connect can have the root of each container.
const MODE: u32 = 0o600;

/// The mode of its directory, if it has to be made.
const DIR_MODE: u32 = 0o700;

/// A socket that is listened on. Its file goes when it is dropped.
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    inode: (u64, u64),
}

impl Listener {
    /// Listens at `path`, which gets its name only when it is closed to others.
    pub(super) fn bind(path: &Path) -> Result<Listener> {
        let failed = |error: io::Error| Error::io("cannot listen on", path)(error);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(DIR_MODE);
        builder.create(dir).map_err(failed)?;
        // Two that look for each other at the same time would both find nobody. The lock is on the
        // directory, so that no file is left over, and is let go of on return.
        let place = File::open(dir).map_err(failed)?;
        flock(&place, FlockOperation::LockExclusive)
            .map_err(|errno| failed(io::Error::from(errno)))?;
        check(path)?;
        Self::bind_in_place(path).map_err(failed)
    }

    fn bind_in_place(path: &Path) -> io::Result<Listener> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket::new(SocketFlags::NONBLOCK)?;
        bind(&socket, &SocketAddrUnix::new(&new)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(MODE))?;
        listen(&socket, BACKLOG)?;
        fs::rename(&new, path)?;
        let meta = fs::symlink_metadata(path)?;
        Ok(Listener {
            socket,
            path: std::path::absolute(path)?,
            inode: (meta.dev(), meta.ino()),
        })
    }

    /// The next connection of our own user, if there is any; others are closed.
    pub(super) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.socket, flags) {
                Ok(peer) => {
                    // The mode keeps others away already; this holds whatever becomes of the file.
                    if socket_peercred(&peer).is_ok_and(|peer| peer.uid == geteuid()) {
                        return Ok(Some(peer));
                    }
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nobody can have taken its place between the look and the removal: whoever tries finds that
        // this socket still answers.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode);
        if ours {
            // There is nobody to tell; a socket without a listener is replaced by the next holder.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Refuses a path at which somebody answers, or that is not a socket.
fn check(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("cannot look at", path)(error)),
        Ok(meta) if !meta.file_type().is_socket() => Err(Error::NotASocket {
            path: path.to_owned(),
        }),
        Ok(_) => match socket::connected(path) {
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(()),
            _ => Err(Error::SocketInUse {
                path: path.to_owned(),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_closed_to_others_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("run/hold.sock");
        let listener = Listener::bind(&path).expect("bind");
        let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&dir.path().join("run")), 0o700);
        assert!(listener.accept().expect("accept").is_none());
        let _peer = socket::connected(&path).expect("connect");
        assert!(listener.accept().expect("accept").is_some());
        drop(listener);
        let left = fs::read_dir(dir.path().join("run")).expect("list");
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_second_holder_is_refused_and_a_stale_socket_is_not_in_the_way() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("hold.sock");
        let first = Listener::bind(&path).expect("bind");
        let refused = Listener::bind(&path).map(drop).expect_err("in use");
        assert!(matches!(refused, Error::SocketInUse { .. }), "{refused}");
        // As a holder leaves it that was killed.
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).expect("rename");
        drop(first);
        fs::rename(&aside, &path).expect("rename");
        let second = Listener::bind(&path).expect("bind");
        drop(second);
        fs::write(&path, "").expect("write");
        let refused = Listener::bind(&path).map(drop).expect_err("a file");
        assert!(matches!(refused, Error::NotASocket { .. }), "{refused}");
    }
}
