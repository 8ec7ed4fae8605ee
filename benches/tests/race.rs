//! Short races on real mounts: right results count, and wrong ones are caught.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use lamina_benches::containers;
use lamina_benches::ground::{Ground, Layers, Round};
use lamina_benches::image::{Scale, Source};
use lamina_benches::interrupt::Interrupt;
use lamina_benches::race::{Race, Results, Row};
use lamina_benches::stats::Samples;
use lamina_benches::systems::{Lamina, LaminaWithKernelUpper, Mounted, Overlayfs, System};
use lamina_benches::works;

/// One test after the other: what a test starts has, until it executes its program, all that others
/// have open in their mounts, which can't be unmounted then.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Room on the file system of the target directory: overlayfs takes no upper on overlayfs.
fn ground() -> (tempfile::TempDir, Ground) {
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: it mounts"
    );
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("room");
    let ground =
        Ground::new(dir.path(), Source::Made, Scale::new(0.002).expect("scale")).expect("ground");
    (dir, ground)
}

/// The `lamina` command of this workspace, built if it isn't there.
fn lamina() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package=lamina-snapshotter",
            "--bin=lamina",
        ])
        .status()
        .expect("cargo");
    assert!(built.success(), "cannot build lamina");
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../debug/lamina")
}

fn race(ground: &Ground, systems: &[Box<dyn System>], only: &[&str]) -> Results {
    let mut works = works::all();
    works.retain(|work| only.is_empty() || only.contains(&work.name));
    let race = Race {
        ground,
        works: &works,
        container_works: &[],
        systems,
        rounds: 1,
        interrupt: Interrupt::default(),
        told: |line| println!("{line}"),
    };
    race.run().expect("the race ends")
}

#[test]
fn every_work_comes_out_right_on_overlayfs_and_lamina() {
    let _turn = alone();
    let (_dir, ground) = ground();
    let systems: [Box<dyn System>; 2] = [
        Box::new(Overlayfs),
        Box::new(Lamina::new("lamina", &lamina(), "")),
    ];
    let here = listed(Path::new("."));
    let results = race(&ground, &systems, &[]);
    assert_eq!(
        listed(Path::new(".")),
        here,
        "left in the working directory"
    );
    assert_eq!(results.failures, Vec::<String>::new());
    assert_eq!(results.rows.len(), works::all().len());
    for row in &results.rows {
        let lengths: Vec<_> = row.samples.iter().map(Samples::len).collect();
        assert_eq!(lengths, [1, 1], "{}", row.work);
    }
}

/// What of the directory `dir` there is, with the time at which each file was made.
fn listed(dir: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let entries = entries.map(|entry| {
        let entry = entry.expect("entry");
        let made = entry.metadata().expect("metadata").modified();
        (entry.path(), made.expect("a time"))
    });
    entries.collect()
}

/// As users have it; and that it is made before anything is timed.
#[test]
fn lamina_has_an_index_before_the_first_mount_unless_an_option_says_no() {
    let _turn = alone();
    let (_dir, ground) = ground();
    let layers = ground.layers(Layers::Userland(2)).expect("layers");
    for (name, options, count) in [("with", "", 1), ("without", "noindexdir", 0)] {
        let system = Lamina::new(name, &lamina(), options);
        let round = ground.round().expect("round");
        system.prepare(&layers, &round).expect("prepare");
        let before = listed(&round.index(name));
        assert_eq!(before.len(), count, "{name}: {before:?}");
        let mounted = system.mount(&layers, &round).expect("mount");
        mounted.unmount().expect("unmount");
        assert_eq!(listed(&round.index(name)), before, "{name}");
    }
}

/// overlayfs, but somebody spoils the mount before the work begins.
#[derive(Debug)]
struct Spoiled(fn(&Path) -> std::io::Result<()>);

impl System for Spoiled {
    fn name(&self) -> &'static str {
        "spoiled"
    }

    fn version(&self) -> Result<String> {
        Ok("1".into())
    }

    fn mount(&self, layers: &[PathBuf], round: &Round) -> Result<Mounted> {
        let mounted = Overlayfs.mount(layers, round)?;
        (self.0)(mounted.path())?;
        Ok(mounted)
    }
}

fn complaint(work: &str, spoil: fn(&Path) -> std::io::Result<()>) -> String {
    let (_dir, ground) = ground();
    let systems: [Box<dyn System>; 1] = [Box::new(Spoiled(spoil))];
    let results = race(&ground, &systems, &[work]);
    assert!(
        results.rows[0].samples[0].is_empty(),
        "a wrong result has a time"
    );
    results.complaint().expect("a wrong result was not noticed")
}

#[test]
fn a_name_too_many_is_noticed() {
    let _turn = alone();
    let said = complaint("find-warm", |root| fs::write(root.join("etc/new"), ""));
    assert!(said.contains("find-warm, spoiled: wrong result"), "{said}");
}

#[test]
fn a_wrong_byte_is_noticed() {
    let _turn = alone();
    let said = complaint("read-again", |root| {
        let path = root.join("data/big");
        let mut bytes = fs::read(&path)?;
        bytes[1 << 20] ^= 1;
        fs::write(path, bytes)
    });
    assert!(said.contains("read-again, spoiled: wrong result"), "{said}");
}

/// Wrong after the remount alone: what was appended is gone.
#[test]
fn a_change_that_a_remount_loses_is_noticed() {
    let _turn = alone();
    let said = complaint("append", |root| {
        let path = root.join("data/big");
        let bytes = fs::read(&path)?;
        let whole = bytes.len() / 4096 * 4096;
        fs::write(path, &bytes[..whole])
    });
    assert!(
        said.contains("append, spoiled: wrong after a remount"),
        "{said}"
    );
}

/// The two columns that have no daemon, or unpack what another column has unpacked, stay empty.
#[test]
fn works_by_containerd_come_out_right_and_leave_nothing() {
    let _turn = alone();
    let (dir, ground) = ground();
    let lamina = Lamina::new("lamina", &lamina(), "");
    let systems: [Box<dyn System>; 3] = [
        Box::new(Overlayfs),
        Box::new(lamina.clone()),
        Box::new(LaminaWithKernelUpper::new(lamina)),
    ];
    let race = Race {
        ground: &ground,
        works: &[],
        container_works: &containers::all(),
        systems: &systems,
        rounds: 2,
        interrupt: Interrupt::default(),
        told: |line| println!("{line}"),
    };
    let results = race.run().expect("the race ends");
    assert_eq!(results.failures, Vec::<String>::new());
    let lengths = |row: &Row| row.samples.iter().map(Samples::len).collect::<Vec<_>>();
    let lengths: Vec<_> = results
        .rows
        .iter()
        .map(|row| (row.work, lengths(row)))
        .collect();
    let expected = [
        ("unpack", vec![2, 2, 0]),
        ("container", vec![2, 2, 2]),
        ("memory", vec![0, 1, 1]),
    ];
    assert_eq!(lengths, expected);
    assert!(!dir.path().join("containerd").exists());
}

#[test]
fn ctrl_c_ends_containerd_and_its_snapshotters() {
    let _turn = alone();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("room");
    let stage = dir.path().join("containerd");
    let code = interrupted(
        dir.path(),
        &["container"],
        &["overlayfs"],
        &stage.join("c.sock"),
    );
    assert_eq!(code, Some(130));
    assert!(!stage.exists());
    let socket = stage.join("c.sock").into_os_string();
    for process in fs::read_dir("/proc").expect("list").flatten() {
        let said = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = said.split(|byte| *byte == 0);
        let ours = words.any(|word| word == socket.as_encoded_bytes());
        assert!(!ours, "{} was left", String::from_utf8_lossy(&said));
    }
}

#[test]
fn ctrl_c_ends_the_race_and_leaves_no_upper() {
    let _turn = alone();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("room");
    let round = dir.path().join("round");
    let code = interrupted(dir.path(), &["append"], &["overlayfs"], &round);
    assert_eq!(code, Some(130));
    assert!(!round.exists());
    let report = fs::read_to_string(dir.path().join("report/race.md")).expect("report");
    assert!(report.contains("was stopped before its end"), "{report}");
}

/// Races in `dir` without end, sends SIGINT when `sign` is there, and gives the exit code.
fn interrupted(dir: &Path, works: &[&str], systems: &[&str], sign: &Path) -> Option<i32> {
    let mut race = Command::new(env!("CARGO_BIN_EXE_lamina-benches"))
        .args([
            "race", "--image", "made", "--scale", "0.002", "--rounds", "100000",
        ])
        .args(["--only", &works.join(","), "--systems", &systems.join(",")])
        .arg("--dir")
        .arg(dir)
        .spawn()
        .expect("spawn");
    while !sign.exists() {
        let ended = race.try_wait().expect("wait");
        assert!(ended.is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_child(&race);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
    race.wait().expect("wait").code()
}
