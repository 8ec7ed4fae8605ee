//! Names, kinds and permissions of a tree, as a value.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Which file has a name; several names may have one.
pub(crate) type FileId = u64;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Node {
    Dir { mode: u32 },
    File { file: FileId, mode: u32 },
    Link { target: String },
}

/// Everything below a root, by its path from there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, Node>);

impl Tree {
    /// What lies in a directory. Files have the number of their inode.
    pub(crate) fn read(root: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.read_below(root, "")?;
        Ok(tree)
    }

    fn read_below(&mut self, root: &Path, dir: &str) -> Result<()> {
        let entries = fs::read_dir(root.join(dir)).with_context(|| format!("listing {dir:?}"))?;
        for entry in entries {
            let name = entry?.file_name();
            let path = join(dir, name.to_str().context("UTF-8")?);
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full).with_context(|| format!("stat of {path}"))?;
            let (mode, file) = (meta.mode() & 0o7777, meta.ino());
            let kind = meta.file_type();
            let node = if kind.is_dir() {
                self.read_below(root, &path)?;
                Node::Dir { mode }
            } else if kind.is_file() {
                Node::File { file, mode }
            } else if kind.is_symlink() {
                let target = fs::read_link(&full)?;
                let target = target.to_str().context("UTF-8")?.to_owned();
                Node::Link { target }
            } else {
                bail!("{path} is a {kind:?}");
            };
            self.0.insert(path, node);
        }
        Ok(())
    }

    /// The same with other numbers of files: two trees are alike if these are equal.
    pub(crate) fn canonical(&self) -> Tree {
        let mut numbers = HashMap::new();
        let nodes = self.0.iter().map(|(path, node)| {
            let mut node = node.clone();
            if let Node::File { file, .. } = &mut node {
                let next = numbers.len() as FileId;
                *file = *numbers.entry(*file).or_insert(next);
            }
            (path.clone(), node)
        });
        Tree(nodes.collect())
    }

    /// The first differences from another one, in words.
    pub(crate) fn differences(&self, other: &Tree) -> String {
        let (this, other) = (self.canonical(), other.canonical());
        let paths = this.0.keys().chain(other.0.keys());
        let differ = paths.filter(|path| this.0.get(*path) != other.0.get(*path));
        let told = differ.take(6).map(|path| {
            let (here, there) = (this.0.get(path), other.0.get(path));
            format!("{path}: {here:?} and not {there:?}")
        });
        told.collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn file(&self, path: &str) -> Option<FileId> {
        match self.0.get(path) {
            Some(Node::File { file, .. }) => Some(*file),
            _ => None,
        }
    }

    pub(crate) fn files(&self) -> Vec<(&String, FileId)> {
        let files = self.0.keys();
        files
            .filter_map(|path| Some((path, self.file(path)?)))
            .collect()
    }

    pub(crate) fn dirs(&self) -> Vec<&String> {
        let is_dir = |node: &Node| matches!(node, Node::Dir { .. });
        let dirs = self.0.iter().filter(|(_, node)| is_dir(node));
        dirs.map(|(path, _)| path).collect()
    }

    pub(crate) fn names_of(&self, file: FileId) -> Vec<&String> {
        let files = self.files().into_iter();
        files
            .filter(|(_, found)| *found == file)
            .map(|(path, _)| path)
            .collect()
    }

    pub(crate) fn is_empty_dir(&self, dir: &str) -> bool {
        !self.0.keys().any(|path| is_below(path, dir))
    }

    /// A file by all its names, or a directory.
    pub(crate) fn set_mode(&mut self, path: &str, to: u32) {
        let wanted = self.file(path);
        for (found, node) in &mut self.0 {
            match node {
                Node::File { file, mode } if Some(*file) == wanted => *mode = to,
                Node::Dir { mode } if found == path => *mode = to,
                _ => {}
            }
        }
    }

    /// Moves a node and all below it.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let moved = |path: &String| path == from || is_below(path, from);
        let paths: Vec<String> = self.0.keys().filter(|path| moved(path)).cloned().collect();
        for path in paths {
            if let Some(node) = self.0.remove(&path) {
                self.0.insert(format!("{to}{}", &path[from.len()..]), node);
            }
        }
    }
}

pub(crate) fn join(dir: &str, name: &str) -> String {
    match dir {
        "" => name.to_owned(),
        dir => format!("{dir}/{name}"),
    }
}

pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

pub(crate) fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.starts_with('/'))
}
