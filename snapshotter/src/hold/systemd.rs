//! systemd as the keeper: its file descriptor store, by `sd_notify(3)` and `sd_listen_fds(3)`.
//!
//! The store has no "replace": two descriptors may have one name, and a removal takes all of that name.
//! So each is stored as `<name>+<number>`, with a number that no earlier one had; the new one is stored
//! first and the one before removed then. A daemon that is killed between the two leaves both, and the
//! next takes the higher number. And systemd drops a duplicate of what it has already, without a word:
//! what is one open file can have one name alone.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use lamina_fusefs::descriptors;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
};

use super::client::Table;
use super::process::Taken;
use super::protocol::is_name;
use super::socket;

/// Where systemd listens.
const SOCKET: &str = "NOTIFY_SOCKET";

/// How many descriptors it stores for this service; set since systemd 254, where there is a store.
const ROOM: &str = "FDSTORE";

/// The names of the descriptors that it has passed.
const NAMES: &str = "LISTEN_FDNAMES";

/// How long a message may wait for systemd, which may have more important things to do.
const SEND: Duration = Duration::from_secs(1);

/// What systemd passed to this process: names as it has them, and descriptors.
#[derive(Default)]
pub(super) struct Passed(Vec<(String, OwnedFd)>);

/// Whether systemd says that it stores descriptors for this service.
pub(super) fn offers_a_store() -> bool {
    env::var_os(SOCKET).is_some() && room() > Some(0)
}

fn room() -> Option<usize> {
    env::var(ROOM).ok()?.parse().ok()
}

/// Takes what systemd has passed to this process. Only the first call gets it.
pub(super) fn take() -> io::Result<Passed> {
    let passed = descriptors::take_passed()?;
    let names = env::var(NAMES).unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let named = |descriptor| (names.next().unwrap_or_default(), descriptor);
    Ok(Passed(passed.into_iter().map(named).collect()))
}

impl Passed {
    /// Has systemd forget all of it, after `hand_on` has given each to somebody else; returns it.
    pub(super) fn forget_after(
        self,
        mut hand_on: impl FnMut(&str, &OwnedFd) -> Result<(), Errno>,
    ) -> io::Result<Taken> {
        if self.0.is_empty() {
            return Ok(Taken::new());
        }
        let (mut store, taken) = Store::open(self)?;
        for (name, descriptor) in &taken {
            hand_on(name, descriptor)?;
            // Else it stays with both, until the service is stopped.
            store.release(name);
        }
        Ok(taken)
    }
}

/// The store of this service.
pub(super) struct Store {
    /// `None` after an error that another socket may not have.
    socket: Option<OwnedFd>,
    room: Option<usize>,
    /// By name, the numbers that the store has or may have, oldest first.
    stored: BTreeMap<String, Vec<u64>>,
    next: u64,
    /// Names of which the store does not have what the table has.
    untold: BTreeSet<String>,
}

impl Store {
    /// The store, and what of `passed` is ours.
    pub(super) fn open(passed: Passed) -> io::Result<(Store, Taken)> {
        let mut store = Store {
            socket: Some(reach()?),
            room: room(),
            stored: BTreeMap::new(),
            next: 0,
            untold: BTreeSet::new(),
        };
        let mut newest: BTreeMap<String, (u64, OwnedFd)> = BTreeMap::new();
        for (full, descriptor) in passed.0 {
            let Some((name, number)) = parse(&full) else {
                tracing::warn!(name = full, "systemd passed a descriptor that is not ours");
                continue;
            };
            let numbers = store.stored.entry(name.to_owned()).or_default();
            numbers.push(number);
            numbers.sort_unstable();
            store.next = store.next.max(number.saturating_add(1));
            let known = newest.get(name).map(|(number, _)| *number);
            if known.is_none_or(|known| known < number) {
                newest.insert(name.to_owned(), (number, descriptor));
            }
        }
        // The numbers below the newest are of a daemon that was killed in the middle of a replacement.
        let names: Vec<String> = store.stored.keys().cloned().collect();
        for name in names {
            if store.remove_but(&name, 1).is_err() {
                store.untold.insert(name);
            }
        }
        let taken = newest.into_iter();
        let taken = taken.map(|(name, (_, descriptor))| (name, descriptor));
        Ok((store, taken.collect()))
    }

    /// Stores a descriptor in place of `old`, if that has its name; whether it worked.
    pub(super) fn keep(&mut self, name: &str, new: &OwnedFd, old: Option<&OwnedFd>) -> bool {
        let is_stored = self.stored.contains_key(name) && !self.untold.contains(name);
        if is_stored && old.is_some_and(|old| descriptors::are_one(old.as_fd(), new.as_fd())) {
            // As a duplicate it would be dropped, and then the one that is there removed.
            return true;
        }
        let told = self.replace(name, new);
        self.note(name, told)
    }

    /// Removes a descriptor; whether it worked.
    pub(super) fn release(&mut self, name: &str) -> bool {
        let told = self.remove_but(name, 0);
        self.note(name, told)
    }

    /// Tells again what could not be told; whether all of it is.
    pub(super) fn tell_again(&mut self, table: &Table) -> bool {
        while let Some(name) = self.untold.first().cloned() {
            let told = match table.get(&name) {
                Some(descriptor) => self.replace(&name, descriptor),
                None => self.remove_but(&name, 0),
            };
            if !self.note(&name, told) {
                return false;
            }
        }
        true
    }

    /// Whether there is something that could not be told.
    pub(super) fn is_behind(&self) -> bool {
        !self.untold.is_empty()
    }

    fn note(&mut self, name: &str, told: Result<(), Errno>) -> bool {
        if let Err(errno) = told {
            tracing::debug!(name, %errno, "systemd could not be told");
            self.untold.insert(name.to_owned());
            return false;
        }
        self.untold.remove(name);
        true
    }

    fn replace(&mut self, name: &str, new: &OwnedFd) -> Result<(), Errno> {
        if let Some(room) = self.room
            && !self.stored.contains_key(name)
            && self.stored.len() >= room
        {
            tracing::warn!(
                name,
                room,
                "systemd has no room for this descriptor: what it is for will not survive the daemon; \
                 raise FileDescriptorStoreMax="
            );
        }
        let number = self.next;
        let text = format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0\n", full(name, number));
        self.send(&text, &[new.as_fd()])?;
        self.next += 1;
        let numbers = self.stored.entry(name.to_owned()).or_default();
        numbers.push(number);
        self.remove_but(name, 1)
    }

    /// Removes all but the `count` newest descriptors of a name.
    fn remove_but(&mut self, name: &str, count: usize) -> Result<(), Errno> {
        while let Some(numbers) = self.stored.get(name)
            && numbers.len() > count
            && let Some(oldest) = numbers.first()
        {
            let text = format!("FDSTOREREMOVE=1\nFDNAME={}\n", full(name, *oldest));
            self.send(&text, &[])?;
            if let Some(numbers) = self.stored.get_mut(name) {
                numbers.remove(0);
            }
        }
        if count == 0 {
            self.stored.remove(name);
        }
        Ok(())
    }

    fn send(&mut self, text: &str, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => reach().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?,
        };
        socket::send(&socket, text.as_bytes(), descriptors, SendFlags::empty())?;
        self.socket = Some(socket);
        Ok(())
    }
}

/// A socket on which systemd is told something.
fn reach() -> io::Result<OwnedFd> {
    let path = env::var_os(SOCKET).ok_or_else(|| {
        let text = "NOTIFY_SOCKET is not set: this is no service of systemd";
        io::Error::new(io::ErrorKind::NotFound, text)
    })?;
    let family = AddressFamily::UNIX;
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &address(&path)?)?;
    set_socket_timeout(&socket, Timeout::Send, Some(SEND))?;
    Ok(socket)
}

/// A path, or a name outside the file system if it begins with `@`.
fn address(path: &OsStr) -> io::Result<SocketAddrUnix> {
    Ok(match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(path)?,
    })
}

fn full(name: &str, number: u64) -> String {
    format!("{name}+{number}")
}

fn parse(full: &str) -> Option<(&str, u64)> {
    let (name, number) = full.rsplit_once('+')?;
    Some((name, number.parse().ok()?)).filter(|(name, _)| is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_name_ends_with_its_number() {
        assert_eq!(parse(&full("12.fuse", 7)), Some(("12.fuse", 7)));
        assert_eq!(parse(&full("a+1", 2)), Some(("a+1", 2)));
        for foreign in ["", "unknown", "stored", "a+", "a+x", "+1", "a+-1"] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }
}
