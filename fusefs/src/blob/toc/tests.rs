//! Both formats are read, and what makes no sense is refused.

use serde_json::{Value, json};

use super::*;
use crate::blob::chunk::{Packing, unpack};
use crate::blob::testing::{Blob, Files};

const FILES: Files<'_> = &[
    ("one", &[b"the bytes of one"]),
    ("empty", &[]),
    ("large", &[b"first ", b"second ", b"third"]),
];

/// The contents of a blob whose entries are these.
fn of(compression: Compression, entries: &Value) -> Result<Contents, Flaw> {
    let toc = Toc {
        json: serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap(),
        data_end: 1000,
        compression,
    };
    read(&toc, &Limits::default())
}

#[test]
fn files_are_found_in_blobs_of_both_formats() {
    for blob in [Blob::estargz(FILES), Blob::zstd_chunked(FILES)] {
        let toc = blob.toc().unwrap();
        let limits = Limits::default();
        let packing = match toc.compression {
            Compression::Zstd => Packing::Frames,
            _ => Packing::Member,
        };
        let contents = read(&toc, &limits).unwrap();
        assert_eq!(contents.entries.len(), FILES.len());
        for (told, (name, chunks)) in contents.entries.iter().zip(FILES) {
            assert_eq!(told.name, *name);
            let What::Regular(data) = &told.what else {
                panic!("{told:?}");
            };
            assert_eq!(data.chunks.len(), chunks.len());
            let bytes = data.chunks.iter().map(|chunk| {
                let start = usize::try_from(chunk.stretch.start).unwrap();
                let end = usize::try_from(chunk.stretch.end).unwrap();
                unpack(chunk, &blob.bytes[start..end], packing, &limits).unwrap()
            });
            assert_eq!(bytes.collect::<Vec<_>>(), *chunks);
            assert_eq!(data.size, chunks.concat().len() as u64);
        }
    }
}

#[test]
fn a_table_of_contents_that_is_another_one_is_refused() {
    for mut blob in [Blob::estargz(FILES), Blob::zstd_chunked(FILES)] {
        blob.digest = Digest::of(b"another");
        assert!(matches!(blob.toc(), Err(Flaw::Digest { .. })));
    }
}

#[test]
fn a_footer_or_a_position_that_makes_no_sense_is_refused() {
    let whole = Blob::estargz(FILES);
    let footer = whole.bytes.len() - 51;
    for at in [0, 1, 12, 14, 16, 32, 37] {
        let mut blob = Blob::estargz(FILES);
        blob.bytes[footer + at] = b'?';
        assert!(matches!(blob.toc(), Err(Flaw::Footer { .. })), "byte {at}");
    }
    let whole = Blob::zstd_chunked(FILES);
    let size = whole.bytes.len();
    for position in [
        "::::".to_owned(),
        "1:2:3".to_owned(),
        "8:9:9:2".to_owned(),
        "7:9:9:1".to_owned(),
        "8:0:9:1".to_owned(),
        "8:-1:9:1".to_owned(),
        format!("8:{}:9:1", size - 7),
        format!("{}:9:9:1", u64::MAX),
    ] {
        let blob = Blob {
            position,
            ..Blob::zstd_chunked(FILES)
        };
        let flaw = blob.toc().unwrap_err();
        assert!(matches!(flaw, Flaw::Annotation { .. }), "{flaw}");
    }
    let mut long: Vec<_> = whole.position.split(':').collect();
    let (less, more) = ("3".to_owned(), (1u64 << 40).to_string());
    for length in [&less, &more] {
        long[2] = length;
        let blob = Blob {
            position: long.join(":"),
            ..Blob::zstd_chunked(FILES)
        };
        blob.toc().expect_err("another length");
    }
}

#[test]
fn attributes_are_those_of_the_archive() {
    let entries = json!([
        {"type": "dir", "name": "usr/", "mode": 0o41755, "uid": 1, "gid": 4_294_967_295_u32,
         "modtime": "2024-02-29T12:00:00.5Z", "userName": "somebody",
         "xattrs": {"user.a": "AAE=", "user.b": ""}},
        {"type": "symlink", "name": "bin", "linkName": "usr/bin", "modtime": "1969-12-31T23:59:59.25Z"},
        {"type": "hardlink", "name": "b", "linkName": "a"},
        {"type": "char", "name": "null", "devMajor": 1, "devMinor": 3},
        {"type": "block", "name": "sda", "devMajor": 8},
        {"type": "fifo", "name": "pipe"},
    ]);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let told = of(compression, &entries).unwrap().entries;
        let usr = &told[0];
        assert_eq!((usr.perm, usr.uid, usr.gid), (0o1755, 1, u32::MAX));
        let (secs, nanos) = (1_709_208_000, 500_000_000);
        assert_eq!(usr.mtime, Timestamp { secs, nanos });
        let xattrs: [(OsString, Vec<u8>); 2] =
            [("user.a".into(), vec![0, 1]), ("user.b".into(), vec![])];
        assert_eq!(usr.xattrs, xattrs);
        let (secs, nanos) = (-1, 250_000_000);
        assert_eq!(told[1].mtime, Timestamp { secs, nanos });
        let what: Vec<_> = told.into_iter().map(|told| told.what).collect();
        assert_eq!(
            what,
            [
                What::Directory,
                What::Symlink("usr/bin".into()),
                What::HardLink("a".into()),
                What::CharDevice(1, 3),
                What::BlockDevice(8, 0),
                What::Fifo,
            ]
        );
    }
}

#[test]
fn landmarks_are_no_files_and_tell_how_much_comes_first() {
    let empty = Digest::of(b"\x0f").to_string();
    let entries = json!([
        {"type": "reg", "name": "first", "offset": 10, "size": 1, "chunkDigest": empty},
        {"type": "reg", "name": "./.prefetch.landmark", "offset": 20, "size": 1, "chunkDigest": empty},
        {"type": "reg", "name": "usr/.prefetch.landmark", "offset": 30, "size": 1, "chunkDigest": empty},
        {"type": "reg", "name": "/.no.prefetch.landmark", "offset": 40, "size": 1, "chunkDigest": empty},
        {"type": "reg", "name": "stargz.index.json", "offset": 50, "size": 1, "chunkDigest": empty},
    ]);
    let contents = of(Compression::Gzip, &entries).unwrap();
    let names: Vec<_> = contents.entries.iter().map(|told| &told.name).collect();
    assert_eq!(names, ["first", "usr/.prefetch.landmark"]);
    assert_eq!(contents.prefetch, 20);
}

#[test]
fn chunks_that_lie_are_refused() {
    let digest = Digest::of(b"x").to_string();
    let file = |change: Value| {
        let mut entry = json!({"type": "reg", "name": "f", "size": 10, "offset": 100,
            "endOffset": 200, "digest": digest, "chunkDigest": digest});
        let fields = entry.as_object_mut().unwrap();
        fields.extend(change.as_object().unwrap().clone());
        entry
    };
    let more = |at: u64, size: u64, offset: u64| {
        json!({"type": "chunk", "name": "f", "chunkOffset": at, "chunkSize": size,
            "offset": offset, "chunkDigest": digest})
    };
    for compression in [Compression::Gzip, Compression::Zstd] {
        let read = |entries: Value| of(compression, &entries);
        read(json!([file(json!({}))])).expect("it makes sense as it is");
        let two = file(json!({"chunkSize": 4}));
        read(json!([two, more(4, 6, 150)])).expect("so does this");
        for (entries, what) in [
            (json!([more(0, 1, 100)]), "a chunk without a file"),
            (json!([file(json!({"offset": 1000}))]), "behind the data"),
            (
                json!([file(json!({"offset": u64::MAX}))]),
                "far behind the data",
            ),
            (
                json!([file(json!({"chunkSize": 11}))]),
                "larger than the file",
            ),
            (
                json!([file(json!({"chunkSize": 9}))]),
                "smaller than the file",
            ),
            (json!([file(json!({"chunkOffset": 1}))]), "begins too late"),
            (
                json!([file(json!({"size": 1_u64 << 40}))]),
                "a chunk of 1 TiB",
            ),
            (json!([file(json!({"size": -1}))]), "a negative size"),
            (
                json!([file(json!({"uid": 1_u64 << 32}))]),
                "a user that can't be",
            ),
            (
                json!([file(json!({"digest": "sha512:00"}))]),
                "another algorithm",
            ),
            (json!([file(json!({"modtime": "yesterday"}))]), "no time"),
            (
                json!([file(json!({"xattrs": {"user.a": "?"}}))]),
                "no Base64",
            ),
            (json!([file(json!({"type": "socket"}))]), "an unknown type"),
            (
                json!([file(json!({"name": "caf\u{fffd}"}))]),
                "a name that was lost",
            ),
            (json!([two, more(5, 5, 150)]), "a gap"),
            (json!([two, more(3, 7, 150)]), "an overlap"),
            (json!([two, more(4, 7, 150)]), "beyond the end"),
            (
                json!([two, more(4, 6, 150), more(10, 0, 160)]),
                "one too many",
            ),
            (json!([two, more(4, 5, 150)]), "one too few"),
        ] {
            read(entries).expect_err(what);
        }
        let empty = file(json!({"size": 0, "digest": ""}));
        read(json!([empty])).expect("an empty file");
        read(json!([empty, more(0, 1, 150)])).expect_err("chunks of an empty file");
        let no_digest = file(json!({"digest": "", "chunkDigest": ""}));
        read(json!([no_digest])).expect_err("no digest");
        let unnamed = file(json!({"chunkSize": 4, "digest": ""}));
        read(json!([unnamed, more(4, 6, 150)])).expect_err("no digest of all of it");
    }
    let backwards = json!([file(json!({"endOffset": 100}))]);
    of(Compression::Zstd, &backwards).expect_err("no bytes");
    let behind = json!([file(json!({"endOffset": 1001}))]);
    of(Compression::Zstd, &behind).expect_err("it ends behind the data");
    let two = file(json!({"chunkSize": 4}));
    of(Compression::Zstd, &json!([two, more(4, 6, 90)])).expect_err("chunks backwards");
    let far = json!([file(json!({"innerOffset": 1_u64 << 40}))]);
    of(Compression::Gzip, &far).expect_err("1 TiB to skip");
}

#[test]
fn members_that_several_files_share_are_found() {
    let digest = Digest::of(b"x").to_string();
    let file = |name: &str, offset: u64, inner: u64| {
        json!({"type": "reg", "name": name, "size": 10, "offset": offset,
            "innerOffset": inner, "chunkDigest": digest})
    };
    let entries = json!([file("a", 100, 0), file("b", 100, 512), file("c", 300, 0)]);
    let told = of(Compression::Gzip, &entries).unwrap().entries;
    let stretches: Vec<_> = told
        .iter()
        .map(|told| match &told.what {
            What::Regular(data) => (data.chunks[0].stretch.clone(), data.chunks[0].skip),
            what => panic!("{what:?}"),
        })
        .collect();
    assert_eq!(stretches, [(100..300, 0), (100..300, 512), (300..1000, 0)]);
}

#[test]
fn what_is_no_table_of_contents_is_refused() {
    let few = Limits {
        entries: 2,
        xattr_bytes: 10,
        ..Limits::default()
    };
    let entry = json!({"type": "fifo", "name": "p"});
    let large = json!({"type": "fifo", "name": "p", "xattrs": {"user.a": "AAAAAAAA"}});
    for (json, what) in [
        (String::new(), "nothing"),
        ("[]".to_owned(), "a list"),
        ("{}".to_owned(), "no fields"),
        (r#"{"version": 1}"#.to_owned(), "no entries"),
        (r#"{"entries": []}"#.to_owned(), "no version"),
        (
            r#"{"version": 2, "entries": []}"#.to_owned(),
            "another version",
        ),
        (
            r#"{"version": 1, "entries": [], "entries": []}"#.to_owned(),
            "a field twice",
        ),
        (
            r#"{"version": 1, "entries": []} x"#.to_owned(),
            "more behind it",
        ),
        (
            r#"{"version": 1, "entries": [{"name": "a", "name": "b"}]}"#.to_owned(),
            "a name twice",
        ),
        (
            json!({"version": 1, "entries": [entry, entry, entry]}).to_string(),
            "many entries",
        ),
        (
            json!({"version": 1, "entries": [large]}).to_string(),
            "large xattrs",
        ),
    ] {
        let toc = Toc {
            json: json.into_bytes(),
            data_end: 10,
            compression: Compression::Gzip,
        };
        read(&toc, &few).expect_err(what);
    }
    let two = json!({"version": 1, "entries": [entry, entry], "tarSplitDigest": "x"});
    let toc = Toc {
        json: two.to_string().into_bytes(),
        data_end: 10,
        compression: Compression::Zstd,
    };
    assert_eq!(read(&toc, &few).unwrap().entries.len(), 2);
}
