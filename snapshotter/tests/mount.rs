//! `lamina mount` with as many layers as overlayfs takes. It needs root and `/dev/fuse`.
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
