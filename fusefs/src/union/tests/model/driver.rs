//! A script on a real union, asked as the kernel asks: a path is looked up name by name, and each
//! answer is a reference that is given back some time later.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as HostPath, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::answer::{Answer, Stat, Step, UMASK};
use super::held::Held;
use crate::error::{Error, Result};
use crate::image::{Image, LayerPlace};
use crate::layer::{DirLayer, Layer as UnionLayer};
use crate::types::{Attr, Caller, Entry, Fh, FileKind, NodeId};
use crate::union::Union;
use crate::union::tests::script::{Layer, Op, Path, ROOT, Time, disk};
use crate::upper::Upper;

/// How many references are kept: enough for files that are used again after they were changed, too
/// few for all.
const KEPT: usize = 24;

/// More than any file has.
const WHOLE: usize = 1 << 20;

/// A union, its layers on disk, and whoever uses it.
pub(super) struct Driver {
    pub(super) union: Union,
    dirs: Dirs,
    pub(super) held: [Option<Held>; 3],
    pub(super) kept: VecDeque<NodeId>,
    pub(super) caller: Caller,
}

/// The directories of one script.
struct Dirs {
    root: tempfile::TempDir,
    /// The topmost first.
    layers: Vec<PathBuf>,
    /// How many uppers there were before.
    commits: usize,
    /// How often a union was opened.
    opened: usize,
    /// Whether files are copied up in part.
    in_part: bool,
}

impl Driver {
    /// A union of these layers, the topmost first, and an empty upper. They lie in a directory
    /// below `base`.
    pub(super) fn new(base: &HostPath, layers: &[Layer], in_part: bool) -> Driver {
        let root = tempfile::tempdir_in(base).unwrap();
        let mut dirs = Dirs {
            layers: Vec::new(),
            root,
            commits: 0,
            opened: 0,
            in_part,
        };
        for (number, layer) in layers.iter().enumerate() {
            let path = dirs.root.path().join(format!("layer{number}"));
            fs::create_dir(&path).unwrap();
            disk::write_layer(&path, layer);
            dirs.layers.push(path);
        }
        dirs.make_upper();
        Driver {
            union: dirs.open(),
            dirs,
            held: [const { None }; 3],
            kept: VecDeque::new(),
            caller: caller_of(0),
        }
    }

    /// Closes everything and opens the union again.
    pub(super) fn remount(&mut self) {
        self.let_go();
        self.reopen();
    }

    /// Everything that was in memory is lost, and the union is opened again.
    pub(super) fn reopen(&mut self) {
        self.held = [const { None }; 3];
        self.kept.clear();
        // An upper belongs to one union at a time.
        self.union = nothing();
        self.union = self.dirs.open();
    }

    /// Makes the upper complete, so that it can be a layer.
    pub(super) fn seal(&mut self) -> Result<()> {
        self.let_go();
        self.union.seal()
    }

    /// Goes on with a new upper, on top of the sealed one.
    pub(super) fn put_upper_on_top(&mut self) {
        self.union = nothing();
        // A layer has no work directory.
        fs::remove_dir_all(self.dirs.work()).unwrap();
        self.dirs.layers.insert(0, self.dirs.upper());
        self.dirs.commits += 1;
        self.dirs.make_upper();
        self.union = self.dirs.open();
    }

    /// Closes all handles and gives all references back.
    pub(super) fn let_go(&mut self) {
        for slot in 0..self.held.len() {
            self.close(slot);
        }
        for node in std::mem::take(&mut self.kept) {
            self.union.forget(node, 1);
        }
    }

    /// Does one operation.
    pub(super) fn apply(&mut self, op: Op) -> Step {
        self.step(op).map_err(|error| error.errno())
    }
}

/// A union without anything.
fn nothing() -> Union {
    Union::new(Image::new(Vec::new()).unwrap(), None).unwrap()
}

impl Dirs {
    fn upper(&self) -> PathBuf {
        self.root.path().join(format!("upper{}", self.commits))
    }

    fn work(&self) -> PathBuf {
        self.root.path().join(format!("work{}", self.commits))
    }

    fn make_upper(&self) {
        fs::create_dir(self.work()).unwrap();
        fs::create_dir(self.upper()).unwrap();
        fs::set_permissions(self.upper(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Opens the union, every other time with an index of the image.
    fn open(&mut self) -> Union {
        self.opened += 1;
        let image = if self.opened.is_multiple_of(2) {
            let open = |path: &PathBuf| Ok(Arc::new(DirLayer::open(path)?) as Arc<dyn UnionLayer>);
            Image::new(self.layers.iter().map(open).collect::<Result<_>>().unwrap()).unwrap()
        } else {
            self.indexed_image()
        };
        let upper = Upper::open(&self.upper(), &self.work()).unwrap();
        let union = Union::new(image, Some(upper)).unwrap();
        union.partial_copy_up_from(self.in_part.then_some(1))
    }
}

impl Dirs {
    /// The image by its index, and by that of each layer, which are made the first time.
    fn indexed_image(&self) -> Arc<Image> {
        let place = |dir: &PathBuf| LayerPlace::Dir {
            dir: dir.clone(),
            index: Some(dir.with_extension("index")),
        };
        let layers: Vec<_> = self.layers.iter().map(place).collect();
        let index = format!("image{}.index", self.commits);
        let image = Image::open_indexed(&layers, &self.root.path().join(index)).unwrap();
        assert_eq!(image.is_indexed(), !layers.is_empty());
        image
    }
}

pub(super) fn caller_of(user: u32) -> Caller {
    Caller {
        uid: user,
        gid: user,
        umask: UMASK,
    }
}

/// Paths, as the kernel walks them.
impl Driver {
    pub(super) fn keep(&mut self, entry: Entry) -> Entry {
        self.kept.push_back(entry.node);
        if self.kept.len() > KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            self.union.forget(oldest, 1);
        }
        entry
    }

    pub(super) fn lookup(&mut self, dir: NodeId, name: &str) -> Result<Option<Entry>> {
        let found = self.union.lookup(dir, OsStr::new(name))?;
        Ok(found.map(|entry| self.keep(entry)))
    }

    /// The node at a path, and what it is.
    pub(super) fn walk(&mut self, path: Path) -> Result<(NodeId, FileKind)> {
        let mut at = (NodeId::ROOT, FileKind::Directory);
        if path != ROOT {
            for name in path.split('/') {
                let entry = self.lookup(at.0, name)?.ok_or(Error::NotFound)?;
                at = (entry.node, entry.attr.kind);
            }
        }
        Ok(at)
    }

    /// The directory that a path is in, and its last name.
    pub(super) fn ends(&mut self, path: Path) -> Result<(NodeId, &'static OsStr)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((ROOT, path));
        match self.walk(parent)? {
            (node, FileKind::Directory) => Ok((node, OsStr::new(name))),
            _ => Err(Error::NotDirectory),
        }
    }

    /// Does something at a path, and once more if the file was handed over meanwhile.
    pub(super) fn at<T>(
        &mut self,
        path: Path,
        work: impl Fn(&Union, NodeId) -> Result<T>,
    ) -> Result<T> {
        let (node, _) = self.walk(path)?;
        match work(&self.union, node) {
            Err(Error::HandedOver) => {
                let (node, _) = self.walk(path)?;
                work(&self.union, node)
            }
            other => other,
        }
    }

    /// Opens a file, does something and closes it.
    pub(super) fn with_open(
        &mut self,
        path: Path,
        flags: OFlags,
        work: impl FnOnce(&Union, Fh) -> Result<Answer>,
    ) -> Result<Answer> {
        let caller = self.caller;
        let opened = self.at(path, |union, node| union.open(caller, node, flags))?;
        let result = work(&self.union, opened.fh);
        self.union.release(opened.fh);
        result
    }
}

/// The whole data of an open file.
pub(super) fn read(union: &Union, fh: Fh) -> Result<Vec<u8>> {
    let mut buffer = vec![0; WHOLE];
    let count = union.read(fh, 0, &mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

/// What the model knows of attributes.
pub(super) fn stat_of(attr: &Attr) -> Stat {
    Stat {
        kind: attr.kind,
        perm: u32::from(attr.perm),
        owner: (attr.uid, attr.gid),
        nlink: attr.nlink,
        size: (attr.kind != FileKind::Directory).then_some(attr.size),
        rdev: attr.rdev,
        mtime: Some(Time(attr.mtime.secs, attr.mtime.nanos)),
    }
}

/// Whether the file system of a directory knows `FALLOC_FL_ZERO_RANGE`.
pub(super) fn has_zero_range(base: &HostPath) -> bool {
    let file = tempfile::tempfile_in(base).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 1) != Err(Errno::OPNOTSUPP)
}
