//! Works that walk through a tree: find with stat, and tar.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Result, ensure};
use walkdir::WalkDir;

use super::{Cache, Input, Outcome, Place, Target, Work};
use crate::ground::Layers;
use crate::image::{Image, Kind, Node, contents};

const FIND: Work = Work {
    name: "find-cold",
    title: "find with stat, cold",
    layers: Layers::Userland(2),
    cache: Cache::Cold,
    target: Target::Overlayfs(0.4),
    prepare: |place| {
        Ok(Input {
            paths: Vec::new(),
            expected: everything(place.image()),
        })
    },
    run: |place, _| find(place.root),
    check: None,
};

/// The works of this module.
pub(super) fn works() -> Vec<Work> {
    vec![
        FIND,
        Work {
            name: "find-cold-20",
            title: "find with stat, cold, 20 layers",
            layers: Layers::Userland(20),
            target: Target::None,
            ..FIND
        },
        Work {
            name: "find-cold-128",
            title: "find with stat, cold, 128 layers",
            layers: Layers::Userland(128),
            target: Target::None,
            ..FIND
        },
        Work {
            name: "find-warm",
            title: "find with stat, warm",
            cache: Cache::Warm,
            target: Target::Overlayfs(1.0),
            ..FIND
        },
        Work {
            name: "tar-warm",
            title: "tar of /usr/share, warm",
            cache: Cache::Warm,
            target: Target::Overlayfs(1.3),
            prepare: |place| Ok(share(place)),
            run: |place, _| tar(place.root),
            ..FIND
        },
    ]
}

/// Every name of the image and its attributes: what [`find`] has to give.
pub(crate) fn everything(image: &Image) -> Outcome {
    let mut expected = Outcome::default();
    for node in image.nodes() {
        let seen = Seen::expected(node, 0, 0);
        expected.add(seen.size, seen.digest(&node.path));
    }
    expected
}

/// Walks through everything below `root`, and looks at each name's attributes.
pub(crate) fn find(root: &Path) -> Result<Outcome> {
    find_with(root, |seen| seen)
}

/// The same, but `of_interest` says what of the attributes counts.
pub(super) fn find_with(root: &Path, of_interest: fn(Seen) -> Seen) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for entry in WalkDir::new(root).min_depth(1) {
        let entry = entry?;
        let seen = of_interest(Seen::of(&entry.metadata()?));
        outcome.add(seen.size, seen.digest(entry.path().strip_prefix(root)?));
    }
    Ok(outcome)
}

/// How many names there are below `root`.
pub(super) fn count(root: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in WalkDir::new(root).min_depth(1) {
        entry?;
        count += 1;
    }
    Ok(count)
}

/// The attributes that an image decides. The size of a directory is its file system's affair.
pub(super) struct Seen {
    kind_and_mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
}

impl Seen {
    fn of(metadata: &Metadata) -> Seen {
        let dir = metadata.is_dir();
        // The time of a symlink is when the layer was written.
        let symlink = metadata.is_symlink();
        Seen {
            kind_and_mode: metadata.permissions().mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: if dir { 0 } else { metadata.size() },
            mtime: if symlink { 0 } else { metadata.mtime() },
        }
    }

    /// As a node of the image has to be, with this owner.
    pub(super) fn expected(node: &Node, uid: u32, gid: u32) -> Seen {
        let (kind, size, mtime) = match &node.kind {
            Kind::Dir => (0o040_000, 0, node.mtime),
            Kind::File { size, .. } => (0o100_000, *size, node.mtime),
            Kind::Symlink(target) => (0o120_000, target.as_os_str().len() as u64, 0),
        };
        Seen {
            kind_and_mode: kind | node.mode,
            uid,
            gid,
            size,
            mtime,
        }
    }

    /// The same, if directories may have any time.
    pub(super) fn without_times_of_dirs(mut self) -> Seen {
        if self.kind_and_mode & 0o170_000 == 0o040_000 {
            self.mtime = 0;
        }
        self
    }

    /// Its length; 0 for a directory.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// A number for these attributes at this path.
    pub(super) fn digest(&self, path: &Path) -> u64 {
        let mut digest = contents::Digest::default();
        digest.add(path.as_os_str().as_encoded_bytes());
        for number in [self.kind_and_mode, self.uid, self.gid] {
            digest.add(&number.to_le_bytes());
        }
        digest.add(&self.size.to_le_bytes());
        digest.add(&self.mtime.to_le_bytes());
        digest.finish()
    }
}

/// The archive of the files and symlinks that the image has in `usr/share`, as the `tar` crate
/// makes it: names, sizes and bytes go into the digest.
fn share(place: &Place) -> Input {
    let mut expected = Outcome::default();
    for node in place.image().below(Path::new("usr/share")) {
        let (size, bytes) = match node.kind {
            Kind::File { size, seed } => (size, contents::digest_of_file(seed, size)),
            Kind::Dir | Kind::Symlink(_) => (0, contents::digest(&[])),
        };
        expected.add(size, member(&node.path, bytes));
    }
    Input {
        paths: Vec::new(),
        expected,
    }
}

/// Packs `usr/share` into an archive that nobody keeps.
fn tar(root: &Path) -> Result<Outcome> {
    let mut archive = tar::Builder::new(io::sink());
    archive.follow_symlinks(false);
    let mut outcome = Outcome::default();
    for entry in WalkDir::new(root.join("usr/share")) {
        let entry = entry?;
        let path = entry.path().strip_prefix(root)?;
        let metadata = entry.metadata()?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        let mut digest = contents::Digest::default();
        if metadata.is_file() {
            let data = Digesting(File::open(entry.path())?, &mut digest);
            archive.append_data(&mut header, path, data)?;
        } else if metadata.is_symlink() {
            archive.append_link(&mut header, path, std::fs::read_link(entry.path())?)?;
        } else {
            archive.append_data(&mut header, path, io::empty())?;
        }
        let size = if metadata.is_file() {
            metadata.len()
        } else {
            0
        };
        outcome.add(size, member(path, digest.finish()));
    }
    archive.into_inner()?.flush()?;
    ensure!(outcome.count > 0, "nothing to pack");
    Ok(outcome)
}

fn member(path: &Path, bytes: u64) -> u64 {
    contents::digest(path.as_os_str().as_encoded_bytes()) ^ bytes
}

/// A reader that digests what it gives.
struct Digesting<'a>(File, &'a mut contents::Digest);

impl Read for Digesting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(buffer)?;
        self.1.add(&buffer[..length]);
        Ok(length)
    }
}
