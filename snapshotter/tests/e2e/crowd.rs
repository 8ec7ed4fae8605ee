//! A hundred containers of one image at once, and nothing left of them.

use std::collections::BTreeSet;
use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

use super::alone;
use super::harness::{Daemon, Host, IMAGE, Usage, slab_kib, wait_for};

/// Idle threads of a pool end by themselves, but not at once.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);

/// How often a container is asked until its answer comes out whole.
const TRIES: usize = 5;

#[test]
fn a_hundred_containers_leave_nothing() -> Result<()> {
    let _turn = alone();
    let count = match env::var("LAMINA_CROWD") {
        Ok(text) => text.parse().context("LAMINA_CROWD is no number")?,
        Err(_) => 100,
    };
    let host = Host::start()?;
    host.import()?;
    let daemon = host.lamina.as_ref().map(Daemon::pid).transpose()?;
    // One container first, so that what is made once and kept (pools, caches) is there already.
    crowd(&host, 1)?.leave(&host)?;
    let folders = folders(&host.snapshotter_root())?;
    let mounts = host.mounts()?;
    let before = daemon.map(Usage::of).transpose()?;

    let begin = Instant::now();
    let slab = slab_kib()?;
    let crowd = crowd(&host, count)?;
    let each = begin.elapsed() / u32::try_from(count)?;
    ensure!(
        host.ctr.tasks()?.len() == count,
        "some container has ended: {:?}",
        host.ctr.tasks()?
    );
    report(&format!(
        "{count} containers: {each:?} each to start; the kernel's objects {} KiB each",
        (slab_kib()? - slab) / i64::try_from(count)?
    ));
    if let (Some(pid), Some(before)) = (daemon, before) {
        let now = Usage::of(pid)?;
        report(&format!(
            "daemon: {} KiB resident for each container ({} KiB before the first, {} KiB now), \
             {} descriptors, {} threads",
            (now.resident_kib - before.resident_kib) / i64::try_from(count)?,
            before.resident_kib,
            now.resident_kib,
            now.descriptors,
            now.threads,
        ));
    }
    crowd.each_sees_its_own(&host)?;
    crowd.leave(&host)?;

    ensure!(
        host.mounts()? == mounts,
        "leaked mounts: {:?}",
        host.mounts()?
    );
    if let (Some(pid), Some(before)) = (daemon, before) {
        let mut now = before;
        wait_for(
            "the daemon gives back descriptors and threads",
            SETTLE_LIMIT,
            || {
                now = Usage::of(pid).unwrap_or(now);
                now.descriptors <= before.descriptors && now.threads <= before.threads
            },
        )
        .with_context(|| format!("before: {before:?}, now: {now:?}"))?;
        report(&format!(
            "daemon: {} KiB resident after the last has gone",
            now.resident_kib
        ));
    }
    let now = self::folders(&host.snapshotter_root())?;
    let leaked: Vec<_> = now.symmetric_difference(&folders).collect();
    ensure!(
        leaked.is_empty(),
        "the root is not as it was before: {leaked:?}"
    );
    host.stop()
}

/// What a script says that ends with `end`. `ctr` of containerd 1.6 may lose what a short command
/// says, all of it or its end.
fn whole_answer(host: &Host, id: &str, script: &str) -> Result<String> {
    for _ in 0..TRIES {
        if let Some(answer) = host.ctr.exec(id, script)?.strip_suffix("end\n") {
            return Ok(answer.to_owned());
        }
    }
    bail!("no whole answer comes out of container {id}")
}

/// Containers that all run at once.
struct Crowd {
    ids: Vec<String>,
}

/// Starts `count` containers that each write something of their own.
fn crowd(host: &Host, count: usize) -> Result<Crowd> {
    let ids: Vec<_> = (0..count).map(|number| format!("c{number}")).collect();
    for id in &ids {
        let script = format!("echo {id} > /srv/who; echo {id} >> /etc/motd; rm /opt/app/old-link");
        host.ctr.start(id, &format!("{IMAGE}:site"), &script)?;
    }
    Ok(Crowd { ids })
}

impl Crowd {
    fn each_sees_its_own(&self, host: &Host) -> Result<()> {
        for id in &self.ids {
            // The container wrote in its first moment, and that may not be over yet.
            let script = "until [ ! -e /opt/app/old-link ]; do usleep 10000; done; \
                          cat /srv/who /etc/motd; echo end";
            let seen = whole_answer(host, id, script)?;
            ensure!(
                seen == format!("{id}\nsite\n{id}\n"),
                "container {id} sees {seen:?}"
            );
        }
        Ok(())
    }

    fn leave(&self, host: &Host) -> Result<()> {
        for id in &self.ids {
            host.ctr.stop_task(id)?;
            host.ctr.delete(id)?;
        }
        // Deletes are collected behind the command's back; a synchronous collection waits for it.
        host.ctr.run(&["leases", "create", "--id", "wait"])?;
        host.ctr.run(&["leases", "delete", "--sync", "wait"])?;
        Ok(())
    }
}

/// All folders down to the second level: one for each snapshot, wherever they are kept.
pub(super) fn folders(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut all = BTreeSet::new();
    let mut level = vec![root.to_owned()];
    for _ in 0..2 {
        let mut next = Vec::new();
        for dir in level {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    next.push(entry.path());
                }
            }
        }
        all.extend(next.iter().cloned());
        level = next;
    }
    Ok(all)
}

/// Says a figure that is worth reading also when the test passes.
fn report(line: &str) {
    let _ = writeln!(stderr(), "    {line}");
}
