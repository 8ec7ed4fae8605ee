//! Sockets with a name in the file system: closed to others before anybody can connect, and removed by
//! nobody but whoever made them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::net::{SocketAddrUnix, bind, listen};

use crate::error::{Error, Result};

/// Only the own user may connect: whoever does can have everything that a container has.
const MODE: u32 = 0o600;

/// A socket's file; removed when it is dropped, unless it is left to somebody or another process has
/// put its own there.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    stays: bool,
}

impl SocketFile {
    /// Binds a socket under a temporary name, closes the file to others, listens, and only then gives it
    /// its name: there is no moment in which others could connect.
    pub(crate) fn listen(socket: &OwnedFd, path: &Path, backlog: i32) -> io::Result<SocketFile> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        bind(socket, &SocketAddrUnix::new(&new)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(MODE))?;
        listen(socket, backlog)?;
        fs::rename(&new, path)?;
        SocketFile::of(path)
    }

    /// The file of a socket that is listened on already.
    pub(crate) fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile {
            // The process may go elsewhere.
            path: std::path::absolute(path)?,
            inode: inode_of(path)?,
            stays: false,
        })
    }

    /// Device and inode number.
    pub(crate) fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Leaves the file to somebody who has its socket.
    pub(crate) fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = inode_of(&self.path).is_ok_and(|inode| inode == self.inode);
        if ours
            && !self.stays
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Device and inode number of the file at a path.
pub(crate) fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Refuses a path at which somebody `answers`, or that is not a socket. A stale socket is fine.
pub(crate) fn check(path: &Path, answers: impl FnOnce(&Path) -> bool) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("cannot look at", path)(error)),
        Ok(meta) if !meta.file_type().is_socket() => Err(Error::NotASocket {
            path: path.to_owned(),
        }),
        Ok(_) if answers(path) => Err(Error::SocketInUse {
            path: path.to_owned(),
        }),
        Ok(_) => Ok(()),
    }
}
