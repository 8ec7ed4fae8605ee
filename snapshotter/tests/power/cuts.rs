//! What a disk may hold when its power goes, by what it was told.
//!
//! A disk with a volatile cache promises one thing: what was written before a flush is there after
//! it. Of what was written since, each sector may have come to the platter or not, in any order.

use std::ops::AddAssign;

use fastrand::Rng;

use super::disk::{Entry, Sparse};

/// What becomes of the writes since the last flush.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cache {
    /// None has come to the platter.
    Lost,
    /// All have.
    Kept,
    /// So many of a hundred have, whichever, and some of those only in part.
    Torn { percent: u8 },
}

impl Cache {
    pub(crate) fn any(chance: &mut Rng) -> Cache {
        match chance.u8(0..10) {
            0..3 => Cache::Lost,
            3 => Cache::Kept,
            _ => Cache::Torn {
                percent: chance.u8(5..=95),
            },
        }
    }
}

/// How many writes a cut met, and what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// Writes since the last flush.
    pub(crate) cached: u64,
    pub(crate) lost: u64,
    pub(crate) torn: u64,
}

impl AddAssign for Losses {
    fn add_assign(&mut self, other: Losses) {
        self.cached += other.cached;
        self.lost += other.lost;
        self.torn += other.torn;
    }
}

/// A log that is played once from its beginning to its end.
pub(crate) struct Replay<'l> {
    entries: &'l [Entry],
    /// What the disk writes whole or not at all, in bytes.
    sector: u64,
    /// What is on the platter for certain: all that was written before entry `next`.
    platter: Sparse,
    next: usize,
}

impl<'l> Replay<'l> {
    /// Begins with a disk as it was before the first entry.
    pub(crate) fn new(start: &Sparse, entries: &'l [Entry], sector: u64) -> Replay<'l> {
        Replay {
            entries,
            sector,
            platter: start.clone(),
            next: 0,
        }
    }

    /// What the disk holds if the power goes when it has been told `at` entries. A later call may
    /// not go back.
    pub(crate) fn cut(&mut self, at: usize, cache: Cache, chance: &mut Rng) -> (Sparse, Losses) {
        let told = &self.entries[..at];
        let is_flush = |entry: &Entry| matches!(entry, Entry::Flush);
        let flushed = told.iter().rposition(is_flush).map_or(0, |last| last + 1);
        for entry in self.entries.get(self.next..flushed).unwrap_or_default() {
            if let Entry::Write { offset, data } = entry {
                self.platter.write(*offset, data);
            }
        }
        self.next = self.next.max(flushed);
        let mut disk = self.platter.clone();
        let mut losses = Losses::default();
        for entry in &told[self.next..] {
            let Entry::Write { offset, data } = entry else {
                continue;
            };
            losses.cached += 1;
            let is_kept = match cache {
                Cache::Lost => false,
                Cache::Kept => true,
                Cache::Torn { percent } => chance.u8(0..100) < percent,
            };
            let is_torn = matches!(cache, Cache::Torn { .. }) && chance.u8(0..4) == 0;
            if is_kept && is_torn {
                losses.torn += 1;
                let (mut at, mut rest) = (*offset, &data[..]);
                while !rest.is_empty() {
                    let left = self.sector - at % self.sector;
                    let left =
                        usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    let (piece, behind) = rest.split_at(left);
                    if chance.bool() {
                        disk.write(at, piece);
                    }
                    at += piece.len() as u64;
                    rest = behind;
                }
            } else if is_kept {
                disk.write(*offset, data);
            } else {
                losses.lost += 1;
            }
        }
        (disk, losses)
    }
}

#[test]
fn what_was_flushed_is_there_and_the_rest_may_be() {
    let write = |offset: u64, byte: u8| Entry::Write {
        offset,
        data: vec![byte; 1024].into(),
    };
    let log = [write(0, 1), Entry::Flush, write(0, 2), write(4096, 3)];
    let start = Sparse::of(&[0; 8192]);
    let mut chance = Rng::with_seed(1);
    let mut cut = |at, cache| {
        let (disk, losses) = Replay::new(&start, &log, 512).cut(at, cache, &mut chance);
        let first = |offset| disk.read(offset, 1)[0];
        (first(0), first(4096), losses.lost)
    };
    assert_eq!(cut(0, Cache::Lost), (0, 0, 0));
    assert_eq!(cut(1, Cache::Lost), (0, 0, 1));
    assert_eq!(cut(2, Cache::Lost), (1, 0, 0));
    assert_eq!(cut(4, Cache::Lost), (1, 0, 2));
    assert_eq!(cut(4, Cache::Kept), (2, 3, 0));
    let torn: std::collections::BTreeSet<_> = (0..100)
        .map(|_| cut(4, Cache::Torn { percent: 50 }))
        .map(|(low, high, _)| (low, high))
        .collect();
    assert_eq!(torn.len(), 4, "in any order: {torn:?}");
}
