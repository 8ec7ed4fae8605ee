//! A git repository with many files, for the works that run git. It is made by git itself, in the
//! lowest layer, with names, bytes and dates from a seed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::{Scale, contents};

/// Where the repository lies in [`super::Image::data`].
pub const REPOSITORY: &str = "srv/repository";

/// Files of the repository.
pub fn files(scale: Scale) -> usize {
    scale.count(20_000)
}

/// Makes the repository at `dir`.
pub fn make(dir: &Path, scale: Scale) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut rng = Rng::with_seed(0x617);
    for number in 0..files(scale) {
        let part = dir.join(format!("part{}/unit{}", number / 500, number / 25 % 20));
        if number % 25 == 0 {
            fs::create_dir_all(&part)?;
        }
        let bytes = contents::whole(rng.u64(..), rng.u64(200..8000));
        fs::write(part.join(format!("source{number}.c")), bytes)?;
    }
    git(dir, &["init", "--quiet", "--initial-branch=main"])?;
    git(dir, &["config", "gc.auto", "0"])?;
    git(dir, &["add", "--all"])?;
    git(dir, &["commit", "--quiet", "--message=All files"])?;
    // Packed, as a clone is.
    git(dir, &["repack", "-a", "-d", "--quiet"])?;
    Ok(())
}

/// Runs git in `dir` without the host's configuration, and gives its output.
pub fn git(dir: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let date = "2024-01-01T00:00:00Z";
    let output = Command::new("git")
        .args(["-c", "safe.directory=*"])
        .arg("-C")
        .arg(dir)
        .args(arguments)
        .envs([
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
        ])
        .envs([
            ("GIT_AUTHOR_NAME", "bench"),
            ("GIT_AUTHOR_EMAIL", "bench@localhost"),
        ])
        .envs([
            ("GIT_COMMITTER_NAME", "bench"),
            ("GIT_COMMITTER_EMAIL", "bench@localhost"),
        ])
        .envs([("GIT_AUTHOR_DATE", date), ("GIT_COMMITTER_DATE", date)])
        .output()
        .context("cannot run git: install the package git")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {arguments:?}: {error}");
    Ok(output.stdout)
}
