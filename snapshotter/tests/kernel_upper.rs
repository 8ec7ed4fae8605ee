//! Containers whose upper the kernel's overlayfs holds, above the shared image mount: mounted as
//! containerd mounts them, committed, and run again both ways.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use containerd_snapshots::api::types::Mount;
use lamina_snapshotter::serve::FuseMounter;
use lamina_snapshotter::upper_mode::{INHERITED_LABEL, LABEL};
use rustix::mount::{UnmountFlags, unmount};
use support::{Client, Daemon, eventually, lamina_mounts};
use tempfile::TempDir;

const KERNEL: [(&str, &str); 1] = [(LABEL, "kernel")];

/// A root as a container has it. Unmounted when it is dropped.
struct Root(TempDir);

impl Root {
    /// Does what containerd does with its answer.
    fn mount(mounts: &[Mount]) -> Root {
        let [mount] = mounts else {
            panic!("one mount: {mounts:?}")
        };
        let root = Root(TempDir::new().expect("tempdir"));
        let mut command = Command::new("mount");
        if mount.r#type != "bind" {
            command.args(["-t", &mount.r#type]);
        }
        command.args(["-o", &mount.options.join(",")]);
        command.arg(&mount.source).arg(root.path(""));
        assert!(command.status().expect("mount (util-linux)").success());
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).expect("unmount");
    }
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
}

async fn start(dir: TempDir) -> Daemon {
    Daemon::start(dir, Arc::new(FuseMounter::new(2, true))).await
}

/// An image of two layers: the upper one changes a file, hides one and moves nothing.
async fn image(client: &mut Client, root: &Path) {
    client.prepare("extract-1 low", "").await.expect("prepare");
    let low = root.join("snapshots/1/fs");
    for dir in ["etc", "moved", "gone"] {
        fs::create_dir(low.join(dir)).expect("mkdir");
        write(low.join(dir).join("file"), dir);
    }
    write(low.join("etc/linked"), "linked");
    fs::hard_link(low.join("etc/linked"), low.join("etc/link")).expect("link");
    client
        .commit("low", "extract-1 low", &[])
        .await
        .expect("commit");
    client
        .prepare("extract-2 top", "low")
        .await
        .expect("prepare");
    fs::create_dir(root.join("snapshots/2/fs/etc")).expect("mkdir");
    write(root.join("snapshots/2/fs/etc/file"), "top");
    client
        .commit("top", "extract-2 top", &[])
        .await
        .expect("commit");
}

/// What a container does.
fn live(root: &Root) {
    assert_eq!(root.read("etc/file"), "top");
    let before = fs::metadata(root.path("etc/file")).expect("stat");
    write(root.path("etc/file"), "changed");
    let after = fs::metadata(root.path("etc/file")).expect("stat");
    assert_eq!((before.dev(), before.ino()), (after.dev(), after.ino()));
    write(root.path("etc/link"), "changed");
    fs::rename(root.path("moved"), root.path("etc/moved")).expect("rename");
    fs::remove_dir_all(root.path("gone")).expect("remove");
    write(root.path("new"), "new");
}

/// What is seen of it ever after.
fn lived(root: &Root) {
    assert_eq!(root.read("etc/file"), "changed");
    assert_eq!(root.read("etc/link"), "changed");
    assert_eq!(root.read("etc/moved/file"), "moved");
    assert_eq!(root.read("new"), "new");
    assert!(!root.path("gone").exists() && !root.path("moved").exists());
}

async fn blocking(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.expect("work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_and_becomes_an_image() {
    let daemon = start(TempDir::new().expect("tempdir")).await;
    let (mut client, root) = (daemon.client().await, daemon.root());
    image(&mut client, &root).await;
    let mounts = client.prepare_with("run", "top", &KERNEL).await;
    let mounts = mounts.expect("prepare");
    let inherited = [(INHERITED_LABEL, "kernel")];
    let beside = client.prepare_with("beside", "top", &inherited).await;
    let beside = beside.expect("prepare");
    assert_eq!(lamina_mounts(&root), 1, "the image, for both");
    let (first, second) = (mounts.clone(), beside.clone());
    blocking(move || {
        let (run, beside) = (Root::mount(&first), Root::mount(&second));
        live(&run);
        assert_eq!(beside.read("etc/file"), "top");
    })
    .await;
    let (size, inodes) = client.usage("run").await.expect("usage");
    assert!(size > 0 && inodes > 5, "{size} {inodes}");

    // The daemon ends and comes again: the same answer, and the image is mounted already.
    let daemon = start(daemon.stop().await).await;
    assert_eq!(lamina_mounts(&root), 1);
    let mut client = daemon.client().await;
    assert_eq!(client.mounts("run").await.expect("mounts"), mounts);
    blocking(move || lived(&Root::mount(&mounts))).await;

    client.commit("saved", "run", &[]).await.expect("commit");
    assert!(!root.join("snapshots/3/work").exists());
    client.remove("beside").await.expect("remove");
    eventually("no mount is left", || lamina_mounts(&root) == 0).await;
    let by_union = client.prepare("union", "saved").await.expect("prepare");
    let by_kernel = client.prepare_with("kernel", "saved", &KERNEL).await;
    let by_kernel = by_kernel.expect("prepare");
    // A layer that is unpacked above it: the kernel reads all layers by itself.
    let unpacked = client.prepare("extract-3 x", "saved").await;
    let unpacked = unpacked.expect("prepare");
    blocking(move || {
        for mounts in [by_union, by_kernel, unpacked] {
            let again = Root::mount(&mounts);
            lived(&again);
            write(again.path("etc/moved/file"), "again");
            assert_eq!(again.read("etc/moved/file"), "again");
        }
    })
    .await;
    for key in ["extract-3 x", "kernel", "union", "saved", "top", "low"] {
        client
            .remove(key)
            .await
            .unwrap_or_else(|status| panic!("{key}: {status}"));
    }
    eventually("no mount is left", || lamina_mounts(&root) == 0).await;
    daemon.stop().await;
}
