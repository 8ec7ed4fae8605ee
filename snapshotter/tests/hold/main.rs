//! The holder: what a daemon has given away is there for the next one, however the first one ended, and
//! whatever the holder was sent.
//!
//! The daemons that are killed are this test's own binary ([`the_daemon`]).

mod distrust;
mod kills;
mod life;
mod systemd;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lamina_snapshotter::hold::{Holder, Keeper, Options};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tempfile::TempDir;

const STEPS: &str = "LAMINA_HOLD_TEST_STEPS";
const ADDRESS: &str = "LAMINA_HOLD_TEST_ADDRESS";
const KEEPER: &str = "LAMINA_HOLD_TEST_KEEPER";

/// Long enough for whatever should happen.
const SOON: Duration = Duration::from_secs(20);

type Taken = BTreeMap<String, OwnedFd>;

/// A place for a holder.
struct Ground(TempDir);

impl Ground {
    fn new() -> Ground {
        Ground(TempDir::new().expect("tempdir"))
    }

    fn address(&self) -> PathBuf {
        self.0.path().join("hold.sock")
    }

    fn open(&self) -> (Holder, Taken) {
        self.open_for(Duration::from_mins(1))
    }

    fn open_for(&self, patience: Duration) -> (Holder, Taken) {
        Holder::open(&options(Keeper::Process, patience), &self.address()).expect("a holder")
    }

    /// The process that listens.
    fn pid(&self) -> Option<Pid> {
        Some(socket_peercred(self.connect()?).expect("peer").pid)
    }

    fn connect(&self) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let socket = socket.expect("socket");
        let address = SocketAddrUnix::new(self.address()).expect("address");
        connect(&socket, &address).ok().map(|()| socket)
    }

    /// A daemon that does these steps; its exit is awaited.
    fn daemon(&self, steps: &str) {
        let mut command = daemon_command();
        command.env(STEPS, steps).env(ADDRESS, self.address());
        let status = command.stdin(Stdio::null()).status().expect("run");
        let died = std::os::unix::process::ExitStatusExt::signal(&status);
        assert!(status.success() || died == Some(9), "{status}");
    }
}

fn options(keeper: Keeper, patience: Duration) -> Options {
    Options {
        keeper,
        patience,
        program: env!("CARGO_BIN_EXE_lamina").into(),
    }
}

fn daemon_command() -> Command {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.args(["the_daemon", "--exact", "--ignored", "--nocapture"]);
    command.env_remove("NOTIFY_SOCKET").env(KEEPER, "process");
    command
}

#[test]
#[ignore = "the daemon that the other tests start and kill"]
fn the_daemon() {
    let address = PathBuf::from(env::var_os(ADDRESS).expect("started by a test"));
    let keeper = env::var(KEEPER).expect("keeper").parse().expect("a keeper");
    let options = options(keeper, Duration::from_mins(1));
    let (holder, taken) = Holder::open(&options, &address).expect("a holder");
    for step in env::var(STEPS).expect("steps").split(';') {
        match step.split(' ').collect::<Vec<_>>()[..] {
            ["keep", name, text] => holder.keep(name, memory(text)),
            ["keep-again", name] => {
                let again = taken[name].try_clone().expect("dup");
                holder.keep(name, Arc::new(again));
            }
            ["keep-many", count] => {
                for number in 0..count.parse::<u32>().expect("a number") {
                    holder.keep(&format!("{number}.many"), memory(&number.to_string()));
                }
            }
            ["release", name] => holder.release(name),
            ["release-all", prefix] => holder.release_all(prefix),
            ["tell", file] => fs::write(file, told(&taken)).expect("write"),
            ["die"] => kill_process(getpid(), Signal::KILL).expect("kill"),
            ["end"] => holder.end(),
            _ => panic!("unknown step {step}"),
        }
    }
}

/// Memory that holds a text.
fn memory(text: &str) -> Arc<OwnedFd> {
    let file = File::from(memfd_create("held", MemfdFlags::CLOEXEC).expect("memfd"));
    file.write_all_at(text.as_bytes(), 0).expect("write");
    Arc::new(file.into())
}

fn text_of(descriptor: impl AsFd) -> String {
    let copy = descriptor.as_fd().try_clone_to_owned().expect("dup");
    let mut text = vec![0; 64];
    let length = File::from(copy).read_at(&mut text, 0).expect("read");
    String::from_utf8(text[..length].to_vec()).expect("text")
}

/// Names and texts, for comparisons.
fn told(taken: &Taken) -> String {
    let entries = taken.iter();
    let entries = entries.map(|(name, descriptor)| format!("{name}={}", text_of(descriptor)));
    entries.collect::<Vec<_>>().join(" ")
}

fn inode(descriptor: impl AsFd) -> (u64, u64) {
    let stat = fstat(descriptor).expect("stat");
    (stat.st_dev, stat.st_ino)
}

#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < SOON, "not so after {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_over(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // Its parent may not have asked yet how it ended.
    stat.map_or(true, |stat| stat.contains(") Z "))
}

fn status_of(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).expect("status")
}

#[test]
fn a_thousand_descriptors_are_kept_and_taken_back_as_what_they_are() {
    let ground = Ground::new();
    let (holder, taken) = ground.open();
    assert!(taken.is_empty());
    let mut kept = BTreeMap::new();
    for number in 0..1000_u32 {
        let descriptor = memory(&format!("text {number}"));
        let name = format!("{number}.{}", "n".repeat(190));
        kept.insert(name.clone(), (inode(&descriptor), format!("text {number}")));
        holder.keep(&name, descriptor);
    }
    drop(holder);
    let (holder, taken) = ground.open();
    let found: BTreeMap<_, _> = taken
        .iter()
        .map(|(name, descriptor)| (name.clone(), (inode(descriptor), text_of(descriptor))))
        .collect();
    assert_eq!(found, kept);
    holder.end();
}

#[test]
fn threads_share_a_holder() {
    fn assert_shared<T: Send + Sync>() {}
    assert_shared::<Holder>();
}

fn say(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = sendmsg(
        &socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent, Ok(bytes.len()), "{}", socket.as_fd().as_raw_fd());
}
