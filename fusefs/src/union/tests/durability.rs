//! What must be left of a file: its name after a power loss, its last link, a link for each name
//! once it is sealed.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::sys::change::faults::{self, Fault};

#[test]
fn a_removed_file_that_only_the_image_has_counts_no_link() {
    let bed = Bed::new();
    bed.lower("file", "image").lower("d/x", "");
    let union = bed.union();
    let file = walk(&union, "file").node;
    let opened = union.open(ROOT, file, OFlags::RDONLY).unwrap();
    union.unlink(NodeId::ROOT, OsStr::new("file")).unwrap();
    assert_eq!(union.getattr(file, Some(opened.fh)).unwrap().nlink, 0);
    union.release(opened.fh);
}

/// fdatasync(2) on the host takes no rename along.
#[test]
fn the_first_fdatasync_after_a_rename_of_ours_takes_the_name_along() {
    let bed = Bed::new();
    bed.lower("copied", "image").lower("replaced", "image");
    bed.lower("synchronous", "image");
    let union = bed.union();
    let name_synced = |path: &str| {
        let node = union.node(walk(&union, path).node).unwrap();
        node.state.lock().name_synced
    };
    write(&union, "copied", "I");
    let name = OsStr::new("replaced");
    union.unlink(NodeId::ROOT, name).unwrap();
    let flags = OFlags::RDWR;
    let (_, opened) = (union.create(ROOT, NodeId::ROOT, name, 0o600, flags)).unwrap();
    union.release(opened.fh);
    let opened = union.open(
        ROOT,
        walk(&union, "synchronous").node,
        flags | OFlags::DSYNC,
    );
    union.release(opened.unwrap().fh);
    assert!(name_synced("synchronous"));
    for path in ["copied", "replaced"] {
        assert!(!name_synced(path), "{path}");
        let opened = union.open(ROOT, walk(&union, path).node, flags).unwrap();
        union.fsync(opened.fh, true).unwrap();
        union.release(opened.fh);
        assert!(name_synced(path), "{path}");
    }
}

/// The kernel hands such a write on, and asks for no fsync after it.
#[test]
fn a_synchronous_write_to_a_set_id_file_is_durable() {
    let bed = Bed::new();
    bed.lower("plain", "image").lower("set-id", "image");
    let mode = fs::Permissions::from_mode(0o4755);
    fs::set_permissions(bed.path("lower/set-id"), mode).unwrap();
    let union = bed.union();
    let syncs = |path: &str, opened_with: OFlags, written_with: OFlags| {
        let node = walk(&union, path).node;
        let opened = union.open(ROOT, node, OFlags::RDWR | opened_with).unwrap();
        union.write(opened.fh, 0, b"I", false).unwrap();
        let written = || union.written(opened.fh, written_with).unwrap();
        let ((), steps) = faults::with(Fault::Never, written);
        union.release(opened.fh);
        steps
    };
    for flag in [OFlags::DSYNC, OFlags::SYNC] {
        assert_eq!(syncs("set-id", flag, flag), 1);
        // Passthrough, or an fsync that the kernel asks for.
        assert_eq!(syncs("plain", flag, flag), 0);
    }
    assert_eq!(syncs("set-id", OFlags::empty(), OFlags::empty()), 0);
    // RWF_DSYNC of one write alone: the name has been synced above.
    assert_eq!(syncs("set-id", OFlags::empty(), OFlags::DSYNC), 1);
}

#[test]
fn the_index_forgets_a_file_whose_names_are_all_removed() {
    let bed = linked_bed();
    let union = bed.union();
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    // Nothing was copied up before.
    union.unlink(NodeId::ROOT, a).unwrap();
    assert_eq!(walk(&union, "b").attr.nlink, 1);
    union.unlink(NodeId::ROOT, b).unwrap();
    assert_eq!(fs::read_dir(bed.path("work/index")).unwrap().count(), 0);
}

#[test]
fn a_deep_tree_is_sealed() {
    const DEPTH: usize = 1_500;
    let bed = linked_bed();
    let mut at = rustix::fs::open(bed.path("lower"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let root = rustix::fs::open(bed.path("lower"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    rustix::fs::linkat(&root, "a", &at, "c", rustix::fs::AtFlags::empty()).unwrap();
    let union = bed.union();
    let work = move || {
        write(&union, "a", "I");
        union.seal().unwrap();
    };
    let small = std::thread::Builder::new().stack_size(128 << 10);
    small.spawn(work).unwrap().join().unwrap();
    assert_eq!(fs::metadata(bed.path("upper/a")).unwrap().nlink(), 4);
}
