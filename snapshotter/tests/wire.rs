//! The wire: every verb, error code, filter and field mask, spoken by somebody else's bindings of
//! the protocol (`containerd-snapshots`, another tonic, another prost) over a real socket.
//!
//! What is mounted is a fake here; the last tests mount with FUSE. All need root, as Lamina does.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use containerd_snapshots::api::snapshots::v1::{Info, Kind};
use containerd_snapshots::api::types::Mount;
use containerd_snapshots::tonic::Code;
use lamina_snapshotter::Error;
use lamina_snapshotter::daemon::{self, ServeOptions};
use lamina_snapshotter::serve::FuseMounter;
use lamina_snapshotter::serve::testing::FakeMounter;
use lamina_snapshotter::status;
use support::{Answer, Daemon, eventually, labels, lamina_mounts, options, text};
use tempfile::TempDir;
use tokio::task::JoinSet;

fn refused<T>(answer: Answer<T>, code: Code, part: &str) {
    let status = answer
        .err()
        .unwrap_or_else(|| panic!("not refused: {part}"));
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(part),
        "{:?} in {:?}",
        part,
        status.message()
    );
}

fn shown(mounts: &[Mount], root: &Path) -> String {
    let [mount] = mounts else {
        panic!("one mount: {mounts:?}")
    };
    assert_eq!(mount.target, "");
    let line = format!(
        "{} {} {}",
        mount.r#type,
        mount.source,
        mount.options.join(",")
    );
    line.replace(root.to_str().expect("utf-8"), "R")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_answers() {
    let daemon = Daemon::fake().await;
    let (mut client, root) = (daemon.client().await, daemon.root());
    let begun = SystemTime::now();
    let pairs = [("containerd.io/snapshot/x", "y"), ("empty", "")];
    let key = "k8s.io/1/extract-12-ab sha256:00";
    let mounts = client.prepare_with(key, "", &pairs).await.expect("prepare");
    assert_eq!(shown(&mounts, &root), "bind R/snapshots/1/fs rbind,rw");
    fs::write(root.join("snapshots/1/fs/file"), vec![1; 10_000]).expect("unpack");
    let (size, inodes) = client.usage(key).await.expect("usage");
    assert!(size >= 12_288 && inodes == 2, "{size} {inodes}");

    let active = client.stat(key).await.expect("stat");
    assert_eq!((active.kind(), active.parent.as_str()), (Kind::Active, ""));
    assert_eq!(active.labels, labels(&pairs[..1]));
    let created = active.created_at.clone().expect("created");
    assert_eq!(active.updated_at, Some(created.clone()));
    assert!(SystemTime::try_from(created).expect("a time") >= begun);

    client
        .commit("k8s.io/2/sha256:00", key, &[("l", "1")])
        .await
        .expect("commit");
    let committed = client.stat("k8s.io/2/sha256:00").await.expect("stat");
    assert_eq!(committed.kind(), Kind::Committed);
    assert_eq!(committed.labels, labels(&[("l", "1")]));
    assert_eq!(
        client.usage("k8s.io/2/sha256:00").await.expect("usage"),
        (size, inodes)
    );

    let next = "k8s.io/3/extract-13-cd sha256:01";
    let mounts = client
        .prepare(next, "k8s.io/2/sha256:00")
        .await
        .expect("prepare");
    assert_eq!(
        shown(&mounts, &root),
        "overlay overlay index=off,workdir=R/snapshots/2/work,upperdir=R/snapshots/2/fs,\
         lowerdir=R/snapshots/1/fs"
    );
    let mounts = client
        .prepare("k8s.io/4/run", "k8s.io/2/sha256:00")
        .await
        .expect("prepare");
    assert_eq!(shown(&mounts, &root), "bind R/mounts/3 rbind,rw");
    assert_eq!(client.mounts("k8s.io/4/run").await.expect("mounts"), mounts);
    let mounts = client
        .view("k8s.io/5/look", "k8s.io/2/sha256:00")
        .await
        .expect("view");
    assert_eq!(shown(&mounts, &root), "bind R/mounts/1 rbind,ro");
    assert_eq!(client.usage("k8s.io/5/look").await.expect("usage"), (0, 0));
    assert_eq!(
        client.stat("k8s.io/5/look").await.expect("stat").kind(),
        Kind::View
    );

    fs::create_dir_all(root.join("snapshots/99/fs")).expect("an orphan");
    client.cleanup().await.expect("cleanup");
    assert!(!root.join("snapshots/99").exists());
    for key in ["k8s.io/5/look", "k8s.io/4/run", next, "k8s.io/2/sha256:00"] {
        client.remove(key).await.expect("remove");
    }
    assert_eq!(client.list(&[]).await.expect("list").0.len(), 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code() {
    let daemon = Daemon::fake().await;
    let mut client = daemon.client().await;
    client.layer("base", "", &[]).await;
    client.prepare("run", "base").await.expect("prepare");
    client.view("look", "base").await.expect("view");

    refused(
        client.prepare("x", "none").await,
        Code::NotFound,
        "parent snapshot \"none\"",
    );
    refused(
        client.view("x", "none").await,
        Code::NotFound,
        "parent snapshot \"none\"",
    );
    refused(
        client.prepare("x", "run").await,
        Code::InvalidArgument,
        "is not committed",
    );
    refused(
        client.prepare("run", "base").await,
        Code::AlreadyExists,
        "\"run\" exists",
    );
    refused(
        client.view("run", "base").await,
        Code::AlreadyExists,
        "\"run\" exists",
    );
    refused(
        client.prepare("base", "").await,
        Code::AlreadyExists,
        "\"base\" exists",
    );
    refused(
        client.mounts("none").await,
        Code::NotFound,
        "\"none\" does not exist",
    );
    refused(
        client.mounts("base").await,
        Code::FailedPrecondition,
        "committed",
    );
    refused(
        client.commit("x", "none", &[]).await,
        Code::NotFound,
        "\"none\"",
    );
    refused(
        client.commit("base", "run", &[]).await,
        Code::AlreadyExists,
        "\"base\" exists",
    );
    refused(
        client.commit("x", "base", &[]).await,
        Code::FailedPrecondition,
        "it is committed",
    );
    refused(
        client.commit("x", "look", &[]).await,
        Code::FailedPrecondition,
        "it is view",
    );
    refused(
        client.commit("", "run", &[]).await,
        Code::InvalidArgument,
        "name",
    );
    refused(client.remove("none").await, Code::NotFound, "\"none\"");
    refused(
        client.remove("base").await,
        Code::FailedPrecondition,
        "remove its child",
    );
    refused(client.stat("none").await, Code::NotFound, "\"none\"");
    refused(client.usage("none").await, Code::NotFound, "\"none\"");
    refused(
        client.prepare("", "").await,
        Code::InvalidArgument,
        "is empty",
    );
    refused(
        client.prepare("a\nb", "").await,
        Code::InvalidArgument,
        "control characters",
    );
    refused(
        client.prepare(&"ä".repeat(2049), "").await,
        Code::InvalidArgument,
        "at most 4095",
    );
    let long = "v".repeat(4096);
    let answer = client.prepare_with("x", "", &[("l", &long)]).await;
    refused(answer, Code::InvalidArgument, "label");
    refused(
        client.list(&["kind=active"]).await,
        Code::InvalidArgument,
        ">|=|<",
    );
    refused(
        client.update(None, &[]).await,
        Code::InvalidArgument,
        "no info",
    );
    let missing = Info {
        name: text("none"),
        ..Info::default()
    };
    refused(
        client.update(Some(missing), &[]).await,
        Code::NotFound,
        "\"none\"",
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn field_masks_choose_what_changes() {
    let daemon = Daemon::fake().await;
    let mut client = daemon.client().await;
    client
        .layer("base", "", &[("keep", "1"), ("drop", "2")])
        .await;
    let before = client.stat("base").await.expect("stat");

    let mut wish = before.clone();
    wish.parent = text("elsewhere");
    wish.kind = Kind::Active.into();
    wish.labels = labels(&[("keep", "new"), ("other", "3")]);
    let after = client
        .update(Some(wish.clone()), &["labels.keep", "labels.drop"])
        .await;
    let after = after.expect("two labels");
    assert_eq!(after.labels, labels(&[("keep", "new")]));
    assert_eq!((after.kind(), after.parent.as_str()), (Kind::Committed, ""));
    assert_eq!(after.created_at, before.created_at);
    assert_ne!(after.updated_at, before.updated_at);

    let after = client
        .update(Some(wish.clone()), &["labels"])
        .await
        .expect("all labels");
    assert_eq!(after.labels, wish.labels);
    wish.labels = labels(&[("a.b/c", "dots")]);
    let after = client
        .update(Some(wish.clone()), &["labels.a.b/c"])
        .await
        .expect("dots");
    assert_eq!(after.labels.len(), 3);
    let after = client
        .update(Some(wish.clone()), &[])
        .await
        .expect("no mask: all");
    assert_eq!(after.labels, wish.labels);
    for path in ["parent", "kind", "name", "created_at", "label", ""] {
        let answer = client.update(Some(wish.clone()), &["labels", path]).await;
        refused(answer, Code::InvalidArgument, "cannot update the field");
    }
    assert_eq!(client.stat("base").await.expect("stat"), after);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_and_pages_arrive() {
    let daemon = Daemon::fake().await;
    let mut client = daemon.client().await;
    client
        .layer("base", "", &[("containerd.io/gc.root", "yes"), ("l", "1")])
        .await;
    client.prepare("run", "base").await.expect("prepare");
    client.view("look", "base").await.expect("view");
    for (filters, expected) in [
        (&[][..], &["base", "look", "run"][..]),
        (&["kind==active"], &["run"]),
        (&["kind==view", "kind==committed"], &["base", "look"]),
        (
            &["labels.\"containerd.io/gc.root\"==yes,kind==committed"],
            &["base"],
        ),
        (&["parent==base,name~=^l"], &["look"]),
        (&["labels.l!=1"], &["look", "run"]),
        (&["labels.none"], &[]),
    ] {
        let (names, _) = client.list(filters).await.expect("list");
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            expected,
            "{filters:?}"
        );
    }
    for number in 0..250 {
        client
            .view(&format!("view {number}"), "base")
            .await
            .expect("view");
    }
    let (names, pages) = client
        .list(&["kind==view,name~=\"^view \""])
        .await
        .expect("list");
    assert_eq!((names.len(), pages), (250, vec![100, 100, 50]));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_callers_at_once() {
    let daemon = Daemon::fake().await;
    let mut client = daemon.client().await;
    client.layer("base", "", &[]).await;
    let mut callers = JoinSet::new();
    for number in 0..64 {
        // Half of them share a connection, as containerd's callers do.
        let mut client = if number % 2 == 0 {
            client.clone()
        } else {
            daemon.client().await
        };
        callers.spawn(async move {
            let (own, name) = (format!("run {number}"), format!("saved {number}"));
            let won = match client.prepare("everybody's", "base").await {
                Ok(_) => 1,
                Err(status) => {
                    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
                    0
                }
            };
            client.prepare(&own, "base").await.expect("prepare");
            client
                .view(&format!("look {number}"), "base")
                .await
                .expect("view");
            client.commit(&name, &own, &[]).await.expect("commit");
            client.prepare(&own, &name).await.expect("prepare again");
            client.remove(&own).await.expect("remove");
            client.remove(&name).await.expect("remove");
            client.cleanup().await.expect("cleanup");
            client
                .remove(&format!("look {number}"))
                .await
                .expect("remove");
            won
        });
    }
    let won: i32 = callers.join_all().await.into_iter().sum();
    assert_eq!(won, 1, "one key, one snapshot");
    let (names, _) = client.list(&[]).await.expect("list");
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["base", "everybody's"]
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_the_same_with_and_without_the_daemon() {
    let daemon = Daemon::fake().await;
    let (mut client, root, address) = (daemon.client().await, daemon.root(), daemon.address());
    client.layer("base", "", &[]).await;
    client.prepare("run", "base").await.expect("prepare");
    let running = status::collect(&root, &address)
        .await
        .expect("asked")
        .snapshots;
    let run = running
        .iter()
        .find(|snapshot| snapshot.key == "run")
        .expect("run");
    assert_eq!(run.mount, Some(root.join("mounts/2")));
    assert_eq!(
        (run.id, run.kind.as_str(), run.parent.as_deref()),
        (2, "active", Some("base"))
    );
    assert!(run.created.ends_with('Z') && run.inodes == 1, "{run:?}");
    let _dir = daemon.stop().await;
    let mut stopped = status::collect(&root, &address)
        .await
        .expect("read")
        .snapshots;
    assert_eq!(
        stopped
            .iter()
            .filter(|snapshot| snapshot.mount.is_some())
            .count(),
        0
    );
    for snapshot in &mut stopped {
        snapshot.mount = (snapshot.key == "run").then(|| root.join("mounts/2"));
        // The fake mounter has no image.
        snapshot.indexed = snapshot.mount.is_some().then_some(false);
    }
    assert_eq!(stopped, running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused_and_harms_nothing() {
    let daemon = Daemon::fake().await;
    let mut client = daemon.client().await;
    client.prepare("run", "").await.expect("prepare");
    let mode = fs::metadata(daemon.address())
        .expect("stat")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    let second = |options: ServeOptions| async {
        let mounter = Arc::new(FakeMounter::default());
        let never = std::future::pending::<()>();
        daemon::serve_with(options, mounter, |_| panic!("it must not serve"), never).await
    };
    let mut same_root = options(daemon.dir.path());
    same_root.address = daemon.dir.path().join("other.sock");
    let error = second(same_root.clone())
        .await
        .expect_err("the root is in use");
    assert!(matches!(error, Error::RootInUse { .. }), "{error}");
    assert!(!same_root.address.exists());
    let mut same_address = options(daemon.dir.path());
    same_address.root = daemon.dir.path().join("other");
    let error = second(same_address.clone())
        .await
        .expect_err("the address is in use");
    assert!(matches!(error, Error::SocketInUse { .. }), "{error}");
    assert!(!same_address.root.exists());
    let file = daemon.dir.path().join("file");
    fs::write(&file, "precious").expect("write");
    let not_a_socket = ServeOptions {
        address: file.clone(),
        ..same_address
    };
    let error = second(not_a_socket).await.expect_err("not a socket");
    assert!(matches!(error, Error::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&file).expect("read"), b"precious");
    client.stat("run").await.expect("the first one goes on");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced() {
    let dir = TempDir::new().expect("tempdir");
    let address = options(dir.path()).address;
    fs::create_dir_all(address.parent().expect("parent")).expect("mkdir");
    drop(UnixListener::bind(&address).expect("bind"));
    assert!(address.exists(), "a socket that nobody listens on");
    let daemon = Daemon::start(dir, Arc::new(FakeMounter::default())).await;
    daemon
        .client()
        .await
        .prepare("run", "")
        .await
        .expect("prepare");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mounted_does_not_stop_the_start() {
    let daemon = Daemon::fake().await;
    let mut client = daemon.client().await;
    client.prepare("run", "").await.expect("prepare");
    client.prepare("broken", "").await.expect("prepare");
    let dir = daemon.stop().await;
    let lost = options(dir.path()).root.join("snapshots/2/work");
    fs::remove_dir(&lost).expect("lose a directory");
    let mounter = FakeMounter::default();
    let daemon = Daemon::start(dir, Arc::new(mounter.clone())).await;
    assert_eq!(mounter.names(), ["1"], "mounted before the socket answers");
    let mut client = daemon.client().await;
    refused(
        client.mounts("broken").await,
        Code::Internal,
        "cannot mount",
    );
    fs::create_dir(&lost).expect("mend it");
    client
        .mounts("broken")
        .await
        .expect("mounted when it is asked for");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fuse_serves_containers_and_views() {
    let dir = TempDir::new().expect("tempdir");
    let daemon = Daemon::start(dir, Arc::new(FuseMounter::new(2, true))).await;
    let (mut client, root) = (daemon.client().await, daemon.root());
    client.prepare("extract-1 base", "").await.expect("prepare");
    fs::write(root.join("snapshots/1/fs/file"), "from the image").expect("unpack");
    client
        .commit("base", "extract-1 base", &[])
        .await
        .expect("commit");
    let at = |mounts: &[Mount]| PathBuf::from(&mounts[0].source);
    let one = at(&client.prepare("one", "base").await.expect("prepare"));
    let two = at(&client.prepare("two", "base").await.expect("prepare"));
    let look = at(&client.view("look", "base").await.expect("view"));
    assert_eq!(lamina_mounts(&root), 3);
    let write_one = one.clone();
    let files = tokio::task::spawn_blocking(move || {
        fs::write(write_one.join("file"), "changed").expect("write");
        fs::write(write_one.join("new"), "new").expect("write");
        let read = |dir: &Path| fs::read_to_string(dir.join("file")).expect("read");
        let denied = fs::write(look.join("file"), "no").expect_err("read-only");
        assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        (read(&write_one), read(&two), read(&look))
    });
    let files = files.await.expect("join");
    assert_eq!(
        files,
        (
            text("changed"),
            text("from the image"),
            text("from the image")
        )
    );

    assert!(root.join("snapshots/1/layer.index").exists());
    assert!(root.join("snapshots/1/image.index").exists());
    client.commit("saved", "one", &[]).await.expect("commit");
    assert!(!one.exists(), "the mount point went with the container");
    let again = at(&client.prepare("again", "saved").await.expect("prepare"));
    let dir = daemon.stop().await;
    assert_eq!(lamina_mounts(&root), 0);

    let daemon = Daemon::start(dir, Arc::new(FuseMounter::new(2, true))).await;
    assert_eq!(lamina_mounts(&root), 3, "mounted before the socket answers");
    let read = tokio::task::spawn_blocking(move || {
        let read = |name| fs::read_to_string(again.join(name)).expect("read");
        (read("file"), read("new"))
    });
    assert_eq!(read.await.expect("join"), (text("changed"), text("new")));
    let mut client = daemon.client().await;
    for key in ["again", "two", "look", "saved", "base"] {
        client
            .remove(key)
            .await
            .unwrap_or_else(|status| panic!("{key}: {status}"));
    }
    eventually("no mount is left", || lamina_mounts(&root) == 0).await;
    daemon.stop().await;
}
