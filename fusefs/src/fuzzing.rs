//! The parsers of what layers, uppers and indexes say, for `fuzz/`. Only there in builds for fuzzing.
//!
//! Each function takes any bytes, and panics if what was read breaks a rule that the rest of the
//! union rests on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use crate::marks::{
    Mark, Nlink, Redirect, decode_origin, encode_origin, parse_nlink, parse_redirect,
};
use crate::upper::{from_hex, to_hex};

/// A redirect stays in the tree, and its path means the same when it is written again.
pub fn redirect(value: &[u8]) {
    match parse_redirect(value) {
        None => assert!(!Mark::Redirect.is_written(value)),
        Some(Redirect::Sibling(name)) => {
            assert_eq!(name.components().count(), 1);
            assert!(is_inside(&name));
        }
        Some(Redirect::Absolute(path)) => {
            assert!(is_inside(&path));
            let again = Path::new("/").join(&path);
            let again = parse_redirect(again.as_os_str().as_bytes());
            assert_eq!(again, Some(Redirect::Absolute(path)));
        }
    }
}

fn is_inside(path: &Path) -> bool {
    let is_name = |part| matches!(part, Component::Normal(name) if !name.as_bytes().contains(&0));
    path.components().all(is_name)
}

/// An origin that is read is one that we could have written, but for its UUID and flags.
pub fn origin(value: &[u8]) {
    let Some(handle) = decode_origin(value) else {
        return;
    };
    assert!(!handle.bytes.is_empty() && handle.bytes.len() < value.len());
    let again = encode_origin(&handle);
    assert_eq!(again.len(), value.len());
    assert_eq!(decode_origin(&again), Some(handle));
}

/// A link difference that is read means the same when it is written again.
pub fn links(value: &[u8]) {
    let Some(nlink) = parse_nlink(value) else {
        return;
    };
    let again = match nlink {
        Nlink::Upper(difference) => format!("U{difference:+}"),
        Nlink::Image(difference) => format!("L{difference:+}"),
    };
    assert_eq!(parse_nlink(again.as_bytes()), Some(nlink));
}

/// The values of all marks.
pub fn marks(value: &[u8]) {
    for mark in [
        Mark::Opaque,
        Mark::Redirect,
        Mark::Origin,
        Mark::Impure,
        Mark::Metacopy,
        Mark::Nlink,
    ] {
        let _ = mark.is_written(value);
        assert!(!mark.name().is_empty());
    }
}

/// A name in the link index.
pub fn index_name(name: &[u8]) {
    if let Some(bytes) = from_hex(OsStr::from_bytes(name)) {
        assert_eq!(bytes.len() * 2, name.len());
        assert!(to_hex(&bytes).eq_ignore_ascii_case(OsStr::from_bytes(name)));
        origin(&bytes);
    }
    // A name for these bytes leads back to them.
    assert_eq!(from_hex(&to_hex(name)).as_deref(), Some(name));
}

/// An index: what is accepted can be read, and is one tree.
pub fn index(bytes: &[u8]) {
    crate::index::asked::seal_and_ask(bytes);
}
