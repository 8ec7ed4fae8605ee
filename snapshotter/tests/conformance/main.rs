//! containerd's own suite for snapshotters, written in Go, against Lamina's socket.
//!
//! It passes only if every case of the suite ran and passed. The one exception is the suite's
//! own: it skips `Rename` for every snapshotter; `lamina_test.go` runs that case nevertheless.

use std::env;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};

/// The cases of containerd 1.6's suite, without the one that it skips itself.
const CASES: [&str; 20] = [
    "Basic",
    "StatActive",
    "StatComitted",
    "TransitivityTest",
    "PreareViewFailingtest",
    "Update",
    "Remove",
    "Walk",
    "LayerFileupdate",
    "RemoveDirectoryInLowerLayer",
    "Chown",
    "DirectoryPermissionOnCommit",
    "RemoveIntermediateSnapshot",
    "DeletedFilesInChildSnapshot",
    "MoveFileFromLowerLayer",
    "ViewReadonly",
    "StatInWalk",
    "CloseTwice",
    "RootPermission",
    "128LayersMount",
];

#[test]
fn containerds_overlayfs_passes_its_own_suite() -> Result<()> {
    let told = suite("overlayfs", "")?;
    verdict(&told, &["TestConformance/Rename", "TestRename"])
}

#[test]
fn lamina_passes_containerds_suite() -> Result<()> {
    lamina_passes("union")
}

#[test]
fn lamina_passes_containerds_suite_with_the_kernels_uppers() -> Result<()> {
    lamina_passes("kernel")
}

fn lamina_passes(upper: &str) -> Result<()> {
    let told = suite("lamina", upper)?;
    ensure!(
        told.lines()
            .any(|line| line.starts_with("--- PASS: TestRename")),
        "{told}"
    );
    verdict(&told, &["TestConformance/Rename"])
}

/// All cases passed, and nothing was skipped but `skipped`.
fn verdict(told: &str, skipped: &[&str]) -> Result<()> {
    let names = |word: &str| {
        let lines = told
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(word));
        let names = lines.filter_map(|line| line.split(' ').next().map(str::to_owned));
        names.collect::<Vec<_>>()
    };
    let mut passed = names("--- PASS: TestConformance/");
    let mut expected = CASES.map(str::to_owned).to_vec();
    passed.sort();
    expected.sort();
    ensure!(
        passed == expected,
        "passed {passed:?} instead of {expected:?}:\n{told}"
    );
    let found = names("--- SKIP: ");
    ensure!(
        found == skipped,
        "skipped {found:?} instead of {skipped:?}:\n{told}"
    );
    ensure!(!told.contains("--- FAIL"), "{told}");
    Ok(())
}

/// Builds the Go test with Debian's packaged sources, runs it and returns what it printed. `upper`
/// is who holds the uppers, if the snapshotter is Lamina.
fn suite(snapshotter: &str, upper: &str) -> Result<String> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "needs root: run scripts/test"
    );
    let dir = tempfile::Builder::new().prefix("lm-go-").tempdir()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let program = dir.path().join("suite");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache");
    let mut build = Command::new("go");
    build
        .args(["test", "-c", "-o"])
        .arg(&program)
        .current_dir(source);
    build
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", cache);
    build.env("GOFLAGS", "");
    said(
        build
            .output()
            .context("cannot run go: scripts/test installs it")?,
    )?;

    // Each case gets a daemon of its own, and the suite asks for all of them at once.
    let mut run = Command::new(&program);
    run.args(["-test.v", "-test.parallel", "4", "-test.timeout", "15m"]);
    run.current_dir(dir.path())
        .env("TMPDIR", dir.path())
        .env("SNAPSHOTTER", snapshotter)
        .env("LAMINA_UPPER", upper);
    run.env("LAMINA_BIN", env!("CARGO_BIN_EXE_lamina"));
    said(run.output()?)
}

fn said(output: Output) -> Result<String> {
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if !output.status.success() {
        bail!("{}:\n{text}", output.status);
    }
    Ok(text)
}
