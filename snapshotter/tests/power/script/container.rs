//! What a program does in a container's root, one system call after the other.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use fastrand::Rng;
use rustix::fs::OFlags;

use super::super::disk::Clock;
use super::super::model::{Active, FileId, Node, Sync, is_below, join, parent};
use super::unpack::LARGE;

/// Bytes that are written at once at most.
const MOST: u64 = 40_000;
/// Permissions that a file or directory may get.
const MODES: [u32; 4] = [0o755, 0o700, 0o644, 0o4755];

/// One step of the program.
pub(crate) struct Step<'s> {
    pub(crate) root: &'s Path,
    pub(crate) active: &'s mut Active,
    pub(crate) clock: &'s Clock,
    pub(crate) chance: &'s mut Rng,
    /// Makes every name a new one.
    pub(crate) number: u64,
    /// Whether a file may grow by more than what is written.
    pub(crate) zeros_last: bool,
}

impl Step<'_> {
    pub(crate) fn take(mut self) -> Result<()> {
        match self.chance.u8(0..100) {
            0..14 => self.create(),
            14..24 => self.append(),
            24..34 => self.overwrite(),
            34..38 => self.truncate(),
            38..43 => self.rewrite(),
            43..50 => self.chmod(),
            50..59 => self.rename(),
            59..64 => self.link(),
            64..71 => self.unlink(),
            71..75 => self.make_dir(),
            75..77 => self.remove_dir(),
            77..80 => self.symlink(),
            80..88 => self.replace(),
            88..94 => self.write_through(),
            _ => self.sync_any(),
        }
    }

    fn create(&mut self) -> Result<()> {
        let path = self.free_name();
        let (file, open) = self.create_at(&path)?;
        self.write_at(file, &open, 0)?;
        self.perhaps_sync(file, &open)
    }

    fn append(&mut self) -> Result<()> {
        let Some((file, path)) = self.any_file() else {
            return self.create();
        };
        let open = self.open(&path, OFlags::empty())?;
        self.write_at(file, &open, self.active.bytes(file).len())?;
        self.perhaps_sync(file, &open)
    }

    fn overwrite(&mut self) -> Result<()> {
        let Some((file, path)) = self.any_file() else {
            return self.create();
        };
        let open = self.open(&path, OFlags::empty())?;
        let within = self.chance.u64(0..=self.active.bytes(file).len());
        self.write_at(file, &open, within)?;
        self.perhaps_sync(file, &open)
    }

    fn truncate(&mut self) -> Result<()> {
        let Some((file, path)) = self.any_file() else {
            return self.create();
        };
        let mut bytes = self.active.bytes(file).clone();
        let open = self.open(&path, OFlags::empty())?;
        let begun = self.clock.now();
        let growth = if self.zeros_last { 5_000 } else { 0 };
        bytes.set_len(self.chance.u64(0..=bytes.len() + growth));
        open.set_len(bytes.len())?;
        self.active.wrote(begun, file, bytes);
        self.perhaps_sync(file, &open)
    }

    /// With `O_TRUNC`, as `>` of a shell.
    fn rewrite(&mut self) -> Result<()> {
        let Some((file, path)) = self.any_file() else {
            return self.create();
        };
        let begun = self.clock.now();
        let open = self.open(&path, OFlags::TRUNC)?;
        let mut bytes = self.active.bytes(file).clone();
        bytes.set_len(0);
        self.active.wrote(begun, file, bytes);
        self.write_at(file, &open, 0)?;
        self.perhaps_sync(file, &open)
    }

    fn chmod(&mut self) -> Result<()> {
        let Some(path) = self.any_path(|node| !matches!(node, Node::Link { .. })) else {
            return self.create();
        };
        let mode = MODES[self.chance.usize(0..MODES.len())];
        let files: Vec<FileId> = self.active.tree().file(&path).into_iter().collect();
        let begun = self.clock.now();
        fs::set_permissions(self.full(&path), Permissions::from_mode(mode))?;
        self.active
            .changed(begun, &files, |tree| tree.set_mode(&path, mode));
        Ok(())
    }

    /// To a name that is free, or over another file.
    fn rename(&mut self) -> Result<()> {
        let Some(from) = self.any_path(|_| true) else {
            return self.create();
        };
        let over = self.any_file();
        let file = self.active.tree().file(&from);
        let to = match over {
            Some((other, path)) if file.is_some_and(|file| file != other) => path,
            _ => self.free_name(),
        };
        if is_below(&to, &from) {
            return Ok(());
        }
        let begun = self.clock.now();
        fs::rename(self.full(&from), self.full(&to))
            .with_context(|| format!("rename of {from} to {to}"))?;
        let files: Vec<FileId> = file.into_iter().collect();
        self.active
            .changed(begun, &files, |tree| tree.rename(&from, &to));
        self.perhaps_sync_directory(&to)
    }

    fn link(&mut self) -> Result<()> {
        let Some((file, from)) = self.any_file() else {
            return self.create();
        };
        let to = self.free_name();
        let begun = self.clock.now();
        fs::hard_link(self.full(&from), self.full(&to))?;
        self.active.changed(begun, &[file], |tree| {
            let node = tree.0.get(&from).cloned();
            tree.0.extend(node.map(|node| (to.clone(), node)));
        });
        self.perhaps_sync_directory(&to)
    }

    fn unlink(&mut self) -> Result<()> {
        let Some(path) = self.any_path(|node| !matches!(node, Node::Dir { .. })) else {
            return self.create();
        };
        let files: Vec<FileId> = self.active.tree().file(&path).into_iter().collect();
        let begun = self.clock.now();
        fs::remove_file(self.full(&path))?;
        self.active
            .changed(begun, &files, |tree| drop(tree.0.remove(&path)));
        self.perhaps_sync_directory(&path)
    }

    fn make_dir(&mut self) -> Result<()> {
        let path = self.free_name();
        let begun = self.clock.now();
        fs::create_dir(self.full(&path))?;
        let node = Node::Dir { mode: 0o755 };
        self.active
            .changed(begun, &[], |tree| drop(tree.0.insert(path.clone(), node)));
        self.perhaps_sync_directory(&path)
    }

    fn remove_dir(&mut self) -> Result<()> {
        let tree = self.active.tree();
        let empty = tree
            .dirs()
            .into_iter()
            .find(|path| tree.is_empty_dir(path))
            .cloned();
        let Some(path) = empty else {
            return self.make_dir();
        };
        let begun = self.clock.now();
        fs::remove_dir(self.full(&path))?;
        self.active
            .changed(begun, &[], |tree| drop(tree.0.remove(&path)));
        self.perhaps_sync_directory(&path)
    }

    fn symlink(&mut self) -> Result<()> {
        let path = self.free_name();
        let target = format!("somewhere/{}", self.number);
        let begun = self.clock.now();
        symlink(&target, self.full(&path))?;
        let node = Node::Link { target };
        self.active
            .changed(begun, &[], |tree| drop(tree.0.insert(path.clone(), node)));
        Ok(())
    }

    /// As programs do that want one or the other: a new file, an fsync, a rename, an fsync of the
    /// directory.
    fn replace(&mut self) -> Result<()> {
        let Some((_, to)) = self.any_file() else {
            return self.create();
        };
        let from = join(parent(&to), &format!("new-{}", self.number));
        let (file, open) = self.create_at(&from)?;
        self.write_at(file, &open, 0)?;
        open.sync_all()?;
        self.active.synced(self.clock.now(), file, Sync::All);
        let begun = self.clock.now();
        fs::rename(self.full(&from), self.full(&to))?;
        self.active
            .changed(begun, &[file], |tree| tree.rename(&from, &to));
        self.sync_directory(&to)
    }

    fn write_through(&mut self) -> Result<()> {
        let Some((file, path)) = self.any_file() else {
            return self.create();
        };
        let open = self.open(&path, OFlags::SYNC)?;
        let within = self.chance.u64(0..=self.active.bytes(file).len());
        self.write_at(file, &open, within)?;
        self.active.synced(self.clock.now(), file, Sync::Write);
        Ok(())
    }

    /// Another handle than the one that wrote.
    fn sync_any(&mut self) -> Result<()> {
        let Some((file, path)) = self.any_file() else {
            return self.create();
        };
        let open = self.open(&path, OFlags::empty())?;
        self.sync(file, &open)
    }

    fn create_at(&mut self, path: &str) -> Result<(FileId, File)> {
        let begun = self.clock.now();
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o644);
        let open = options
            .open(self.full(path))
            .with_context(|| format!("create of {path}"))?;
        let file = self.active.new_file(begun);
        let node = Node::File { file, mode: 0o644 };
        self.active.changed(begun, &[], |tree| {
            tree.0.insert(path.to_owned(), node);
        });
        Ok((file, open))
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<File> {
        let mut options = OpenOptions::new();
        let flags = i32::try_from(flags.bits())?;
        let options = options.write(true).custom_flags(flags);
        let open = options.open(self.full(path));
        open.with_context(|| format!("open of {path}"))
    }

    fn write_at(&mut self, file: FileId, open: &File, offset: u64) -> Result<()> {
        let count = self.chance.u64(1..MOST);
        let mut new = vec![0; usize::try_from(count)?];
        self.chance.fill(&mut new);
        let begun = self.clock.now();
        open.write_all_at(&new, offset)?;
        let mut bytes = self.active.bytes(file).clone();
        bytes.write(offset, &new);
        self.active.wrote(begun, file, bytes);
        Ok(())
    }

    fn perhaps_sync(&mut self, file: FileId, open: &File) -> Result<()> {
        match self.chance.u8(0..3) {
            0 => self.sync(file, open),
            _ => Ok(()),
        }
    }

    fn sync(&mut self, file: FileId, open: &File) -> Result<()> {
        let how = if self.chance.bool() {
            Sync::All
        } else {
            Sync::Data
        };
        match how {
            Sync::All => open.sync_all()?,
            Sync::Data | Sync::Write => open.sync_data()?,
        }
        self.active.synced(self.clock.now(), file, how);
        Ok(())
    }

    fn perhaps_sync_directory(&mut self, of: &str) -> Result<()> {
        match self.chance.u8(0..4) {
            0 => self.sync_directory(of),
            _ => Ok(()),
        }
    }

    /// Of the directory in which the last change of a name was.
    fn sync_directory(&mut self, of: &str) -> Result<()> {
        File::open(self.full(parent(of)))?.sync_all()?;
        self.active.synced_directory(self.clock.now());
        Ok(())
    }

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn any_path(&mut self, is_fit: impl Fn(&Node) -> bool) -> Option<String> {
        let nodes = self.active.tree().0.iter();
        let paths = nodes.filter(|(_, node)| is_fit(node)).map(|(path, _)| path);
        let paths: Vec<&String> = paths.collect();
        self.chance.choice(paths).cloned()
    }

    fn any_file(&mut self) -> Option<(FileId, String)> {
        let files = self.active.tree().files().into_iter();
        let (large, others): (Vec<_>, Vec<_>) =
            files.partition(|(_, file)| self.active.bytes(*file).len() >= LARGE);
        // Few are large, and much happens to them.
        let large = if self.chance.u8(0..4) == 0 || others.is_empty() {
            self.chance.choice(large)
        } else {
            None
        };
        let (path, file) = large.or_else(|| self.chance.choice(others))?;
        Some((file, path.clone()))
    }

    /// A name that nothing has, in any directory.
    fn free_name(&mut self) -> String {
        let dir = self.any_path(|node| matches!(node, Node::Dir { .. }));
        let dir = match self.chance.u8(0..4) {
            0 => None,
            _ => dir,
        };
        join(&dir.unwrap_or_default(), &format!("n{}", self.number))
    }
}
