//! The machine and the day: without them a figure means nothing.

use std::fs;

use anyhow::Result;
use serde::Serialize;

/// What a report says about where it was made.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// When the race began.
    pub date: String,
    /// The kernel's release.
    pub kernel: String,
    /// The model of the processor.
    pub cpu: String,
    /// How many of them there are.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory: u64,
    /// The type of the file system on which everything lies.
    pub filesystem: String,
    /// The load average of the last minute when the race began. Other work makes figures worse.
    pub load: String,
}

impl Host {
    /// This machine, now, with the race's directory at `dir`.
    pub fn now(dir: &std::path::Path) -> Result<Host> {
        let field = |file: &str, name: &str| -> Result<String> {
            let text = fs::read_to_string(file)?;
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            Ok(value
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default())
        };
        let memory = field("/proc/meminfo", "MemTotal")?;
        let kibibytes: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Host {
            date: jiff::Timestamp::now()
                .strftime("%Y-%m-%d %H:%M UTC")
                .to_string(),
            kernel: kernel(),
            cpu: field("/proc/cpuinfo", "model name")?,
            cpus: std::thread::available_parallelism()?.get(),
            memory: kibibytes / 1024,
            filesystem: filesystem(dir)?,
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        })
    }
}

/// The kernel's release.
pub fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// The type of the file system that holds `dir`, from the mount whose path is the longest.
fn filesystem(dir: &std::path::Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let around = fields.filter(|fields| fields.len() > 2 && dir.starts_with(fields[1]));
    let nearest = around.max_by_key(|fields| fields[1].len());
    Ok(nearest
        .map(|fields| fields[2].to_owned())
        .unwrap_or_default())
}
