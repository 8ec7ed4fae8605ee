//! Many containers of one image at once: what each costs, that an idle one costs nothing, and that
//! they leave nothing.
//!
//! The daemon is a process of its own, so that what is counted is the daemon's. `scripts/density`
//! runs it with a thousand containers and a release build; by itself it starts fifty, with the
//! daemon of this build. Times are printed and never judged.

mod support;

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use lamina_snapshotter::upper_mode::{LABEL, UpperMode};
use rustix::process::{Pid, Signal, kill_process};
use support::{Client, eventually};
use tempfile::TempDir;

/// How many containers, unless `LAMINA_DENSITY` says it.
const CONTAINERS: usize = 50;
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(10);
/// What an idle daemon may use in that time, in hundredths of a second of CPU time.
const IDLE_TICKS: u64 = 2;
/// The most that a container may cost in memory of the daemon.
const KIB_EACH: u64 = 200;
/// What the daemon needs for itself, whatever the number of containers: its runtime has threads
/// that come and go, and a union has two that serve and one that waits for them.
const OWN_THREADS: u64 = 40;
/// Descriptors that come with the first image and the first calls.
const OWN_FILES: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_on_unions() {
    let (before, after) = crowd(UpperMode::Union).await;
    assert_eq!(after.mounts, count(), "one mount each");
    let threads = after.threads.saturating_sub(before.threads);
    assert!(threads <= 3 * count() + OWN_THREADS, "{threads} threads");
    let files = after.descriptors.saturating_sub(before.descriptors);
    // Three of them are duplicates that another holder would get, if this one died.
    assert!(files <= 9 * count() + OWN_FILES, "{files} descriptors");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_on_the_kernels_uppers() {
    let (before, after) = crowd(UpperMode::Kernel).await;
    assert_eq!(after.mounts, 1, "the image");
    let threads = after.threads.saturating_sub(before.threads);
    assert!(threads <= OWN_THREADS, "{threads} threads");
    let files = after.descriptors.saturating_sub(before.descriptors);
    assert!(files <= OWN_FILES, "{files} descriptors");
}

fn count() -> u64 {
    let said = env::var("LAMINA_DENSITY").ok();
    let said = said.map(|said| said.parse().expect("LAMINA_DENSITY is a number"));
    said.unwrap_or(CONTAINERS as u64)
}

/// Starts them, keeps them, ends them. What the daemon took before and with all of them.
async fn crowd(upper: UpperMode) -> (Cost, Cost) {
    let daemon = Daemon::start().await;
    let mut client = Client::connect(daemon.address()).await;
    client.prepare("extract-1 base", "").await.expect("prepare");
    fs::write(daemon.root().join("snapshots/1/fs/file"), "image").expect("unpack");
    client
        .commit("base", "extract-1 base", &[])
        .await
        .expect("commit");
    // Whatever is made once is made now.
    start(&mut client, "first", upper).await;
    client.remove("first").await.expect("remove");
    let before = daemon.cost();

    let mut times = Vec::new();
    for number in 0..count() {
        times.push(start(&mut client, &format!("run {number}"), upper).await);
    }
    let with_all = daemon.cost();
    tokio::time::sleep(IDLE).await;
    let idle = daemon.cost().ticks - with_all.ticks;
    let begun = Instant::now();
    for number in 0..count() {
        client
            .remove(&format!("run {number}"))
            .await
            .expect("remove");
    }
    let removed = begun.elapsed();
    eventually("every mount and thread is gone", || {
        let now = daemon.cost();
        now.mounts == 0 && now.threads <= before.threads + OWN_THREADS
    })
    .await;
    let left = daemon.cost();
    tell(upper, &before, &with_all, &left, &times);
    eprintln!("  idle for {IDLE:?}: {idle}0 ms of CPU; removed in {removed:?}");
    assert!(idle <= IDLE_TICKS, "idle, it used {idle}0 ms");
    let grown = with_all.kib.saturating_sub(before.kib) / count();
    assert!(grown <= KIB_EACH, "{grown} KiB for each container");
    assert!(left.descriptors <= before.descriptors + 2, "{left}");
    assert_eq!(daemon.snapshots(), 1, "the image");
    (before, with_all)
}

/// Prepare and Mounts, and how long they took.
async fn start(client: &mut Client, key: &str, upper: UpperMode) -> Duration {
    let begun = Instant::now();
    let labels = [(LABEL, upper.as_str())];
    let mounts = client.prepare_with(key, "base", &labels).await;
    let mounts = mounts.expect("prepare");
    assert_eq!(client.mounts(key).await.expect("mounts"), mounts);
    begun.elapsed()
}

fn tell(upper: UpperMode, before: &Cost, with_all: &Cost, left: &Cost, times: &[Duration]) {
    let part = times.len().div_ceil(10);
    let median = |part: &[Duration]| {
        let mut sorted = part.to_vec();
        sorted.sort();
        sorted[sorted.len() / 2]
    };
    let (first, last) = (&times[..part], &times[times.len() - part..]);
    eprintln!("{} containers, upper = {upper}", times.len());
    eprintln!("  before:    {before}");
    eprintln!("  with all:  {with_all}");
    eprintln!("  afterwards: {left}");
    eprintln!(
        "  a start, median: {:?} of the first tenth, {:?} of the last",
        median(first),
        median(last)
    );
}

/// What a process takes.
struct Cost {
    kib: u64,
    threads: u64,
    descriptors: u64,
    mounts: u64,
    /// CPU time, in hundredths of a second.
    ticks: u64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB, {} threads, {} descriptors, {} mounts",
            self.kib, self.threads, self.descriptors, self.mounts
        )
    }
}

/// A daemon on a root of its own. Dropping it ends it as an administrator would.
struct Daemon {
    dir: TempDir,
    process: Child,
}

impl Daemon {
    async fn start() -> Daemon {
        let dir = TempDir::new().expect("tempdir");
        let program = env::var_os("LAMINA_BIN").map(PathBuf::from);
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_lamina").into());
        let mut command = Command::new(program);
        command.arg("serve").arg("--root").arg(dir.path().join("r"));
        command.arg("--address").arg(dir.path().join("s"));
        let process = command
            .env("LAMINA_LOG_LEVEL", "warn")
            .spawn()
            .expect("lamina");
        let daemon = Daemon { dir, process };
        let address = daemon.address();
        eventually("the daemon answers", || address.exists()).await;
        daemon
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    fn address(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn snapshots(&self) -> usize {
        fs::read_dir(self.root().join("snapshots"))
            .expect("list")
            .count()
    }

    fn cost(&self) -> Cost {
        let proc = Path::new("/proc").join(self.process.id().to_string());
        let read = |name| fs::read_to_string(proc.join(name)).expect("the daemon runs");
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1));
            value.expect(name).parse().expect(name)
        };
        // Behind the name in parentheses: state is field 3, utime 14 and stime 15.
        let stat = read("stat");
        let (_, fields) = stat.rsplit_once(") ").expect("stat");
        let fields: Vec<_> = fields.split(' ').collect();
        let ticks = |at: usize| fields[at - 3].parse::<u64>().expect("stat");
        let mounts = self.root().join("mounts");
        let mounts = mounts.to_str().expect("utf-8");
        let table = read("mountinfo");
        Cost {
            kib: field("VmRSS:"),
            threads: field("Threads:"),
            descriptors: fs::read_dir(proc.join("fd")).expect("list").count() as u64,
            mounts: table.lines().filter(|line| line.contains(mounts)).count() as u64,
            ticks: ticks(14) + ticks(15),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).expect("stop");
        self.process.wait().expect("wait");
    }
}
