//! Whoever makes an index may write into it what they like.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::blob::testing::gzip;
use crate::blob::{Cache, Contents, Files, Source};
use crate::index::seal;

fn archive(names: &[&str]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for name in names {
        let bytes = name.repeat(1000);
        let mut header = ::tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        let appended = builder.append_data(&mut header, name, bytes.as_bytes());
        appended.unwrap();
    }
    gzip(&builder.into_inner().unwrap())
}

struct Saved {
    dir: tempfile::TempDir,
    blob: (Digest, u64),
}

impl Saved {
    fn of(names: &[&str]) -> Saved {
        let blob = archive(names);
        let ordinary = Contents::of_gzip(&blob[..], &Limits::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let [index, table] = ["index", "table"].map(|name| dir.path().join(name));
        ordinary.contents.save(&index, &table).unwrap();
        let blob = (ordinary.digest, blob.len() as u64);
        Saved { dir, blob }
    }

    fn check(&self, table_of: &Saved, blob: (Digest, u64)) -> Option<Attr> {
        let (index, table) = (
            self.dir.path().join("index"),
            table_of.dir.path().join("table"),
        );
        let checked = check_told(&index, &table, blob, &Limits::default());
        checked.ok().and_then(Result::ok).map(|(root, _)| root)
    }
}

#[test]
fn only_what_belongs_together_and_to_the_blob_is_taken() {
    let (one, other) = (Saved::of(&["a", "dir/b"]), Saved::of(&["a", "dir/bb", "c"]));
    let root = one.check(&one, one.blob).expect("sound");
    assert_eq!(root.kind, FileKind::Directory);
    assert!(one.check(&one, other.blob).is_none());
    assert!(one.check(&other, one.blob).is_none());
    assert!(other.check(&one, other.blob).is_none());
    assert!(one.check(&one, (one.blob.0, one.blob.1 / 2)).is_none());
}

#[test]
fn a_damaged_one_is_refused_wherever_it_is_damaged() {
    let saved = Saved::of(&["a", "dir/b"]);
    for name in ["index", "table"] {
        let path = saved.dir.path().join(name);
        let sound = std::fs::read(&path).unwrap();
        for at in (0..sound.len()).step_by(7) {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            assert!(saved.check(&saved, saved.blob).is_none(), "{name}, {at}");
        }
        std::fs::write(&path, &sound[..sound.len() / 2]).unwrap();
        assert!(saved.check(&saved, saved.blob).is_none());
        std::fs::write(&path, &sound).unwrap();
    }
    assert!(saved.check(&saved, saved.blob).is_some());
}

/// A blob that nobody may ask for bytes behind its end.
struct Strict(Vec<u8>);

impl Source for Strict {
    fn name(&self) -> &'static str {
        "strict"
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        Ok(self.0.get(range).expect("within the blob").to_vec())
    }
}

/// A sound index and table, of which the bytes are changed.
struct Changed {
    blob: Vec<u8>,
    sound: [Vec<u8>; 2],
    /// All that its files have.
    bytes: Vec<u8>,
    dir: tempfile::TempDir,
    /// For those whose table is sound: they ask for nothing that was not asked for before.
    cache: Arc<Cache>,
}

impl Changed {
    fn new() -> Changed {
        let names = ["a", "dir/b", "dir/deeper/c"];
        let blob = archive(&names);
        let ordinary = Contents::of_gzip(&blob[..], &Limits::default()).unwrap();
        let (index, table) = ordinary.contents.bytes().unwrap();
        let mut archive = Vec::new();
        let mut unpacked = flate2::read::GzDecoder::new(&blob[..]);
        io::Read::read_to_end(&mut unpacked, &mut archive).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("cache")).unwrap();
        Changed {
            cache: Arc::new(Cache::open(&dir.path().join("cache")).unwrap()),
            blob,
            sound: [index, table],
            bytes: archive,
            dir,
        }
    }

    /// Changes bytes of one of both, with the checksum that fits. If they are taken, no file has bytes
    /// that the archive does not have. Whether they are.
    fn ask(&self, which: usize, changes: &[(usize, u8)]) -> bool {
        let mut both = self.sound.clone();
        for (at, by) in changes {
            let at = at % both[which].len();
            both[which][at] ^= by;
        }
        seal(&mut both[which]);
        let paths = ["index", "table"].map(|name| self.dir.path().join(name));
        for (path, bytes) in paths.iter().zip(&both) {
            std::fs::write(path, bytes).unwrap();
        }
        let limits = Limits::default();
        let blob = (Digest::of(&self.blob), self.blob.len() as u64);
        if !check_told(&paths[0], &paths[1], blob, &limits).is_ok_and(|told| told.is_ok()) {
            return false;
        }
        let own = tempfile::tempdir_in(self.dir.path()).unwrap();
        let cache = match which {
            0 => Arc::clone(&self.cache),
            _ => Arc::new(Cache::open(own.path()).unwrap()),
        };
        let source = Arc::new(Strict(self.blob.clone()));
        let files = Files::open(&paths[1], source, cache, Arc::default(), &limits).unwrap();
        let index = Index::open(&paths[0], Kind::Layer).unwrap();
        let mut dirs = vec![Index::ROOT];
        while let Some(dir) = dirs.pop() {
            for record in index.children(dir) {
                match index.kind(record) {
                    EntryKind::File(FileKind::Directory) => dirs.push(record),
                    EntryKind::File(FileKind::Regular) => {
                        let Ok(mut file) = files.fetch(index.ino(record)) else {
                            continue;
                        };
                        let mut found = Vec::new();
                        io::Read::read_to_end(&mut file, &mut found).unwrap();
                        assert_eq!(found.len() as u64, index.attr(record).size);
                        let mut parts = self.bytes.windows(found.len().max(1));
                        assert!(found.is_empty() || parts.any(|part| part == found));
                    }
                    _ => {}
                }
            }
        }
        true
    }
}

#[test]
fn one_that_was_tampered_with_gives_no_bytes_that_the_blob_does_not_have() {
    let changed = Changed::new();
    for which in 0..2 {
        // Each table that is taken costs a cache.
        let step = if which == 0 { 1 } else { 5 };
        let all = (0..changed.sound[which].len()).step_by(step);
        let taken = all.filter(|at| changed.ask(which, &[(*at, 0x01)])).count();
        // A name, a time or a digest may be any; most else may not.
        let length = changed.sound[which].len();
        assert!((1..length).contains(&taken), "{taken} of {length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nor_does_one_that_was_tampered_with_in_several_places(
        which in 0usize..2,
        changes in prop::collection::vec((0usize..4000, any::<u8>()), 1..5),
    ) {
        Changed::new().ask(which, &changes);
    }
}

#[test]
fn what_no_archive_can_have_is_refused() {
    let saved = Saved::of(&["a", "dir/b"]);
    let index = saved.dir.path().join("index");
    let table = Table::open(&saved.dir.path().join("table"), &Limits::default()).unwrap();
    let size = saved.blob.1;
    let entry = |name: &str, kind, ino, below| crate::index::Entry {
        name: name.into(),
        kind: EntryKind::File(kind),
        attr: Some(Attr {
            ino: Ino(ino),
            kind,
            ..Index::open(&index, Kind::Layer).unwrap().attr(Index::ROOT)
        }),
        xattrs: Vec::new(),
        target: None,
        below,
        layer: 0,
        source: None,
        data: None,
    };
    let check = |top: Vec<crate::index::Entry>, limits: &Limits| {
        let root = (
            entry("", FileKind::Directory, 1, Below::SamePath),
            Path::new("").to_owned(),
        );
        let told: Result<_, crate::index::Flaw> =
            crate::index::build(Kind::Layer, &[stamp_of(saved.blob.0)], root, |path| {
                let top = if path.as_os_str().is_empty() {
                    top.clone()
                } else {
                    Vec::new()
                };
                Ok(top
                    .into_iter()
                    .map(|entry| (entry.clone(), path.join(&entry.name)))
                    .collect())
            });
        let told = Index::of_bytes(told.unwrap(), Kind::Layer).unwrap();
        check(&told, &table, size, limits).unwrap_err().to_string()
    };
    let dir = |below| entry("etc", FileKind::Directory, 9, below);
    let limits = Limits::default();
    for (top, what) in [
        (
            dir(Below::Redirect("root".into())),
            "a mark that no archive",
        ),
        (dir(Below::Sibling("root".into())), "a mark that no archive"),
        (
            entry("f", FileKind::Regular, 9, Below::SamePath),
            "a mark that no archive",
        ),
        (
            entry("f", FileKind::Regular, 9, Below::Nothing),
            "told otherwise",
        ),
        (
            entry("d", FileKind::Directory, 1, Below::SamePath),
            "another one's",
        ),
        (dir(Below::SamePath), "files that it does not have"),
    ] {
        let said = check(vec![top], &limits);
        assert!(said.contains(what), "{said}");
    }
    let mut private = dir(Below::SamePath);
    private.xattrs = vec![("trusted.overlay.metacopy".into(), Vec::new())];
    assert!(check(vec![private], &limits).contains("no archive may have"));
    let few = Limits {
        entries: 1,
        ..limits
    };
    assert!(check(vec![dir(Below::SamePath)], &few).contains("more than 1"));
    let flat = Limits { depth: 0, ..limits };
    assert!(check(vec![dir(Below::SamePath)], &flat).contains("more than 0"));
}
