//! Short names for what nearly every test does.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// The user and group that have no privilege.
pub(crate) const USER: u32 = 1000;

/// The ACL `u::rwx,u:1000:rw-,g::r--,m::rw-,o::---`, as the kernel keeps it in an xattr.
pub(crate) fn acl_with_user() -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 7, NOBODY),
        (0x02, 6, USER),
        (0x04, 4, NOBODY),
        (0x10, 6, NOBODY),
        (0x20, 0, NOBODY),
    ];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// Writes a file, with its parent directories.
pub(crate) fn write(path: impl AsRef<Path>, data: impl AsRef<[u8]>) {
    if let Some(parent) = path.as_ref().parent() {
        fs::create_dir_all(parent).unwrap();
    }
    fs::write(path, data).unwrap();
}

/// Reads a text file.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Appends to a file.
pub(crate) fn append(path: impl AsRef<Path>, data: &str) {
    use io::Write;
    OpenOptions::new()
        .append(true)
        .open(path)
        .unwrap()
        .write_all(data.as_bytes())
        .unwrap();
}

/// Opens for reading and writing.
pub(crate) fn open_rw(path: impl AsRef<Path>) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// All that can be read through an open file.
pub(crate) fn read_open(file: &File) -> String {
    let mut data = vec![0; 1 << 16];
    let count = file.read_at(&mut data, 0).unwrap();
    data.truncate(count);
    String::from_utf8(data).unwrap()
}

/// The names in a directory, sorted.
pub(crate) fn names(path: impl AsRef<Path>) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

/// `d_ino` of a name in a directory.
pub(crate) fn d_ino(directory: impl AsRef<Path>, name: &str) -> u64 {
    let found = fs::read_dir(directory).unwrap().map(Result::unwrap);
    found
        .into_iter()
        .find(|entry| entry.file_name() == name)
        .unwrap()
        .ino()
}

/// Whether a name is there, without following it.
pub(crate) fn exists(path: impl AsRef<Path>) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// lstat(2).
pub(crate) fn stat(path: impl AsRef<Path>) -> fs::Metadata {
    let path = path.as_ref();
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("stat {}: {error}", path.display()))
}

/// Permission bits.
pub(crate) fn mode(path: impl AsRef<Path>) -> u32 {
    stat(path).mode() & 0o7777
}

pub(crate) fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn lchown(path: impl AsRef<Path>, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

/// truncate(2): by path.
#[allow(unsafe_code)]
pub(crate) fn truncate(path: impl AsRef<Path>, len: i64) -> io::Result<()> {
    let path = CString::new(path.as_ref().as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that ends with NUL, and outlives the call.
    match unsafe { libc::truncate(path.as_ptr(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a special file.
pub(crate) fn mknod(path: impl AsRef<Path>, kind: FileType, device: (u32, u32)) -> io::Result<()> {
    let device = rustix::fs::makedev(device.0, device.1);
    Ok(rustix::fs::mknodat(
        CWD,
        path.as_ref(),
        kind,
        Mode::from_raw_mode(0o644),
        device,
    )?)
}

/// Makes a whiteout in a layer.
pub(crate) fn whiteout(path: impl AsRef<Path>) {
    mknod(path, FileType::CharacterDevice, (0, 0)).unwrap();
}

/// Makes an opaque directory in a layer.
pub(crate) fn opaque(path: impl AsRef<Path>) {
    fs::create_dir_all(&path).unwrap();
    set_xattr(path, "trusted.overlay.opaque", b"y").unwrap();
}

/// Sets an xattr, not following a symbolic link.
pub(crate) fn set_xattr(path: impl AsRef<Path>, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::lsetxattr(
        path.as_ref(),
        name,
        value,
        XattrFlags::empty(),
    )?)
}

/// Value of an xattr.
pub(crate) fn xattr(path: impl AsRef<Path>, name: &str) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::lgetxattr(path.as_ref(), name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// Names of all xattrs, sorted.
pub(crate) fn xattr_names(path: impl AsRef<Path>) -> Vec<String> {
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path.as_ref(), &mut list[..]).unwrap();
    let names = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut names: Vec<_> = names
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

/// The operation has to fail with this errno.
#[track_caller]
pub(crate) fn fails<T: Debug>(result: io::Result<T>, errno: Errno) {
    match result {
        Ok(value) => panic!("should fail with {errno}, gave {value:?}"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}"),
    }
}

/// Runs a shell script in a directory as root; says whether it succeeded.
pub(crate) fn sh(directory: impl AsRef<Path>, script: &str) -> bool {
    Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .status()
        .unwrap()
        .success()
}

/// The same as a user without privilege.
pub(crate) fn sh_as_user(directory: impl AsRef<Path>, script: &str) -> bool {
    let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
    Command::new("setpriv")
        .args([&*uid, &*gid, "--clear-groups", "--", "sh", "-c", script])
        .current_dir(directory)
        .status()
        .unwrap()
        .success()
}

/// What one name of a tree is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    content: Vec<u8>,
    xattrs: Vec<String>,
}

/// A whole tree: what each path is, and its inode number.
pub(crate) fn tree(root: impl AsRef<Path>) -> BTreeMap<PathBuf, (Seen, u64)> {
    let mut seen = BTreeMap::new();
    collect(root.as_ref(), root.as_ref(), &mut seen);
    seen
}

/// A tree without the inode numbers.
pub(crate) fn tree_without_inodes(root: impl AsRef<Path>) -> BTreeMap<PathBuf, Seen> {
    tree(root)
        .into_iter()
        .map(|(path, (seen, _ino))| (path, seen))
        .collect()
}

fn collect(root: &Path, path: &Path, tree: &mut BTreeMap<PathBuf, (Seen, u64)>) {
    let meta = stat(path);
    let kind = meta.file_type();
    let content = if kind.is_file() {
        fs::read(path).unwrap()
    } else if kind.is_symlink() {
        fs::read_link(path)
            .unwrap()
            .into_os_string()
            .into_encoded_bytes()
    } else {
        Vec::new()
    };
    let seen = Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        rdev: meta.rdev(),
        content,
        xattrs: xattr_names(path),
    };
    tree.insert(
        path.strip_prefix(root).unwrap().to_owned(),
        (seen, meta.ino()),
    );
    if kind.is_dir() {
        for name in names(path) {
            collect(root, &path.join(name), tree);
        }
    }
}

/// A shared mapping of the first page of a file.
pub(crate) struct Map(*mut u8);

impl Map {
    pub(crate) const LEN: usize = 4096;

    pub(crate) fn read_only(file: &File) -> Self {
        Self::new(file, ProtFlags::READ)
    }

    pub(crate) fn writable(file: &File) -> Self {
        Self::new(file, ProtFlags::READ | ProtFlags::WRITE)
    }

    #[allow(unsafe_code)]
    fn new(file: &File, protection: ProtFlags) -> Self {
        // SAFETY: the address is the kernel's choice, so no other object is mapped over; the
        // pages are only touched through `get` and `set`, never as references.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                Self::LEN,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        Self(address.unwrap().cast())
    }

    /// The byte at `offset`, as the mapping has it now.
    #[allow(unsafe_code)]
    pub(crate) fn get(&self, offset: usize) -> u8 {
        assert!(offset < Self::LEN);
        // SAFETY: inside the mapping, which lives as long as `self`; volatile, because files
        // change.
        unsafe { self.0.add(offset).read_volatile() }
    }

    /// Changes the byte at `offset`. The mapping has to be writable.
    #[allow(unsafe_code)]
    pub(crate) fn set(&mut self, offset: usize, byte: u8) {
        assert!(offset < Self::LEN);
        // SAFETY: as in `get`; a mapping that is not writable gives SIGSEGV, not an access to
        // another object.
        unsafe { self.0.add(offset).write_volatile(byte) }
    }
}

impl Drop for Map {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nothing borrows from it.
        unsafe { rustix::mm::munmap(self.0.cast(), Self::LEN) }.unwrap();
    }
}
