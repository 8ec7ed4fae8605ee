//! The holder: what a daemon has given away is there for the next one, however the first one ended, and
//! whatever the holder was sent.
//!
//! The daemons that are killed are this test's own binary ([`the_daemon`]).

mod systemd;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lamina_snapshotter::hold::{Holder, Keeper, Options};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
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

/// Whether this process has `CAP_SYS_RESOURCE`, which root lacks in some sandboxes.
fn may_raise_limits() -> bool {
    let own = rustix::thread::capabilities(None).expect("capabilities");
    let wanted = rustix::thread::CapabilitySet::SYS_RESOURCE;
    own.effective.contains(wanted)
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
fn what_a_killed_daemon_gave_away_last_is_there_for_the_next() {
    let ground = Ground::new();
    for round in 0..10 {
        ground.daemon(&format!("keep-many 150;keep last {round};die"));
        let (holder, taken) = ground.open();
        assert_eq!(taken.len(), 151);
        assert_eq!(text_of(&taken["last"]), round.to_string());
        drop(holder);
    }
    ground.daemon("release-all 1;release last;keep 0.many other;die");
    let (holder, taken) = ground.open();
    assert!(!taken.contains_key("last") && !taken.contains_key("1.many"));
    assert_eq!(taken.len(), 150 - 1 - 10 - 50);
    assert_eq!(text_of(&taken["0.many"]), "other");
    holder.end();
}

#[test]
fn a_daemon_that_died_with_its_answer_unread_is_heard_to_the_end() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    drop(holder);
    let raw = ground.connect().expect("connect");
    let descriptor = memory("last words");
    say(&raw, b"LH\x03", &[]);
    eventually("the answer is there", || {
        let mut poll = [rustix::event::PollFd::new(
            &raw,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, Some(&rustix::event::Timespec::default())).expect("poll") > 0
    });
    say(&raw, b"LH\x012.fuse", &[descriptor.as_fd()]);
    drop((raw, descriptor));
    let (holder, taken) = ground.open();
    assert_eq!(told(&taken), "1.fuse=one 2.fuse=last words");
    holder.end();
}

#[test]
fn a_holder_that_is_killed_is_replaced_and_nothing_is_lost() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    for round in 0..3 {
        for number in 0..300 {
            holder.keep(&format!("{round}.{number}"), memory(&number.to_string()));
        }
        let pid = ground.pid().expect("a holder");
        kill_process(pid, Signal::KILL).expect("kill");
        // At once, when nobody knows yet.
        holder.keep("late", memory(&round.to_string()));
        holder.release(&format!("{round}.0"));
        eventually("there is another one", || {
            ground.pid().is_some_and(|other| other != pid)
        });
    }
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(taken.len(), 3 * 299 + 1);
    assert_eq!(text_of(&taken["late"]), "2");
    assert_eq!(text_of(&taken["1.299"]), "299");
    holder.end();
}

#[test]
fn keeping_and_releasing_while_holders_die_leaves_what_was_kept() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    thread::scope(|scope| {
        for thread in 0..4 {
            let holder = &holder;
            scope.spawn(move || {
                for number in 0..400 {
                    let name = format!("{thread}.{}", number % 7);
                    holder.keep(&name, memory(&number.to_string()));
                    if number % 3 == 0 {
                        holder.release(&name);
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(80));
            if let Some(pid) = ground.pid() {
                // It may be over already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    });
    let mut wanted = BTreeMap::new();
    for number in 0..400 {
        wanted.insert(number % 7, number);
        if number % 3 == 0 {
            wanted.remove(&(number % 7));
        }
    }
    let wanted: Vec<String> = (0..4)
        .flat_map(|thread| {
            wanted
                .iter()
                .map(move |(n, text)| format!("{thread}.{n}={text}"))
        })
        .collect();
    // The last death may not have been noticed yet.
    eventually("the table is with the holder", || {
        thread::sleep(Duration::from_millis(50));
        holder.is_well()
    });
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(told(&taken), wanted.join(" "));
    holder.end();
}

#[test]
fn a_holder_without_a_daemon_has_patience_and_then_lets_go() {
    let ground = Ground::new();
    let (holder, _) = ground.open_for(Duration::from_secs(2));
    let (mut read, write) = std::io::pipe().expect("pipe");
    holder.keep("1.pipe", Arc::new(write.into()));
    let pid = ground.pid().expect("a holder");
    thread::sleep(Duration::from_secs(3));
    assert!(!is_over(pid), "there is a daemon");
    let begin = Instant::now();
    drop(holder);
    // The end of the pipe is the end of the last descriptor of it.
    assert_eq!(read.read(&mut [0]).expect("read"), 0);
    let waited = begin.elapsed();
    assert!(waited > Duration::from_millis(1900), "{waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    eventually("it is over", || is_over(pid));
    assert!(!ground.address().exists());
}

#[test]
fn patience_is_what_the_last_daemon_said() {
    let ground = Ground::new();
    let (holder, _) = ground.open_for(Duration::from_secs(1));
    holder.keep("1.fuse", memory("one"));
    drop(holder);
    let (holder, _) = ground.open_for(Duration::from_mins(1));
    let pid = ground.pid().expect("a holder");
    drop(holder);
    thread::sleep(Duration::from_secs(2));
    assert!(!is_over(pid));
    let (holder, taken) = ground.open();
    assert_eq!(taken.len(), 1);
    holder.end();
}

#[test]
fn a_holder_that_holds_nothing_ends_with_its_daemon() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    let pid = ground.pid().expect("a holder");
    holder.end();
    eventually("it is over", || is_over(pid));
    assert_eq!(fs::read_dir(ground.0.path()).expect("list").count(), 0);

    let (holder, taken) = ground.open();
    assert!(taken.is_empty());
    let pid = ground.pid().expect("a holder");
    holder.keep("1.fuse", memory("one"));
    holder.release("1.fuse");
    drop(holder);
    eventually("it is over", || is_over(pid));
}

#[test]
fn a_holder_does_not_care_for_nonsense() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    let pid = ground.pid().expect("a holder");
    let descriptor = memory("foreign");
    let many = vec![descriptor.as_fd(); 253];
    let one = [descriptor.as_fd()];
    let long = [b"LH\x01".as_slice(), &b"n".repeat(100_000)].concat();
    for (bytes, descriptors) in [
        (&b"hello"[..], &[][..]),
        (b"", &[]),
        (b"", &one),
        (b"LH\x01x", &[]),
        (b"LH\x01x", &many),
        (b"LH\x01x", &one[..0]),
        (b"LH\x011.fuse", &many),
        (b"LH\x02", &[]),
        (b"LH\x03", &one),
        (b"LH\x05", &one),
        (b"LH\xff\xff", &many),
        (&long, &[]),
        (&long, &one),
    ] {
        let peer = ground.connect().expect("connect");
        say(&peer, bytes, descriptors);
        let mut answer = [0; 16];
        // Nobody could go on from there.
        let heard = rustix::net::recv(&peer, &mut answer, rustix::net::RecvFlags::empty());
        assert!(
            matches!(heard, Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET)),
            "{bytes:?}: {heard:?}"
        );
    }
    let silent: Vec<_> = (0..100).filter_map(|_| ground.connect()).collect();
    assert_eq!(ground.pid(), Some(pid));
    holder.keep("2.fuse", memory("two"));
    drop(silent);
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(ground.pid(), Some(pid));
    assert_eq!(told(&taken), "1.fuse=one 2.fuse=two");
    holder.end();
}

#[test]
fn a_bad_name_is_not_kept_and_harms_nobody() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    let long = "n".repeat(201);
    for name in ["", "a:b", "a\nb", "ä", &long] {
        holder.keep(name, memory("bad"));
        holder.release(name);
    }
    holder.keep("good", memory("good"));
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(told(&taken), "good=good");
    holder.end();
}

#[test]
fn a_holder_has_nothing_but_what_it_holds() {
    let ground = Ground::new();
    let inherited = memory("inherited");
    fcntl_setfd(&inherited, FdFlags::empty()).expect("open for children");
    let (holder, _) = ground.open();
    for number in 0..5 {
        holder.keep(&format!("{number}.fuse"), memory("held"));
    }
    let pid = ground.pid().expect("a holder");
    let dir = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let links = || {
        let entries = fs::read_dir(dir.join("fd")).expect("list");
        let links = entries.map(|entry| fs::read_link(entry.expect("entry").path()));
        // One may be closed while it is listed.
        let mut links: Vec<String> = links
            .flatten()
            .map(|link| link.display().to_string())
            .map(|link| link.split(":[").next().unwrap_or_default().to_owned())
            .collect();
        links.sort();
        links
    };
    let null = ["/dev/null"; 3];
    let held = ["/memfd:held (deleted)"; 5];
    let wanted = [&null[..], &held, &["socket"; 2]].concat();
    eventually("it has that and no more", || links() == wanted);
    assert_eq!(fs::read_link(dir.join("cwd")).expect("cwd"), Path::new("/"));
    let environment = fs::read(dir.join("environ")).expect("environ");
    assert_eq!(environment, b"");

    let status = status_of(pid);
    for wanted in [
        "Name:\tlamina-hold",
        "Umask:\t0077",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Threads:\t1",
    ] {
        assert!(
            status.contains(&format!("{wanted}\n")),
            "{wanted}: {status}"
        );
    }
    let stat = fs::read_to_string(dir.join("stat")).expect("stat");
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .expect("fields")
        .split(' ')
        .collect();
    assert_eq!(
        fields[3],
        pid.as_raw_nonzero().to_string(),
        "its own session: {stat}"
    );
    if may_raise_limits() {
        let adjustment = fs::read_to_string(dir.join("oom_score_adj")).expect("oom");
        assert_eq!(adjustment, "-1000\n");
    }
    // A terminal's signals are not for it.
    for signal in [Signal::INT, Signal::HUP] {
        kill_process(pid, signal).expect("kill");
    }
    thread::sleep(Duration::from_millis(100));
    assert!(!is_over(pid));
    holder.end();
}

#[test]
fn an_administrator_can_end_a_holder() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    let pid = ground.pid().expect("a holder");
    drop(holder);
    kill_process(pid, Signal::TERM).expect("kill");
    eventually("it is over", || is_over(pid));
    let (holder, taken) = ground.open();
    assert!(taken.is_empty());
    holder.end();
}

#[test]
fn a_holder_that_cannot_start_is_told_with_the_reason() {
    let ground = Ground::new();
    fs::write(ground.address(), "precious").expect("write");
    let options = options(Keeper::Process, Duration::from_mins(1));
    let error = Holder::open(&options, &ground.address()).expect_err("a file is in the way");
    let text = error.to_string();
    assert!(text.contains("hold.sock"), "{text}");
    assert_eq!(fs::read(ground.address()).expect("read"), b"precious");
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
