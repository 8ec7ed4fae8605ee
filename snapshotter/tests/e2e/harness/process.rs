//! Processes: run one to its end, keep one running, read what `/proc` says of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// No command of the harness takes this long, on a busy machine neither (the longest converts an image of
/// 1.5 GB); one that does hangs.
const COMMAND_LIMIT: Duration = Duration::from_mins(10);
/// How long a daemon may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// Runs `command` to its end and returns its standard output; a failure carries all that it said.
pub fn output(command: &mut Command) -> Result<String> {
    let said = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {said}"))?;
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(ended) = receiver.recv_timeout(COMMAND_LIMIT) else {
        signal(pid, Signal::KILL);
        bail!("{said} hangs");
    };
    let ended = ended?;
    if !ended.status.success() {
        let told = [ended.stdout, ended.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        bail!("{said}: {}: {}", ended.status, told.trim());
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// Runs `program` with `args` to its end and returns its standard output.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    output(Command::new(program).args(args))
}

/// Sends a signal; a process that has ended already is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until `done` says yes, and fails with `what` when it never does.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            bail!("waited {} s in vain: {what}", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A daemon that the harness started. Dropping it kills it.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` in the background; both outputs are appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let log = log.to_owned();
        Ok(Self { child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says yes; if the process ends before that, its log is the error.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let mut ended = None;
        let child = &mut self.child;
        let waited = wait_for("the daemon gets ready", limit, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || ready()
        });
        match ended {
            Some(status) => Err(anyhow!("ended with {status}; its log:\n{}", self.log())),
            None => waited.with_context(|| format!("the log:\n{}", self.log())),
        }
    }

    /// SIGTERM, then the exit status; a process that does not obey is killed and an error.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        signal(self.pid(), Signal::TERM);
        let mut ended = None;
        let child = &mut self.child;
        let waited = wait_for("the daemon ends after SIGTERM", STOP_LIMIT, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some()
        });
        if let Some(status) = ended {
            return Ok(status);
        }
        self.kill();
        Err(waited
            .err()
            .unwrap_or_else(|| anyhow!("no status"))
            .context(self.log()))
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = text.len().saturating_sub(8000);
        String::from_utf8_lossy(&text[tail..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub descriptors: usize,
    pub threads: usize,
    pub resident_kib: i64,
}

impl Usage {
    /// Reads the numbers of process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let count = |what: &str| {
            Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{pid}/{what}"))?.count())
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Self {
            descriptors: count("fd")?,
            threads: count("task")?,
            resident_kib: kib_field(&status, "VmRSS:").context("no VmRSS")?,
        })
    }
}

/// The most memory that process `pid` has had, in KiB.
pub fn peak_kib(pid: u32) -> Result<i64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    kib_field(&status, "VmHWM:").context("no VmHWM")
}

/// The memory that a process has, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Rollup {
    /// All pages.
    pub resident: i64,
    /// The same, each page divided by how many have it.
    pub shared_out: i64,
    /// Those of no file.
    pub anonymous: i64,
}

impl Rollup {
    /// Reads the numbers of process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &'static str| kib_field(&text, name).context(name);
        Ok(Self {
            resident: field("Rss:")?,
            shared_out: field("Pss:")?,
            anonymous: field("Pss_Anon:")?,
        })
    }
}

/// The kernel's own caches of objects (inodes, dentries, mounts), in KiB.
pub fn slab_kib() -> Result<i64> {
    kib_field(&fs::read_to_string("/proc/meminfo")?, "Slab:").context("no Slab")
}

fn kib_field(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The mount points at or below `dir`, in the order in which they were mounted.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir))
        .collect())
}

/// The processes whose command line holds `text`, and the children of each.
pub fn families(text: &str) -> Vec<(u32, Vec<u32>)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let named = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .split('\0')
            .any(|argument| argument == text)
    };
    let parent = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        kib_field(&status, "PPid:")
    };
    let heads = pids.iter().copied().filter(named);
    heads
        .map(|head| {
            let children = pids.iter().copied();
            (
                head,
                children
                    .filter(|pid| parent(*pid) == Some(i64::from(head)))
                    .collect(),
            )
        })
        .collect()
}
