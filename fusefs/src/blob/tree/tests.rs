//! What an archive makes, and which archives are refused.

use super::*;
use crate::blob::digest::Digest;
use crate::blob::entry::Chunk;
use crate::index::Index;
use crate::types::FileKind::{Directory, Regular, Symlink};

fn told(name: &str, what: What) -> Told {
    Told {
        name: name.into(),
        what,
        perm: 0o644,
        uid: 1,
        gid: 2,
        mtime: Timestamp { secs: 3, nanos: 4 },
        xattrs: Vec::new(),
    }
}

fn file(name: &str) -> Told {
    sized(name, 5)
}

fn sized(name: &str, size: u64) -> Told {
    let data = Data {
        size,
        digest: None,
        chunks: vec![Chunk {
            offset: 0,
            len: size,
            digest: Digest::of(name.as_bytes()),
            stretch: 0..1,
            skip: 0,
        }],
    };
    told(name, What::Regular(data))
}

fn dir(name: &str) -> Told {
    told(name, What::Directory)
}

fn link(name: &str, target: &str) -> Told {
    told(name, What::HardLink(target.into()))
}

fn symlink(name: &str, target: &str) -> Told {
    told(name, What::Symlink(target.into()))
}

fn tree(entries: Vec<Told>) -> Result<Tree, Flaw> {
    Tree::new(entries, &Limits::default())
}

const STAMP: Stamp = Stamp {
    ino: 1,
    ctime: Timestamp { secs: 1, nanos: 1 },
};

/// The index of a tree, which is verified on the way.
fn indexed(entries: Vec<Told>) -> Index {
    let tree = tree(entries).unwrap();
    Index::of_bytes(tree.index(STAMP).unwrap(), Kind::Layer).unwrap()
}

/// All paths of an index in the order of their names, with what they are.
fn all(index: &Index) -> Vec<(String, EntryKind)> {
    let mut found = Vec::new();
    let mut rest = vec![Index::ROOT];
    while let Some(dir) = rest.pop() {
        for child in index.children(dir) {
            let path = index.path(child).to_string_lossy().into_owned();
            found.push((path, index.kind(child)));
            if index.kind(child) == EntryKind::File(Directory) {
                rest.push(child);
            }
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

#[track_caller]
fn assert_makes(entries: Vec<Told>, wanted: &[(&str, EntryKind)]) {
    let wanted: Vec<_> = wanted
        .iter()
        .map(|(path, kind)| ((*path).to_owned(), *kind))
        .collect();
    assert_eq!(all(&indexed(entries)), wanted);
}

#[track_caller]
fn assert_refused(entries: Vec<Told>, why: &str) {
    match tree(entries) {
        Err(Flaw::Entry { what, .. }) => assert!(what.contains(why), "{what}"),
        other => panic!("{other:?}"),
    }
}

const DIR: EntryKind = EntryKind::File(Directory);
const FILE: EntryKind = EntryKind::File(Regular);
const GONE: EntryKind = EntryKind::Whiteout;

#[test]
fn names_are_the_same_however_they_are_written() {
    let entries = vec![
        dir("./"),
        dir("usr/"),
        file("./usr/one"),
        file("/usr//./two"),
    ];
    assert_makes(
        entries,
        &[("usr", DIR), ("usr/one", FILE), ("usr/two", FILE)],
    );
}

#[test]
fn attributes_are_those_that_were_told() {
    let mut root = dir("/");
    root.perm = 0o1777;
    let mut one = file("one");
    one.xattrs = vec![
        ("user.a".into(), b"x".to_vec()),
        ("trusted.overlay.redirect".into(), b"/etc".to_vec()),
        ("trusted.overlay.opaque".into(), b"y".to_vec()),
    ];
    let index = indexed(vec![root, one, symlink("to", "../../one"), dir("dir/in")]);
    let attr = |path: &str| index.attr(index.find_path(Path::new(path)).unwrap());
    assert_eq!((attr("").perm, attr("").nlink), (0o1777, 3));
    let one = attr("one");
    assert_eq!((one.perm, one.uid, one.gid, one.size), (0o644, 1, 2, 5));
    assert_eq!(one.mtime, Timestamp { secs: 3, nanos: 4 });
    assert_eq!((one.kind, one.nlink), (Regular, 1));
    let record = index.find_path(Path::new("one")).unwrap();
    assert_eq!(index.xattr_names(record), ["user.a"], "no mark comes in");
    let to = index.find_path(Path::new("to")).unwrap();
    assert_eq!(index.text(to), "../../one");
    assert_eq!((attr("to").kind, attr("to").size), (Symlink, 9));
    assert_eq!((attr("dir").perm, attr("dir").nlink), (0o755, 3));
}

#[test]
fn directories_that_nobody_told_of_are_named() {
    let entries = vec![file("a/b/one"), dir("a"), file("c/two")];
    let mut implied = tree(entries).unwrap().implied();
    implied.sort();
    assert_eq!(implied, [Path::new("a/b"), Path::new("c")]);
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let entries = vec![dir("d"), file("d/one"), dir("d"), file("f"), file("f")];
    assert_makes(entries, &[("d", DIR), ("d/one", FILE), ("f", FILE)]);
    let entries = vec![dir("d"), file("d/one"), file("d")];
    assert_makes(entries, &[("d", FILE)]);
    let index = indexed(vec![file("d"), dir("d")]);
    let record = index.find_path(Path::new("d")).unwrap();
    assert_eq!(
        index.below(record),
        Below::Nothing,
        "the file has hidden it"
    );
}

#[test]
fn hard_links_are_one_file() {
    let entries = vec![file("one"), link("two", "/one"), link("d/three", "two")];
    let made = tree(entries.clone()).unwrap();
    assert_eq!(made.files().count(), 1);
    let index = indexed(entries);
    let attr = |path: &str| index.attr(index.find_path(Path::new(path)).unwrap());
    assert_eq!(attr("one"), attr("d/three"));
    assert_eq!(attr("two").nlink, 3);
    // Names that go.
    let index = indexed(vec![file("d/one"), link("two", "d/one"), file("d")]);
    let two = index.attr(index.find_path(Path::new("two")).unwrap());
    assert_eq!(two.nlink, 1);
    let index = indexed(vec![file("one"), link("one", "one")]);
    assert_eq!(
        index.attr(index.find_path(Path::new("one")).unwrap()).nlink,
        1
    );
}

#[test]
fn files_that_lost_their_names_are_not_listed() {
    let made = tree(vec![
        dir("d"),
        sized("d/one", 7),
        file("d"),
        file("x"),
        file("x"),
    ])
    .unwrap();
    let sizes: Vec<_> = made.files().map(|(_, data)| data.size).collect();
    assert_eq!(sizes, [5, 5]);
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let entries = vec![file(".wh.gone"), file("d/.wh.gone"), file(".wh..wh.aufs")];
    assert_makes(entries, &[("d", DIR), ("d/gone", GONE), ("gone", GONE)]);
    for entries in [
        vec![file("f"), file(".wh.f")],
        vec![file(".wh.f"), file("f")],
    ] {
        assert_makes(entries, &[("f", FILE)]);
    }
    for entries in [
        vec![file("d/f"), file(".wh.d")],
        vec![file(".wh.d"), file("d/f")],
        vec![file(".wh.d"), dir("d"), file("d/f")],
        vec![file("d/f"), file("d/.wh..wh..opq")],
        vec![file("d/.wh..wh..opq"), file("d/f"), dir("d")],
    ] {
        let index = indexed(entries);
        let record = index.find_path(Path::new("d")).unwrap();
        assert_eq!(index.below(record), Below::Nothing);
        assert!(index.find_path(Path::new("d/f")).is_some());
    }
    let index = indexed(vec![dir("d")]);
    let record = index.find_path(Path::new("d")).unwrap();
    assert_eq!(index.below(record), Below::SamePath);
    // As containerd leaves it on the disk.
    assert_makes(
        vec![told("null", What::CharDevice(0, 0))],
        &[("null", GONE)],
    );
}

#[test]
fn nothing_leads_out_of_the_layer() {
    for name in ["..", "../x", "a/../../x", "a/..", "/../x", "./../x"] {
        assert_refused(vec![file(name)], "..");
        assert_refused(vec![file("f"), link("l", name)], "..");
    }
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        assert_refused(vec![file(name)], "no name");
    }
    assert_refused(
        vec![symlink("to", "/etc"), file("to/passwd")],
        "no directory",
    );
    assert_refused(vec![file("f"), file("f/in")], "no directory");
    assert_refused(vec![file(".wh.d/in")], "whiteout");
    assert_refused(vec![file("/")], "root");
}

#[test]
fn links_to_what_is_not_there_are_refused() {
    assert_refused(vec![link("l", "below")], "not in the layer");
    assert_refused(vec![link("l", "l")], "not in the layer");
    assert_refused(vec![link("l", "later"), file("later")], "not in the layer");
    assert_refused(vec![file(".wh.f"), link("l", "f")], "not in the layer");
    assert_refused(vec![dir("d"), link("l", "d")], "directory");
    assert_refused(vec![dir("d"), link("l", "")], "directory");
}

#[test]
fn names_that_no_file_system_takes_are_refused() {
    let long = "n".repeat(256);
    assert_refused(vec![file("a\0b")], "NUL");
    assert_refused(vec![symlink("s", "")], "target");
    assert_refused(vec![symlink("s", &"t/".repeat(2048))], "4095");
    assert_refused(vec![symlink("s", "a\0")], "NUL");
    for name in ["", "user.\0", &long] {
        let mut one = file("one");
        one.xattrs = vec![(name.into(), Vec::new())];
        assert_refused(vec![one], "extended attribute");
    }
}
