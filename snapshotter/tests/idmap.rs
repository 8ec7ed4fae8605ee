//! A pod with a user namespace: what containerd 2.x asks for and does with the answer.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use lamina_snapshotter::serve::FuseMounter;
use rustix::fs::CWD;
use rustix::mount::{
    MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, move_mount, open_tree, unmount,
};
use support::Daemon;
use tempfile::TempDir;

const MAP: &str = "0:100000:65536";

/// A user namespace with the mapping of [`MAP`].
fn namespace() -> File {
    let mut child = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo ready; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare (util-linux)");
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("piped");
    BufReader::new(output).read_line(&mut line).expect("ready");
    let proc = Path::new("/proc").join(child.id().to_string());
    for map in ["uid_map", "gid_map"] {
        fs::write(proc.join(map), MAP.replace(':', " ")).expect("map");
    }
    let namespace = File::open(proc.join("ns/user")).expect("namespace");
    drop(child.stdin.take());
    child.wait().expect("wait");
    namespace
}

/// What containerd does with a bind mount that has `uidmap=` and `gidmap=`: binds it, and puts an
/// idmapped clone over that.
#[allow(unsafe_code)]
fn mount_shifted(source: &Path, target: &Path) {
    mount_bind(source, target).expect("bind");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, target, flags).expect("clone");
    let namespace = namespace();
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd().try_into().expect("descriptor"),
    };
    // SAFETY: the descriptors are open, the path is a C string, and the kernel reads one
    // `mount_attr`, whose size it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            clone.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "mount_setattr: {error}");
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&clone, "", CWD, target, from).expect("move");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_sees_its_own_users_and_the_disk_those_of_the_image() {
    let dir = TempDir::new().expect("tempdir");
    let daemon = Daemon::start(dir, Arc::new(FuseMounter::new(2, true))).await;
    let (mut client, root) = (daemon.client().await, daemon.root());
    client.layer("base", "", &[]).await;
    let labels = [
        ("containerd.io/snapshot/uidmapping", MAP),
        ("containerd.io/snapshot/gidmapping", MAP),
    ];
    let mounts = client.prepare_with("pod", "base", &labels).await;
    let mounts = mounts.expect("prepare");
    let shift = [format!("uidmap={MAP}"), format!("gidmap={MAP}")];
    assert_eq!(mounts[0].options[2..], shift);

    let target = TempDir::new().expect("tempdir");
    let source = mounts[0].source.clone();
    let at = target.path().to_owned();
    tokio::task::spawn_blocking(move || {
        mount_shifted(Path::new(&source), &at);
        assert_eq!(fs::metadata(&at).expect("stat").uid(), 100_000);
        let script = "echo x > file";
        let made = Command::new("setpriv")
            .args(["--reuid=100000", "--regid=100000", "--clear-groups"])
            .args(["--", "sh", "-c", script])
            .current_dir(&at)
            .status();
        assert!(made.expect("setpriv (util-linux)").success());
        assert_eq!(fs::metadata(at.join("file")).expect("stat").uid(), 100_000);
        for _ in 0..2 {
            unmount(&at, UnmountFlags::DETACH).expect("unmount");
        }
    })
    .await
    .expect("work");
    let file = fs::metadata(root.join("snapshots/2/fs/file")).expect("stat");
    assert_eq!((file.uid(), file.gid()), (0, 0));
    client.remove("pod").await.expect("remove");
    daemon.stop().await;
}
