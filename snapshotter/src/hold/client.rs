//! The daemon's side: what it has given away, by name, and that it stays given away.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::process::{Link, Place, Taken};
use super::protocol::{Request, is_name};
use super::systemd::{self, Store};
use super::{Keeper, Options};
use crate::error::{Error, Result};

/// A holder that lived for less than this was no good, and the next one may not be better.
const GOOD: Duration = Duration::from_secs(30);

/// How long is waited before another holder is tried: nothing at first, then from the first of these on
/// twice as long each time, up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How long a daemon that ends waits for a holder that is just being replaced.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often systemd is told again what it could not be told.
const AGAIN: Duration = Duration::from_secs(1);

/// Everything that is kept.
pub(super) type Table = BTreeMap<String, Arc<OwnedFd>>;

/// Descriptors that somebody keeps who outlives this process.
///
/// Dropping it is what happens when a daemon ends: everything stays kept, for the next one. A daemon
/// that leaves nothing to the next calls [`Holder::end`].
#[derive(Debug)]
pub struct Holder {
    /// `None`: nobody keeps anything.
    shared: Option<Arc<Shared>>,
    supervisor: Option<JoinHandle<()>>,
}

struct Shared {
    /// Held over every message, so that messages have the order of the table's changes, and another
    /// holder gets the table as it is.
    state: Mutex<State>,
    /// This process leaves, something could not be told, or all of it is told again.
    changed: Condvar,
}

struct State {
    table: Table,
    kept: Kept,
    is_leaving: bool,
}

/// Who has the descriptors.
enum Kept {
    /// A process; `None` while there is none.
    ByProcess(Option<Arc<Link>>),
    /// The service manager.
    BySystemd(Store),
}

impl Holder {
    /// Has descriptors kept by a process at `address`, which is started if there is none, and returns
    /// everything that an earlier daemon left there.
    ///
    /// What is returned is kept on, by its name, until it is released.
    pub fn start(
        address: &Path,
        patience: Duration,
    ) -> Result<(Holder, BTreeMap<String, OwnedFd>)> {
        let options = Options {
            keeper: Keeper::Process,
            patience,
            ..Options::default()
        };
        Self::open(&options, address)
    }

    /// The same with whoever the options name; `address` is where a process listens, or is to.
    ///
    /// What another keeper has is brought along: a daemon whose descriptors systemd had, and which has
    /// a process of its own now, loses nothing, nor the other way round. To be called once in a
    /// process, before it starts any program: one that starts before may inherit what systemd passed. And
    /// hold the root's lock before: whoever comes last is the daemon to a holder.
    pub fn open(options: &Options, address: &Path) -> Result<(Holder, BTreeMap<String, OwnedFd>)> {
        let passed =
            systemd::take().map_err(Error::io("cannot take what systemd keeps for", address))?;
        match options.keeper {
            Keeper::Auto if systemd::offers_a_store() => Self::by_systemd(passed, address),
            Keeper::Systemd => Self::by_systemd(passed, address),
            Keeper::Auto | Keeper::Process => Self::by_process(options, passed, address),
            Keeper::None => {
                if let Some(link) = Link::to_existing(address)? {
                    // Fails if that one ends in this moment, which is what is wanted.
                    let _ = link.renew(&Table::new());
                }
                let forgotten = passed.forget_after(|_, _| Ok(()));
                forgotten.map_err(Error::io(
                    "cannot let go of what systemd keeps for",
                    address,
                ))?;
                let (shared, supervisor) = (None, None);
                Ok((Holder { shared, supervisor }, Taken::new()))
            }
        }
    }

    fn by_process(
        options: &Options,
        passed: systemd::Passed,
        address: &Path,
    ) -> Result<(Holder, Taken)> {
        let failed = |what| Error::io(what, address);
        let (patience, program) = (options.patience, options.program.clone());
        let mut place = Place::new(address.to_owned(), patience, program);
        let (link, mut taken) = place.reach(|| true, Link::take)?;
        let foreign = passed.forget_after(|name, descriptor| {
            if taken.contains_key(name) {
                return Ok(());
            }
            link.say(&Request::Keep(name), Some(descriptor))
        });
        for (name, descriptor) in
            foreign.map_err(failed("cannot hand descriptors to the holder on"))?
        {
            taken.entry(name).or_insert(descriptor);
        }
        let link = Arc::new(link);
        let kept = Kept::ByProcess(Some(Arc::clone(&link)));
        let table = table_of(&taken).map_err(failed("cannot duplicate what was kept on"))?;
        let holder = Self::supervised(table, kept, |shared| watch_process(&shared, place, link));
        Ok((holder?, taken))
    }

    fn by_systemd(passed: systemd::Passed, address: &Path) -> Result<(Holder, Taken)> {
        let failed = |what| Error::io(what, address);
        let opened = Store::open(passed);
        let (mut store, mut taken) = opened.map_err(failed("systemd cannot be the holder for"))?;
        if let Some(link) = Link::to_existing(address)? {
            let others = link.take().map_err(std::io::Error::from);
            let others = others.map_err(failed("cannot take descriptors from the holder on"))?;
            let mut all_told = true;
            for (name, descriptor) in others {
                taken.entry(name).or_insert_with_key(|name| {
                    all_told &= store.keep(name, &descriptor, None);
                    descriptor
                });
            }
            // Else it stays with both, for as long as that process has patience.
            if all_told {
                let _ = link.renew(&Table::new());
            }
        }
        let table = table_of(&taken).map_err(failed("cannot duplicate what was kept for"))?;
        let holder = Self::supervised(table, Kept::BySystemd(store), |shared| {
            tell_systemd(&shared);
        });
        Ok((holder?, taken))
    }

    fn supervised(
        table: Table,
        kept: Kept,
        supervise: impl FnOnce(Arc<Shared>) + Send + 'static,
    ) -> Result<Holder> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                table,
                kept,
                is_leaving: false,
            }),
            changed: Condvar::new(),
        });
        let watched = Arc::clone(&shared);
        let thread = thread::Builder::new().name("lamina-hold".to_owned());
        let supervisor = thread.spawn(move || supervise(watched));
        let supervisor = supervisor.map_err(|error| Error::Broken(error.to_string()))?;
        Ok(Holder {
            shared: Some(shared),
            supervisor: Some(supervisor),
        })
    }

    /// Has a descriptor kept by this name, in place of one that has it already.
    ///
    /// When this returns, the descriptor survives this process, even if it is killed at the next
    /// instruction. If the holder could not be told, that is so as soon as there is another one; a
    /// warning in the log says it.
    pub fn keep(&self, name: &str, descriptor: Arc<OwnedFd>) {
        let Some(shared) = &self.shared else { return };
        if !is_name(name) {
            tracing::error!(name, "a descriptor cannot be kept by this name");
            return;
        }
        let mut state = shared.state.lock();
        let old = state.table.insert(name.to_owned(), descriptor);
        let State { table, kept, .. } = &mut *state;
        let told = match (kept, table.get(name)) {
            (Kept::ByProcess(link), new) => say(link, &Request::Keep(name), new.map(|new| &**new)),
            (Kept::BySystemd(store), Some(new)) => store.keep(name, new, old.as_deref()),
            (Kept::BySystemd(_), None) => false,
        };
        shared.unlock(state, told);
        // Closing it may take a while.
        drop(old);
    }

    /// Has nothing kept by this name any more.
    pub fn release(&self, name: &str) {
        let Some(shared) = &self.shared else { return };
        let mut state = shared.state.lock();
        let Some(old) = state.table.remove(name) else {
            return;
        };
        let told = state.kept.release(name);
        shared.unlock(state, told);
        drop(old);
    }

    /// Has nothing kept any more whose name begins so.
    pub fn release_all(&self, prefix: &str) {
        let Some(shared) = &self.shared else { return };
        let names: Vec<String> = {
            let state = shared.state.lock();
            let from = state.table.range(prefix.to_owned()..);
            let names = from.map(|(name, _)| name);
            let those = names.take_while(|name| name.starts_with(prefix));
            those.cloned().collect()
        };
        for name in names {
            self.release(&name);
        }
    }

    /// Whether everything is kept that should be: there is a holder, and it was told.
    pub fn is_well(&self) -> bool {
        let shared = self.shared.as_ref();
        shared.is_none_or(|shared| shared.state.lock().kept.is_well())
    }

    /// Releases everything: the daemon leaves, and there is nothing for the next one. A process that
    /// was the holder ends then.
    pub fn end(&self) {
        let Some(shared) = &self.shared else { return };
        let mut state = shared.state.lock();
        let table = std::mem::take(&mut state.table);
        match &mut state.kept {
            Kept::ByProcess(link) => {
                if let Some(link) = link.take() {
                    // Fails if it is gone, and everything with it.
                    let _ = link.renew(&Table::new());
                    link.hang_up();
                }
            }
            Kept::BySystemd(store) => {
                for name in table.keys() {
                    store.release(name);
                }
            }
        }
        state.is_leaving = true;
        shared.unlock(state, false);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            let mut state = shared.state.lock();
            let until = Instant::now() + FAREWELL;
            // Else the next daemon would find a holder without anything.
            while !state.is_leaving && !state.kept.is_well() && Instant::now() < until {
                shared.changed.wait_until(&mut state, until);
            }
            state.is_leaving = true;
            if let Kept::ByProcess(link) = &mut state.kept
                && let Some(link) = link.take()
            {
                link.hang_up();
            }
            shared.unlock(state, false);
        }
        if let Some(supervisor) = self.supervisor.take() {
            // It fails if the thread has panicked, which was told then.
            let _ = supervisor.join();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Gives the lock back, and wakes whoever cares for what could not be told.
    fn unlock(&self, state: parking_lot::MutexGuard<'_, State>, told: bool) {
        drop(state);
        if !told {
            self.changed.notify_all();
        }
    }
}

impl Kept {
    fn is_well(&self) -> bool {
        match self {
            Kept::ByProcess(link) => link.is_some(),
            Kept::BySystemd(store) => !store.is_behind(),
        }
    }

    fn release(&mut self, name: &str) -> bool {
        match self {
            Kept::ByProcess(link) => say(link, &Request::Release(name), None),
            Kept::BySystemd(store) => store.release(name),
        }
    }
}

/// Tells a holder something. If that fails there is none any more, and whoever watches it gets another
/// one, which is told everything.
fn say(link: &mut Option<Arc<Link>>, request: &Request<'_>, fd: Option<&OwnedFd>) -> bool {
    let Some(there) = link else { return false };
    let said = there.say(request, fd);
    if let Err(errno) = said {
        tracing::warn!(%errno, "the holder does not take what it is told");
        there.hang_up();
        *link = None;
    }
    said.is_ok()
}

/// Duplicates of what was taken, for the table.
fn table_of(taken: &Taken) -> std::io::Result<Table> {
    let entries = taken.iter();
    let entries = entries.map(|(name, descriptor)| {
        let descriptor = Arc::new(descriptor.try_clone()?);
        Ok((name.clone(), descriptor))
    });
    entries.collect()
}

/// Sees to it that there is a holder, and that it has what the table has.
fn watch_process(shared: &Shared, mut place: Place, mut link: Arc<Link>) {
    let mut pause = Duration::ZERO;
    loop {
        let begin = Instant::now();
        link.watch();
        let mut state = shared.state.lock();
        if state.is_leaving {
            return;
        }
        state.kept = Kept::ByProcess(None);
        drop(state);
        tracing::warn!("the holder is gone; another one gets everything that it had");
        if begin.elapsed() >= GOOD {
            pause = Duration::ZERO;
        }
        match another(shared, &mut place, &mut pause) {
            Some(found) => link = found,
            None => return,
        }
    }
}

/// Finds or starts a holder and gives it everything; `None`: this process leaves.
fn another(shared: &Shared, place: &mut Place, pause: &mut Duration) -> Option<Arc<Link>> {
    let is_wanted = || !shared.state.lock().is_leaving;
    loop {
        let mut state = shared.state.lock();
        let until = Instant::now() + *pause;
        while !state.is_leaving && Instant::now() < until {
            shared.changed.wait_until(&mut state, until);
        }
        drop(state);
        *pause = (*pause * 2).clamp(PAUSES.0, PAUSES.1);
        if !is_wanted() {
            return None;
        }
        let reached = place.reach(is_wanted, |_| Ok(()));
        let mut state = shared.state.lock();
        if state.is_leaving {
            return None;
        }
        let renewed = reached.and_then(|(link, ())| {
            let failed = Error::io("cannot hand descriptors to the holder on", &place.address);
            link.renew(&state.table).map_err(failed)?;
            Ok(Arc::new(link))
        });
        match renewed {
            Ok(link) => {
                state.kept = Kept::ByProcess(Some(Arc::clone(&link)));
                shared.changed.notify_all();
                tracing::info!(descriptors = state.table.len(), "there is a holder again");
                return Some(link);
            }
            Err(error) => tracing::warn!(
                %error,
                "there is no holder: no container would survive the end of this daemon"
            ),
        }
    }
}

/// Tells systemd again what it could not be told.
fn tell_systemd(shared: &Shared) {
    let mut state = shared.state.lock();
    let mut was_behind = false;
    while !state.is_leaving {
        let State { table, kept, .. } = &mut *state;
        let is_behind = match kept {
            Kept::BySystemd(store) if store.is_behind() => !store.tell_again(table),
            _ => false,
        };
        if is_behind && !was_behind {
            tracing::warn!("systemd does not take what it is told; trying again until it does");
        }
        was_behind = is_behind;
        // Whoever waits for it to be told.
        shared.changed.notify_all();
        if is_behind {
            shared.changed.wait_for(&mut state, AGAIN);
        } else {
            shared.changed.wait(&mut state);
        }
    }
}
