//! Operations on names beside a model: each has to answer exactly what the model says. An EEXIST
//! or ENOENT where the model knows none is an operation that was done twice.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::random::{bytes, hash};
use crate::stage::{IMAGE, Stage, errno, room, same, same_bytes};

/// Threads that have files of their own in the image.
const WORKERS: u64 = 3;
/// Names in each directory: few, so that calls meet what others have left.
const NAMES: usize = 12;
const DIRS: usize = 4;
/// Between two looks at everything.
const CALLS: u64 = 150;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    /// An empty directory. One of the image can't always be renamed on overlayfs.
    Dir { of_image: bool },
    /// A file or a symlink, by its number in the model.
    Node(u64),
}

/// What has one or more names.
#[derive(Debug)]
struct Node {
    body: Body,
    names: u64,
    /// What `lstat` has said first, and must say ever after.
    ino: Option<u64>,
}

#[derive(Debug)]
enum Body {
    File(Vec<u8>),
    Link(PathBuf),
}

/// Two directories of the image and two new ones.
struct Model {
    dirs: [PathBuf; DIRS],
    entries: BTreeMap<(usize, usize), Entry>,
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

/// A directory and a name in it.
type Place = (usize, usize);

pub(crate) fn fill(dir: &Path) -> Result<()> {
    for worker in 0..WORKERS {
        for below in 0..2 {
            let dir = dir.join(format!("w{worker}/d{below}"));
            fs::create_dir_all(dir.join("n7"))?;
            for name in 0..5 {
                fs::write(dir.join(format!("n{name}")), first(below, name))?;
            }
            symlink("n0", dir.join("n6"))?;
        }
    }
    Ok(())
}

/// What a file of the image holds.
fn first(dir: usize, name: usize) -> Vec<u8> {
    bytes(hash(&format!("{dir} {name}")), 1000 * name)
}

pub(crate) fn run(stage: &Stage, number: u64) -> Result<u64> {
    let mut random = Rng::with_seed(stage.seed.wrapping_add(number));
    let mut model = Model::new(number)?;
    model.look().context("at the beginning")?;
    let mut calls = 0;
    while !stage.is_over() {
        let call = format!("call {calls} of worker {number}");
        model.change(&mut random).with_context(|| call.clone())?;
        calls += 1;
        if calls % CALLS == 0 {
            model.look().with_context(|| format!("after {call}"))?;
        }
    }
    model.look().context("at the end")?;
    Ok(calls)
}

impl Model {
    fn new(number: u64) -> Result<Model> {
        let image = Path::new(IMAGE).join(format!("names/w{number}"));
        let new = room(&format!("names{number}"))?;
        for dir in ["d2", "d3"] {
            fs::create_dir(new.join(dir))?;
        }
        let dirs = [
            image.join("d0"),
            image.join("d1"),
            new.join("d2"),
            new.join("d3"),
        ];
        let mut model = Model {
            dirs,
            entries: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next: 0,
        };
        for dir in 0..2 {
            for name in 0..5 {
                model.add((dir, name), Body::File(first(dir, name)));
            }
            model.add((dir, 6), Body::Link("n0".into()));
            model
                .entries
                .insert((dir, 7), Entry::Dir { of_image: true });
        }
        Ok(model)
    }

    fn path(&self, place: Place) -> PathBuf {
        self.dirs[place.0].join(format!("n{}", place.1))
    }

    fn add(&mut self, place: Place, body: Body) {
        self.next += 1;
        self.nodes.insert(
            self.next,
            Node {
                body,
                names: 1,
                ino: None,
            },
        );
        self.entries.insert(place, Entry::Node(self.next));
    }

    /// Takes a name away.
    fn drop_name(&mut self, place: Place) {
        if let Some(Entry::Node(node)) = self.entries.remove(&place)
            && let Some(known) = self.nodes.get_mut(&node)
        {
            known.names -= 1;
            if known.names == 0 {
                self.nodes.remove(&node);
            }
        }
    }

    /// One call, and what it has to answer.
    fn change(&mut self, random: &mut Rng) -> Result<()> {
        let mut place = || (random.usize(..DIRS), random.usize(..NAMES));
        let (at, to) = (place(), place());
        let (path, other) = (self.path(at), self.path(to));
        let here = self.entries.get(&at).copied();
        let is_dir = matches!(here, Some(Entry::Dir { .. }));
        let free = if here.is_some() {
            Err(Errno::EXIST)
        } else {
            Ok(())
        };
        let there = if here.is_some() {
            Ok(())
        } else {
            Err(Errno::NOENT)
        };
        let what = |call: &str| format!("{call} {}", path.display());
        match random.u32(..13) {
            0 | 1 => {
                let data = bytes(random.u64(..), random.usize(..6000));
                let make = || File::create_new(&path)?.write_all(&data);
                if told(&what("create"), make(), free)? {
                    self.add(at, Body::File(data));
                }
            }
            2 => {
                if told(&what("mkdir"), fs::create_dir(&path), free)? {
                    self.entries.insert(at, Entry::Dir { of_image: false });
                }
            }
            3 => {
                let target = PathBuf::from(format!("n{}", random.usize(..NAMES)));
                if told(&what("symlink"), symlink(&target, &path), free)? {
                    self.add(at, Body::Link(target));
                }
            }
            4 | 5 => {
                let wanted = match (here, self.entries.get(&to)) {
                    (None, _) => Err(Errno::NOENT),
                    (_, Some(_)) => Err(Errno::EXIST),
                    (Some(Entry::Dir { .. }), _) => Err(Errno::PERM),
                    (Some(Entry::Node(_)), None) => Ok(()),
                };
                let what = format!("link {} {}", path.display(), other.display());
                if told(&what, fs::hard_link(&path, &other), wanted)?
                    && let Some(Entry::Node(node)) = here
                {
                    self.entries.insert(to, Entry::Node(node));
                    self.nodes.entry(node).and_modify(|node| node.names += 1);
                }
            }
            6 | 7 => {
                let wanted = if is_dir { Err(Errno::ISDIR) } else { there };
                if told(&what("unlink"), fs::remove_file(&path), wanted)? {
                    self.drop_name(at);
                }
            }
            8 => {
                let wanted = if is_dir {
                    Ok(())
                } else {
                    there.and(Err(Errno::NOTDIR))
                };
                if told(&what("rmdir"), fs::remove_dir(&path), wanted)? {
                    self.entries.remove(&at);
                }
            }
            9 => self.write(at, random)?,
            10 => self.rename(at, to, RenameFlags::NOREPLACE)?,
            11 => self.rename(at, to, RenameFlags::EXCHANGE)?,
            _ => self.rename(at, to, RenameFlags::empty())?,
        }
        Ok(())
    }

    fn rename(&mut self, at: Place, to: Place, flags: RenameFlags) -> Result<()> {
        let (path, other) = (self.path(at), self.path(to));
        let (here, there) = (
            self.entries.get(&at).copied(),
            self.entries.get(&to).copied(),
        );
        let is_dir = |entry| matches!(entry, Entry::Dir { .. });
        let wanted = match (here, there) {
            (None, _) => Err(Errno::NOENT),
            (_, None) if flags == RenameFlags::EXCHANGE => Err(Errno::NOENT),
            (_, Some(_)) if flags == RenameFlags::NOREPLACE => Err(Errno::EXIST),
            (Some(a), Some(b)) if flags.is_empty() && at != to => match (is_dir(a), is_dir(b)) {
                (true, false) => Err(Errno::NOTDIR),
                (false, true) => Err(Errno::ISDIR),
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        let done = renameat_with(CWD, &path, CWD, &other, flags).map_err(io::Error::from);
        let of_image = |entry| entry == Some(Entry::Dir { of_image: true });
        if errno_of(&done) == Some(Errno::XDEV) && (of_image(here) || of_image(there)) {
            return Ok(());
        }
        let what = format!("rename {} {} {flags:?}", path.display(), other.display());
        // Two names of one file: nothing is renamed.
        let is_one = here == there && !here.is_some_and(is_dir);
        if !told(&what, done, wanted)? || at == to || is_one {
            return Ok(());
        }
        if let (RenameFlags::EXCHANGE, Some(here), Some(there)) = (flags, here, there) {
            self.entries.insert(at, there);
            self.entries.insert(to, here);
        } else if let Some(here) = here {
            self.drop_name(to);
            self.entries.remove(&at);
            self.entries.insert(to, here);
        }
        Ok(())
    }

    /// Writes a file anew, or at its end.
    fn write(&mut self, at: Place, random: &mut Rng) -> Result<()> {
        let path = self.path(at);
        let Some(Entry::Node(node)) = self.entries.get(&at) else {
            return Ok(());
        };
        let Some(Node {
            body: Body::File(known),
            ..
        }) = self.nodes.get_mut(node)
        else {
            return Ok(());
        };
        let data = bytes(random.u64(..), random.usize(..3000));
        let mut options = OpenOptions::new();
        if random.bool() || known.len() > 20_000 {
            options.write(true).truncate(true);
            known.clear();
        } else {
            options.append(true);
        }
        let written = options
            .open(&path)
            .and_then(|mut file| file.write_all(&data));
        written.with_context(|| format!("write {}", path.display()))?;
        known.extend(data);
        Ok(())
    }

    /// Everything is as the model has it.
    fn look(&mut self) -> Result<()> {
        for (dir, path) in self.dirs.iter().enumerate() {
            let mut found = BTreeMap::new();
            let what = path.display().to_string();
            for entry in fs::read_dir(path).with_context(|| format!("listing {what}"))? {
                let entry = entry.with_context(|| format!("listing {what}"))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if found
                    .insert(name.clone(), entry.file_type()?.is_dir())
                    .is_some()
                {
                    bail!("{what} lists {name} twice");
                }
            }
            let inside = self.entries.range((dir, 0)..(dir + 1, 0));
            let wanted = inside
                .map(|((_, name), entry)| (format!("n{name}"), matches!(entry, Entry::Dir { .. })));
            same(&format!("names in {what}"), &found, &wanted.collect())?;
        }
        let dirs = self.dirs.clone();
        for ((dir, name), entry) in &self.entries {
            let path = dirs[*dir].join(format!("n{name}"));
            let what = path.display().to_string();
            let stat = fs::symlink_metadata(&path).with_context(|| format!("lstat {what}"))?;
            let node = match entry {
                Entry::Dir { .. } => None,
                Entry::Node(node) => self.nodes.get_mut(node),
            };
            let Some(node) = node else {
                same(&format!("{what} is a directory"), &stat.is_dir(), &true)?;
                continue;
            };
            same(&format!("links of {what}"), &stat.nlink(), &node.names)?;
            let ino = *node.ino.get_or_insert(stat.ino());
            same(&format!("inode number of {what}"), &stat.ino(), &ino)?;
            match &node.body {
                Body::Link(target) => {
                    let found = fs::read_link(&path).with_context(|| format!("readlink {what}"))?;
                    same(&format!("target of {what}"), &found, target)?;
                }
                Body::File(data) => {
                    let found = fs::read(&path).with_context(|| format!("reading {what}"))?;
                    same_bytes(&what, &found, data)?;
                }
            }
        }
        Ok(())
    }
}

fn errno_of(done: &io::Result<()>) -> Option<Errno> {
    done.as_ref().err().and_then(Errno::from_io_error)
}

/// Whether a call succeeded, if that is what it had to do.
fn told(what: &str, done: io::Result<()>, wanted: Result<(), Errno>) -> Result<bool> {
    let found = errno(done);
    same(what, &found, &wanted)?;
    Ok(found.is_ok())
}
