//! `lamina check`: does the disk agree with the store, the store with itself, and each snapshot with
//! the chain that it stands on?
//!
//! It changes nothing, and works on a root on which no daemon runs. What a crash may leave
//! ([`Finding::is_leftover`]) the next start clears away by itself; everything else is damage, unless
//! it is a note ([`Finding::is_note`]).

mod finding;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lamina_fusefs::check as upper;
use lamina_fusefs::image::Image;

pub use finding::Finding;

use crate::error::{Error, Result};
use crate::root::RootLock;
use crate::store::layout::{Entry, Layout, PRIVATE};
use crate::store::records::{Info, Kind, Record};
use crate::store::{Dump, Store};
use crate::upper_mode::UpperMode;
use crate::{indexes, lazy};

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
    check_uppers(&layout, &dump, &mut findings);
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
            Entry::Snapshot(id) if by_id.contains_key(&id) => {
                let unfinished = indexes::leftovers(layout, id)?.into_iter();
                strays.extend(unfinished.map(Finding::Leftover));
            }
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

/// Checks what each snapshot holds against the chain below it. One that lacks a directory, or a
/// parent, has been reported and has no chain.
fn check_uppers(layout: &Layout, dump: &Dump, findings: &mut Vec<Finding>) {
    let by_key: HashMap<&str, &Info> = dump
        .snapshots
        .iter()
        .map(|info| (info.key.as_str(), info))
        .collect();
    for info in &dump.snapshots {
        let Info { key, record } = info;
        let Some(chain) = chain(&by_key, info).filter(|_| record.kind != Kind::View) else {
            continue;
        };
        if record.kind == Kind::Committed {
            let flawed = indexes::check(layout, record.id, &chain).into_iter();
            findings.extend(flawed.map(|error| Finding::Index(error.to_string())));
            let refused = lazy::why_refused(layout, record.id);
            let key = key.clone();
            findings.extend(refused.map(|why| Finding::Refused { key, why }));
        }
        let work = (record.kind == Kind::Active).then(|| layout.work(record.id));
        let dirs = chain.iter().map(|id| layout.fs(*id));
        if !dirs.chain(work.clone()).all(|path| path.is_dir()) {
            continue;
        }
        // What was not unpacked is checked against its index alone.
        if layout.blob_record(record.id).exists() {
            continue;
        }
        let image = chain[1..]
            .iter()
            .map(|id| indexes::place(layout, *id, None)?.open());
        let image = image
            .collect::<lamina_fusefs::Result<_>>()
            .and_then(Image::new);
        let found = image.and_then(|image| {
            upper::check_upper_above(&layout.fs(record.id), work.as_deref(), &image)
        });
        match found {
            Ok(found) => {
                let found = found.into_iter().filter(|finding| is_told(record, finding));
                findings.extend(found.map(|finding| Finding::Upper {
                    key: key.clone(),
                    finding,
                }));
            }
            Err(error) => findings.push(Finding::Unreadable {
                key: key.clone(),
                reason: error.to_string(),
            }),
        }
    }
}

/// Whether a finding in an upper says something. Where the kernel's overlayfs held it, a file's
/// origin is its inode in an image mount: that may be gone, and nothing is lost with it, though
/// overlayfs then takes the impure mark from the directory. And it keeps a whiteout in its work
/// directory, of which it makes others.
fn is_told(record: &Record, finding: &upper::Finding) -> bool {
    use upper::Problem::{Leftover, NotImpure, OriginUnknown};
    record.upper == UpperMode::Union
        || !matches!(finding.problem, OriginUnknown | NotImpure { .. } | Leftover)
}

/// A snapshot and those that it stands on, its own first. `None` if the chain is broken: a parent must
/// be older than its child.
fn chain(by_key: &HashMap<&str, &Info>, info: &Info) -> Option<Vec<u64>> {
    let mut chain = vec![info.record.id];
    let mut at = info;
    while let Some(parent) = &at.record.parent {
        let below = by_key.get(parent.as_str())?;
        if below.record.id >= at.record.id {
            return None;
        }
        chain.push(below.record.id);
        at = below;
    }
    Some(chain)
}

#[cfg(test)]
mod tests;
