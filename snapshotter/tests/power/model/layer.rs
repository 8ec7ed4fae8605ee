//! A tree that does not change any more, and that has to be there to the last byte.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::super::disk::Sparse;
use super::contents;
use super::tree::{FileId, Tree};

#[derive(Default)]
pub(crate) struct Layer {
    pub(crate) tree: Tree,
    pub(crate) files: HashMap<FileId, Sparse>,
}

impl Layer {
    /// What lies in a directory.
    pub(crate) fn read(root: &Path) -> Result<Layer> {
        let tree = Tree::read(root)?;
        let mut files = HashMap::new();
        for (path, file) in tree.files() {
            files.insert(file, Sparse::read_from(&root.join(path))?);
        }
        Ok(Layer { tree, files })
    }

    /// Fails if anything in a mount of it is another one. Answers how many files were read.
    pub(crate) fn verify(&self, root: &Path) -> Result<u64> {
        let found = Tree::read(root)?;
        ensure!(
            found.canonical() == self.tree.canonical(),
            "found {}",
            found.differences(&self.tree)
        );
        let mut read = 0;
        for (path, file) in self.tree.files() {
            let open = fs::File::open(root.join(path)).with_context(|| path.clone())?;
            let wanted = &self.files[&file];
            contents::verify(&open, &[wanted]).with_context(|| path.clone())?;
            read += 1;
        }
        Ok(read)
    }
}
