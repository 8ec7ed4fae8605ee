//! A hundred containers of one image at once: they start, write, stop and leave nothing.
//!
//! A binary of its own, because it counts what the whole process has open.

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use lamina_snapshotter::serve::FuseMounter;
use support::{Daemon, eventually, lamina_mounts};
use tempfile::TempDir;
use tokio::task::JoinSet;

const CONTAINERS: usize = 100;

fn count(dir: &str) -> usize {
    fs::read_dir(dir).expect("list").count()
}

/// Threads that serve mounts, and the test's own; the runtime keeps some of its own for a while.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("tasks");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| !name.starts_with("tokio")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_containers_leave_nothing() {
    let dir = TempDir::new().expect("tempdir");
    let daemon = Daemon::start(dir, Arc::new(FuseMounter::new(2, true))).await;
    let (mut client, root) = (daemon.client().await, daemon.root());
    client.prepare("extract-1 base", "").await.expect("prepare");
    fs::write(root.join("snapshots/1/fs/file"), "from the image").expect("unpack");
    client
        .commit("base", "extract-1 base", &[])
        .await
        .expect("commit");
    // Warm up: whatever is opened once, by us or by the runtime, is open now.
    client.prepare("first", "base").await.expect("prepare");
    client.remove("first").await.expect("remove");
    let (descriptors, threads_before) = (count("/proc/self/fd"), threads());

    let mut running = JoinSet::new();
    for number in 0..CONTAINERS {
        let mut client = client.clone();
        running.spawn(async move {
            let key = format!("run {number}");
            let mounts = client.prepare(&key, "base").await.expect("prepare");
            let at = PathBuf::from(&mounts[0].source);
            let worked = tokio::task::spawn_blocking(move || {
                let text = format!("written by {number}");
                fs::write(at.join("file"), &text).expect("write");
                assert_eq!(fs::read_to_string(at.join("file")).expect("read"), text);
            });
            worked.await.expect("work");
            key
        });
    }
    let keys = running.join_all().await;
    assert_eq!(lamina_mounts(&root), CONTAINERS);
    assert!(
        threads() >= threads_before + CONTAINERS,
        "each has threads: {}",
        threads()
    );
    let mut stopping = JoinSet::new();
    for key in keys {
        let mut client = client.clone();
        stopping.spawn(async move { client.remove(&key).await.expect("remove") });
    }
    stopping.join_all().await;
    assert_eq!(
        fs::read_to_string(root.join("snapshots/1/fs/file")).expect("read"),
        "from the image"
    );
    assert_eq!(lamina_mounts(&root), 0);
    assert_eq!(count(root.join("snapshots").to_str().expect("utf-8")), 1);
    eventually("every descriptor is closed", || {
        count("/proc/self/fd") <= descriptors
    })
    .await;
    eventually("every session's threads have ended", || {
        threads() <= threads_before
    })
    .await;
    daemon.stop().await;
}
