//! The same random operations on Lamina and on kernel overlayfs, over copies of the same layers.
//!
//! A [`script::Script`] is run on overlayfs, then on Lamina with and without passthrough. Every
//! result is compared, down to the errno, and so are the whole trees: after each remount and at
//! the end. In the end each system also mounts what the other wrote (`exchange`). What differs on
//! purpose is in one table, with a reason for each (`differences::WANTED`).
//!
//! - `system`: the mounts, shared with the mounted tests.
//! - `run`: a script done on a mount; what was seen on the way. `calls`: its system calls.
//! - `seen`: what can be seen of a file, and of a tree.
//! - `compare`: two runs beside each other.
//! - `differences`: what may differ.
//! - `found`: scripts that once failed.
//!
//! `cargo test` runs some dozens of scripts; `scripts/differential-campaign` as many as one wants.
//! A script that fails is shrunk and printed as Rust code: paste it into `found.rs`, under a name.

// In a test a failed step is the end of it, in helpers and closures too.
#![allow(clippy::unwrap_used)]

mod calls;
mod compare;
mod differences;
mod exchange;
mod found;
mod run;
#[path = "../script/mod.rs"]
mod script;
mod seen;
#[allow(dead_code)] // the mounted tests use more of it
#[path = "../mounted/system.rs"]
mod system;

use std::time::Instant;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use self::script::Script;
use self::system::System;

/// How many operations a script has at most.
const LENGTH: usize = 100;

/// How many operations `cargo test` tries: on a slow disk under a minute.
const OPERATIONS: u64 = 2_000;

/// Both ways in which Lamina is mounted.
const LAMINA: [System; 2] = [
    System::Lamina { passthrough: true },
    System::Lamina { passthrough: false },
];

/// Runs one script everywhere. An error says what differs.
fn check(script: &Script) -> Result<(), String> {
    let overlayfs = run::run(System::Overlayfs, script)?;
    for lamina in LAMINA {
        let ours = run::run(lamina, script)?;
        let differs = |what| format!("on {lamina}: {what}");
        compare::runs(script, &overlayfs.record, &ours.record).map_err(differs)?;
        exchange::kernel_reads_ours(script, ours).map_err(differs)?;
    }
    exchange::lamina_reads_theirs(script, overlayfs)?;
    let with = |error| format!("with metacopy: {error}");
    exchange::lamina_reads_theirs(script, run::run_with_metacopy(script)?).map_err(with)
}

/// As many scripts as `LAMINA_OPERATIONS` says, from the seed `LAMINA_SEED`.
#[test]
fn random_scripts() {
    let wanted = number("LAMINA_OPERATIONS").unwrap_or(OPERATIONS);
    let seed = number("LAMINA_SEED").unwrap_or(1);
    let mut runner = runner(seed);
    let start = Instant::now();
    let (mut scripts, mut done) = (0, 0);
    while done < wanted {
        let tree = script::script(1..=LENGTH).new_tree(&mut runner).unwrap();
        done += u64::try_from(tree.current().ops.len()).unwrap();
        let result = runner.run_one(tree, |script| check(&script).map_err(TestCaseError::fail));
        if let Err(error) = result {
            panic!("seed {seed}, script {scripts}: {error}");
        }
        scripts += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("seed {seed}: {scripts} scripts, {done} operations in {seconds:.1} s");
    differences::report();
}

/// A number in the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// proptest with a seed; it tells nothing of what it found to a file.
fn runner(seed: u64) -> TestRunner {
    let config = Config {
        cases: u32::MAX,
        max_shrink_iters: 3000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}
