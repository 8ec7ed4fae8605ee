//! Files as memory.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// A file's bytes, mapped read-only and shared with everybody who maps the same file.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps a file that nobody changes: what Lamina maps is only ever replaced by a rename.
    pub(crate) fn of(file: &File) -> io::Result<Map> {
        // SAFETY: the bytes may not change while they are borrowed. The files that are mapped are
        // written under another name, renamed, and never opened for writing again. They lie in
        // directories that only root may enter, or that the administrator named.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(file) }?;
        Ok(Map(map))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
