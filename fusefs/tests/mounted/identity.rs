//! Inode numbers: a file keeps its own as long as it lives, and a listing tells the same.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use crate::system::{Layers, each_lamina, each_system};
use crate::tools::{append, chmod, d_ino, exists, names, stat, write};

fn files(layers: &Layers) {
    write(layers.bottom("dir/data"), "x");
    write(layers.bottom("dir/meta"), "x");
    write(layers.bottom("dir/open"), "x");
    write(layers.top("dir/above"), "x");
}

#[test]
fn the_number_survives_copy_up_and_remount() {
    each_system(files, |m| {
        let number = |name: &str| stat(m.path("dir").join(name)).ino();
        let all = ["data", "meta", "open", "above"];
        let before = all.map(number);
        let open = File::open(m.path("dir/open")).unwrap();
        append(m.path("dir/data"), "y");
        append(m.path("dir/open"), "y");
        append(m.path("dir/above"), "y");
        chmod(m.path("dir/meta"), 0o600);
        assert_eq!(all.map(number), before);
        assert_eq!(open.metadata().unwrap().ino(), before[2]);
        drop(open);
        assert_eq!(all.map(number), before);
        m.remount();
        assert_eq!(all.map(|name| stat(m.path("dir").join(name)).ino()), before);
    });
}

#[test]
fn a_listing_tells_the_same_number() {
    each_system(files, |m| {
        let open = File::open(m.path("dir/open")).unwrap();
        append(m.path("dir/data"), "y");
        append(m.path("dir/open"), "y");
        write(m.path("dir/fresh"), "x");
        fs::create_dir(m.path("dir/sub")).unwrap();
        for round in 0..3 {
            for name in names(m.path("dir")) {
                let name = name.to_str().unwrap();
                let listed = d_ino(m.path("dir"), name);
                assert_eq!(
                    listed,
                    stat(m.path("dir").join(name)).ino(),
                    "{name}, round {round}"
                );
            }
        }
        drop(open);
    });
}

#[test]
fn directories_keep_their_number_too() {
    each_system(files, |m| {
        let before = stat(m.path("dir")).ino();
        write(m.path("dir/new"), "");
        assert_eq!(stat(m.path("dir")).ino(), before);
        fs::rename(m.path("dir"), m.path("moved")).unwrap();
        assert_eq!(stat(m.path("moved")).ino(), before);
        assert!(!exists(m.path("dir")));
        m.remount();
        assert_eq!(stat(m.path("moved")).ino(), before);
    });
}

#[test]
fn no_two_files_share_a_number() {
    each_lamina(files, |m| {
        append(m.path("dir/data"), "y");
        for number in 0..100 {
            write(m.path(&format!("dir/new{number}")), "");
        }
        let mut numbers: Vec<_> = names(m.path("dir"))
            .into_iter()
            .map(|name| stat(m.path("dir").join(name)).ino())
            .collect();
        numbers.push(stat(m.path("dir")).ino());
        numbers.push(stat(m.path("")).ino());
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    });
}
