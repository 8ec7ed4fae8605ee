//! Every path below the root directory.
//!
//! ```text
//! <root>/                   0700: nobody but root reaches what is mounted below
//!   lock                    held (flock) by the one process that may change the root
//!   metadata.redb           the store
//!   metadata.redb.new       the store while it is made for the first time
//!   probe/                  what the file system can do; only while a start tests it
//!   snapshots/              0700
//!     <id>/fs               what the snapshot itself holds: a layer, or a container's upper
//!     <id>/work             scratch space beside it, made for active snapshots; a committed one
//!                           may still have it
//!     <id>/layer.index      the index of a committed snapshot's files; may be missing
//!     <id>/blob.json        of a layer that was not unpacked: what its blob is; `fs` is empty then,
//!                           and the index is not missing
//!     <id>/blob.table       where in the blob the bytes of the files are
//!     <id>/blob             the blob, if all of it was read
//!     <id>/image.index      the index of the chain with it on top; may be missing
//!     new-<id>/             a snapshot that is being made
//!     trash-<id>/           a snapshot that is being deleted
//!   cache/                  0700: files of layers that were not unpacked
//!   profiles/               0700: what containers open first, by repository
//!   mounts/                 0700
//!     <id>/                 where the union of an active snapshot is mounted, or, with the id of
//!                           a committed snapshot, the read-only one that its views share
//! ```
//!
//! Numbers alone choose a path: keys, names and labels come from outside and never do.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The mode of the root and of the directories in it.
pub const PRIVATE: u32 = 0o700;

/// The index of a layer, in the directory of its snapshot.
pub(crate) const LAYER_INDEX: &str = "layer.index";
/// What is remembered of a blob.
pub(crate) const BLOB_RECORD: &str = "blob.json";
/// The chunk table of a blob.
pub(crate) const BLOB_TABLE: &str = "blob.table";
/// A blob itself.
pub(crate) const BLOB: &str = "blob";

/// A root directory and the names in it.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

/// What an entry of `snapshots/` is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// The directories of the snapshot with this number.
    Snapshot(u64),
    /// Left over from making or deleting one.
    Temporary,
    /// Nothing that Lamina makes.
    Foreign,
}

impl Layout {
    /// The layout below an existing directory. Its real path is taken, so that it can be compared
    /// with what the kernel says in mountinfo.
    pub fn of(root: &Path) -> Result<Layout> {
        let real = root
            .canonicalize()
            .map_err(Error::io("cannot find the root directory", root))?;
        let text = real.to_str().unwrap_or("\0");
        // The paths of layers stand in overlayfs's `lowerdir=a:b,...`, which containerd takes apart.
        if text.contains(|c: char| matches!(c, ':' | ',' | '\\') || c.is_control()) {
            return Err(Error::BadRoot {
                path: real.clone(),
                reason:
                    "its path must be UTF-8 without control characters and without any of : , \\"
                        .to_owned(),
            });
        }
        Ok(Layout { root: real })
    }

    /// Makes what is missing of the root and its directories, and closes them to other users.
    pub fn create(root: &Path) -> Result<Layout> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(root)
            .map_err(Error::io("cannot create the root directory", root))?;
        let layout = Layout::of(root)?;
        for dir in layout.private() {
            match fs::DirBuilder::new().mode(PRIVATE).create(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("cannot create", &dir)(error)),
            }
            fs::set_permissions(&dir, fs::Permissions::from_mode(PRIVATE))
                .map_err(Error::io("cannot set the mode of", &dir))?;
        }
        Ok(layout)
    }

    /// The root directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directories that nobody but root may enter.
    pub fn private(&self) -> [PathBuf; 5] {
        [
            self.root.clone(),
            self.snapshots(),
            self.cache(),
            self.profiles(),
            self.mounts(),
        ]
    }

    /// The metadata store.
    pub fn store(&self) -> PathBuf {
        self.root.join("metadata.redb")
    }

    /// The store while it is made for the first time.
    pub fn new_store(&self) -> PathBuf {
        self.root.join("metadata.redb.new")
    }

    /// The lock file.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The socket of the process that keeps what outlives the daemon.
    pub fn holder(&self) -> PathBuf {
        self.root.join("hold.sock")
    }

    /// A scratch directory, for probing what the file system can do.
    pub fn probe(&self) -> PathBuf {
        self.root.join("probe")
    }

    /// The directory of all snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The directory of one snapshot.
    pub fn snapshot(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// The files of one snapshot.
    pub fn fs(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    /// The work directory of one snapshot.
    pub fn work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// The index of one committed snapshot's own files.
    pub fn layer_index(&self, id: u64) -> PathBuf {
        self.snapshot(id).join(LAYER_INDEX)
    }

    /// What is remembered of the blob of a layer that was not unpacked.
    pub fn blob_record(&self, id: u64) -> PathBuf {
        self.snapshot(id).join(BLOB_RECORD)
    }

    /// Where in its blob the bytes of a layer's files are.
    pub fn blob_table(&self, id: u64) -> PathBuf {
        self.snapshot(id).join(BLOB_TABLE)
    }

    /// The blob of a layer, if all of it was read.
    pub fn blob(&self, id: u64) -> PathBuf {
        self.snapshot(id).join(BLOB)
    }

    /// The cache of files of layers that were not unpacked.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// What containers open first.
    pub fn profiles(&self) -> PathBuf {
        self.root.join("profiles")
    }

    /// The index of the image that a committed snapshot and those below it make.
    pub fn image_index(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("image.index")
    }

    /// A snapshot that is being made.
    pub fn new_snapshot(&self, id: u64) -> PathBuf {
        self.snapshots().join(format!("new-{id}"))
    }

    /// A snapshot that is being deleted.
    pub fn trash(&self, id: u64) -> PathBuf {
        self.snapshots().join(format!("trash-{id}"))
    }

    /// The directory of all mount points.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// One mount point.
    pub fn mount(&self, id: u64) -> PathBuf {
        self.mounts().join(id.to_string())
    }

    /// What an entry of `snapshots/` or `mounts/` is, by its name.
    pub fn classify(name: &OsStr) -> Entry {
        let Some(name) = name.to_str() else {
            return Entry::Foreign;
        };
        match name.parse::<u64>() {
            // "007" and "+7" parse, but nothing of ours is called so.
            Ok(id) if id.to_string() == name => Entry::Snapshot(id),
            _ if name.starts_with("new-") || name.starts_with("trash-") => Entry::Temporary,
            _ => Entry::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        for (name, entry) in [
            ("1", Entry::Snapshot(1)),
            ("18446744073709551615", Entry::Snapshot(u64::MAX)),
            ("01", Entry::Foreign),
            ("+1", Entry::Foreign),
            ("new-3", Entry::Temporary),
            ("trash-3", Entry::Temporary),
            ("lost+found", Entry::Foreign),
        ] {
            assert_eq!(Layout::classify(OsStr::new(name)), entry, "{name}");
        }
    }

    #[test]
    fn the_root_is_closed_even_if_it_was_open() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let layout = Layout::create(dir.path()).expect("create");
        for dir in layout.private() {
            let mode = fs::metadata(&dir).expect("stat").permissions().mode() & 0o7777;
            assert_eq!(mode, PRIVATE, "{}", dir.display());
        }
    }

    #[test]
    fn a_path_that_overlayfs_would_misread_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["a:b", "a,b", "a\\b", "a\nb"] {
            let error = Layout::create(&dir.path().join(name)).expect_err(name);
            assert!(matches!(error, Error::BadRoot { .. }), "{error}");
        }
    }
}
