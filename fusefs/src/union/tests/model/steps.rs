//! What a run does: the operations of the vocabulary, and what only a test inside can do.

use std::fmt;
use std::ops::RangeInclusive;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::union::tests::script::{self, Layer, Op, Script};

/// Layers, and what is done to a union of them.
#[derive(Clone, PartialEq)]
pub(super) struct Play {
    /// The topmost first.
    pub(super) layers: Vec<Layer>,
    /// Whether files are copied up in part, from one byte on; else none of the model's is.
    pub(super) in_part: bool,
    /// In order.
    pub(super) steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    /// An ordinary operation.
    Do(Op),
    /// The world stops after this many changes of the disk, or at the end.
    CrashIn(u64, Op),
    /// After this many changes the disk refuses one.
    FailIn(u64, Refusal, Op),
    /// The upper becomes a layer, and another one goes on top.
    Commit,
    /// The world stops after this many changes of a commit.
    CrashInCommit(u64),
    /// After this many changes of a commit the disk refuses one.
    FailInCommit(u64, Refusal),
}

/// What a disk says that refuses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Refusal {
    Full,
    Broken,
}

/// A play with up to this number of steps.
pub(super) fn play(steps: RangeInclusive<usize>) -> impl Strategy<Value = Play> {
    let steps = vec(step(), steps);
    (script::layers(), any::<bool>(), steps).prop_map(|(layers, in_part, steps)| Play {
        layers,
        in_part,
        steps,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        70 => script::op().prop_map(Step::Do).boxed(),
        20 => (changes(), changing_op()).prop_map(|(after, op)| Step::CrashIn(after, op)),
        8 => (changes(), refusal(), changing_op())
            .prop_map(|(after, refusal, op)| Step::FailIn(after, refusal, op)),
        1 => Just(Step::Commit),
        1 => changes().prop_map(Step::CrashInCommit),
        1 => (changes(), refusal())
            .prop_map(|(after, refusal)| Step::FailInCommit(after, refusal)),
    ]
}

/// Most operations need few changes of the disk, a few need many.
fn changes() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0..6_u64, 2 => 0..16_u64, 1 => 0..40_u64]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![Just(Refusal::Full), Just(Refusal::Broken)]
}

/// What may be stopped on its way.
fn changing_op() -> impl Strategy<Value = Op> {
    // Boxed, or the stack of a test's thread is too small for all of them.
    prop_oneof![
        4 => script::name_op().boxed(),
        1 => script::data_op().boxed(),
        2 => script::attribute_op().boxed(),
    ]
    .boxed()
}

impl fmt::Debug for Play {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let script = Script {
            layers: self.layers.clone(),
            ops: Vec::new(),
        };
        writeln!(f, "in part: {}", self.in_part)?;
        write!(f, "layers of {script:?}")?;
        for step in &self.steps {
            writeln!(f, "    {step:?},")?;
        }
        Ok(())
    }
}
