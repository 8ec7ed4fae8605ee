//! What is written down, and how: one entry for each change.
//!
//! All numbers are little-endian. An entry is `length: u32` (of all of it), `kind: u8`, three bytes of
//! zeros, `unique: u64` and `slot: u32` of the request that it belongs to (zeros: none), then what its kind
//! has. Names and paths come last, each as `length: u32` and bytes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::state::{HandleState, Numbers};
use crate::types::{Fh, FileKind, Ino, NodeId};

/// One request of the client, and the slot where what belongs to it is remembered until the slot has
/// another one. Unique 0: none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ticket {
    /// The client's number of the request.
    pub(crate) unique: u64,
    pub(crate) slot: u32,
}

/// A name in a directory.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Place {
    pub(crate) parent: NodeId,
    pub(crate) name: OsString,
}

impl Place {
    pub(crate) fn new(parent: NodeId, name: &OsStr) -> Place {
        let name = name.to_owned();
        Place { parent, name }
    }
}

/// A change of names that is about to be made on the disk. It is made by one step there, so that a
/// look at the disk says whether it was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Intent {
    /// Something new at a name that was free.
    Make(Place),
    /// One more name, that was free, for a node.
    Link(NodeId, Place),
    /// A name goes, which the inode of this number had.
    Remove(Place, Ino),
    /// The node gets the second name instead of the first; with `exchange` the one that had it gets
    /// the first.
    Rename {
        node: NodeId,
        from: Place,
        to: Place,
        exchange: Option<NodeId>,
    },
    /// An extended attribute that was not there is set, or one that was there goes.
    Xattr,
}

/// One change of what a union knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    /// A new node, to which the client has so many references.
    Node {
        id: NodeId,
        generation: u32,
        ino: Ino,
        kind: FileKind,
        lookups: i64,
    },
    /// A node has one more name.
    Name(NodeId, Place),
    /// A node lost a name.
    Unname(NodeId, Place),
    /// A node has the second name instead of the first.
    Moved(NodeId, Place, Place),
    /// The client got references to a node, or gave some back.
    Refer(NodeId, i64),
    /// A node is no longer known.
    Gone(NodeId),
    /// The first node, which exists, took over from the second, with its names.
    Succeed(NodeId, NodeId),
    /// Where the image has a node's file: it may soon be found by no name.
    Image(NodeId, OsString),
    /// A handle was opened.
    Open(Fh, HandleState),
    /// A handle is about to be closed.
    Close(Fh),
    /// The client's number for the file behind the handles of a node (0: it has none for it).
    Attach(NodeId, u32),
    /// A change of names begins.
    Begin(Intent),
    /// The change of names that began for this request has been made and written down, or failed.
    End(bool),
    /// Nothing belongs to the slot any more.
    Clear,
    /// Numbers below these were given out: of generations, nodes, handles; the last attached one.
    Numbers(Numbers),
}

impl Entry {
    /// Appends the entry to `bytes`.
    pub(super) fn encode(&self, ticket: Ticket, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.extend([0, 0, 0, 0, self.kind(), 0, 0, 0]);
        bytes.extend(ticket.unique.to_le_bytes());
        bytes.extend(ticket.slot.to_le_bytes());
        let mut to = Writer(bytes);
        match self {
            Entry::Node {
                id,
                generation,
                ino,
                kind,
                lookups,
            } => {
                to.u64(id.0);
                to.u32(*generation);
                to.u64(ino.0);
                to.u32(kind_number(*kind));
                to.u64(lookups.cast_unsigned());
            }
            Entry::Name(id, place) | Entry::Unname(id, place) => {
                to.u64(id.0);
                to.place(place);
            }
            Entry::Moved(id, from, into) => {
                to.u64(id.0);
                to.place(from);
                to.place(into);
            }
            Entry::Refer(id, count) => {
                to.u64(id.0);
                to.u64(count.cast_unsigned());
            }
            Entry::Gone(id) => to.u64(id.0),
            Entry::Succeed(id, old) => {
                to.u64(id.0);
                to.u64(old.0);
            }
            Entry::Image(id, path) => {
                to.u64(id.0);
                to.text(path);
            }
            Entry::Open(fh, handle) => {
                to.u64(fh.0);
                to.u64(handle.node.0);
                let flags = [handle.above, handle.runs, handle.writes_need_us].map(u32::from);
                to.u32(flags[0] | flags[1] << 1 | flags[2] << 2);
            }
            Entry::Close(fh) => to.u64(fh.0),
            Entry::Attach(id, number) => {
                to.u64(id.0);
                to.u32(*number);
            }
            Entry::Begin(intent) => to.intent(intent),
            Entry::End(done) => to.u32(u32::from(*done)),
            Entry::Clear => {}
            Entry::Numbers(numbers) => {
                to.u32(numbers.generation);
                to.u64(numbers.node);
                to.u64(numbers.fh);
                to.u32(numbers.attached);
            }
        }
        // No entry is so long: a name has 255 bytes, and a path fits into memory.
        let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
        bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn kind(&self) -> u8 {
        match self {
            Entry::Node { .. } => 1,
            Entry::Name(..) => 2,
            Entry::Unname(..) => 3,
            Entry::Moved(..) => 4,
            Entry::Refer(..) => 5,
            Entry::Gone(_) => 6,
            Entry::Succeed(..) => 7,
            Entry::Image(..) => 8,
            Entry::Open(..) => 9,
            Entry::Close(_) => 10,
            Entry::Attach(..) => 11,
            Entry::Begin(_) => 12,
            Entry::End(_) => 13,
            Entry::Clear => 14,
            Entry::Numbers(_) => 15,
        }
    }

    /// Takes the first entry off `bytes`; `None` if they don't begin with one.
    pub(super) fn decode(bytes: &mut &[u8]) -> Option<(Ticket, Entry)> {
        let length = u32::from_le_bytes(*bytes.first_chunk()?);
        let (all, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
        let mut from = Reader(all.get(4..)?);
        let [kind, 0, 0, 0] = from.array()? else {
            return None;
        };
        let ticket = Ticket {
            unique: from.u64()?,
            slot: from.u32()?,
        };
        let entry = match kind {
            1 => Entry::Node {
                id: from.node()?,
                generation: from.u32()?,
                ino: Ino(from.u64()?),
                kind: numbered_kind(from.u32()?)?,
                lookups: from.u64()?.cast_signed(),
            },
            2 => Entry::Name(from.node()?, from.place()?),
            3 => Entry::Unname(from.node()?, from.place()?),
            4 => Entry::Moved(from.node()?, from.place()?, from.place()?),
            5 => Entry::Refer(from.node()?, from.u64()?.cast_signed()),
            6 => Entry::Gone(from.node()?),
            7 => Entry::Succeed(from.node()?, from.node()?),
            8 => Entry::Image(from.node()?, from.text()?),
            9 => {
                let (fh, node, flags) = (Fh(from.u64()?), from.node()?, from.u32()?);
                let handle = HandleState {
                    node,
                    above: flags & 1 != 0,
                    runs: flags & 2 != 0,
                    writes_need_us: flags & 4 != 0,
                };
                Entry::Open(fh, handle)
            }
            10 => Entry::Close(Fh(from.u64()?)),
            11 => Entry::Attach(from.node()?, from.u32()?),
            12 => Entry::Begin(from.intent()?),
            13 => Entry::End(from.u32()? != 0),
            14 => Entry::Clear,
            15 => Entry::Numbers(Numbers {
                generation: from.u32()?,
                node: from.u64()?,
                fh: from.u64()?,
                attached: from.u32()?,
            }),
            _ => return None,
        };
        if !from.0.is_empty() {
            return None;
        }
        *bytes = rest;
        Some((ticket, entry))
    }
}

struct Writer<'b>(&'b mut Vec<u8>);

impl Writer<'_> {
    fn u32(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &OsStr) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.as_bytes());
    }

    fn place(&mut self, place: &Place) {
        self.u64(place.parent.0);
        self.text(&place.name);
    }

    fn intent(&mut self, intent: &Intent) {
        match intent {
            Intent::Make(place) => {
                self.u32(1);
                self.place(place);
            }
            Intent::Link(node, place) => {
                self.u32(2);
                self.u64(node.0);
                self.place(place);
            }
            Intent::Remove(place, ino) => {
                self.u32(3);
                self.u64(ino.0);
                self.place(place);
            }
            Intent::Rename {
                node,
                from,
                to,
                exchange,
            } => {
                self.u32(4);
                self.u64(node.0);
                self.u64(exchange.map_or(0, |other| other.0));
                self.place(from);
                self.place(to);
            }
            Intent::Xattr => self.u32(5),
        }
    }
}

struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn node(&mut self) -> Option<NodeId> {
        self.u64().map(NodeId)
    }

    fn text(&mut self) -> Option<OsString> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(OsString::from_vec(text.to_vec()))
    }

    fn place(&mut self) -> Option<Place> {
        Some(Place {
            parent: self.node()?,
            name: self.text()?,
        })
    }

    fn intent(&mut self) -> Option<Intent> {
        Some(match self.u32()? {
            1 => Intent::Make(self.place()?),
            2 => Intent::Link(self.node()?, self.place()?),
            3 => {
                let ino = Ino(self.u64()?);
                Intent::Remove(self.place()?, ino)
            }
            4 => {
                let (node, other) = (self.node()?, self.node()?);
                Intent::Rename {
                    node,
                    exchange: Some(other).filter(|other| other.0 != 0),
                    from: self.place()?,
                    to: self.place()?,
                }
            }
            5 => Intent::Xattr,
            _ => return None,
        })
    }
}

const KINDS: [FileKind; 7] = [
    FileKind::Regular,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::CharDevice,
    FileKind::BlockDevice,
    FileKind::Fifo,
    FileKind::Socket,
];

fn kind_number(kind: FileKind) -> u32 {
    let place = KINDS.iter().position(|other| *other == kind);
    place.map_or(0, |place| u32::try_from(place).unwrap_or(0))
}

fn numbered_kind(number: u32) -> Option<FileKind> {
    KINDS.get(usize::try_from(number).ok()?).copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn place(parent: u64, name: &str) -> Place {
        Place {
            parent: NodeId(parent),
            name: name.into(),
        }
    }

    /// One of each kind.
    pub(in crate::record) fn examples() -> Vec<Entry> {
        let node = |kind| Entry::Node {
            id: NodeId(7),
            generation: 3,
            ino: Ino(9),
            kind,
            lookups: -1,
        };
        let mut all: Vec<_> = KINDS.map(node).into();
        let rename = |exchange| {
            Entry::Begin(Intent::Rename {
                node: NodeId(1),
                from: place(1, "a"),
                to: place(2, "b"),
                exchange,
            })
        };
        all.extend([
            Entry::Name(NodeId(7), place(1, "name")),
            Entry::Unname(NodeId(7), place(1, "")),
            Entry::Moved(NodeId(7), place(1, "from"), place(u64::MAX, "to")),
            Entry::Refer(NodeId(7), i64::MIN),
            Entry::Gone(NodeId(u64::MAX)),
            Entry::Succeed(NodeId(8), NodeId(7)),
            Entry::Image(NodeId(8), "a/path".into()),
            Entry::Open(
                Fh(1),
                HandleState {
                    node: NodeId(7),
                    above: true,
                    runs: false,
                    writes_need_us: true,
                },
            ),
            Entry::Close(Fh(1)),
            Entry::Attach(NodeId(7), u32::MAX),
            Entry::Begin(Intent::Make(place(1, "new"))),
            Entry::Begin(Intent::Link(NodeId(7), place(1, "new"))),
            Entry::Begin(Intent::Remove(place(1, "old"), Ino(5))),
            rename(None),
            rename(Some(NodeId(5))),
            Entry::Begin(Intent::Xattr),
            Entry::End(true),
            Entry::Clear,
            Entry::Numbers(Numbers {
                generation: 1,
                node: 2,
                fh: 3,
                attached: 4,
            }),
        ]);
        all
    }

    #[test]
    fn every_entry_is_read_as_it_was_written() {
        let ticket = Ticket {
            unique: 1 << 62,
            slot: 9,
        };
        let mut bytes = Vec::new();
        for entry in examples() {
            entry.encode(ticket, &mut bytes);
        }
        let mut rest = &*bytes;
        for entry in examples() {
            assert_eq!(Entry::decode(&mut rest), Some((ticket, entry)));
        }
        assert!(rest.is_empty() && Entry::decode(&mut rest).is_none());
    }

    #[test]
    fn an_entry_that_is_cut_off_or_unknown_is_none() {
        for entry in examples() {
            let mut bytes = Vec::new();
            entry.encode(Ticket::default(), &mut bytes);
            for length in 0..bytes.len() {
                assert_eq!(Entry::decode(&mut &bytes[..length]), None);
                // Its own length says so too.
                let mut short = bytes[..length].to_vec();
                if let Some(head) = short.first_chunk_mut() {
                    *head = u32::try_from(length).unwrap().to_le_bytes();
                }
                assert_eq!(Entry::decode(&mut &*short), None);
            }
            bytes[4] = 77;
            assert_eq!(Entry::decode(&mut &*bytes), None);
        }
    }
}
