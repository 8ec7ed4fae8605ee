//! Many layers, no upper, mounting again, and the kernel's view of our upper.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::system::{Access, Layers, Mounted, System, each_system, each_system_over};
use crate::tools::{
    append, chmod, exists, fails, lchown, mknod, names, read, set_xattr, tree, tree_without_inodes,
    whiteout, write,
};

/// An image with a bit of everything.
pub(crate) fn image(layers: &Layers) {
    for name in ["a", "b", "c"] {
        write(layers.bottom(&format!("dir/{name}")), name);
        write(layers.bottom(&format!("moved/{name}")), name);
        write(layers.bottom(&format!("gone/{name}")), name);
        write(layers.bottom(&format!("again/{name}")), name);
    }
    write(layers.top("dir/top"), "top");
    write(layers.bottom("meta"), "meta");
    write(layers.bottom("data"), "data");
    symlink("data", layers.bottom("link")).unwrap();
    set_xattr(layers.bottom("meta"), "user.x", b"1").unwrap();
}

/// A bit of everything done to it.
pub(crate) fn live(m: &Mounted) {
    chmod(m.path("meta"), 0o600);
    lchown(m.path("link"), 3, 4);
    append(m.path("data"), "!");
    append(m.path("dir/a"), "!");
    fs::remove_file(m.path("dir/b")).unwrap();
    fs::remove_file(m.path("dir/top")).unwrap();
    fs::rename(m.path("moved"), m.path("dir/here")).unwrap();
    fs::rename(m.path("dir/here/a"), m.path("dir/here/z")).unwrap();
    fs::remove_dir_all(m.path("gone")).unwrap();
    fs::remove_dir_all(m.path("again")).unwrap();
    write(m.path("again/new"), "new");
    fs::hard_link(m.path("again/new"), m.path("again/newer")).unwrap();
    mknod(m.path("null"), FileType::CharacterDevice, (1, 3)).unwrap();
    symlink("x", m.path("fresh-link")).unwrap();
    set_xattr(m.path("dir"), "user.d", b"2").unwrap();
}

#[test]
fn the_tree_survives_mounting_again() {
    each_system(image, |m| {
        live(m);
        let before = tree(m.path(""));
        assert_eq!(names(m.path("dir")), ["a", "c", "here"]);
        m.remount();
        assert_eq!(tree(m.path("")), before);
        m.remount();
        assert_eq!(tree(m.path("")), before);
    });
}

#[test]
fn the_kernel_mounts_the_upper_and_sees_the_same() {
    each_system(image, |m| {
        live(m);
        let ours = tree_without_inodes(m.path(""));
        m.unmount();
        let options = [("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")];
        m.layers.mount_overlay(Access::Write, &options);
        assert_eq!(tree_without_inodes(m.path("")), ours);
    });
}

#[test]
fn an_upper_that_the_kernel_wrote() {
    let system = System::Lamina { passthrough: true };
    let layers = Layers::new(2);
    if !system.is_wanted() {
        return;
    }
    image(&layers);
    let mut kernel = Mounted::new(System::Overlayfs, layers, Access::Write);
    live(&kernel);
    let expected = tree_without_inodes(kernel.path(""));
    kernel.switch(system);
    assert_eq!(tree_without_inodes(kernel.path("")), expected);
}

#[test]
fn a_hundred_and_twenty_eight_layers() {
    each_system_over(
        128,
        |layers| {
            for (number, lower) in layers.lowers().iter().enumerate() {
                write(lower.join("dir/shared"), format!("{number}"));
                write(
                    lower.join(format!("dir/own{number:03}")),
                    format!("{number}"),
                );
            }
            whiteout(layers.lowers()[64].join("dir/own100"));
        },
        |m| {
            assert_eq!(read(m.path("dir/shared")), "0");
            assert_eq!(read(m.path("dir/own127")), "127");
            assert!(!exists(m.path("dir/own100")));
            assert_eq!(names(m.path("dir")).len(), 128);
            append(m.path("dir/own127"), "!");
            assert_eq!(read(m.path("dir/own127")), "127!");
            m.remount();
            assert_eq!(read(m.path("dir/own127")), "127!");
        },
    );
}

#[test]
fn without_an_upper_nothing_can_change() {
    for system in [
        System::Overlayfs,
        System::Lamina { passthrough: true },
        System::Lamina { passthrough: false },
    ] {
        if !system.is_wanted() {
            continue;
        }
        let layers = Layers::new(2);
        image(&layers);
        let m = Mounted::new(system, layers, Access::ReadOnly);
        assert_eq!(read(m.path("data")), "data");
        assert_eq!(names(m.path("dir")), ["a", "b", "c", "top"]);
        fails(fs::write(m.path("data"), "x"), Errno::ROFS);
        fails(fs::write(m.path("new"), "x"), Errno::ROFS);
        fails(fs::remove_file(m.path("data")), Errno::ROFS);
        fails(fs::create_dir(m.path("new")), Errno::ROFS);
        fails(fs::rename(m.path("data"), m.path("new")), Errno::ROFS);
        fails(set_xattr(m.path("data"), "user.x", b"1"), Errno::ROFS);
        assert_eq!(names(m.layers.upper()).len(), 0);
    }
}

#[test]
fn kernel_overlayfs_stands_on_our_image() {
    each_lamina_image(|lamina| {
        let mut above = Layers::new(1);
        above.bind_top(&lamina.path(""));
        let m = Mounted::new(System::Overlayfs, above, Access::Write);
        assert_eq!(read(m.path("data")), "data");
        let open = File::open(m.path("dir/a")).unwrap();
        append(m.path("dir/a"), "!");
        append(m.path("data"), "!");
        fs::remove_file(m.path("dir/b")).unwrap();
        assert_eq!(names(m.path("dir")), ["a", "c", "top"]);
        assert_eq!(read(m.path("dir/a")), "a!");
        assert_eq!(read(lamina.path("dir/a")), "a");
        drop(open);
    });
}

/// A Lamina mount of the image alone, with and without passthrough.
fn each_lamina_image(check: impl Fn(&Mounted)) {
    for passthrough in [true, false] {
        let system = System::Lamina { passthrough };
        if system.is_wanted() {
            let layers = Layers::new(2);
            image(&layers);
            check(&Mounted::new(system, layers, Access::ReadOnly));
        }
    }
}

#[test]
fn layers_on_a_stacked_file_system_are_read_without_passthrough() {
    let system = System::Lamina { passthrough: true };
    if !system.is_wanted() {
        return;
    }
    let below = Layers::new(2);
    image(&below);
    let below = Mounted::new(System::Overlayfs, below, Access::ReadOnly);
    let mut layers = Layers::new(1);
    layers.bind_top(&below.path(""));
    let m = Mounted::new(system, layers, Access::Write);
    // The kernel refuses to stack so high (ELOOP): these come through us, files of the upper
    // don't, and an image file changes from the one to the other when it is copied up.
    let old = File::open(m.path("data")).unwrap();
    assert_eq!(read(m.path("data")), "data");
    append(m.path("data"), "!");
    assert_eq!(read(m.path("data")), "data!");
    drop(old);
    append(m.path("dir/a"), "!");
    assert_eq!(read(m.path("dir/a")), "a!");
    write(m.path("new"), "new");
    assert_eq!(read(m.path("new")), "new");
}
