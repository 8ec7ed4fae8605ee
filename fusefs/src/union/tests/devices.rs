//! Character devices 0:0 of the container.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::*;
use crate::sys::change::faults::{self, Fault};

/// What is seen at the old and the new name of a file that is renamed and leaves a device.
fn seen(union: &Union) -> [Option<FileKind>; 2] {
    let dir = walk(union, "d").node;
    ["file", "moved"].map(|name| {
        let entry = union.lookup(dir, OsStr::new(name)).unwrap();
        entry.map(|entry| entry.attr.kind)
    })
}

const OLD: [Option<FileKind>; 2] = [Some(FileKind::Regular), None];
const BETWEEN: [Option<FileKind>; 2] = [None, Some(FileKind::Regular)];
const NEW: [Option<FileKind>; 2] = [Some(FileKind::CharDevice), Some(FileKind::Regular)];

fn bed() -> Bed {
    let bed = Bed::new();
    bed.lower("d/other", "x");
    bed
}

/// The file of the image or one of the upper alone: the whiteout at the old name differs.
fn beds() -> [Bed; 2] {
    let with_file = bed();
    with_file.lower("d/file", "image");
    [with_file, bed()]
}

fn mount(bed: &Bed) -> Union {
    let union = bed.union();
    let dir = walk(&union, "d").node;
    let name = OsStr::new("file");
    if union.lookup(dir, name).unwrap().is_none() {
        let (_, opened) = union.create(ROOT, dir, name, 0o644, OFlags::RDWR).unwrap();
        union.write(opened.fh, 0, b"image", false).unwrap();
        union.release(opened.fh);
    }
    union
}

fn rename(union: &Union) -> Result<()> {
    let dir = walk(union, "d").node;
    let (from, to) = (OsStr::new("file"), OsStr::new("moved"));
    union.rename_leaving_device(ROOT, dir, from, dir, to, RenameFlags::NOREPLACE)
}

#[test]
fn a_rename_that_leaves_a_device_never_loses_the_file() {
    for which in 0..2 {
        let mut states = std::collections::BTreeSet::new();
        for count in 0.. {
            let bed = beds().into_iter().nth(which).unwrap();
            let union = mount(&bed);
            let crash = Fault::CrashAfter(count);
            let (_, steps) = faults::with(crash, || (rename(&union), drop(union)));
            let union = bed.union();
            let state = seen(&union);
            assert!([OLD, BETWEEN, NEW].contains(&state), "{count}: {state:?}");
            let file = if state == OLD { "d/file" } else { "d/moved" };
            assert_eq!(read(&union, file), "image");
            states.insert(format!("{state:?}"));
            if count >= steps {
                break;
            }
        }
        assert_eq!(states.len(), 3, "{states:?}");
    }
}

#[test]
fn a_rename_that_cannot_leave_a_device_is_taken_back() {
    for which in 0..2 {
        let mut failed = 0;
        for count in 0.. {
            let bed = beds().into_iter().nth(which).unwrap();
            let union = mount(&bed);
            let fault = Fault::FailAfter(count, Errno::NOSPC);
            let (result, steps) = faults::with(fault, || rename(&union));
            failed += usize::from(result.is_err());
            let wanted = if result.is_ok() { NEW } else { OLD };
            assert_eq!(seen(&union), wanted, "{count}: {result:?}");
            drop(union);
            assert_eq!(seen(&bed.union()), wanted, "{count}: {result:?}");
            if count >= steps {
                break;
            }
        }
        assert!(failed > 3);
    }
}

fn make(union: &Union, name: &str) -> NodeId {
    let mode = FileType::CharacterDevice.as_raw_mode() | 0o600;
    let made = union.mknod(ROOT, NodeId::ROOT, OsStr::new(name), mode, 0);
    made.unwrap().node
}

#[test]
fn names_that_the_seal_adds_are_devices_too() {
    let (below, above) = (Bed::new(), Bed::new());
    {
        let union = below.union();
        let device = make(&union, "a");
        let dir = union.mkdir(ROOT, NodeId::ROOT, OsStr::new("d"), 0o755);
        union
            .link(device, dir.unwrap().node, OsStr::new("b"))
            .unwrap();
        union.seal().unwrap();
    }
    {
        let upper = Upper::open(&above.path("upper"), &above.path("work")).unwrap();
        let image = Bed::image_of(&[below.path("upper")]);
        let union = Union::new(image, Some(upper)).unwrap();
        let change = SetAttr {
            mode: Some(0o640),
            ..SetAttr::default()
        };
        let device = walk(&union, "a").node;
        union.setattr(ROOT, device, None, &change).unwrap();
        union.seal().unwrap();
    }
    // As `Commit` does; the index has a link there.
    fs::remove_dir_all(above.path("work")).unwrap();
    let image = Bed::image_of(&[above.path("upper"), below.path("upper")]);
    let union = Union::new(image, None).unwrap();
    for name in ["a", "d/b"] {
        let attr = walk(&union, name).attr;
        let seen = (attr.kind, attr.rdev, attr.perm, attr.nlink);
        assert_eq!(seen, (FileKind::CharDevice, 0, 0o640, 2), "{name}");
    }
}

#[test]
fn nobody_opens_the_file_behind_a_device() {
    let bed = bed();
    let union = bed.union();
    let node = make(&union, "dev");
    for flags in [OFlags::RDONLY, OFlags::RDWR, OFlags::RDWR | OFlags::TRUNC] {
        let refused = union.open(ROOT, node, flags).unwrap_err();
        assert!(matches!(refused, Error::Invalid), "{refused}");
    }
    let change = SetAttr {
        size: Some(10),
        ..SetAttr::default()
    };
    union.setattr(ROOT, node, None, &change).unwrap_err();
    assert_eq!(fs::metadata(bed.path("upper/dev")).unwrap().len(), 0);
}
