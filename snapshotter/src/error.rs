//! What can go wrong, as one type, and the one map from it to gRPC's codes.
//!
//! A message says what was refused, names the key or the path, and says what to do next where
//! that is not plain. containerd decides by the code alone: `AlreadyExists` on `Prepare` means
//! "somebody else unpacked it", `NotFound` on `Remove` means "done already", so a wrong code is a
//! wrong answer. [`Error::code`] is the only place that chooses one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::store::records::Kind;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a verb, or the daemon, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No snapshot has this key.
    #[error("snapshot {} does not exist", Shown(.key))]
    NotFound {
        /// The key that was asked for.
        key: String,
    },
    /// The parent of a new snapshot does not exist.
    #[error("parent snapshot {} does not exist", Shown(.parent))]
    ParentNotFound {
        /// The key that was named as the parent.
        parent: String,
    },
    /// The parent of a new snapshot is not committed.
    #[error("parent snapshot {} is not committed: commit it first", Shown(.parent))]
    ParentNotCommitted {
        /// The key that was named as the parent.
        parent: String,
    },
    /// The key or name is taken.
    #[error("snapshot {} exists already", Shown(.key))]
    AlreadyExists {
        /// The key or name.
        key: String,
    },
    /// The verb needs another kind of snapshot.
    #[error("cannot {verb} snapshot {}: it is {kind}, not {needed}", Shown(.key))]
    WrongKind {
        /// What was asked for.
        verb: &'static str,
        /// The snapshot's key.
        key: String,
        /// What the snapshot is.
        kind: Kind,
        /// What it would have to be.
        needed: &'static str,
    },
    /// A snapshot with children can't be removed.
    #[error("cannot remove snapshot {}: remove its child {} first", Shown(.key), Shown(.child))]
    HasChildren {
        /// The snapshot's key.
        key: String,
        /// One of its children.
        child: String,
    },
    /// A key or name that is not allowed.
    #[error("the {what} {} {reason}", Shown(.key))]
    BadKey {
        /// "key" or "name".
        what: &'static str,
        /// The text.
        key: String,
        /// What is wrong with it, as the end of the sentence.
        reason: &'static str,
    },
    /// A label that is not allowed.
    #[error("the label {} and its value are {length} bytes long together: at most 4096 are allowed", Shown(.label))]
    BadLabel {
        /// The label's name.
        label: String,
        /// Bytes of name and value.
        length: usize,
    },
    /// Labels that say how users are shifted, and don't.
    #[error("cannot shift users: {reason}")]
    BadIdMap {
        /// What is wrong with them.
        reason: String,
    },
    /// Labels that say who holds an upper, and make no sense.
    #[error("cannot tell who holds the upper: {reason}")]
    BadUpper {
        /// What is wrong with them.
        reason: String,
    },
    /// A view can't have shifted users: it shares its mount with other views.
    #[error("cannot shift the users of the view {}: only those of a snapshot that Prepare makes", Shown(.key))]
    ShiftedView {
        /// The snapshot's key.
        key: String,
    },
    /// Update was asked to change something that can't change.
    #[error("cannot update the field {} of snapshot {}: only \"labels\" and \"labels.NAME\" can change", Shown(.path), Shown(.key))]
    BadFieldPath {
        /// The path in the field mask.
        path: String,
        /// The snapshot's key.
        key: String,
    },
    /// A request without a part that it must have.
    #[error("the request has no {0}")]
    Incomplete(&'static str),
    /// A filter that can't be read.
    #[error("cannot read the filter: {0}")]
    BadFilter(String),
    /// A system call failed.
    #[error("{action} {}: {source}{}", .path.display(), Advice(Some(.source)))]
    Io {
        /// What was tried, as a phrase that ends before the path: "cannot create".
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The union could not be mounted.
    #[error("cannot mount the file system of snapshot {id} on {}: {source}{}", .path.display(), Advice(io_of(.source)))]
    Mount {
        /// Number of the snapshot.
        id: u64,
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: lamina_fusefs::Error,
    },
    /// The disk failed to take what was written while the snapshot was active.
    #[error(
        "cannot commit snapshot {id}: the disk failed since it was made, and what was written to it may be lost; remove it, and make it again"
    )]
    Lost {
        /// Number of the snapshot.
        id: u64,
    },
    /// What the work directory knew could not be moved into the upper at a commit.
    #[error("cannot complete snapshot {id} to a layer: {source}; it stays active, commit it again{}", Advice(io_of(.source)))]
    Seal {
        /// Number of the snapshot.
        id: u64,
        /// Why.
        source: lamina_fusefs::Error,
    },
    /// The cache of layers that are not unpacked can't be opened.
    #[error("the cache of lazy layers in {}: {source}", .path.display())]
    Cache {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: lamina_fusefs::Error,
    },
    /// A layer can't be served without being unpacked. No verb fails for it.
    #[error("{source}")]
    Lazy {
        /// Why.
        source: Box<crate::lazy::LazyError>,
    },
    /// A transaction of the metadata store failed.
    #[error("{}: {source}{}", .path.display(), Advice(io_of_store(.source)))]
    Store {
        /// The store's file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// The metadata store is damaged.
    #[error(
        "{} is damaged ({reason}); it was left as it is: restore it from a backup, or move it away together with the rest of the root directory to begin anew",
        .path.display()
    )]
    CorruptStore {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There are snapshots on the disk, but no metadata store.
    #[error(
        "{} is missing, but {} holds {count} snapshots: restore the file, or move the directory away to begin anew",
        .path.display(), .snapshots.display()
    )]
    MissingStore {
        /// Where the store's file should be.
        path: PathBuf,
        /// The directory of the snapshots.
        snapshots: PathBuf,
        /// How many directories it has.
        count: usize,
    },
    /// Another process uses the root directory.
    #[error("another Lamina runs on {}: stop it first, or use another root directory", .path.display())]
    RootInUse {
        /// The root directory.
        path: PathBuf,
    },
    /// A mount was left by a newer Lamina, whose record this one can't read.
    #[error(
        "{} was served by a newer Lamina (its record has version {version}, this one reads those up to {}); everything was left as it is, and containers wait: start the newer version again",
        .path.display(), lamina_fusefs::record::VERSION
    )]
    NewerMount {
        /// The mount point.
        path: PathBuf,
        /// The record's version.
        version: u64,
    },
    /// The directory can't be a root directory.
    #[error("{} cannot be the root directory: {reason}", .path.display())]
    BadRoot {
        /// The directory.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// Something listens on the socket.
    #[error("another process answers on {}: stop it first, or use another address", .path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file that is no socket is in the socket's place.
    #[error("{} exists and is not a socket: remove it, or use another address", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The gRPC server, or a call of a client of ours, failed.
    #[error("gRPC on {}: {reason}", .path.display())]
    Grpc {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A thread that ran a verb ended without an answer.
    #[error("the call ended without an answer: {0}")]
    Broken(String),
}

/// gRPC's status codes, as far as this service answers with them. The numbers are gRPC's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
pub enum Code {
    /// The caller's arguments are wrong, whatever the state of the store.
    InvalidArgument = 3,
    /// The thing asked for does not exist.
    NotFound = 5,
    /// The thing to be made exists.
    AlreadyExists = 6,
    /// No space, or no quota, left on the disk.
    ResourceExhausted = 8,
    /// The state of the snapshot does not allow it.
    FailedPrecondition = 9,
    /// Something broke that the caller can do nothing about.
    Internal = 13,
    /// The store is damaged.
    DataLoss = 15,
}

impl Error {
    /// The gRPC code that says what this error means to containerd.
    pub fn code(&self) -> Code {
        match self {
            Error::NotFound { .. } | Error::ParentNotFound { .. } => Code::NotFound,
            Error::AlreadyExists { .. } => Code::AlreadyExists,
            // containerd's own store calls a parent that is not committed an invalid argument
            // (snapshots/storage/bolt.go, CreateSnapshot).
            Error::ParentNotCommitted { .. }
            | Error::BadKey { .. }
            | Error::BadLabel { .. }
            | Error::BadIdMap { .. }
            | Error::BadUpper { .. }
            | Error::ShiftedView { .. }
            | Error::BadFieldPath { .. }
            | Error::Incomplete(_)
            | Error::BadFilter(_) => Code::InvalidArgument,
            Error::WrongKind { .. }
            | Error::HasChildren { .. }
            | Error::RootInUse { .. }
            | Error::NewerMount { .. }
            | Error::BadRoot { .. }
            | Error::SocketInUse { .. }
            | Error::NotASocket { .. } => Code::FailedPrecondition,
            Error::Io { source, .. } => code_of_io(source),
            Error::Mount { source, .. }
            | Error::Seal { source, .. }
            | Error::Cache { source, .. } => io_of(source).map_or(Code::Internal, code_of_io),
            Error::Store { source, .. } => io_of_store(source).map_or(Code::Internal, code_of_io),
            Error::CorruptStore { .. } | Error::MissingStore { .. } | Error::Lost { .. } => {
                Code::DataLoss
            }
            Error::Grpc { .. } | Error::Broken(_) | Error::Lazy { .. } => Code::Internal,
        }
    }

    /// Makes an `io::Error` (or an errno) into an [`Error::Io`], for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::Io {
            action,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }
}

fn code_of_io(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ if is_out_of_descriptors(error) => Code::ResourceExhausted,
        // A kernel that lacks what the snapshot needs; a root that somebody has to make writable.
        io::ErrorKind::Unsupported | io::ErrorKind::ReadOnlyFilesystem => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

/// The system call's error in an error of the union.
fn io_of(error: &lamina_fusefs::Error) -> Option<&io::Error> {
    match error {
        lamina_fusefs::Error::Io(source) | lamina_fusefs::Error::Path { source, .. } => {
            Some(source)
        }
        _ => None,
    }
}

/// The same in an error of the store.
fn io_of_store(error: &redb::Error) -> Option<&io::Error> {
    match error {
        redb::Error::Io(source) => Some(source),
        _ => None,
    }
}

/// What to do about a system call's error, as the end of a message, where that is not plain.
struct Advice<'a>(Option<&'a io::Error>);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.and_then(Errno::from_io_error) {
            Some(Errno::ROFS) => f.write_str(
                "; nothing can change until it is writable again: see the kernel's log for why it is \
                 not, and remount it; after an error of the disk, stop what uses it, unmount it, and \
                 repair it",
            ),
            Some(Errno::IO) => f.write_str(
                "; the disk or its file system failed: see the kernel's log; once the disk is well \
                 again, it may have to be unmounted and mounted anew",
            ),
            Some(Errno::MFILE | Errno::NFILE) => f.write_str(
                "; too many files are open: raise the limit of open files (LimitNOFILE= in the unit)",
            ),
            _ => Ok(()),
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

/// A key in a message: quoted, with control characters escaped, and cut when it is so long that
/// the message would not fit into gRPC's trailers.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 256;
        match self.0.char_indices().nth(MOST) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => {
                write!(f, "{:?}... ({} bytes)", &self.0[..end], self.0.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> io::Error {
        io::Error::from_raw_os_error(28)
    }

    #[test]
    fn a_full_disk_is_resource_exhausted_wherever_it_shows() {
        let io = Error::io("cannot create", "/x")(full());
        assert_eq!(io.code(), Code::ResourceExhausted);
        assert_eq!(
            io.to_string(),
            "cannot create /x: No space left on device (os error 28)"
        );
        let quota = Error::io("cannot create", "/x")(io::Error::from_raw_os_error(122));
        assert_eq!(quota.code(), Code::ResourceExhausted);
        let store = Error::Store {
            path: "/x".into(),
            source: Box::new(redb::Error::Io(full())),
        };
        assert_eq!(store.code(), Code::ResourceExhausted);
        let mount = Error::Mount {
            id: 1,
            path: "/x".into(),
            source: full().into(),
        };
        assert_eq!(mount.code(), Code::ResourceExhausted);
        let denied = Error::io("cannot create", "/x")(io::Error::from_raw_os_error(13));
        assert_eq!(denied.code(), Code::Internal);
    }

    #[test]
    fn what_is_read_only_or_broken_says_what_to_do() {
        let of = |errno: Errno| Error::io("cannot create", "/x")(errno);
        assert_eq!(of(Errno::ROFS).code(), Code::FailedPrecondition);
        assert!(of(Errno::ROFS).to_string().contains("remount it"));
        assert_eq!(of(Errno::IO).code(), Code::Internal);
        assert_eq!(of(Errno::MFILE).code(), Code::ResourceExhausted);
        assert!(of(Errno::NFILE).to_string().contains("LimitNOFILE="));
        let store = Error::Store {
            path: "/x".into(),
            source: Box::new(redb::Error::Io(Errno::ROFS.into())),
        };
        assert_eq!(store.code(), Code::FailedPrecondition);
        let seal = Error::Seal {
            id: 1,
            source: Errno::IO.into(),
        };
        assert!(seal.to_string().contains("the kernel's log"), "{seal}");
    }

    #[test]
    fn a_long_or_wild_key_is_cut_and_escaped() {
        let text = Error::NotFound {
            key: "ä\n".repeat(3000),
        }
        .to_string();
        assert!(text.len() < 1200, "{} bytes", text.len());
        assert!(text.contains("\\n") && !text.contains('\n'));
        assert!(text.ends_with("... (9000 bytes) does not exist"), "{text}");
    }
}
