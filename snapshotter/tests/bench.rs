//! `lamina bench`: one work of it, once. It needs root and `/dev/fuse`.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_race_ends_with_a_table_and_a_report_and_leaves_no_upper() {
    // overlayfs takes no upper on a tmpfs without xattrs, nor on another overlayfs.
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("room");
    let output = Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args(["bench", "--rounds", "1", "--only", "first-output", "--dir"])
        .arg(dir.path())
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for name in ["overlayfs", "lamina", "mount to first output"] {
        assert!(text.contains(name), "no {name} in\n{text}");
    }
    let report = fs::read_to_string(dir.path().join("report/race.md")).expect("report");
    assert!(report.contains("| mount to first output |"), "{report}");
    assert!(!dir.path().join("round").exists());
}
