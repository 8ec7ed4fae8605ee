//! systemd as the keeper. The test plays systemd: it stores what it is sent by systemd's rules, and
//! starts the next daemon with it.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lamina_fusefs::descriptors::are_one;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::{ADDRESS, Ground, KEEPER, STEPS, daemon_command, eventually, is_over, told};

/// The file descriptor store of one service.
struct Systemd {
    ground: Ground,
    socket: UnixDatagram,
    /// Names and descriptors, as they came.
    stored: Vec<(String, OwnedFd)>,
}

impl Systemd {
    fn new() -> Systemd {
        let ground = Ground::new();
        let socket = UnixDatagram::bind(ground.0.path().join("notify")).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        Systemd {
            ground,
            socket,
            stored: Vec::new(),
        }
    }

    /// Runs a daemon with these steps to its end, with what is stored, and handles what it has sent.
    fn service(&mut self, keeper: &str, steps: &str) {
        // What is passed has to be number 3 and so on: a shell moves it there. It can take three.
        assert!(self.stored.len() <= 3, "the shell has no more streams");
        let daemon = daemon_command();
        let mut command = Command::new("sh");
        command.arg("-c").arg(
            "exec 3<&0 4<&1 5<&2 0</dev/null 1>\"$OUT\" 2>&1
             [ \"$LISTEN_FDS\" -gt 2 ] || exec 5<&-
             [ \"$LISTEN_FDS\" -gt 1 ] || exec 4<&-
             [ \"$LISTEN_FDS\" -gt 0 ] || exec 3<&-
             LISTEN_PID=$$ exec \"$@\"",
        );
        command
            .arg("sh")
            .arg(daemon.get_program())
            .args(daemon.get_args());
        let mut streams = self.stored.iter().map(|(_, descriptor)| {
            let copy = descriptor.as_fd().try_clone_to_owned().expect("dup");
            Stdio::from(copy)
        });
        command.stdin(streams.next().unwrap_or_else(Stdio::null));
        command.stdout(streams.next().unwrap_or_else(Stdio::null));
        command.stderr(streams.next().unwrap_or_else(Stdio::null));
        let names: Vec<&str> = self.stored.iter().map(|(name, _)| name.as_str()).collect();
        command
            .env("NOTIFY_SOCKET", self.ground.0.path().join("notify"))
            .env("FDSTORE", "16")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("OUT", self.ground.0.path().join("output"))
            .env(KEEPER, keeper)
            .env(STEPS, steps)
            .env(ADDRESS, self.ground.address());
        let mut child = command.spawn().expect("spawn");
        // The queue of the socket is short, as systemd's.
        let status = loop {
            self.handle();
            if let Some(status) = child.try_wait().expect("wait") {
                break status;
            }
        };
        self.handle();
        let output = fs::read_to_string(self.ground.0.path().join("output")).unwrap_or_default();
        assert!(
            status.success() || status.signal() == Some(9),
            "{status}: {output}"
        );
    }

    fn handle(&mut self) {
        while let Some((text, descriptors)) = self.receive() {
            let value = |key: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
            };
            let name = value("FDNAME");
            if value("FDSTOREREMOVE").is_some_and(|value| value == "1") {
                let name = name.expect("a name to be removed");
                self.stored.retain(|(stored, _)| *stored != name);
            } else if value("FDSTORE").is_some_and(|value| value == "1") {
                assert_eq!(value("FDPOLL").as_deref(), Some("0"), "{text}");
                for descriptor in descriptors {
                    let mut stored = self.stored.iter();
                    if !stored.any(|(_, stored)| are_one(stored.as_fd(), descriptor.as_fd())) {
                        let name = name.clone().unwrap_or_else(|| "stored".to_owned());
                        // The newest first, which nobody may rely on.
                        self.stored.insert(0, (name, descriptor));
                    }
                }
            }
        }
    }

    fn receive(&self) -> Option<(String, Vec<OwnedFd>)> {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            recvmsg(&self.socket, &mut parts, &mut control, flags).ok()?
        };
        assert!(
            !received
                .flags
                .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        );
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => rights.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let descriptors = descriptors.collect();
        let text = String::from_utf8(buffer[..received.bytes].to_vec()).expect("text");
        Some((text, descriptors))
    }

    /// What the last daemon was told that it has.
    fn told(&self) -> String {
        fs::read_to_string(self.file()).expect("told")
    }

    fn file(&self) -> PathBuf {
        self.ground.0.path().join("told")
    }

    fn tell(&self) -> String {
        format!("tell {}", self.file().display())
    }
}

#[test]
fn what_a_killed_service_stored_is_passed_to_the_next() {
    let mut systemd = Systemd::new();
    let steps =
        "keep 1.fuse one;keep 1.record old;keep 1.pin.3 gone;keep 1.record new;release 1.pin.3;die";
    systemd.service("auto", steps);
    assert_eq!(systemd.stored.len(), 2);
    let steps = format!("{};keep 1.pin.4 there;die", systemd.tell());
    systemd.service("auto", &steps);
    assert_eq!(systemd.told(), "1.fuse=one 1.record=new");
    assert!(systemd.ground.pid().is_none(), "no process holds anything");
    // A name that was passed is replaced, and released, as any other.
    let steps = format!("{};keep 1.record newer;release-all 1.p;die", systemd.tell());
    systemd.service("systemd", &steps);
    assert_eq!(systemd.told(), "1.fuse=one 1.pin.4=there 1.record=new");
    systemd.service("auto", &format!("{};end", systemd.tell()));
    assert_eq!(systemd.told(), "1.fuse=one 1.record=newer");
    assert!(systemd.stored.is_empty());
}

#[test]
fn what_is_kept_again_is_still_there() {
    let mut systemd = Systemd::new();
    systemd.service("auto", "keep 1.fuse one;die");
    // systemd drops a duplicate, so that a removal of the first would be the end of it.
    systemd.service("auto", "keep-again 1.fuse;keep-again 1.fuse;die");
    systemd.service("auto", &format!("{};die", systemd.tell()));
    assert_eq!(systemd.told(), "1.fuse=one");
}

#[test]
fn a_replacement_that_was_cut_off_is_finished() {
    let mut systemd = Systemd::new();
    systemd.service("auto", "keep 1.record old;die");
    let old = systemd.stored.pop().expect("stored");
    systemd.stored.clear();
    // A store that has forgotten the name counts from the beginning: give the new one a later number.
    systemd.service(
        "auto",
        "keep 1.record a;keep 1.record b;keep 1.record new;die",
    );
    assert_ne!(systemd.stored[0].0, old.0);
    systemd.stored.insert(0, old);
    systemd.stored.push((
        "foreign".to_owned(),
        fs::File::open("/dev/null").expect("open").into(),
    ));
    systemd.service("auto", &format!("{};die", systemd.tell()));
    assert_eq!(systemd.told(), "1.record=new");
    let names: Vec<_> = systemd
        .stored
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names.len(), 2, "the old one is gone: {names:?}");
}

#[test]
fn descriptors_move_with_the_choice_of_the_keeper() {
    let mut systemd = Systemd::new();
    systemd.service("systemd", "keep 1.fuse one;keep 2.fuse two;die");
    assert_eq!(systemd.stored.len(), 2);
    systemd.service(
        "process",
        &format!("{};keep 3.fuse three;die", systemd.tell()),
    );
    assert_eq!(systemd.told(), "1.fuse=one 2.fuse=two");
    assert!(systemd.stored.is_empty(), "systemd has let go of them");
    let pid = systemd.ground.pid().expect("a holder");
    systemd.service("systemd", &format!("{};release 2.fuse;die", systemd.tell()));
    assert_eq!(systemd.told(), "1.fuse=one 2.fuse=two 3.fuse=three");
    assert_eq!(systemd.stored.len(), 2);
    eventually("the process is over", || is_over(pid));
    systemd.service("none", &systemd.tell());
    assert_eq!(systemd.told(), "");
    assert!(systemd.stored.is_empty());
}

#[test]
fn auto_is_a_process_where_systemd_does_not_say_that_it_stores() {
    let ground = Ground::new();
    // As started by a systemd before 254: NOTIFY_SOCKET alone.
    let socket = UnixDatagram::bind(ground.0.path().join("notify")).expect("bind");
    let mut command = daemon_command();
    command
        .env("NOTIFY_SOCKET", ground.0.path().join("notify"))
        .env(KEEPER, "auto")
        .env(STEPS, "keep 1.fuse one;die")
        .env(ADDRESS, ground.address());
    let status = command.stdin(Stdio::null()).status().expect("run");
    assert_eq!(status.signal(), Some(9));
    socket.set_nonblocking(true).expect("nonblocking");
    assert!(
        socket.recv(&mut [0; 64]).is_err(),
        "systemd is told nothing"
    );
    let (holder, taken) = ground.open();
    assert_eq!(told(&taken), "1.fuse=one");
    holder.end();
}
