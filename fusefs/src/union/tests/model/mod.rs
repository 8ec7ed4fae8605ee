//! The union against a model of it, on random plays: ordinary operations as the kernel asks for
//! them, remounts, commits, crashes and disks that refuse.
//!
//! - `reference`, `merge`: the model, which is the specification. `apply` puts the vocabulary's
//!   operations to it; `mishaps` says what an error or a crash leaves open.
//! - `driver`: the union under test. `calls`, `held`: the operations as calls of it. `answer`: what
//!   both say.
//! - `compare`: the one against the other, operation by operation and as whole trees.
//! - `steps`: what a play is made of.
//! - `found`: the failures that were found, each as small as it became.
//!
//! `scripts/model-campaign` plays as long as one likes.

mod answer;
mod apply;
mod calls;
mod compare;
mod driver;
mod found;
mod held;
mod merge;
mod mishaps;
mod reference;
mod steps;

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use rustix::io::Errno;

use super::script::{Op, Renaming};
use crate::sys::change::faults::{self, Fault};
use compare::Verdict;
use driver::Driver;
use reference::Model;
use steps::{Play, Refusal, Step, play};

/// How many steps there are between two looks at the whole tree.
const LOOK_EVERY: usize = 4;

/// How often something was done.
static COUNTS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

fn count(what: &'static str) {
    *COUNTS.lock().entry(what).or_default() += 1;
}

/// `LAMINA_MODEL_CASES`: how many plays (300). `LAMINA_MODEL_OPS`: how many steps one has at most
/// (60). `LAMINA_MODEL_DIR`: where; a tmpfs is the fastest.
#[test]
fn a_union_is_an_ordinary_file_system() {
    let config = Config {
        cases: number("LAMINA_MODEL_CASES", 300),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let length = number("LAMINA_MODEL_OPS", 60) as usize;
    let mut runner = TestRunner::new(config);
    let result = runner.run(&play(1..=length), |play| {
        check(&play).map_err(TestCaseError::fail)
    });
    println!("{:#?}", COUNTS.lock());
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, play)) => panic!("{why}\n{play:?}"),
        Err(other) => panic!("{other}"),
    }
}

fn number(variable: &str, default: u32) -> u32 {
    let text = std::env::var(variable);
    text.map_or(default, |text| text.parse().expect(variable))
}

fn base() -> PathBuf {
    std::env::var_os("LAMINA_MODEL_DIR").map_or_else(|| "/dev/shm".into(), PathBuf::from)
}

/// Plays on a union and on the model.
fn check(play: &Play) -> Verdict {
    let base = base();
    let mut run = Run {
        driver: Driver::new(&base, &play.layers, play.in_part),
        model: Model::new(&play.layers, driver::has_zero_range(&base)),
    };
    run.look()?;
    for (number, step) in play.steps.iter().enumerate() {
        let result = run.step(*step).and_then(|()| {
            if number % LOOK_EVERY == 0 || number + 1 == play.steps.len() {
                run.look()?;
            }
            Ok(())
        });
        result.map_err(|why| format!("step {number}, {step:?}: {why}"))?;
    }
    run.remount()
        .map_err(|why| format!("after the last remount: {why}"))
}

struct Run {
    driver: Driver,
    model: Model,
}

impl Run {
    fn look(&mut self) -> Verdict {
        compare::trees(&self.driver.union, &mut self.model)
    }

    fn step(&mut self, step: Step) -> Verdict {
        match step {
            Step::Do(op) | Step::CrashIn(_, op) | Step::FailIn(_, _, op) if is_nested(op) => Ok(()),
            Step::Do(Op::Remount) => self.remount(),
            Step::Do(op) => {
                count("operations");
                compare::answers(&self.model.apply(op), &self.driver.apply(op))
            }
            Step::CrashIn(after, op) => self.crash_in(after, op),
            Step::FailIn(after, refusal, op) => self.fail_in(after, refusal, op),
            Step::Commit => self.commit(Fault::Never),
            Step::CrashInCommit(after) => self.commit(Fault::CrashAfter(after)),
            Step::FailInCommit(after, refusal) => {
                self.commit(Fault::FailAfter(after, errno(refusal)))
            }
        }
    }

    /// Nothing changes, neither by closing nor by opening again.
    fn remount(&mut self) -> Verdict {
        count("remounts");
        self.model.close_all();
        self.driver.let_go();
        self.look()?;
        self.driver.reopen();
        self.look()
    }

    /// The next mount shows the state before or the one after, and goes on from there.
    fn crash_in(&mut self, after: u64, op: Op) -> Verdict {
        count("operations");
        let before = self.model.clone();
        let expected = self.model.apply(op);
        let (seen, tried) = faults::with(Fault::CrashAfter(after), || self.driver.apply(op));
        if tried > after {
            count(crashes_in(op));
        } else {
            compare::answers(&expected, &seen)?;
        }
        self.driver.reopen();
        let mut candidates = vec![self.model.clone()];
        // What was answered is not lost.
        if tried > after && seen.is_err() {
            candidates.push(before.clone());
            candidates.extend(between(&before, &self.model, op));
        }
        let files = before.files_of(op);
        for candidate in &mut candidates {
            candidate.crashed(&files);
        }
        let stopped = |why| format!("stopped after {after} of at least {tried} changes: {why}");
        self.look_at_one_of(candidates).map_err(stopped)
    }

    /// What fails changes nothing; what succeeds in spite of the error is complete.
    fn fail_in(&mut self, after: u64, refusal: Refusal, op: Op) -> Verdict {
        count("operations");
        let before = self.model.clone();
        let expected = self.model.apply(op);
        let fault = Fault::FailAfter(after, errno(refusal));
        let (seen, tried) = faults::with(fault, || self.driver.apply(op));
        if tried <= after {
            return compare::answers(&expected, &seen).and_then(|()| self.look());
        }
        count("refusals");
        // Those times are not worth an error.
        self.model.forget_times_of_directories();
        if seen.is_ok() {
            return compare::answers(&expected, &seen).and_then(|()| self.look());
        }
        let mut candidates = vec![before.clone()];
        candidates.extend(between(&before, &self.model, op));
        let files = before.files_of(op);
        for candidate in &mut candidates {
            candidate.failed(&files);
            candidate.forget_times_of_directories();
        }
        let (tried, error) = (tried - 1, seen.err());
        let refused = |why| format!("change {after} of {tried} failed, so {error:?}: {why}");
        self.look_at_one_of(candidates).map_err(refused)
    }

    /// Goes on with the first of these states that the union shows.
    fn look_at_one_of(&mut self, candidates: Vec<Model>) -> Verdict {
        let mut all = String::new();
        for model in candidates {
            self.model = model;
            match self.look() {
                Ok(()) => return Ok(()),
                Err(why) => all = format!("{all}\nnot this state: {why}"),
            }
        }
        Err(all)
    }

    /// A commit that is stopped changes nothing, and can be repeated.
    fn commit(&mut self, fault: Fault) -> Verdict {
        count("operations");
        self.look()?;
        self.model.close_all();
        let (sealed, tried) = faults::with(fault, || self.driver.seal());
        match (fault, sealed) {
            (Fault::CrashAfter(after), _) if tried > after => count("crashes in a commit"),
            (Fault::FailAfter(after, _), Err(_)) if tried > after => count("refusals"),
            (_, Err(error)) => return Err(format!("seal: {error}")),
            (_, Ok(())) => {
                if fault != Fault::Never {
                    // Those times are not worth an error.
                    self.model.forget_times_of_directories();
                }
                self.look().map_err(|why| format!("sealed: {why}"))?;
                self.driver.put_upper_on_top();
                self.model.commit();
                return self.look().map_err(|why| format!("committed: {why}"));
            }
        }
        let files: Vec<_> = (0..self.model.inodes.len()).collect();
        if let Fault::CrashAfter(_) = fault {
            self.model.crashed(&files);
        } else {
            self.model.failed(&files);
            self.model.forget_times_of_directories();
        }
        self.driver.reopen();
        self.look()
            .map_err(|why| format!("stopped in the seal: {why}"))
    }
}

/// The state between two steps that everybody can see, for the operations that have one.
fn between(before: &Model, after: &Model, op: Op) -> Option<Model> {
    if let Op::Rename {
        from,
        how: Renaming::LeaveWhiteout,
        ..
    } = op
    {
        // The file has its new name, and its old one has nothing yet.
        let mut model = after.clone();
        return model.apply(Op::Unlink { path: from }).ok().map(|_| model);
    }
    // A writer without privilege takes setuid away before the first byte is written.
    let mut model = before.clone();
    for id in before.files_of(op) {
        model.inodes[id].drop_set_id();
    }
    model.is_unprivileged().then_some(model)
}

fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::Full => Errno::NOSPC,
        Refusal::Broken => Errno::IO,
    }
}

fn crashes_in(op: Op) -> &'static str {
    match op {
        Op::Rename { .. } => "crashes in a rename",
        Op::Link { .. } => "crashes in a link",
        Op::Unlink { .. } | Op::Rmdir { .. } => "crashes in a removal",
        Op::Create { .. } | Op::Mkdir { .. } | Op::Mknod { .. } | Op::Symlink { .. } => {
            "crashes in a creation"
        }
        _ => "crashes in a copy-up or a change of attributes or data",
    }
}

/// Whether a rename leads into or out of the very thing that it renames: the kernel knows what to
/// say, and asks no file system.
fn is_nested(op: Op) -> bool {
    let Op::Rename { from, to, .. } = op else {
        return false;
    };
    let is_below =
        |path: &str, dir: &str| (path.strip_prefix(dir)).is_some_and(|rest| rest.starts_with('/'));
    is_below(from, to) || is_below(to, from)
}
