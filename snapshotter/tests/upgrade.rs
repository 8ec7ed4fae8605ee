//! `lamina upgrade`: another program serves, and neither containerd nor a container notices.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use containerd_snapshots::tonic::Status;
use lamina_snapshotter::status;
use rustix::process::{Pid, Signal, kill_process};
use support::{Client, eventually};
use tempfile::TempDir;

const LAMINA: &str = env!("CARGO_BIN_EXE_lamina");

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon with a place of its own, as an administrator starts it.
struct Ground {
    dir: TempDir,
    first: Child,
    /// Whoever serves now.
    pid: Pid,
}

impl Ground {
    async fn start(variables: &[(&str, &str)]) -> Ground {
        let dir = TempDir::new().expect("tempdir");
        let log = File::create(dir.path().join("log")).expect("log");
        let mut command = Command::new(LAMINA);
        command.args(["serve", "--root"]);
        command.arg(dir.path().join("root")).arg("--address");
        command.arg(dir.path().join("lamina.sock"));
        // A path that means something in this directory alone.
        command.args(["--config", "lamina.toml"]);
        fs::write(dir.path().join("lamina.toml"), "threads = 2\n").expect("write");
        command.current_dir(dir.path()).stderr(log);
        command.envs(variables.iter().copied());
        let first = command.spawn().expect("a daemon");
        let pid = Pid::from_child(&first);
        let ground = Ground { dir, first, pid };
        assert!(ground.is_answered().await, "{}", ground.log());
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("log")
    }

    async fn is_answered(&self) -> bool {
        let address = self.path("lamina.sock");
        for _ in 0..200 {
            if status::answers(&address, Duration::from_secs(1)).await {
                return true;
            }
            tokio::time::sleep(PATIENCE / 200).await;
        }
        false
    }

    fn upgrade(&self, program: &Path) -> Output {
        let mut command = Command::new(LAMINA);
        command.args(["upgrade", "--root"]).arg(self.path("root"));
        command.arg("--address").arg(self.path("lamina.sock"));
        command.arg("--program").arg(program);
        // What asks meanwhile goes on.
        tokio::task::block_in_place(|| command.output()).expect("it runs")
    }

    /// The daemon that the last line of an upgrade names.
    fn note(&mut self, told: &str) {
        let (_, behind) = told.rsplit_once("(process ").expect("a number");
        let number = behind.split(')').next().expect("a number");
        self.pid = Pid::from_raw(number.parse().expect("a number")).expect("a process");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // The last one unmounts everything. Fails if it is gone already.
        let _ = kill_process(self.pid, Signal::INT);
        let _ = self.first.try_wait();
    }
}

/// Asks for a snapshot again and again, as containerd does; answers how often it was told.
fn ask(mut client: Client, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let mut told = 0;
        while !stop.load(Ordering::SeqCst) {
            let mut answer = client.stat("box").await;
            for _ in 0..3 {
                if answer.as_ref().is_err_and(nobody_took) {
                    answer = client.stat("box").await;
                }
            }
            let info = answer.expect("no call fails");
            assert_eq!(info.name, "box");
            told += 1;
        }
        told
    })
}

/// Whether a call came when the connection was about to be closed, in order, and was not sent, or came after
/// the last one that the daemon took (GOAWAY, RFC 9113 section 6.8). The client of containerd (grpc-go) sends
/// it again by itself, this one does not.
fn nobody_took(told: &Status) -> bool {
    let is_after_the_last = told
        .message()
        .ends_with("connection error received: not a result of an error");
    told.message() == "transport error" || is_after_the_last
}

/// Writes and reads a file that it keeps open, as a container does.
fn work(at: &Path, stop: Arc<AtomicBool>) -> (Arc<AtomicU64>, std::thread::JoinHandle<()>) {
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .clone();
    let file = options.open(at.join("file")).expect("open");
    fs::remove_file(at.join("file")).expect("a file without a name");
    let (rounds, dir) = (Arc::new(AtomicU64::new(0)), at.join("dir"));
    let counted = Arc::clone(&rounds);
    let thread = std::thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            file.write_all_at(&number.to_ne_bytes(), 0).expect("write");
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 0).expect("read");
            assert_eq!(u64::from_ne_bytes(bytes), number);
            fs::create_dir(&dir).expect("mkdir");
            fs::remove_dir(&dir).expect("rmdir");
        }
    });
    (rounds, thread)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_serves_and_nobody_notices() {
    let mut ground = Ground::start(&[]).await;
    let mut client = Client::connect(ground.path("lamina.sock")).await;
    client.layer("base", "", &[]).await;
    let mounts = client.prepare("box", "base").await.expect("prepare");
    let stop = Arc::new(AtomicBool::new(false));
    let asking = ask(client.clone(), Arc::clone(&stop));
    let (rounds, working) = work(Path::new(&mounts[0].source), Arc::clone(&stop));
    let moves_on = async |rounds: &AtomicU64| {
        let before = rounds.load(Ordering::SeqCst);
        eventually("it works on", || {
            rounds.load(Ordering::SeqCst) > before + 10
        })
        .await;
    };
    moves_on(&rounds).await;

    for _ in 0..3 {
        let before = ground.pid;
        let output = ground.upgrade(Path::new(LAMINA));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(told.contains("was replaced by lamina "), "{told}");
        ground.note(&told);
        assert_ne!(ground.pid, before);
        moves_on(&rounds).await;
    }
    assert!(ground.first.wait().expect("the first one ended").success());

    // A program that does not start: the one before serves again.
    let broken = ground.path("broken");
    let script = "#!/bin/sh\nif [ \"$1\" = version ]; then echo lamina 9.9.9; else exit 3; fi\n";
    fs::write(&broken, script).expect("write");
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).expect("chmod");
    let output = ground.upgrade(&broken);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("ended with exit status: 3"), "{told}");
    assert!(told.contains(" runs again (process "), "{told}");
    ground.note(&told);
    moves_on(&rounds).await;

    // One that is not Lamina: nothing is touched.
    let output = ground.upgrade(Path::new("/bin/true"));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("/bin/true is not a lamina"), "{told}");
    moves_on(&rounds).await;

    stop.store(true, Ordering::SeqCst);
    working.join().expect("the container saw no error");
    assert!(asking.await.expect("containerd saw no error") > 0);
    client.remove("box").await.expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_containers_hands_its_socket_over_too() {
    let mut ground = Ground::start(&[]).await;
    let mut client = Client::connect(ground.path("lamina.sock")).await;
    client.layer("box", "", &[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let asking = ask(client, Arc::clone(&stop));
    let output = ground.upgrade(Path::new(LAMINA));
    assert!(output.status.success(), "{output:?}");
    ground.note(&String::from_utf8_lossy(&output.stdout));
    stop.store(true, Ordering::SeqCst);
    assert!(asking.await.expect("no call failed") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_daemon_or_one_that_cannot_be_replaced_is_told_what_to_do() {
    let ground = Ground::start(&[("NOTIFY_SOCKET", "/nowhere/notify")]).await;
    let output = ground.upgrade(Path::new(LAMINA));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("`systemctl restart`"), "{told}");
    assert!(ground.is_answered().await, "it still serves");

    let ground = Ground::start(&[("LAMINA_HOLDER", "none")]).await;
    let output = ground.upgrade(Path::new(LAMINA));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("nobody would keep the mounts"), "{told}");
    assert!(ground.is_answered().await, "it still serves");

    let none = TempDir::new().expect("tempdir");
    let output = Command::new(LAMINA)
        .arg("upgrade")
        .arg("--root")
        .arg(none.path())
        .output();
    let output = output.expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("no daemon serves "), "{told}");
    assert!(!output.status.success());
}
