//! Files as memory.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use memmap2::{Mmap, UncheckedAdvice};
use parking_lot::Mutex;

/// All files that are mapped now.
static ALL: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

/// A file's bytes, mapped read-only and shared with everybody who maps the same file.
#[derive(Debug)]
pub(crate) struct Map(Arc<Mmap>);

impl Map {
    /// Maps a file that nobody changes: what Lamina maps is only ever replaced by a rename.
    pub(crate) fn of(file: &File) -> io::Result<Map> {
        // SAFETY: the bytes may not change while they are borrowed. The files that are mapped are
        // written under another name, renamed, and never opened for writing again. They lie in
        // directories that only root may enter, or that the administrator named.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(file) }?;
        let map = Arc::new(map);
        let mut all = ALL.lock();
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&map));
        Ok(Map(map))
    }

    /// Takes the bytes out of this process's memory, as if nobody had read them yet. They stay in the
    /// kernel's cache, from which a read gets 64 KiB at a time without asking the disk.
    pub(crate) fn release(&self) {
        release(&self.0);
    }
}

/// [`Map::release`] for all files that are mapped.
pub(crate) fn release_all() {
    let all: Vec<Arc<Mmap>> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
    for map in all {
        release(&map);
    }
}

fn release(map: &Mmap) {
    // SAFETY: who reads a page of it afterwards gets that from the file again (madvise(2),
    // `MADV_DONTNEED` on a shared mapping), and the file does not change: see `Map::of`.
    #[allow(unsafe_code)]
    let released = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
    if let Err(error) = released {
        tracing::debug!(%error, "pages of a file stay in memory");
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// How many bytes of a mapping this process has in memory, by `/proc/self/smaps`.
    fn resident(path: &std::path::Path) -> u64 {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut of_file = maps
            .lines()
            .skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let rss = of_file.find(|line| line.starts_with("Rss:")).unwrap();
        let kib: u64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    #[test]
    fn what_is_released_takes_no_memory_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mapped");
        let bytes: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
        fs::write(&path, &bytes).unwrap();
        let map = Map::of(&File::open(&path).unwrap()).unwrap();
        for release in [Map::release, |_: &Map| release_all()] {
            assert!(*map == *bytes);
            assert!(resident(&path) > 0);
            release(&map);
            assert_eq!(resident(&path), 0);
        }
        assert!(*map == *bytes);
    }
}
