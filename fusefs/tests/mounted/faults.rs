//! A bug that panics costs the request that met it, and nothing else.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lamina_fusefs::Result;
use lamina_fusefs::image::Image;
use lamina_fusefs::layer::{Below, DirLayer, EntryKind, Layer, LayerEntry};
use lamina_fusefs::session::{Session, SessionOptions};
use lamina_fusefs::types::Attr;
use lamina_fusefs::union::Union;
use rustix::io::Errno;

use crate::system::{Layers, System};
use crate::tools::{fails, names, read, write};

/// A layer with a bug: it panics when it is asked for certain files and directories.
struct Buggy(DirLayer);

impl Buggy {
    fn meet(path: &Path) {
        assert!(!path.ends_with("buggy"), "a bug on purpose");
    }
}

impl Layer for Buggy {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn device(&self) -> u64 {
        self.0.device()
    }

    fn read_dir(&self, dir: &Path) -> Result<Vec<LayerEntry>> {
        Buggy::meet(dir);
        self.0.read_dir(dir)
    }

    fn entry(&self, path: &Path) -> Result<Option<EntryKind>> {
        self.0.entry(path)
    }

    fn below(&self, dir: &Path) -> Result<Below> {
        self.0.below(dir)
    }

    fn attr(&self, path: &Path) -> Result<Attr> {
        self.0.attr(path)
    }

    fn readlink(&self, path: &Path) -> Result<OsString> {
        self.0.readlink(path)
    }

    fn xattr(&self, path: &Path, name: &OsStr) -> Result<Option<Vec<u8>>> {
        self.0.xattr(path, name)
    }

    fn xattr_names(&self, path: &Path) -> Result<Vec<OsString>> {
        Buggy::meet(path);
        self.0.xattr_names(path)
    }

    fn data(&self, path: &Path) -> Result<Below> {
        self.0.data(path)
    }

    fn open(&self, path: &Path) -> Result<File> {
        Buggy::meet(path);
        self.0.open(path)
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        self.0.file_system()
    }

    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        self.0.host_file(path)
    }
}

#[test]
fn a_panic_costs_one_request() {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    let layers = Layers::new(1);
    write(layers.bottom("buggy"), "x");
    write(layers.bottom("dir/buggy/file"), "x");
    write(layers.bottom("sound"), "sound");
    let layer: Arc<dyn Layer> = Arc::new(Buggy(DirLayer::open(&layers.lowers()[0]).unwrap()));
    let union = Union::new(Image::new(vec![layer]).unwrap(), None).unwrap();
    // One thread: there is none to lose.
    let options = SessionOptions {
        threads: 1,
        read_only: true,
        ..SessionOptions::default()
    };
    let at = layers.mountpoint();
    let session = Session::mount(Arc::new(union), &at, &options).unwrap();
    for _ in 0..3 {
        fails(File::open(at.join("buggy")), Errno::IO);
        let mut list = [0_u8; 100];
        let listed = rustix::fs::listxattr(at.join("buggy"), &mut list[..]);
        assert_eq!(listed, Err(Errno::IO));
        let entries: std::io::Result<Vec<_>> =
            fs::read_dir(at.join("dir/buggy")).and_then(Iterator::collect);
        fails(entries, Errno::IO);
        assert_eq!(read(at.join("sound")), "sound");
    }
    assert_eq!(names(&at).len(), 3);
    assert!(session.unmount(Duration::from_secs(10)).unwrap());
}
