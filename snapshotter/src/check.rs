//! `lamina check`: does the disk agree with the store, and the store with itself?
//!
//! It changes nothing, and works on a root on which no daemon runs. What a crash may leave
//! ([`Finding::is_leftover`]) the next start clears away by itself; everything else is damage.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::root::RootLock;
use crate::store::layout::{Entry, Layout, PRIVATE};
use crate::store::records::{Info, Kind};
use crate::store::{Dump, Store};

/// Something that is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Finding {
    /// The metadata store can't be read; nothing else could be checked.
    Store(String),
    /// A directory of a snapshot that the store does not know.
    Orphan(PathBuf),
    /// What a verb that was cut off left.
    Leftover(PathBuf),
    /// Something in `snapshots/` that Lamina did not make.
    Foreign(PathBuf),
    /// A snapshot without a directory that it must have.
    MissingDirectory {
        /// Its key.
        key: String,
        /// The directory.
        path: PathBuf,
    },
    /// A snapshot whose parent is not in the store.
    MissingParent {
        /// Its key.
        key: String,
        /// The parent's key.
        parent: String,
    },
    /// A snapshot whose parent is not committed.
    ParentNotCommitted {
        /// Its key.
        key: String,
        /// The parent's key.
        parent: String,
        /// What the parent is.
        kind: Kind,
    },
    /// A snapshot that is older than its parent.
    ParentTooYoung {
        /// Its key.
        key: String,
        /// The parent's key.
        parent: String,
    },
    /// Two snapshots with one number.
    DuplicateId {
        /// The number.
        id: u64,
        /// The keys.
        keys: Vec<String>,
    },
    /// The table of numbers says something else than the snapshots.
    IdIndex {
        /// The number.
        id: u64,
        /// The key that the snapshots have for it.
        snapshot: Option<String>,
        /// The key that the table has for it.
        index: Option<String>,
    },
    /// The table of children says something else than the snapshots.
    ChildIndex {
        /// The parent's number.
        parent: u64,
        /// The child's number.
        child: u64,
        /// Whether the table has a row that it should not have, or lacks one.
        surplus: bool,
    },
    /// A number that is in use would be given out again.
    NextId {
        /// The number that would be given out.
        next: u64,
        /// The greatest one in use.
        greatest: u64,
    },
    /// A directory that others can enter.
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

impl Finding {
    /// Whether the next start of the daemon clears it away by itself.
    pub fn is_leftover(&self) -> bool {
        matches!(
            self,
            Finding::Orphan(_) | Finding::Leftover(_) | Finding::Mode { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Store(reason) => write!(f, "{reason}"),
            Finding::Orphan(path) => {
                write!(
                    f,
                    "{} belongs to no snapshot: the next start removes it",
                    path.display()
                )
            }
            Finding::Leftover(path) => write!(
                f,
                "{} was left by a call that was cut off: the next start removes it",
                path.display()
            ),
            Finding::Foreign(path) => {
                write!(
                    f,
                    "{} was not made by Lamina: move it elsewhere",
                    path.display()
                )
            }
            Finding::MissingDirectory { key, path } => write!(
                f,
                "snapshot {key:?} has no directory {}: remove the snapshot, or restore it",
                path.display()
            ),
            Finding::MissingParent { key, parent } => {
                write!(
                    f,
                    "snapshot {key:?} stands on {parent:?}, which does not exist"
                )
            }
            Finding::ParentNotCommitted { key, parent, kind } => {
                write!(
                    f,
                    "snapshot {key:?} stands on {parent:?}, which is {kind}, not committed"
                )
            }
            Finding::ParentTooYoung { key, parent } => {
                write!(
                    f,
                    "snapshot {key:?} stands on {parent:?}, which was made after it"
                )
            }
            Finding::DuplicateId { id, keys } => {
                write!(
                    f,
                    "number {id} belongs to {} snapshots: {keys:?}",
                    keys.len()
                )
            }
            Finding::IdIndex {
                id,
                snapshot,
                index,
            } => {
                let shown = |key: &Option<String>| {
                    key.as_ref()
                        .map_or_else(|| "nobody".to_owned(), |key| format!("{key:?}"))
                };
                let (index, snapshot) = (shown(index), shown(snapshot));
                write!(
                    f,
                    "number {id} belongs to {snapshot}, but the table of numbers says {index}"
                )
            }
            Finding::ChildIndex {
                parent,
                child,
                surplus: true,
            } => write!(
                f,
                "the table of children says that number {child} stands on {parent}, but it does not"
            ),
            Finding::ChildIndex {
                parent,
                child,
                surplus: false,
            } => write!(
                f,
                "number {child} stands on {parent}, but the table of children does not say so"
            ),
            Finding::NextId { next, greatest } => {
                write!(
                    f,
                    "the next number would be {next}, but {greatest} is in use"
                )
            }
            Finding::Mode { path, mode } => write!(
                f,
                "{} has mode {mode:04o} instead of {PRIVATE:04o}: others could reach containers' files",
                path.display()
            ),
        }
    }
}

/// Checks a root directory on which no daemon runs.
pub fn check(root: &Path) -> Result<Vec<Finding>> {
    let layout = Layout::of(root)?;
    let mut findings = Vec::new();
    check_modes(&layout, &mut findings)?;
    let _lock = RootLock::acquire(&layout)?;
    let dump = match Store::dump(&layout) {
        Ok(dump) => dump,
        Err(error @ (Error::CorruptStore { .. } | Error::Store { .. } | Error::Io { .. })) => {
            findings.push(Finding::Store(error.to_string()));
            return Ok(findings);
        }
        Err(error) => return Err(error),
    };
    let by_id = check_ids(&dump, &mut findings);
    check_parents(&dump, &mut findings);
    check_directories(&layout, &dump, &by_id, &mut findings)?;
    Ok(findings)
}

fn check_modes(layout: &Layout, findings: &mut Vec<Finding>) -> Result<()> {
    for path in layout.private() {
        match fs::symlink_metadata(&path) {
            Ok(meta) => {
                let mode = meta.permissions().mode() & 0o7777;
                if mode != PRIVATE {
                    findings.push(Finding::Mode { path, mode });
                }
            }
            // A root that was never served; the store says the rest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("cannot look at", &path)(error)),
        }
    }
    Ok(())
}

fn check_ids(dump: &Dump, findings: &mut Vec<Finding>) -> BTreeMap<u64, Vec<String>> {
    let mut by_id: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for info in &dump.snapshots {
        by_id
            .entry(info.record.id)
            .or_default()
            .push(info.key.clone());
    }
    for (id, keys) in &by_id {
        if keys.len() > 1 {
            findings.push(Finding::DuplicateId {
                id: *id,
                keys: keys.clone(),
            });
        }
        let index = dump.ids.get(id).cloned();
        if index.as_ref().is_none_or(|key| !keys.contains(key)) {
            findings.push(Finding::IdIndex {
                id: *id,
                snapshot: keys.first().cloned(),
                index,
            });
        }
    }
    for (id, key) in &dump.ids {
        if !by_id.contains_key(id) {
            let index = Some(key.clone());
            findings.push(Finding::IdIndex {
                id: *id,
                snapshot: None,
                index,
            });
        }
    }
    if let Some((&greatest, _)) = by_id.last_key_value()
        && greatest >= dump.next_id
    {
        findings.push(Finding::NextId {
            next: dump.next_id,
            greatest,
        });
    }
    by_id
}

fn check_parents(dump: &Dump, findings: &mut Vec<Finding>) {
    let by_key: HashMap<&str, &Info> = dump
        .snapshots
        .iter()
        .map(|info| (info.key.as_str(), info))
        .collect();
    let mut expected = BTreeSet::new();
    for Info { key, record } in &dump.snapshots {
        let Some(parent) = &record.parent else {
            continue;
        };
        let (key, parent) = (key.clone(), parent.clone());
        let Some(found) = by_key.get(parent.as_str()) else {
            findings.push(Finding::MissingParent { key, parent });
            continue;
        };
        expected.insert((found.record.id, record.id));
        if found.record.kind != Kind::Committed {
            let kind = found.record.kind;
            findings.push(Finding::ParentNotCommitted { key, parent, kind });
        } else if found.record.id >= record.id {
            findings.push(Finding::ParentTooYoung { key, parent });
        }
    }
    let rows: BTreeSet<_> = dump.children.iter().copied().collect();
    for &(parent, child) in expected.symmetric_difference(&rows) {
        let surplus = rows.contains(&(parent, child));
        findings.push(Finding::ChildIndex {
            parent,
            child,
            surplus,
        });
    }
}

fn check_directories(
    layout: &Layout,
    dump: &Dump,
    by_id: &BTreeMap<u64, Vec<String>>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    for Info { key, record } in &dump.snapshots {
        let work = (record.kind == Kind::Active).then(|| layout.work(record.id));
        for path in std::iter::once(layout.fs(record.id)).chain(work) {
            if !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                findings.push(Finding::MissingDirectory {
                    key: key.clone(),
                    path,
                });
            }
        }
    }
    let dir = layout.snapshots();
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("cannot list", &dir))?,
    };
    let mut strays = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("cannot list", &dir))?;
        match Layout::classify(&entry.file_name()) {
            Entry::Snapshot(id) if by_id.contains_key(&id) => {}
            Entry::Snapshot(_) => strays.push(Finding::Orphan(entry.path())),
            Entry::Temporary => strays.push(Finding::Leftover(entry.path())),
            Entry::Foreign => strays.push(Finding::Foreign(entry.path())),
        }
    }
    strays.sort_by_key(ToString::to_string);
    findings.append(&mut strays);
    for leftover in [layout.new_store(), layout.probe()] {
        if leftover.exists() {
            findings.push(Finding::Leftover(leftover));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
