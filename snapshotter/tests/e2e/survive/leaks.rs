//! Nothing is left of containers that have gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::crowd::folders;
use crate::harness::{Daemon, Host, Usage, wait_for};

/// Idle threads end by themselves, but not at once.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
/// What the log must not hold, as its lines name it.
const LEVELS: [&str; 2] = [" ERROR ", " WARN "];

/// What there was before the containers came.
#[derive(Default)]
pub(super) struct Before {
    folders: BTreeSet<PathBuf>,
    mounts: Vec<PathBuf>,
    daemon: Option<Usage>,
    holder: Option<Usage>,
    /// Lines of the log that hold this are no complaint: the test has done it.
    expected: Option<&'static str>,
}

impl Before {
    pub(super) fn of(host: &Host) -> Result<Before> {
        collect(host)?;
        let root = host.snapshotter_root();
        let clean = || folders(&root).is_ok_and(|found| found.iter().all(|path| path.exists()));
        wait_for("the root is quiet", SETTLE_LIMIT, clean)?;
        Ok(Before {
            folders: folders(&root)?,
            mounts: host.mounts()?,
            daemon: daemon(host),
            holder: holder(host),
            expected: None,
        })
    }

    /// The log may complain of this from now on.
    pub(super) fn expect(&mut self, text: &'static str) {
        self.expected = Some(text);
    }

    pub(super) fn compare(&self, host: &Host) -> Result<()> {
        collect(host)?;
        let mounts = host.mounts()?;
        ensure!(mounts == self.mounts, "leaked mounts: {mounts:?}");
        let found = folders(&host.snapshotter_root())?;
        let differs: Vec<_> = found.symmetric_difference(&self.folders).collect();
        ensure!(differs.is_empty(), "the root is not as it was: {differs:?}");
        gives_back("the daemon", self.daemon, || daemon(host))?;
        gives_back("the holder", self.holder, || holder(host))?;
        complaints(host, self.expected)
    }
}

/// Waits for what containerd deletes behind a command's back: a collection that is asked for.
fn collect(host: &Host) -> Result<()> {
    host.ctr.run(&["leases", "create", "--id", "wait"])?;
    host.ctr
        .run(&["leases", "delete", "--sync", "wait"])
        .map(drop)
}

fn daemon(host: &Host) -> Option<Usage> {
    let pid = host.lamina.as_ref().and_then(|lamina| lamina.pid().ok());
    pid.and_then(|pid| Usage::of(pid).ok())
}

fn holder(host: &Host) -> Option<Usage> {
    let pid = host.lamina.as_ref().and_then(Daemon::holder);
    pid.and_then(|pid| Usage::of(pid).ok())
}

fn gives_back(who: &str, before: Option<Usage>, now: impl Fn() -> Option<Usage>) -> Result<()> {
    let Some(before) = before else { return Ok(()) };
    let fits = || {
        now().is_some_and(|now| {
            now.descriptors <= before.descriptors && now.threads <= before.threads
        })
    };
    let waited = wait_for(
        &format!("{who} gives back descriptors and threads"),
        SETTLE_LIMIT,
        fits,
    );
    waited.with_context(|| format!("before: {before:?}, now: {:?}", now()))
}

/// The log holds no other complaint.
fn complaints(host: &Host, expected: Option<&str>) -> Result<()> {
    let Some(lamina) = &host.lamina else {
        return Ok(());
    };
    let log = fs::read_to_string(lamina.log())?;
    let is_complaint = |line: &&str| {
        LEVELS.iter().any(|level| line.contains(level))
            && !expected.is_some_and(|expected| line.contains(expected))
    };
    let complaints: Vec<&str> = log.lines().filter(is_complaint).collect();
    let first = &complaints[..complaints.len().min(20)];
    ensure!(
        first.is_empty(),
        "{} complaints in the log:\n{}",
        complaints.len(),
        first.join("\n")
    );
    Ok(())
}
