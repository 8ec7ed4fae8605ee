//! An index and a chunk table of an ordinary gzip blob, as somebody else tells them.
//!
//! Each file is verified by itself when it is opened. What is looked for here is that the two belong
//! together and to this blob, so that whatever is wrong with them shows before a container does.
//! Whether they tell the truth about the blob only reading all of it can say.

use std::path::Path;

use super::contents::stamp_of;
use super::digest::Digest;
use super::limits::Limits;
use super::table::Table;
use super::{Compression, Flaw};
use crate::error::Result;
use crate::index::{Index, Kind};
use crate::layer::EntryKind;
use crate::types::{Attr, FileKind};

/// What an index and a table were held against.
const TOLD: &str = "an index that somebody else has made";

/// Looks through the index and the chunk table of a gzip blob with this digest and size in bytes. Answers
/// the attributes of the layer's root.
pub fn check_told(
    index: &Path,
    table: &Path,
    blob: (Digest, u64),
    limits: &Limits,
) -> Result<Result<Attr, Flaw>> {
    let (digest, size) = blob;
    let index_path = index;
    let index = Index::open(index, Kind::Layer)?;
    let stamped = index.check_stamps(&[stamp_of(digest)]);
    stamped.map_err(|flaw| flaw.of(index_path))?;
    let table = Table::open(table, limits)?;
    Ok(check(&index, &table, size))
}

fn check(index: &Index, table: &Table, size: u64) -> Result<Attr, Flaw> {
    let wrong = |path: &Path, what| Flaw::Entry {
        path: path.to_owned(),
        what,
    };
    let whole = |what| wrong(Path::new(TOLD), what);
    if table.compression() != Compression::Checkpoints {
        return Err(whole("it is one of another sort of blob"));
    }
    for number in 0..table.chunks() {
        let stretch = table.chunk(number).stretch;
        if stretch.end > size || table.checkpoint(stretch.start).is_none() {
            return Err(whole("a chunk is not where the blob can be read"));
        }
    }
    let mut files = 0;
    let mut dirs = vec![0];
    while let Some(dir) = dirs.pop() {
        for record in index.children(dir) {
            match index.kind(record) {
                EntryKind::File(FileKind::Directory) => dirs.push(record),
                EntryKind::File(FileKind::Regular) => {
                    let (ino, length) = (index.ino(record), index.attr(record).size);
                    let found = table.find(ino);
                    if found.is_none_or(|found| found.size != length) {
                        return Err(wrong(&index.path(record), "its bytes are told otherwise"));
                    }
                    files += 1;
                }
                _ => {}
            }
        }
    }
    // Hard links are several names of one file.
    if files < table.files().len() {
        return Err(whole("it has bytes of files that it does not have"));
    }
    Ok(index.attr(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Contents;
    use crate::blob::testing::gzip;

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
            checked.ok().and_then(Result::ok)
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
}
