//! The tables of the store, and what one transaction reads and writes of them.

use std::collections::BTreeMap;
use std::path::Path;

use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition,
};

use super::records::{FORMAT, Info, Kind, Record};
use crate::error::{Error, Result};

const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
const IDS: TableDefinition<u64, &str> = TableDefinition::new("ids");
const CHILDREN: TableDefinition<(u64, u64), ()> = TableDefinition::new("children");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

const FORMAT_KEY: &str = "format";
const NEXT_ID_KEY: &str = "next_id";

/// All rows of the store, as they are, for [`crate::check`].
pub struct Dump {
    /// `snapshots`.
    pub snapshots: Vec<Info>,
    /// `ids`.
    pub ids: BTreeMap<u64, String>,
    /// `children`: parent and child.
    pub children: Vec<(u64, u64)>,
    /// The next free id.
    pub next_id: u64,
}

/// Makes an error of redb's into ours.
fn fault<E: Into<redb::Error>>(path: &Path) -> impl Fn(E) -> Error {
    move |error| Error::Store {
        path: path.to_owned(),
        source: Box::new(error.into()),
    }
}

fn decode(path: &Path, key: &str, bytes: &[u8]) -> Result<Record> {
    serde_json::from_slice(bytes).map_err(|error| Error::CorruptStore {
        path: path.to_owned(),
        reason: format!("the record of {key:?} cannot be read: {error}"),
    })
}

/// Makes the tables of a new store.
pub(super) fn create(path: &Path, database: &Database) -> Result<()> {
    in_transaction(path, database, |tables| {
        tables
            .meta
            .insert(FORMAT_KEY, FORMAT)
            .map_err(fault(path))?;
        tables.meta.insert(NEXT_ID_KEY, 1).map_err(fault(path))?;
        Ok(())
    })
}

/// Runs `change` in a transaction, which is durable when this returns `Ok` and has not happened
/// when `change` fails.
pub(super) fn in_transaction<T>(
    path: &Path,
    database: &Database,
    change: impl FnOnce(&mut Writer<'_, '_>) -> Result<T>,
) -> Result<T> {
    let mut transaction = database.begin_write().map_err(fault(path))?;
    transaction
        .set_durability(Durability::Immediate)
        .map_err(fault(path))?;
    // One more fsync, and then a transaction that does not verify is damage and no crash. Without
    // it redb opens such a file as it was one transaction earlier, and says nothing: a snapshot
    // that was acknowledged would be an orphan, which the start deletes.
    transaction.set_two_phase_commit(true);
    let answer = {
        let mut writer = Writer {
            path,
            snapshots: transaction.open_table(SNAPSHOTS).map_err(fault(path))?,
            ids: transaction.open_table(IDS).map_err(fault(path))?,
            children: transaction.open_table(CHILDREN).map_err(fault(path))?,
            meta: transaction.open_table(META).map_err(fault(path))?,
        };
        change(&mut writer)
    };
    match answer {
        Ok(answer) => {
            transaction.commit().map_err(fault(path))?;
            Ok(answer)
        }
        Err(error) => {
            if let Err(abort) = transaction.abort() {
                tracing::warn!(error = %abort, "cannot abort a transaction of the metadata store");
            }
            Err(error)
        }
    }
}

/// The rules that a reader and a writer share.
pub(super) trait Rules {
    /// The store's file.
    fn path(&self) -> &Path;
    /// The record of a key.
    fn get(&self, key: &str) -> Result<Option<Info>>;

    fn need(&self, key: &str) -> Result<Info> {
        self.get(key)?.ok_or_else(|| Error::NotFound {
            key: key.to_owned(),
        })
    }

    fn need_free(&self, key: &str) -> Result<()> {
        match self.get(key)? {
            None => Ok(()),
            Some(_) => Err(Error::AlreadyExists {
                key: key.to_owned(),
            }),
        }
    }

    fn need_parent(&self, parent: &str) -> Result<Record> {
        let info = self.get(parent)?;
        let info = info.ok_or_else(|| Error::ParentNotFound {
            parent: parent.to_owned(),
        })?;
        if info.record.kind != Kind::Committed {
            return Err(Error::ParentNotCommitted {
                parent: parent.to_owned(),
            });
        }
        Ok(info.record)
    }

    /// The checks of a commit, in containerd's order: the name, the key, the kind.
    fn need_committable(&self, key: &str, name: &str) -> Result<Record> {
        self.need_free(name)?;
        let record = self.need(key)?.record;
        if record.kind != Kind::Active {
            return Err(Error::WrongKind {
                verb: "commit",
                key: key.to_owned(),
                kind: record.kind,
                needed: "active",
            });
        }
        Ok(record)
    }

    /// The ids of a snapshot and all that it stands on, topmost first.
    fn chain(&self, top: &Record) -> Result<Vec<u64>> {
        let mut chain = vec![top.id];
        let mut parent = top.parent.clone();
        while let Some(key) = parent {
            let record = self.need_parent(&key)?;
            if chain.last().is_some_and(|child| record.id >= *child) {
                return Err(Error::CorruptStore {
                    path: self.path().to_owned(),
                    reason: format!("{key:?} is younger than a snapshot that stands on it"),
                });
            }
            chain.push(record.id);
            parent = record.parent;
        }
        Ok(chain)
    }
}

/// The record of a key, in the table of either kind of transaction.
fn find(
    path: &Path,
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Info>> {
    let found = snapshots.get(key).map_err(fault(path))?;
    let record = found
        .map(|bytes| decode(path, key, bytes.value()))
        .transpose()?;
    Ok(record.map(|record| Info {
        key: key.to_owned(),
        record,
    }))
}

/// What a read transaction sees.
pub(super) struct Reader<'a> {
    path: &'a Path,
    transaction: ReadTransaction,
    snapshots: ReadOnlyTable<&'static str, &'static [u8]>,
}

impl Rules for Reader<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn get(&self, key: &str) -> Result<Option<Info>> {
        find(self.path, &self.snapshots, key)
    }
}

impl<'a> Reader<'a> {
    pub(super) fn begin(path: &'a Path, database: &Database) -> Result<Reader<'a>> {
        let transaction = database.begin_read().map_err(fault(path))?;
        let snapshots = transaction.open_table(SNAPSHOTS).map_err(fault(path))?;
        Ok(Reader {
            path,
            transaction,
            snapshots,
        })
    }

    fn meta(&self, key: &str) -> Result<u64> {
        let meta = self
            .transaction
            .open_table(META)
            .map_err(fault(self.path))?;
        let value = meta.get(key).map_err(fault(self.path))?;
        value
            .map(|value| value.value())
            .ok_or_else(|| Error::CorruptStore {
                path: self.path.to_owned(),
                reason: format!("it has no {key}"),
            })
    }

    pub(super) fn format(&self) -> Result<u64> {
        self.meta(FORMAT_KEY)
    }

    pub(super) fn next_id(&self) -> Result<u64> {
        self.meta(NEXT_ID_KEY)
    }

    pub(super) fn walk(&self, visit: &mut dyn FnMut(Info) -> Result<()>) -> Result<()> {
        for row in self.snapshots.iter().map_err(fault(self.path))? {
            let (key, bytes) = row.map_err(fault(self.path))?;
            let record = decode(self.path, key.value(), bytes.value())?;
            visit(Info {
                key: key.value().to_owned(),
                record,
            })?;
        }
        Ok(())
    }

    pub(super) fn ids(&self) -> Result<BTreeMap<u64, String>> {
        let table = self.transaction.open_table(IDS).map_err(fault(self.path))?;
        let mut ids = BTreeMap::new();
        for row in table.iter().map_err(fault(self.path))? {
            let (id, key) = row.map_err(fault(self.path))?;
            ids.insert(id.value(), key.value().to_owned());
        }
        Ok(ids)
    }

    pub(super) fn dump(&self) -> Result<Dump> {
        let mut snapshots = Vec::new();
        self.walk(&mut |info| {
            snapshots.push(info);
            Ok(())
        })?;
        let table = self
            .transaction
            .open_table(CHILDREN)
            .map_err(fault(self.path))?;
        let mut children = Vec::new();
        for row in table.iter().map_err(fault(self.path))? {
            children.push(row.map_err(fault(self.path))?.0.value());
        }
        Ok(Dump {
            snapshots,
            ids: self.ids()?,
            children,
            next_id: self.next_id()?,
        })
    }
}

/// What a write transaction sees and changes.
pub(super) struct Writer<'p, 't> {
    path: &'p Path,
    snapshots: Table<'t, &'static str, &'static [u8]>,
    ids: Table<'t, u64, &'static str>,
    children: Table<'t, (u64, u64), ()>,
    meta: Table<'t, &'static str, u64>,
}

impl Rules for Writer<'_, '_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn get(&self, key: &str) -> Result<Option<Info>> {
        find(self.path, &self.snapshots, key)
    }
}

impl Writer<'_, '_> {
    pub(super) fn note_next_id(&mut self, next_id: u64) -> Result<()> {
        self.meta
            .insert(NEXT_ID_KEY, next_id)
            .map_err(fault(self.path))?;
        Ok(())
    }

    /// Raises the format, or leaves it as it is.
    pub(super) fn set_format(&mut self, format: u64) -> Result<()> {
        self.meta
            .insert(FORMAT_KEY, format)
            .map_err(fault(self.path))?;
        Ok(())
    }

    /// A child of this snapshot, by its key.
    pub(super) fn child_of(&self, id: u64) -> Result<Option<String>> {
        let mut rows = self
            .children
            .range((id, 0)..=(id, u64::MAX))
            .map_err(fault(self.path))?;
        let Some(row) = rows.next() else {
            return Ok(None);
        };
        let (_, child) = row.map_err(fault(self.path))?.0.value();
        let key = self.ids.get(child).map_err(fault(self.path))?;
        Ok(Some(key.map_or_else(
            || format!("number {child}"),
            |key| key.value().to_owned(),
        )))
    }

    /// Adds a record with its rows in the other tables.
    pub(super) fn put(&mut self, key: &str, record: &Record, parent: Option<u64>) -> Result<()> {
        self.rewrite(key, record)?;
        self.ids.insert(record.id, key).map_err(fault(self.path))?;
        if let Some(parent) = parent {
            self.children
                .insert((parent, record.id), ())
                .map_err(fault(self.path))?;
        }
        Ok(())
    }

    /// Replaces a record; its id and parent are as they were.
    pub(super) fn rewrite(&mut self, key: &str, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).map_err(|error| Error::CorruptStore {
            path: self.path.to_owned(),
            reason: format!("the record of {key:?} cannot be written: {error}"),
        })?;
        self.snapshots
            .insert(key, bytes.as_slice())
            .map_err(fault(self.path))?;
        Ok(())
    }

    /// Takes a record and its rows out.
    pub(super) fn take(&mut self, key: &str, record: &Record) -> Result<()> {
        self.snapshots.remove(key).map_err(fault(self.path))?;
        self.ids.remove(record.id).map_err(fault(self.path))?;
        if let Some(parent) = &record.parent {
            let parent = self.need_parent(parent)?;
            self.children
                .remove((parent.id, record.id))
                .map_err(fault(self.path))?;
        }
        Ok(())
    }
}

/// Ways to damage a store, for the tests of what finds the damage.
#[cfg(test)]
pub(crate) mod damage {
    use super::*;

    pub(crate) fn put_id(path: &Path, id: u64, key: &str) {
        change(path, |tables| {
            tables.ids.insert(id, key).map(drop).map_err(fault(path))
        });
    }

    pub(crate) fn remove_id(path: &Path, id: u64) {
        change(path, |tables| {
            tables.ids.remove(id).map(drop).map_err(fault(path))
        });
    }

    pub(crate) fn put_child(path: &Path, parent: u64, child: u64) {
        change(path, |tables| {
            tables
                .children
                .insert((parent, child), ())
                .map(drop)
                .map_err(fault(path))
        });
    }

    pub(crate) fn remove_child(path: &Path, parent: u64, child: u64) {
        change(path, |tables| {
            tables
                .children
                .remove((parent, child))
                .map(drop)
                .map_err(fault(path))
        });
    }

    pub(crate) fn edit(path: &Path, key: &str, edit: impl FnOnce(&mut Record)) {
        change(path, |tables| {
            let mut record = tables.need(key)?.record;
            edit(&mut record);
            tables.rewrite(key, &record)
        });
    }

    pub(crate) fn remove_record(path: &Path, key: &str) {
        change(path, |tables| {
            tables.snapshots.remove(key).map(drop).map_err(fault(path))
        });
    }

    pub(crate) fn set_next_id(path: &Path, next_id: u64) {
        change(path, |tables| {
            tables
                .meta
                .insert(NEXT_ID_KEY, next_id)
                .map(drop)
                .map_err(fault(path))
        });
    }

    pub(crate) fn set_format(path: &Path, format: u64) {
        change(path, |tables| {
            tables
                .meta
                .insert(FORMAT_KEY, format)
                .map(drop)
                .map_err(fault(path))
        });
    }

    pub(crate) fn spoil_record(path: &Path, key: &str) {
        change(path, |tables| {
            tables
                .snapshots
                .insert(key, b"{".as_slice())
                .map(drop)
                .map_err(fault(path))
        });
    }

    fn change(path: &Path, change: impl FnOnce(&mut Writer<'_, '_>) -> Result<()>) {
        let database = redb::Database::open(path).expect("open the store to damage it");
        in_transaction(path, &database, change).expect("damage the store");
    }
}
