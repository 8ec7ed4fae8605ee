//! Two runs of one script beside each other.

use std::fmt::Debug;

use crate::differences::{Found, is_known};
use crate::run::{Outcome, Record};
use crate::script::{Op, Script};
use crate::seen::{Attributes, Seen, Tree};

/// Compares what overlayfs and Lamina did. An error says what differs, and should not.
pub(crate) fn runs(script: &Script, overlayfs: &Record, lamina: &Record) -> Result<(), String> {
    let mut comparison = Comparison::new(&[]);
    let outcomes = overlayfs.outcomes.iter().zip(&lamina.outcomes);
    for (number, (op, (theirs, ours))) in script.ops.iter().zip(outcomes).enumerate() {
        comparison.done = &script.ops[..=number];
        comparison
            .outcome(op, theirs, ours)
            .map_err(|error| format!("operation {number}, {op:?}: {error}"))?;
    }
    comparison
        .trees(&overlayfs.tree, &lamina.tree, |_| false)
        .map_err(|error| format!("in the end: {error}"))
}

/// A comparison, and what one has to know to judge what differs.
pub(crate) struct Comparison<'a> {
    op: Option<&'a Op>,
    done: &'a [Op],
    rename_failed: bool,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(done: &'a [Op]) -> Self {
        Self {
            op: None,
            done,
            rename_failed: false,
        }
    }

    fn outcome(&mut self, op: &'a Op, theirs: &Outcome, ours: &Outcome) -> Result<(), String> {
        let failed = matches!(theirs, Outcome::Failed(_));
        self.rename_failed |= failed && matches!(op, Op::Rename { .. });
        self.op = Some(op);
        match (theirs, ours) {
            (Outcome::Tree(theirs), Outcome::Tree(ours)) => self.trees(theirs, ours, |_| false),
            (Outcome::Attributes(theirs), Outcome::Attributes(ours)) => {
                self.attributes(theirs, ours)
            }
            _ => self.same(None, "result", theirs, ours),
        }
    }

    /// Compares two trees, but for the files of `ours` that `ignored` leaves out.
    pub(crate) fn trees(
        &mut self,
        theirs: &Tree,
        ours: &Tree,
        ignored: impl Fn(&Seen) -> bool,
    ) -> Result<(), String> {
        self.op = None;
        let (their_paths, our_paths): (Vec<_>, Vec<_>) =
            (theirs.keys().collect(), ours.keys().collect());
        self.same(None, "paths", &their_paths, &our_paths)?;
        for ((path, theirs), ours) in theirs.iter().zip(ours.values()) {
            if !ignored(ours) {
                self.seen(theirs, ours)
                    .map_err(|error| format!("{path}: {error}"))?;
            }
        }
        Ok(())
    }

    fn seen(&self, theirs: &Seen, ours: &Seen) -> Result<(), String> {
        self.attributes(&theirs.attributes, &ours.attributes)?;
        let of = Some(&ours.attributes);
        self.same(of, "xattrs", &theirs.xattrs, &ours.xattrs)?;
        self.same(of, "link group", &theirs.same_as, &ours.same_as)?;
        if theirs.content == ours.content {
            return Ok(());
        }
        let pairs = theirs.content.iter().zip(&ours.content);
        let first = pairs.take_while(|(theirs, ours)| theirs == ours).count();
        Err(format!("the content differs from byte {first} on"))
    }

    fn attributes(&self, theirs: &Attributes, ours: &Attributes) -> Result<(), String> {
        let of = Some(ours);
        let octal = |mode| format!("{mode:o}");
        self.same(of, "mode", &octal(theirs.mode), &octal(ours.mode))?;
        self.same(of, "owner", &theirs.owner, &ours.owner)?;
        self.same(of, "rdev", &theirs.rdev, &ours.rdev)?;
        self.same(of, "size", &theirs.size, &ours.size)?;
        self.same(of, "nlink", &theirs.nlink, &ours.nlink)?;
        self.same(of, "mtime", &theirs.mtime, &ours.mtime)
    }

    fn same<T: Debug + PartialEq>(
        &self,
        of: Option<&Attributes>,
        what: &'static str,
        theirs: &T,
        ours: &T,
    ) -> Result<(), String> {
        if theirs == ours {
            return Ok(());
        }
        let found = Found {
            op: self.op,
            done: self.done,
            rename_failed: self.rename_failed,
            of,
            what,
            overlayfs: format!("{theirs:?}"),
            lamina: format!("{ours:?}"),
        };
        if is_known(&found) {
            Ok(())
        } else {
            Err(found.to_string())
        }
    }
}
