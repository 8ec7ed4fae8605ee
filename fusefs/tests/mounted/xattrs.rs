//! Extended attributes, and the union's own, which nobody sees.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::system::{Layers, each_system};
use crate::tools::{append, fails, names, opaque, set_xattr, write, xattr, xattr_names};

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
fn what_is_named_like_the_unions_own_is_kept_beside_them() {
    each_system(image, |m| {
        // A directory that says `opaque` by the container's word still merges.
        write(m.path("dir/kept"), "x");
        let all = [
            "trusted.overlay.opaque",
            "trusted.overlay.overlay.opaque",
            "trusted.overlay.redirect",
        ];
        for name in all {
            fails(xattr(m.path("dir"), name), Errno::NODATA);
            set_xattr(m.path("dir"), name, name.as_bytes()).unwrap();
        }
        m.remount();
        for name in all {
            assert_eq!(xattr(m.path("dir"), name).unwrap(), name.as_bytes());
        }
        assert_eq!(xattr_names(m.path("dir"))[..3], all);
        assert_eq!(names(m.path("dir")), ["kept"]);
        assert_eq!(
            xattr(m.upper("dir"), "trusted.overlay.overlay.opaque").unwrap(),
            b"trusted.overlay.opaque"
        );
        for name in all {
            rustix::fs::lremovexattr(m.path("dir"), name).unwrap();
            fails(xattr(m.path("dir"), name), Errno::NODATA);
        }
        assert_eq!(xattr_names(m.path("dir")), ["user.dir"]);
    });
}

#[test]
fn a_copy_up_keeps_what_is_named_like_the_unions_own() {
    let escaped = "trusted.overlay.overlay.whiteout";
    each_system(
        |layers| {
            image(layers);
            set_xattr(layers.bottom("file"), escaped, b"v").unwrap();
        },
        |m| {
            let named = "trusted.overlay.whiteout";
            assert_eq!(xattr(m.path("file"), named).unwrap(), b"v");
            append(m.path("file"), "!");
            assert_eq!(xattr(m.path("file"), named).unwrap(), b"v");
            assert_eq!(xattr(m.upper("file"), escaped).unwrap(), b"v");
        },
    );
}

#[test]
fn a_name_that_is_too_long_to_be_escaped_is_refused() {
    each_system(image, |m| {
        let name = |length: usize| format!("trusted.overlay.{}", "x".repeat(length - 16));
        set_xattr(m.path("file"), &name(247), b"v").unwrap();
        assert_eq!(xattr(m.path("file"), &name(247)).unwrap(), b"v");
        fails(
            set_xattr(m.path("file"), &name(248), b"v"),
            Errno::OPNOTSUPP,
        );
        fails(xattr(m.path("file"), &name(248)), Errno::OPNOTSUPP);
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
