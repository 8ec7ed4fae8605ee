//! The merge, on layers made by hand.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;
use crate::layer::DirLayer;
use crate::marks;
use crate::sys::place::Place;

/// Temporary layers, the topmost first.
struct Layers {
    dir: tempfile::TempDir,
    count: usize,
}

impl Layers {
    fn new(count: usize) -> Layers {
        let dir = tempfile::tempdir().unwrap();
        for layer in 0..count {
            fs::create_dir(dir.path().join(layer.to_string())).unwrap();
        }
        Layers { dir, count }
    }

    fn path(&self, layer: usize, path: &str) -> PathBuf {
        self.dir.path().join(layer.to_string()).join(path)
    }

    fn file(&self, layer: usize, path: &str) -> &Layers {
        let path = self.path(layer, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, layer.to_string()).unwrap();
        self
    }

    fn whiteout(&self, layer: usize, path: &str) -> &Layers {
        let path = self.path(layer, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::empty(),
            marks::WHITEOUT_DEVICE,
        )
        .expect("whiteouts need root");
        self
    }

    fn place(&self, layer: usize, path: &str) -> Place {
        let fd = crate::sys::beneath::open_root(&self.path(layer, path)).unwrap();
        Place::Fd(Arc::new(fd))
    }

    fn image(&self) -> Arc<Image> {
        let layers = (0..self.count)
            .map(|layer| Arc::new(DirLayer::open(&self.path(layer, "")).unwrap()) as Arc<dyn Layer>)
            .collect();
        Image::new(layers).unwrap()
    }
}

fn names(image: &Image, path: &str) -> Vec<String> {
    let dir = image
        .find(Path::new(path))
        .unwrap()
        .expect("the directory exists");
    let mut names: Vec<_> = image
        .with_children(dir, |children| {
            children
                .keys()
                .map(|name| name.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        })
        .unwrap();
    names.sort();
    names
}

#[test]
fn the_topmost_layer_decides_and_directories_merge() {
    let layers = Layers::new(3);
    layers
        .file(0, "d/a")
        .file(1, "d/a")
        .file(1, "d/b")
        .file(2, "d/c")
        .file(2, "e");
    let image = layers.image();
    assert_eq!(names(&image, "d"), ["a", "b", "c"]);
    assert_eq!(names(&image, ""), ["d", "e"]);
    let a = image.find(Path::new("d/a")).unwrap().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut image.open(a).unwrap(), &mut text).unwrap();
    assert_eq!(text, "0");
}

#[test]
fn a_whiteout_hides_all_layers_below_it() {
    let layers = Layers::new(3);
    layers
        .file(0, "keep")
        .whiteout(1, "d")
        .file(2, "d/a")
        .file(2, "keep2");
    assert_eq!(names(&layers.image(), ""), ["keep", "keep2"]);
}

#[test]
fn an_opaque_directory_hides_the_directory_below() {
    let layers = Layers::new(2);
    layers.file(0, "d/new").file(1, "d/old");
    marks::set_opaque(&layers.place(0, "d")).unwrap();
    assert_eq!(names(&layers.image(), "d"), ["new"]);
}

#[test]
fn a_file_between_two_directories_ends_the_merge() {
    let layers = Layers::new(3);
    layers.file(0, "d/a").file(1, "d").file(2, "d/c");
    assert_eq!(names(&layers.image(), "d"), ["a"]);
}

#[test]
fn a_redirect_continues_at_another_path_below() {
    let layers = Layers::new(3);
    layers
        .file(0, "new/own")
        .whiteout(0, "old")
        .file(1, "x/keep")
        .file(2, "old/in/a");
    layers.file(1, "old/in/b");
    marks::set_redirect(&layers.place(0, "new"), Path::new("old/in")).unwrap();
    let image = layers.image();
    assert_eq!(names(&image, "new"), ["a", "b", "own"]);
    assert_eq!(image.find(Path::new("old")).unwrap(), None);
}

#[test]
fn a_redirect_that_climbs_is_an_error_and_not_a_path() {
    let layers = Layers::new(2);
    layers.file(0, "d/a").file(1, "d/b");
    layers
        .place(0, "d")
        .set_xattr(
            OsStr::new("trusted.overlay.redirect"),
            b"/../etc",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    let image = layers.image();
    let dir = image.find(Path::new("d")).unwrap().unwrap();
    let error = image.with_children(dir, |_| ()).unwrap_err();
    assert!(matches!(error, Error::BadLayer { .. }), "{error}");
}

#[test]
fn redirects_that_lead_to_redirects_are_followed_once_each() {
    // Each directory on the way leads to the whole path again, one layer below: without care the
    // number of steps triples with every layer.
    let layers = Layers::new(60);
    for layer in 0..60 {
        layers.file(layer, &format!("a/a/a/{layer}"));
        for dir in ["a", "a/a", "a/a/a"] {
            marks::set_redirect(&layers.place(layer, dir), Path::new("a/a/a")).unwrap();
        }
    }
    assert_eq!(names(&layers.image(), "a/a/a").len(), 60);
}

#[test]
fn a_symlink_in_a_layer_is_never_followed() {
    let layers = Layers::new(1);
    symlink("/etc", layers.path(0, "link")).unwrap();
    let image = layers.image();
    let link = image.find(Path::new("link")).unwrap().unwrap();
    assert_eq!(image.kind(link), FileKind::Symlink);
    assert_eq!(image.readlink(link).unwrap(), "/etc");
    assert_eq!(image.find(Path::new("link/passwd")).unwrap(), None);
}

#[test]
fn an_image_without_layers_is_an_empty_tree() {
    let image = Image::new(Vec::new()).unwrap();
    assert_eq!(names(&image, ""), Vec::<String>::new());
}
