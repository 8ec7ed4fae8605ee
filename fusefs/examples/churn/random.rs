//! What a worker does next: random, and again the same with the same seed.

/// Longest write, and largest offset.
pub(crate) const LENGTH: u64 = 30_000;
pub(crate) const OFFSET: u64 = 150_000;

/// Names of each worker in one directory: few, so that calls meet what others have left.
pub(crate) const NAMES: u64 = 12;

/// Directories that all workers share.
pub(crate) const SHARED: u64 = 4;

/// A small generator of random numbers (xorshift): the same seed gives the same calls.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(id: u64, seed: u64) -> Self {
        Self((id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed + 1).wrapping_mul(0xbf58_476d))
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    /// A name that belongs to one worker, wherever it is.
    pub(crate) fn name(&mut self, id: u64) -> String {
        format!("w{id}-{}", self.below(NAMES))
    }

    /// A path of one worker, below directories that may not be there.
    pub(crate) fn path(&mut self, id: u64) -> String {
        let mut path = match self.below(3) {
            0 => format!("shared/d{}", self.below(SHARED)),
            _ => format!("w{id}"),
        };
        for _ in 0..=self.below(3) {
            path = format!("{path}/{}", self.name(id));
        }
        path
    }

    pub(crate) fn data(&mut self) -> Vec<u8> {
        let (first, length) = (self.below(256), self.below(LENGTH));
        (0..length).map(|n| (first + n / 7) as u8).collect()
    }
}
