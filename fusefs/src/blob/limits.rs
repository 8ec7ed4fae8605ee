//! How much a blob may ask for.

/// What Lamina takes from one blob at most. Whoever made the blob chose every number in it, so
/// each of them is held against one of these before anything is allocated by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of a table of contents, compressed and uncompressed.
    pub toc_bytes: u64,
    /// Entries of a layer, the chunks of files included.
    pub entries: usize,
    /// Directories above an entry.
    pub depth: usize,
    /// Bytes of all xattrs of one entry, names and values (`XATTR_LIST_MAX` and `XATTR_SIZE_MAX`).
    pub xattr_bytes: usize,
    /// Uncompressed bytes of one chunk.
    pub chunk_bytes: u64,
    /// Uncompressed bytes of all files of a layer.
    pub layer_bytes: u64,
}

impl Default for Limits {
    /// Far beyond what images have: two million entries, 1 TiB; and what this costs at most is a
    /// few hundred megabytes of memory, for a moment.
    fn default() -> Limits {
        Limits {
            toc_bytes: 256 << 20,
            entries: 2_000_000,
            depth: 1024,
            xattr_bytes: 64 << 10,
            chunk_bytes: 64 << 20,
            layer_bytes: 1 << 40,
        }
    }
}
