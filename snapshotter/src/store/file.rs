//! The file of the store: made whole or not at all, never replaced, checked when it is opened.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use redb::{Builder, Database, DatabaseError, StorageError};
use rustix::fs::{Advice, fadvise};

use super::layout::{Entry, Layout};
use super::records::{FORMAT, FORMAT_LAZY};
use super::tables;
use crate::error::{Error, Result};

/// Memory for pages of the store. redb would take up to a gibibyte.
const CACHE_BYTES: usize = 8 << 20;

/// Nobody but root reads or writes the store.
const FILE_MODE: u32 = 0o600;

/// Makes the store of a new root: under another name, so that there is never half a store.
pub(super) fn create(layout: &Layout) -> Result<()> {
    let (path, new) = (layout.store(), layout.new_store());
    let count = snapshots_on_disk(layout)?;
    if count > 0 {
        return Err(Error::MissingStore {
            path,
            snapshots: layout.snapshots(),
            count,
        });
    }
    if new.exists() {
        fs::remove_file(&new).map_err(Error::io("cannot remove", &new))?;
    }
    // Made here, for its mode: redb would leave that to the umask.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(&new)
        .map_err(Error::io("cannot create", &new))?;
    drop(file);
    let database = builder().create(&new).map_err(|error| fault(&new, error))?;
    tables::create(&new, &database)?;
    drop(database);
    fs::rename(&new, &path).map_err(Error::io("cannot rename", &new))?;
    File::open(layout.root())
        .and_then(|root| root.sync_all())
        .map_err(Error::io("cannot sync", layout.root()))
}

/// Opens an existing store.
pub(super) fn open(path: &Path) -> Result<Database> {
    builder().open(path).map_err(|error| fault(path, error))
}

/// Has the kernel read the file from the disk when it is opened next. Pages whose writing failed count as
/// written from then on, and would tell of a transaction that no later start finds.
pub(super) fn forget_pages(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(Error::io("cannot open", path))?;
    // Only pages that nobody is to write go. An error was seen before, or is seen at the next transaction.
    let _ = file.sync_data();
    fadvise(&file, 0, None, Advice::DontNeed).map_err(Error::io("cannot forget the pages of", path))
}

/// Opens an existing store and verifies it: the checksum of every page, the tables, the format.
pub(super) fn open_checked(path: &Path) -> Result<Database> {
    let damaged = |reason: String| Error::CorruptStore {
        path: path.to_owned(),
        reason,
    };
    // An empty file would be taken as a new database.
    let length = fs::metadata(path)
        .map_err(Error::io("cannot open", path))?
        .len();
    if length == 0 {
        return Err(damaged("the file is empty".to_owned()));
    }
    // redb may panic on a file that was altered behind its back.
    let opened = panic::catch_unwind(AssertUnwindSafe(|| {
        builder().set_check_integrity_on_open(true).open(path)
    }));
    let database = opened
        .map_err(|_| damaged("its pages contradict each other".to_owned()))?
        .map_err(|error| fault(path, error))?;
    let format = tables::Reader::begin(path, &database)
        .and_then(|reader| reader.format())
        .map_err(|error| damaged(error.to_string()))?;
    match format {
        FORMAT | FORMAT_LAZY => Ok(database),
        other => Err(damaged(format!(
            "it has format {other}, this version reads {FORMAT} and {FORMAT_LAZY}"
        ))),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn fault(path: &Path, error: DatabaseError) -> Error {
    let reason = match &error {
        DatabaseError::Storage(StorageError::Corrupted(reason)) => reason.clone(),
        DatabaseError::Storage(StorageError::Io(io)) if is_damage(io.kind()) => io.to_string(),
        DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted => error.to_string(),
        _ => {
            return Error::Store {
                path: path.to_owned(),
                source: Box::new(error.into()),
            };
        }
    };
    Error::CorruptStore {
        path: path.to_owned(),
        reason,
    }
}

/// The kinds of I/O error that mean "this is no whole redb file".
fn is_damage(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(kind, InvalidData | UnexpectedEof)
}

fn snapshots_on_disk(layout: &Layout) -> Result<usize> {
    let dir = layout.snapshots();
    let entries = fs::read_dir(&dir).map_err(Error::io("cannot list", &dir))?;
    let mut count = 0;
    for entry in entries {
        let entry = entry.map_err(Error::io("cannot list", &dir))?;
        count += usize::from(matches!(
            Layout::classify(&entry.file_name()),
            Entry::Snapshot(_)
        ));
    }
    Ok(count)
}
