//! What may stand where: the rules of the house that a line of code can break.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// A text and the only places, as beginnings of paths, whose code may hold it.
const RULES: [(&[&str], &[&str]); 5] = [
    (
        &["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"],
        // fuser has no safe way to name a file that was registered before.
        &["fusefs/src/sys/", "fusefs/src/session/passthrough.rs"],
    ),
    (&["trusted.overlay"], &["fusefs/src/marks.rs"]),
    (
        &["tonic::"],
        &[
            "proto/src/",
            "snapshotter/src/service.rs",
            "snapshotter/src/daemon.rs",
            "snapshotter/src/cri.rs",
            "snapshotter/src/containerd/",
        ],
    ),
    (
        &["println!", "print!("],
        &[
            "snapshotter/src/main.rs",
            "snapshotter/src/cli",
            "benches/src/",
        ],
    ),
    (&["fuser::"], &["fusefs/src/session/"]),
];

#[test]
fn every_kind_of_code_stays_in_its_room() -> Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for part in ["proto/src", "fusefs/src", "snapshotter/src", "benches/src"] {
        sources(&top.join(part), &mut files)?;
    }
    ensure!(
        files.len() > 5,
        "the sources are not where this test looks: {files:?}"
    );
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(&top)?.display().to_string();
        let text = fs::read_to_string(&file)?;
        // Tests stand at the end of a file, or in one of their own, and may do what they want.
        let code = text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"));
        for (number, line) in code.enumerate() {
            let line = line.trim_start();
            for (texts, rooms) in RULES {
                let held = !line.starts_with("//") && texts.iter().any(|text| line.contains(text));
                if held && !rooms.iter().any(|room| name.starts_with(room)) {
                    found.push(format!("{name}:{}: {line} (only in {rooms:?})", number + 1));
                }
            }
        }
    }
    ensure!(found.is_empty(), "in the wrong room:\n{}", found.join("\n"));
    Ok(())
}

/// Every Rust file at or below `dir` but those with tests alone.
fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
