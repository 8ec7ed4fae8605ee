//! Many threads change two directories alike, and every call must have the same outcome in both.
//!
//! `scripts/stress` gives it a Lamina mount and a directory of a plain file system. What a call
//! answers there (data, attributes, names, the error) is what it has to answer on Lamina. Each
//! worker has names of its own, in directories of its own and in directories that all share, so
//! its outcomes do not depend on the others. Beside that, all workers fight for a few names in
//! one directory; there only the kinds of errors are checked.
//!
//! ```text
//! churn fill DIR WORKERS [links]                         make the image
//! churn run MOUNT PLAIN WORKERS SECONDS SEED [links]     change both
//! ```
//!
//! With `links` files of the image have hard links, and link counts are not compared: an image
//! file's stays when one of its names is removed.

// A program for tests: a failed step is the end of it, and it talks to its caller.
#![allow(clippy::unwrap_used)]
// Random numbers are cut to what is wanted, and texts are made to be handed over.
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value)]

mod random;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use random::{OFFSET, Random, SHARED};

/// Handles that a worker keeps open.
const KEPT: usize = 6;

/// Calls that are printed when an outcome differs.
const REMEMBERED: usize = 60;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["fill", dir, workers, ref rest @ ..] => {
            let links = rest == ["links"];
            (0..workers.parse().unwrap()).for_each(|id| fill(Path::new(dir), id, links));
        }
        ["run", mount, plain, workers, seconds, seed, ref rest @ ..] => {
            let end = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
            let seed: u64 = seed.parse().unwrap();
            let counts_links = rest != ["links"];
            let calls = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..workers.parse().unwrap())
                    .map(|id| {
                        let roots = [mount.into(), plain.into()];
                        let worker = Worker::new(id, seed, roots, counts_links);
                        scope.spawn(move || worker.run(end))
                    })
                    .collect();
                workers.into_iter().map(|w| w.join().unwrap()).sum::<u64>()
            });
            println!("{calls} calls, all alike");
        }
        _ => panic!("see the beginning of fusefs/examples/churn"),
    }
}

/// Makes a worker's part of the image.
fn fill(root: &Path, id: u64, links: bool) {
    let mut random = Random::new(id, 0);
    for n in 0..200 {
        let path = root.join(random.path(id));
        let _ = fs::create_dir_all(path.parent().unwrap());
        if n % 10 == 0 {
            let _ = fs::create_dir(&path);
        } else if n % 10 == 1 {
            let _ = symlink(random.name(id), &path);
        } else {
            let _ = fs::write(&path, random.data());
            if links && n % 3 == 0 {
                let _ = fs::hard_link(&path, path.with_file_name(random.name(id)));
            }
        }
    }
    for shared in 0..SHARED {
        fs::create_dir_all(root.join(format!("shared/d{shared}"))).unwrap();
    }
    fs::create_dir_all(root.join("fight")).unwrap();
    fs::write(root.join("fight/f0"), "image").unwrap();
}

/// One thread.
struct Worker {
    id: u64,
    random: Random,
    roots: [PathBuf; 2],
    counts_links: bool,
    kept: Vec<[File; 2]>,
    history: VecDeque<String>,
}

impl Worker {
    fn new(id: u64, seed: u64, roots: [PathBuf; 2], counts_links: bool) -> Self {
        Self {
            id,
            random: Random::new(id, seed),
            roots,
            counts_links,
            kept: Vec::new(),
            history: VecDeque::new(),
        }
    }

    fn run(mut self, end: Instant) -> u64 {
        let mut calls = 0;
        while Instant::now() < end {
            match self.random.below(20) {
                0 => self.fight(),
                1..4 => self.use_kept(),
                4..7 => self.keep(),
                7..9 => self.look(),
                9..13 => self.change_names(),
                13..15 => self.change_attributes(),
                _ => self.change_data(),
            }
            calls += 1;
        }
        calls
    }

    /// Does the same in both directories; panics if the outcome is not the same.
    fn both<T: PartialEq + Debug>(&mut self, call: String, work: impl Fn(&Path) -> io::Result<T>) {
        let [on_mount, on_plain] = self.roots.each_ref().map(|root| outcome(work(root)));
        self.compare(call, &on_mount, &on_plain);
    }

    fn compare<T: PartialEq + Debug>(
        &mut self,
        call: String,
        on_mount: &Outcome<T>,
        on_plain: &Outcome<T>,
    ) {
        let error = on_plain.as_ref().err();
        self.history.push_back(format!("{call}: {error:?}"));
        if self.history.len() > REMEMBERED {
            self.history.pop_front();
        }
        if on_mount != on_plain {
            let short = |outcome: &Outcome<T>| format!("{outcome:?}").chars().take(300).collect();
            let (on_mount, on_plain): (String, String) = (short(on_mount), short(on_plain));
            let history: Vec<_> = self.history.iter().map(String::as_str).collect();
            eprintln!("{}", history.join("\n"));
            eprintln!("the last call differs:\n  mount {on_mount}\n  plain {on_plain}");
            std::process::exit(1);
        }
    }

    fn path(&mut self) -> String {
        self.random.path(self.id)
    }

    fn change_data(&mut self) {
        let (path, data) = (self.path(), self.random.data());
        let offset = self.random.below(OFFSET);
        let length = data.len() as u64;
        match self.random.below(8) {
            0 | 1 => self.both(format!("write whole {path}"), |root| {
                fs::write(root.join(&path), &data)
            }),
            2 => self.both(format!("create {path}"), |root| {
                let mut file = File::create_new(root.join(&path))?;
                file.write_all(&data)
            }),
            3 => self.both(format!("write {path} at {offset}"), |root| {
                let file = OpenOptions::new().write(true).open(root.join(&path))?;
                file.write_all_at(&data, offset)
            }),
            4 => self.both(format!("append {path}"), |root| {
                let mut file = OpenOptions::new().append(true).open(root.join(&path))?;
                file.write_all(&data)
            }),
            5 => self.both(format!("truncate {path} to {offset}"), |root| {
                let file = OpenOptions::new().write(true).open(root.join(&path))?;
                file.set_len(offset)
            }),
            6 => {
                let mode = [
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                    FallocateFlags::ZERO_RANGE,
                ][self.random.below(4) as usize];
                self.both(format!("fallocate {path} {mode:?} at {offset}"), |root| {
                    let file = OpenOptions::new().write(true).open(root.join(&path))?;
                    Ok(rustix::fs::fallocate(&file, mode, offset, length + 1)?)
                });
            }
            _ => {
                let from = self.path();
                // Opened twice, and copied up in between: on Lamina the first handle keeps the
                // image's data.
                if from == path {
                    return;
                }
                self.both(format!("copy {from} to {path}"), |root| {
                    fs::copy(root.join(&from), root.join(&path))
                });
            }
        }
    }

    fn change_names(&mut self) {
        let (path, other) = (self.path(), self.path());
        let target = self.random.name(self.id);
        match self.random.below(12) {
            0 | 1 => self.both(format!("mkdir {path}"), |root| {
                fs::create_dir(root.join(&path))
            }),
            2 => self.both(format!("rmdir {path}"), |root| {
                fs::remove_dir(root.join(&path))
            }),
            3 => self.both(format!("unlink {path}"), |root| {
                fs::remove_file(root.join(&path))
            }),
            4 => self.both(format!("symlink {target} {path}"), |root| {
                symlink(&target, root.join(&path))
            }),
            5 | 6 => self.both(format!("link {path} {other}"), |root| {
                fs::hard_link(root.join(&path), root.join(&other))
            }),
            7 => self.rename(&path, &other, RenameFlags::NOREPLACE),
            8 => self.rename(&path, &other, RenameFlags::EXCHANGE),
            _ => self.rename(&path, &other, RenameFlags::empty()),
        }
    }

    fn rename(&mut self, path: &str, other: &str, flags: RenameFlags) {
        self.both(format!("rename {path} {other} {flags:?}"), |root| {
            let (path, other) = (root.join(path), root.join(other));
            Ok(rustix::fs::renameat_with(CWD, path, CWD, other, flags)?)
        });
    }

    fn change_attributes(&mut self) {
        let path = self.path();
        let number = self.random.below(512);
        let name = format!("user.{}", number % 3);
        match self.random.below(5) {
            0 => self.both(format!("chmod {path} {number:o}"), |root| {
                let mode = fs::Permissions::from_mode(0o600 | number as u32);
                fs::set_permissions(root.join(&path), mode)
            }),
            1 => self.both(format!("chown {path} {number}"), |root| {
                std::os::unix::fs::lchown(root.join(&path), Some(number as u32), None)
            }),
            2 => self.both(format!("setxattr {path} {name}"), |root| {
                let value = number.to_string();
                let flags = XattrFlags::empty();
                Ok(rustix::fs::setxattr(
                    root.join(&path),
                    &name,
                    value.as_bytes(),
                    flags,
                )?)
            }),
            3 => self.both(format!("removexattr {path} {name}"), |root| {
                Ok(rustix::fs::removexattr(root.join(&path), &name)?)
            }),
            _ => self.both(format!("utimens {path} {number}"), |root| {
                let time = Timespec {
                    tv_sec: number.cast_signed(),
                    tv_nsec: 7,
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                let path = root.join(&path);
                rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(fs::symlink_metadata(path)?.mtime())
            }),
        }
    }

    fn look(&mut self) {
        let (path, counts_links) = (self.path(), self.counts_links);
        match self.random.below(5) {
            0 => self.both(format!("read {path}"), |root| fs::read(root.join(&path))),
            1 => self.both(format!("readlink {path}"), |root| {
                fs::read_link(root.join(&path))
            }),
            2 => self.both(format!("list {path}"), |root| {
                let dir = root.join(&path);
                let mut names: Vec<_> = fs::read_dir(dir)?
                    .map(|entry| entry.map(|entry| entry.file_name()))
                    .collect::<io::Result<_>>()?;
                names.sort();
                Ok(names)
            }),
            3 => self.both(format!("getxattr {path}"), |root| {
                let mut value = [0; 16];
                let count = rustix::fs::getxattr(root.join(&path), "user.1", &mut value)?;
                Ok(value[..count].to_vec())
            }),
            _ => self.both(format!("lstat {path}"), |root| {
                let stat = fs::symlink_metadata(root.join(&path))?;
                Ok(attributes(&stat, counts_links))
            }),
        }
    }

    /// Opens a file in both directories, for use by `use_kept`. For reading and writing: what was
    /// opened for reading alone keeps the image's data, which is Lamina's way.
    fn keep(&mut self) {
        let path = self.path();
        let create = self.random.below(2) == 0;
        let opened = self.roots.each_ref().map(|root| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(create);
            options.mode(0o640).open(root.join(&path))
        });
        let errors = opened
            .each_ref()
            .map(|opened| opened.as_ref().map(drop).map_err(errno));
        self.compare(
            format!("open {path} create={create}"),
            &errors[0],
            &errors[1],
        );
        if let [Ok(on_mount), Ok(on_plain)] = opened {
            self.kept.push([on_mount, on_plain]);
        }
        if self.kept.len() > KEPT {
            let oldest = self.random.below(KEPT as u64) as usize;
            self.kept.swap_remove(oldest);
        }
    }

    /// Uses an open file, whatever has become of its name.
    fn use_kept(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let which = self.random.below(self.kept.len() as u64) as usize;
        let (data, offset) = (self.random.data(), self.random.below(OFFSET));
        let call = self.random.below(6);
        let counts_links = self.counts_links;
        let outcomes = self.kept[which].each_ref().map(|file| {
            outcome(match call {
                0 => file.write_all_at(&data, offset).map(|()| Vec::new()),
                1 => file.set_len(offset).map(|()| Vec::new()),
                2 => (file.metadata())
                    .map(|stat| format!("{:?}", attributes(&stat, counts_links)).into()),
                3 => file
                    .set_permissions(fs::Permissions::from_mode(0o600 | (offset & 0o77) as u32))
                    .map(|()| Vec::new()),
                4 if offset < OFFSET / 50 => file.sync_data().map(|()| Vec::new()),
                _ => read_whole(file),
            })
        });
        self.compare(
            format!("kept {which} call {call} at {offset}"),
            &outcomes[0],
            &outcomes[1],
        );
    }

    /// Changes what all others change too, on the mount alone. The outcome is anybody's guess, but
    /// not every error is.
    fn fight(&mut self) {
        let dir = self.roots[0].join("fight");
        let path = dir.join(format!("f{}", self.random.below(4)));
        let other = dir.join(format!("f{}", self.random.below(4)));
        let call = self.random.below(8);
        let done = match call {
            0 => fs::write(&path, "new"),
            1 => fs::remove_file(&path),
            2 => fs::rename(&path, &other),
            3 => fs::create_dir(&path),
            4 => fs::remove_dir(&path),
            5 => fs::hard_link(&path, &other),
            6 => fs::read_dir(&dir).and_then(|mut names| names.try_for_each(|name| name.map(drop))),
            _ => fs::read(&path).map(drop),
        };
        let allowed = [Errno::NOENT, Errno::EXIST, Errno::ISDIR, Errno::NOTDIR];
        let more = [Errno::PERM, Errno::NOTEMPTY];
        match outcome(done) {
            Err(error) if !allowed.contains(&error) && !more.contains(&error) => {
                eprintln!("fight: call {call} on {}: {error}", path.display());
                std::process::exit(1);
            }
            _ => {}
        }
    }
}

type Outcome<T> = Result<T, Errno>;

fn outcome<T>(done: io::Result<T>) -> Outcome<T> {
    done.map_err(|error| errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// What two directories have in common: no numbers of inodes, no times of the clock, no sizes of
/// directories.
fn attributes(stat: &fs::Metadata, counts_links: bool) -> (u32, u32, u32, u64, u64) {
    let size = if stat.is_dir() { 0 } else { stat.size() };
    let counted = counts_links && !stat.is_dir();
    let links = if counted { stat.nlink() } else { 0 };
    (stat.mode(), stat.uid(), stat.gid(), size, links)
}

fn read_whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))?;
    file.read_to_end(&mut data)?;
    Ok(data)
}
