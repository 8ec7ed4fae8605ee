//! What stays in a cache, and what goes.

use std::fs::File;
use std::path::Path;

use lamina_fusefs::blob::{self, Digest};

use super::*;
use crate::registry;

fn open(root: &Path, limits: Limits) -> (Arc<Lazy>, Layout) {
    let layout = Layout::create(root).expect("layout");
    let lazy = Lazy::open(
        &layout,
        &registry::Options::default(),
        limits,
        blob::Limits::default(),
    )
    .expect("open");
    (lazy, layout)
}

/// Adds a file of a MiB.
fn add(lazy: &Lazy, byte: u8) -> File {
    let bytes = vec![byte; 1 << 20];
    let digest = Digest::of(&bytes);
    let added = lazy.cache.add(digest, [Ok(bytes)]).expect("add");
    added.expect("the right one")
}

fn limits(cache_mib: u64) -> Limits {
    Limits {
        cache_bytes: cache_mib << 20,
        free_percent: 0,
        ..Limits::default()
    }
}

#[test]
fn beyond_its_limit_a_cache_shrinks_below_it_and_keeps_what_is_open() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (lazy, _) = open(dir.path(), limits(10));
    let first = add(&lazy, 0);
    let mut before = None;
    for byte in 1..10 {
        drop(add(&lazy, byte));
    }
    limit(&lazy, &lazy.orders, &mut before).expect("limit");
    assert_eq!(lazy.cache.holds().expect("holds").files, 10);
    drop(add(&lazy, 10));
    limit(&lazy, &lazy.orders, &mut before).expect("limit");
    let holds = lazy.cache.holds().expect("holds");
    assert!((8..=9).contains(&holds.files), "{holds:?}");
    let oldest = Digest::of(&vec![0; 1 << 20]);
    assert!(lazy.cache.find(oldest, 1 << 20).expect("find").is_some());
    drop(first);
    // Of files that are all open none goes, until they are closed.
    let open: Vec<File> = (20..32).map(|byte| add(&lazy, byte)).collect();
    limit(&lazy, &lazy.orders, &mut before).expect("limit");
    assert!(lazy.cache.holds().expect("holds").files >= 12);
    drop(open);
    limit(&lazy, &lazy.orders, &mut before).expect("limit");
    assert!(lazy.cache.holds().expect("holds").files <= 9);
    lazy.close();
}

#[test]
fn what_is_not_whole_counts_and_whole_files_go_for_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (lazy, layout) = open(dir.path(), limits(10));
    for byte in 0..8 {
        drop(add(&lazy, byte));
    }
    let mut before = None;
    let mut limit = || limit(&lazy, &lazy.orders, &mut before).expect("limit");
    limit();
    assert!(lazy.orders.may_fill());
    // As a large file comes, of which nobody has all.
    let large = layout.cache().join("new/large");
    fs::write(&large, vec![7; 5 << 20]).expect("write");
    limit();
    let holds = lazy.cache.holds().expect("holds");
    assert!((3..=4).contains(&holds.files), "{holds:?}");
    // All that there may be is taken by it.
    fs::write(&large, vec![7; 11 << 20]).expect("write");
    limit();
    assert_eq!(lazy.cache.holds().expect("holds").files, 0);
    assert!(!lazy.orders.may_fill());
    fs::remove_file(&large).expect("remove");
    limit();
    assert!(lazy.orders.may_fill());
    lazy.close();
}

#[test]
fn what_no_layer_has_goes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (lazy, layout) = open(dir.path(), limits(0));
    drop(add(&lazy, 0));
    room::sweep(&lazy, &layout, &[]).expect("sweep");
    assert_eq!(lazy.cache.holds().expect("holds"), blob::Holds::default());
    lazy.close();
    // Closed, it hands out what it is given, and keeps nothing.
    drop(add(&lazy, 1));
    assert_eq!(lazy.cache.holds().expect("holds"), blob::Holds::default());
}

#[test]
fn what_comes_late_of_a_layer_that_was_removed_goes_too() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (lazy, layout) = open(dir.path(), limits(0));
    let mut gone = Gone::default();
    drop(add(&lazy, 0));
    let sweep = |gone: &mut Gone| gone.sweep(&lazy, &layout).expect("sweep");
    assert!(!sweep(&mut gone), "nothing was removed");
    gone.extend(vec![7]);
    assert!(sweep(&mut gone) && !sweep(&mut gone));
    drop(add(&lazy, 1));
    assert!(sweep(&mut gone) && !sweep(&mut gone));
    assert_eq!(lazy.cache.holds().expect("holds"), blob::Holds::default());
    lazy.close();
}
