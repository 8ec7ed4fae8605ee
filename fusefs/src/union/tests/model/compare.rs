//! The whole tree of a union, compared with the model's.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::OFlags;

use super::answer::{Answer, Stat, Step};
use super::driver::{read, stat_of};
use super::reference::{Id, Kind, Model, ROOT_ID};
use crate::error::Result;
use crate::types::{Attr, Caller, DirEntry, FileKind, NodeId};
use crate::union::Union;

const READER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// What is wrong.
pub(super) type Verdict = std::result::Result<(), String>;

/// Compares what one operation said.
pub(super) fn answers(expected: &Step, seen: &Step) -> Verdict {
    let equal = match (expected, seen) {
        (Ok(Answer::Anything), Ok(_)) => true,
        (Ok(Answer::Stat(expected)), Ok(Answer::Stat(seen))) => stats_agree(expected, seen),
        (expected, seen) => expected == seen,
    };
    if equal {
        return Ok(());
    }
    Err(format!(
        "expected {}, but got {}",
        short(expected),
        short(seen)
    ))
}

fn stats_agree(expected: &Stat, seen: &Stat) -> bool {
    let mtime = expected.mtime.or(seen.mtime);
    Stat {
        mtime,
        ..expected.clone()
    } == *seen
}

fn short(step: &Step) -> String {
    match step {
        Ok(Answer::Data(data)) => {
            format!("{} bytes {:?}..", data.len(), &data[..data.len().min(8)])
        }
        other => format!("{other:?}"),
    }
}

/// Compares everything that can be seen by paths. The model learns what it could not know: the
/// numbers of new inodes, the times of what was changed.
pub(super) fn trees(union: &Union, model: &mut Model) -> Verdict {
    let mut walk = Walk {
        union,
        model,
        by_ino: BTreeMap::new(),
        references: Vec::new(),
    };
    let result = walk.all();
    // The deepest first, as the kernel does.
    while let Some(node) = walk.references.pop() {
        union.forget(node, 1);
    }
    result
}

struct Walk<'a> {
    union: &'a Union,
    model: &'a mut Model,
    by_ino: BTreeMap<u64, Id>,
    references: Vec<NodeId>,
}

impl Walk<'_> {
    fn all(&mut self) -> Verdict {
        let root = self
            .union
            .getattr(NodeId::ROOT, None)
            .map_err(|e| e.to_string())?;
        self.file(".", NodeId::ROOT, ROOT_ID, &root)?;
        let mut pending = vec![(String::new(), NodeId::ROOT, ROOT_ID, root.ino.0, root.ino.0)];
        while let Some((path, node, id, ino, above)) = pending.pop() {
            let names = list(self.union, node).map_err(|e| format!("{path}: list: {e}"))?;
            let dots: Vec<_> = names.iter().take(2).map(|entry| entry.ino.0).collect();
            if dots != [ino, above] {
                return Err(format!(
                    "{path}: . and .. are {dots:?}, not {ino} and {above}"
                ));
            }
            let Kind::Directory(entries) = self.model.inodes[id].kind.clone() else {
                return Err(format!("{path} should be no directory"));
            };
            let mut shown: Vec<_> = names[2..].iter().map(|entry| entry.name.to_str()).collect();
            shown.sort_unstable();
            if !shown.iter().copied().eq(entries.keys().copied().map(Some)) {
                return Err(format!(
                    "{path:?} has {shown:?}, expected {:?}",
                    entries.keys()
                ));
            }
            for listed in &names[2..] {
                let name = listed.name.to_str().expect("compared above");
                let path = format!("{path}/{name}");
                let found = self.union.lookup(node, &listed.name);
                let found = found.map_err(|e| format!("{path}: lookup: {e}"))?;
                let entry = found.ok_or_else(|| format!("{path} is listed but not there"))?;
                self.references.push(entry.node);
                if (listed.ino, listed.kind) != (entry.attr.ino, entry.attr.kind) {
                    return Err(format!(
                        "{path}: listed as {listed:?}, but is {:?}",
                        entry.attr
                    ));
                }
                let id = entries[name];
                self.file(&path, entry.node, id, &entry.attr)?;
                if entry.attr.kind == FileKind::Directory {
                    pending.push((path, entry.node, id, entry.attr.ino.0, ino));
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &str, node: NodeId, id: Id, attr: &Attr) -> Verdict {
        let failed = |what: &str| {
            let what = format!("{path}: {what}: ");
            move |error: crate::error::Error| format!("{what}{error}")
        };
        let again = self.union.getattr(node, None).map_err(failed("getattr"))?;
        // The kernel takes either. (Looking at a directory changes when it was read.)
        let atime = attr.atime;
        if (Attr { atime, ..again }) != *attr {
            return Err(format!("{path}: lookup says {attr:?}, getattr {again:?}"));
        }
        self.learn_links(id, attr);
        let (expected, seen) = (self.model.stat(id), stat_of(attr));
        if !stats_agree(&expected, &seen) {
            return Err(format!("{path}: expected {expected:?}, but got {seen:?}"));
        }
        self.number(path, id, attr.ino.0)?;
        let shown = xattrs(self.union, node).map_err(failed("xattrs"))?;
        let wanted = self.model.xattrs(id);
        if shown != wanted {
            return Err(format!("{path}: xattrs {shown:?}, expected {wanted:?}"));
        }
        let content = match &self.model.inodes[id].kind {
            Kind::Regular(data) => {
                let opened = self.union.open(READER, node, OFlags::RDONLY);
                let opened = opened.map_err(failed("open"))?;
                let content = read(self.union, opened.fh);
                self.union.release(opened.fh);
                Some((content.map_err(failed("read"))?, data.as_slice()))
            }
            Kind::Symlink(target) => {
                let shown = self.union.readlink(node).map_err(failed("readlink"))?;
                Some((shown.into_encoded_bytes(), target.as_bytes()))
            }
            _ => None,
        };
        if let Some((content, wanted)) = content
            && content != wanted
        {
            let at = content.iter().zip(wanted).position(|(a, b)| a != b);
            return Err(format!(
                "{path}: other content at {at:?} of {}",
                wanted.len()
            ));
        }
        self.model.inodes[id].mtime = seen.mtime;
        Ok(())
    }

    /// A hidden link is not counted any more once the file is part of a new layer.
    fn learn_links(&mut self, id: Id, attr: &Attr) {
        let inode = &mut self.model.inodes[id];
        if std::mem::take(&mut inode.maybe_recounted) && attr.nlink == inode.names {
            inode.hidden = 0;
        }
    }

    /// One file has one number, and keeps it.
    fn number(&mut self, path: &str, id: Id, ino: u64) -> Verdict {
        let known = *self.model.inodes[id].ino.get_or_insert(ino);
        if known != ino {
            return Err(format!("{path}: st_ino was {known} and is {ino}"));
        }
        let other = *self.by_ino.entry(ino).or_insert(id);
        if other != id {
            return Err(format!("{path}: another file has st_ino {ino} too"));
        }
        Ok(())
    }
}

fn list(union: &Union, node: NodeId) -> Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    let listed = union.readdir(node, 0, &mut |entry| {
        entries.push(entry.clone());
        true
    });
    listed.map(|()| entries)
}

/// All extended attributes of a node.
pub(super) fn xattrs(union: &Union, node: NodeId) -> Result<BTreeMap<String, Vec<u8>>> {
    let list = union.listxattr(node)?;
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = OsStr::from_bytes(name);
            let text = name.to_str().expect("a name of ours").to_owned();
            Ok((text, union.getxattr(node, name)?))
        })
        .collect()
}
