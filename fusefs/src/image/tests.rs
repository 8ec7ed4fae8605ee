//! The merge, on layers made by hand.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;
use crate::index::Kind;
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

    fn file_place(&self, layer: usize, path: &str) -> Place {
        let path = self.path(layer, path);
        let dir = crate::sys::beneath::open_root(path.parent().unwrap()).unwrap();
        Place::at(&Arc::new(dir), path.file_name().unwrap())
    }

    /// The image that is merged on demand.
    fn lazy(&self) -> Arc<Image> {
        let layers = (0..self.count)
            .map(|layer| Arc::new(DirLayer::open(&self.path(layer, "")).unwrap()) as Arc<dyn Layer>)
            .collect();
        Image::new(layers).unwrap()
    }

    /// The image with an index, if it can have one.
    fn indexed(&self) -> Arc<Image> {
        Image::open_indexed(&self.places(), &self.index()).unwrap()
    }

    fn places(&self) -> Vec<LayerPlace> {
        let place = |layer| LayerPlace::Dir {
            dir: self.path(layer, ""),
            index: Some(self.dir.path().join(format!("{layer}.index"))),
        };
        (0..self.count).map(place).collect()
    }

    fn index(&self) -> PathBuf {
        self.dir.path().join("image.index")
    }

    /// The image, after a look whether an index says the same.
    fn image(&self) -> Arc<Image> {
        let image = self.lazy();
        let indexed = self.indexed();
        assert!(indexed.is_indexed());
        assert_eq!(answers(&indexed), answers(&image));
        // The second time it is only opened.
        assert_eq!(answers(&self.indexed()), answers(&image));
        indexed
    }
}

/// Attributes but the atime, which a walk over the layers changes.
fn lasting(attr: Attr) -> Attr {
    Attr {
        atime: Timestamp::default(),
        ..attr
    }
}

/// The answers of an image to everything that it can be asked.
fn answers(image: &Image) -> Vec<String> {
    let mut answers = Vec::new();
    let mut pending = vec![ImageId::ROOT];
    while let Some(dir) = pending.pop() {
        let mut children = Vec::new();
        let each = |child: &Child<'_>| children.push((child.name.to_owned(), child.id, child.ino));
        image.each_child(dir, each).unwrap();
        children.sort_by(|one, other| one.0.cmp(&other.0));
        answers.push(format!(
            "{:?} {:?}",
            image.path(dir),
            image.attr(dir).map(lasting)
        ));
        for (name, id, ino) in children {
            assert_eq!(image.lookup(dir, &name).unwrap(), Some(id));
            assert_eq!(image.ino(id).unwrap(), ino);
            let xattrs = image.xattr_names(id).unwrap();
            let values = xattrs.iter().map(|name| image.xattr(id, name).unwrap());
            let values: Vec<_> = values.collect();
            let (source, key) = (image.tree.source(id).unwrap(), image.link_key(id).unwrap());
            answers.push(format!(
                "{name:?} {ino:?} {xattrs:?} {values:?} {source:?} {key:?}"
            ));
            answers.push(format!(
                "{:?} {:?}",
                image.path(id),
                lasting(image.attr(id).unwrap())
            ));
            match image.kind(id) {
                FileKind::Directory => pending.push(id),
                FileKind::Regular => answers.push(format!("{:?}", image.tree.data(id).unwrap())),
                FileKind::Symlink => answers.push(format!("{:?}", image.readlink(id).unwrap())),
                _ => {}
            }
        }
    }
    answers
}

fn names(image: &Image, path: &str) -> Vec<String> {
    let dir = image
        .find(Path::new(path))
        .unwrap()
        .expect("the directory exists");
    let mut names = Vec::new();
    let each = |child: &Child<'_>| names.push(child.name.to_string_lossy().into_owned());
    image.each_child(dir, each).unwrap();
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
    let image = layers.indexed();
    assert!(
        !image.is_indexed(),
        "nothing can be written down of such a layer"
    );
    let dir = image.find(Path::new("d")).unwrap().unwrap();
    let error = image.each_child(dir, |_| ()).unwrap_err();
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

#[test]
fn a_metacopy_file_has_its_data_where_its_redirect_leads() {
    let layers = Layers::new(3);
    layers.file(0, "new").file(2, "d/old");
    fs::write(layers.path(0, "new"), "").unwrap();
    marks::set_metacopy(&layers.file_place(0, "new")).unwrap();
    marks::set_redirect(&layers.file_place(0, "new"), Path::new("d/old")).unwrap();
    let image = layers.image();
    let new = image.find(Path::new("new")).unwrap().unwrap();
    let text = std::io::read_to_string(image.open(new).unwrap()).unwrap();
    assert_eq!(text, "2");
}

/// What a damaged index does to an image: nothing, and the index is whole again.
fn is_made_again(layers: &Layers, damage: impl FnOnce(&Path)) {
    let expected = answers(&layers.image());
    damage(&layers.index());
    let image = layers.indexed();
    assert!(image.is_indexed());
    assert_eq!(answers(&image), expected);
    verify_index(&layers.index(), Kind::Image, &layers.places()).unwrap();
}

#[test]
fn an_index_that_is_damaged_cut_off_or_of_another_version_is_made_again() {
    let layers = Layers::new(2);
    layers.file(0, "d/a").file(1, "d/b");
    is_made_again(&layers, |index| fs::remove_file(index).unwrap());
    is_made_again(&layers, |index| {
        let mut bytes = fs::read(index).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(index, bytes).unwrap();
    });
    is_made_again(&layers, |index| {
        let bytes = fs::read(index).unwrap();
        fs::write(index, &bytes[..bytes.len() - 1]).unwrap();
    });
    is_made_again(&layers, |index| {
        let mut bytes = fs::read(index).unwrap();
        bytes[8] += 1;
        fs::write(index, bytes).unwrap();
    });
    // The index of a layer is one of another kind.
    let of_layer = layers.dir.path().join("0.index");
    is_made_again(&layers, |index| {
        assert!(fs::copy(&of_layer, index).unwrap() > 0);
    });
    // So are those of the layers.
    fs::write(&of_layer, "x").unwrap();
    is_made_again(&layers, |index| fs::remove_file(index).unwrap());
    verify_index(&of_layer, Kind::Layer, &layers.places()[..1]).unwrap();
}

#[test]
fn an_index_of_other_layers_is_made_again() {
    let layers = Layers::new(2);
    layers.file(0, "old").file(1, "below");
    layers.image();
    fs::rename(layers.path(0, ""), layers.dir.path().join("away")).unwrap();
    fs::create_dir(layers.path(0, "")).unwrap();
    layers.file(0, "new");
    assert_eq!(names(&layers.indexed(), ""), ["below", "new"]);
}

#[test]
fn an_image_whose_index_can_not_be_written_is_merged_on_demand() {
    use crate::sys::change::faults::{Fault, with};
    let layers = Layers::new(2);
    layers.file(0, "a").file(1, "b");
    let forget = || {
        for index in ["0.index", "1.index", "image.index"] {
            let _ = fs::remove_file(layers.dir.path().join(index));
        }
    };
    let (_, steps) = with(Fault::Never, || layers.indexed());
    let mut without = 0;
    for step in 0..steps {
        for fault in [
            Fault::CrashAfter(step),
            Fault::FailAfter(step, rustix::io::Errno::NOSPC),
        ] {
            forget();
            let (image, _) = with(fault, || layers.indexed());
            assert_eq!(names(&image, ""), ["a", "b"], "{fault:?}");
            without += u32::from(!image.is_indexed());
            let image = layers.indexed();
            assert!(image.is_indexed(), "after {fault:?}");
            assert_eq!(names(&image, ""), ["a", "b"], "after {fault:?}");
        }
    }
    assert!(without > 5, "no step was one of the image's index");
}
