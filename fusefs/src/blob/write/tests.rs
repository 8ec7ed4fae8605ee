//! What is written is read again: by our own readers, and as what any other program takes it for.

use std::io::Cursor;

use flate2::read::MultiGzDecoder;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::blob::chunk::{Packing, unpack};
use crate::blob::entry::{Data, Told};
use crate::blob::toc as reader;

const FORMATS: [Format; 2] = [Format::Estargz, Format::ZstdChunked];

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(3_000_000);
    header.set_mtime(1_700_000_000);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header
}

/// Bytes that no compression makes small.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..len).map(step).collect()
}

/// An archive with an entry of every shape, and files of several chunks.
fn source() -> Vec<u8> {
    source_with(&[("exact", vec![3; 2 * CHUNK]), ("large", noise(CHUNK + 5))])
}

fn small_source() -> Vec<u8> {
    source_with(&[])
}

fn source_with(large: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let add = |tar: &mut Builder<Vec<u8>>, kind, name: &str, bytes: &[u8]| {
        let mut header = header(kind, bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let link = |tar: &mut Builder<Vec<u8>>, kind, name: &str, to: &str| {
        tar.append_link(&mut header(kind, 0), name, to).unwrap();
    };
    add(&mut tar, EntryType::Directory, "etc/", b"");
    add(&mut tar, EntryType::Regular, "etc/empty", b"");
    add(&mut tar, EntryType::Regular, "etc/one", b"1");
    add(&mut tar, EntryType::Regular, "etc/block", &[7; BLOCK]);
    link(&mut tar, EntryType::Link, "etc/again", "etc/one");
    link(&mut tar, EntryType::Symlink, "etc/sym", "../nowhere");
    let long = format!("etc/{}", "long".repeat(60));
    add(&mut tar, EntryType::Regular, &long, b"by GNU's name");
    let target = "t/".repeat(100);
    link(&mut tar, EntryType::Symlink, "etc/far", &target);
    tar.append_pax_extensions([
        ("path", long.replace("long", "lö").as_bytes()),
        ("SCHILY.xattr.user.name", b"\0\xff value"),
        ("SCHILY.xattr.security.capability", &[1, 0, 0, 2]),
        ("mtime", b"1700000000.25"),
    ])
    .unwrap();
    add(&mut tar, EntryType::Regular, "etc/short", b"by pax's name");
    add(&mut tar, EntryType::Regular, "etc/Grüße", b"not ASCII");
    for (kind, name) in [
        (EntryType::Char, "etc/char"),
        (EntryType::Block, "etc/block-device"),
    ] {
        let mut header = header(kind, 0);
        header.set_device_major(259).unwrap();
        header.set_device_minor(70_000).unwrap();
        tar.append_data(&mut header, name, &b""[..]).unwrap();
    }
    add(&mut tar, EntryType::Fifo, "etc/fifo", b"");
    for (name, bytes) in large {
        add(&mut tar, EntryType::Regular, name, bytes);
    }
    add(&mut tar, EntryType::Regular, "etc/.wh.gone", b"");
    add(&mut tar, EntryType::Directory, "opaque/", b"");
    add(&mut tar, EntryType::Regular, "opaque/.wh..wh..opq", b"");
    tar.into_inner().unwrap()
}

fn written(source: &[u8], format: Format) -> (Vec<u8>, Written) {
    let mut blob = Vec::new();
    let written = convert(source, &mut blob, format, &Limits::default()).unwrap();
    (blob, written)
}

/// All entries of an archive, each with its bytes.
fn entries(archive: &[u8]) -> Vec<(Told, Vec<u8>)> {
    let mut archive = Archive::new(Cursor::new(archive), &Limits::default());
    let mut found = Vec::new();
    while let Some(mut told) = archive.next_entry().unwrap() {
        let mut all = Vec::new();
        if let What::Regular(data) = &mut told.what {
            let keep = |_: &mut _, bytes: &[u8]| {
                all.extend_from_slice(bytes);
                Ok(())
            };
            read_data(&mut archive, data, CHUNK, keep).unwrap();
        }
        found.push((told, all));
    }
    found
}

/// Finds the table of contents as one does who has only the blob and the annotations.
fn toc(blob: &[u8], written: &Written) -> footer::Toc {
    let (limits, size) = (Limits::default(), blob.len() as u64);
    let at = |range: &Range<u64>| {
        &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    };
    let digest = |name: &str| Digest::parse(&written.annotations[name]).unwrap();
    let Some(position) = written.annotations.get(footer::zstd_chunked::POSITION[0]) else {
        let wanted = digest("containerd.io/snapshot/stargz/toc.digest");
        let place = footer::estargz::toc(blob.last_chunk().unwrap(), size, &limits).unwrap();
        return footer::estargz::read(at(&place), place.start, wanted, &limits).unwrap();
    };
    let wanted = digest(footer::zstd_chunked::CHECKSUM[0]);
    let (place, length) = footer::zstd_chunked::toc(position, size, &limits).unwrap();
    footer::zstd_chunked::read(at(&place), (place.start, length), wanted).unwrap()
}

/// The bytes of a file, each chunk by itself.
fn fetch(blob: &[u8], data: &Data, format: Format) -> Vec<u8> {
    let packing = match format {
        Format::Estargz => Packing::Member,
        Format::ZstdChunked => Packing::Frames,
    };
    let mut all = Vec::new();
    for chunk in &data.chunks {
        let stretch = usize::try_from(chunk.stretch.start).unwrap()
            ..usize::try_from(chunk.stretch.end).unwrap();
        assert_eq!(chunk.skip, 0);
        all.extend(unpack(chunk, &blob[stretch], packing, &Limits::default()).unwrap());
    }
    all
}

/// What an entry is but for the places of its chunks.
fn without_places(told: &Told) -> Told {
    let mut told = told.clone();
    told.xattrs.sort();
    if let What::Regular(data) = &mut told.what {
        if data.size == 0 {
            data.digest = None;
        }
        for chunk in &mut data.chunks {
            chunk.stretch = 0..0;
        }
    }
    told
}

#[track_caller]
fn assert_same(blob: &[u8], written: &Written, source: &[(Told, Vec<u8>)], format: Format) {
    let toc = toc(blob, written);
    Contents::of_toc(&toc, &Limits::default()).unwrap();
    let read = reader::read(&toc, &Limits::default()).unwrap();
    assert_eq!(read.entries.len(), source.len());
    assert_eq!(read.prefetch, 0);
    for (told, (wanted, bytes)) in read.entries.iter().zip(source) {
        assert_eq!(without_places(told), without_places(wanted));
        if let What::Regular(data) = &told.what {
            assert!(fetch(blob, data, format) == *bytes, "{:?}", told.name);
        }
    }
}

#[test]
fn every_shape_of_entry_is_read_again_from_both_formats() {
    let source = source();
    let wanted = entries(&source);
    for format in FORMATS {
        let (blob, written) = written(&source, format);
        assert_eq!(written.digest, Digest::of(&blob));
        assert_eq!(written.size, blob.len() as u64);
        assert_eq!(written.source_diff_id, Digest::of(&source));
        assert_same(&blob, &written, &wanted, format);
    }
}

#[test]
fn zstd_chunked_decompressed_is_the_source_byte_for_byte() {
    let source = small_source();
    // With more zeros at the end, with none, and cut off in the padding of the last file.
    let padded = [&source[..], &[0; 9 * BLOCK]].concat();
    let mut tar = Builder::new(Vec::new());
    tar.append_data(&mut header(EntryType::Regular, 3), "f", &b"abc"[..])
        .unwrap();
    let small = tar.into_inner().unwrap();
    for archive in [
        &source,
        &padded,
        &small[..2 * BLOCK],
        &small[..BLOCK + 3],
        b"",
    ] {
        let (blob, written) = written(archive, Format::ZstdChunked);
        assert!(zstd::decode_all(&blob[..]).unwrap() == archive);
        assert_eq!(written.diff_id, Digest::of(archive));
    }
}

#[test]
fn estargz_decompressed_is_a_sound_archive_with_the_entries_of_the_source() {
    let source = small_source();
    let ends = source.len() - 2 * BLOCK;
    for archive in [&source, &source[..ends], &source[..ends + BLOCK]] {
        let (blob, written) = written(archive, Format::Estargz);
        let mut plain = Vec::new();
        MultiGzDecoder::new(&blob[..])
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(written.diff_id, Digest::of(&plain));
        let size = &written.annotations["io.containers.estargz.uncompressed-size"];
        assert_eq!(*size, plain.len().to_string());
        assert!(plain.ends_with(&[0; 2 * BLOCK]));
        // The source's bytes are in it as they were.
        assert!(plain[2 * BLOCK..].starts_with(&source[..ends]));
        let mut found = entries(&plain);
        let (last, json) = found.pop().unwrap();
        assert_eq!(last.name, "stargz.index.json");
        assert_eq!(json, toc(&blob, &written).json);
        assert_eq!(found.remove(0).0.name, ".no.prefetch.landmark");
        let plainly = |found: &[(Told, Vec<u8>)]| {
            let each = found.iter();
            each.map(|(told, bytes)| (without_places(told), bytes.clone()))
                .collect::<Vec<_>>()
        };
        assert!(plainly(&found) == plainly(&entries(&source)));
        // Another reader of archives comes to the end of it, too.
        let mut other = tar::Archive::new(&plain[..]);
        let count = other.entries().unwrap().map(Result::unwrap).count();
        assert_eq!(count, found.len() + 2);
    }
}

#[test]
fn what_a_source_has_of_the_format_itself_is_not_taken_over() {
    let source = small_source();
    let (once, _) = written(&source, Format::Estargz);
    let mut plain = Vec::new();
    MultiGzDecoder::new(&once[..])
        .read_to_end(&mut plain)
        .unwrap();
    let (twice, written) = written(&plain, Format::Estargz);
    assert_eq!(twice, once);
    assert_eq!(written.source_diff_id, written.diff_id);
}

#[test]
fn a_source_that_is_damaged_is_refused() {
    let source = small_source();
    let limits = Limits::default();
    for format in FORMATS {
        let convert = |archive: &[u8]| convert(archive, io::sink(), format, &limits);
        for cut in [1, 100, BLOCK - 1, BLOCK + 7, 4 * BLOCK + 5] {
            convert(&source[..cut]).expect_err("cut off");
        }
        // Places in the first two headers, which are next to each other.
        for place in [0, 100, 156, BLOCK + 130] {
            let mut bad = source.clone();
            bad[place] ^= 0x55;
            convert(&bad).expect_err("a header with a wrong checksum");
        }
        convert(&noise(20 * BLOCK)).expect_err("no archive");
        convert(&[&source[..], &noise(BLOCK)].concat()).expect_err("bytes behind the end");
    }
}

#[test]
fn what_a_table_of_contents_cannot_tell_is_refused() {
    let mut header = header(EntryType::Regular, 0);
    header.as_mut_bytes()[..3].copy_from_slice(b"a\xff\0");
    header.set_cksum();
    for format in FORMATS {
        let flaw = convert(
            &header.as_bytes()[..],
            io::sink(),
            format,
            &Limits::default(),
        );
        assert!(matches!(flaw, Err(Flaw::Entry { .. })), "{flaw:?}");
    }
}

#[test]
fn headers_without_end_are_not_kept_in_memory() {
    let small = Limits {
        chunk_bytes: 64 << 10,
        ..Limits::default()
    };
    let zeros = io::repeat(0).take(1 << 20);
    let flaw = convert(zeros, io::sink(), Format::ZstdChunked, &small);
    assert!(matches!(flaw, Err(Flaw::Compression { .. })), "{flaw:?}");
}
