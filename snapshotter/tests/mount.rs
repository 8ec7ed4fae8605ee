//! `lamina mount` with as many layers as overlayfs takes, and with an index. It needs root and `/dev/fuse`.
#![allow(clippy::unwrap_used)] // helpers of tests are not in a #[test] themselves

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};

/// `OVL_MAX_STACK`.
const LAYERS: usize = 500;

/// Detaches the mount when the test ends, however it does.
struct Detach<'p>(&'p Path);

impl Drop for Detach<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn five_hundred_layers_are_one_tree_with_the_usual_limit_of_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["upper", "work", "mnt"] {
        fs::create_dir(at(name)).unwrap();
    }
    let mut lowers = Vec::new();
    for number in 0..LAYERS {
        let layer = at(&number.to_string());
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("file-{number}")), number.to_string()).unwrap();
        fs::write(layer.join("same"), number.to_string()).unwrap();
        lowers.push(layer.display().to_string());
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        at("upper").display(),
        at("work").display()
    );
    let mountpoint = at("mnt");
    let mounted = Command::new("sh")
        .args(["-c", "ulimit -n 1024; exec \"$0\" mount -o \"$1\" \"$2\""])
        .arg(env!("CARGO_BIN_EXE_lamina"))
        .args([options.as_str(), mountpoint.to_str().unwrap()])
        .status()
        .unwrap();
    assert!(mounted.success(), "{mounted}");
    let _detach = Detach(&mountpoint);
    assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), LAYERS + 1);
    assert_eq!(fs::read_to_string(mountpoint.join("same")).unwrap(), "0");
    let lowest = mountpoint.join("file-499");
    fs::write(&lowest, "changed").unwrap();
    assert_eq!(fs::read_to_string(&lowest).unwrap(), "changed");
    assert_eq!(fs::read_to_string(at("499/file-499")).unwrap(), "499");
}

/// Mounts, lists the mount, and detaches it.
fn look(options: &str, mountpoint: &Path) -> Vec<String> {
    let mounted = Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args(["mount", "-o", options])
        .arg(mountpoint)
        .status()
        .unwrap();
    assert!(mounted.success(), "{mounted}");
    let _detach = Detach(mountpoint);
    let mut names: Vec<_> = fs::read_dir(mountpoint)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_index_is_kept_where_indexdir_says_and_made_again_when_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["a", "b", "index", "mnt"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("a/one"), "1").unwrap();
    fs::write(at("b/two"), "2").unwrap();
    let (a, b, index) = (at("a"), at("b"), at("index"));
    let (a, b, index) = (a.display(), b.display(), index.display());
    let lowers = format!("lowerdir={a}:{b}");
    let indexed = format!("{lowers},indexdir={index}");
    assert_eq!(look(&indexed, &at("mnt")), ["one", "two"]);
    let recorded = format!("{indexed},record");
    assert_eq!(look(&recorded, &at("mnt")), ["one", "two"]);
    let files = || -> Vec<_> {
        let entries = fs::read_dir(at("index")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let [file] = &files()[..] else {
        panic!("one index, and nothing else: {:?}", files());
    };
    fs::write(at("b/three"), "3").unwrap();
    fs::write(file, "damaged").unwrap();
    assert_eq!(look(&indexed, &at("mnt")), ["one", "three", "two"]);
    assert_eq!(files().len(), 1);
    assert!(fs::metadata(file).unwrap().len() > 100, "it was made again");
    // Another list of layers has another index.
    let other = format!("lowerdir={b},indexdir={index}");
    assert_eq!(look(&other, &at("mnt")), ["three", "two"]);
    assert_eq!(files().len(), 2);
    let off = format!("{lowers},indexdir={index},noindexdir");
    assert_eq!(look(&off, &at("mnt")), ["one", "three", "two"]);
}
