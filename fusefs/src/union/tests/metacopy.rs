//! Files of which the upper, or a layer, has the attributes alone.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::*;
use crate::sys::change::faults::{self, Fault};

const METACOPY: &str = "trusted.overlay.metacopy";
const REDIRECT: &str = "trusted.overlay.redirect";
const ORIGIN: &str = "trusted.overlay.origin";

fn place(path: &Path) -> Place {
    let parent = crate::sys::beneath::open_root(path.parent().unwrap()).unwrap();
    Place::at(&Arc::new(parent), path.file_name().unwrap())
}

fn is_metacopy(path: &Path) -> bool {
    place(path).xattr(OsStr::new(METACOPY)).unwrap().is_some()
}

fn chmod(union: &Union, path: &str, mode: u32) {
    let change = SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    union
        .setattr(ROOT, walk(union, path).node, None, &change)
        .unwrap();
}

fn rename(union: &Union, from: &str, to: &str) {
    let root = NodeId::ROOT;
    let (from, to) = (OsStr::new(from), OsStr::new(to));
    union
        .rename(root, from, root, to, RenameFlags::empty())
        .unwrap();
}

/// A layer's file that has attributes and a length, and its data at another place below.
fn hollow(path: &Path, size: u64, redirect: Option<&str>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(path).unwrap().set_len(size).unwrap();
    let place = place(path);
    let set = |name: &str, value: &[u8]| {
        let flags = XattrFlags::empty();
        place.set_xattr(OsStr::new(name), value, flags).unwrap();
    };
    set(METACOPY, b"");
    if let Some(redirect) = redirect {
        set(REDIRECT, redirect.as_bytes());
    }
}

#[test]
fn a_change_of_attributes_copies_no_data_and_hands_nothing_over() {
    let bed = Bed::new();
    bed.lower("file", "image");
    let union = bed.union();
    let before = walk(&union, "file");
    let reader = union.open(ROOT, before.node, OFlags::RDONLY).unwrap();
    chmod(&union, "file", 0o600);
    assert!(is_metacopy(&bed.path("upper/file")));
    let after = walk(&union, "file");
    assert_eq!((after.node, after.attr.ino), (before.node, before.attr.ino));
    assert_eq!((after.attr.perm, after.attr.size), (0o600, 5));
    assert_eq!(after.attr.mtime, before.attr.mtime);
    assert_eq!(read(&union, "file"), "image");
    union.release(reader.fh);
    drop(union);
    let union = bed.union();
    assert_eq!(walk(&union, "file").attr.ino, before.attr.ino);
    assert_eq!(read(&union, "file"), "image");
    assert_eq!(walk(&union, "file").attr.perm, 0o600);
}

#[test]
fn switched_off_all_data_are_copied() {
    let bed = Bed::new();
    bed.lower("file", "image").lower("read", "image");
    let union = bed.union().metacopy(false);
    let before = walk(&union, "file");
    chmod(&union, "file", 0o600);
    assert_eq!(marks_of(&bed.path("upper/file")), [ORIGIN]);
    assert_eq!(fs::read(bed.path("upper/file")).unwrap(), b"image");
    assert_eq!(walk(&union, "file").node, before.node);
    // With somebody reading, another node has the copy.
    let reader = union.open(ROOT, walk(&union, "read").node, OFlags::RDONLY);
    chmod(&union, "read", 0o640);
    assert_eq!(walk(&union, "read").attr.perm, 0o640);
    assert_eq!(read(&union, "read"), "image");
    union.release(reader.unwrap().fh);
}

/// Which of these marks a file has.
fn marks_of(path: &Path) -> Vec<&'static str> {
    [METACOPY, REDIRECT, ORIGIN]
        .into_iter()
        .filter(|name| place(path).xattr(OsStr::new(name)).unwrap().is_some())
        .collect()
}

#[test]
fn a_file_gets_the_marks_that_it_needs_when_it_needs_them() {
    let bed = Bed::new();
    bed.lower("file", "image").lower("linked", "second");
    let union = bed.union();
    let before = ["file", "linked"].map(|name| walk(&union, name).attr.ino);
    for name in ["file", "linked"] {
        chmod(&union, name, 0o600);
        assert_eq!(marks_of(&bed.path("upper").join(name)), [METACOPY]);
    }
    rename(&union, "file", "moved");
    let (root, other) = (NodeId::ROOT, OsStr::new("other"));
    let node = walk(&union, "linked").node;
    union.link(node, root, other).unwrap();
    union.unlink(root, OsStr::new("linked")).unwrap();
    let numbers = |union: &Union| ["moved", "other"].map(|name| walk(union, name).attr.ino);
    for name in ["moved", "other"] {
        assert_eq!(
            marks_of(&bed.path("upper").join(name)),
            [METACOPY, REDIRECT]
        );
    }
    drop(union);

    let union = bed.union();
    assert_eq!(numbers(&union), before);
    assert_eq!(read(&union, "moved"), "image");
    assert_eq!(read(&union, "other"), "second");
    for name in ["moved", "other"] {
        write(&union, name, "S");
        let marks = marks_of(&bed.path("upper").join(name));
        assert_eq!(marks, [REDIRECT, ORIGIN]);
    }
    drop(union);

    let union = bed.union();
    assert_eq!(numbers(&union), before);
    assert_eq!(read(&union, "moved"), "Smage");
}

#[test]
fn the_data_come_with_the_first_write_and_leave_the_times_alone() {
    let bed = Bed::new();
    bed.lower("file", "image");
    let union = bed.union();
    chmod(&union, "file", 0o600);
    let before = walk(&union, "file").attr;
    let node = walk(&union, "file").node;
    let writer = union.open(ROOT, node, OFlags::RDWR).unwrap();
    assert!(!is_metacopy(&bed.path("upper/file")));
    assert_eq!(walk(&union, "file").attr.mtime, before.mtime);
    union.write(writer.fh, 0, b"I", false).unwrap();
    union.release(writer.fh);
    assert_eq!(read(&union, "file"), "Image");
    assert_eq!(fs::read_to_string(bed.path("upper/file")).unwrap(), "Image");
}

#[test]
fn a_writer_of_a_file_that_others_read_gets_a_node_of_its_own_then() {
    let bed = Bed::new();
    bed.lower("file", "image");
    let union = bed.union();
    let old = walk(&union, "file").node;
    let reader = union.open(ROOT, old, OFlags::RDONLY).unwrap();
    chmod(&union, "file", 0o600);
    let refused = union.open(ROOT, old, OFlags::RDWR).unwrap_err();
    assert!(matches!(refused, Error::HandedOver), "{refused}");
    write(&union, "file", "I");
    let mut buffer = [0; 5];
    union.read(reader.fh, 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"image");
    assert_eq!(read(&union, "file"), "Image");
}

#[test]
fn its_data_are_found_from_any_name_that_it_gets() {
    let bed = Bed::new();
    bed.lower("file", "image").lower("dir/inner", "deep");
    {
        let union = bed.union();
        rename(&union, "file", "moved");
        let node = walk(&union, "moved").node;
        (union.link(node, NodeId::ROOT, OsStr::new("linked"))).unwrap();
        let inner = walk(&union, "dir/inner").node;
        (union.link(inner, NodeId::ROOT, OsStr::new("inner"))).unwrap();
        rename(&union, "dir", "other");
    }
    let union = bed.union();
    assert!(is_metacopy(&bed.path("upper/moved")));
    for (path, data) in [
        ("moved", "image"),
        ("linked", "image"),
        ("inner", "deep"),
        ("other/inner", "deep"),
    ] {
        assert_eq!(read(&union, path), data, "{path}");
    }
    write(&union, "linked", "I");
    assert_eq!(read(&union, "moved"), "Image");
    let links = walk(&union, "moved").attr;
    assert_eq!(
        (links.ino, links.nlink),
        (walk(&union, "linked").attr.ino, 2)
    );
}

#[test]
fn sealing_gives_every_file_its_data() {
    let bed = Bed::new();
    bed.lower("a/b/file", "image").lower("x", "linked");
    fs::hard_link(bed.path("lower/x"), bed.path("lower/a/y")).unwrap();
    {
        let union = bed.union();
        chmod(&union, "a/b/file", 0o600);
        chmod(&union, "x", 0o600);
        union.seal().unwrap();
    }
    for (path, data) in [("a/b/file", "image"), ("x", "linked"), ("a/y", "linked")] {
        let path = bed.path("upper").join(path);
        assert!(!is_metacopy(&path), "{path:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), data, "{path:?}");
    }
}

#[test]
fn truncating_one_takes_no_data_of_the_image() {
    let bed = Bed::new();
    bed.lower("file", "image");
    let union = bed.union();
    chmod(&union, "file", 0o600);
    let truncate = OFlags::WRONLY | OFlags::TRUNC;
    let node = walk(&union, "file").node;
    let opened = union.open(ROOT, node, truncate).unwrap();
    union.release(opened.fh);
    assert_eq!(read(&union, "file"), "");
    drop(union);
    assert_eq!(read(&bed.union(), "file"), "");
}

/// The copy is written into the file that everybody sees the attributes of.
#[test]
fn a_copy_of_data_that_fails_leaves_no_trace() {
    for flags in [OFlags::RDWR, OFlags::RDWR | OFlags::TRUNC] {
        let mut refused = 0;
        for after in 0.. {
            let bed = Bed::new();
            bed.lower("file", "image");
            let union = bed.union();
            chmod(&union, "file", 0o600);
            let before = walk(&union, "file");
            let open = || union.open(ROOT, before.node, flags);
            let (opened, tried) = faults::with(Fault::FailAfter(after, Errno::NOSPC), open);
            if tried <= after {
                break;
            }
            if opened.is_err() {
                refused += 1;
                let now = walk(&union, "file").attr;
                let known = (before.attr.size, before.attr.mtime);
                assert_eq!((now.size, now.mtime), known, "{after}");
                assert_eq!(read(&union, "file"), "image");
            }
        }
        assert!(refused >= 2, "{refused}");
    }
}

#[test]
fn a_truncation_that_a_crash_stops_leaves_the_length() {
    for after in 0..2 {
        let bed = Bed::new();
        bed.lower("file", "image");
        {
            let union = bed.union();
            chmod(&union, "file", 0o600);
            let node = walk(&union, "file").node;
            let flags = OFlags::RDWR | OFlags::TRUNC;
            let (opened, _) =
                faults::with(Fault::CrashAfter(after), || union.open(ROOT, node, flags));
            opened.unwrap_err();
        }
        let union = bed.union();
        assert_eq!(walk(&union, "file").attr.size, 5, "{after}");
        assert_eq!(read(&union, "file"), "image", "{after}");
    }
}

#[test]
fn a_layer_may_have_the_attributes_alone_too() {
    let bed = Bed::new();
    let layers: Vec<_> = ["upper", "work", "lower"]
        .map(|layer| bed.path(layer))
        .into();
    bed.lower("d/data", "image");
    hollow(&layers[1].join("d/middle"), 5, Some("/d/data"));
    hollow(&layers[1].join("d/data"), 5, None);
    hollow(&layers[0].join("top"), 5, Some("/d/middle"));
    hollow(&layers[0].join("d/data"), 5, None);
    hollow(&layers[0].join("d/beside"), 5, Some("middle"));
    let union = Union::new(Bed::image_of(&layers), None).unwrap();
    for path in ["top", "d/data", "d/middle", "d/beside"] {
        assert_eq!(read(&union, path), "image", "{path}");
    }
    let blocks = fs::metadata(layers[2].join("d/data")).unwrap().blocks();
    assert_eq!(walk(&union, "top").attr.blocks, blocks);
}

#[test]
fn one_whose_data_are_nowhere_is_an_error_and_not_zeros() {
    let bed = Bed::new();
    bed.lower("dir/x", "");
    let upper = |name: &str| bed.path("upper").join(name);
    hollow(&upper("lost"), 1 << 16, None);
    hollow(&upper("misled"), 1 << 16, Some("/dir"));
    hollow(&upper("outside"), 1 << 16, Some("/../../etc/passwd"));
    let union = bed.union();
    for name in ["lost", "misled"] {
        let node = walk(&union, name).node;
        let error = union.open(ROOT, node, OFlags::RDONLY).unwrap_err();
        assert_eq!(error.errno(), rustix::io::Errno::IO, "{name}: {error}");
    }
    let mut listed = Vec::new();
    let list = &mut |entry: &crate::types::DirEntry, found: Option<&Entry>| {
        listed.push((entry.name.clone(), found.is_some()));
        true
    };
    union.readdirplus(NodeId::ROOT, 0, list).unwrap();
    assert!(listed.contains(&("outside".into(), false)), "{listed:?}");
    assert!(listed.contains(&("lost".into(), true)), "{listed:?}");
    let refused = union.lookup(NodeId::ROOT, OsStr::new("outside"));
    assert_eq!(refused.unwrap_err().errno(), rustix::io::Errno::IO);
}

/// Both threads begin with one node; whoever is second must see what the first has done to it.
#[test]
fn a_rename_and_a_write_at_once_both_happen() {
    for _ in 0..200 {
        let bed = Bed::new();
        bed.lower("file", "image");
        let union = bed.union();
        let node = walk(&union, "file").node;
        let reader = union.open(ROOT, node, OFlags::RDONLY).unwrap();
        chmod(&union, "file", 0o600);
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                let refused = union.open(ROOT, node, OFlags::RDWR).unwrap_err();
                assert!(matches!(refused, Error::HandedOver), "{refused}");
            });
            scope.spawn(|| {
                start.wait();
                rename(&union, "file", "moved");
                chmod(&union, "moved", 0o640);
            });
        });
        let moved = walk(&union, "moved");
        assert_eq!((moved.attr.perm, moved.attr.size), (0o640, 5));
        write(&union, "moved", "I");
        assert_eq!(read(&union, "moved"), "Image");
        let old = union.lookup(NodeId::ROOT, OsStr::new("file")).unwrap();
        assert!(old.is_none());
        union.release(reader.fh);
    }
}
