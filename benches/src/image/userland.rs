//! The tree of a big userland, from a seed.

use std::path::PathBuf;

use fastrand::Rng;

use super::{Kind, Node, Scale};

/// The directory with the modules that the work `start` looks for.
pub const USERLAND_MODULES: &str = "usr/lib/modules.d";

/// Where packages have their files, and how many of a hundred packages do.
const ROOTS: [(&str, u32); 4] = [
    ("usr/share", 50),
    ("usr/lib", 28),
    ("usr/include", 14),
    ("etc", 8),
];

/// Directories of one package, and files in each, on average.
const DIRS_OF_PACKAGE: u32 = 10;

/// The time of the oldest file.
pub(super) const EPOCH: i64 = 1_600_000_000;

/// All names, parents first.
pub(super) fn nodes(scale: Scale) -> Vec<Node> {
    let mut maker = Maker::new(0x1A31_4A00);
    for dir in [
        "usr",
        "usr/share",
        "usr/lib",
        "usr/include",
        "etc",
        "var",
        "var/info",
    ] {
        maker.dir(dir.into());
    }
    for number in 0..scale.count(1200) {
        maker.package(number);
    }
    // As `/var/lib/dpkg/info`: one directory with thousands of files.
    for number in 0..scale.count(3000) {
        maker.place = maker.rng.u32(..);
        maker.file(format!("var/info/package{number:05}.list").into());
    }
    maker.modules(scale);
    maker.nodes
}

/// Adds the directory that the work `start` looks into to an image that has none.
pub(super) fn add_modules(nodes: &mut Vec<Node>, scale: Scale) {
    let mut maker = Maker::new(0x1A31_4A01);
    maker.modules(scale);
    nodes.append(&mut maker.nodes);
}

struct Maker {
    rng: Rng,
    nodes: Vec<Node>,
    /// The package's: most files of a package lie in one layer.
    place: u32,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        Maker {
            rng: Rng::with_seed(seed),
            nodes: Vec::new(),
            place: 0,
        }
    }

    /// A package: a directory with directories, most of them not deep.
    fn package(&mut self, number: usize) {
        self.place = self.rng.u32(..);
        let mut share = self.rng.u32(0..100);
        let root = ROOTS.iter().find(|(_, percent)| {
            let here = share < *percent;
            share = share.saturating_sub(*percent);
            here
        });
        let root = root.map_or("usr/share", |(root, _)| root);
        let mut dirs = vec![PathBuf::from(format!("{root}/package{number:04}"))];
        for dir in 1..DIRS_OF_PACKAGE {
            let parent = &dirs[self.rng.usize(..dirs.len())];
            dirs.push(parent.join(format!("part{dir}")));
        }
        for dir in dirs {
            self.dir(dir.clone());
            for file in 0..self.rng.u32(0..21) {
                let path = dir.join(format!("{}{file}", self.word()));
                if self.rng.u8(..100) < 4 {
                    self.symlink(path);
                } else {
                    self.file(path);
                }
            }
        }
    }

    /// [`USERLAND_MODULES`], with all modules.
    fn modules(&mut self, scale: Scale) {
        self.dir(USERLAND_MODULES.into());
        for number in 0..scale.count(1200) {
            self.place = self.rng.u32(..);
            self.file(format!("{USERLAND_MODULES}/module{number:04}.so").into());
        }
    }

    fn dir(&mut self, path: PathBuf) {
        let mtime = self.time();
        self.push(path, Kind::Dir, 0o755, mtime);
    }

    fn symlink(&mut self, path: PathBuf) {
        let target = PathBuf::from(format!("../{}", self.word()));
        // Its permissions and time can't be chosen everywhere.
        self.push(path, Kind::Symlink(target), 0o777, EPOCH);
    }

    fn file(&mut self, path: PathBuf) {
        let size = self.size();
        let seed = self.rng.u64(..);
        let mode = if self.rng.u8(..100) < 15 {
            0o755
        } else {
            0o644
        };
        let mtime = self.time();
        self.push(path, Kind::File { size, seed }, mode, mtime);
    }

    fn push(&mut self, path: PathBuf, kind: Kind, mode: u32, mtime: i64) {
        // One file in five is not where the rest of its package is: an update, a configuration.
        let place = if self.rng.u8(..5) == 0 {
            self.rng.u32(..)
        } else {
            self.place
        };
        self.nodes.push(Node {
            path,
            kind,
            mode,
            mtime,
            place,
        });
    }

    /// As in a userland: half of the files below 4 KiB, a few of them large.
    fn size(&mut self) -> u64 {
        match self.rng.u8(..100) {
            0..55 => self.rng.u64(1..4096),
            55..90 => self.rng.u64(4096..32 << 10),
            _ => self.rng.u64(32 << 10..256 << 10),
        }
    }

    fn time(&mut self) -> i64 {
        EPOCH + self.rng.i64(0..100_000_000)
    }

    /// A name of four to eleven letters.
    fn word(&mut self) -> String {
        let length = self.rng.usize(4..12);
        (0..length).map(|_| self.rng.lowercase()).collect()
    }
}
