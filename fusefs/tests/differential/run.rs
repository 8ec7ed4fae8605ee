//! A script, done on a mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::calls::{
    allocating, as_user, chmod, errno, mknod, open, read_all, renaming, setting, stat, truncate,
    utimens, write,
};
use crate::compare::Comparison;
use crate::script::disk;
use crate::script::{Access, Act, Device, Op, Renaming, Script, Special, User};
use crate::seen::{self, Attributes, Moment, Quirks, Tree};
use crate::system::{Access as MountAccess, Layers, Mounted, System};

/// What one operation gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Done,
    Failed(Errno),
    Attributes(Attributes),
    Times(Moment, Moment),
    Data(Vec<u8>),
    Names(Vec<(String, FileType)>),
    Xattrs(BTreeMap<String, Vec<u8>>),
    /// What is seen through a descriptor for reading that an image file was opened with.
    OldImage,
    /// Not done.
    Skipped,
    /// The mount was new, and this was its tree.
    Tree(Tree),
}

/// What was seen while a script ran.
#[derive(Debug)]
pub(crate) struct Record {
    /// One for each operation.
    pub(crate) outcomes: Vec<Outcome>,
    /// In the end.
    pub(crate) tree: Tree,
}

/// A finished run. The mount is there still.
pub(crate) struct Finished {
    pub(crate) record: Record,
    pub(crate) mounted: Mounted,
    /// The image's files by their inode number, with their link counts.
    pub(crate) image: BTreeMap<u64, u64>,
}

/// What overlayfs writes with metacopy: files without data, for those whose attributes changed.
const METACOPY: &[(&str, &str)] = &[("redirect_dir", "on"), ("index", "on"), ("metacopy", "on")];

/// Runs a script on a new mount. An error says how the system contradicts itself.
pub(crate) fn run(system: System, script: &Script) -> Result<Finished, String> {
    run_on(system, script, |_| {})
}

/// Runs a script on overlayfs with metacopy.
pub(crate) fn run_with_metacopy(script: &Script) -> Result<Finished, String> {
    run_on(System::Overlayfs, script, |mounted| {
        mounted.overlay_options = METACOPY;
        mounted.remount();
    })
}

fn run_on(
    system: System,
    script: &Script,
    prepare: impl Fn(&mut Mounted),
) -> Result<Finished, String> {
    // overlayfs does not do without a layer.
    let count = match system {
        System::Overlayfs => script.layers.len().max(1),
        _ => script.layers.len(),
    };
    let layers = Layers::new(count);
    let mut image = BTreeMap::new();
    for (directory, layer) in layers.lowers().iter().zip(&script.layers) {
        disk::write_layer(directory, layer);
        disk::inodes(directory, &mut image);
    }
    let root = layers.mountpoint();
    let mut mounted = Mounted::new(system, layers, MountAccess::Write);
    prepare(&mut mounted);
    let mut runner = Runner {
        root,
        quirks: match system {
            System::Overlayfs => Quirks::Overlayfs,
            _ => Quirks::Lamina,
        },
        mounted,
        held: [const { None }; 3],
        user: User::Root,
        image,
    };
    let mut outcomes = Vec::new();
    for (number, op) in script.ops.iter().enumerate() {
        outcomes.push(match op {
            Op::Remount => Outcome::Tree(runner.remount(&script.ops[..number])?),
            op if is_beyond_overlayfs(op) => Outcome::Skipped,
            op => runner.step(*op).unwrap_or_else(Outcome::Failed),
        });
    }
    runner.held = Default::default();
    let tree = runner.tree()?;
    Ok(Finished {
        record: Record { outcomes, tree },
        mounted: runner.mounted,
        image: runner.image,
    })
}

/// What overlayfs refuses and Lamina does. The trees would differ from then on.
fn is_beyond_overlayfs(op: &Op) -> bool {
    let whiteout = Special::Of(Device::Char(0, 0));
    match op {
        Op::Rename { how, .. } => *how == Renaming::LeaveWhiteout,
        Op::Mknod { kind, .. } => *kind == whiteout,
        _ => false,
    }
}

/// Where it was removed, overlayfs copies it up to its old name.
fn is_special(file: &File) -> bool {
    let kind = file.metadata().unwrap().file_type();
    !kind.is_file() && !kind.is_dir()
}

struct Runner {
    mounted: Mounted,
    root: PathBuf,
    quirks: Quirks,
    held: [Option<Held>; 3],
    user: User,
    image: BTreeMap<u64, u64>,
}

/// Something open.
struct Held {
    file: File,
    /// Opened for reading, when it may have been the image's.
    image: bool,
}

type Step = rustix::io::Result<Outcome>;

impl Runner {
    fn tree(&self) -> Result<Tree, String> {
        seen::tree(&self.root, self.quirks)
            .map_err(|error| format!("{} contradicts itself: {error}", self.mounted.system))
    }

    /// Mounts anew, and compares the tree with the one before.
    fn remount(&mut self, done: &[Op]) -> Result<Tree, String> {
        self.held = Default::default();
        let before = self.tree()?;
        self.mounted.remount();
        let after = self.tree()?;
        if self.mounted.is_lamina() {
            Comparison::new(done)
                .trees(&before, &after, |_| false)
                .map_err(|error| format!("a remount changed {error}"))?;
            for (path, seen) in &before {
                let (old, new) = (seen.attributes.ino, after[path].attributes.ino);
                if old != new {
                    return Err(format!("a remount changed st_ino of {path}: {old}, {new}"));
                }
            }
        }
        Ok(after)
    }

    /// Does one operation in the user's name.
    fn step(&mut self, op: Op) -> Step {
        if let Op::Become { user } = op {
            self.user = user;
            return Ok(Outcome::Done);
        }
        let user = self.user;
        as_user(user, || self.act(op))
    }

    fn act(&mut self, op: Op) -> Step {
        let at = |path| self.root.join(path);
        let done = match op {
            Op::Create {
                path,
                exclusive,
                mode,
            } => {
                let mut flags = OFlags::CREATE | OFlags::WRONLY;
                flags.set(OFlags::EXCL, exclusive);
                open(&at(path), flags, mode.0).map(drop)
            }
            Op::Mkdir { path, mode } => rustix::fs::mkdir(at(path), Mode::from_raw_mode(mode.0)),
            Op::Mknod { path, kind, mode } => mknod(&at(path), kind, mode.0),
            Op::Symlink { path, target } => rustix::fs::symlink(target, at(path)),
            Op::Link { from, to } => {
                rustix::fs::linkat(CWD, at(from), CWD, at(to), AtFlags::empty())
            }
            Op::Unlink { path } => rustix::fs::unlink(at(path)),
            Op::Rmdir { path } => rustix::fs::rmdir(at(path)),
            Op::Rename { from, to, how } => {
                rustix::fs::renameat_with(CWD, at(from), CWD, at(to), renaming(how))
            }
            Op::Write {
                path,
                at: offset,
                len,
                byte,
            } => open(&at(path), OFlags::WRONLY, 0)
                .and_then(|file| write(&file.into(), offset, len, byte)),
            Op::Append { path, len, byte } => open(&at(path), OFlags::WRONLY | OFlags::APPEND, 0)
                .and_then(|file| write(&file.into(), 0, len, byte)),
            Op::Truncate { path, size } => truncate(&at(path), size),
            Op::OpenTruncate { path } => {
                open(&at(path), OFlags::WRONLY | OFlags::TRUNC, 0).map(drop)
            }
            Op::Fallocate {
                path,
                how,
                at: offset,
                len,
            } => open(&at(path), OFlags::WRONLY, 0)
                .and_then(|file| rustix::fs::fallocate(file, allocating(how), offset, len)),
            Op::Chmod { path, mode } => chmod(&at(path), mode.0),
            Op::Chown { path, uid, gid } => rustix::fs::chownat(
                CWD,
                at(path),
                uid.map(Uid::from_raw),
                gid.map(Gid::from_raw),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
            Op::Utimens { path, atime, mtime } => {
                let (atime, mtime) = utimens(&at(path), atime, mtime)?;
                return Ok(Outcome::Times(atime, mtime));
            }
            Op::SetXattr {
                path,
                name,
                value,
                how,
            } => rustix::fs::lsetxattr(at(path), name, value.as_bytes(), setting(how)),
            Op::RemoveXattr { path, name } => rustix::fs::lremovexattr(at(path), name),
            Op::Stat { path } => {
                return Ok(Outcome::Attributes(Attributes::new(&stat(&at(path))?)));
            }
            Op::Read { path } => return seen::content(&at(path)).map(Outcome::Data),
            Op::ReadDir { path } => {
                let directory = open(&at(path), OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
                return seen::listing(directory, self.quirks).map(Outcome::Names);
            }
            Op::ReadXattrs { path } => {
                return seen::xattrs(&at(path)).map(Outcome::Xattrs);
            }
            Op::Open { slot, path, access } => self.open(slot, path, access),
            Op::Held { slot, act } => return self.held(slot, act),
            Op::Remount | Op::Become { .. } => unreachable!("no system call"),
        };
        done.map(|()| Outcome::Done)
    }

    fn open(&mut self, slot: u8, path: &str, access: Access) -> rustix::io::Result<()> {
        let slot = usize::from(slot);
        self.held[slot] = None;
        let flags = match access {
            Access::ReadOnly => OFlags::RDONLY,
            Access::WriteOnly => OFlags::WRONLY,
            Access::ReadWrite => OFlags::RDWR,
            Access::AppendOnly => OFlags::WRONLY | OFlags::APPEND,
        };
        let file = File::from(open(&self.root.join(path), flags, 0)?);
        let meta = file.metadata().unwrap();
        let image =
            access == Access::ReadOnly && meta.is_file() && self.image.contains_key(&meta.ino());
        self.held[slot] = Some(Held { file, image });
        Ok(())
    }

    fn held(&mut self, slot: u8, act: Act) -> Step {
        let slot = &mut self.held[usize::from(slot)];
        let Held { file, image } = slot.as_ref().ok_or(Errno::BADF)?;
        let done = match act {
            Act::Read => {
                let data = read_all(file)?;
                return Ok(if *image {
                    Outcome::OldImage
                } else {
                    Outcome::Data(data)
                });
            }
            Act::Stat => {
                let meta = file.metadata().map_err(errno)?;
                let seen = Attributes::new(&meta);
                return Ok(if *image {
                    Outcome::OldImage
                } else {
                    Outcome::Attributes(seen)
                });
            }
            Act::ReadDir => return seen::listing(file, self.quirks).map(Outcome::Names),
            Act::Write { at, len, byte } => write(file, at, len, byte),
            Act::Truncate { size } => rustix::fs::ftruncate(file, size),
            Act::Chmod { .. } if is_special(file) => return Ok(Outcome::Skipped),
            Act::Chmod { mode } => rustix::fs::fchmod(file, Mode::from_raw_mode(mode.0)),
            Act::Sync => rustix::fs::fsync(file),
            Act::Close => {
                *slot = None;
                Ok(())
            }
        };
        done.map(|()| Outcome::Done)
    }
}
