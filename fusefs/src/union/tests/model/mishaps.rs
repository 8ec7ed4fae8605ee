//! What is not decided after an error or a crash, since nobody can rely on it.

use super::reference::{DataOf, Id, Model};
use crate::union::tests::script::Op;

impl Model {
    /// The files that an operation may change.
    pub(super) fn files_of(&self, op: Op) -> Vec<Id> {
        let paths = match op {
            Op::Link { from, to } | Op::Rename { from, to, .. } => vec![from, to],
            Op::Held { slot, .. } => {
                let held = self.held[usize::from(slot)].iter();
                return held.map(|held| held.id).collect();
            }
            Op::Create { path, .. }
            | Op::Write { path, .. }
            | Op::Append { path, .. }
            | Op::Truncate { path, .. }
            | Op::OpenTruncate { path }
            | Op::Fallocate { path, .. }
            | Op::Chmod { path, .. }
            | Op::Chown { path, .. }
            | Op::Utimens { path, .. }
            | Op::SetXattr { path, .. }
            | Op::RemoveXattr { path, .. }
            | Op::Unlink { path }
            | Op::Open { path, .. } => vec![path],
            _ => Vec::new(),
        };
        paths
            .into_iter()
            .filter_map(|path| self.walk(path).ok())
            .collect()
    }

    /// An operation on these files failed: what its copy-up did is there or not.
    pub(super) fn failed(&mut self, files: &[Id]) {
        for id in files {
            if self.inodes[*id].data_of == DataOf::Image {
                self.inodes[*id].data_of = DataOf::Either;
            }
        }
    }

    /// A crash stopped an operation on these files. It may have come before a copy-up gave times
    /// back, and a directory that was about to be replaced may be another one as empty as itself.
    pub(super) fn crashed(&mut self, files: &[Id]) {
        self.failed(files);
        self.close_all();
        for id in files {
            self.inodes[*id].mtime = None;
            if self.inodes[*id].is_dir() {
                self.inodes[*id].ino = None;
            }
        }
        self.forget_times_of_directories();
    }

    /// They come back after a copy-up in the directory, which does not fail if that does.
    pub(super) fn forget_times_of_directories(&mut self) {
        for inode in self.inodes.iter_mut().filter(|inode| inode.is_dir()) {
            inode.mtime = None;
        }
    }
}
