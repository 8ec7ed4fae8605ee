//! What the scenes play on: images of one to three layers that show the same names, and uppers
//! with a past.

use super::*;
use crate::upper::{WHITEOUT, make_whiteout};

/// What happened before the scene.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Past {
    /// Nothing.
    None,
    /// The union was mounted again just now.
    Mounted,
    /// A copy-up of a hard link was cut off, and the union mounted again.
    Crashed,
    /// All directories are copied up.
    CopiedUp,
    /// All files are open.
    Readers,
    /// Files are copied up in part, however short, and one was.
    InPart,
}

/// An image, and a past for each upper over it.
pub(super) struct Ground {
    pub(super) layers: usize,
    pub(super) past: Past,
    image: Arc<Image>,
    beside: PathBuf,
    _dir: tempfile::TempDir,
}

impl std::fmt::Debug for Ground {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ground { layers, past, .. } = self;
        write!(f, "{layers} layers in {:?} ({past:?})", self.beside)
    }
}

/// An upper and its work directory.
pub(super) struct UpperPlace(tempfile::TempDir);

impl UpperPlace {
    /// How many things the work directory holds that should have gone.
    pub(super) fn in_work(&self) -> usize {
        let entries = fs::read_dir(self.0.path().join("work/work")).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().file_name() != WHITEOUT)
            .count()
    }
}

/// Whether everything is tried, or what fits into each run of the unit tests.
pub(super) fn is_long() -> bool {
    std::env::var_os("LAMINA_FAULTS").is_some_and(|form| form == "long")
}

/// The grounds of a run.
pub(super) fn all() -> Vec<Ground> {
    let pasts = [
        Past::None,
        Past::Mounted,
        Past::Crashed,
        Past::CopiedUp,
        Past::Readers,
        Past::InPart,
    ];
    let memory = Path::new("/dev/shm");
    assert!(memory.is_dir(), "these tests need a tmpfs at /dev/shm");
    if is_long() {
        let dirs = [memory.to_owned(), std::env::temp_dir()];
        let on = |dir: PathBuf| {
            (1..=3).flat_map(move |layers| pasts.map(|past| Ground::new(&dir, layers, past)))
        };
        return dirs.into_iter().flat_map(on).collect();
    }
    let layers = [1, 2, 3, 3, 2, 2];
    (layers.into_iter().zip(pasts))
        .map(|(layers, past)| Ground::new(memory, layers, past))
        .collect()
}

impl Ground {
    fn new(beside: &Path, layers: usize, past: Past) -> Ground {
        let dir = tempfile::tempdir_in(beside).unwrap();
        let paths = match layers {
            1 => vec![plain(&dir.path().join("plain"))],
            2 => vec![
                redirected(&dir.path().join("middle")),
                base(&dir.path().join("base")),
            ],
            _ => vec![
                top(&dir.path().join("top")),
                redirected(&dir.path().join("middle")),
                base(&dir.path().join("base")),
            ],
        };
        Ground {
            layers,
            past,
            image: Bed::image_of(&paths),
            beside: beside.to_owned(),
            _dir: dir,
        }
    }

    /// A new upper.
    pub(super) fn place(&self) -> UpperPlace {
        let dir = tempfile::tempdir_in(&self.beside).unwrap();
        for part in ["upper", "work"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        UpperPlace(dir)
    }

    pub(super) fn mount(&self, place: &UpperPlace) -> Union {
        let path = place.0.path();
        let upper = Upper::open(&path.join("upper"), &path.join("work")).unwrap();
        let union = Union::new(Arc::clone(&self.image), Some(upper)).unwrap();
        union.partial_copy_up_from((self.past == Past::InPart).then_some(1))
    }

    /// A union after its past, and what the scene needs.
    pub(super) fn prepare(&self, place: &UpperPlace, scene: &Scene) -> Union {
        self.prepare_mounted(place, scene, |place| self.mount(place))
    }

    /// The same, mounted in another way.
    pub(super) fn prepare_mounted(
        &self,
        place: &UpperPlace,
        scene: &Scene,
        mount: impl Fn(&UpperPlace) -> Union,
    ) -> Union {
        let mut union = mount(place);
        match self.past {
            Past::None | Past::Mounted | Past::Readers => {}
            Past::Crashed => {
                let _ = faults::with(Fault::CrashAfter(9), || {
                    let result = scenes::chmod(&union, "b", 0o644);
                    drop(union);
                    result
                });
                union = mount(place);
            }
            Past::InPart => scenes::open(&union, "d/in", OFlags::RDWR).unwrap(),
            Past::CopiedUp => {
                for dir in ["d/sub", "e/sub"] {
                    scenes::chmod(&union, dir, 0o755).unwrap();
                }
            }
        }
        (scene.before)(&union);
        if self.past == Past::Mounted {
            drop(union);
            union = mount(place);
        }
        union
    }
}

fn file(layer: &Path, path: &str, text: &str) {
    let path = layer.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn place_in(layer: &Path, path: &str) -> Place {
    let dir = crate::sys::beneath::open_root(layer).unwrap();
    Place::at(&Arc::new(dir), OsStr::new(path))
}

/// The files of all images that have more than one name.
fn linked(layer: &Path) {
    file(layer, "a", "linked");
    file(layer, "x", "linked too");
    fs::create_dir_all(layer.join("d")).unwrap();
    for (from, to) in [("a", "b"), ("a", "d/c"), ("x", "d/y")] {
        fs::hard_link(layer.join(from), layer.join(to)).unwrap();
    }
}

fn tops(layer: &Path) {
    file(layer, "file", "image");
    file(layer, "other", "another");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4711);
    fs::set_permissions(layer.join("file"), mode).unwrap();
}

/// `deep` lies below directories with xattrs, an ACL and an owner.
fn dressed(layer: &Path, dir: &str) {
    let dir = place_in(layer, dir);
    let acl = [
        2, 0, 0, 0, // version
        1, 0, 7, 0, 255, 255, 255, 255, // user::rwx
        2, 0, 5, 0, 232, 3, 0, 0, // user:1000:r-x
        4, 0, 5, 0, 255, 255, 255, 255, // group::r-x
        16, 0, 5, 0, 255, 255, 255, 255, // mask::r-x
        32, 0, 5, 0, 255, 255, 255, 255, // other::r-x
    ];
    let none = rustix::fs::XattrFlags::empty();
    for (name, value) in [
        ("user.of", &b"the directory"[..]),
        ("system.posix_acl_access", &acl),
        ("system.posix_acl_default", &acl),
    ] {
        dir.set_xattr(OsStr::new(name), value, none).unwrap();
    }
    dir.chown(Some(7), Some(8)).unwrap();
}

fn plain(layer: &Path) -> PathBuf {
    file(layer, "d/in", "inside");
    file(layer, "d/sub/deep", "deep");
    file(layer, "e/in", "also inside");
    file(layer, "e/sub/deep", "deeper");
    dressed(layer, "d");
    dressed(layer, "e");
    linked(layer);
    tops(layer);
    layer.to_owned()
}

/// What the layer above hides, moves and continues.
fn base(layer: &Path) -> PathBuf {
    file(layer, "old/in", "inside");
    file(layer, "old/sub/deep", "deep");
    file(layer, "e/hidden", "by an opaque directory");
    file(layer, "gone/file", "by a whiteout");
    file(layer, "d/hidden", "by a redirect");
    file(layer, "file", "covered");
    layer.to_owned()
}

fn redirected(layer: &Path) -> PathBuf {
    file(layer, "e/in", "also inside");
    file(layer, "e/sub/deep", "deeper");
    linked(layer);
    tops(layer);
    marks::set_redirect(&place_in(layer, "d"), Path::new("old")).unwrap();
    marks::set_opaque(&place_in(layer, "e")).unwrap();
    dressed(layer, "d");
    dressed(layer, "e");
    let root = crate::sys::beneath::open_root(layer).unwrap();
    for name in ["old", "gone"] {
        make_whiteout(&root, OsStr::new(name)).unwrap();
    }
    layer.to_owned()
}

/// Covers a file, and continues a directory that is redirected below.
fn top(layer: &Path) -> PathBuf {
    file(layer, "file", "the topmost");
    file(layer, "d/more", "more");
    file(layer, "e/sub/deep", "the deepest");
    dressed(layer, "d");
    dressed(layer, "e");
    layer.to_owned()
}
