//! The bytes of a file, from its seed: every page of 4 KiB by itself, so that a reader can check
//! any page without the ones before it.

use fastrand::Rng;
use twox_hash::XxHash3_64;

/// The unit in which bytes are made.
pub const PAGE: usize = 4096;

/// Fills `buffer` with the bytes of the file of `seed` from the page `first` on.
pub fn fill(seed: u64, first: u64, buffer: &mut [u8]) {
    for (page, bytes) in (first..).zip(buffer.chunks_mut(PAGE)) {
        page_rng(seed, page).fill(bytes);
    }
}

/// All bytes of a small file.
pub fn whole(seed: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    fill(seed, 0, &mut bytes);
    bytes
}

/// Whether `bytes` begin as page `page` of the file of `seed` does. Looks at eight bytes alone, so
/// that checking costs a reader nothing that could be measured.
pub fn begins_like(seed: u64, page: u64, bytes: &[u8]) -> bool {
    let mut start = [0; 8];
    page_rng(seed, page).fill(&mut start);
    bytes.starts_with(&start)
}

/// A number that stands for these bytes.
pub fn digest(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The digest of the first `size` bytes of the file of `seed`, made piece by piece.
pub fn digest_of_file(seed: u64, size: u64) -> u64 {
    let mut digest = Digest::default();
    let mut piece = vec![0; 1 << 20];
    let (mut page, mut left) = (0, size);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        fill(seed, page, &mut piece[..length]);
        digest.add(&piece[..length]);
        page += (length / PAGE) as u64;
        left -= length as u64;
    }
    digest.finish()
}

/// [`digest`] of bytes that come piece by piece.
#[derive(Default)]
pub struct Digest(XxHash3_64);

impl Digest {
    /// Adds the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        std::hash::Hasher::write(&mut self.0, bytes);
    }

    /// The digest of all bytes.
    pub fn finish(&self) -> u64 {
        std::hash::Hasher::finish(&self.0)
    }
}

fn page_rng(seed: u64, page: u64) -> Rng {
    Rng::with_seed(seed ^ (page + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_does_not_depend_on_the_ones_before() {
        let file = whole(7, 3 * PAGE as u64 + 10);
        let mut second = vec![0; PAGE];
        fill(7, 1, &mut second);
        assert_eq!(file[PAGE..2 * PAGE], second);
        assert!(begins_like(7, 1, &second));
        assert!(!begins_like(7, 2, &second) && !begins_like(8, 1, &second));
    }

    #[test]
    fn pieces_and_the_whole_have_one_digest() {
        let size = (2 << 20) + 5000;
        assert_eq!(digest(&whole(3, size)), digest_of_file(3, size));
        assert_ne!(digest_of_file(4, size), digest_of_file(3, size));
    }
}
