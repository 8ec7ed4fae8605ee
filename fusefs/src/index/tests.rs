//! What is written is read back; what is damaged is refused; what is cut off leaves nothing.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use crate::error::Result;
use crate::layer::{Below, EntryKind};
use crate::sys::change::faults::{self, Fault};
use crate::types::{Attr, FileKind, Ino, Timestamp};

/// An entry with entries in it.
#[derive(Clone, Debug)]
struct Plant {
    entry: Entry,
    children: Vec<Plant>,
}

const STAMP: Stamp = Stamp {
    ino: 2,
    ctime: Timestamp { secs: -3, nanos: 4 },
};

fn bytes_of(kind: Kind, layers: usize, root: &Plant) -> Vec<u8> {
    build::<&Plant, Flaw>(
        kind,
        &vec![STAMP; layers],
        (root.entry.clone(), root),
        |at| {
            let children = at.children.iter();
            Ok(children.map(|child| (child.entry.clone(), child)).collect())
        },
    )
    .unwrap()
}

fn entry(name: &str, kind: FileKind) -> Entry {
    Entry {
        name: name.into(),
        kind: EntryKind::File(kind),
        attr: Some(Attr {
            ino: Ino(u64::MAX - 1),
            size: 1 << 40,
            blocks: 7,
            atime: Timestamp {
                secs: i64::MIN,
                nanos: 999_999_999,
            },
            mtime: Timestamp { secs: 1, nanos: 2 },
            ctime: Timestamp { secs: 3, nanos: 4 },
            kind,
            perm: 0o7654,
            nlink: 5,
            uid: 6,
            gid: u32::MAX,
            rdev: 1 << 33,
            blksize: 4096,
            cacheable: true,
        }),
        xattrs: Vec::new(),
        target: (kind == FileKind::Symlink).then(|| "../target".into()),
        below: Below::Nothing,
        layer: 0,
        source: None,
        data: None,
    }
}

fn leaf(entry: Entry) -> Plant {
    Plant {
        entry,
        children: Vec::new(),
    }
}

fn dir(name: &str, children: Vec<Plant>) -> Plant {
    Plant {
        entry: entry(name, FileKind::Directory),
        children,
    }
}

/// A layer with one of everything.
fn layer() -> Plant {
    let mut whiteout = entry("gone", FileKind::CharDevice);
    (whiteout.kind, whiteout.attr) = (EntryKind::Whiteout, None);
    let mut redirected = dir("moved", vec![leaf(entry("file", FileKind::Regular))]);
    redirected.entry.below = Below::Redirect("a/b".into());
    redirected.entry.xattrs = vec![("user.a".into(), b"x".to_vec())];
    let mut metacopy = leaf(entry("copy", FileKind::Regular));
    metacopy.entry.below = Below::Sibling("other".into());
    metacopy.entry.xattrs = redirected.entry.xattrs.clone();
    let link = leaf(entry("link", FileKind::Symlink));
    let mut inner = dir("dir", vec![leaf(entry("z", FileKind::Fifo)), metacopy]);
    inner.entry.below = Below::SamePath;
    dir("", vec![redirected, link, leaf(whiteout), inner])
}

/// An image with one of everything.
fn image() -> Plant {
    let mut file = leaf(entry("file", FileKind::Regular));
    file.entry.layer = 1;
    file.entry.source = Some("old/file".into());
    file.entry.data = Some((2, "older/file".into()));
    dir(
        "",
        vec![dir("new", vec![file]), leaf(entry("x", FileKind::Socket))],
    )
}

#[track_caller]
fn assert_same(index: &Index, record: u32, plant: &Plant) {
    let entry = &plant.entry;
    assert_eq!(index.name(record), entry.name);
    assert_eq!(index.kind(record), entry.kind);
    if let Some(attr) = entry.attr {
        assert_eq!(index.attr(record), attr);
    }
    assert_eq!(index.below(record), entry.below);
    if let Some(target) = &entry.target {
        assert_eq!(index.text(record), target);
    }
    let names: Vec<_> = entry.xattrs.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(index.xattr_names(record), names);
    for (name, value) in &entry.xattrs {
        assert_eq!(index.xattr(record, name).as_ref(), Some(value));
    }
    assert_eq!(index.xattr(record, OsStr::new("user.none")), None);
    assert_eq!(index.layer(record), entry.layer);
    assert_eq!(index.source(record), entry.source);
    assert_eq!(index.data(record), entry.data);
    assert_eq!(index.children(record).len(), plant.children.len());
    for child in &plant.children {
        let found = index.find(record, &child.entry.name).expect("it is there");
        assert_same(index, found, child);
    }
    assert_eq!(index.find(record, OsStr::new("none of them")), None);
}

#[test]
fn one_of_everything_is_read_back() {
    for (kind, layers, tree) in [(Kind::Layer, 1, layer()), (Kind::Image, 3, image())] {
        let bytes = bytes_of(kind, layers, &tree);
        assert!(asked::seal_and_ask(&bytes));
        let index = Index::of_bytes(bytes, kind).unwrap();
        assert_same(&index, Index::ROOT, &tree);
        assert_eq!(index.check_stamps(&vec![STAMP; layers]), Ok(()));
        assert_eq!(
            index.check_stamps(&vec![STAMP; layers + 1]),
            Err(Flaw::Stale)
        );
    }
}

#[test]
fn equal_xattrs_are_kept_once() {
    let one = |name: &str| {
        let mut file = leaf(entry(name, FileKind::Regular));
        file.entry.xattrs = vec![("user.a".into(), vec![7; 1000])];
        file
    };
    let few = bytes_of(Kind::Layer, 1, &dir("", vec![one("1")])).len();
    let many = bytes_of(Kind::Layer, 1, &dir("", vec![one("1"), one("2"), one("3")])).len();
    assert!(many - few < 1000, "{few} and {many} bytes");
}

#[test]
fn another_kind_and_another_version_are_told_apart_from_damage() {
    let bytes = bytes_of(Kind::Layer, 1, &layer());
    assert_eq!(
        Index::of_bytes(bytes.clone(), Kind::Image).unwrap_err(),
        Flaw::Kind
    );
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert_eq!(
        Index::of_bytes(newer, Kind::Layer).unwrap_err(),
        Flaw::Version(2)
    );
    let mut other = bytes;
    other[0] = b'l';
    assert_eq!(
        Index::of_bytes(other, Kind::Layer).unwrap_err(),
        Flaw::Magic
    );
}

#[test]
fn every_byte_counts() {
    let bytes = bytes_of(Kind::Image, 3, &image());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        Index::of_bytes(damaged, Kind::Image).expect_err("one byte is another one");
        Index::of_bytes(bytes[..at].to_vec(), Kind::Image).expect_err("it is cut off");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(
        Index::of_bytes(longer, Kind::Image).unwrap_err(),
        Flaw::Truncated
    );
}

/// Changes a field of a record, and gives the index the checksum that fits.
fn forged(record: usize, at: usize, value: &[u8]) -> Flaw {
    let mut bytes = bytes_of(Kind::Layer, 1, &layer());
    let start = format::HEADER + format::STAMP + record * format::RECORD + at;
    bytes[start..start + value.len()].copy_from_slice(value);
    format::seal(&mut bytes);
    Index::of_bytes(bytes, Kind::Layer).unwrap_err()
}

#[test]
fn what_is_no_tree_is_refused_though_its_checksum_is_right() {
    use format::at;
    // 1 is `dir`, with the entries 5 and 6; 2 is `gone`, 3 `link`, 4 `moved`.
    let flaw = |record, what| Flaw::Record { record, what };
    let elsewhere = "its entries lie elsewhere";
    assert_eq!(
        forged(1, at::FIRST_CHILD, &0u32.to_le_bytes()),
        flaw(1, elsewhere),
        "a cycle"
    );
    assert_eq!(
        forged(1, at::FIRST_CHILD, &1u32.to_le_bytes()),
        flaw(1, elsewhere),
        "a cycle"
    );
    assert_eq!(
        forged(1, at::CHILDREN, &u32::MAX.to_le_bytes()),
        flaw(1, elsewhere)
    );
    let another = "an entry of it names another directory";
    assert_eq!(forged(5, at::PARENT, &5u32.to_le_bytes()), flaw(1, another));
    assert_eq!(
        forged(1, at::CHILDREN, &1u32.to_le_bytes()),
        flaw(4, elsewhere)
    );
    assert_eq!(forged(2, at::KIND, &[9]), flaw(2, "its kind is unknown"));
    assert_eq!(
        forged(2, at::NAME_LEN, &0u16.to_le_bytes()),
        flaw(0, "its entries are not in order")
    );
    assert_eq!(
        forged(1, at::NAME_LEN, &0u16.to_le_bytes()),
        flaw(1, "its name can't be one")
    );
    assert_eq!(
        forged(3, at::TEXT, &u32::MAX.to_le_bytes()),
        flaw(3, "its text lies outside")
    );
    assert_eq!(
        forged(3, at::LAYER, &1u32.to_le_bytes()),
        flaw(3, "there is no such layer")
    );
    assert_eq!(
        forged(4, at::FIRST_XATTR, &9u32.to_le_bytes()),
        flaw(4, "its xattrs lie outside")
    );
    assert_eq!(
        forged(4, at::BELOW, &[7]),
        flaw(4, "its mark or target makes no sense")
    );
    assert_eq!(
        forged(3, at::SOURCE, &1u32.to_le_bytes()),
        flaw(3, "there is no such place")
    );
}

#[test]
fn a_redirect_or_a_place_that_climbs_is_refused() {
    let mut tree = image();
    tree.children[0].children[0].entry.source = Some("../etc".into());
    let bytes = bytes_of(Kind::Image, 3, &tree);
    let flaw = Index::of_bytes(bytes, Kind::Image).unwrap_err();
    assert_eq!(
        flaw,
        Flaw::Table {
            table: "place",
            entry: 0
        }
    );
}

/// The files of a directory with what they hold.
fn files(dir: &Path) -> Vec<(OsString, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_crash_or_an_error_at_any_step_leaves_the_old_index_or_the_new_one() {
    let old = bytes_of(Kind::Layer, 1, &dir("", Vec::new()));
    let new = bytes_of(Kind::Layer, 1, &layer());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer.index");
    let ((), steps) = faults::with(Fault::Never, || save(&path, &new).unwrap());
    assert!(steps >= 5, "create, write, fsync, rename, fsync: {steps}");
    for step in 0..steps {
        for fault in [
            Fault::CrashAfter(step),
            Fault::FailAfter(step, Errno::NOSPC),
            Fault::FailAfter(step, Errno::IO),
        ] {
            fs::remove_dir_all(dir.path()).unwrap();
            fs::create_dir(dir.path()).unwrap();
            save(&path, &old).unwrap();
            let (result, _) = faults::with(fault, || save(&path, &new));
            let error = result.expect_err("a step failed").to_string();
            assert!(error.contains("layer.index"), "{error}");
            let left = files(dir.path());
            let (own, others): (Vec<_>, Vec<_>) = left
                .into_iter()
                .partition(|(name, _)| name == "layer.index");
            assert!(own[0].1 == old || own[0].1 == new, "at {fault:?}");
            let crash = matches!(fault, Fault::CrashAfter(_));
            assert!(crash || others.is_empty(), "{others:?} at {fault:?}");
            assert!(
                others.iter().all(|(name, _)| is_leftover(name)),
                "{others:?}"
            );
            Index::open(&path, Kind::Layer).unwrap();
            save(&path, &new).unwrap();
            assert_eq!(fs::read(&path).unwrap(), new);
        }
    }
}

#[test]
fn an_index_stays_mapped_when_it_is_replaced() {
    let dir_path = tempfile::tempdir().unwrap();
    let path = dir_path.path().join("layer.index");
    save(&path, &bytes_of(Kind::Layer, 1, &layer())).unwrap();
    let index = Index::open(&path, Kind::Layer).unwrap();
    save(&path, &bytes_of(Kind::Layer, 1, &dir("", Vec::new()))).unwrap();
    assert_same(&index, Index::ROOT, &layer());
}

#[test]
fn a_file_that_is_none_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some.index");
    for (bytes, what) in [
        (&b""[..], "length"),
        (b"LAMINAIX", "length"),
        (&[b'x'; 500], "no index"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = Index::open(&path, Kind::Image).unwrap_err().to_string();
        assert!(
            error.contains("some.index") && error.contains(what),
            "{error}"
        );
    }
}

/// Trees of any shape, with names of any bytes.
fn plants() -> impl Strategy<Value = Plant> {
    let name = prop::collection::vec(
        any::<u8>().prop_filter("no name has it", |byte| ![0, b'/'].contains(byte)),
        1..12,
    );
    let name = name.prop_filter("no name", |name| name != b"." && name != b"..");
    let name = name
        .prop_map(std::os::unix::ffi::OsStringExt::from_vec)
        .boxed();
    let kinds = prop::sample::select(vec![FileKind::Regular, FileKind::Symlink, FileKind::Fifo]);
    let xattrs = prop::collection::vec(
        ("[a-z]{1,3}", prop::collection::vec(any::<u8>(), 0..4)),
        0..2,
    );
    let file = (name.clone(), kinds, any::<u64>(), xattrs);
    let file = file.prop_map(|(name, kind, size, xattrs)| {
        let mut file: Entry = entry("", kind);
        file.name = name;
        if let Some(attr) = &mut file.attr {
            attr.size = size;
        }
        let xattrs = xattrs.into_iter();
        file.xattrs = xattrs.map(|(name, value)| (name.into(), value)).collect();
        leaf(file)
    });
    let tree = file.prop_recursive(4, 64, 8, move |inner| {
        let children = prop::collection::vec(inner, 0..8);
        (name.clone(), children).prop_map(|(name, mut children)| {
            let mut dir = dir("", Vec::new());
            dir.entry.name = name;
            dir.entry.below = Below::SamePath;
            children.sort_by(|one, other| one.entry.name.cmp(&other.entry.name));
            children.dedup_by(|one, other| one.entry.name == other.entry.name);
            dir.children = children;
            dir
        })
    });
    prop::collection::vec(tree, 0..6).prop_map(|mut children| {
        children.sort_by(|one, other| one.entry.name.cmp(&other.entry.name));
        children.dedup_by(|one, other| one.entry.name == other.entry.name);
        dir("", children)
    })
}

proptest! {
    #[test]
    fn any_tree_is_read_back(tree in plants()) {
        let index = Index::of_bytes(bytes_of(Kind::Layer, 1, &tree), Kind::Layer).unwrap();
        assert_same(&index, Index::ROOT, &tree);
    }

    #[test]
    fn any_damage_is_refused_and_none_panics(
        tree in plants(), at in any::<prop::sample::Index>(), change in 1..=255u8,
    ) {
        let mut bytes = bytes_of(Kind::Layer, 1, &tree);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        prop_assert!(Index::of_bytes(bytes.clone(), Kind::Layer).is_err());
        // With the checksum that fits it may mean something, but something that can be read.
        asked::seal_and_ask(&bytes);
    }
}

/// Attributes but the atime, which a walk over the layer changes.
fn lasting(attr: Result<Attr>) -> Attr {
    Attr {
        atime: Timestamp::default(),
        ..attr.unwrap()
    }
}

/// The answers of a layer to everything that it can be asked.
fn answers(layer: &dyn crate::layer::Layer) -> Vec<String> {
    let mut answers = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        answers.push(format!(
            "{path:?} {:?} {:?}",
            layer.below(&path),
            lasting(layer.attr(&path))
        ));
        let mut entries = layer.read_dir(&path).unwrap();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        for entry in entries {
            let path = path.join(&entry.name);
            answers.push(format!(
                "{path:?} {:?} {:?}",
                entry.kind,
                layer.entry(&path)
            ));
            let EntryKind::File(kind) = entry.kind else {
                continue;
            };
            answers.push(format!("{:?}", entry.ino));
            let names = layer.xattr_names(&path).unwrap();
            for name in &names {
                answers.push(format!("{path:?} {name:?} {:?}", layer.xattr(&path, name)));
            }
            answers.push(format!(
                "{path:?} {:?} {names:?}",
                lasting(layer.attr(&path))
            ));
            match kind {
                FileKind::Directory => pending.push(path),
                FileKind::Regular => answers.push(format!("{path:?} {:?}", layer.data(&path))),
                FileKind::Symlink => answers.push(format!("{path:?} {:?}", layer.readlink(&path))),
                _ => {}
            }
        }
    }
    answers
}

#[test]
fn a_layer_says_the_same_with_its_index() {
    use crate::layer::DirLayer;
    use crate::marks;
    use crate::sys::place::Place;

    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    let at = |path: &str| layer.join(path);
    let place = |path: &str| {
        let (dir, name) = (at(path), at(path));
        let fd = crate::sys::beneath::open_root(dir.parent().unwrap()).unwrap();
        Place::at(&std::sync::Arc::new(fd), name.file_name().unwrap())
    };
    for made in ["opaque", "moved/in", "sibling", "impure"] {
        fs::create_dir_all(at(made)).unwrap();
    }
    for made in ["file", "metacopy", "impure/device", "moved/in/file"] {
        fs::write(at(made), "").unwrap();
    }
    fs::write(at("moved/in/file"), "text").unwrap();
    fs::hard_link(at("file"), at("moved/second name")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("gone"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        marks::WHITEOUT_DEVICE,
    )
    .expect("whiteouts need root");
    marks::set_opaque(&place("opaque")).unwrap();
    marks::set_redirect(&place("moved"), Path::new("old/place")).unwrap();
    marks::set_redirect(&place("metacopy"), Path::new("data")).unwrap();
    marks::set_metacopy(&place("metacopy")).unwrap();
    marks::set_impure(&place("impure")).unwrap();
    marks::set_device(&place("impure/device")).unwrap();
    let name = OsStr::new("user.a");
    place("file")
        .set_xattr(name, b"x", rustix::fs::XattrFlags::empty())
        .unwrap();

    let open = || std::sync::Arc::new(DirLayer::open(&layer).unwrap());
    let walked = IndexedLayer::walk(open()).unwrap();
    assert_eq!(answers(&walked), answers(&*open()));
    let path = dir.path().join("layer.index");
    walked.save(&path).unwrap();
    let opened = IndexedLayer::open(open(), &path).unwrap();
    assert_eq!(answers(&opened), answers(&*open()));

    // A copy of the directory is another layer, with other inode numbers.
    fs::rename(&layer, dir.path().join("first")).unwrap();
    fs::create_dir(&layer).unwrap();
    let error = IndexedLayer::open(open(), &path).unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadIndex {
                flaw: Flaw::Stale,
                ..
            }
        ),
        "{error}"
    );
}
