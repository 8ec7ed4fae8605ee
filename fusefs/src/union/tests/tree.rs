//! A whole tree as a value, to compare.

use std::collections::BTreeMap;

use super::*;

/// What can be seen of one file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    pub(super) kind: FileKind,
    pub(super) perm: u16,
    pub(super) owner: (u32, u32),
    pub(super) ino: u64,
    pub(super) nlink: u32,
    /// Not of directories: that of a merged one changes with its entries, and a crash may do it.
    pub(super) mtime: Option<crate::types::Timestamp>,
    /// The data, the target of a symlink, or the device number.
    pub(super) data: Vec<u8>,
    pub(super) xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// All paths of a union. Every listing is checked against the lookups.
pub(super) fn tree(union: &Union) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(PathBuf::new(), NodeId::ROOT)];
    while let Some((path, dir)) = pending.pop() {
        let mut entries = Vec::new();
        union
            .readdir(dir, 0, &mut |entry| {
                entries.push(entry.clone());
                true
            })
            .unwrap();
        for listed in entries {
            if listed.name == "." || listed.name == ".." {
                continue;
            }
            let path = path.join(&listed.name);
            let entry = union.lookup(dir, &listed.name).unwrap();
            let entry = entry.unwrap_or_else(|| panic!("{path:?} is listed, but not there"));
            assert_eq!(listed.ino, entry.attr.ino, "d_ino of {path:?}");
            assert_eq!(listed.kind, entry.attr.kind, "d_type of {path:?}");
            let seen = seen(union, &entry);
            if seen.kind == FileKind::Directory {
                pending.push((path.clone(), entry.node));
            }
            assert!(found.insert(path.clone(), seen).is_none(), "{path:?} twice");
        }
    }
    found
}

fn seen(union: &Union, entry: &Entry) -> Seen {
    let attr = union.getattr(entry.node, None).unwrap();
    let data = match attr.kind {
        FileKind::Regular => content(union, entry.node, attr.size),
        FileKind::Symlink => union.readlink(entry.node).unwrap().into_encoded_bytes(),
        _ => attr.rdev.to_le_bytes().to_vec(),
    };
    let names = union.listxattr(entry.node).unwrap();
    let names = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let xattrs = names.map(|name| {
        let name = OsStr::from_bytes(name);
        (name.to_owned(), union.getxattr(entry.node, name).unwrap())
    });
    Seen {
        kind: attr.kind,
        perm: attr.perm,
        owner: (attr.uid, attr.gid),
        ino: attr.ino.0,
        nlink: attr.nlink,
        mtime: (attr.kind != FileKind::Directory).then_some(attr.mtime),
        data,
        xattrs: xattrs.collect(),
    }
}

fn content(union: &Union, node: NodeId, size: u64) -> Vec<u8> {
    let opened = union.open(ROOT, node, OFlags::RDONLY);
    let opened = opened.unwrap_or_else(|e| panic!("open {:?}: {e}", union.node(node)));
    let mut buffer = vec![0; usize::try_from(size).unwrap() + 1];
    let count = union.read(opened.fh, 0, &mut buffer).unwrap();
    union.release(opened.fh);
    buffer.truncate(count);
    buffer
}
