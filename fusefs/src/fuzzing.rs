//! The parsers of what layers, uppers and indexes say, for `fuzz/`. Only there in builds for fuzzing.
//!
//! Each function takes any bytes, and panics if what was read breaks a rule that the rest of the
//! union rests on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use crate::blob::{
    Compression, Contents, Digest, Limits, Toc, estargz, seal_and_ask, zstd_chunked,
};
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

/// What whoever fuzzes has patience for.
const SMALL: Limits = Limits {
    toc_bytes: 1 << 20,
    entries: 10_000,
    chunks: 10_000,
    depth: 100,
    name_bytes: 255,
    path_bytes: 4095,
    xattr_bytes: 64 << 10,
    chunk_bytes: 1 << 20,
    layer_bytes: 64 << 20,
    image_bytes: 64 << 20,
    below_bytes: 0,
    ratio: 200,
    ratio_floor: 1 << 20,
    window_log: 20,
};

/// A table of contents: what is accepted makes a sound index and a sound chunk table.
pub fn toc(json: &[u8]) {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let toc = Toc {
            json: json.to_vec(),
            data_end: 1 << 40,
            compression,
        };
        if let Ok(contents) = Contents::of_toc(&toc, &SMALL) {
            sound(&contents);
        }
    }
}

/// An ordinary blob, or the archive in one.
pub fn ordinary_blob(bytes: &[u8]) {
    if let Ok(ordinary) = Contents::of_gzip(bytes, &SMALL) {
        sound(&ordinary.contents);
    }
}

/// An archive.
pub fn archive(bytes: &[u8]) {
    let mut blob = Vec::new();
    let mut encoder = flate2::bufread::GzEncoder::new(bytes, flate2::Compression::fast());
    if std::io::Read::read_to_end(&mut encoder, &mut blob).is_ok() {
        ordinary_blob(&blob);
    }
}

/// The end of a blob, and what the manifest says of it.
pub fn footer(bytes: &[u8]) {
    let (size, wanted) = (bytes.len() as u64, Digest::of(b""));
    if let Some(footer) = bytes.last_chunk()
        && let Ok(place) = estargz::toc(footer, size, &SMALL)
    {
        assert!(place.start < place.end && place.end <= size);
        let start = usize::try_from(place.start).expect("it is inside");
        assert!(estargz::read(&bytes[start..], place.start, wanted, &SMALL).is_err());
    }
    if let Ok(position) = std::str::from_utf8(bytes)
        && let Ok((place, _)) = zstd_chunked::toc(position, 1 << 30, &SMALL)
    {
        assert!(place.start < place.end && place.end <= 1 << 30);
    }
}

/// A chunk table with the checksum that fits.
pub fn chunk_table(bytes: &[u8]) {
    seal_and_ask(bytes, &SMALL);
}

/// The record of a mount: what it comes to is what it comes to when it is written anew.
pub fn mount_record(bytes: &[u8]) {
    crate::record::write_anew(bytes);
}

fn sound(contents: &Contents) {
    let (index, table) = contents.bytes().expect("no test is so large");
    assert!(crate::index::asked::seal_and_ask(&index));
    assert!(seal_and_ask(&table, &SMALL));
    for path in contents.implied() {
        assert!(is_inside(&path));
    }
}
