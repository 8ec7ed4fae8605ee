//! A layer that is still a blob: a compressed archive, of which each file can be had by itself.
//!
//! A blob comes from a registry, and its maker may be anybody. Nothing that it says is believed
//! before it was checked:
//!
//! - `footer` finds the table of contents (TOC) at the end of a blob, and checks its digest, which
//!   the image's manifest tells: eStargz, and zstd:chunked.
//! - `toc` reads it. What comes out is a list of [`entry::Told`], in the order of the archive.
//! - `tar` reads an archive, and makes such a list of one that has no TOC.
//! - `checkpoints` are the places at which an ordinary gzip blob can be read from its middle.
//! - `tree` makes a tree of that list by the rules by which an archive is unpacked, and refuses
//!   whatever would mean something else to another reader.
//! - `table` keeps on disk where the bytes of each file are; the rest is in the layer's index.
//! - `chunk` makes the bytes of a file of the blob's bytes, and holds them against their digest.
//! - `told` looks through what somebody else has found out of a blob.
//! - [`Contents`] is what all of these find out of a blob, to be written down.
//! - [`Files`] fetches a file when it is wanted, once for all who want it.
//! - `whole`, in [`Files`], reads a blob from its beginning to its end, and `compare` looks whether
//!   the layer is what its archive says.
//! - [`Cache`] keeps files that were fetched, under their digests.
//! - [`write`] makes such blobs of an archive.
//! - [`Limits`] is what all of them allow at most.

mod cache;
mod checkpoints;
mod chunk;
mod compare;
mod contents;
mod digest;
mod entry;
mod files;
mod footer;
mod limits;
mod table;
mod tar;
mod toc;
mod told;
mod tree;
pub mod write;

use std::path::PathBuf;

pub use cache::{Cache, Holds, Space};
pub use compare::implied_digest;
pub use contents::{Contents, Ordinary};
pub use digest::Digest;
pub use files::{Counts, Files, Flights, Here, Promised, Source, Whole, digests_in};
pub use footer::{Toc, estargz, zstd_chunked};
pub use limits::{Cap, Limits};
pub use told::check_told;

/// Why a blob is not used as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// It does not end as a blob of this format.
    #[error("it has no footer of {format}")]
    Footer {
        /// The format's name.
        format: &'static str,
    },
    /// An annotation of the manifest, which tells where the table of contents is, makes no sense.
    #[error("annotation {name}: it makes no sense: {value:?}")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The table of contents, or a chunk, is not what the manifest promises.
    #[error("{what} has digest {found}, and should have {wanted}")]
    Digest {
        /// What was looked at.
        what: &'static str,
        /// The digest that it has.
        found: Digest,
        /// The one that it should have.
        wanted: Digest,
    },
    /// Something can't be decompressed.
    #[error("cannot decompress {what}: {source}")]
    Compression {
        /// What it is.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The blob can't be read.
    #[error("cannot read it: {0}")]
    Source(std::io::Error),
    /// The table of contents is not the JSON that it should be.
    #[error("its table of contents: {0}")]
    Json(#[from] serde_json::Error),
    /// It asks for more than is allowed.
    #[error("{cap}: more than {limit}")]
    Limit {
        /// Of what.
        cap: Cap,
        /// What is allowed.
        limit: u64,
    },
    /// An entry makes no sense, or not the same to every reader.
    #[error("entry {path}: {what}", path = .path.display())]
    Entry {
        /// Its path, as the blob tells it.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The layer was found to be another one than its image says.
    #[error("it is not what its image says, and not served: remove the image ({why})")]
    Refused {
        /// What was found.
        why: String,
    },
}

impl Flaw {
    /// That reading failed: what a reader found out on the way, or a flaw of the compression.
    fn of_reading(what: &'static str, error: std::io::Error) -> Flaw {
        match error.downcast() {
            Ok(flaw) => flaw,
            Err(source) => Flaw::Compression { what, source },
        }
    }
}

/// The compression of a blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compression {
    /// gzip (RFC 1952), each piece a member of its own.
    Gzip,
    /// zstd (RFC 8878), each piece a frame of its own.
    Zstd,
    /// gzip, in members as they came: it is read from checkpoints.
    Checkpoints,
}

#[cfg(fuzzing)]
pub(crate) use table::seal_and_ask;

#[cfg(test)]
mod testing;
