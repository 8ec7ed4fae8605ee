//! Extended attributes, and the union's own, which nobody sees.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::system::{Layers, each_lamina, each_system};
use crate::tools::{fails, opaque, set_xattr, write, xattr, xattr_names};

fn image(layers: &Layers) {
    write(layers.bottom("file"), "x");
    set_xattr(layers.bottom("file"), "user.image", b"i").unwrap();
    set_xattr(layers.bottom("file"), "trusted.image", b"t").unwrap();
    opaque(layers.top("dir"));
    set_xattr(layers.top("dir"), "user.dir", b"d").unwrap();
}

#[test]
fn all_name_spaces_set_get_list_remove() {
    each_system(image, |m| {
        let file = m.path("file");
        assert_eq!(xattr_names(&file), ["trusted.image", "user.image"]);
        for name in ["user.new", "trusted.new", "security.new"] {
            set_xattr(&file, name, b"one").unwrap();
            set_xattr(&file, name, b"another").unwrap();
            assert_eq!(xattr(&file, name).unwrap(), b"another");
        }
        set_xattr(&file, "user.empty", b"").unwrap();
        assert_eq!(xattr(&file, "user.empty").unwrap(), b"");
        rustix::fs::lremovexattr(&file, "user.image").unwrap();
        fails(xattr(&file, "user.image"), Errno::NODATA);
        let left = [
            "security.new",
            "trusted.image",
            "trusted.new",
            "user.empty",
            "user.new",
        ];
        assert_eq!(xattr_names(&file), left);
        m.remount();
        assert_eq!(xattr_names(&file), left);
        assert_eq!(xattr(&file, "trusted.image").unwrap(), b"t");
    });
}

#[test]
fn create_and_replace() {
    each_system(image, |m| {
        let file = m.path("file");
        let set = |name: &str, flags| rustix::fs::lsetxattr(&file, name, b"v", flags);
        assert_eq!(set("user.image", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(set("user.new", XattrFlags::REPLACE), Err(Errno::NODATA));
        set("user.image", XattrFlags::REPLACE).unwrap();
        set("user.new", XattrFlags::CREATE).unwrap();
        assert_eq!(
            rustix::fs::lremovexattr(&file, "user.none"),
            Err(Errno::NODATA)
        );
    });
}

#[test]
fn sizes_are_asked_and_checked() {
    each_system(image, |m| {
        let file = m.path("file");
        let value = vec![b'v'; 2000];
        set_xattr(&file, "user.long", &value).unwrap();
        assert_eq!(rustix::fs::lgetxattr_query(&file, "user.long"), Ok(2000));
        let mut small = [0; 10];
        let short = rustix::fs::lgetxattr(&file, "user.long", &mut small[..]);
        assert_eq!(short, Err(Errno::RANGE));
        assert_eq!(
            rustix::fs::llistxattr(&file, &mut small[..]),
            Err(Errno::RANGE)
        );
        assert!(rustix::fs::llistxattr_query(&file).unwrap() > 10);
        assert_eq!(xattr(&file, "user.long").unwrap(), value);
    });
}

#[test]
fn the_unions_own_are_not_there() {
    each_system(image, |m| {
        fs::rename(m.path("dir"), m.path("moved")).unwrap();
        assert_eq!(xattr_names(m.path("moved")), ["user.dir"]);
        assert!(xattr(m.path("moved"), "trusted.overlay.opaque").is_err());
        assert!(xattr(m.path("moved"), "trusted.overlay.redirect").is_err());
        set_xattr(m.path("file"), "user.up", b"1").unwrap();
        assert!(xattr(m.path("file"), "trusted.overlay.origin").is_err());
    });
}

#[test]
fn the_unions_own_cannot_be_set() {
    // Overlayfs escapes them since 6.7, so that an overlay may lie in an overlay.
    each_lamina(image, |m| {
        for name in [
            "trusted.overlay.opaque",
            "trusted.overlay.redirect",
            "trusted.overlay.x",
        ] {
            assert!(set_xattr(m.path("file"), name, b"y").is_err(), "{name}");
            assert!(
                rustix::fs::lremovexattr(m.path("dir"), name).is_err(),
                "{name}"
            );
        }
        assert_eq!(xattr_names(m.path("file")), ["trusted.image", "user.image"]);
    });
}

#[test]
fn symbolic_links_have_trusted_ones() {
    each_system(
        |layers| symlink("nowhere", layers.bottom("link")).unwrap(),
        |m| {
            set_xattr(m.path("link"), "trusted.t", b"v").unwrap();
            assert_eq!(xattr(m.path("link"), "trusted.t").unwrap(), b"v");
            fails(set_xattr(m.path("link"), "user.u", b"v"), Errno::PERM);
        },
    );
}
