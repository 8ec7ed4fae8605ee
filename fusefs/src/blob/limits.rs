//! How much a blob may ask for.

use std::fmt;

use super::Flaw;

/// What Lamina takes from one blob at most. Whoever made the blob chose every number in it, so
/// each of them is held against one of these before anything is allocated by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of a table of contents, compressed and uncompressed.
    pub toc_bytes: u64,
    /// Entries of a layer.
    pub entries: usize,
    /// Chunks of all files of a layer.
    pub chunks: usize,
    /// Names in the path of an entry.
    pub depth: usize,
    /// Bytes of a name. No file system takes more than 255.
    pub name_bytes: usize,
    /// Bytes of the path of an entry.
    pub path_bytes: usize,
    /// Bytes of all xattrs of one entry, names and values.
    pub xattr_bytes: usize,
    /// Uncompressed bytes of one chunk.
    pub chunk_bytes: u64,
    /// Uncompressed bytes of a layer: of its archive where that is read, else of all its files.
    pub layer_bytes: u64,
    /// The same of all layers of an image that are blobs.
    pub image_bytes: u64,
    /// What of [`Limits::image_bytes`] the layers below have.
    pub below_bytes: u64,
    /// So many uncompressed bytes may come of each compressed one.
    pub ratio: u64,
    /// So many uncompressed bytes of a layer are fine whatever they came from.
    pub ratio_floor: u64,
    /// The window of a zstd frame that is read as a stream, as a power of two.
    pub window_log: u32,
}

impl Default for Limits {
    /// Far beyond what images have. A table of contents that is at all of its limits costs 1.1 GB of
    /// memory while it is read.
    fn default() -> Limits {
        Limits {
            toc_bytes: 256 << 20,
            entries: 500_000,
            chunks: 1_000_000,
            depth: 1024,
            name_bytes: 255,
            path_bytes: 4095,
            xattr_bytes: 64 << 10,
            chunk_bytes: 64 << 20,
            layer_bytes: 1 << 40,
            image_bytes: 4 << 40,
            below_bytes: 0,
            ratio: 200,
            ratio_floor: 1 << 30,
            window_log: 27,
        }
    }
}

impl Limits {
    /// The largest chunk that any configuration may allow. What was written down of a layer is read
    /// with this, so that a layer stays readable that was made under other limits.
    pub const CHUNK_MOST: u64 = 1 << 30;

    /// Limits for what was held against some when it was written down.
    #[must_use]
    pub fn of_written() -> Limits {
        Limits {
            chunk_bytes: Limits::CHUNK_MOST,
            ..Limits::default()
        }
    }

    /// Whether a layer may have so many uncompressed bytes, of so many compressed ones (if that is
    /// known).
    pub(crate) fn check_bytes(&self, bytes: u64, of: Option<u64>) -> Result<(), Flaw> {
        if bytes > self.layer_bytes {
            return Err(self.exceeded(Cap::Layer));
        }
        if bytes.saturating_add(self.below_bytes) > self.image_bytes {
            return Err(self.exceeded(Cap::Image));
        }
        let most = of.map(|of| self.ratio.saturating_mul(of).max(self.ratio_floor));
        match most {
            Some(most) if bytes > most => Err(self.exceeded(Cap::Ratio)),
            _ => Ok(()),
        }
    }

    /// That a blob asks for more than one of the limits.
    pub(crate) fn exceeded(&self, cap: Cap) -> Flaw {
        let limit = match cap {
            Cap::Toc => self.toc_bytes,
            Cap::Entries => self.entries as u64,
            Cap::Chunks => self.chunks as u64,
            Cap::Depth => self.depth as u64,
            Cap::Name => self.name_bytes as u64,
            Cap::Path => self.path_bytes as u64,
            Cap::Xattrs => self.xattr_bytes as u64,
            Cap::Chunk => self.chunk_bytes,
            Cap::Layer => self.layer_bytes,
            Cap::Image => self.image_bytes,
            Cap::Ratio => self.ratio,
            Cap::Window => 1u64.checked_shl(self.window_log).unwrap_or(u64::MAX),
        };
        Flaw::Limit { cap, limit }
    }
}

/// One of the [`Limits`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cap {
    /// [`Limits::toc_bytes`]
    Toc,
    /// [`Limits::entries`]
    Entries,
    /// [`Limits::chunks`]
    Chunks,
    /// [`Limits::depth`]
    Depth,
    /// [`Limits::name_bytes`]
    Name,
    /// [`Limits::path_bytes`]
    Path,
    /// [`Limits::xattr_bytes`]
    Xattrs,
    /// [`Limits::chunk_bytes`]
    Chunk,
    /// [`Limits::layer_bytes`]
    Layer,
    /// [`Limits::image_bytes`]
    Image,
    /// [`Limits::ratio`]
    Ratio,
    /// [`Limits::window_log`]
    Window,
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cap::Toc => "bytes of the table of contents",
            Cap::Entries => "entries",
            Cap::Chunks => "chunks",
            Cap::Depth => "names in a path",
            Cap::Name => "bytes of a name",
            Cap::Path => "bytes of a path",
            Cap::Xattrs => "bytes of an entry's extended attributes",
            Cap::Chunk => "bytes of a chunk",
            Cap::Layer => "bytes of the layer, uncompressed",
            Cap::Image => "bytes of the image, uncompressed",
            Cap::Ratio => "uncompressed bytes for each compressed one",
            Cap::Window => "bytes of a zstd window",
        })
    }
}

#[cfg(test)]
mod tests;
