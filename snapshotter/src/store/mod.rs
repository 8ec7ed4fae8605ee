//! The metadata store: which snapshots there are, in one redb file.
//!
//! | table | key → value | says |
//! | --- | --- | --- |
//! | `snapshots` | key → record | everything of a snapshot ([`records::Record`]) |
//! | `ids` | id → key | whose directories `snapshots/<id>` are |
//! | `children` | (id of parent, id of child) → () | who stands on whom |
//! | `meta` | `format`, `next_id` → number | the version; the next free id |
//!
//! Invariants, which [`crate::check`] verifies: `ids` is the inverse of `snapshots`; `children`
//! has exactly one row for each record with a parent; a parent is committed, and its id is
//! smaller than its child's (so there can't be a cycle).
//!
//! Every change is one transaction, durable when it returns. Writers wait for each other, so
//! nothing slow happens inside one: directories are made before it and deleted after it.
//!
//! After an I/O error redb refuses everything until the file is opened anew. A full disk must not
//! end the daemon, so the store does that itself ([`Store::reopen`]). What the kernel remembers of the
//! file is forgotten first: after an fsync that failed it may be what the disk does not have.

mod file;
pub mod layout;
pub mod records;
pub(crate) mod tables;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::Database;

use crate::error::{Error, Result};
use layout::Layout;
use records::{FORMAT_LAZY, Info, Kind, Labels, Record, Time, Usage};
pub use tables::Dump;
use tables::{Reader, Rules as _, Writer};

/// The open store.
pub struct Store {
    path: PathBuf,
    /// `None` after an I/O error, until it could be opened again. The number counts openings.
    database: RwLock<(u64, Option<Database>)>,
    /// The next id to hand out. Ids of transactions that failed are not used again, so that a
    /// directory that could not be cleared away is in nobody's way.
    next_id: AtomicU64,
}

impl Store {
    /// Opens the store of a root directory, and makes it if the root is new. `used` is the
    /// greatest id that a directory on the disk has.
    pub fn open(layout: &Layout, used: u64) -> Result<Store> {
        let path = layout.store();
        if !path.exists() {
            file::create(layout)?;
        }
        let database = file::open_checked(&path)?;
        let next_id = Reader::begin(&path, &database)?
            .next_id()?
            .max(used.saturating_add(1));
        Ok(Store {
            path,
            database: RwLock::new((0, Some(database))),
            next_id: AtomicU64::new(next_id),
        })
    }

    /// Everything in the store of a root on which no daemon runs.
    pub fn dump(layout: &Layout) -> Result<Dump> {
        let path = layout.store();
        let database = file::open_checked(&path)?;
        Reader::begin(&path, &database)?.dump()
    }

    /// A new id, never given out before.
    pub fn allocate(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The id that will be handed out next.
    pub fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// The snapshot with this key.
    pub fn get(&self, key: &str) -> Result<Info> {
        self.read(|tables| tables.need(key))
    }

    /// The snapshot with this key, if there is one.
    pub fn find(&self, key: &str) -> Result<Option<Info>> {
        self.read(|tables| tables.get(key))
    }

    /// A committed snapshot that is to be a parent, and the ids of its chain, topmost first.
    pub fn parent(&self, key: &str) -> Result<(Record, Vec<u64>)> {
        self.read(|tables| {
            let parent = tables.need_parent(key)?;
            let chain = tables.chain(&parent)?;
            Ok((parent, chain))
        })
    }

    /// The ids of all that a snapshot stands on, topmost first: without its own.
    pub fn chain_below(&self, record: &Record) -> Result<Vec<u64>> {
        match &record.parent {
            None => Ok(Vec::new()),
            Some(parent) => Ok(self.parent(parent)?.1),
        }
    }

    /// All ids with their keys.
    pub fn ids(&self) -> Result<BTreeMap<u64, String>> {
        self.with(|path, database| Reader::begin(path, database)?.ids())
    }

    /// Shows every snapshot to `visit`, in the order of their keys, all as of one moment.
    pub fn walk(&self, visit: &mut dyn FnMut(Info) -> Result<()>) -> Result<()> {
        self.with(|path, database| {
            let reader = Reader::begin(path, database)?;
            reader.walk(&mut *visit)
        })
    }

    /// Adds a snapshot: an active one, a view, or a layer that is not unpacked. `parent` is the id that its parent had when the
    /// directories were made: one that was replaced meanwhile is another one.
    pub fn create(&self, key: &str, new: &Record, parent: Option<u64>) -> Result<Record> {
        self.write(|tables| {
            if let Some(name) = &new.parent
                && Some(tables.need_parent(name)?.id) != parent
            {
                return Err(Error::ParentNotFound {
                    parent: name.to_owned(),
                });
            }
            tables.need_free(key)?;
            if new.lazy {
                tables.set_format(FORMAT_LAZY)?;
            }
            let now = Time::now();
            let record = Record {
                labels: kept(&new.labels),
                created: now,
                updated: now,
                ..new.clone()
            };
            tables.put(key, &record, parent)?;
            Ok(record)
        })
    }

    /// Makes an active snapshot a committed one, with a new name and new labels.
    pub fn commit(&self, key: &str, name: &str, usage: Usage, labels: &Labels) -> Result<Record> {
        self.write(|tables| {
            let mut record = tables.need_committable(key, name)?;
            let parent = record
                .parent
                .as_deref()
                .map(|parent| tables.need_parent(parent));
            let parent = parent.transpose()?.map(|parent| parent.id);
            let now = Time::now();
            record.kind = Kind::Committed;
            record.labels = kept(labels);
            record.created = now;
            record.updated = now;
            record.usage = usage;
            tables.take(key, &record)?;
            tables.put(name, &record, parent)?;
            Ok(record)
        })
    }

    /// Whether `commit` would be allowed now: the record, or the error that it would give.
    pub fn committable(&self, key: &str, name: &str) -> Result<Record> {
        self.read(|tables| tables.need_committable(key, name))
    }

    /// Removes a snapshot without children.
    pub fn remove(&self, key: &str) -> Result<Record> {
        self.write(|tables| {
            let record = tables.need(key)?.record;
            if let Some(child) = tables.child_of(record.id)? {
                return Err(Error::HasChildren {
                    key: key.to_owned(),
                    child,
                });
            }
            tables.take(key, &record)?;
            Ok(record)
        })
    }

    /// Changes labels: all of them if `paths` is empty, else what the paths name.
    pub fn update(&self, key: &str, labels: &Labels, paths: &[String]) -> Result<Info> {
        self.write(|tables| {
            let Info { mut record, .. } = tables.need(key)?;
            if paths.is_empty() {
                record.labels.clone_from(labels);
            }
            for path in paths {
                if path == "labels" {
                    record.labels.clone_from(labels);
                } else if let Some(label) = path.strip_prefix("labels.") {
                    // A label that the new ones do not have becomes empty, which is: removed.
                    let value = labels.get(label).cloned().unwrap_or_default();
                    record.labels.insert(label.to_owned(), value);
                } else {
                    return Err(Error::BadFieldPath {
                        path: path.clone(),
                        key: key.to_owned(),
                    });
                }
            }
            record.labels = kept(&record.labels);
            record.updated = Time::now();
            tables.rewrite(key, &record)?;
            Ok(Info {
                key: key.to_owned(),
                record,
            })
        })
    }

    fn read<T>(&self, read: impl Fn(&Reader<'_>) -> Result<T>) -> Result<T> {
        self.with(|path, database| read(&Reader::begin(path, database)?))
    }

    fn write<T>(&self, change: impl Fn(&mut Writer<'_, '_>) -> Result<T>) -> Result<T> {
        self.with(|path, database| {
            tables::in_transaction(path, database, |writer| {
                writer.note_next_id(self.next_id.load(Ordering::Relaxed))?;
                change(writer)
            })
        })
    }

    /// Runs `work` on the open database. If that met an I/O error the database is opened anew;
    /// `work` runs once more if the error was only the echo of an earlier one.
    fn with<T>(&self, mut work: impl FnMut(&PathBuf, &Database) -> Result<T>) -> Result<T> {
        let mut tried_again = false;
        loop {
            let guard = self
                .database
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let (opening, Some(database)) = (guard.0, &guard.1) else {
                let opening = guard.0;
                drop(guard);
                self.reopen(opening)?;
                continue;
            };
            let result = work(&self.path, database);
            drop(guard);
            let Err(Error::Store { source, .. }) = &result else {
                return result;
            };
            let echo = matches!(**source, redb::Error::PreviousIo);
            if echo || matches!(**source, redb::Error::Io(_)) {
                if let Err(error) = self.reopen(opening) {
                    tracing::error!(%error, "the metadata store cannot be opened again yet");
                } else if echo && !tried_again {
                    tried_again = true;
                    continue;
                }
            }
            return result;
        }
    }

    /// Opens the database anew, unless somebody did since `opening`.
    fn reopen(&self, opening: u64) -> Result<()> {
        let mut guard = self
            .database
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if guard.0 != opening {
            return Ok(());
        }
        guard.1 = None;
        file::forget_pages(&self.path)?;
        guard.1 = Some(file::open(&self.path)?);
        guard.0 += 1;
        Ok(())
    }
}

/// Labels in which others hand logins to a snapshotter (nydus-snapshotter's; containerd issue 7619).
/// Lamina has no use for them, and a store is no place for secrets.
const SECRET: [&str; 2] = [
    "containerd.io/snapshot/pullsecret",
    "containerd.io/snapshot/pullusername",
];

/// The labels that are written down: none with a secret, and none without a value.
///
/// containerd's store drops labels without a value when it writes them (metadata/boltutil), so
/// that `Update` can remove one by naming it.
fn kept(labels: &Labels) -> Labels {
    let kept = labels
        .iter()
        .filter(|(label, value)| !value.is_empty() && !SECRET.contains(&label.as_str()));
    kept.map(|(label, value)| (label.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
