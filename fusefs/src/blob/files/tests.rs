//! From a blob to the bytes of its files, and never to others.

use std::io::{Read, Write};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::blob::contents::Contents;
use crate::blob::footer::Toc;
use crate::blob::testing::{Blob, Files as Packed, gzip, zstd};
use crate::index::{Index, Kind};

const FILES: Packed<'_> = &[
    ("usr/one", &[b"the bytes of one"]),
    ("empty", &[]),
    ("large", &[b"first ", b"second ", b"third"]),
    ("same", &[b"the bytes of one"]),
];

/// A blob in memory, which counts how often it was read.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) bytes: Mutex<Vec<u8>>,
    reads: Mutex<Vec<Range<u64>>>,
    is_dead: AtomicBool,
    is_slow: AtomicBool,
    is_far: AtomicBool,
    /// Who reads the blob from there on waits; 0: nobody.
    held_from: AtomicU64,
}

impl Source for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn is_far(&self) -> bool {
        self.is_far.load(Ordering::SeqCst)
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.reads.lock().push(range.clone());
        let is_held = || (1..=range.start).contains(&self.held_from.load(Ordering::SeqCst));
        while is_held() {
            thread::sleep(Duration::from_millis(1));
        }
        if self.is_slow.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(50));
        }
        if self.is_dead.load(Ordering::SeqCst) {
            return Err(io::Error::other("the registry is dead"));
        }
        let bytes = self.bytes.lock();
        let end = usize::try_from(range.end).unwrap().min(bytes.len());
        Ok(bytes[usize::try_from(range.start).unwrap().min(end)..end].to_vec())
    }
}

/// A layer that is a blob, with a cache.
pub(super) struct Layer {
    pub(super) source: Arc<Memory>,
    pub(super) files: Arc<Files>,
    index: Index,
    pub(super) dir: tempfile::TempDir,
}

impl Layer {
    pub(super) fn new(bytes: Vec<u8>, contents: &Contents) -> Layer {
        let dir = tempfile::tempdir().unwrap();
        let (index, table) = (dir.path().join("index"), dir.path().join("table"));
        contents.save(&index, &table).unwrap();
        let cache = dir.path().join("cache");
        std::fs::create_dir(&cache).unwrap();
        let source = Arc::new(Memory {
            bytes: Mutex::new(bytes),
            ..Memory::default()
        });
        let files = Files::open(
            &table,
            Arc::clone(&source) as Arc<dyn Source>,
            Arc::new(Cache::open(&cache).unwrap()),
            Arc::default(),
            &Limits::default(),
        );
        Layer {
            source,
            files: files.unwrap(),
            index: Index::open(&index, Kind::Layer).unwrap(),
            dir,
        }
    }

    fn with_toc(blob: Blob) -> Layer {
        let contents = Contents::of_toc(&blob.toc().unwrap(), &Limits::default()).unwrap();
        Layer::new(blob.bytes, &contents)
    }

    pub(super) fn ino(&self, path: &str) -> Ino {
        self.index
            .ino(self.index.find_path(Path::new(path)).unwrap())
    }

    pub(super) fn fetch(&self, path: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.files.fetch(self.ino(path))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn is_here(&self, path: &str) -> bool {
        self.files.find(self.ino(path)).unwrap().is_some()
    }

    pub(super) fn reads(&self) -> usize {
        self.source.reads.lock().len()
    }
}

/// An archive with these files.
fn archive(files: Packed<'_>) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, chunks) in files {
        let bytes = chunks.concat();
        let mut header = ::tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn layers() -> [Layer; 3] {
    let tar = archive(FILES);
    let blob = gzip(&tar);
    let ordinary = Contents::of_gzip(&blob[..], &Limits::default()).unwrap();
    assert_eq!(ordinary.digest, Digest::of(&blob));
    assert_eq!(ordinary.diff_id, Digest::of(&tar));
    [
        Layer::with_toc(Blob::estargz(FILES)),
        Layer::with_toc(Blob::zstd_chunked(FILES)),
        Layer::new(blob, &ordinary.contents),
    ]
}

#[test]
fn files_of_every_format_are_fetched_once() {
    for layer in layers() {
        for (path, chunks) in FILES {
            assert!(!layer.is_here(path) || *path == "same", "{path}");
            let before = layer.reads();
            assert_eq!(layer.fetch(path).unwrap(), chunks.concat(), "{path}");
            assert!(layer.is_here(path));
            let asked = usize::from(!chunks.is_empty() && *path != "same");
            assert_eq!(
                layer.reads() - before,
                asked,
                "{path}: its chunks come in one piece"
            );
            assert_eq!(layer.fetch(path).unwrap(), chunks.concat());
            assert_eq!(layer.reads() - before, asked, "{path}: now it is here");
        }
        assert!(matches!(layer.files.fetch(Ino(1)), Err(Error::NotFound)));
    }
}

#[test]
fn what_lies_behind_a_file_far_away_comes_along() {
    for layer in layers() {
        layer.source.is_far.store(true, Ordering::SeqCst);
        // In any order, and at once: each is here, or it is waited for.
        layer.fetch("usr/one").unwrap();
        for (path, chunks) in FILES.iter().rev() {
            assert_eq!(layer.fetch(path).unwrap(), chunks.concat(), "{path}");
        }
        assert!(layer.reads() <= 2, "the file, and what lies behind it");
        let here = layer.files.here().unwrap();
        assert_eq!(here.cached, here.total);
    }
}

#[test]
fn nobody_waits_for_what_comes_along() {
    let layer = Layer::with_toc(Blob::zstd_chunked(FILES));
    layer.source.is_far.store(true, Ordering::SeqCst);
    let large = layer.files.table.find(layer.ino("large")).unwrap();
    let place = layer.files.table.chunk(large.chunks.start).stretch;
    layer.source.held_from.store(place.start, Ordering::SeqCst);
    assert_eq!(layer.fetch("usr/one").unwrap(), b"the bytes of one");
    assert!(!layer.is_here("large"));
    layer.source.held_from.store(0, Ordering::SeqCst);
    assert_eq!(layer.fetch("large").unwrap(), b"first second third");
    assert_eq!(layer.reads(), 2);
}

#[test]
fn what_was_inflated_on_the_way_to_a_file_comes_along() {
    let [.., layer] = layers();
    layer.source.is_far.store(true, Ordering::SeqCst);
    layer.fetch("large").unwrap();
    assert_eq!(layer.fetch("usr/one").unwrap(), b"the bytes of one");
    assert_eq!(layer.reads(), 1);
}

#[test]
fn a_blob_is_filled_in_few_requests_until_somebody_has_enough() {
    for layer in layers() {
        layer.files.fill(&mut |_| false).unwrap();
        assert!(layer.is_here("usr/one") && !layer.is_here("large"));
        layer.files.fill(&mut |_| true).unwrap();
        for (path, chunks) in FILES {
            assert_eq!(layer.fetch(path).unwrap(), chunks.concat(), "{path}");
        }
        assert!(layer.reads() <= 2, "{}", layer.reads());
    }
}

/// Many files of some KiB, and their paths.
fn many() -> (Vec<String>, Vec<Vec<u8>>) {
    let numbers = 0..400u32;
    let bytes = |number: u32| {
        let words = (0..3000).map(move |at: u32| (at * at + number * 77).to_le_bytes());
        words.flatten().collect()
    };
    let paths = numbers.clone().map(|number| format!("f{number:03}"));
    (paths.collect(), numbers.map(bytes).collect())
}

#[test]
fn files_that_are_known_to_be_wanted_first_come_before_they_are_asked_for() {
    let (paths, bytes) = many();
    let pieces: Vec<[&[u8]; 1]> = bytes.iter().map(|bytes| [&bytes[..]]).collect();
    let files: Vec<_> = paths
        .iter()
        .zip(&pieces)
        .map(|(path, pieces)| (path.as_str(), &pieces[..]))
        .collect();
    for layer in [
        Layer::with_toc(Blob::estargz(&files)),
        Layer::with_toc(Blob::zstd_chunked(&files)),
    ] {
        layer.source.is_far.store(true, Ordering::SeqCst);
        // Each tenth, the last first, and one that this blob has not.
        let listed: Vec<usize> = (0..paths.len()).step_by(10).rev().collect();
        let mut digests: Vec<_> = listed.iter().map(|&at| Digest::of(&bytes[at])).collect();
        digests.insert(3, Digest::of(b"of another layer"));
        layer.files.fetch_first(&digests).unwrap();
        let asked: u64 = layer
            .source
            .reads
            .lock()
            .iter()
            .map(|one| one.end - one.start)
            .sum();
        for (at, path) in paths.iter().enumerate() {
            assert_eq!(layer.is_here(path), listed.contains(&at), "{path}");
        }
        let total = layer.source.bytes.lock().len() as u64;
        assert!(asked < total / 2, "{asked} of {total}");
        let reads = layer.reads();
        layer.files.fetch_first(&digests).unwrap();
        for &at in &listed {
            assert_eq!(layer.fetch(&paths[at]).unwrap(), bytes[at]);
        }
        assert_eq!(layer.reads(), reads, "all of them are here");
    }
}

#[test]
fn files_of_the_list_that_are_read_from_the_same_checkpoint_share_requests() {
    let (paths, bytes) = many();
    let pieces: Vec<[&[u8]; 1]> = bytes.iter().map(|bytes| [&bytes[..]]).collect();
    let files = paths.iter().zip(&pieces);
    let files: Vec<_> = files
        .map(|(path, pieces)| (path.as_str(), &pieces[..]))
        .collect();
    let blob = gzip(&archive(&files));
    let total = blob.len() as u64;
    let ordinary = Contents::of_gzip(&blob[..], &Limits::default()).unwrap();
    let layer = Layer::new(blob, &ordinary.contents);
    layer.source.is_far.store(true, Ordering::SeqCst);
    let order = (0..paths.len()).map(|at| at * 7 % paths.len());
    let digests: Vec<_> = order.map(|at| Digest::of(&bytes[at])).collect();
    layer.files.fetch_first(&digests).unwrap();
    let here = layer.files.here().unwrap();
    assert_eq!(here.cached, here.total);
    let reads = layer.source.reads.lock();
    let asked: u64 = reads.iter().map(|one| one.end - one.start).sum();
    assert!(asked < total * 4 / 3, "{asked} of {total} in {reads:?}");
}

#[test]
fn who_wants_a_file_of_the_list_waits_for_it_and_a_dead_registry_ends_the_list() {
    let (paths, bytes) = many();
    let pieces: Vec<[&[u8]; 1]> = bytes.iter().map(|bytes| [&bytes[..]]).collect();
    let files = paths.iter().zip(&pieces);
    let files: Vec<_> = files
        .map(|(path, pieces)| (path.as_str(), &pieces[..]))
        .collect();
    let layer = Layer::with_toc(Blob::estargz(&files));
    layer.source.is_far.store(true, Ordering::SeqCst);
    layer.source.is_dead.store(true, Ordering::SeqCst);
    let digests: Vec<_> = bytes.iter().map(|bytes| Digest::of(bytes)).collect();
    layer.files.fetch_first(&digests).expect_err("dead");
    layer.fetch("f001").expect_err("dead");
    layer.source.is_dead.store(false, Ordering::SeqCst);
    layer.source.is_slow.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let list = scope.spawn(|| layer.files.fetch_first(&digests));
        for at in [399, 200, 0] {
            assert_eq!(layer.fetch(&paths[at]).unwrap(), bytes[at]);
        }
        list.join().unwrap().unwrap();
    });
    // Others than the list's may still be landing.
    for (path, bytes) in paths.iter().zip(&bytes) {
        assert_eq!(layer.fetch(path).unwrap(), *bytes);
    }
    let here = layer.files.here().unwrap();
    assert_eq!(here.cached, here.total);
}

#[test]
fn a_large_ordinary_blob_is_read_in_parts() {
    let mut state = 1u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let next = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 60).to_string().into_bytes()
        });
        next.flatten().take(len).collect()
    };
    let (large, small) = (noise(9_000_000), noise(1000));
    let blob = gzip(&archive(&[("large", &[&large]), ("small", &[&small])]));
    let length = blob.len() as u64;
    let ordinary = Contents::of_gzip(&blob[..], &Limits::default()).unwrap();
    let layer = Layer::new(blob, &ordinary.contents);
    assert_eq!(layer.fetch("small").unwrap(), small);
    let read = layer.source.reads.lock().pop().unwrap();
    assert!(read.start > length / 2, "{read:?} of {length}");
    assert!(layer.fetch("large").unwrap() == large);
}

#[test]
fn many_who_want_a_file_wait_for_one() {
    for layer in layers() {
        layer.source.is_slow.store(true, Ordering::SeqCst);
        for is_dead in [true, false] {
            layer.source.is_dead.store(is_dead, Ordering::SeqCst);
            let (before, start) = (layer.reads(), Barrier::new(20));
            thread::scope(|scope| {
                for _ in 0..20 {
                    scope.spawn(|| {
                        start.wait();
                        match layer.fetch("large") {
                            Ok(bytes) => assert_eq!(bytes, b"first second third"),
                            Err(error) => {
                                assert!(is_dead, "{error}");
                                assert!(error.to_string().contains("dead"), "{error}");
                            }
                        }
                    });
                }
            });
            let reads = layer.reads() - before;
            assert!((1..20).contains(&reads), "{reads}");
            assert!(is_dead || reads == 1, "{reads}");
            assert!(layer.files.flights.under_way.lock().is_empty());
        }
    }
}

#[test]
fn damaged_bytes_reach_nobody() {
    for layer in layers() {
        let whole = layer.source.bytes.lock().clone();
        let find = |path: &str| {
            let found = layer.files.table.find(layer.ino(path)).unwrap();
            layer.files.table.chunk(found.chunks.start).stretch
        };
        let stretch = find("usr/one");
        // Behind the header of the compression.
        let middle = usize::try_from(stretch.start).unwrap() + 12;
        let damages: [fn(&mut Vec<u8>, usize); 4] = [
            |bytes, at| bytes[at] ^= 0x55,
            |bytes, at| bytes.truncate(at),
            |bytes, _| bytes.fill(0),
            |bytes, _| bytes.clear(),
        ];
        for damage in damages {
            let mut bytes = whole.clone();
            damage(&mut bytes, middle);
            *layer.source.bytes.lock() = bytes;
            let error = layer.fetch("usr/one").unwrap_err();
            assert!(matches!(error, Error::Blob { .. }), "{error}");
            assert_eq!(error.errno(), rustix::io::Errno::IO);
            assert!(!layer.is_here("usr/one"));
        }
        *layer.source.bytes.lock() = whole;
        assert_eq!(layer.fetch("usr/one").unwrap(), b"the bytes of one");
    }
}

/// A table of contents that gives a file the digest of another one, which other images have: if
/// it were believed, they would find its bytes in the cache.
#[test]
fn nobody_gets_another_ones_name_in_the_cache() {
    let victim = Digest::of(b"the shell of everybody");
    for multiple in [false, true] {
        let (head, tail) = (gzip(b"evil "), gzip(b"bytes"));
        let start = 10;
        let mut bytes = vec![0; start];
        bytes.write_all(&head).unwrap();
        bytes.write_all(&tail).unwrap();
        let mut entries = vec![serde_json::json!({
            "type": "reg", "name": "sh", "size": 5, "offset": start,
            "digest": victim.to_string(), "chunkDigest": Digest::of(b"evil ").to_string(),
        })];
        if multiple {
            entries[0]["size"] = 10.into();
            entries[0]["chunkSize"] = 5.into();
            entries.push(serde_json::json!({
                "type": "chunk", "name": "sh", "offset": start + head.len(), "chunkOffset": 5,
                "chunkSize": 5, "chunkDigest": Digest::of(b"bytes").to_string(),
            }));
        }
        let toc = Toc {
            json: serde_json::to_vec(&serde_json::json!({"version": 1, "entries": entries}))
                .unwrap(),
            data_end: bytes.len() as u64,
            compression: Compression::Gzip,
        };
        let contents = Contents::of_toc(&toc, &Limits::default()).unwrap();
        let layer = Layer::new(bytes, &contents);
        let error = layer.fetch("sh").unwrap_err();
        assert!(error.to_string().contains("a file has digest"), "{error}");
        let size = if multiple { 10 } else { 5 };
        assert!(layer.files.cache.find(victim, size).unwrap().is_none());
        assert_eq!(layer.files.cache.holds().unwrap().files, 0);
    }
}

#[test]
fn what_comes_first_is_fetched_first() {
    let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
    let (one, two) = (gzip(b"one"), gzip(b"two"));
    let entries = serde_json::json!([
        {"type": "reg", "name": "one", "size": 3, "offset": 0, "chunkDigest": digest(b"one")},
        {"type": "reg", "name": ".prefetch.landmark", "size": 3, "offset": one.len(),
         "chunkDigest": digest(b"two")},
        {"type": "reg", "name": "two", "size": 3, "offset": one.len(), "chunkDigest": digest(b"two")},
    ]);
    let bytes = [one, two].concat();
    let toc = Toc {
        json: serde_json::to_vec(&serde_json::json!({"version": 1, "entries": entries})).unwrap(),
        data_end: bytes.len() as u64,
        compression: Compression::Gzip,
    };
    let contents = Contents::of_toc(&toc, &Limits::default()).unwrap();
    let layer = Layer::new(bytes, &contents);
    layer.files.prefetch().unwrap();
    assert!(layer.is_here("one") && !layer.is_here("two"));
    assert!(layer.dir.path().join("cache/files").is_dir());
}

#[test]
fn an_ordinary_blob_that_is_damaged_is_refused() {
    let blob = gzip(&archive(FILES));
    for cut in [0, 1, blob.len() / 2, blob.len() - 1] {
        Contents::of_gzip(&blob[..cut], &Limits::default()).expect_err("cut off");
    }
    Contents::of_gzip(&zstd(b"another format")[..], &Limits::default()).expect_err("no gzip");
}

/// A file of 5 MiB in chunks of half a MiB.
fn large() -> Vec<Vec<u8>> {
    let chunk = |number: u32| {
        let words = (0..1 << 17).map(move |at: u32| (at / 7 * (number + 3)).to_le_bytes());
        words.flatten().collect()
    };
    (0..10).map(chunk).collect()
}

fn with_large(chunks: &[Vec<u8>]) -> [Layer; 2] {
    let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
    let files: Packed<'_> = &[("large", &chunks), ("small", &[b"small"])];
    let blobs = [Blob::estargz(files), Blob::zstd_chunked(files)];
    blobs.map(|blob| {
        let layer = Layer::with_toc(blob);
        layer.files.come_in_part_from(1 << 20);
        layer
    })
}

fn read_part(file: &dyn Arriving, at: u64, len: usize) -> Result<Vec<u8>> {
    file.fetch(at..at + len as u64)?;
    assert!(file.has(at..at + len as u64));
    let mut bytes = vec![0; len];
    std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut bytes, at)?;
    Ok(bytes)
}

#[test]
fn of_a_large_file_only_those_chunks_come_that_are_read() {
    let chunks = large();
    let bytes = chunks.concat();
    for layer in with_large(&chunks) {
        let ino = layer.ino("large");
        assert!(
            arriving(&layer.files, layer.ino("small"))
                .unwrap()
                .is_none()
        );
        let file = arriving(&layer.files, ino).unwrap().expect("large");
        assert_eq!(layer.reads(), 0);
        assert_eq!(file.file().metadata().unwrap().len(), bytes.len() as u64);
        // In the middle, over the border of two chunks, and at the end.
        for (at, reads) in [(21 << 17, 1), ((8 << 17) - 5, 2), (bytes.len() - 10, 3)] {
            assert!(!file.has(at as u64..at as u64 + 10));
            assert_eq!(
                read_part(&*file, at as u64, 10).unwrap(),
                bytes[at..at + 10]
            );
            assert_eq!(
                read_part(&*file, at as u64, 10).unwrap(),
                bytes[at..at + 10]
            );
            assert_eq!(layer.reads(), reads, "at {at}");
        }
        // Behind the end there is nothing to wait for.
        let end = bytes.len() as u64;
        assert!(file.has(end..end + 5) && !file.has(0..u64::MAX));
        // The others, by whoever opens it next.
        drop(file);
        let file = arriving(&layer.files, ino).unwrap().expect("large");
        assert!(file.has(21 << 17..(21 << 17) + 10));
        file.fetch(0..u64::MAX).unwrap();
        assert!(file.has(0..u64::MAX) && layer.is_here("large"));
        assert!(arriving(&layer.files, ino).unwrap().is_none());
        assert!(layer.fetch("large").unwrap() == bytes);
        let mut asked = layer.source.reads.lock().clone();
        asked.sort_by_key(|range| range.start);
        let twice = asked.windows(2).filter(|pair| pair[1].start < pair[0].end);
        assert_eq!(twice.count(), 0, "no byte is asked for twice: {asked:?}");
        assert!(new_files(&layer).is_empty());
    }
}

fn new_files(layer: &Layer) -> Vec<std::ffi::OsString> {
    let new = std::fs::read_dir(layer.dir.path().join("cache/new")).unwrap();
    new.map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn what_is_not_whole_is_counted_and_goes_when_nobody_has_it_open() {
    let chunks = large();
    for layer in with_large(&chunks) {
        let cache = &layer.files.cache;
        assert_eq!(cache.unfinished().unwrap(), 0);
        let ino = layer.ino("large");
        let file = arriving(&layer.files, ino).unwrap().expect("large");
        read_part(&*file, 5 << 17, 10).unwrap();
        let bytes = cache.unfinished().unwrap();
        assert!((1 << 17..1 << 20).contains(&bytes), "{bytes}");
        layer.files.drop_unused_parts();
        assert!(file.has(5 << 17..(5 << 17) + 10));
        assert_eq!(cache.unfinished().unwrap(), bytes);
        drop(file);
        layer.files.drop_unused_parts();
        assert_eq!(cache.unfinished().unwrap(), 0);
        let file = arriving(&layer.files, ino).unwrap().expect("large");
        assert!(!file.has(5 << 17..(5 << 17) + 10));
        assert!(layer.fetch("large").unwrap() == chunks.concat());
        assert_eq!(cache.unfinished().unwrap(), 0);
    }
}

#[test]
fn many_who_read_a_large_file_fetch_each_chunk_once() {
    let chunks = large();
    let bytes = chunks.concat();
    for layer in with_large(&chunks) {
        layer.source.is_slow.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            for reader in 0..8 {
                let (layer, bytes) = (&layer, &bytes);
                scope.spawn(move || {
                    let file = arriving(&layer.files, layer.ino("large")).unwrap();
                    let Some(file) = file else { return };
                    for step in 0..20 {
                        let at = (reader * 7 + step) % 20 * (2 << 17);
                        let found = read_part(&*file, at as u64, 1000).unwrap();
                        assert!(found == bytes[at..at + 1000]);
                    }
                });
            }
        });
        assert!(layer.fetch("large").unwrap() == bytes);
        let asked = layer.source.reads.lock();
        let sum: u64 = asked.iter().map(|range| range.end - range.start).sum();
        let total = layer.source.bytes.lock().len() as u64;
        assert!(sum <= total, "{sum} of {total}");
    }
}

#[test]
fn who_reads_a_large_file_to_its_end_finds_it_fetched_ahead() {
    let chunks = large();
    let bytes = chunks.concat();
    let [layer, _] = with_large(&chunks);
    let file = arriving(&layer.files, layer.ino("large"))
        .unwrap()
        .expect("large");
    for at in (0..bytes.len()).step_by(1 << 17) {
        assert!(read_part(&*file, at as u64, 1 << 17).unwrap() == bytes[at..at + (1 << 17)]);
    }
    assert!(layer.reads() < chunks.len(), "{}", layer.reads());
    file.fetch(0..u64::MAX).unwrap();
    assert!(layer.is_here("large"));
    // Where there is no room for what nobody has read, each chunk is asked for by whoever reads it.
    let [layer, _] = with_large(&chunks);
    layer.files.cache.set_scarce(true);
    let file = arriving(&layer.files, layer.ino("large"))
        .unwrap()
        .expect("large");
    for at in (0..bytes.len()).step_by(1 << 17) {
        assert!(read_part(&*file, at as u64, 1 << 17).unwrap() == bytes[at..at + (1 << 17)]);
    }
    assert_eq!(layer.reads(), chunks.len());
}

#[test]
fn a_damaged_chunk_of_a_large_file_is_an_error_and_the_others_are_not() {
    let chunks = large();
    let bytes = chunks.concat();
    for layer in with_large(&chunks) {
        let file = arriving(&layer.files, layer.ino("large"))
            .unwrap()
            .expect("large");
        read_part(&*file, 0, 10).unwrap();
        let second = layer.source.reads.lock()[0].end;
        let damage =
            |by: u8| layer.source.bytes.lock()[usize::try_from(second).unwrap() + 700] ^= by;
        damage(1);
        read_part(&*file, 5 << 17, 10).expect_err("damaged");
        assert!(!file.has(5 << 17..6 << 17));
        read_part(&*file, 9 << 17, 10).unwrap();
        layer.source.is_dead.store(true, Ordering::SeqCst);
        read_part(&*file, 13 << 17, 10).expect_err("dead");
        layer.source.is_dead.store(false, Ordering::SeqCst);
        damage(1);
        let at = 5 << 17;
        assert_eq!(
            read_part(&*file, at as u64, 10).unwrap(),
            bytes[at..at + 10]
        );
        // One that nobody reads on with leaves nothing.
        drop(file);
        let dir = layer.dir.path().join("cache/new");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        let Layer { files, dir, .. } = layer;
        drop(files);
        assert_eq!(
            std::fs::read_dir(dir.path().join("cache/new"))
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn chunks_that_make_another_file_are_no_file() {
    let (one, two) = (gzip(b"one "), gzip(b"two"));
    let part = |kind: &str, offset: usize, at: usize, bytes: &[u8]| {
        serde_json::json!({
            "type": kind, "name": "large", "offset": offset, "chunkOffset": at,
            "chunkSize": bytes.len(), "chunkDigest": Digest::of(bytes).to_string(),
        })
    };
    let mut entries = [
        part("reg", 0, 0, b"one "),
        part("chunk", one.len(), 4, b"two"),
    ];
    entries[0]["size"] = 7.into();
    entries[0]["digest"] = Digest::of(b"another file").to_string().into();
    let bytes = [one, two].concat();
    let toc = Toc {
        json: serde_json::to_vec(&serde_json::json!({"version": 1, "entries": entries})).unwrap(),
        data_end: bytes.len() as u64,
        compression: Compression::Gzip,
    };
    let layer = Layer::new(bytes, &Contents::of_toc(&toc, &Limits::default()).unwrap());
    layer.files.come_in_part_from(1);
    let file = arriving(&layer.files, layer.ino("large"))
        .unwrap()
        .expect("large");
    // Each chunk is what the table says of it, and the whole is not.
    assert_eq!(read_part(&*file, 0, 4).unwrap(), b"one ");
    file.fetch(0..7).unwrap_err();
    file.fetch(0..4).unwrap_err();
    assert!(!file.has(0..4) && !layer.is_here("large"));
    assert_eq!(layer.files.cache.holds().unwrap().files, 0);
}
