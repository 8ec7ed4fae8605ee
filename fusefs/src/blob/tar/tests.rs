//! What other programs write is read; what could be read in two ways is refused.

use std::io::Cursor;

use ::tar::{Builder, EntryType, Header as Plain};

use super::*;

/// All entries of an archive, each with its bytes and where they begin.
fn all(archive: &[u8]) -> Result<Vec<(Told, u64, Vec<u8>)>, Flaw> {
    let mut archive = Archive::new(Cursor::new(archive), &Limits::default());
    let mut found = Vec::new();
    while let Some(told) = archive.next_entry()? {
        let (at, mut bytes) = (archive.at(), Vec::new());
        let mut buffer = [0; 100];
        loop {
            match archive.read(&mut buffer)? {
                0 => break,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
        found.push((told, at, bytes));
    }
    Ok(found)
}

#[track_caller]
fn assert_refused(archive: &[u8], why: &str) {
    match all(archive) {
        Err(Flaw::Entry { what, .. }) => assert!(what.contains(why), "{what}"),
        other => panic!("{other:?}"),
    }
}

/// A header that a strict reader takes.
fn header(name: &str, kind: EntryType, size: u64) -> Plain {
    let mut header = Plain::new_ustar();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_cksum();
    header
}

/// A header with some bytes changed, and the checksum that fits.
fn changed(name: &str, kind: EntryType, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut header = header(name, kind, 0);
    header.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn blocks(data: &[u8]) -> Vec<u8> {
    let mut blocks = data.to_vec();
    blocks.resize(data.len().next_multiple_of(BLOCK), 0);
    blocks
}

/// One record of an extended header.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let length = (rest..rest + 9).find(|length| length.to_string().len() + rest == *length);
    format!("{} {key}={value}\n", length.unwrap())
}

/// An extended header with these records.
fn extended(kind: EntryType, records: &str) -> Vec<u8> {
    let header = header("pax", kind, records.len() as u64);
    [header.as_bytes().to_vec(), blocks(records.as_bytes())].concat()
}

/// An extended header with these records, and a file of 3 bytes.
fn with(records: &str) -> Vec<u8> {
    let file = header("file", EntryType::Regular, 3);
    [
        extended(EntryType::XHeader, records),
        file.as_bytes().to_vec(),
        blocks(b"abc"),
    ]
    .concat()
}

#[test]
fn what_another_program_writes_is_read() {
    let long = format!("{}/name", "directory/".repeat(30));
    for gnu in [false, true] {
        let new = || {
            if gnu {
                Plain::new_gnu()
            } else {
                Plain::new_ustar()
            }
        };
        let mut builder = Builder::new(Vec::new());
        let mut add = |name: &str, kind: EntryType, data: &[u8]| {
            let mut header = new();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_uid(1000);
            header.set_gid(0);
            header.set_mtime(1_700_000_000);
            header.set_size(data.len() as u64);
            match kind {
                EntryType::Symlink | EntryType::Link => {
                    builder.append_link(&mut header, name, "target").unwrap();
                }
                _ => builder.append_data(&mut header, name, data).unwrap(),
            }
        };
        add("dir/", EntryType::Directory, b"");
        add("dir/file", EntryType::Regular, &[7; 1000]);
        add("dir/empty", EntryType::Regular, b"");
        add("link", EntryType::Link, b"");
        add("symlink", EntryType::Symlink, b"");
        add("pipe", EntryType::Fifo, b"");
        if gnu {
            add(&long, EntryType::Regular, b"x");
        }
        let archive = builder.into_inner().unwrap();
        let found = all(&archive).unwrap();
        let names: Vec<_> = found.iter().map(|(told, ..)| told.name.clone()).collect();
        let mut wanted = vec!["dir/", "dir/file", "dir/empty", "link", "symlink", "pipe"];
        wanted.extend(gnu.then_some(&*long));
        assert_eq!(names, wanted);
        let (file, at, bytes) = &found[1];
        assert_eq!((file.perm, file.uid, file.gid), (0o644, 1000, 0));
        assert_eq!(file.mtime.secs, 1_700_000_000);
        assert_eq!(bytes, &[7; 1000]);
        let at = usize::try_from(*at).unwrap();
        assert_eq!(archive[at..at + 1000], [7; 1000]);
        assert_eq!(found[3].0.what, What::HardLink("target".into()));
        assert_eq!(found[4].0.what, What::Symlink("target".into()));
    }
}

#[test]
fn devices_and_modes_are_read() {
    let mut device = header("null", EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    let found = all(device.as_bytes()).unwrap();
    assert_eq!(found[0].0.what, What::CharDevice(1, 3));
    assert_eq!(found[0].0.perm, 0o4755);
}

#[test]
fn extended_headers_say_more_than_the_header() {
    let records = [
        record("path", "another/ä"),
        record("size", "3"),
        record("uid", "4294967295"),
        record("gid", "7"),
        record("mtime", "-1.25"),
        record("SCHILY.xattr.user.a", "a\0b"),
        record("SCHILY.xattr.user.empty", ""),
        record("atime", "1.5"),
        record("linkpath", ""),
        record("hdrcharset", "BINARY"),
    ];
    let (told, _, bytes) = all(&with(&records.concat())).unwrap().remove(0);
    assert_eq!(told.name, "another/ä");
    assert_eq!((told.uid, told.gid), (u32::MAX, 7));
    let (secs, nanos) = (-2, 750_000_000);
    assert_eq!(told.mtime, Timestamp { secs, nanos });
    let xattrs: [(OsString, Vec<u8>); 2] = [
        ("user.a".into(), b"a\0b".to_vec()),
        ("user.empty".into(), vec![]),
    ];
    assert_eq!(told.xattrs, xattrs);
    assert_eq!(bytes, b"abc");
    let global = extended(EntryType::XGlobalHeader, &record("comment", "of git"));
    assert_eq!(all(&[global, with("")].concat()).unwrap().len(), 1);
}

/// CVE-2026-33055: a reader that knows no extended size sees other entries than one that does.
#[test]
fn the_size_of_an_extended_header_is_the_size() {
    let inner = header("hidden", EntryType::Regular, 0);
    let size = record("size", "512");
    let outer = header("outer", EntryType::Regular, 0);
    let archive = [
        extended(EntryType::XHeader, &size),
        outer.as_bytes().to_vec(),
        inner.as_bytes().to_vec(),
    ]
    .concat();
    let found = all(&archive).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0.name, "outer");
    assert_eq!(found[0].2, inner.as_bytes());
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    let twice = [record("size", "3"), record("size", "4")].concat();
    assert_refused(&with(&twice), "the same");
    let twice = [record("path", "a"), record("path", "b")].concat();
    assert_refused(&with(&twice), "the same");
    let two = [
        extended(EntryType::XHeader, &record("path", "a")),
        with(&record("path", "b")),
    ];
    assert_refused(&two.concat(), "the same");
    let long = header("L", EntryType::GNULongName, 2);
    let long = [long.as_bytes().to_vec(), blocks(b"b\0")].concat();
    assert_refused(
        &[long.clone(), with(&record("path", "a"))].concat(),
        "the same",
    );
    assert_refused(&[long.clone(), long.clone(), with("")].concat(), "the same");
    assert_refused(&with(&record("GNU.sparse.major", "1")), "sparse");
    assert_refused(&changed("s", EntryType::GNUSparse, 0, b"s"), "sparse");
    assert_refused(&with(&record("hdrcharset", "EBCDIC")), "character set");
    let xattr = record("SCHILY.xattr.user.a", "x");
    assert_refused(&with(&xattr.repeat(2)), "twice");
    let global = extended(EntryType::XGlobalHeader, &record("size", "9"));
    assert_refused(&[global, with("")].concat(), "for all entries");
    for kind in [
        EntryType::Directory,
        EntryType::Link,
        EntryType::Symlink,
        EntryType::Fifo,
    ] {
        let odd = header("odd", kind, 512);
        assert_refused(odd.as_bytes(), "data of what is no file");
    }
    assert_refused(
        &changed("name/", EntryType::Regular, 0, b"name/"),
        "directory's",
    );
    assert_refused(&changed("v", EntryType::new(b'V'), 0, b"v"), "unknown type");
    assert_refused(&changed("s", EntryType::Regular, 508, b"tar\0"), "star");
    assert_refused(
        &changed("s", EntryType::Regular, 257, b"other"),
        "unknown format",
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut wrong = header("file", EntryType::Regular, 0);
    wrong.as_mut_bytes()[0] ^= 1;
    assert_refused(wrong.as_bytes(), "checksum");
    let whole = with("");
    assert_refused(&whole[..whole.len() - 510], "ends in the data");
    assert_refused(&whole[..whole.len() - 600], "ends in a header");
    // Nothing but the filling is missing: Go's reader takes that for the end.
    assert_eq!(
        all(&whole[..whole.len() - 509]).unwrap(),
        all(&whole).unwrap()
    );
    assert_refused(&extended(EntryType::XHeader, ""), "of nothing");
    assert_refused(&[whole, vec![0; 1024], vec![1]].concat(), "behind the end");
    for records in [
        "x",
        "5 a=b",
        "9 a=b\n",
        "5 ab\n",
        "+6 a=b\n",
        " a=b\n",
        "99999999999999999999 a=b\n",
    ] {
        assert_refused(&with(records), "no sense");
    }
    assert_refused(&with(&record("path", "a\0b")), "no sense");
    for (key, value) in [
        ("size", "-1"),
        ("size", "0x3"),
        ("size", "99999999999999999999"),
        ("uid", "4294967296"),
        ("mtime", "1.2.3"),
        ("mtime", "1.x"),
        ("mtime", "x"),
        ("mtime", "99999999999999999999"),
    ] {
        assert_refused(&with(&record(key, value)), "no ");
    }
    for (at, field, what) in [
        (124, &b"9"[..], "size"),
        (
            124,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            "size",
        ),
        (
            124,
            b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            "size",
        ),
        (108, b"+1", "owner"),
        (116, b"\x80\0\0\x01\0\0\0\0", "group"),
        (100, b"x", "mode"),
        (136, b"y", "time"),
    ] {
        assert_refused(&changed("f", EntryType::Regular, at, field), what);
    }
    assert_refused(&changed("d", EntryType::Char, 329, b"x"), "device");
    let large = header("pax", EntryType::XHeader, EXTENDED_MAX + 1);
    assert_refused(large.as_bytes(), "too large");
}

#[test]
fn numbers_are_read_in_both_forms() {
    assert_eq!(number(b"0000755\0"), Some(0o755));
    assert_eq!(number(b"   755  "), Some(0o755));
    assert_eq!(number(b"\0\0\0\0"), Some(0));
    assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
    assert_eq!(
        signed(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        Some(-1)
    );
    assert_eq!(number(b"-1"), None);
    assert_eq!(number(b"8"), None);
    assert_eq!(time("1700000000.000000001").unwrap().nanos, 1);
    assert_eq!(time("0.99999999999999999999").unwrap().nanos, 999_999_999);
    assert_eq!(time("5").unwrap(), Timestamp { secs: 5, nanos: 0 });
    assert_eq!(
        time("-0.5").unwrap(),
        Timestamp {
            secs: -1,
            nanos: 500_000_000
        }
    );
}
