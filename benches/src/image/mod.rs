//! The image: every name, attribute and byte of it, as a value.
//!
//! An image of a userland has one of two [`Source`]s. [`Source::Made`] is the shape of a big userland: packages with directories of small files
//! below `usr/share`, `usr/lib`, `usr/include` and `etc`, one directory with thousands of files,
//! and symlinks. [`Source::Debian`] are the names of real packages. [`Image::data`] holds one large file for the works that read and write data.
//! A seed decides everything, so that two hosts measure the same image. [`layers`] writes an image
//! as layers; what a mount of them has to show is this value.

pub mod contents;
mod debian;
pub mod layers;
pub mod repository;
mod userland;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use userland::USERLAND_MODULES;

/// The large file of [`Image::data`].
pub const BIG: &str = "data/big";

/// How large everything is: 1 is about 120,000 files and a file of 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale(f64);

impl Scale {
    /// The sizes times `factor`, which must be above 0 and at most 4.
    pub fn new(factor: f64) -> Option<Scale> {
        (factor > 0.0 && factor <= 4.0).then_some(Scale(factor))
    }

    /// The factor.
    pub fn factor(self) -> f64 {
        self.0
    }

    /// So many of something of which there are `full` at scale 1; at least one.
    pub fn count(self, full: u32) -> usize {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let count = (f64::from(full) * self.0).round() as usize;
        count.max(1)
    }

    /// So many bytes of `full` MiB at scale 1, in whole MiB.
    pub fn mebibytes(self, full: u32) -> u64 {
        (self.count(full) as u64) << 20
    }
}

/// Where a userland comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// From a seed: needs nothing
    Made,
    /// From the names of Debian packages, which are fetched once
    Debian,
}

impl Source {
    /// Its word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Source::Made => "made",
            Source::Debian => "debian",
        }
    }
}

/// One name of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it is, relative to the root.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its permission bits.
    pub mode: u32,
    /// Its modification time, in seconds.
    pub mtime: i64,
    /// Decides, together with the number of layers, in which layer it lies.
    pub place: u32,
}

/// What a name of the image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file whose bytes are [`contents::fill`] of the seed.
    File {
        /// Its length.
        size: u64,
        /// What decides its bytes.
        seed: u64,
    },
    /// A symlink to this text.
    Symlink(PathBuf),
}

/// A whole image. Parents stand before their children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    nodes: Vec<Node>,
}

impl Image {
    /// The tree of a big userland. `dir` keeps what was fetched for it.
    pub fn userland(source: Source, dir: &Path, scale: Scale) -> Result<Image> {
        let nodes = match source {
            Source::Made => userland::nodes(scale),
            Source::Debian => debian::nodes(dir, scale)?,
        };
        Ok(Image { nodes })
    }

    /// One large file, [`BIG`].
    pub fn data(scale: Scale) -> Image {
        let node = |path: &str, kind, mode| Node {
            path: path.into(),
            kind,
            mode,
            mtime: 1_700_000_000,
            place: 0,
        };
        let big = Kind::File {
            size: scale.mebibytes(1024),
            seed: 0xB16,
        };
        Image {
            nodes: vec![
                node("data", Kind::Dir, 0o755),
                node(BIG, big, 0o644),
                node("srv", Kind::Dir, 0o755),
            ],
        }
    }

    /// Every name but the root's.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Every name below `dir`, and `dir` itself.
    pub fn below<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = &'a Node> {
        let nodes = self.nodes.iter();
        nodes.filter(move |node| node.path.starts_with(dir))
    }

    /// Every regular file, with its length and seed.
    pub fn files(&self) -> impl Iterator<Item = (&Node, u64, u64)> {
        self.nodes.iter().filter_map(|node| match node.kind {
            Kind::File { size, seed } => Some((node, size, seed)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn made(scale: f64) -> Image {
        let scale = Scale::new(scale).unwrap();
        Image::userland(Source::Made, Path::new("/nowhere"), scale).unwrap()
    }

    fn small() -> Image {
        made(0.02)
    }

    #[test]
    fn the_same_scale_is_the_same_image() {
        assert_eq!(small(), small());
        assert_ne!(small(), made(0.03));
    }

    #[test]
    fn a_parent_stands_before_its_children_and_no_name_twice() {
        let image = small();
        let mut seen = HashSet::from([PathBuf::new()]);
        for node in image.nodes() {
            let parent = node.path.parent().unwrap();
            assert!(
                seen.contains(parent),
                "{} has no parent",
                node.path.display()
            );
            assert!(
                seen.insert(node.path.clone()),
                "{} twice",
                node.path.display()
            );
        }
    }

    #[test]
    fn full_size_is_what_the_races_are_about() {
        let image = made(1.0);
        let files = image.files().count();
        assert!((115_000..125_000).contains(&files), "{files} files");
        let dirs = image.nodes().iter().filter(|node| node.kind == Kind::Dir);
        let dirs = dirs.count();
        assert!((11_000..14_000).contains(&dirs), "{dirs} directories");
        let share = image.below(Path::new("usr/share")).count();
        assert!((50_000..70_000).contains(&share), "{share} below usr/share");
        let bytes: u64 = image.files().map(|(_, size, _)| size).sum();
        assert!((1 << 30..4 << 30).contains(&bytes), "{bytes} bytes");
    }
}
