//! A read-only mount whose files the kernel opens by itself (`SessionOptions::no_open`).

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lamina_fusefs::check::{Problem, check_upper};
use lamina_fusefs::session::SessionOptions;
use rustix::fs::{SeekFrom as To, seek};

use crate::layers::image;
use crate::system::{Access, Layers, Mounted, System};
use crate::tools::{append, names, read, tree_without_inodes, write};

const HOLE: u64 = 1 << 20;

/// Mounts an image with and without it, and shows both.
fn each_way(check: impl Fn(&Layers, bool)) {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    for no_open in [true, false] {
        let layers = Layers::new(2);
        image(&layers);
        let sparse = File::create(layers.bottom("sparse")).unwrap();
        sparse.write_all_at(b"end", HOLE).unwrap();
        let options = SessionOptions {
            read_only: true,
            no_open,
            ..SessionOptions::default()
        };
        let session = layers.mount_lamina(Access::ReadOnly, &options);
        check(&layers, no_open);
        assert!(session.unmount(Duration::from_secs(10)).unwrap());
    }
}

/// Descriptors of this process, which serves the mount, for a file of a layer.
fn descriptors_of(file: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|target| target == file)
        .count()
}

#[test]
fn files_are_the_same() {
    each_way(|layers, no_open| {
        let at = layers.mountpoint();
        assert_eq!(read(at.join("data")), "data");
        assert_eq!(read(at.join("link")), "data");
        assert_eq!(names(at.join("dir")), ["a", "b", "c", "top"]);
        let mut file = File::open(at.join("sparse")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), HOLE + 3);
        assert_eq!(seek(&file, To::Data(0)).unwrap(), HOLE, "{no_open}");
        assert_eq!(seek(&file, To::Hole(HOLE)).unwrap(), HOLE + 3);
        file.seek(SeekFrom::Start(HOLE - 1)).unwrap();
        let mut end = Vec::new();
        file.read_to_end(&mut end).unwrap();
        assert_eq!(end, b"\0end");
        file.sync_all().unwrap();
    });
}

#[test]
fn an_open_file_is_nothing_to_the_daemon() {
    each_way(|layers, no_open| {
        let file = File::open(layers.mountpoint().join("dir/a")).unwrap();
        let held = descriptors_of(&layers.bottom("dir/a"));
        assert_eq!(held, usize::from(!no_open));
        assert_eq!(file.metadata().unwrap().len(), 1);
    });
}

#[test]
fn it_is_of_no_use_where_files_are_written() {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    let layers = Layers::new(2);
    image(&layers);
    let options = SessionOptions {
        no_open: true,
        ..SessionOptions::default()
    };
    let session = layers.mount_lamina(Access::Write, &options);
    append(layers.mountpoint().join("data"), "!");
    assert_eq!(read(layers.upper().join("data")), "data!");
    assert!(session.unmount(Duration::from_secs(10)).unwrap());
}

/// As the snapshotter has containerd mount it for `upper = "kernel"`.
const ABOVE_IMAGE: &[(&str, &str)] = &[
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "on"),
    ("nfs_export", "off"),
    ("xino", "on"),
];

#[test]
fn kernel_overlayfs_holds_an_upper_above_it() {
    each_way(|lamina, no_open| {
        let mut above = Layers::new(1);
        above.bind_top(&lamina.mountpoint());
        let kernel = Mounted::overlay(above, ABOVE_IMAGE);
        let stat = |path: &str| fs::metadata(kernel.path(path)).unwrap();
        let before = stat("dir/a");
        assert_eq!(before.dev(), stat("").dev());
        let reader = File::open(kernel.path("dir/a")).unwrap();
        append(kernel.path("dir/a"), "!");
        assert_eq!(stat("dir/a").ino(), before.ino());
        append(kernel.path("sparse"), "!");
        let blocks = stat("sparse").blocks();
        assert!(blocks < HOLE / 512, "no holes: {blocks}, {no_open}");
        fs::rename(kernel.path("moved"), kernel.path("dir/here")).unwrap();
        fs::remove_file(kernel.path("dir/b")).unwrap();
        fs::remove_dir_all(kernel.path("gone")).unwrap();
        fs::remove_dir_all(kernel.path("again")).unwrap();
        write(kernel.path("again/new"), "new");
        drop(reader);
        let seen = tree_without_inodes(kernel.path(""));

        // The upper belongs to the image's own layers now: the union shows the same, and it is
        // sound but for origins, which are inodes of a mount that is gone.
        let union = Layers::new(2);
        image(&union);
        copy(&lamina.bottom("sparse"), &union.bottom("sparse"));
        copy(&kernel.upper("."), &union.upper());
        drop(kernel);
        let [upper, work] = [union.upper(), union.work()];
        let findings = check_upper(&upper, Some(&work), union.lowers()).unwrap();
        for finding in findings {
            assert_eq!(finding.problem, Problem::OriginUnknown, "{finding:?}");
        }
        let union = Mounted::new(System::Lamina { passthrough: true }, union, Access::Write);
        assert_eq!(tree_without_inodes(union.path("")), seen);
    });
}

/// Copies files with all that cp(1) can keep, xattrs of overlays too.
fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    let copied = cp.args(["-a", "--sparse=always", "-T"]).args([from, to]);
    assert!(copied.status().unwrap().success());
}
