//! What no careful administrator does: layers that change under a mount, directories that don't fit
//! together, more layers than anybody needs.
//!
//! Each has to end in an error that says what is wrong, or in overlayfs's own answer, and never in
//! a hang or in a file from outside the layers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use lamina_fusefs::session::SessionOptions;
use lamina_fusefs::upper::Upper;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::system::{Access, Layers, Mounted, System, each_system, each_system_over};
use crate::tools::{append, exists, fails, mknod, names, read, set_xattr, stat, tree, write};

/// What lies beside the layers, and may never be seen through a mount.
const SECRET: &str = "secret";

/// The options by which the kernel checks most.
const CAREFUL: &[(&str, &str)] = &[("redirect_dir", "on"), ("index", "on")];

/// A directory outside all layers, with the names that the layers have.
fn outside(layers: &Layers) {
    write(layers.beside("outside/file"), SECRET);
    write(layers.beside("outside/only-outside"), SECRET);
}

/// A layer that [`CHANGES`] change.
pub(crate) fn image(layers: &Layers) {
    outside(layers);
    write(layers.bottom("dir/file"), "image");
    write(layers.bottom("other"), "other");
}

/// Opens the file itself and never waits for it.
fn open(path: impl AsRef<Path>, write: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new()
        .read(!write)
        .append(write)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

fn open_and_read(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::new();
    open(path, false)?.read_to_string(&mut text)?;
    Ok(text)
}

/// How somebody changes a layer that is in use.
struct Change {
    what: &'static str,
    make: fn(&Layers),
    /// What Lamina answers to an open of `dir/file` that the kernel knew before.
    answer: Errno,
}

const CHANGES: &[Change] = &[
    Change {
        what: "the file is gone",
        make: |layers| fs::remove_file(layers.bottom("dir/file")).unwrap(),
        answer: Errno::IO,
    },
    Change {
        what: "the file is a symlink that leads out",
        make: |layers| {
            fs::remove_file(layers.bottom("dir/file")).unwrap();
            symlink(layers.beside("outside/file"), layers.bottom("dir/file")).unwrap();
        },
        answer: Errno::LOOP,
    },
    Change {
        what: "the file is a directory",
        make: |layers| {
            fs::remove_file(layers.bottom("dir/file")).unwrap();
            write(layers.bottom("dir/file/inside"), "");
        },
        answer: Errno::IO,
    },
    Change {
        what: "the file is a pipe that nobody writes to",
        make: |layers| {
            fs::remove_file(layers.bottom("dir/file")).unwrap();
            mknod(layers.bottom("dir/file"), FileType::Fifo, (0, 0)).unwrap();
        },
        answer: Errno::IO,
    },
    Change {
        what: "the file is a socket",
        make: |layers| {
            fs::remove_file(layers.bottom("dir/file")).unwrap();
            mknod(layers.bottom("dir/file"), FileType::Socket, (0, 0)).unwrap();
        },
        answer: Errno::NXIO,
    },
    Change {
        what: "the directory is gone",
        make: |layers| fs::remove_dir_all(layers.bottom("dir")).unwrap(),
        answer: Errno::IO,
    },
    Change {
        what: "the directory is a symlink that leads out",
        make: |layers| {
            fs::remove_dir_all(layers.bottom("dir")).unwrap();
            symlink(layers.beside("outside"), layers.bottom("dir")).unwrap();
        },
        answer: Errno::NOTDIR,
    },
    Change {
        what: "the directory is a symlink that climbs",
        make: |layers| {
            fs::remove_dir_all(layers.bottom("dir")).unwrap();
            symlink("../outside", layers.bottom("dir")).unwrap();
        },
        answer: Errno::NOTDIR,
    },
    Change {
        what: "the directory is a file",
        make: |layers| {
            fs::remove_dir_all(layers.bottom("dir")).unwrap();
            write(layers.bottom("dir"), "file now");
        },
        answer: Errno::NOTDIR,
    },
];

/// Tries everything on a tree of which a layer was changed. Whatever the answers are, nothing from
/// outside is seen or changed, and the mount goes on.
fn use_after_change(m: &Mounted) {
    let before = tree(m.layers.beside("outside"));
    let (dir, file) = (m.path("dir"), m.path("dir/file"));
    // Where the kernel knows the symlink, following it is the caller's affair.
    let dir_is_known = fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_dir());
    if let Ok(text) = open_and_read(&file)
        && dir_is_known
    {
        assert_ne!(text, SECRET);
    }
    let _ = fs::symlink_metadata(&file).map(|meta| meta.len());
    if dir_is_known {
        let _ = fs::read_dir(&dir).map(Iterator::count);
        assert!(!exists(dir.join("only-outside")));
        let _ = fs::read_link(&file);
        let _ = set_xattr(&file, "user.x", b"1");
        let _ = open(&file, true).and_then(|mut file| file.write_all(b"!"));
        let _ = fs::rename(&file, dir.join("renamed"));
        let _ = fs::write(dir.join("new"), "new");
        let _ = fs::remove_file(dir.join("renamed"));
        let _ = fs::remove_file(&file);
        let _ = fs::rename(&dir, m.path("moved"));
    }
    assert_eq!(tree(m.layers.beside("outside")), before);
    assert_eq!(read(m.path("other")), "other");
    append(m.path("other"), "!");
    assert_eq!(read(m.path("other")), "other!");
}

#[test]
fn a_layer_that_changes_before_it_is_looked_at() {
    for change in CHANGES {
        eprintln!("{}", change.what);
        each_system(image, |m| {
            (change.make)(&m.layers);
            use_after_change(m);
        });
    }
}

#[test]
fn a_layer_that_changes_after_it_was_looked_at() {
    for change in CHANGES {
        eprintln!("{}", change.what);
        each_system(image, |m| {
            assert_eq!(names(m.path("dir")), ["file"]);
            assert_eq!(stat(m.path("dir/file")).len(), 5);
            (change.make)(&m.layers);
            if m.is_lamina() {
                // The kernel still knows a regular file there, and Lamina finds none.
                assert_eq!(stat(m.path("dir/file")).len(), 5);
                fails(open_and_read(m.path("dir/file")), change.answer);
                fails(open(m.path("dir/file"), true), change.answer);
            }
            use_after_change(m);
        });
    }
}

#[test]
fn an_open_file_of_a_layer_outlives_its_name() {
    each_system(image, |m| {
        let mut file = open(m.path("dir/file"), false).unwrap();
        fs::remove_dir_all(m.layers.bottom("dir")).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "image");
    });
}

/// `OVL_MAX_STACK`.
const MAX_LAYERS: usize = 500;

#[test]
fn as_many_layers_as_overlayfs_takes() {
    each_system_over(
        MAX_LAYERS,
        |layers| {
            for (number, layer) in layers.lowers().iter().enumerate() {
                write(layer.join(format!("dir/{number:03}")), number.to_string());
                write(layer.join("same"), number.to_string());
            }
        },
        |m| {
            assert_eq!(names(m.path("dir")).len(), MAX_LAYERS);
            assert_eq!(read(m.path("dir/499")), "499");
            assert_eq!(read(m.path("same")), "0");
            append(m.path("dir/499"), "!");
            m.remount();
            assert_eq!(read(m.path("dir/499")), "499!");
        },
    );
}

#[test]
fn an_upper_that_was_used_with_other_layers() {
    each_system(image, |m| {
        fs::hard_link(m.layers.bottom("other"), m.layers.bottom("linked")).unwrap();
        m.remount();
        append(m.path("other"), "!");
        append(m.path("dir/file"), "!");
        fs::rename(m.path("dir"), m.path("moved")).unwrap();
        m.unmount();
        // Other files at the same names.
        for lower in m.layers.lowers() {
            fs::remove_dir_all(lower).unwrap();
            fs::create_dir(lower).unwrap();
        }
        write(m.layers.bottom("third"), "third");
        if !m.is_lamina() {
            let refused = m.layers.try_mount_overlay(Access::Write, CAREFUL);
            assert_eq!(refused, Err(Errno::STALE));
            return;
        }
        let session = m
            .layers
            .mount_lamina(Access::Write, &SessionOptions::default());
        // What the upper has is complete.
        assert_eq!(names(m.path("")), ["moved", "other", "third"]);
        assert_eq!(read(m.path("other")), "other!");
        assert_eq!(read(m.path("moved/file")), "image!");
        append(m.path("other"), "!");
        fs::remove_file(m.path("other")).unwrap();
        fs::remove_dir_all(m.path("moved")).unwrap();
        assert_eq!(names(m.path("")), ["third"]);
        drop(session);
    });
}

/// Neither system mounts these directories. Lamina says why.
fn is_refused(prepare: impl Fn(&Layers), why: &str, overlayfs: Errno) {
    let layers = Layers::new(1);
    prepare(&layers);
    if System::Overlayfs.is_wanted() {
        let refused = layers.try_mount_overlay(Access::Write, CAREFUL);
        assert_eq!(refused, Err(overlayfs));
    }
    let error = Upper::open(&layers.upper(), &layers.work()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(why), "{text}");
}

#[test]
fn a_work_directory_on_another_file_system() {
    let layers = Layers::new(1);
    let none: Option<&std::ffi::CStr> = None;
    mount("tmpfs", layers.work(), "tmpfs", MountFlags::empty(), none).unwrap();
    let refused = layers.try_mount_overlay(Access::Write, CAREFUL);
    let error = Upper::open(&layers.upper(), &layers.work());
    unmount(layers.work(), UnmountFlags::empty()).unwrap();
    assert_eq!(refused, Err(Errno::INVAL));
    let text = error.unwrap_err().to_string();
    assert!(text.contains("not on the upper's file system"), "{text}");
    assert!(text.contains("/work"), "{text}");
}

#[test]
fn a_work_directory_inside_the_upper() {
    let inside = |layers: &Layers| {
        fs::create_dir_all(layers.upper().join("a/b")).unwrap();
        fs::remove_dir(layers.work()).unwrap();
        symlink("upper/a/b", layers.work()).unwrap();
    };
    is_refused(inside, "inside the upper", Errno::INVAL);
}

#[test]
fn an_upper_inside_the_work_directory() {
    let inside = |layers: &Layers| {
        fs::create_dir_all(layers.work().join("work/a")).unwrap();
        fs::remove_dir(layers.upper()).unwrap();
        symlink("work/work/a", layers.upper()).unwrap();
    };
    is_refused(inside, "inside its work directory", Errno::INVAL);
}

#[test]
fn one_directory_as_upper_and_work_directory() {
    let same = |layers: &Layers| {
        fs::remove_dir(layers.work()).unwrap();
        symlink("upper", layers.work()).unwrap();
    };
    is_refused(same, "can't be the work directory", Errno::INVAL);
}

#[test]
fn a_work_directory_that_another_mount_uses() {
    each_system(image, |m| {
        if m.is_lamina() {
            let error = Upper::open(&m.layers.upper(), &m.layers.work()).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("in use by another mount"), "{text}");
            assert_eq!(error.errno(), Errno::AGAIN);
        } else {
            let again = m.layers.try_mount_overlay(Access::Write, CAREFUL);
            assert_eq!(again, Err(Errno::BUSY));
        }
        append(m.path("other"), "!");
        assert_eq!(read(m.path("other")), "other!");
    });
}

#[test]
fn symlinks_of_a_layer_are_text() {
    each_system(
        |layers| {
            image(layers);
            // The topmost layer's symlinks hide directories that would merge.
            symlink("../outside", layers.top("dir")).unwrap();
            symlink("../../../../../../etc/passwd", layers.top("up")).unwrap();
            symlink(layers.beside("outside/file"), layers.top("away")).unwrap();
        },
        |m| {
            assert_eq!(
                fs::read_link(m.path("dir")).unwrap(),
                Path::new("../outside")
            );
            fails(open_and_read(m.path("up")), Errno::LOOP);
            fails(open_and_read(m.path("away")), Errno::LOOP);
            // Changing a symlink changes no target.
            let before = tree(m.layers.beside("outside"));
            crate::tools::lchown(m.path("away"), 3, 4);
            crate::tools::lchown(m.path("dir"), 3, 4);
            fs::rename(m.path("dir"), m.path("moved")).unwrap();
            fs::remove_file(m.path("away")).unwrap();
            assert_eq!(tree(m.layers.beside("outside")), before);
            assert!(!exists(m.path("dir")));
        },
    );
}

#[test]
fn a_layer_named_by_a_symlink() {
    each_system(
        |layers| {
            write(layers.beside("real/file"), "real");
            write(layers.bottom("below"), "below");
            fs::remove_dir(layers.top("")).unwrap();
            symlink("real", &layers.lowers()[0]).unwrap();
        },
        |m| {
            assert_eq!(names(m.path("")), ["below", "file"]);
            append(m.path("file"), "!");
            m.remount();
            assert_eq!(read(m.path("file")), "real!");
            assert_eq!(read(m.layers.beside("real/file")), "real");
        },
    );
}
