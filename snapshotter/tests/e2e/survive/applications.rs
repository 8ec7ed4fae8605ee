//! Applications of a Debian root: two databases, git, and fsx. Each verifies itself.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::program;

/// The archive of the root; without one nothing of this runs.
pub(super) fn archive() -> Option<PathBuf> {
    env::var_os("LAMINA_DEBIAN").map(PathBuf::from)
}

/// Adds to the load what is not Debian's.
pub(super) fn put(root: &Path) -> Result<()> {
    let fsx = env::var_os("LAMINA_FSX").context("LAMINA_FSX names no program")?;
    program::put(root, Path::new(&fsx), "fsx")?;
    let settings = include_str!("../../../../scripts/fsx.toml");
    fs::write(root.join("load/fsx.toml"), settings)?;
    Ok(fs::write(root.join("load/fsx.image"), vec![b'i'; 200_000])?)
}

/// What runs in a container each, by name.
pub(super) fn scripts() -> Vec<(&'static str, &'static str)> {
    if archive().is_none() {
        return Vec::new();
    }
    vec![
        ("postgres", include_str!("applications/postgres.sh")),
        ("sqlite", include_str!("applications/sqlite.sh")),
        ("git", include_str!("applications/git.sh")),
        ("fsx", include_str!("applications/fsx.sh")),
    ]
}
