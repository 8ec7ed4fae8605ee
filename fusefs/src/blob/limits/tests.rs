//! Each limit is hit by a blob that is one too large, and the same blob passes where it is allowed.

use std::io::Write as _;

use ::tar::{Builder, EntryType, Header};
use serde_json::{Value, json};

use super::*;
use crate::blob::chunk::{Packing, unpack};
use crate::blob::entry::Chunk;
use crate::blob::testing::{gzip, zstd};
use crate::blob::{Compression, Contents, Digest, Toc, check_told, estargz, zstd_chunked};

/// The default limits, but for one.
fn with(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

/// That this limit was hit, and that it says so with its size.
#[track_caller]
fn assert_hit<T: fmt::Debug>(result: Result<T, Flaw>, wanted: Cap, size: u64) {
    match result {
        Err(Flaw::Limit { cap, limit }) => assert_eq!((cap, limit), (wanted, size)),
        other => panic!("{other:?}"),
    }
}

/// An archive of these entries: a name, the kind and the bytes of each.
fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, bytes) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn files(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let entries = entries.iter();
    let entries = entries.map(|(name, bytes)| (*name, EntryType::Regular, *bytes));
    archive(&entries.collect::<Vec<_>>())
}

/// What all three readers of an ordinary blob say of this archive.
fn ordinary(archive: &[u8], limits: &Limits) -> [Result<Contents, Flaw>; 3] {
    let all = [
        Contents::of_gzip(&gzip(archive)[..], limits),
        Contents::of_zstd(&zstd(archive)[..], Vec::new(), limits),
        Contents::of_tar(archive, Vec::new(), limits),
    ];
    all.map(|read| read.map(|ordinary| ordinary.contents))
}

/// What an eStargz table of contents with these entries makes, of 1,000 bytes of a blob.
fn toc(entries: &[Value], limits: &Limits) -> Result<Contents, Flaw> {
    let toc = Toc {
        json: serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap(),
        data_end: 1000,
        compression: Compression::Gzip,
    };
    Contents::of_toc(&toc, limits)
}

fn dir(name: &str) -> Value {
    json!({"type": "dir", "name": name, "mode": 0o755})
}

/// A file of so many bytes, of which chunks of `chunk` bytes are told.
fn file(name: &str, size: u64, chunk: u64) -> Vec<Value> {
    let digest = Digest::of(b"any").to_string();
    let mut entries = Vec::new();
    for offset in (0..size).step_by(usize::try_from(chunk).unwrap()) {
        let kind = if offset == 0 { "reg" } else { "chunk" };
        let mut entry = json!({
            "type": kind, "name": name, "offset": offset / chunk + 1, "chunkOffset": offset,
            "chunkSize": chunk.min(size - offset), "chunkDigest": digest,
        });
        if offset == 0 {
            entry["size"] = size.into();
            entry["digest"] = digest.clone().into();
        }
        entries.push(entry);
    }
    entries
}

#[test]
fn a_table_of_contents_is_no_larger_than_allowed() {
    let limits = with(|limits| limits.toc_bytes = 100);
    // By where the footer says it is, compressed.
    let mut footer = [0; estargz::FOOTER];
    footer[..12].copy_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0]);
    footer[12..16].copy_from_slice(b"SG\x16\x00");
    footer[16..38].copy_from_slice(format!("{:016x}STARGZ", 899).as_bytes());
    let end = 1000 + estargz::FOOTER as u64;
    assert_hit(estargz::toc(&footer, end, &limits), Cap::Toc, 100);
    estargz::toc(&footer, end - 1, &limits).unwrap();
    // By what its entry in the archive says, uncompressed.
    let wanted = Digest::of(&[b' '; 100]);
    for (size, is_allowed) in [(100u64, true), (101, false), (0o77_777_777_777, false)] {
        let mut tar = vec![0; 512];
        tar[..17].copy_from_slice(b"stargz.index.json");
        tar[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        tar.extend([b' '; 200]);
        let read = estargz::read(&gzip(&tar), 0, wanted, &limits);
        if is_allowed {
            read.unwrap();
        } else {
            assert_hit(read, Cap::Toc, 100);
        }
    }
    // By the annotation, compressed and uncompressed.
    zstd_chunked::toc("8:100:100:1", 1000, &limits).unwrap();
    for position in ["8:101:100:1", "8:100:101:1", "8:100:1099511627776:1"] {
        assert_hit(zstd_chunked::toc(position, 1000, &limits), Cap::Toc, 100);
    }
}

#[test]
fn there_are_no_more_entries_than_allowed() {
    let limits = with(|limits| limits.entries = 2);
    let mut entries = vec![dir("a"), dir("b")];
    toc(&entries, &limits).unwrap();
    entries.push(dir("c"));
    assert_hit(toc(&entries, &limits), Cap::Entries, 2);
    for read in ordinary(&files(&[("a", b"1"), ("b", b"2")]), &limits) {
        read.unwrap();
    }
    for read in ordinary(&files(&[("a", b"1"), ("b", b"2"), ("c", b"")]), &limits) {
        assert_hit(read, Cap::Entries, 2);
    }
}

#[test]
fn there_are_no_more_chunks_than_allowed() {
    let limits = with(|limits| limits.chunks = 2);
    toc(&file("f", 10, 5), &limits).unwrap();
    assert_hit(toc(&file("f", 11, 5), &limits), Cap::Chunks, 2);
    let two = [file("f", 10, 5), file("g", 1, 5)].concat();
    assert_hit(toc(&two, &limits), Cap::Chunks, 2);
    // A chunk of an ordinary blob is a MiB.
    for read in ordinary(&files(&[("f", &vec![7; 2 << 20])]), &limits) {
        read.unwrap();
    }
    for read in ordinary(&files(&[("f", &vec![7; 2 << 20]), ("g", b"1")]), &limits) {
        assert_hit(read, Cap::Chunks, 2);
    }
}

#[test]
fn paths_are_no_deeper_and_no_longer_than_allowed() {
    let deep = with(|limits| limits.depth = 3);
    let long = with(|limits| limits.path_bytes = 8);
    let named = with(|limits| limits.name_bytes = 4);
    let name = "n".repeat(255);
    toc(&[dir(&name)], &Limits::default()).unwrap();
    let too_long = format!("{name}n");
    assert_hit(toc(&[dir(&too_long)], &Limits::default()), Cap::Name, 255);
    for (limits, good, bad, cap, limit) in [
        (deep, "a/b/c", "a/b/c/d", Cap::Depth, 3),
        (long, "aaaa/bbb", "aaaa/bbbb", Cap::Path, 8),
        (named, "aaaa/b", "b/aaaaa", Cap::Name, 4),
    ] {
        toc(&[dir(good)], &limits).unwrap();
        assert_hit(toc(&[dir(bad)], &limits), cap, limit);
        for read in ordinary(&files(&[(good, b"1")]), &limits) {
            read.unwrap();
        }
        for read in ordinary(&files(&[(bad, b"1")]), &limits) {
            assert_hit(read, cap, limit);
        }
        // What a link leads to is a path, too.
        let link = json!({"type": "hardlink", "name": "l", "linkName": bad});
        assert_hit(toc(&[link], &limits), cap, limit);
    }
}

#[test]
fn xattrs_are_no_larger_than_allowed() {
    let limits = with(|limits| limits.xattr_bytes = 12);
    for (value, is_allowed) in [("12345", true), ("123456", false)] {
        let encoded = ["MTIzNDU=", "MTIzNDU2"][usize::from(!is_allowed)];
        let entry = json!({"type": "dir", "name": "d", "xattrs": {"user.ab": encoded}});
        let mut builder = Builder::new(Vec::new());
        let record = [("SCHILY.xattr.user.ab", value.as_bytes())];
        builder.append_pax_extensions(record).unwrap();
        let mut packed = builder.into_inner().unwrap();
        // Without the end that the builder has added.
        packed.truncate(1024);
        packed.extend(files(&[("f", b"")]));
        let all = ordinary(&packed, &limits)
            .into_iter()
            .chain([toc(&[entry], &limits)]);
        for read in all {
            if is_allowed {
                read.unwrap();
            } else {
                assert_hit(read, Cap::Xattrs, 12);
            }
        }
    }
}

#[test]
fn a_chunk_is_no_larger_than_allowed() {
    let limits = with(|limits| limits.chunk_bytes = 600);
    toc(&file("f", 1200, 600), &limits).unwrap();
    assert_hit(toc(&file("f", 601, 601), &limits), Cap::Chunk, 600);
    let mut far = file("f", 4, 4);
    far[0]["innerOffset"] = 601.into();
    assert_hit(toc(&far, &limits), Cap::Chunk, 600);
    // 999 compressed bytes for a chunk of 4.
    let limits = with(|limits| limits.chunk_bytes = 4);
    assert_hit(toc(&file("f", 4, 4), &limits), Cap::Chunk, 4);
    // Once more where it is unpacked: many zeros, of which 4 bytes are wanted.
    let bomb = gzip(&vec![0; 64 << 20]);
    let mut chunk = Chunk {
        offset: 0,
        len: 4,
        digest: Digest::of(&[0; 4]),
        stretch: 0..bomb.len() as u64,
        skip: 0,
    };
    let bytes = unpack(&chunk, &bomb, Packing::Member, &limits).unwrap();
    assert_eq!(bytes, [0; 4]);
    chunk.len = 5;
    let unpacked = unpack(&chunk, &bomb, Packing::Member, &limits);
    assert_hit(unpacked, Cap::Chunk, 4);
    chunk.len = 4;
    // A zstd frame has to be as long as its chunk.
    unpack(&chunk, &zstd(&vec![0; 64 << 20]), Packing::Frames, &limits).unwrap_err();
}

#[test]
fn a_layer_is_no_larger_than_allowed() {
    let limits = with(|limits| limits.layer_bytes = 4096);
    toc(&file("f", 4096, 4096), &limits).unwrap();
    let more = [file("f", 4096, 4096), file("g", 1, 1)].concat();
    assert_hit(toc(&more, &limits), Cap::Layer, 4096);
    // By the headers alone, before the bytes are read; and by what comes behind the end.
    let claims = archive(&[("f", EntryType::Regular, &[1; 5000])]);
    for packed in [&claims[..512], &[&files(&[])[..], &[0; 8192]].concat()] {
        for read in ordinary(packed, &limits) {
            assert_hit(read, Cap::Layer, 4096);
        }
    }
    for read in ordinary(&files(&[("f", &[1; 1024])]), &limits) {
        read.unwrap();
    }
}

#[test]
fn an_image_is_no_larger_than_allowed() {
    let limits = with(|limits| (limits.image_bytes, limits.below_bytes) = (10_000, 8_000));
    toc(&file("f", 2000, 2000), &limits).unwrap();
    assert_hit(toc(&file("f", 2001, 2001), &limits), Cap::Image, 10_000);
    for read in ordinary(&files(&[("f", &[1; 2000])]), &limits) {
        assert_hit(read, Cap::Image, 10_000);
    }
}

#[test]
fn no_more_comes_of_a_byte_than_allowed() {
    let limits = with(|limits| (limits.ratio, limits.ratio_floor) = (100, 200_000));
    let small = files(&[("zeros", &vec![0; 150_000])]);
    for read in ordinary(&small, &limits) {
        read.unwrap();
    }
    let bomb = files(&[("zeros", &vec![0; 3 << 20])]);
    let [by_gzip, by_zstd, by_tar] = ordinary(&bomb, &limits);
    assert_hit(by_gzip, Cap::Ratio, 100);
    assert_hit(by_zstd, Cap::Ratio, 100);
    by_tar.unwrap();
    // A table of contents is held against the 1,000 bytes that it tells of.
    let large = with(|limits| (limits.ratio, limits.ratio_floor) = (100, 1));
    toc(&file("f", 100_000, 100_000), &large).unwrap();
    assert_hit(toc(&file("f", 100_001, 100_001), &large), Cap::Ratio, 100);
}

/// What is said of an index of this archive that somebody else has made by the default limits.
fn told(archive: &[u8], limits: &Limits) -> Result<u64, Flaw> {
    let blob = gzip(archive);
    let ordinary = Contents::of_gzip(&blob[..], &Limits::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [index, table] = ["index", "table"].map(|name| dir.path().join(name));
    ordinary.contents.save(&index, &table).unwrap();
    let blob = (ordinary.digest, blob.len() as u64);
    let told = check_told(&index, &table, blob, limits).unwrap();
    told.map(|(_, bytes)| bytes)
}

#[test]
fn an_index_of_somebody_else_asks_for_no_more_than_a_blob_may() {
    let two = files(&[("aaaa/b", &[1; 1500]), ("c", &[2; 500])]);
    assert_eq!(told(&two, &Limits::default()).unwrap(), 2000);
    for (fits, exceeds, cap, size) in [
        (
            with(|limits| limits.layer_bytes = 2000),
            with(|limits| limits.layer_bytes = 1999),
            Cap::Layer,
            1999,
        ),
        (
            with(|limits| (limits.image_bytes, limits.below_bytes) = (10_000, 8000)),
            with(|limits| (limits.image_bytes, limits.below_bytes) = (10_000, 8001)),
            Cap::Image,
            10_000,
        ),
        (
            // With the root and the directory.
            with(|limits| limits.entries = 4),
            with(|limits| limits.entries = 3),
            Cap::Entries,
            3,
        ),
        (
            with(|limits| limits.chunks = 2),
            with(|limits| limits.chunks = 1),
            Cap::Chunks,
            1,
        ),
        (
            with(|limits| limits.depth = 2),
            with(|limits| limits.depth = 1),
            Cap::Depth,
            1,
        ),
        (
            with(|limits| limits.path_bytes = 6),
            with(|limits| limits.path_bytes = 5),
            Cap::Path,
            5,
        ),
        (
            with(|limits| limits.name_bytes = 4),
            with(|limits| limits.name_bytes = 3),
            Cap::Name,
            3,
        ),
    ] {
        told(&two, &fits).unwrap();
        assert_hit(told(&two, &exceeds), cap, size);
    }
    let limits = with(|limits| (limits.ratio, limits.ratio_floor) = (100, 200_000));
    told(&files(&[("zeros", &vec![0; 150_000])]), &limits).unwrap();
    let bomb = files(&[("zeros", &vec![0; 3 << 20])]);
    assert_hit(told(&bomb, &limits), Cap::Ratio, 100);
}

#[test]
fn a_zstd_window_is_no_larger_than_allowed() {
    let archive = files(&[("f", b"bytes")]);
    let blob = |log| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(log).unwrap();
        // Of what is shorter than its window, the window is as long as that.
        encoder.long_distance_matching(true).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&archive).unwrap();
        encoder.finish().unwrap()
    };
    let limits = with(|limits| limits.window_log = 20);
    Contents::of_zstd(&blob(20)[..], Vec::new(), &limits).unwrap();
    let refused = Contents::of_zstd(&blob(21)[..], Vec::new(), &limits);
    assert_hit(refused, Cap::Window, 1 << 20);
    // The default is what the zstd program takes.
    Contents::of_zstd(&blob(27)[..], Vec::new(), &Limits::default()).unwrap();
    let refused = Contents::of_zstd(&blob(28)[..], Vec::new(), &Limits::default());
    assert_hit(refused, Cap::Window, 128 << 20);
}
