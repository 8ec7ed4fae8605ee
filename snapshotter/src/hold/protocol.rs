//! What a daemon and its holder say to each other.
//!
//! Each message is one datagram of a `SOCK_SEQPACKET` socket, so that none arrives by half:
//!
//! | bytes | field |
//! | --- | --- |
//! | 2 | `b"LH"` |
//! | 1 | which message |
//! | rest | see below |
//!
//! | message | rest | descriptors |
//! | --- | --- | --- |
//! | 1 keep | the name | one |
//! | 2 release | the name | |
//! | 3 take | | |
//! | 4 patience | seconds, 4 bytes, little endian | |
//! | 5 renew | | |
//! | 6 renewed | | |
//! | 65 held | for each descriptor: the length of its name (1 byte), the name | as many |
//! | 66 done | | |
//! | 67 refused | the name | |
//!
//! *Take* is answered by any number of *held*, then *done*. Between *renew* and *renewed* a daemon keeps
//! everything that it wants kept; what the holder has beside that is let go of at *renewed*. *Refused*
//! says that a descriptor could not be kept.
//!
//! Whoever reads believes nothing: a datagram that is not exactly one of these is `None`, and nothing is
//! allocated for it. A newer Lamina may meet an older holder, so a message never changes its meaning.

use std::time::Duration;

/// The longest name of a descriptor, in bytes.
pub const MAX_NAME: usize = 200;

/// The longest message to a holder.
pub(super) const MAX_REQUEST: usize = HEAD + MAX_NAME;

/// The longest message from a holder.
pub(super) const MAX_ANSWER: usize = 32 << 10;

/// Descriptors in one message from a holder. The kernel allows 253 (`SCM_MAX_FD`).
pub(super) const MAX_HELD: usize = 200;

const MAGIC: [u8; 2] = *b"LH";
const HEAD: usize = MAGIC.len() + 1;

const KEEP: u8 = 1;
const RELEASE: u8 = 2;
const TAKE: u8 = 3;
const PATIENCE: u8 = 4;
const RENEW: u8 = 5;
const RENEWED: u8 = 6;
const HELD: u8 = 65;
const DONE: u8 = 66;
const REFUSED: u8 = 67;

/// What a daemon says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Request<'a> {
    /// Keep this descriptor by this name, in place of one that has it already.
    Keep(&'a str),
    /// Let go of what has this name.
    Release(&'a str),
    /// Give me everything.
    Take,
    /// Wait so long for the next daemon.
    Patience(Duration),
    /// What follows is everything that is to be kept.
    Renew,
    /// That was everything.
    Renewed,
}

/// What a holder says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// The names of the descriptors that come along.
    Held(Vec<String>),
    /// There are no more.
    Done,
    /// This one can't be kept.
    Refused(String),
}

/// Whether a descriptor may have this name: printable ASCII without a colon, which systemd takes too.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_plain)
}

fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&MAGIC, &[kind][..], rest].concat()
}

/// The kind of a message, and the rest of it.
fn parts(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (kind, rest) = bytes.strip_prefix(&MAGIC)?.split_first()?;
    Some((*kind, rest))
}

fn name(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|name| is_name(name))
}

impl Request<'_> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Request::Keep(name) => message(KEEP, name.as_bytes()),
            Request::Release(name) => message(RELEASE, name.as_bytes()),
            Request::Take => message(TAKE, &[]),
            Request::Patience(patience) => {
                let seconds = u32::try_from(patience.as_secs()).unwrap_or(u32::MAX);
                message(PATIENCE, &seconds.to_le_bytes())
            }
            Request::Renew => message(RENEW, &[]),
            Request::Renewed => message(RENEWED, &[]),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Request<'_>> {
        match parts(bytes)? {
            (KEEP, rest) => Some(Request::Keep(name(rest)?)),
            (RELEASE, rest) => Some(Request::Release(name(rest)?)),
            (TAKE, []) => Some(Request::Take),
            (PATIENCE, rest) => {
                let seconds = u32::from_le_bytes(rest.try_into().ok()?);
                Some(Request::Patience(Duration::from_secs(seconds.into())))
            }
            (RENEW, []) => Some(Request::Renew),
            (RENEWED, []) => Some(Request::Renewed),
            _ => None,
        }
    }
}

impl Answer {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Answer::Held(names) => {
                let mut rest = Vec::new();
                for name in names {
                    rest.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
                    rest.extend(name.as_bytes());
                }
                message(HELD, &rest)
            }
            Answer::Done => message(DONE, &[]),
            Answer::Refused(name) => message(REFUSED, name.as_bytes()),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Answer> {
        match parts(bytes)? {
            (HELD, mut rest) => {
                let mut names = Vec::new();
                while let Some((&length, after)) = rest.split_first() {
                    let (found, after) = after.split_at_checked(length.into())?;
                    names.push(name(found)?.to_owned());
                    rest = after;
                }
                (1..=MAX_HELD)
                    .contains(&names.len())
                    .then_some(Answer::Held(names))
            }
            (DONE, []) => Some(Answer::Done),
            (REFUSED, rest) => Some(Answer::Refused(name(rest)?.to_owned())),
            _ => None,
        }
    }
}

/// As many of `names` as fit into one message, from the first on.
pub(super) fn fitting<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let mut length = HEAD;
    names
        .take(MAX_HELD)
        .take_while(|name| {
            length += 1 + name.len();
            length <= MAX_ANSWER
        })
        .count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn longest() -> String {
        "n".repeat(MAX_NAME)
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        let longest = longest();
        for request in [
            Request::Keep("12.pin.9223372036854775809"),
            Request::Keep(&longest),
            Request::Release("12.fuse"),
            Request::Take,
            Request::Patience(Duration::from_mins(5)),
            Request::Renew,
            Request::Renewed,
        ] {
            let bytes = request.encode();
            assert!(bytes.len() <= MAX_REQUEST);
            assert_eq!(Request::decode(&bytes), Some(request));
        }
        for answer in [
            Answer::Held(vec!["a".to_owned(), longest.clone()]),
            Answer::Done,
            Answer::Refused(longest.clone()),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn the_bytes_do_not_change() {
        assert_eq!(Request::Keep("7.fuse").encode(), b"LH\x017.fuse");
        assert_eq!(Request::Release("7.fuse").encode(), b"LH\x027.fuse");
        assert_eq!(Request::Take.encode(), b"LH\x03");
        let patience = Request::Patience(Duration::from_mins(5));
        assert_eq!(patience.encode(), b"LH\x04\x2c\x01\0\0");
        assert_eq!(Request::Renew.encode(), b"LH\x05");
        assert_eq!(Request::Renewed.encode(), b"LH\x06");
        let held = Answer::Held(vec!["a".to_owned(), "bc".to_owned()]);
        assert_eq!(held.encode(), b"LHA\x01a\x02bc");
        assert_eq!(Answer::Done.encode(), b"LHB");
        assert_eq!(Answer::Refused("a".to_owned()).encode(), b"LHCa");
    }

    #[test]
    fn what_is_not_exactly_a_message_is_none() {
        let too_long = [b"LH\x01", &[b'n'; MAX_NAME + 1][..]].concat();
        for bytes in [
            &b""[..],
            b"L",
            b"LH",
            b"LH\x00",
            b"LH\x07",
            b"lh\x03",
            b"LH\x03x",
            b"LH\x01",
            b"LH\x01a:b",
            b"LH\x01a\nb",
            b"LH\x01a\0",
            b"LH\x02\xc3\xa4",
            b"LH\x02\xff",
            b"LH\x04\x01\x02\x03",
            b"LH\x04\x01\x02\x03\x04\x05",
            &too_long,
        ] {
            assert_eq!(Request::decode(bytes), None, "{bytes:?}");
        }
        let many = [b"LHA", b"\x01a".repeat(MAX_HELD + 1).as_slice()].concat();
        for bytes in [
            &b"LHA"[..],
            b"LHA\x00",
            b"LHA\x02a",
            b"LHA\xff",
            b"LHA\x01:",
            b"LHBx",
            b"LHC",
            &many,
        ] {
            assert_eq!(Answer::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn an_answer_has_no_more_names_than_fit() {
        let longest = longest();
        let names = vec![longest.as_str(); 1000];
        let count = fitting(names.iter().copied());
        let held = |count| Answer::Held(vec![longest.clone(); count]).encode();
        assert!(held(count).len() <= MAX_ANSWER);
        assert!(count == MAX_HELD || held(count + 1).len() > MAX_ANSWER);
        assert_eq!(fitting(["a"; 1000].into_iter()), MAX_HELD);
        assert_eq!(fitting([].into_iter()), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0u8..80) {
            let framed = message(kind, &bytes);
            for bytes in [&bytes, &framed] {
                if let Some(request) = Request::decode(bytes) {
                    prop_assert_eq!(&request.encode(), bytes);
                }
                if let Some(answer) = Answer::decode(bytes) {
                    prop_assert_eq!(&answer.encode(), bytes);
                }
            }
        }
    }
}
