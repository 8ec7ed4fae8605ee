//! The daemon has too little memory, and the OOM killer comes.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lamina_snapshotter::upper_mode::UpperMode;

use super::harness::{Api, Daemon, Scratch, binary, wait_for};
use super::stage::{Bound, container, image_of_names};

/// The daemon keeps something for each file that a container has looked at: so many, with long names.
const FILES: usize = 12_000;
/// What it gets beside what it has already.
const SPARE: u64 = 4 << 20;
/// The load ends long before.
const LIMIT: Duration = Duration::from_mins(2);

#[test]
fn the_oom_killer_takes_the_daemon_and_nobody_sees_an_error() -> Result<()> {
    let scratch = Scratch::new()?;
    let group = MemoryGroup::new()?;
    let mut daemon = group.daemon(scratch.path())?;
    let mut api = Api::connect(&daemon.socket(), "lamina", &[])?;
    let names: Vec<String> = (0..FILES)
        .map(|number| format!("d{}/{number:0>200}", number % 40))
        .collect();
    image_of_names(&mut api, "image", &names)?;
    let bound = Bound::new(&container(&mut api, "box", "image")?, scratch.join("box"))?;
    drop(api);
    let holder = daemon.holder().context("somebody holds the mount")?;
    let victim = daemon.pid()?;
    let root = bound.path();
    group.limit(Some(group.needed()? + SPARE))?;
    let load = |thread: usize| load(root, &names[thread * FILES / 2..(thread + 1) * FILES / 2]);
    thread::scope(|scope| {
        let threads = [scope.spawn(move || load(0)), scope.spawn(move || load(1))];
        wait_for("the OOM killer comes", LIMIT, || {
            is_dead(victim) || threads.iter().all(thread::ScopedJoinHandle::is_finished)
        })?;
        let is_over = threads.iter().all(thread::ScopedJoinHandle::is_finished);
        ensure!(!is_over, "the load was too small, or ended with an error");
        ensure!(group.kills()? == 1, "{} kills", group.kills()?);
        // Whoever starts the next one has given it more.
        group.limit(None)?;
        daemon.kill();
        ensure!(daemon.holder() == Some(holder), "the holder is another one");
        daemon.start_again()?;
        for thread in threads {
            let done = thread.join();
            done.map_err(|_| anyhow!("the load panicked"))??;
        }
        anyhow::Ok(())
    })?;
    ensure!(group.kills()? == 1, "{} kills", group.kills()?);
    drop(bound);
    daemon.stop()?;
    daemon.check()
}

/// Looks at files, reads them, and changes every tenth; whatever is wrong is an error.
fn load(root: &Path, names: &[String]) -> Result<()> {
    let mut open = BTreeMap::new();
    for (number, name) in names.iter().enumerate() {
        let path = root.join(name);
        let length = fs::symlink_metadata(&path)
            .with_context(|| name.clone())?
            .len();
        ensure!(length == name.len() as u64, "{name} has {length} bytes");
        if number % 10 == 0 {
            ensure!(fs::read(&path)? == name.as_bytes(), "{name}");
            let file = File::options().read(true).write(true).open(&path)?;
            file.write_all_at(b"changed", 0)?;
            open.insert(name, file);
        }
        if open.len() > 100 {
            look(&mut open)?;
        }
    }
    look(&mut open)
}

/// Looks whether all has been written, and closes it.
fn look(open: &mut BTreeMap<&String, File>) -> Result<()> {
    while let Some((name, file)) = open.pop_first() {
        let mut bytes = vec![0; name.len()];
        file.read_exact_at(&mut bytes, 0)?;
        let expected = [b"changed", &name.as_bytes()[7..]].concat();
        ensure!(bytes == expected, "{name}: {bytes:?}");
    }
    Ok(())
}

/// Whether a process of ours has ended.
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_none_or(|state| state == 'Z')
}

/// A memory cgroup, of the first version or the second. Removed when it is dropped.
struct MemoryGroup {
    dir: PathBuf,
    is_first: bool,
}

impl MemoryGroup {
    fn new() -> Result<MemoryGroup> {
        let (first, second) = (
            Path::new("/sys/fs/cgroup/memory"),
            Path::new("/sys/fs/cgroup"),
        );
        let is_first = first.join("memory.limit_in_bytes").exists();
        let above = if is_first { first } else { second };
        if !is_first {
            fs::write(second.join("cgroup.subtree_control"), "+memory")
                .context("this test needs a memory cgroup, of whichever version")?;
        }
        let dir = above.join(format!("lamina-test-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(MemoryGroup { dir, is_first })
    }

    /// A daemon whose memory, and whose holder's, counts here.
    fn daemon(&self, dir: &Path) -> Result<Daemon> {
        let (script, lamina) = (dir.join("limited"), binary()?);
        // Pages of a file count for whoever reads it first. Here they would come and go all the time.
        io::copy(&mut File::open(&lamina)?, &mut io::sink())?;
        let (group, lamina) = (self.dir.display(), lamina.display());
        let text = format!("#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {lamina} \"$@\"\n");
        fs::write(&script, text)?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))?;
        Daemon::start_with(&script, dir, UpperMode::Union, "")
    }

    fn limit(&self, bytes: Option<u64>) -> Result<()> {
        let (file, none) = if self.is_first {
            ("memory.limit_in_bytes", "-1")
        } else {
            ("memory.max", "max")
        };
        let text = bytes.map_or(none.to_owned(), |bytes| bytes.to_string());
        Ok(fs::write(self.dir.join(file), text)?)
    }

    /// Bytes that can't be had back.
    fn needed(&self) -> Result<u64> {
        let names: &[&str] = if self.is_first {
            &["rss", "shmem"]
        } else {
            &["anon", "shmem", "kernel"]
        };
        let all = self.numbers("memory.stat")?;
        let mut sum: u64 = names.iter().filter_map(|name| all.get(*name)).sum();
        if self.is_first {
            let kernel = fs::read_to_string(self.dir.join("memory.kmem.usage_in_bytes"))?;
            sum += kernel.trim().parse::<u64>()?;
        }
        Ok(sum)
    }

    /// How often the OOM killer has come.
    fn kills(&self) -> Result<u64> {
        let file = if self.is_first {
            "memory.oom_control"
        } else {
            "memory.events"
        };
        let all = self.numbers(file)?;
        all.get("oom_kill").copied().context("no count of kills")
    }

    fn numbers(&self, file: &str) -> Result<BTreeMap<String, u64>> {
        let text = fs::read_to_string(self.dir.join(file))?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let numbers = lines.map(|(name, number)| Ok((name.to_owned(), number.parse()?)));
        numbers.collect()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its last process may be ending this moment.
        let removed = wait_for(
            "the cgroup is empty",
            Duration::from_secs(20),
            || !matches!(fs::remove_dir(&self.dir), Err(error) if error.kind() == io::ErrorKind::ResourceBusy),
        );
        if let Err(error) = removed {
            eprintln!("{}: {error}", self.dir.display());
        }
    }
}
