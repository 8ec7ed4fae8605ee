//! Character devices 0:0, which a container makes as whiteouts of its own overlay. On overlayfs
//! nobody can make one.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::system::{Access, Layers, Mounted, System, each_lamina, each_system};
use crate::tools::{
    chmod, exists, fails, lchown, mknod, mode, names, set_xattr, sh_as_user, stat, truncate,
    whiteout, write, xattr, xattr_names,
};

/// The mark that overlayfs reads, as the upper has it and as a container sees it.
const ESCAPED: &str = "trusted.overlay.overlay.whiteout";
const MARK: &str = "trusted.overlay.whiteout";

fn device(path: impl AsRef<Path>) {
    mknod(path, FileType::CharacterDevice, (0, 0)).unwrap();
}

#[track_caller]
fn is_device(path: impl AsRef<Path>) {
    let path = path.as_ref();
    let shown = path.display();
    let meta = stat(path);
    assert!(meta.file_type().is_char_device(), "{shown}: {meta:?}");
    assert_eq!((meta.rdev(), meta.size(), meta.blocks()), (0, 0, 0));
    let mut listed = fs::read_dir(path.parent().unwrap()).unwrap();
    let entry = listed.find_map(|entry| {
        let entry = entry.unwrap();
        (entry.path() == path).then_some(entry)
    });
    let entry = entry.unwrap_or_else(|| panic!("{shown} is not listed"));
    assert!(entry.file_type().unwrap().is_char_device(), "{shown}");
}

fn image(layers: &Layers) {
    write(layers.bottom("gone"), "x");
    write(layers.bottom("dir/file"), "x");
}

#[test]
fn overlayfs_refuses_them() {
    each_system(image, |m| {
        if !m.is_lamina() {
            fails(
                mknod(m.path("new"), FileType::CharacterDevice, (0, 0)),
                Errno::PERM,
            );
        }
    });
}

#[test]
fn they_are_made_and_kept() {
    each_lamina(image, |m| {
        fs::remove_file(m.path("gone")).unwrap();
        for name in ["new", "gone", "dir/new"] {
            device(m.path(name));
            is_device(m.path(name));
            assert_eq!(mode(m.path(name)), 0o644);
        }
        fails(
            mknod(m.path("dir/file"), FileType::CharacterDevice, (0, 0)),
            Errno::EXIST,
        );
        fails(
            mknod(m.path("new"), FileType::CharacterDevice, (0, 0)),
            Errno::EXIST,
        );
        m.remount();
        for name in ["new", "gone", "dir/new"] {
            is_device(m.path(name));
            assert_eq!(xattr_names(m.path(name)).len(), 0);
            fails(xattr(m.path(name), MARK), Errno::NODATA);
        }
        assert_eq!(names(m.path("dir")), ["file", "new"]);
    });
}

#[test]
fn nothing_is_behind_them() {
    each_lamina(image, |m| {
        device(m.path("new"));
        fails(File::open(m.path("new")), Errno::NXIO);
        fails(File::create(m.path("new")), Errno::NXIO);
        fails(truncate(m.path("new"), 10), Errno::INVAL);
        fails(
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(m.path("new")),
            Errno::NXIO,
        );
        is_device(m.path("new"));
    });
}

/// Everything that changes an inode or a name; `dir` has a device `dev` with another name `same`.
fn changes(m: &mut Mounted) {
    let at = |name: &str| m.path("dir").join(name);
    is_device(at("dev"));
    assert_eq!(stat(at("dev")).nlink(), 2);
    chmod(at("dev"), 0o600);
    lchown(at("dev"), 7, 8);
    set_xattr(at("dev"), "trusted.x", b"v").unwrap();
    fails(set_xattr(at("dev"), MARK, b"y"), Errno::PERM);
    fails(
        rustix::fs::lremovexattr(at("dev"), MARK).map_err(Into::into),
        Errno::NODATA,
    );
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 2,
    };
    let times = Timestamps {
        last_access: second,
        last_modification: second,
    };
    rustix::fs::utimensat(CWD, at("dev"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    fs::hard_link(at("dev"), m.path("third")).unwrap();
    fs::create_dir(m.path("other")).unwrap();
    fs::rename(at("same"), m.path("other/moved")).unwrap();
    m.remount();
    let number = stat(m.path("dir/dev")).ino();
    for name in ["dir/dev", "third", "other/moved"] {
        is_device(m.path(name));
        let meta = stat(m.path(name));
        assert_eq!((meta.ino(), meta.nlink()), (number, 3), "{name}");
        assert_eq!((meta.uid(), meta.gid()), (7, 8), "{name}");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1, 2), "{name}");
        assert_eq!(mode(m.path(name)), 0o600, "{name}");
        assert_eq!(xattr_names(m.path(name)), ["trusted.x"], "{name}");
    }
    fs::remove_file(m.path("third")).unwrap();
    write(m.path("file"), "x");
    fs::rename(m.path("file"), m.path("dir/dev")).unwrap();
    is_device(m.path("other/moved"));
    let exchange = RenameFlags::EXCHANGE;
    fs::create_dir(m.path("third")).unwrap();
    write(m.path("third/file"), "x");
    let (one, another) = (m.path("other/moved"), m.path("third/file"));
    fs::hard_link(&one, m.path("other/again")).unwrap();
    rustix::fs::renameat_with(CWD, &one, CWD, &another, exchange).unwrap();
    m.remount();
    is_device(m.path("third/file"));
    is_device(m.path("other/again"));
    assert!(stat(m.path("other/moved")).is_file());
    for name in ["third/file", "other/again"] {
        fs::remove_file(m.path(name)).unwrap();
        assert!(!exists(m.path(name)), "{name}");
    }
    assert_eq!(names(m.path("dir")), ["dev"]);
}

#[test]
fn they_change_like_other_files() {
    each_lamina(
        |_| {},
        |m| {
            fs::create_dir(m.path("dir")).unwrap();
            device(m.path("dir/dev"));
            fs::hard_link(m.path("dir/dev"), m.path("dir/same")).unwrap();
            changes(m);
        },
    );
}

#[test]
fn a_layer_has_them_too() {
    each_lamina(
        |_| {},
        |m| {
            fs::create_dir(m.path("dir")).unwrap();
            device(m.path("dir/dev"));
            fs::hard_link(m.path("dir/dev"), m.path("dir/same")).unwrap();
            m.unmount();
            let mut above = Layers::new(2);
            above.bind_top(&m.layers.upper());
            let mut above = Mounted::new(m.system, above, Access::Write);
            is_device(above.path("dir/dev"));
            fails(File::open(above.path("dir/dev")), Errno::NXIO);
            changes(&mut above);
            above.unmount();
            // The layer is what it was.
            let meta = stat(m.upper("dir/dev"));
            assert_eq!((meta.nlink(), meta.uid()), (2, 0));
        },
    );
}

#[test]
fn rename_whiteout_leaves_one() {
    each_lamina(image, |m| {
        let leave = |from: &str, to: &str, flags| {
            let flags = RenameFlags::WHITEOUT | flags;
            rustix::fs::renameat_with(CWD, m.path(from), CWD, m.path(to), flags)
        };
        write(m.path("new"), "new");
        fs::create_dir(m.path("empty")).unwrap();
        leave("gone", "dir/moved", RenameFlags::NOREPLACE).unwrap();
        leave("new", "dir/file", RenameFlags::empty()).unwrap();
        leave("empty", "dir/empty", RenameFlags::empty()).unwrap();
        leave("dir", "other", RenameFlags::empty()).unwrap();
        assert_eq!(
            leave("new", "other/file", RenameFlags::NOREPLACE),
            Err(Errno::EXIST)
        );
        assert_eq!(
            leave("new", "other/file", RenameFlags::EXCHANGE),
            Err(Errno::INVAL)
        );
        for _ in 0..2 {
            for name in ["gone", "new", "empty", "dir"] {
                is_device(m.path(name));
                assert_eq!(mode(m.path(name)), 0, "{name}");
            }
            assert_eq!(names(m.path("other")), ["empty", "file", "moved"]);
            assert_eq!(fs::read(m.path("other/file")).unwrap(), b"new");
            assert_eq!(fs::read(m.path("other/moved")).unwrap(), b"x");
            m.remount();
        }
    });
}

#[test]
fn anybody_makes_one_and_owns_it() {
    each_lamina(image, |m| {
        chmod(m.path("dir"), 0o1777);
        assert!(sh_as_user(
            m.path("dir"),
            "umask 027; mknod -m 0666 dev c 0 0"
        ));
        assert!(!sh_as_user(m.path("dir"), "mknod null c 1 3 2> /dev/null"));
        is_device(m.path("dir/dev"));
        assert_ne!(stat(m.path("dir/dev")).uid(), 0);
        assert_eq!(
            stat(m.upper("dir/dev")).uid(),
            stat(m.path("dir/dev")).uid()
        );
    });
}

#[test]
fn an_empty_file_with_the_xattr_is_no_device() {
    each_system(image, |m| {
        write(m.path("dir/empty"), "");
        set_xattr(m.path("dir/empty"), MARK, b"y").unwrap();
        // Makes a directory that lists its files with care.
        fs::rename(m.path("gone"), m.path("dir/gone")).unwrap();
        m.remount();
        assert!(stat(m.path("dir/empty")).is_file());
        assert_eq!(xattr(m.path("dir/empty"), MARK).unwrap(), b"y");
        assert_eq!(names(m.path("dir")), ["empty", "file", "gone"]);
    });
}

#[test]
fn overlayfs_shows_what_an_overlay_in_it_takes_for_a_whiteout() {
    each_lamina(image, |m| {
        device(m.path("dir/new"));
        let before = m.system;
        m.switch(System::Overlayfs);
        let meta = stat(m.path("dir/new"));
        assert!(meta.is_file() && meta.size() == 0, "{meta:?}");
        assert_eq!(xattr_names(m.path("dir/new")), [MARK]);
        assert_eq!(xattr(m.upper("dir/new"), ESCAPED).unwrap(), b"y");
        m.switch(before);
        is_device(m.path("dir/new"));
    });
}

#[test]
fn layers_have_whiteouts_that_are_files() {
    let prepare = |layers: &Layers| {
        for dir in ["marked", "plain"] {
            for name in ["gone", "long", "kept"] {
                write(layers.bottom(dir).join(name), "below");
            }
            write(layers.top(dir).join("gone"), "");
            write(layers.top(dir).join("long"), "above");
            write(layers.top(dir).join("kept"), "");
            for name in ["gone", "long"] {
                set_xattr(layers.top(dir).join(name), MARK, b"").unwrap();
            }
            write(layers.bottom(dir).join("below"), "");
        }
        set_xattr(layers.top("marked"), "trusted.overlay.opaque", b"x").unwrap();
        whiteout(layers.top("marked/usual"));
        write(layers.bottom("marked/usual"), "below");
    };
    each_system(prepare, |m| {
        assert!(!exists(m.path("marked/gone")));
        assert!(!exists(m.path("marked/usual")));
        assert_eq!(names(m.path("marked")), ["below", "kept", "long"]);
        assert_eq!(stat(m.path("marked/long")).len(), 5);
        // The name is free again, and what is made there stays.
        write(m.path("marked/gone"), "new");
        m.remount();
        assert_eq!(names(m.path("marked")), ["below", "gone", "kept", "long"]);
        if m.is_lamina() {
            // overlayfs lists a file here that it then does not find.
            assert_eq!(names(m.path("plain")), ["below", "gone", "kept", "long"]);
            assert!(exists(m.path("plain/gone")));
        }
    });
}
