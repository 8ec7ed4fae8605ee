//! Blobs that are what they say, and blobs that lie, read from their beginning to their end.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use ::tar::EntryType as Type;
use serde_json::{Value, json};

use super::super::tests::Layer;
use super::*;
use crate::blob::compare::implied_digest;
use crate::blob::contents::Contents;
use crate::blob::footer::Toc;
use crate::blob::limits::Limits;
use crate::blob::testing::{gzip, zstd};
use crate::index::LayerData;

/// A layer's blob, and what an image would say of it.
struct Made {
    bytes: Vec<u8>,
    contents: Contents,
    promised: Promised,
}

impl Made {
    fn layer(&self) -> Layer {
        Layer::new(self.bytes.clone(), &self.contents)
    }

    fn read(&self, layer: &Layer) -> Whole {
        read(layer, &self.bytes[..], &self.promised).expect("nothing is in the way")
    }

    /// Reads it on a host that has nothing, and answers why it is refused.
    fn lie(&self) -> String {
        match self.read(&self.layer()) {
            Whole::Lie(flaw) => flaw.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

fn read(layer: &Layer, raw: impl Read + Send, promised: &Promised) -> Result<Whole> {
    let data = Arc::clone(&layer.files) as Arc<dyn LayerData>;
    let of_blob = BlobLayer::of_blob(data, &layer.dir.path().join("index")).expect("index");
    layer.files.read_whole(raw, promised, &of_blob)
}

fn add(
    to: &mut ::tar::Builder<Vec<u8>>,
    (name, kind, mode): (&str, Type, u32),
    link: Option<&str>,
    data: &[u8],
) {
    let mut header = ::tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    if let Some(link) = link {
        header.set_link_name(link).unwrap();
    }
    if kind == Type::Char {
        header.set_device_major(5).unwrap();
        header.set_device_minor(6).unwrap();
    }
    header.set_cksum();
    to.append(&header, data).unwrap();
}

/// An archive with a bit of everything.
fn archive() -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    let one = b"the bytes of one";
    add(&mut tar, ("usr/", Type::Directory, 0o755), None, b"");
    add(&mut tar, ("usr/one", Type::Regular, 0o644), None, one);
    let two = vec![7; 300_000];
    add(&mut tar, ("usr/two", Type::Regular, 0o4755), None, &two);
    add(&mut tar, ("usr/empty", Type::Regular, 0o600), None, b"");
    add(
        &mut tar,
        ("usr/link", Type::Symlink, 0o777),
        Some("one"),
        b"",
    );
    add(
        &mut tar,
        ("usr/hard", Type::Link, 0o644),
        Some("usr/one"),
        b"",
    );
    add(&mut tar, ("usr/tty", Type::Char, 0o620), None, b"");
    add(&mut tar, ("usr/.wh.gone", Type::Regular, 0), None, b"");
    add(&mut tar, ("opt/same", Type::Regular, 0o644), None, one);
    tar.into_inner().unwrap()
}

/// What a table of contents says of an archive, and the places of the files' bytes in it.
fn told(tar: &[u8]) -> Vec<(Value, std::ops::Range<usize>)> {
    let mut all = Vec::new();
    let mut archive = ::tar::Archive::new(tar);
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        let start = usize::try_from(entry.raw_file_position()).unwrap();
        let range = start..start + usize::try_from(entry.size()).unwrap();
        let mut told = json!({
            "name": entry.path().unwrap(), "mode": header.mode().unwrap(),
            "uid": header.uid().unwrap(), "gid": header.gid().unwrap(),
            "modtime": "2001-09-09T01:46:40Z",
            "type": match header.entry_type() {
                ::tar::EntryType::Directory => "dir",
                ::tar::EntryType::Symlink => "symlink",
                ::tar::EntryType::Link => "hardlink",
                ::tar::EntryType::Char => "char",
                _ => "reg",
            },
        });
        if let Some(link) = entry.link_name().unwrap() {
            told["linkName"] = json!(link);
        }
        if told["type"] == "char" {
            told["devMajor"] = json!(header.device_major().unwrap());
            told["devMinor"] = json!(header.device_minor().unwrap());
        }
        if !range.is_empty() {
            told["size"] = json!(range.len());
            told["digest"] = json!(Digest::of(&tar[range.clone()]).to_string());
            told["chunkDigest"] = told["digest"].clone();
        }
        all.push((told, range));
    }
    all
}

/// A blob of this archive with a table of contents, which `change` may change.
fn with_toc(compression: Compression, tar: &[u8], change: impl FnOnce(&mut Vec<Value>)) -> Made {
    let is_zstd = compression == Compression::Zstd;
    let pack = if is_zstd { zstd } else { gzip };
    let (mut bytes, mut entries, mut done) = (Vec::new(), Vec::new(), 0);
    for (mut entry, range) in told(tar) {
        if !range.is_empty() {
            bytes.extend(pack(&tar[done..range.start]));
            entry["offset"] = json!(bytes.len());
            bytes.extend(pack(&tar[range.clone()]));
            entry["endOffset"] = json!(bytes.len());
            done = range.end;
        }
        entries.push(entry);
    }
    let data_end;
    let mut whole = tar.to_vec();
    change(&mut entries);
    let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
    if is_zstd {
        bytes.extend(pack(&tar[done..]));
        data_end = bytes.len() as u64;
        let toc = pack(&json);
        bytes.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
        bytes.extend_from_slice(&u32::try_from(toc.len()).unwrap().to_le_bytes());
        bytes.extend(toc);
    } else {
        // The table is the archive's last entry.
        whole.truncate(tar.len() - 1024);
        bytes.extend(pack(&whole[done..]));
        data_end = bytes.len() as u64;
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, data) in [
            (".no.prefetch.landmark", &[15][..]),
            ("stargz.index.json", &json),
        ] {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, name, data).unwrap();
        }
        let last = builder.into_inner().unwrap();
        bytes.extend(pack(&last));
        bytes.extend(pack(b""));
        whole.extend(last);
    }
    let toc = Toc {
        json,
        data_end,
        compression,
    };
    let contents = Contents::of_toc(&toc, &Limits::default()).unwrap();
    Made {
        promised: Promised {
            digest: Digest::of(&bytes),
            diff_id: Digest::of(&whole),
            implied: Some(implied_digest(contents.implied())),
        },
        contents,
        bytes,
    }
}

/// An ordinary blob, of which the index came from elsewhere.
fn ordinary(tar: &[u8]) -> Made {
    let bytes = gzip(tar);
    let ordinary = Contents::of_gzip(&bytes[..], &Limits::default()).unwrap();
    Made {
        promised: Promised {
            digest: ordinary.digest,
            diff_id: ordinary.diff_id,
            implied: Some(implied_digest(ordinary.contents.implied())),
        },
        contents: ordinary.contents,
        bytes,
    }
}

fn honest() -> [Made; 3] {
    let tar = archive();
    [
        with_toc(Compression::Gzip, &tar, |_| ()),
        with_toc(Compression::Zstd, &tar, |_| ()),
        ordinary(&tar),
    ]
}

fn is_right(whole: &Whole) -> bool {
    matches!(whole, Whole::Right)
}

#[test]
fn an_honest_blob_of_every_format_is_right_and_here_afterwards() {
    for made in honest() {
        let layer = made.layer();
        let whole = made.read(&layer);
        assert!(is_right(&whole), "{whole:?}");
        assert_eq!(layer.files.counts().fetched, made.bytes.len() as u64);
        let here = layer.files.here().unwrap();
        assert_eq!(here.cached, here.total);
        for path in ["usr/one", "usr/two", "usr/empty", "usr/hard", "opt/same"] {
            assert!(layer.is_here(path), "{path}");
        }
        assert_eq!(layer.fetch("usr/hard").unwrap(), b"the bytes of one");
        assert_eq!(layer.reads(), 0, "no file was asked for by itself");
        // What is here is not written again.
        let added = layer.files.cache.added();
        assert!(is_right(&made.read(&layer)));
        assert_eq!(layer.files.cache.added(), added);
    }
}

#[test]
fn a_time_that_is_told_in_seconds_is_right_and_another_second_is_not() {
    let tar = archive();
    for (time, is_near) in [
        ("2001-09-09T01:46:40.9Z", true),
        ("2001-09-09T01:46:39.5Z", true),
        ("2001-09-09T01:46:41Z", false),
        ("2001-09-09T01:46:39Z", false),
    ] {
        let made = with_toc(Compression::Gzip, &tar, |entries| {
            entries[1]["modtime"] = json!(time);
        });
        let whole = made.read(&made.layer());
        assert_eq!(is_right(&whole), is_near, "{time}: {whole:?}");
    }
}

#[test]
fn a_directory_is_told_to_have_an_entry_if_it_has_one_and_only_then() {
    // As containerd makes a directory that no entry tells of.
    let opt = json!({
        "name": "opt/", "type": "dir", "mode": 0o755, "modtime": "1970-01-01T00:00:00Z",
    });
    let mut tar = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(Type::Directory);
    header.set_mode(0o755);
    for field in [
        ::tar::Header::set_uid as fn(&mut ::tar::Header, u64),
        ::tar::Header::set_gid,
        ::tar::Header::set_mtime,
        ::tar::Header::set_size,
    ] {
        field(&mut header, 0);
    }
    tar.append_data(&mut header, "opt/", &b""[..]).unwrap();
    let mut with_entry = tar.into_inner().unwrap();
    // Without the end that the builder has added.
    with_entry.truncate(512);
    with_entry.extend(archive());
    for compression in [Compression::Gzip, Compression::Zstd] {
        let is_hidden = with_toc(compression, &archive(), |all| all.insert(0, opt.clone()));
        let is_invented = with_toc(compression, &with_entry, |all| {
            let mut first = all.remove(0);
            first["modtime"] = opt["modtime"].clone();
            assert_eq!(first["name"], opt["name"]);
        });
        let is_told = with_toc(compression, &with_entry, |all| {
            all[0]["modtime"] = opt["modtime"].clone();
        });
        let whole = is_told.read(&is_told.layer());
        assert!(is_right(&whole), "{whole:?}");
        for mut made in [is_hidden, is_invented] {
            let said = made.lie();
            assert!(said.contains("directories without an entry"), "{said}");
            // The trees are the same.
            made.promised.implied = None;
            let whole = made.read(&made.layer());
            assert!(is_right(&whole), "{whole:?}");
        }
    }
    // An index of somebody else, with a list that leaves out what it would be refused for.
    let mut made = ordinary(&archive());
    assert_eq!(made.contents.implied(), [std::path::Path::new("opt")]);
    made.promised.implied = Some(implied_digest(Vec::new()));
    assert!(made.lie().contains("directories without an entry"));
}

#[test]
fn a_table_of_contents_that_lies_is_named() {
    type Lie = fn(&mut Value);
    // The entry that it tells otherwise, and what is said of it.
    let lies: [(&str, &str, Lie); 14] = [
        (
            "usr/one",
            "usr/one: the archive gives it other permissions",
            |e| {
                e["mode"] = json!(0o4755);
            },
        ),
        (
            "usr/two",
            "usr/two: the archive gives it another owner",
            |e| e["uid"] = json!(0),
        ),
        (
            "usr/two",
            "usr/two: the archive gives it another owner",
            |e| e["gid"] = json!(0),
        ),
        (
            "usr/two",
            "usr/two: the archive gives it other extended attributes",
            |e| {
                e["xattrs"] = json!({"security.capability": "AQ=="});
            },
        ),
        (
            "usr/two",
            "usr/two: the archive gives it other bytes",
            |e| {
                e["digest"] = json!(Digest::of(b"evil").to_string());
            },
        ),
        (
            "usr/two",
            "usr/two: the archive gives it another size",
            |e| e["size"] = json!(15),
        ),
        (
            "usr/link",
            "usr/link: the archive gives it another target",
            |e| {
                e["linkName"] = json!("two");
            },
        ),
        (
            "usr/tty",
            "usr/tty: the archive gives it another device",
            |e| e["devMinor"] = json!(7),
        ),
        (
            "usr/tty",
            "usr/tty: the archive has something of another kind there",
            |e| {
                e["type"] = json!("fifo");
            },
        ),
        ("usr/", "usr: the archive gives it other permissions", |e| {
            e["mode"] = json!(0o777);
        }),
        ("opt/same", "opt: it is not told of", |e| {
            e["name"] = json!("usr/same");
        }),
        (
            "usr/empty",
            "usr/empty: the archive has something of another kind there",
            |e| {
                e["name"] = json!("usr/.wh.empty");
            },
        ),
        (
            "usr/.wh.gone",
            "usr: in the archive it hides something else of the layers below",
            |e| {
                e["name"] = json!("usr/.wh..wh..opq");
            },
        ),
        (
            "usr/hard",
            "the archive gives it another number of names",
            |e| {
                e["linkName"] = json!("usr/two");
            },
        ),
    ];
    for compression in [Compression::Gzip, Compression::Zstd] {
        for (name, wanted, lie) in lies {
            let made = with_toc(compression, &archive(), |entries| {
                let entry = entries.iter_mut().find(|entry| entry["name"] == name);
                lie(entry.expect("an entry"));
            });
            let said = made.lie();
            assert!(
                said.contains(wanted),
                "{name}: {said:?}, and not {wanted:?}"
            );
        }
    }
    // Two pairs of names, told crosswise.
    let mut tar = ::tar::Builder::new(Vec::new());
    for name in ["a", "b"] {
        add(&mut tar, (name, Type::Regular, 0o644), None, b"1");
    }
    for (name, to) in [("c", "a"), ("d", "b")] {
        add(&mut tar, (name, Type::Link, 0o644), Some(to), b"");
    }
    let tar = tar.into_inner().unwrap();
    let made = with_toc(Compression::Zstd, &tar, |entries| {
        entries[2]["linkName"] = json!("b");
        entries[3]["linkName"] = json!("a");
    });
    let said = made.lie();
    assert!(said.contains("gives the name to another file"), "{said}");
}

#[test]
fn a_table_that_leaves_something_out_or_adds_something_is_a_lie() {
    let tar = archive();
    let without = with_toc(Compression::Zstd, &tar, |entries| {
        entries.retain(|entry| entry["name"] != "opt/same");
    });
    assert!(without.lie().contains("opt: it is not told of"));
    let with = with_toc(Compression::Gzip, &tar, |entries| {
        entries.push(json!({"name": "sbin", "type": "dir", "mode": 0o755}));
    });
    assert!(with.lie().contains("sbin: the archive has no such entry"));
}

#[test]
fn another_diff_id_is_a_lie_and_one_that_another_image_has_too() {
    for made in honest() {
        let claimed = Digest::of(b"the archive of another image");
        let promised = Promised {
            diff_id: claimed,
            ..made.promised
        };
        let layer = made.layer();
        let whole = read(&layer, &made.bytes[..], &promised).unwrap();
        let Whole::Lie(Flaw::Digest { found, wanted, .. }) = whole else {
            panic!("{whole:?}");
        };
        assert_eq!((found, wanted), (made.promised.diff_id, claimed));
    }
}

#[test]
fn what_is_no_archive_or_does_not_unpack_is_a_lie() {
    let tar = archive();
    let cut = &tar[..tar.len() / 2];
    for (bytes, what) in [
        (gzip(cut), "ends"),
        (gzip(b"no archive"), "ends in a header"),
    ] {
        let mut made = ordinary(&tar);
        made.promised.digest = Digest::of(&bytes);
        made.bytes = bytes;
        assert!(made.lie().contains(what), "{}", made.lie());
    }
    // A blob that is what its digest says, and gzip only in its first half.
    let mut made = ordinary(&tar);
    made.bytes.truncate(made.bytes.len() / 2);
    made.promised.digest = Digest::of(&made.bytes);
    assert!(made.lie().contains("decompress"), "{}", made.lie());
}

#[test]
fn bytes_that_are_not_the_blob_tell_nothing_of_it_and_reach_nobody() {
    for made in honest() {
        for at in [20, made.bytes.len() / 2, made.bytes.len() - 3] {
            let layer = made.layer();
            let mut bytes = made.bytes.clone();
            bytes[at] ^= 0x55;
            let whole = read(&layer, &bytes[..], &made.promised).unwrap();
            let Whole::OtherBlob(found) = whole else {
                panic!("{whole:?}");
            };
            assert_eq!(found, Digest::of(&bytes));
            // What was kept is right.
            let (_, removed) = layer.files.cache.verify().unwrap();
            assert_eq!(removed.files, 0);
            assert_eq!(layer.fetch("usr/one").unwrap(), b"the bytes of one");
            assert!(is_right(&made.read(&layer)));
        }
    }
}

/// Reads so many bytes, and fails then.
fn cut(bytes: &[u8], at: usize) -> impl Read + Send + '_ {
    struct Dead;
    impl Read for Dead {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the registry is dead"))
        }
    }
    bytes[..at].chain(Dead)
}

#[test]
fn a_reading_that_was_cut_leaves_whole_files_and_the_next_goes_on() {
    for made in honest() {
        for part in 0..10 {
            let layer = made.layer();
            let at = made.bytes.len() * part / 10;
            let error = read(&layer, cut(&made.bytes, at), &made.promised).unwrap_err();
            assert!(error.to_string().contains("dead"), "{error}");
            let (_, removed) = layer.files.cache.verify().unwrap();
            assert_eq!(removed.files, 0);
            let new = layer.dir.path().join("cache/new");
            assert_eq!(std::fs::read_dir(new).unwrap().count(), 0);
            assert!(layer.files.flights.under_way.lock().is_empty());
            let before = layer.files.cache.added();
            assert!(is_right(&made.read(&layer)));
            let here = layer.files.here().unwrap();
            assert_eq!(here.cached, here.total);
            // The same bytes are two of its files, and one of the cache.
            let twice = b"the bytes of one".len() as u64;
            assert_eq!(layer.files.cache.added(), here.total - twice, "{before}");
        }
    }
}

#[test]
fn whoever_wants_a_file_does_not_wait_for_the_reading() {
    /// Gives the first bytes, and the others when it is told to.
    struct Slow<'s> {
        first: &'s [u8],
        go: mpsc::Receiver<()>,
        rest: Cursor<&'s [u8]>,
        begun: mpsc::Sender<()>,
    }
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.first.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            if self.rest.position() == 0 {
                self.begun.send(()).unwrap();
                self.go.recv().unwrap();
            }
            self.rest.read(buffer)
        }
    }
    for made in honest() {
        let layer = made.layer();
        let (go, told) = mpsc::channel();
        let (begun, is_begun) = mpsc::channel();
        let (first, rest) = made.bytes.split_at(made.bytes.len() / 2);
        let raw = Slow {
            first,
            go: told,
            rest: Cursor::new(rest),
            begun,
        };
        thread::scope(|scope| {
            let reading = scope.spawn(|| read(&layer, raw, &made.promised).unwrap());
            is_begun.recv().unwrap();
            for path in ["opt/same", "usr/two"] {
                assert!(!layer.fetch(path).unwrap().is_empty(), "{path}");
            }
            go.send(()).unwrap();
            assert!(is_right(&reading.join().unwrap()));
        });
        let here = layer.files.here().unwrap();
        assert_eq!(here.cached, here.total);
    }
}

#[test]
fn a_file_that_somebody_fetches_is_left_to_them() {
    let [made, ..] = honest();
    let layer = made.layer();
    let found = layer.files.table.find(layer.ino("usr/two")).unwrap();
    let Role::Lead(flight) = layer.files.flights.join(found.digest) else {
        panic!("nobody else is here");
    };
    let landing = layer.files.landing(found.digest, flight);
    assert!(is_right(&made.read(&layer)));
    assert!(layer.is_here("usr/one") && !layer.is_here("usr/two"));
    drop(landing);
}

#[test]
fn neither_side_runs_far_ahead_of_the_other() {
    let mut random = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random.to_le_bytes()[3]
    })
    .take(20 * BLOCK)
    .collect();
    let packed = gzip(&noise);
    let (is_over, fetched) = (AtomicBool::new(false), AtomicU64::new(0));
    let raw = Raw {
        from: &packed[..],
        hash: Sha256::new(),
        failed: None,
        is_over: &is_over,
        fetched: &fetched,
    };
    let (sender, receiver) = sync_channel(BLOCKS);
    thread::scope(|scope| {
        let unpacking = scope.spawn(move || {
            let digest = decompress(raw, Compression::Gzip, &sender);
            drop(sender);
            digest
        });
        let mut received = 0;
        while let Ok(block) = receiver.recv() {
            let block = block.unwrap();
            received += 1;
            // Those that wait, one that is being made, and one that was just taken.
            let most = (received + BLOCKS + 2) * (BLOCK + BLOCK / 8) + INPUT;
            assert!(fetched.load(Ordering::Relaxed) <= most as u64);
            assert!(block.len() <= BLOCK && block.capacity() <= BLOCK);
        }
        assert_eq!(received, 20);
        let (of_blob, of_archive) = unpacking.join().unwrap().unwrap();
        assert_eq!(of_blob, Digest::of(&packed));
        assert_eq!(of_archive, Digest::of(&noise));
    });
}

#[test]
fn a_refused_layer_serves_nothing() {
    let [made, ..] = honest();
    let layer = made.layer();
    assert!(is_right(&made.read(&layer)));
    layer.files.refuse("its diff ID".to_owned());
    let error = layer.fetch("usr/one").unwrap_err();
    assert_eq!(error.errno(), rustix::io::Errno::IO);
    let said = error.to_string();
    assert!(said.contains("its diff ID") && said.contains("remove the image"));
    layer.files.find(layer.ino("usr/one")).unwrap_err();
}
