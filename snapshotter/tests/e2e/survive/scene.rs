//! The containers under load, and whoever serves their roots.

use std::fs::File;
use std::io::{Write as _, stderr};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use lamina_snapshotter::hold;
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::process::Signal;

use super::leaks::Before;
use super::moments::number;
use super::remote::{self, Remote};
use super::{applications, program};
use crate::harness::{Daemon, Host, IMAGE, output, signal, wait_for};

/// How long the load may take to look at everything for the last time.
const LAST_LOOK: Duration = Duration::from_mins(5);
/// How long the load may take until it runs.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long the holder waits for a daemon.
const HOLD: Duration = Duration::from_mins(5);
/// Of the daemon's log, in a failure.
const LOG_LINES: usize = 20;
/// Containers that measure pauses, if nobody says how many.
const CROWD: u64 = 5;

/// The stage of each test here.
pub(super) struct Scene {
    host: Host,
    /// What containers see at `/outside`.
    outside: PathBuf,
    seed: u64,
    /// Those whose verdict is waited for.
    running: Vec<String>,
    remote: Option<Remote>,
    before: Before,
    _holder: Holder,
}

impl Scene {
    /// A host with the images of the load, and nothing running.
    pub(super) fn start(config: &str, seed: u64) -> Result<Scene> {
        let config = format!("{config}{}", remote::CONFIG);
        let host = Host::start_configured(UpperMode::Union, &config)?;
        let dir = host.scratch();
        let layer = dir.join("load-layer");
        program::put_load(&layer)?;
        host.layout.add_dir("site", "load", &layer)?;
        if let Some(archive) = applications::archive() {
            host.layout.add_root("plain-debian", &archive)?;
            applications::put(&layer)?;
            host.layout.add_dir("plain-debian", "debian", &layer)?;
        }
        host.import()?;
        let outside = dir.join("outside");
        fs::create_dir(&outside)?;
        let holder = Holder(host.lamina.as_ref().map(Daemon::socket));
        let remote = Remote::start(&host)?;
        // What is made once and kept is made by a first container.
        let mut scene = Scene {
            before: Before::default(),
            host,
            outside,
            seed,
            running: Vec::new(),
            remote,
            _holder: holder,
        };
        scene.start_load()?;
        scene.end_load()?;
        scene.before = Before::of(&scene.host)?;
        Ok(scene)
    }

    /// Starts everything that a test runs.
    pub(super) fn start_load(&mut self) -> Result<()> {
        if self.outside.exists() {
            fs::remove_dir_all(&self.outside)?;
        }
        fs::create_dir(&self.outside)?;
        program::fill_churned(&self.outside.join("churned"))?;
        self.start_one("load", "load", "all")?;
        let of_image = self.host.lamina.is_some();
        self.start_with("churn", "load", &program::churn_script(self.seed, of_image))?;
        for number in 0..number("LAMINA_CROWD")?.unwrap_or(CROWD) {
            self.start_one(&format!("probe{number}"), "load", "probe")?;
        }
        self.renew_remote()?;
        for (name, script) in applications::scripts() {
            self.start_with(name, "debian", script)?;
        }
        self.look()
    }

    fn start_one(&mut self, name: &str, image: &str, parts: &str) -> Result<()> {
        self.start_with(name, image, &load_script(name, self.seed, parts))
    }

    fn start_with(&mut self, name: &str, image: &str, script: &str) -> Result<()> {
        let image = format!("{IMAGE}:{image}");
        start_watched(&self.host, &self.outside, (name, &image), script)?;
        self.running.push(name.to_owned());
        Ok(())
    }

    /// Replaces the container that reads an image which is not here by a new one of nothing.
    pub(super) fn renew_remote(&mut self) -> Result<()> {
        self.host.wait_ready()?;
        match &mut self.remote {
            Some(remote) => remote.renew(&self.host, self.seed),
            None => Ok(()),
        }
    }

    /// Everybody says at the end that all was right; then the containers go.
    pub(super) fn end_load(&mut self) -> Result<()> {
        fs::write(self.outside.join("stop"), "")?;
        for name in &self.running {
            let ended = self.outside.join(format!("{name}.ended"));
            let waited = wait_for(&format!("{name} ends"), LAST_LOOK, || {
                ended.exists() || self.failures().is_some()
            });
            self.look()?;
            waited.with_context(|| self.told())?;
        }
        self.host.wait_ready()?;
        if let Some(remote) = &mut self.remote {
            remote.end(&self.host)?;
        }
        for name in self.running.drain(..) {
            self.host.ctr.end(&name)?;
        }
        self.look()
    }

    /// What each container has done, in its own words.
    pub(super) fn tell(&self) -> Result<()> {
        let mut logs: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(&self.outside)? {
            logs.push(entry?.path());
        }
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for path in logs {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(&path)?;
            let last = text.lines().last().unwrap_or_default();
            if !name.starts_with("probe") {
                report(&format!("{name}: {last}"));
            }
        }
        Ok(())
    }

    /// Fails if somebody has noticed anything.
    pub(super) fn look(&self) -> Result<()> {
        let Some(told) = self.failures() else {
            return Ok(());
        };
        let log = self.host.lamina.as_ref().map(Daemon::log);
        if let Some(dir) = env::var_os("LAMINA_KEEP") {
            let mut command = Command::new("cp");
            command
                .args(["-r", "--"])
                .arg(&self.outside)
                .args(&log)
                .arg(dir);
            output(&mut command)?;
        }
        let log = log
            .and_then(|log| fs::read_to_string(log).ok())
            .unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        bail!("{told}\nthe end of the daemon's log:\n{end}")
    }

    fn failures(&self) -> Option<String> {
        let remote = self.remote.as_ref().map(Remote::outside);
        let dirs = [Some(self.outside.as_path()), remote].into_iter().flatten();
        let entries = dirs.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let failed = entries.map(|entry| entry.path()).filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "failed")
        });
        let told: Vec<String> = failed
            .map(|path| {
                let name = path
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let text = fs::read_to_string(&path).unwrap_or_default();
                format!("container {name}: {}", text.trim())
            })
            .collect();
        (!told.is_empty()).then(|| told.join("\n"))
    }

    /// What a failure has to say of the containers.
    pub(super) fn told(&self) -> String {
        let tasks = self.host.ctr.run(&["tasks", "list"]);
        tasks.unwrap_or_else(|error| error.to_string())
    }

    /// Where the containers have written what they measured.
    pub(super) fn outside(&self) -> &Path {
        &self.outside
    }

    /// The daemon's log may complain of this.
    pub(super) fn expect(&mut self, text: &'static str) {
        self.before.expect(text);
    }

    /// Nothing is left of containers that have gone.
    pub(super) fn is_clean(&self) -> Result<()> {
        self.before.compare(&self.host)
    }

    /// Nothing is left of all that, and the daemon ends as it should.
    pub(super) fn end(self) -> Result<()> {
        self.is_clean()?;
        self.host.stop()
    }

    // Who serves.

    /// `kill -9` of the daemon, or of containerd where that serves.
    pub(super) fn kill(&mut self) {
        match &mut self.host.lamina {
            Some(lamina) => lamina.kill(),
            None => self.host.containerd.kill(),
        }
    }

    /// SIGTERM.
    pub(super) fn stop_snapshotter(&mut self) -> Result<()> {
        match &mut self.host.lamina {
            Some(lamina) => lamina.stop(),
            None => self.host.containerd.stop(),
        }
    }

    /// Starts it again, and does not wait.
    pub(super) fn begin(&mut self, binary: &Path) -> Result<()> {
        match &mut self.host.lamina {
            Some(lamina) => lamina.begin(binary),
            None => self.host.containerd.start_again(),
        }
    }

    pub(super) fn wait_ready(&mut self) -> Result<()> {
        self.host.lamina.as_mut().map_or(Ok(()), Daemon::wait_ready)
    }

    pub(super) fn holder(&self) -> Option<u32> {
        self.host.lamina.as_ref().and_then(Daemon::holder)
    }

    /// Makes the records that a killed daemon left those of another version: greater by so much.
    pub(super) fn shift_record_versions(&self, by: i64) -> Result<()> {
        /// Where the version stands (`fusefs/src/record/journal.rs`).
        const AT: u64 = 8;
        let root = self.host.snapshotter_root();
        let (_holder, left) = hold::Holder::start(&root.join("hold.sock"), HOLD)?;
        let records = left.iter().filter(|(name, _)| name.ends_with(".record"));
        let mut count = 0;
        for (_, record) in records {
            let record = File::from(record.try_clone()?);
            let mut bytes = [0; 8];
            record.read_exact_at(&mut bytes, AT)?;
            let version = u64::from_ne_bytes(bytes).checked_add_signed(by);
            let version = version.context("no such version")?;
            record.write_all_at(&version.to_ne_bytes(), AT)?;
            count += 1;
        }
        ensure!(count > 0, "there are no records");
        Ok(())
    }

    // What a crash of both leaves.

    /// Starts a container that syncs what it writes and says so; or, if it was there before, one
    /// that goes on after a crash.
    pub(super) fn start_durable(&mut self) -> Result<()> {
        fs::remove_dir_all(&self.outside)?;
        fs::create_dir(&self.outside)?;
        let run = load_script("durable", self.seed, "durable files");
        let script = format!(
            "if [ -e /outside/after ]; then /load/run kept /outside > /outside/kept 2>&1 && \
             echo all >> /outside/kept; exec sleep 1000000; fi; {run}"
        );
        self.start_with("durable", "load", &script)?;
        let told = self.outside.join("acknowledged");
        wait_for("the container syncs something", START_LIMIT, || {
            fs::metadata(&told).is_ok_and(|told| told.len() > 0)
        })
    }

    /// Kills the daemon and whoever holds its connections.
    pub(super) fn kill_both(&mut self) -> Result<()> {
        let holder = self.holder();
        self.kill();
        if let Some(holder) = holder {
            signal(holder, Signal::KILL);
            wait_for("the holder ends", START_LIMIT, || self.holder().is_none())?;
        }
        Ok(())
    }

    /// What the first container says that fails.
    pub(super) fn wait_failed(&self, limit: Duration) -> Result<String> {
        wait_for("a container notices", limit, || self.failures().is_some())?;
        self.failures().context("nobody failed")
    }

    /// The container that started before the crash starts once more, and finds what it synced.
    pub(super) fn check_durable(&mut self) -> Result<()> {
        fs::write(self.outside.join("after"), "")?;
        self.host.wait_ready()?;
        self.host.ctr.stop_task("durable")?;
        self.host.ctr.start_task("durable")?;
        let kept = self.outside.join("kept");
        let text = || fs::read_to_string(&kept).unwrap_or_default();
        let waited = wait_for("the container looks", START_LIMIT, || {
            text().ends_with("all\n")
        });
        waited.with_context(|| format!("it found: {}", text()))?;
        ensure!(text() == "all\n", "it found: {}", text());
        self.running.clear();
        self.host.ctr.end("durable")
    }
}

/// The program of this test in a container.
pub(super) fn load_script(name: &str, seed: u64, parts: &str) -> String {
    format!("/load/run run {name} /outside {seed} {parts}")
}

/// Starts a container whose script's end is told outside, however it comes.
pub(super) fn start_watched(
    host: &Host,
    outside: &Path,
    (name, image): (&str, &str),
    script: &str,
) -> Result<()> {
    fs::write(outside.join(format!("{name}.sh")), script)?;
    let watch = format!(
        "cd /outside; status=0\n\
         /bin/sh -eu {name}.sh > {name}.log 2>&1 || status=$?\n\
         if [ $status = 0 ]; then [ -e {name}.ended ] || echo done > {name}.ended\n\
         elif [ ! -e {name}.failed ]; then\n\
         {{ echo status $status; tail -n 30 {name}.log; }} > {name}.failed.new\n\
         mv {name}.failed.new {name}.failed; fi"
    );
    host.ctr.start_beside(outside, name, image, &watch)
}

/// Says a figure that is worth reading also when the test passes.
pub(super) fn report(line: &str) {
    let _ = writeln!(stderr(), "    {line}");
}

/// Ends the holder of a daemon that a failed test has left.
struct Holder(Option<PathBuf>);

impl Drop for Holder {
    fn drop(&mut self) {
        let Some(address) = &self.0 else { return };
        if let Some(holder) = crate::harness::holder_of(address) {
            signal(holder, Signal::KILL);
        }
    }
}
