//! The `lamina` command.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os().collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lamina: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes in one line; a cause that is told already is not told again.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
