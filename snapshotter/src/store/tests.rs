//! Tests of the store: the verbs' rules, and what happens to a damaged file or a full disk.

use std::fs;
use std::path::Path;

use super::records::Labels;
use super::*;
use crate::error::Code;

fn store(dir: &Path) -> (Layout, Store) {
    let layout = Layout::create(dir).expect("layout");
    let store = Store::open(&layout, 0).expect("open");
    (layout, store)
}

fn add(store: &Store, key: &str, parent: Option<&str>) -> Result<Record> {
    let id = parent
        .map(|name| Ok::<_, Error>(store.parent(name)?.0.id))
        .transpose()?;
    store.create(key, &new(store, Kind::Active, parent), id)
}

fn new(store: &Store, kind: Kind, parent: Option<&str>) -> Record {
    Record {
        parent: parent.map(str::to_owned),
        ..Record::unsaved(store.allocate(), kind)
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

#[test]
fn a_snapshot_lives_through_all_its_kinds() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (layout, store) = store(dir.path());
    let base = add(&store, "base-active", None).expect("create");
    let usage = Usage {
        size: 4096,
        inodes: 1,
    };
    let committed = store
        .commit("base-active", "base", usage, &labels(&[("a", "b")]))
        .expect("commit");
    assert_eq!(
        (committed.id, committed.kind, committed.usage),
        (base.id, Kind::Committed, usage)
    );
    assert_eq!(committed.labels, labels(&[("a", "b")]));
    let child = add(&store, "child", Some("base")).expect("create a child");
    assert_eq!(store.chain_below(&child).expect("chain"), [base.id]);
    assert_eq!(
        store.remove("base").expect_err("has a child").code(),
        Code::FailedPrecondition
    );
    drop(store);

    let store = Store::open(&layout, 0).expect("open again");
    assert_eq!(store.get("child").expect("get").record, child);
    store.remove("child").expect("remove the child");
    store.remove("base").expect("remove the base");
    assert!(store.ids().expect("ids").is_empty());
    assert!(store.allocate() > child.id, "ids are not used twice");
}

#[test]
fn refusals_have_containerds_codes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_, store) = store(dir.path());
    add(&store, "active", None).expect("create");
    let commit = |key, name| store.commit(key, name, Usage::default(), &Labels::new());
    let code = |result: Result<Record>| result.expect_err("refused").code();
    assert_eq!(code(add(&store, "active", None)), Code::AlreadyExists);
    assert_eq!(code(add(&store, "x", Some("none"))), Code::NotFound);
    assert_eq!(
        code(add(&store, "x", Some("active"))),
        Code::InvalidArgument
    );
    assert_eq!(code(commit("none", "x")), Code::NotFound);
    assert_eq!(code(commit("active", "active")), Code::AlreadyExists);
    commit("active", "done").expect("commit");
    assert_eq!(code(commit("done", "x")), Code::FailedPrecondition);
    assert_eq!(code(store.remove("none")), Code::NotFound);
    let other = store.create("x", &new(&store, Kind::View, Some("done")), Some(99));
    assert_eq!(
        code(other),
        Code::NotFound,
        "the parent was replaced meanwhile"
    );
    let bad = store.update("done", &Labels::new(), &["parent".to_owned()]);
    assert_eq!(bad.expect_err("immutable").code(), Code::InvalidArgument);
}

#[test]
fn update_changes_what_the_paths_name() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_, store) = store(dir.path());
    let made = add(&store, "a", None).expect("create");
    let all = labels(&[("l1", "1"), ("l2", "2"), ("empty", "")]);
    let info = store.update("a", &all, &[]).expect("all");
    assert_eq!(info.record.labels, labels(&[("l1", "1"), ("l2", "2")]));
    assert_eq!(info.record.created, made.created);
    assert!(info.record.updated > made.updated);
    let some = ["labels.l1".to_owned(), "labels.l2".to_owned()];
    let info = store
        .update("a", &labels(&[("l1", "new"), ("l4", "4")]), &some)
        .expect("some");
    assert_eq!(info.record.labels, labels(&[("l1", "new")]));
    let both = ["labels.x".to_owned(), "kind".to_owned()];
    store
        .update("a", &labels(&[("x", "y")]), &both)
        .expect_err("kind");
    assert_eq!(
        store.get("a").expect("get").record.labels,
        labels(&[("l1", "new")])
    );
}

#[test]
fn only_root_reads_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("tempdir");
    let (layout, _store) = store(dir.path());
    let mode = fs::metadata(layout.store())
        .expect("stat")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (layout, store) = store(dir.path());
    for number in 0..50 {
        add(&store, &format!("key {number}"), None).expect("create");
    }
    drop(store);
    let path = layout.store();
    let whole = fs::read(&path).expect("read");
    let mut flipped = whole.clone();
    // Every byte but redb's magic: whatever page a reader needs, it is wrong.
    flipped[512..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    for (what, bytes) in [
        ("empty", Vec::new()),
        (
            "garbage",
            b"this is not a database, whatever its name says".repeat(200),
        ),
        ("zeros", vec![0; whole.len()]),
        ("cut short", whole[..whole.len() / 3].to_vec()),
        ("cut to the first page", whole[..4096].to_vec()),
        ("flipped", flipped),
    ] {
        fs::write(&path, &bytes).expect("write");
        let error = Store::open(&layout, 0)
            .err()
            .unwrap_or_else(|| panic!("{what} was opened"));
        assert!(
            matches!(error, Error::CorruptStore { .. }),
            "{what}: {error:?}"
        );
        assert!(
            error.to_string().contains("metadata.redb"),
            "{what}: {error}"
        );
        assert!(
            fs::read(&path).expect("read") == bytes,
            "{what}: the file was changed"
        );
    }
    fs::write(&path, &whole).expect("write");
    let store = Store::open(&layout, 0).expect("the whole file opens");
    assert_eq!(store.ids().expect("ids").len(), 50);
}

/// A snapshot that a damaged store has forgotten would be an orphan, and deleted.
#[test]
fn a_damaged_page_never_takes_a_snapshot_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (layout, store) = store(dir.path());
    for number in 0..20 {
        add(&store, &format!("key {number}"), None).expect("create");
    }
    let path = layout.store();
    let crashed = fs::read(&path).expect("read");
    drop(store);
    let closed = fs::read(&path).expect("read");
    let mut refused = 0;
    for (what, whole) in [("crashed", crashed), ("closed", closed)] {
        for at in (64..whole.len()).step_by(512) {
            let mut bytes = whole.clone();
            bytes[at..(at + 40).min(whole.len())]
                .iter_mut()
                .for_each(|byte| *byte ^= 0x5a);
            fs::write(&path, &bytes).expect("write");
            match Store::open(&layout, 0) {
                Ok(store) => {
                    assert_eq!(store.ids().expect("ids").len(), 20, "{what}, {at}");
                }
                Err(error) => {
                    refused += 1;
                    assert!(
                        matches!(error, Error::CorruptStore { .. }),
                        "{what}, {at}: {error:?}"
                    );
                    assert!(
                        fs::read(&path).expect("read") == bytes,
                        "{what}, {at}: the file was changed"
                    );
                }
            }
        }
    }
    assert!(refused > 0, "some of it was needed");
}

#[test]
fn a_newer_format_and_a_spoilt_record_are_reported() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (layout, store) = store(dir.path());
    add(&store, "a", None).expect("create");
    drop(store);
    tables::damage::spoil_record(&layout.store(), "a");
    let store = Store::open(&layout, 0).expect("open");
    let error = store.get("a").expect_err("spoilt");
    assert_eq!(error.code(), Code::DataLoss);
    assert!(error.to_string().contains("the record of \"a\""), "{error}");
    drop(store);
    tables::damage::set_format(&layout.store(), 99);
    let error = Store::open(&layout, 0).err().expect("newer");
    assert!(error.to_string().contains("format 99"), "{error}");
}

#[test]
fn a_lost_store_is_not_made_anew_over_snapshots() {
    let dir = tempfile::tempdir().expect("tempdir");
    let layout = Layout::create(dir.path()).expect("layout");
    fs::create_dir_all(layout.fs(3)).expect("mkdir");
    let error = Store::open(&layout, 3).err().expect("refused");
    assert!(
        matches!(error, Error::MissingStore { count: 1, .. }),
        "{error}"
    );
    assert!(!layout.store().exists());
}

#[test]
fn ids_begin_above_what_is_on_the_disk() {
    let dir = tempfile::tempdir().expect("tempdir");
    let layout = Layout::create(dir.path()).expect("layout");
    let store = Store::open(&layout, 41).expect("open");
    assert_eq!(store.allocate(), 42);
}

#[test]
fn a_full_disk_does_not_end_the_store() {
    let disk = crate::testing::Small::mount();
    let (layout, store) = store(disk.path());
    add(&store, "before", None).expect("create");
    let filler = disk.fill();
    let mut added = 0;
    let refused = loop {
        match add(&store, &format!("{added} {}", "x".repeat(3000)), None) {
            Ok(_) => added += 1,
            Err(error) => break error,
        }
        assert!(added < 10_000, "the disk never fills");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(store.ids().expect("still readable").len(), 1 + added);
    fs::remove_file(filler).expect("make room");
    add(&store, "after", None).expect("there is room again");
    drop(store);
    let store = Store::open(&layout, 0).expect("open");
    assert_eq!(store.ids().expect("ids").len(), 2 + added);
}

#[test]
fn logins_in_labels_are_not_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_, store) = store(dir.path());
    let secret = labels(&[
        ("containerd.io/snapshot/pullsecret", "hunter2"),
        ("containerd.io/snapshot/pullusername", "hunter2"),
        ("other", "kept"),
    ]);
    let record = Record {
        labels: secret.clone(),
        ..Record::unsaved(store.allocate(), Kind::Active)
    };
    let created = store.create("a", &record, None).expect("create");
    assert_eq!(created.labels, labels(&[("other", "kept")]));
    let updated = store.update("a", &secret, &[]).expect("update");
    assert_eq!(updated.record.labels, labels(&[("other", "kept")]));
}
