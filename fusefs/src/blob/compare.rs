//! Whether what was told of a layer is what its archive says.
//!
//! A layer with a table of contents is served as that table says, long before anybody has seen the
//! archive. Once all of it was read, both make a tree by the same rules, and the two trees have to be
//! one: else another host, which unpacks the archive, would see other files under the same chain ID.
//!
//! One thing a table may tell less exactly: the time of a file. eStargz rounds it to a second.
//!
//! One thing no tree shows: whether a directory has an entry of its own. Without one it looks as
//! containerd makes such a directory, and an entry may say the same. But unpacking goes through a
//! symlink of the layers below where there is no entry, and replaces it where there is one. So which
//! directories were told to have none is noted beside the tree ([`implied_digest`]).

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::Flaw;
use super::digest::Digest;
use super::table::Table;
use super::tree::Tree;
use crate::error::Result;
use crate::index::{Index, Kind, Stamp};
use crate::layer::EntryKind;
use crate::types::{FileKind, Ino, Timestamp};

/// How far the time of a file may be from the one in the archive, in nanoseconds, and less.
const ROUNDED: i128 = 1_000_000_000;

/// A digest of the paths of directories that a layer has files in, but no entry for
/// ([`Contents::implied`](super::Contents::implied)), whatever their order.
pub fn implied_digest(mut implied: Vec<PathBuf>) -> Digest {
    implied.sort_unstable();
    implied.dedup();
    let mut all = Vec::new();
    for path in &implied {
        all.extend_from_slice(path.as_os_str().as_bytes());
        all.push(0);
    }
    Digest::of(&all)
}

/// Holds what was told of a layer, its index and its table, against the tree of its archive; and, if it
/// was noted, the digest of the directories that were told to have no entry. Answers the first difference.
pub(crate) fn compare(
    told: &Index,
    table: &Table,
    implied: Option<Digest>,
    archive: &Tree,
) -> Result<Option<Flaw>> {
    let digests = archive.files().map(|(ino, data)| (ino, data.digest));
    let digests: HashMap<Ino, Option<Digest>> = digests.collect();
    let stamp = Stamp {
        ino: 0,
        ctime: Timestamp::default(),
    };
    let bytes = archive.index(stamp)?;
    let found = Index::of_bytes(bytes, Kind::Layer)?;
    let mut comparing = Comparing {
        told,
        table,
        found: &found,
        digests,
        links: HashMap::new(),
    };
    let difference = comparing.walk().err();
    Ok(difference.or_else(|| {
        let (found, wanted) = (implied?, implied_digest(archive.implied()));
        (found != wanted).then_some(Flaw::Digest {
            what: "what was told of directories without an entry of their own",
            found,
            wanted,
        })
    }))
}

struct Comparing<'c> {
    told: &'c Index,
    table: &'c Table,
    found: &'c Index,
    /// The digests of the archive's files, by their numbers in `found`.
    digests: HashMap<Ino, Option<Digest>>,
    /// Which file of `found` a file with several names is. Since both have as many names, it is no
    /// other one's.
    links: HashMap<Ino, Ino>,
}

impl Comparing<'_> {
    fn walk(&mut self) -> Result<(), Flaw> {
        let mut rest = vec![(Index::ROOT, Index::ROOT)];
        while let Some((told, found)) = rest.pop() {
            self.entry(told, found)
                .map_err(|what| flaw(self.told, told, what))?;
            let mut others = self.found.children(found).peekable();
            for told in self.told.children(told) {
                let name = self.told.name(told);
                // Both in the order of their names.
                match others.next_if(|other| self.found.name(*other) <= name) {
                    Some(other) if self.found.name(other) == name => rest.push((told, other)),
                    Some(other) => return Err(flaw(self.found, other, "it is not told of")),
                    None => return Err(flaw(self.told, told, "the archive has no such entry")),
                }
            }
            if let Some(other) = others.next() {
                return Err(flaw(self.found, other, "it is not told of"));
            }
        }
        Ok(())
    }

    /// Holds two entries against each other, but for what is in them.
    fn entry(&mut self, told: u32, found: u32) -> Result<(), &'static str> {
        if self.told.kind(told) != self.found.kind(found) {
            return Err("the archive has something of another kind there");
        }
        let EntryKind::File(kind) = self.told.kind(told) else {
            return Ok(());
        };
        let (ours, theirs) = (self.told.attr(told), self.found.attr(found));
        if ours.perm != theirs.perm {
            return Err("the archive gives it other permissions");
        }
        if (ours.uid, ours.gid) != (theirs.uid, theirs.gid) {
            return Err("the archive gives it another owner");
        }
        if ours.size != theirs.size {
            return Err("the archive gives it another size");
        }
        if ours.rdev != theirs.rdev {
            return Err("the archive gives it another device");
        }
        if (nanos(ours.mtime) - nanos(theirs.mtime)).abs() >= ROUNDED {
            return Err("the archive gives it another time");
        }
        if self.told.below(told) != self.found.below(found) {
            return Err("in the archive it hides something else of the layers below");
        }
        if kind == FileKind::Symlink && self.told.text(told) != self.found.text(found) {
            return Err("the archive gives it another target");
        }
        if xattrs(self.told, told) != xattrs(self.found, found) {
            return Err("the archive gives it other extended attributes");
        }
        // What number a directory has follows from what is in it.
        if kind != FileKind::Directory {
            if ours.nlink != theirs.nlink {
                return Err("the archive gives it another number of names");
            }
            let known = (ours.nlink > 1).then(|| *self.links.entry(ours.ino).or_insert(theirs.ino));
            if known.is_some_and(|known| known != theirs.ino) {
                return Err("the archive gives the name to another file");
            }
        }
        if kind == FileKind::Regular {
            let told = self.table.find(ours.ino).map(|file| file.digest);
            let found = self.digests.get(&theirs.ino).copied().flatten();
            if told.is_none() || told != found {
                return Err("the archive gives it other bytes");
            }
        }
        Ok(())
    }
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

fn xattrs(index: &Index, entry: u32) -> Vec<(OsString, Option<Vec<u8>>)> {
    let names = index.xattr_names(entry).into_iter();
    let valued = names.map(|name| {
        let value = index.xattr(entry, &name);
        (name, value)
    });
    let mut all: Vec<_> = valued.collect();
    all.sort_unstable();
    all
}

fn flaw(index: &Index, entry: u32, what: &'static str) -> Flaw {
    Flaw::Entry {
        path: index.path(entry),
        what,
    }
}
