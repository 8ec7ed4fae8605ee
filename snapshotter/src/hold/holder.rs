//! The holder: a process of one thread that has descriptors, and does nothing with them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Resource, getrlimit};

use super::listen::Listener;
use super::privileges;
use super::protocol::{Answer, MAX_REQUEST, Request, fitting};
use super::socket::{self, Datagram};
use crate::error::{Error, Result};

/// Connections at once. There is one daemon; the rest are those that were its before, and mistakes.
const MAX_PEERS: usize = 16;

/// Messages of one connection before the others have their turn. The queue of a socket has no room for
/// so many, so what an earlier daemon has sent is read to its end.
const MAX_TURN: usize = 4096;

/// Descriptors that the holder needs for itself and its connections.
const OWN_DESCRIPTORS: u64 = 64;

/// How long it waits for its first daemon.
const START: Duration = Duration::from_secs(30);

/// How long a new connection may say nothing when the patience is at its end.
const MANNERS: Duration = Duration::from_secs(1);

/// How long it waits when the kernel is short of something.
const SHORTAGE: Duration = Duration::from_millis(10);

/// Keeps what daemons send to `address`, until it is given back, or nobody has come for `patience`.
pub fn run(address: &Path, patience: Duration) -> Result<()> {
    let listener = Listener::bind(address)?;
    let failed = || Error::io("cannot give up the privileges of the holder of", address);
    // A terminal's signals are not for it; SIGTERM is, and ends it.
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        let nothing = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal.as_raw(), nothing).map_err(failed())?;
    }
    privileges::drop_all().map_err(failed())?;
    let limit = getrlimit(Resource::Nofile).current;
    Hold {
        listener,
        peers: BTreeMap::new(),
        next_peer: 0,
        held: BTreeMap::new(),
        most: limit.map_or(u64::MAX, |limit| limit.saturating_sub(OWN_DESCRIPTORS)),
        patience,
        alone_since: Instant::now(),
        last_came: Instant::now(),
        was_used: false,
    }
    .run()
    .map_err(Error::io("the holder failed on", address))
}

struct Hold {
    listener: Listener,
    /// The connections, by the order in which they were made.
    peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    held: BTreeMap<String, OwnedFd>,
    /// How many it may hold.
    most: u64,
    patience: Duration,
    /// Since when there is no daemon, if there is none.
    alone_since: Instant,
    /// When the last connection was made.
    last_came: Instant,
    /// Whether there ever was a daemon.
    was_used: bool,
}

/// One connection.
struct Peer {
    socket: OwnedFd,
    /// Whether it has said anything that makes sense: it is the daemon, then.
    is_daemon: bool,
    /// What was kept since a renewal began.
    renewed: Option<BTreeSet<String>>,
    /// While it is being told all names: after which one to go on.
    answering: Option<Bound<String>>,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Then {
    Stay,
    Close,
}

impl Hold {
    fn run(mut self) -> io::Result<()> {
        loop {
            let (someone, ready) = self.wait()?;
            if someone {
                self.accept();
            }
            for id in ready {
                if self.turn(id) == Then::Close {
                    self.close(id);
                }
            }
            if self.is_done() {
                return Ok(());
            }
        }
    }

    /// Waits until somebody wants something, or nobody has for too long: whether there are new
    /// connections, and which of the old ones are ready.
    fn wait(&self) -> io::Result<(bool, Vec<u64>)> {
        let timeout = (!self.has_daemon()).then(|| {
            // Not a moment too early: the rest of a millisecond would be spent spinning.
            let left = self.left() + Duration::from_millis(1);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut waiting = vec![PollFd::new(&self.listener, PollFlags::IN)];
        waiting.extend(self.peers.values().map(|peer| {
            let wanted = match peer.answering {
                Some(_) => PollFlags::OUT,
                None => PollFlags::IN,
            };
            PollFd::new(&peer.socket, wanted)
        }));
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok((false, Vec::new())),
            Err(errno) => return Err(errno.into()),
        }
        let ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
        let peers = self.peers.keys().zip(&waiting[1..]);
        let peers = peers.filter(|(_, polled)| ready(polled));
        let ids = peers.map(|(id, _)| *id).collect();
        Ok((ready(&waiting[0]), ids))
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok(Some(socket)) => {
                    let peer = Peer {
                        socket,
                        is_daemon: false,
                        renewed: None,
                        answering: None,
                    };
                    self.peers.insert(self.next_peer, peer);
                    self.next_peer += 1;
                    self.last_came = Instant::now();
                }
                Ok(None) => break,
                // The whole system is out of descriptors or memory: it passes, or nothing helps.
                Err(_) => {
                    thread::sleep(SHORTAGE);
                    break;
                }
            }
            if self.peers.len() > MAX_PEERS {
                let mut silent = self.peers.iter().filter(|(_, peer)| !peer.is_daemon);
                if let Some(id) = silent.next().map(|(id, _)| *id) {
                    self.close(id);
                }
            }
        }
    }

    /// What one connection has to say, or to be told.
    fn turn(&mut self, id: u64) -> Then {
        // Whoever spoke before it in this round may have taken its place.
        let Some(peer) = self.peers.get(&id) else {
            return Then::Stay;
        };
        match peer.answering {
            Some(_) => self.answer(id),
            None => self.listen(id),
        }
    }

    /// Reads what a connection has sent, up to a question that has to be answered first.
    fn listen(&mut self, id: u64) -> Then {
        let mut buffer = [0; MAX_REQUEST];
        for _ in 0..MAX_TURN {
            let Some(peer) = self.peers.get(&id) else {
                return Then::Stay;
            };
            let datagram = match peer.receive(&mut buffer) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => return Then::Stay,
                Err(_) => return Then::Close,
            };
            let Some(request) = understood(&buffer, &datagram) else {
                return Then::Close;
            };
            self.take_place(id);
            let is_question = request == Request::Take;
            self.act(id, request, datagram.descriptors);
            if is_question {
                return Then::Stay;
            }
        }
        Then::Stay
    }

    /// Makes a connection the daemon's. All earlier ones are over, once what they sent is done: the
    /// last words of a daemon that was killed count before the first of the next.
    fn take_place(&mut self, id: u64) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| !peer.is_daemon) else {
            return;
        };
        peer.is_daemon = true;
        self.was_used = true;
        let earlier: Vec<u64> = self.peers.range(..id).map(|(id, _)| *id).collect();
        for id in earlier {
            self.close(id);
        }
    }

    /// Ends a connection, after everything that came by it.
    fn close(&mut self, id: u64) {
        let mut buffer = [0; MAX_REQUEST];
        for _ in 0..MAX_TURN {
            let Some(peer) = self.peers.get(&id) else {
                return;
            };
            let Ok(Some(datagram)) = peer.receive(&mut buffer) else {
                break;
            };
            let Some(request) = understood(&buffer, &datagram) else {
                break;
            };
            self.act(id, request, datagram.descriptors);
        }
        let closed = self.peers.remove(&id);
        if closed.is_some_and(|peer| peer.is_daemon) && !self.has_daemon() {
            self.alone_since = Instant::now();
        }
    }

    fn act(&mut self, id: u64, request: Request<'_>, descriptors: Vec<OwnedFd>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        match request {
            Request::Keep(name) => {
                let has_room = self.held.contains_key(name) || (self.held.len() as u64) < self.most;
                match descriptors.into_iter().next().filter(|_| has_room) {
                    Some(descriptor) => {
                        self.held.insert(name.to_owned(), descriptor);
                    }
                    None => peer.tell(&Answer::Refused(name.to_owned())),
                }
                // A refused one, too: what has its name is better than nothing.
                if let Some(renewed) = &mut peer.renewed {
                    renewed.insert(name.to_owned());
                }
            }
            Request::Release(name) => {
                self.held.remove(name);
            }
            Request::Take => peer.answering = Some(Bound::Unbounded),
            Request::Patience(patience) => self.patience = patience,
            Request::Renew => peer.renewed = Some(BTreeSet::new()),
            Request::Renewed => {
                if let Some(renewed) = peer.renewed.take() {
                    self.held.retain(|name, _| renewed.contains(name));
                }
            }
        }
    }

    /// Tells a connection as much of what is held as its socket takes.
    fn answer(&mut self, id: u64) -> Then {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Then::Stay;
        };
        while let Some(after) = &peer.answering {
            let rest = || self.held.range((after.clone(), Bound::Unbounded));
            let count = fitting(rest().map(|(name, _)| name.as_str()));
            let names: Vec<String> = rest().take(count).map(|(name, _)| name.clone()).collect();
            let descriptors: Vec<_> = rest().take(count).map(|(_, held)| held.as_fd()).collect();
            let last = names.last().cloned();
            let message = match last {
                Some(_) => Answer::Held(names),
                None => Answer::Done,
            };
            let flags = SendFlags::DONTWAIT;
            match socket::send(&peer.socket, &message.encode(), &descriptors, flags) {
                Ok(()) => peer.answering = last.map(Bound::Excluded),
                Err(Errno::AGAIN) => return Then::Stay,
                // Too many descriptors are on their way in the whole system; some will arrive.
                Err(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                    thread::sleep(SHORTAGE);
                    return Then::Stay;
                }
                Err(_) => return Then::Close,
            }
        }
        Then::Stay
    }

    fn has_daemon(&self) -> bool {
        self.peers.values().any(|peer| peer.is_daemon)
    }

    /// How long it still waits for a daemon.
    fn left(&self) -> Duration {
        // Whoever started it may be gone.
        let start = if self.was_used { Duration::MAX } else { START };
        let patience = self.patience.min(start);
        let left = patience.saturating_sub(self.alone_since.elapsed());
        if self.peers.is_empty() {
            return left;
        }
        // Somebody has come and not said yet that it is the daemon.
        left.max(MANNERS.saturating_sub(self.last_came.elapsed()))
    }

    /// Whether there is nothing to do any more, and nobody has come in this moment.
    fn is_done(&mut self) -> bool {
        let gave_up = |hold: &Hold| !hold.has_daemon() && hold.left().is_zero();
        let unused = |hold: &Hold| hold.peers.is_empty() && hold.held.is_empty() && hold.was_used;
        if !gave_up(self) && !unused(self) {
            return false;
        }
        let before = self.next_peer;
        self.accept();
        self.next_peer == before
    }
}

impl Peer {
    /// The next datagram; `None`: there is none now. The end of the connection is an error.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<Datagram>, Errno> {
        let mut receive = || socket::receive(&self.socket, buffer, RecvFlags::DONTWAIT);
        let received = match receive() {
            // The daemon died with an answer unread. The kernel says so once, before what the daemon
            // sent, which is there all the same.
            Err(Errno::CONNRESET) => receive(),
            received => received,
        };
        match received {
            Ok(datagram) if datagram.length == 0 => Err(Errno::PIPE),
            Ok(datagram) => Ok(Some(datagram)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Says something that may be lost.
    fn tell(&self, answer: &Answer) {
        let _ = socket::send(&self.socket, &answer.encode(), &[], SendFlags::DONTWAIT);
    }
}

/// What a datagram says; `None` if it makes no sense.
fn understood<'a>(buffer: &'a [u8], datagram: &Datagram) -> Option<Request<'a>> {
    let request = Request::decode(buffer.get(..datagram.length)?)?;
    let count = datagram.descriptors.len();
    let is_whole = match request {
        // One that got lost for want of a number is refused, which is no fault of the daemon's.
        Request::Keep(_) => count == 1 || (count == 0 && datagram.lost_descriptors),
        _ => count == 0 && !datagram.lost_descriptors,
    };
    (is_whole && !datagram.is_cut).then_some(request)
}
