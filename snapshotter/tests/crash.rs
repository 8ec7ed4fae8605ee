//! `kill -9` at any moment: after each start the store and the disk agree, what was answered holds,
//! and what was not answered has happened or has not, but never by half.
//!
//! The daemon that is killed is this test's own binary ([`the_daemon`]), with real FUSE mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_snapshots::api::snapshots::v1::snapshots_client::SnapshotsClient;
use containerd_snapshots::api::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_snapshots::tonic::transport::{Channel, Endpoint, Uri};
use containerd_snapshots::tonic::{Code, Status};
use lamina_snapshotter::check::check;
use lamina_snapshotter::daemon::{self, ServeOptions};
use lamina_snapshotter::hold::{self, Keeper};
use lamina_snapshotter::lazy::keeper;
use lamina_snapshotter::serve::testing::FakeMounter;
use lamina_snapshotter::snapshots::{Snapshots, Stop};
use lamina_snapshotter::store::records::Kind;
use lamina_snapshotter::upper_mode::UpperMode;
use tempfile::TempDir;
use tokio::net::UnixStream;

/// How many kills there are unless `LAMINA_KILLS` says another number: less than a minute's worth.
/// `scripts/kill-campaign` does 200.
const KILLS: u64 = 30;

/// Callers at once; each has keys of its own, so that each knows what its keys must be.
const CALLERS: usize = 3;

const DIR: &str = "LAMINA_CRASH_TEST_DIR";

fn root(dir: &Path) -> PathBuf {
    dir.join("root")
}

fn address(dir: &Path) -> PathBuf {
    dir.join("lamina.sock")
}

#[test]
#[ignore = "the daemon that the crash test starts and kills"]
fn the_daemon() {
    let dir = PathBuf::from(env::var_os(DIR).expect("started by the crash test"));
    let options = ServeOptions {
        root: root(&dir),
        address: address(&dir),
        threads: 2,
        passthrough: true,
        no_open: true,
        upper: UpperMode::default(),
        index: true,
        metacopy: true,
        partial_copy_up: true,
        registry: None,
        cache: keeper::Limits::default(),
        limits: lamina_fusefs::blob::Limits::default(),
        cri: None,
        holder: hold::Options {
            keeper: Keeper::None,
            ..hold::Options::default()
        },
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let served = runtime.block_on(daemon::serve(options, |_| {}, std::future::pending::<()>()));
    served.expect("serve until killed");
}

/// The daemon's process; killed with -9 when it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path) -> Daemon {
        let child = Command::new(env::current_exe().expect("current_exe"))
            .args([
                "--exact",
                "the_daemon",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIR, dir)
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("daemon.log")).expect("log"))
            .spawn()
            .expect("spawn");
        Daemon(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

async fn connect(dir: &Path) -> SnapshotsClient<Channel> {
    let address = address(dir);
    for _ in 0..1000 {
        let at = address.clone();
        let connector = tower::service_fn(move |_: Uri| UnixStream::connect(at.clone()));
        let endpoint = Endpoint::from_static("http://socket.invalid");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            return SnapshotsClient::new(channel);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let log = fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
    panic!("the daemon does not answer: {log}");
}

/// Numbers that look random and can be had again (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What a caller knows of its keys.
struct Caller {
    number: usize,
    made: u64,
    dice: Dice,
    /// What was answered.
    certain: BTreeMap<String, Kind>,
    /// The keys of the call that was cut off.
    open: BTreeSet<String>,
}

impl Caller {
    /// Calls verbs until the daemon is killed.
    async fn run(&mut self, mut client: SnapshotsClient<Channel>, killed: Arc<AtomicBool>) {
        loop {
            let Err(status) = self.step(&mut client).await else {
                self.open.clear();
                continue;
            };
            if status.code() == Code::FailedPrecondition {
                // A layer that others stand on.
                self.open.clear();
                continue;
            }
            assert!(
                killed.load(Ordering::SeqCst),
                "caller {}: {status}",
                self.number
            );
            return;
        }
    }

    fn pick(&mut self, kind: Option<Kind>) -> Option<String> {
        let fits = |other: &Kind| kind.is_none_or(|kind| kind == *other);
        let keys: Vec<&String> = self
            .certain
            .iter()
            .filter(|(_, kind)| fits(kind))
            .map(|(key, _)| key)
            .collect();
        let index = self
            .dice
            .roll(u64::try_from(keys.len().max(1)).expect("small"));
        keys.get(usize::try_from(index).expect("small"))
            .map(|key| (*key).clone())
    }

    async fn step(&mut self, client: &mut SnapshotsClient<Channel>) -> Result<(), Status> {
        self.made += 1;
        let fresh = format!("{} {}", self.number, self.made);
        let parent = self
            .pick(Some(Kind::Committed))
            .filter(|_| self.made.is_multiple_of(2));
        match self.dice.roll(8) {
            0 | 1 => {
                let parent = parent.unwrap_or_default();
                let request = PrepareSnapshotRequest {
                    key: fresh.clone(),
                    parent,
                    ..Default::default()
                };
                self.open.insert(fresh.clone());
                client.prepare(request).await?;
                self.certain.insert(fresh, Kind::Active);
            }
            2 => {
                let parent = parent.unwrap_or_default();
                let key = format!("ns/{}/extract-{} x", self.number, self.made);
                let request = PrepareSnapshotRequest {
                    key: key.clone(),
                    parent,
                    ..Default::default()
                };
                self.open.insert(key.clone());
                client.prepare(request).await?;
                self.certain.insert(key, Kind::Active);
            }
            3 => {
                let parent = parent.unwrap_or_default();
                let request = ViewSnapshotRequest {
                    key: fresh.clone(),
                    parent,
                    ..Default::default()
                };
                self.open.insert(fresh.clone());
                client.view(request).await?;
                self.certain.insert(fresh, Kind::View);
            }
            4 | 5 => {
                let Some(key) = self.pick(Some(Kind::Active)) else {
                    return Ok(());
                };
                let (key, name) = (key, format!("{fresh} saved"));
                let request = CommitSnapshotRequest {
                    name: name.clone(),
                    key: key.clone(),
                    ..Default::default()
                };
                self.open.extend([key.clone(), name.clone()]);
                client.commit(request).await?;
                self.certain.remove(&key);
                self.certain.insert(name, Kind::Committed);
            }
            _ => {
                let Some(key) = self.pick(None) else {
                    return Ok(());
                };
                self.open.insert(key.clone());
                client
                    .remove(RemoveSnapshotRequest {
                        key: key.clone(),
                        ..Default::default()
                    })
                    .await?;
                self.certain.remove(&key);
            }
        }
        Ok(())
    }

    /// Compares what the caller knows with what the store has, and takes over what it has.
    fn settle(&mut self, all: &BTreeMap<String, Kind>, round: &str) {
        let mine = |key: &str| {
            key.starts_with(&format!("{} ", self.number))
                || key.starts_with(&format!("ns/{}/", self.number))
        };
        let found: BTreeMap<String, Kind> = all
            .iter()
            .filter(|(key, _)| mine(key))
            .map(|(key, kind)| (key.clone(), *kind))
            .collect();
        let without_open = |keys: &BTreeMap<String, Kind>| {
            let mut keys = keys.clone();
            keys.retain(|key, _| !self.open.contains(key));
            keys
        };
        assert_eq!(without_open(&found), without_open(&self.certain), "{round}");
        self.open.clear();
        self.certain = found;
    }
}

#[test]
fn kills_leave_the_store_and_the_disk_agreed() {
    let kills = env::var("LAMINA_KILLS").map_or(KILLS, |text| {
        text.parse().expect("LAMINA_KILLS is a number")
    });
    let dir = TempDir::new().expect("tempdir");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let seed = u64::from(now.subsec_nanos()) | 1;
    let mut dice = Dice(seed);
    let mut callers: Vec<Caller> = (0..CALLERS)
        .map(|number| Caller {
            number,
            made: 0,
            dice: Dice(dice.roll(u64::MAX) | 1),
            certain: BTreeMap::new(),
            open: BTreeSet::new(),
        })
        .collect();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    for kill in 0..kills {
        let round = format!("kill {kill} of seed {seed}");
        let daemon = Daemon::start(dir.path());
        let killed = Arc::new(AtomicBool::new(false));
        callers = runtime.block_on(async {
            let mut running = Vec::new();
            let client = connect(dir.path()).await;
            for mut caller in callers {
                let (client, killed) = (client.clone(), Arc::clone(&killed));
                running.push(tokio::spawn(async move {
                    caller.run(client, killed).await;
                    caller
                }));
            }
            tokio::time::sleep(Duration::from_micros(dice.roll(120_000))).await;
            killed.store(true, Ordering::SeqCst);
            drop(daemon);
            let mut back = Vec::new();
            for caller in running {
                back.push(caller.await.expect("a caller"));
            }
            back
        });

        // What a crash leaves is nothing that a start does not clear away.
        for finding in check(&root(dir.path())).expect("check") {
            assert!(finding.is_leftover(), "{round}: {finding}");
        }
        let mounter = Arc::new(FakeMounter::default());
        let (snapshots, report) = Snapshots::open(&root(dir.path()), mounter).expect("open");
        assert!(report.failed.is_empty(), "{round}: {:?}", report.failed);
        let mut all = BTreeMap::new();
        let list = snapshots.list(&[], &mut |page| {
            all.extend(page.into_iter().map(|info| (info.key, info.record.kind)));
            Ok(())
        });
        list.expect("list");
        for caller in &mut callers {
            caller.settle(&all, &round);
        }
        snapshots.close(Stop::End);
        drop(snapshots);
        assert_eq!(check(&root(dir.path())).expect("check"), [], "{round}");
    }
    let made: u64 = callers.iter().map(|caller| caller.made).sum();
    assert!(
        made > kills,
        "the callers did something between the kills: {made} calls"
    );
}
