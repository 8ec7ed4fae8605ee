//! The holder's socket: nobody but its own user can connect, and no second holder takes its place.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::geteuid;

use super::socket;
use crate::error::{Error, Result};
use crate::socket_file::{self, SocketFile};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The mode of its directory, if it has to be made.
const DIR_MODE: u32 = 0o700;

/// A socket that is listened on. Its file goes when it is dropped.
pub(super) struct Listener {
    /// Goes first. Nobody can take its place meanwhile: whoever tries finds that the socket still answers.
    _file: SocketFile,
    socket: OwnedFd,
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
        socket_file::check(path, |path| {
            let refused = [Errno::CONNREFUSED, Errno::NOENT];
            !socket::connected(path).is_err_and(|errno| refused.contains(&errno))
        })?;
        let bound = || {
            let socket = socket::new(SocketFlags::NONBLOCK)?;
            let file = SocketFile::listen(&socket, path, BACKLOG)?;
            Ok(Listener {
                _file: file,
                socket,
            })
        };
        bound().map_err(failed)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
