//! The union without a kernel: what no mounted test can see.

mod devices;
mod durability;
mod faults;
mod listing;
mod metacopy;
mod model;
mod partial;
#[path = "../../../tests/script/mod.rs"]
mod script;
mod tree;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;

use super::*;
use crate::image::LayerPlace;
use crate::types::{Caller, Entry, SetAttr};

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// One layer, an upper and a work directory.
struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        for part in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        Bed { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn lower(&self, path: &str, text: &str) -> &Bed {
        let path = self.path("lower").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// The image of these layers, with an index. (The model has images without one too.)
    fn image_of(layers: &[PathBuf]) -> Arc<Image> {
        let place = |dir: &PathBuf| LayerPlace::Dir {
            dir: dir.clone(),
            index: None,
        };
        let layers: Vec<_> = layers.iter().map(place).collect();
        let dir = tempfile::tempdir().unwrap();
        let image = Image::open_indexed(&layers, &dir.path().join("image.index")).unwrap();
        assert!(image.is_indexed());
        image
    }

    fn union(&self) -> Union {
        let upper = Upper::open(&self.path("upper"), &self.path("work")).unwrap();
        Union::new(Bed::image_of(&[self.path("lower")]), Some(upper)).unwrap()
    }
}

/// Looks a path up; the references of all its parts stay with the caller.
fn walk(union: &Union, path: &str) -> Entry {
    let mut at = NodeId::ROOT;
    let mut entry = None;
    for name in Path::new(path) {
        let found = union.lookup(at, name).unwrap().expect("the path exists");
        at = found.node;
        entry = Some(found);
    }
    entry.expect("a path of at least one name")
}

fn read(union: &Union, path: &str) -> String {
    let opened = union
        .open(ROOT, walk(union, path).node, OFlags::RDONLY)
        .unwrap();
    let mut buffer = [0; 64];
    let count = union.read(opened.fh, 0, &mut buffer).unwrap();
    union.release(opened.fh);
    String::from_utf8(buffer[..count].to_vec()).unwrap()
}

fn write(union: &Union, path: &str, text: &str) {
    let opened = union
        .open(ROOT, walk(union, path).node, OFlags::RDWR)
        .unwrap();
    union.write(opened.fh, 0, text.as_bytes(), false).unwrap();
    union.release(opened.fh);
}

/// Open descriptors on files of this bed; other tests of the process have others.
fn open_descriptors(bed: &Bed) -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with(bed.dir.path()))
        .count()
}

#[test]
fn a_copy_up_without_open_handles_keeps_the_node() {
    let bed = Bed::new();
    bed.lower("file", "image");
    let union = bed.union();
    let before = walk(&union, "file");
    write(&union, "file", "I");
    assert_eq!(walk(&union, "file").node, before.node);
    assert_eq!(read(&union, "file"), "Image");
    assert_eq!(fs::read_to_string(bed.path("lower/file")).unwrap(), "image");
}

#[test]
fn a_copy_up_under_an_open_handle_hands_over_to_a_new_node_with_the_same_number() {
    let bed = Bed::new();
    bed.lower("file", "image");
    let union = bed.union();
    let old = walk(&union, "file");
    let reader = union.open(ROOT, old.node, OFlags::RDONLY).unwrap();
    let refused = union.open(ROOT, old.node, OFlags::RDWR).unwrap_err();
    assert!(matches!(refused, Error::HandedOver), "{refused}");
    let new = walk(&union, "file");
    assert_ne!(new.node, old.node);
    assert_eq!(new.attr.ino, old.attr.ino);
    write(&union, "file", "I");
    let mut buffer = [0; 5];
    union.read(reader.fh, 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"image");
    // Whoever asks by the old number gets the file's attributes, but may not keep them.
    let attr = union.getattr(old.node, None).unwrap();
    assert_eq!((attr.ino, attr.cacheable), (old.attr.ino, false));
}

#[test]
fn what_is_forgotten_leaves_no_node_and_no_descriptor() {
    let bed = Bed::new();
    bed.lower("d/file", "image").lower("d/gone", "image");
    let union = bed.union();
    let before = open_descriptors(&bed);
    let (dir, file, gone) = (
        walk(&union, "d"),
        walk(&union, "d/file"),
        walk(&union, "d/gone"),
    );
    let reader = union.open(ROOT, file.node, OFlags::RDONLY).unwrap();
    union
        .setattr(
            ROOT,
            file.node,
            None,
            &SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            },
        )
        .unwrap();
    union.unlink(dir.node, OsStr::new("gone")).unwrap();
    union.unlink(dir.node, OsStr::new("file")).unwrap();
    // The kernel may send RELEASE after FORGET.
    union.forget(file.node, 1);
    union.forget(gone.node, 1);
    union.forget(dir.node, 3);
    union.release(reader.fh);
    drop(reader);
    union.dirs.lock().clear();
    assert_eq!(union.nodes.len(), 1);
    assert_eq!(open_descriptors(&bed), before);
}

#[test]
fn hard_links_of_the_image_stay_links_over_a_restart_and_after_sealing() {
    let bed = Bed::new();
    bed.lower("a", "image");
    for link in ["b", "d/c"] {
        let link = bed.path("lower").join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        fs::hard_link(bed.path("lower/a"), link).unwrap();
    }
    {
        let union = bed.union();
        write(&union, "b", "I");
        assert_eq!(read(&union, "d/c"), "Image");
        assert_eq!(walk(&union, "a").attr.nlink, 3);
    }
    {
        let union = bed.union();
        assert_eq!(walk(&union, "a").attr.ino, walk(&union, "b").attr.ino);
        assert_eq!(read(&union, "d/c"), "Image");
        union.unlink(NodeId::ROOT, OsStr::new("a")).unwrap();
        assert_eq!(walk(&union, "b").attr.nlink, 2);
        union.seal().unwrap();
        let late = union.unlink(NodeId::ROOT, OsStr::new("b")).unwrap_err();
        assert!(matches!(late, Error::ReadOnly), "{late}");
        assert_eq!(read(&union, "b"), "Image");
    }
    // As a layer, without its work directory.
    let layers = [bed.path("upper"), bed.path("lower")];
    let union = Union::new(Bed::image_of(&layers), None).unwrap();
    assert_eq!(read(&union, "b"), "Image");
    assert_eq!(read(&union, "d/c"), "Image");
    assert_eq!(walk(&union, "b").attr.ino, walk(&union, "d/c").attr.ino);
    assert!(
        union
            .lookup(NodeId::ROOT, OsStr::new("a"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_renamed_image_directory_is_one_step_and_survives_as_a_layer() {
    let bed = Bed::new();
    bed.lower("old/in/file", "image").lower("new/other", "x");
    {
        let union = bed.union();
        let target = walk(&union, "new").node;
        let names = (OsStr::new("old"), OsStr::new("moved"));
        union
            .rename(NodeId::ROOT, names.0, target, names.1, RenameFlags::empty())
            .unwrap();
        write(&union, "new/moved/in/file", "I");
    }
    let layers = [bed.path("upper"), bed.path("lower")];
    let union = Union::new(Bed::image_of(&layers), None).unwrap();
    assert_eq!(read(&union, "new/moved/in/file"), "Image");
    assert_eq!(read(&union, "new/other"), "x");
    assert!(
        union
            .lookup(NodeId::ROOT, OsStr::new("old"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn work_files_of_a_crash_are_gone_at_the_next_start() {
    let bed = Bed::new();
    drop(bed.union());
    fs::create_dir_all(bed.path("work/work/#7/deep")).unwrap();
    fs::write(bed.path("work/work/#8"), "half").unwrap();
    drop(bed.union());
    assert_eq!(fs::read_dir(bed.path("work/work")).unwrap().count(), 0);
}

#[test]
fn an_upper_is_used_by_one_union_at_a_time() {
    let bed = Bed::new();
    let _first = bed.union();
    let error = Upper::open(&bed.path("upper"), &bed.path("work")).unwrap_err();
    assert!(
        error.to_string().contains("in use by another mount"),
        "{error}"
    );
}

#[test]
fn a_work_directory_on_another_file_system_is_refused() {
    let bed = Bed::new();
    // /proc is a file system of its own on every machine.
    let error = Upper::open(&bed.path("upper"), Path::new("/proc")).unwrap_err();
    assert!(
        error.to_string().contains("not on the upper's file system"),
        "{error}"
    );
}

#[test]
fn a_new_file_over_a_whiteout_never_shows_the_image_again() {
    let bed = Bed::new();
    bed.lower("d/old", "image");
    let union = bed.union();
    let old = walk(&union, "d").attr.ino;
    union
        .unlink(walk(&union, "d").node, OsStr::new("old"))
        .unwrap();
    union.rmdir(NodeId::ROOT, OsStr::new("d")).unwrap();
    let made = union
        .mkdir(ROOT, NodeId::ROOT, OsStr::new("d"), 0o755)
        .unwrap();
    assert_ne!(made.attr.ino, old);
    assert!(
        union
            .lookup(made.node, OsStr::new("old"))
            .unwrap()
            .is_none()
    );
    let owner = fs::metadata(bed.path("upper/d")).unwrap();
    assert_eq!((owner.uid(), owner.mode() & 0o7777), (0, 0o755));
}

#[test]
fn a_file_whose_data_are_elsewhere_is_an_error_and_not_zeros() {
    let bed = Bed::new();
    bed.lower("file", "");
    let layer = crate::sys::beneath::open_root(&bed.path("lower")).unwrap();
    let place = Place::at(&Arc::new(layer), OsStr::new("file"));
    let name = OsStr::new("trusted.overlay.metacopy");
    place
        .set_xattr(name, b"", rustix::fs::XattrFlags::empty())
        .unwrap();
    // There is no index of such a layer.
    let layer = crate::layer::DirLayer::open(&bed.path("lower")).unwrap();
    let image = Image::new(vec![Arc::new(layer)]).unwrap();
    let union = Union::new(image, None).unwrap();
    let file = walk(&union, "file").node;
    let error = union.open(ROOT, file, OFlags::RDONLY).unwrap_err();
    assert_eq!(error.errno(), rustix::io::Errno::IO, "{error}");
}

#[test]
fn without_an_upper_nothing_can_be_changed() {
    let bed = Bed::new();
    bed.lower("file", "image");
    let union = Union::new(Bed::image_of(&[bed.path("lower")]), None).unwrap();
    let file = walk(&union, "file").node;
    let refused = [
        union
            .open(ROOT, file, OFlags::RDWR)
            .map(|_| ())
            .unwrap_err(),
        union.unlink(NodeId::ROOT, OsStr::new("file")).unwrap_err(),
        union
            .mkdir(ROOT, NodeId::ROOT, OsStr::new("d"), 0o755)
            .map(|_| ())
            .unwrap_err(),
    ];
    assert!(
        refused.iter().all(|error| matches!(error, Error::ReadOnly)),
        "{refused:?}"
    );
    assert_eq!(read(&union, "file"), "image");
}

/// A thread of the session has a stack of 2 MiB; these have less, to need fewer directories.
#[test]
fn a_tree_deeper_than_the_stack_is_used_and_dropped() {
    const DEPTH: usize = 1_500;
    let bed = Bed::new();
    let deep: Vec<_> = (0..DEPTH).map(|_| "d").collect();
    let mut at = rustix::fs::open(bed.path("lower"), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for name in &deep {
        rustix::fs::mkdirat(&at, *name, Mode::RWXU).unwrap();
        at = openat(&at, *name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let union = bed.union();
    let work = move || {
        let mut at = NodeId::ROOT;
        for name in deep {
            at = union.lookup(at, OsStr::new(name)).unwrap().unwrap().node;
        }
        // All are copied up, from the top down.
        union.mkdir(ROOT, at, OsStr::new("new"), 0o755).unwrap();
        // None is open any more.
        union.dirs.lock().clear();
        union.mkdir(ROOT, at, OsStr::new("other"), 0o755).unwrap();
        assert!(union.lookup(at, OsStr::new("new")).unwrap().is_some());
        drop(union);
    };
    let small = std::thread::Builder::new().stack_size(128 << 10);
    small.spawn(work).unwrap().join().unwrap();
}

/// While this lives, no name of the directory can be made or removed.
struct Immutable(std::fs::File);

impl Immutable {
    fn new(path: PathBuf) -> Immutable {
        let dir = fs::File::open(path).unwrap();
        rustix::fs::ioctl_setflags(&dir, rustix::fs::IFlags::IMMUTABLE).unwrap();
        Immutable(dir)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        rustix::fs::ioctl_setflags(&self.0, rustix::fs::IFlags::empty()).unwrap();
    }
}

fn linked_bed() -> Bed {
    let bed = Bed::new();
    bed.lower("a", "image");
    fs::hard_link(bed.path("lower/a"), bed.path("lower/b")).unwrap();
    bed
}

#[test]
fn a_link_that_could_not_be_removed_is_still_counted() {
    let bed = linked_bed();
    let union = bed.union();
    write(&union, "a", "I");
    for _ in 0..3 {
        let _fixed = Immutable::new(bed.path("upper"));
        union.unlink(NodeId::ROOT, OsStr::new("b")).unwrap_err();
    }
    assert_eq!(walk(&union, "b").attr.nlink, 2);
    union.unlink(NodeId::ROOT, OsStr::new("a")).unwrap();
    assert_eq!(read(&union, "b"), "Image");
    assert_eq!(walk(&union, "b").attr.nlink, 1);
    union.unlink(NodeId::ROOT, OsStr::new("b")).unwrap();
    assert_eq!(fs::read_dir(bed.path("work/index")).unwrap().count(), 0);
}

#[test]
fn a_copy_up_that_fails_at_the_end_leaves_nothing_and_can_be_repeated() {
    let bed = linked_bed();
    let union = bed.union();
    let file = walk(&union, "a").node;
    {
        let _fixed = Immutable::new(bed.path("upper"));
        union.open(ROOT, file, OFlags::RDWR).unwrap_err();
    }
    for part in ["work/index", "work/work", "upper"] {
        assert_eq!(fs::read_dir(bed.path(part)).unwrap().count(), 0, "{part}");
    }
    write(&union, "a", "I");
    assert_eq!(read(&union, "b"), "Image");
    assert_eq!(walk(&union, "b").attr.nlink, 2);
}

#[test]
fn a_merged_directory_counts_the_directories_in_it() {
    let bed = Bed::new();
    bed.lower("d/one/x", "").lower("d/two/x", "");
    let union = bed.union();
    let links = || walk(&union, "d").attr.nlink;
    assert_eq!(links(), 4);
    let dir = walk(&union, "d").node;
    union.mkdir(ROOT, dir, OsStr::new("three"), 0o755).unwrap();
    assert_eq!(links(), 5);
    let plain = RenameFlags::empty();
    let names = (OsStr::new("one"), OsStr::new("moved"));
    (union.rename(dir, names.0, NodeId::ROOT, names.1, plain)).unwrap();
    assert_eq!(links(), 4);
    assert_eq!(walk(&union, "moved").attr.nlink, 2);
    union.rmdir(dir, OsStr::new("three")).unwrap();
    assert_eq!(links(), 3);
    drop(union);
    assert_eq!(walk(&bed.union(), "d").attr.nlink, 3);
}

#[test]
fn a_file_that_cannot_be_written_can_be_read_and_refuses_writers_at_open() {
    let bed = Bed::new();
    fs::write(bed.path("upper/fixed"), "text").unwrap();
    let _fixed = Immutable::new(bed.path("upper/fixed"));
    let union = bed.union();
    let node = walk(&union, "fixed").node;
    let refused = || union.open(ROOT, node, OFlags::RDWR).unwrap_err().errno();
    assert_eq!(refused(), rustix::io::Errno::PERM);
    let reader = union.open(ROOT, node, OFlags::RDONLY).unwrap();
    assert_eq!(refused(), rustix::io::Errno::PERM);
    assert_eq!(read(&union, "fixed"), "text");
    union.release(reader.fh);
}
