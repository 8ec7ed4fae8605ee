//! Who holds the connection while the server is dead.

use std::collections::HashMap;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tempfile::TempDir;

use super::server;

/// Nothing takes so long; what does hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is held, by name.
type Held = Arc<Mutex<HashMap<String, Vec<OwnedFd>>>>;

/// Sends one message.
pub(crate) fn send(socket: BorrowedFd<'_>, text: &str, fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let text = [IoSlice::new(text.as_bytes())];
    // The other end may be dead.
    let _ = sendmsg(socket, &text, &mut ancillary, SendFlags::NOSIGNAL);
}

/// Takes one message; `None` at the end.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Option<(String, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 200];
    let mut into = [IoSliceMut::new(&mut text)];
    let got = recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    if got.bytes == 0 {
        return None;
    }
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Some((
        String::from_utf8_lossy(&text[..got.bytes]).into_owned(),
        fds,
    ))
}

/// A mount, and the process that serves it now.
pub(crate) struct Mounted {
    dir: TempDir,
    options: Vec<String>,
    held: Held,
    server: Option<Server>,
}

struct Server {
    child: Child,
    socket: Arc<OwnedFd>,
    holder: thread::JoinHandle<()>,
}

impl Mounted {
    /// Makes layers, and starts the first server.
    pub(crate) fn start(options: &[&str]) -> Mounted {
        let dir = TempDir::new().unwrap();
        server::make_layers(dir.path());
        let mut mounted = Mounted {
            dir,
            options: options.iter().map(ToString::to_string).collect(),
            held: Held::default(),
            server: None,
        };
        mounted.start_server();
        mounted
    }

    /// The mount point.
    pub(crate) fn at(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// `kill -9`, then the next server; returns how long nobody served.
    pub(crate) fn kill_and_restart(&mut self) -> Duration {
        let begun = Instant::now();
        let mut server = self.server.take().unwrap();
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        // Its last messages are counted before they are handed on.
        server.holder.join().unwrap();
        self.start_server();
        begun.elapsed()
    }

    /// Waits until nothing is held that only a file in use needs.
    pub(crate) fn settles(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let pins: Vec<_> = {
                let held = self.held.lock().unwrap();
                let pins = held.keys().filter(|name| name.starts_with("pin"));
                pins.cloned().collect()
            };
            if pins.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "still held: {pins:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Unmounts, and checks that nothing is left.
    pub(crate) fn end(mut self) {
        unmount(self.at(), UnmountFlags::empty()).unwrap();
        let mut server = self.server.take().unwrap();
        let status = server.child.wait().unwrap();
        assert!(status.success(), "{status}");
        server.holder.join().unwrap();
        let held = self.held.lock().unwrap();
        assert!(held.is_empty(), "still held: {:?}", held.keys());
        let work = fs::read_dir(self.dir.path().join("work/work")).unwrap();
        let names = work.map(|entry| entry.unwrap().file_name());
        // The one whiteout of which all others are links stays.
        let left: Vec<_> = names.filter(|name| name != "whiteout").collect();
        assert!(left.is_empty(), "left in the work directory: {left:?}");
    }

    fn start_server(&mut self) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server", "--ignored", "--nocapture"])
            .env("LAMINA_SERVER_DIR", self.dir.path())
            .env("LAMINA_SERVER_OPTIONS", self.options.join(","))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ours = Arc::new(ours);
        {
            let held = self.held.lock().unwrap();
            for (name, fds) in held.iter() {
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                send(ours.as_fd(), name, &fds);
            }
        }
        send(ours.as_fd(), "go", &[]);
        let (told, ready) = std::sync::mpsc::channel();
        let (held, socket) = (Arc::clone(&self.held), Arc::clone(&ours));
        let holder = thread::spawn(move || {
            while let Some((text, fds)) = receive(socket.as_fd()) {
                let mut held = held.lock().unwrap();
                match text.split_once(' ') {
                    Some(("keep", name)) => drop(held.insert(name.to_owned(), fds)),
                    Some(("drop", name)) => drop(held.remove(name)),
                    _ if text == "release" => held.clear(),
                    _ => drop(told.send(text)),
                }
            }
        });
        self.server = Some(Server {
            child,
            socket: ours,
            holder,
        });
        match ready.recv_timeout(PATIENCE) {
            Ok(text) => assert!(text.ends_with(" 0 lost"), "{text}"),
            Err(error) => {
                self.abort();
                panic!("the server is not ready: {error}");
            }
        }
    }

    /// Frees whoever waits for an answer, so that a test fails instead of hanging.
    fn abort(&self) {
        self.held.lock().unwrap().clear();
        if let Some(server) = &self.server {
            let _ = rustix::net::shutdown(&*server.socket, rustix::net::Shutdown::Both);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = unmount(self.at(), UnmountFlags::DETACH);
            self.held.lock().unwrap().clear();
            let _ = server.child.kill();
            let _ = server.child.wait();
        }
    }
}
