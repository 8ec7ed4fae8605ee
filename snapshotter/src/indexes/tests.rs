//! Indexes come with their snapshots, go with them, and are made again when they are no good.

use std::path::Path;
use std::sync::Arc;

use lamina_fusefs::image::Image;

use super::*;
use crate::check::{Finding, check as check_root};
use crate::serve::testing::FakeMounter;
use crate::snapshots::Snapshots;
use crate::store::records::Labels;
use crate::testing::Small;

fn open(root: &Path) -> Snapshots {
    let mounter = Arc::new(FakeMounter::default());
    Snapshots::open(root, mounter).expect("open").0
}

/// A root with two layers; ids 1 and 2.
fn two_layers(root: &Path) -> (Snapshots, Layout) {
    let all = open(root);
    let layout = Layout::of(root).expect("layout");
    for (id, name, parent) in [(1, "base", ""), (2, "top", "base")] {
        let key = format!("extract-1 {name}");
        all.prepare(&key, parent, &Labels::new()).expect("prepare");
        fs::write(layout.fs(id).join(name), name).expect("unpack");
        all.commit(name, &key, &Labels::new()).expect("commit");
    }
    (all, layout)
}

fn image(layout: &Layout) -> Arc<Image> {
    let chain = [2, 1].map(|id| place(layout, id, None).expect("place"));
    Image::open_indexed(&chain, &layout.image_index(2)).expect("open the image")
}

#[test]
fn indexes_are_made_checked_and_removed_with_their_snapshot() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, layout) = two_layers(dir.path());
    make(&layout, 1);
    assert!(layout.layer_index(1).exists());
    assert!(image(&layout).is_indexed());
    assert!(layout.layer_index(2).exists(), "made for the image");
    let usage = all.usage("top").expect("usage");
    drop(all);
    assert_eq!(check_root(dir.path()).expect("check"), []);
    let all = open(dir.path());
    assert_eq!(all.usage("top").expect("usage"), usage);
    all.remove("top").expect("remove");
    assert!(!layout.snapshot(2).exists());
    drop(all);
    assert_eq!(check_root(dir.path()).expect("check"), []);
}

#[test]
fn a_damaged_index_is_found_and_made_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, layout) = two_layers(dir.path());
    drop(all);
    image(&layout);
    for path in [layout.layer_index(1), layout.image_index(2)] {
        let mut bytes = fs::read(&path).expect("read");
        bytes[100] ^= 1;
        fs::write(&path, bytes).expect("write");
    }
    let found = check_root(dir.path()).expect("check");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(Finding::is_leftover));
    assert!(image(&layout).is_indexed());
    assert_eq!(check_root(dir.path()).expect("check"), []);
}

#[test]
fn a_layer_that_was_copied_elsewhere_gets_a_new_index() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, layout) = two_layers(dir.path());
    drop(all);
    image(&layout);
    // As a backup that was played back: the same names, other inodes.
    fs::rename(layout.fs(1), layout.snapshot(1).join("old")).expect("rename");
    fs::create_dir(layout.fs(1)).expect("mkdir");
    fs::write(layout.fs(1).join("base"), "base").expect("write");
    fs::remove_dir_all(layout.snapshot(1).join("old")).expect("remove");
    let found = check_root(dir.path()).expect("check");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(image(&layout).is_indexed());
    assert_eq!(check_root(dir.path()).expect("check"), []);
}

#[test]
fn a_start_removes_what_was_cut_off() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, layout) = two_layers(dir.path());
    drop(all);
    let leftover = layout.snapshot(1).join("image.index.new-1-1");
    fs::write(&leftover, "half").expect("write");
    let found = check_root(dir.path()).expect("check");
    assert_eq!(found.len(), 1, "{found:?}");
    drop(open(dir.path()));
    assert!(!leftover.exists());
}

#[test]
fn a_full_disk_costs_the_index_and_nothing_else() {
    let small = Small::mount();
    let (all, layout) = two_layers(small.path());
    drop(all);
    let filler = small.fill();
    make(&layout, 1);
    assert!(!layout.layer_index(1).exists());
    assert!(!image(&layout).is_indexed());
    assert_eq!(leftovers(&layout, 1).expect("list"), Vec::<PathBuf>::new());
    fs::remove_file(filler).expect("remove");
    assert!(image(&layout).is_indexed());
    assert_eq!(check_root(small.path()).expect("check"), []);
}
