//! The verbs with a fake mounter: what is on the disk, mounted and in the store after each, after
//! a failure in the middle, and after a crash.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

use super::*;
use crate::check::check;
use crate::error::Code;
use crate::serve::testing::FakeMounter;
use crate::store::tables::damage;
use crate::testing::Small;

fn open(root: &Path) -> (Snapshots, FakeMounter, Report) {
    let mounter = FakeMounter::default();
    let (all, report) = Snapshots::open(root, Arc::new(mounter.clone())).expect("open");
    (all, mounter, report)
}

fn none() -> Labels {
    Labels::new()
}

fn layer(all: &Snapshots, name: &str, parent: &str) {
    let key = format!("extract-1 {name}");
    all.prepare(&key, parent, &none()).expect("prepare");
    all.commit(name, &key, &none()).expect("commit");
}

fn whole(root: &Path) {
    assert_eq!(check(root).expect("check"), []);
}

#[test]
fn a_container_has_a_mount_for_as_long_as_it_is_active() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, mounter, _) = open(dir.path());
    layer(&all, "base", "");
    assert!(mounter.names().is_empty(), "unpacking needs no FUSE");
    let mounts = all.prepare("run", "base", &none()).expect("prepare");
    assert_eq!(mounter.names(), ["2"]);
    assert_eq!(all.mounts("run").expect("mounts"), mounts);
    all.commit("saved", "run", &none()).expect("commit");
    assert!(!all.layout.work(1).exists() && !all.layout.work(2).exists());
    assert!(mounter.names().is_empty());
    assert!(!all.layout.mount(2).exists());
    assert_eq!(
        all.mounts("saved").expect_err("committed").code(),
        Code::FailedPrecondition
    );
    all.remove("saved").expect("remove");
    all.remove("base").expect("remove");
    let removed = mounter.removed.lock().expect("lock").clone();
    assert_eq!(removed, BTreeSet::from([1, 2]));
    drop(all);
    assert_eq!(
        fs::read_dir(dir.path().join("snapshots"))
            .expect("list")
            .count(),
        0
    );
    whole(dir.path());
}

#[test]
fn views_of_a_chain_share_one_mount_until_the_last() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, mounter, _) = open(dir.path());
    layer(&all, "base", "");
    let first = all.view("v1", "base", &none()).expect("view");
    assert_eq!(all.view("v2", "base", &none()).expect("view"), first);
    assert_eq!(mounter.names(), ["1"]);
    all.remove("v1").expect("remove");
    assert_eq!(mounter.names(), ["1"]);
    all.remove("v2").expect("remove");
    assert!(mounter.names().is_empty());
    assert_eq!(all.view("v3", "base", &none()).expect("view"), first);
    all.view("v4", "", &none()).expect("a view of nothing");
    assert_eq!(mounter.names(), ["1"]);
}

fn asks_for(upper: &str) -> Labels {
    Labels::from([("lamina/upper".to_owned(), upper.to_owned())])
}

#[test]
fn the_kernels_uppers_stand_on_the_mount_that_views_share() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, mounter, _) = open(dir.path());
    layer(&all, "base", "");
    let kernel = asks_for("kernel");
    all.prepare("one", "base", &kernel).expect("prepare");
    all.prepare("two", "base", &kernel).expect("prepare");
    all.view("look", "base", &none()).expect("view");
    assert_eq!(mounter.names(), ["1"], "one mount for all three");
    all.remove("look").expect("remove");
    all.remove("one").expect("remove");
    assert_eq!(mounter.names(), ["1"]);
    all.commit("saved", "two", &none()).expect("commit");
    assert!(mounter.names().is_empty(), "a layer uses no image mount");
    all.prepare("alone", "", &kernel).expect("without an image");
    assert!(mounter.names().is_empty());
    all.prepare("above", "saved", &none()).expect("prepare");
    assert_eq!(mounter.names(), ["6"], "a union");
}

#[test]
fn a_snapshot_keeps_who_holds_its_upper() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    let all = all.with_upper(UpperMode::Kernel);
    layer(&all, "base", "");
    let kernel = all.prepare("kernel", "base", &none()).expect("prepare");
    let union = all.prepare("union", "base", &asks_for("union"));
    let union = union.expect("prepare");
    assert_eq!((kernel[0].kind, union[0].kind), ("overlay", "bind"));
    // Neither a label that comes later nor another configuration changes how one is mounted.
    for (key, upper) in [("kernel", "union"), ("union", "kernel")] {
        all.update(key, &asks_for(upper), &[]).expect("update");
    }
    drop(all);
    let (all, mounter, _) = open(dir.path());
    assert_eq!(mounter.names(), ["1", "3"], "mounted before anybody asks");
    assert_eq!(all.mounts("kernel").expect("mounts"), kernel);
    assert_eq!(all.mounts("union").expect("mounts"), union);
    let upper = |key: &str| {
        let status = all.status().expect("status").into_iter();
        let of_key = status.filter(|snapshot| snapshot.key == key);
        of_key
            .map(|snapshot| (snapshot.upper, snapshot.mount))
            .next()
    };
    let mount = |id| Some(all.layout.mount(id));
    assert_eq!(upper("kernel"), Some((Some("kernel".to_owned()), mount(1))));
    assert_eq!(upper("union"), Some((Some("union".to_owned()), mount(3))));
    assert_eq!(upper("base"), Some((None, None)));
}

#[test]
fn a_layer_that_is_unpacked_above_a_lazy_one_has_the_kernels_upper() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    layer(&all, "base", "");
    let store = all.layout.store();
    drop(all);
    damage::edit(&store, "base", |record| record.lazy = true);
    let (all, _, _) = open(dir.path());
    let mounts = all.prepare("extract-2 top", "base", &none());
    let image = all.layout.mount(1).display().to_string();
    let options = &mounts.expect("prepare")[0].options;
    assert!(
        options.contains(&format!("lowerdir={image}")),
        "{options:?}"
    );
    all.commit("top", "extract-2 top", &none()).expect("commit");
    // Its origins are inodes of a mount that is gone, and `lamina check` says nothing of them.
    let record = all.store.get("top").expect("record").record;
    assert_eq!(record.upper, UpperMode::Kernel);
}

#[test]
fn an_upper_that_nobody_can_hold_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    layer(&all, "base", "");
    let mut shifted = asks_for("kernel");
    for label in ["uidmapping", "gidmapping"] {
        let label = format!("containerd.io/snapshot/{label}");
        shifted.insert(label, "0:100000:65536".to_owned());
    }
    for labels in [asks_for("fuse"), shifted] {
        let error = all.prepare("run", "base", &labels).expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    // Layers and views have no container.
    all.prepare("extract-1 x", "base", &asks_for("fuse"))
        .expect("prepare");
    all.view("look", "base", &asks_for("fuse")).expect("view");
    drop(all);
    whole(dir.path());
}

#[test]
fn the_root_of_a_child_is_owned_like_its_parents() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    all.prepare("extract-a x", "", &none()).expect("prepare");
    let upper = all.layout.fs(1);
    assert_eq!(fs::metadata(&upper).expect("stat").mode() & 0o7777, 0o755);
    std::os::unix::fs::chown(&upper, Some(1234), Some(5678)).expect("chown");
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o2750)).expect("chmod");
    all.commit("base", "extract-a x", &none()).expect("commit");
    all.prepare("run", "base", &none()).expect("prepare");
    let meta = fs::metadata(all.layout.fs(2)).expect("stat");
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1234, 5678, 0o2750)
    );
}

#[test]
fn keys_and_labels_are_checked() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    let (longest, longer) = ("k".repeat(4095), "k".repeat(4096));
    for key in ["", "a\nb", "a\0", "a\u{85}", &longer] {
        let error = all.prepare(key, "", &none()).expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.to_string().len() < 500, "{error}");
    }
    for key in ["default/7/a b/../../..", "../../etc", longest.as_str()] {
        all.prepare(key, "", &none())
            .unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    assert_eq!(
        all.commit("a\nb", &longest, &none())
            .expect_err("name")
            .code(),
        Code::InvalidArgument
    );
    let long = Labels::from([("l".to_owned(), "v".repeat(4096))]);
    assert_eq!(
        all.prepare("x", "", &long).expect_err("label").code(),
        Code::InvalidArgument
    );
    drop(all);
    whole(dir.path());
}

#[test]
fn a_failed_mount_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, mounter, _) = open(dir.path());
    mounter.broken.store(true, Ordering::SeqCst);
    let error = all.prepare("run", "", &none()).expect_err("broken");
    assert!(matches!(error, Error::Mount { .. }), "{error}");
    assert_eq!(all.stat("run").expect_err("undone").code(), Code::NotFound);
    assert_eq!(
        fs::read_dir(all.layout.snapshots()).expect("list").count(),
        0
    );
    assert_eq!(fs::read_dir(all.layout.mounts()).expect("list").count(), 0);
    mounter.broken.store(false, Ordering::SeqCst);
    all.prepare("run", "", &none()).expect("the key is free");
    drop(all);
    whole(dir.path());
}

#[test]
fn a_refused_commit_leaves_the_container_mounted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, mounter, _) = open(dir.path());
    all.prepare("run", "", &none()).expect("prepare");
    // The layer can't be measured: the commit fails after the session was stopped.
    fs::rename(all.layout.fs(1), all.layout.snapshot(1).join("hidden")).expect("hide");
    all.commit("saved", "run", &none())
        .expect_err("nothing to measure");
    fs::rename(all.layout.snapshot(1).join("hidden"), all.layout.fs(1)).expect("show");
    all.mounts("run").expect("mounted again");
    assert_eq!(mounter.names(), ["1"]);
    mounter.lingering.store(true, Ordering::SeqCst);
    all.commit("saved", "run", &none())
        .expect("somebody who stays does not block a commit");
}

#[test]
fn a_restart_mounts_what_is_in_use_and_clears_the_rest() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    layer(&all, "base", "");
    all.prepare("run", "base", &none()).expect("prepare");
    all.prepare("lost", "base", &none()).expect("prepare");
    all.view("look", "base", &none()).expect("view");
    all.prepare("extract-2 y", "base", &none())
        .expect("prepare");
    let layout = all.layout.clone();
    // As after kill -9: the mounts stay, and with them what verbs had half done.
    drop(all);
    fs::create_dir_all(layout.fs(99)).expect("a Prepare before its transaction");
    fs::create_dir(layout.new_snapshot(100)).expect("a Prepare before its rename");
    fs::create_dir_all(layout.trash(98)).expect("a Remove after its transaction");
    fs::remove_dir_all(layout.snapshot(3)).expect("lose a directory");
    let stale = layout.mount(42);
    fs::create_dir_all(&stale).expect("mkdir");
    mount("tmpfs", &stale, c"tmpfs", MountFlags::empty(), None).expect("mount");

    let (all, mounter, report) = open(dir.path());
    assert_eq!(mounter.names(), ["1", "2"]);
    assert_eq!(report.detached, [stale]);
    let mut removed = report.removed;
    removed.sort();
    assert_eq!(
        removed,
        [
            layout.snapshot(99),
            layout.new_snapshot(100),
            layout.trash(98)
        ]
    );
    assert_eq!(
        report.mounted, 3,
        "run, look, and the extract that needs no mount"
    );
    let failed: Vec<_> = report.failed.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(failed, ["lost"]);
    all.remove("lost").expect("what is lost can be removed");
    let id = all.store.allocate();
    assert!(id > 99, "{id} was on the disk once");
    drop(all);
    whole(dir.path());
}

#[test]
fn a_work_directory_that_a_commit_left_is_no_damage_and_goes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    layer(&all, "base", "");
    let (layout, work) = (all.layout.clone(), all.layout.work(1));
    drop(all);
    fs::create_dir_all(work.join("work/#3")).expect("mkdir");
    whole(dir.path());
    let (all, _, report) = open(dir.path());
    assert_eq!(report.removed, [work]);
    assert!(layout.fs(1).exists());
    drop(all);
    whole(dir.path());
}

#[test]
fn nothing_is_mounted_after_the_close() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, mounter, _) = open(dir.path());
    layer(&all, "base", "");
    all.close(Stop::End);
    all.prepare("late", "base", &none()).expect_err("closed");
    all.view("late", "base", &none()).expect_err("closed");
    assert!(mounter.names().is_empty());
    assert_eq!(fs::read_dir(all.layout.mounts()).expect("list").count(), 0);
    drop(all);
    whole(dir.path());
}

#[test]
fn cleanup_removes_orphans_but_nothing_in_the_making() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    fs::create_dir_all(all.layout.fs(50)).expect("mkdir");
    fs::create_dir_all(all.layout.fs(51)).expect("mkdir");
    fs::create_dir_all(all.layout.new_snapshot(52)).expect("mkdir");
    all.making().extend([51, 52]);
    all.cleanup().expect("cleanup");
    assert!(!all.layout.snapshot(50).exists());
    assert!(all.layout.snapshot(51).exists());
    assert!(all.layout.new_snapshot(52).exists());
}

#[test]
fn a_full_disk_is_said_so_and_leaves_nothing_behind() {
    let disk = Small::mount();
    let (all, mounter, _) = open(disk.path());
    layer(&all, "base", "");
    all.prepare("run", "base", &none()).expect("prepare");
    let filler = disk.fill();
    // The store may have pages left: use them up, until a verb meets the end of the disk.
    let mut made = 0;
    let refused = loop {
        match all.prepare(
            &format!("more {made} {}", "x".repeat(2000)),
            "base",
            &none(),
        ) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 10_000, "the disk never fills");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let on_disk = fs::read_dir(all.layout.snapshots()).expect("list").count();
    assert_eq!(
        on_disk,
        2 + made,
        "nothing is left of the one that was refused"
    );
    assert_eq!(mounter.names().len(), 1 + made);
    fs::remove_file(filler).expect("make room");
    all.prepare("after", "base", &none())
        .expect("the store goes on once there is room");
    all.commit("saved", "run", &none()).expect("commit");
    all.remove("saved").expect("remove");
    drop(all);
    whole(disk.path());
}

#[test]
fn verbs_on_one_key_wait_for_each_other() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, _, _) = open(dir.path());
    let held = all.busy.hold(&["run"]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| all.prepare("run", "", &none()));
        all.prepare("other", "", &none())
            .expect("another key does not wait");
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().expect("join").expect("prepare");
    });
}

fn shifted() -> Labels {
    let label = |of: &str| format!("containerd.io/snapshot/{of}mapping");
    Labels::from(["uid", "gid"].map(|of| (label(of), "0:100000:65536".to_owned())))
}

#[test]
fn users_are_shifted_by_whoever_mounts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, mounter, _) = open(dir.path());
    layer(&all, "base", "");
    let mounts = all.prepare("pod", "base", &shifted()).expect("prepare");
    let wanted = [
        "rbind",
        "rw",
        "uidmap=0:100000:65536",
        "gidmap=0:100000:65536",
    ];
    assert_eq!(mounts[0].options, wanted);
    assert_eq!(all.mounts("pod").expect("mounts"), mounts);
    // An unpacked layer belongs to the users of the image.
    let mounts = all.prepare("extract-1 x", "base", &shifted());
    assert!(!format!("{mounts:?}").contains("uidmap"));

    let view = all.view("view", "base", &shifted()).expect_err("a view");
    assert_eq!(view.code(), Code::InvalidArgument);
    mounter.old_kernel.store(true, Ordering::SeqCst);
    let refused = all.prepare("old", "base", &shifted());
    let refused = refused.expect_err("an old kernel");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    all.prepare("plain", "base", &none()).expect("prepare");
    drop(all);
    whole(dir.path());
}

#[test]
fn a_half_map_is_refused_wherever_labels_are_set() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (all, ..) = open(dir.path());
    layer(&all, "base", "");
    let mut half = shifted();
    half.pop_first();
    let refused = all.prepare("pod", "base", &half).expect_err("half a map");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = all.update("base", &half, &[]).expect_err("half a map");
    assert_eq!(refused.code(), Code::InvalidArgument);
}
