//! Kernel overlayfs with its layers on a mount of Lamina: an overlay in a container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, RenameFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::system::{Access, Layers, Mounted, System, each_lamina};
use crate::tools::{
    append, exists, fails, mknod, names, read, sh, stat, write, xattr, xattr_names,
};

/// A mounted overlay. Unmounts when dropped.
struct Nested {
    target: PathBuf,
}

impl Nested {
    /// Mounts an overlay with an upper and a work directory, with redirects.
    fn new(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Nested {
        Nested::try_new(lowers, Some((upper, work)), target).unwrap()
    }

    fn try_new(
        lowers: &[PathBuf],
        upper: Option<(&Path, &Path)>,
        target: &Path,
    ) -> rustix::io::Result<Nested> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for lower in lowers {
            fsconfig_set_string(&context, "lowerdir+", lower)?;
        }
        if let Some((upper, work)) = upper {
            fsconfig_set_string(&context, "upperdir", upper)?;
            fsconfig_set_string(&context, "workdir", work)?;
            // `on` fails where the marks cannot be kept; the default gives up quietly.
            fsconfig_set_string(&context, "redirect_dir", "on")?;
        }
        fsconfig_create(&context)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(&context, flags, MountAttrFlags::empty())?;
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", CWD, target, from)?;
        Ok(Nested {
            target: target.to_owned(),
        })
    }

    /// In the directory `inner` of a mount: `lower`, `upper` and `work`, mounted beside it.
    fn inside(m: &Mounted) -> Nested {
        let at = |name: &str| m.path("inner").join(name);
        Nested::new(&[at("lower")], &at("upper"), &at("work"), &target(m, "n1"))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.target.join(path)
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        let plain = unmount(&self.target, UnmountFlags::empty());
        if plain.is_err() {
            // A failed test may have left files open.
            let _ = unmount(&self.target, UnmountFlags::DETACH);
        }
    }
}

/// A mount point beside the one of Lamina.
fn target(m: &Mounted, name: &str) -> PathBuf {
    let target = m.layers.beside(name);
    fs::create_dir_all(&target).unwrap();
    target
}

/// An image that brings the nested overlay's lower along, as an image of a build tool does.
fn image(layers: &Layers) {
    for (name, text) in [
        ("file", "file"),
        ("gone", "gone"),
        ("moved", "moved"),
        ("dir/a", "a"),
        ("dir/deep/b", "b"),
        ("removed/x", "x"),
        ("remade/x", "x"),
    ] {
        write(layers.bottom("inner/lower").join(name), text);
    }
    for name in ["upper", "work"] {
        fs::create_dir_all(layers.top("inner").join(name)).unwrap();
    }
}

/// Everything that an overlay keeps a mark for.
fn change(n: &Nested) {
    append(n.path("file"), "!");
    fs::remove_file(n.path("gone")).unwrap();
    fs::rename(n.path("moved"), n.path("elsewhere")).unwrap();
    fs::rename(n.path("dir"), n.path("redirected")).unwrap();
    append(n.path("redirected/deep/b"), "!");
    fs::remove_dir_all(n.path("removed")).unwrap();
    fs::remove_dir_all(n.path("remade")).unwrap();
    fs::create_dir(n.path("remade")).unwrap();
    write(n.path("remade/new"), "new");
    write(n.path("new"), "new");
    fs::hard_link(n.path("new"), n.path("again")).unwrap();
    let exchange = RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(CWD, n.path("new"), CWD, n.path("remade/new"), exchange).unwrap();
}

#[track_caller]
fn is_changed(n: &Nested) {
    let top = ["again", "elsewhere", "file", "new", "redirected", "remade"];
    assert_eq!(names(n.path("")), top);
    assert_eq!(read(n.path("file")), "file!");
    for name in ["gone", "moved", "dir", "removed"] {
        assert!(!exists(n.path(name)), "{name}");
    }
    assert_eq!(read(n.path("elsewhere")), "moved");
    assert_eq!(names(n.path("redirected")), ["a", "deep"]);
    assert_eq!(read(n.path("redirected/a")), "a");
    assert_eq!(read(n.path("redirected/deep/b")), "b!");
    assert_eq!(names(n.path("remade")), ["new"]);
    assert_eq!(
        stat(n.path("again")).ino(),
        stat(n.path("remade/new")).ino()
    );
}

#[test]
fn an_overlay_keeps_all_its_marks() {
    each_lamina(image, |m| {
        let nested = Nested::inside(m);
        change(&nested);
        is_changed(&nested);
        drop(nested);
        // What it left is in its own format, seen through the mount.
        let upper = |name: &str| m.path("inner/upper").join(name);
        for name in ["gone", "moved", "dir", "removed"] {
            assert!(stat(upper(name)).file_type().is_char_device(), "{name}");
        }
        assert_eq!(
            xattr(upper("redirected"), "trusted.overlay.redirect").unwrap(),
            b"dir"
        );
        assert_eq!(
            xattr(upper("remade"), "trusted.overlay.opaque").unwrap(),
            b"y"
        );
        is_changed(&Nested::inside(m));
        m.remount();
        is_changed(&Nested::inside(m));
    });
}

#[test]
fn what_an_overlay_left_is_kept_in_a_layer_and_over_a_copy_up() {
    each_lamina(image, |m| {
        change(&Nested::inside(m));
        m.unmount();
        // The upper becomes a layer, as at Commit, over what it was written on.
        let mut above = Layers::new(3);
        above.bind_top(&m.layers.upper());
        for (from, to) in [(0, 1), (1, 2)] {
            let from = format!("{}/.", m.layers.lowers()[from].display());
            let to = above.lowers()[to].display().to_string();
            assert!(sh("/", &format!("cp -a {from} {to}")));
        }
        let mut above = Mounted::new(m.system, above, Access::Write);
        is_changed(&Nested::inside(&above));
        // Copied up from the layer, its marks come along.
        let upper = |name: &str| above.path("inner/upper").join(name);
        for name in ["gone", "redirected", "remade"] {
            std::os::unix::fs::chown(upper(name), Some(0), Some(7)).unwrap();
        }
        assert!(stat(upper("gone")).file_type().is_char_device());
        is_changed(&Nested::inside(&above));
        above.remount();
        let nested = Nested::inside(&above);
        is_changed(&nested);
        // What is hidden can be made again.
        write(nested.path("gone"), "back");
        fs::create_dir(nested.path("removed")).unwrap();
        assert_eq!(read(nested.path("gone")), "back");
        assert_eq!(names(nested.path("removed")).len(), 0);
    });
}

#[test]
fn an_overlay_reads_a_mount_that_is_read_only() {
    for passthrough in [true, false] {
        let system = System::Lamina { passthrough };
        if !system.is_wanted() {
            continue;
        }
        let layers = Layers::new(2);
        image(&layers);
        let m = Mounted::new(system, layers, Access::ReadOnly);
        let (upper, work) = (m.layers.beside("upper2"), m.layers.beside("work2"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let nested = Nested::new(&[m.path("inner/lower")], &upper, &work, &target(&m, "n1"));
        change(&nested);
        is_changed(&nested);
        assert_eq!(read(m.path("inner/lower/file")), "file");
    }
}

#[test]
fn as_deep_as_the_kernel_stacks() {
    each_lamina(image, |m| {
        let nested = Nested::inside(m);
        for name in ["upper", "work"] {
            fs::create_dir_all(nested.path("dir").join(name)).unwrap();
        }
        let (upper, work) = (m.layers.beside("upper2"), m.layers.beside("work2"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let lowers = [nested.path("")];
        let third = Nested::try_new(&lowers, Some((&upper, &work)), &target(m, "n2"));
        // Two stacked file systems at most (FILESYSTEM_MAX_STACK_DEPTH), and passthrough makes us one.
        if m.system == (System::Lamina { passthrough: true }) {
            fails(third.map(|_| ()).map_err(Into::into), Errno::INVAL);
        } else {
            let third = third.unwrap();
            append(third.path("file"), "!");
            assert_eq!(read(third.path("file")), "file!");
            assert_eq!(read(nested.path("file")), "file");
        }
    });
}

#[test]
fn marks_of_a_nested_overlay_are_out_of_reach_of_the_outer_one() {
    each_lamina(image, |m| {
        let nested = Nested::inside(m);
        fs::remove_dir_all(nested.path("remade")).unwrap();
        fs::create_dir(nested.path("remade")).unwrap();
        drop(nested);
        let ours = m.upper("inner/upper/remade");
        let escaped = "trusted.overlay.overlay.opaque";
        assert!(xattr_names(&ours).contains(&escaped.to_owned()));
        assert!(!xattr_names(&ours).contains(&"trusted.overlay.opaque".to_owned()));
    });
}

#[test]
fn through_overlayfs_a_device_is_a_whiteout_for_what_is_nested() {
    each_lamina(image, |m| {
        let dev = FileType::CharacterDevice;
        mknod(m.path("inner/upper/gone"), dev, (0, 0)).unwrap();
        write(m.path("inner/upper/new"), "new");
        m.switch(System::Overlayfs);
        let lowers = [m.path("inner/upper"), m.path("inner/lower")];
        let nested = Nested::try_new(&lowers, None, &target(m, "n1")).unwrap();
        assert_eq!(read(nested.path("new")), "new");
        assert!(exists(m.path("inner/lower/gone")));
        assert!(!exists(nested.path("gone")));
        // For the listing the directory would have to be marked, and the container would see that.
        assert!(names(nested.path("")).contains(&"gone".into()));
    });
}
