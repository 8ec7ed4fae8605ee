//! Measurements of Lamina beside its rivals. None is written yet; saying so is better than a
//! program that does nothing and looks as if it had.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("lamina-benches: the races against overlayfs and fuse-overlayfs are not written yet");
    ExitCode::FAILURE
}
