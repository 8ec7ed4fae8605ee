//! The tree of a big userland of Debian packages.
//!
//! Names, lengths, permissions, times and symlinks are those of the packages, as their archives tell
//! them. The bytes of the files are made: so every read of the race can be checked without the
//! packages, which are deleted once their archives were read. What was found is kept as a list beside
//! the layers, since the archive of Debian moves on and a race must be repeatable.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::userland::{EPOCH, add_modules};
use super::{Kind, Node, Scale, contents};

/// What is installed, with everything that it depends on: 1,300 packages of 135,000 files and
/// 6.5 GB in Debian 12.
const PACKAGES: [&str; 27] = [
    "blender",
    "chromium",
    "clang",
    "default-jdk",
    "emacs-nox",
    "firefox-esr",
    "gdb",
    "gimp",
    "golang-go",
    "inkscape",
    "libqt5webengine5",
    "libreoffice",
    "llvm-dev",
    "nodejs",
    "npm",
    "php-cli",
    "postgresql",
    "python3-matplotlib",
    "python3-pandas",
    "python3-scipy",
    "python3-torch",
    "qtbase5-dev",
    "ruby",
    "rustc",
    "texlive-latex-extra",
    "valgrind",
    "vim-runtime",
];

/// The directories that the works expect in any image.
const ALWAYS: [&str; 5] = ["etc", "usr", "usr/lib", "usr/share", "var"];

/// What the archive of one package holds.
#[derive(Serialize, Deserialize)]
struct Package {
    /// Name, version and architecture, as its file is named.
    name: String,
    entries: Vec<Entry>,
}

/// One name in an archive.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Relative to the root.
    path: PathBuf,
    kind: Kind,
    mode: u32,
    mtime: i64,
}

/// All names, parents first: of every package at scale 1, else of so large a share of them, and of
/// all of them above. `dir` keeps the list; it is made there if it is missing, which needs `apt-get`
/// and an archive that can be reached.
pub(super) fn nodes(dir: &Path, scale: Scale) -> Result<Vec<Node>> {
    let mut tree = Tree::default();
    for path in ALWAYS {
        tree.dir(path.into(), 0o755, EPOCH);
    }
    for package in packages(dir)? {
        let mut rng = Rng::with_seed(contents::digest(package.name.as_bytes()));
        if rng.f64() < scale.factor() {
            tree.package(package, &mut rng);
        }
    }
    add_modules(&mut tree.nodes, scale);
    Ok(tree.nodes)
}

/// The tree of all packages so far. Where two have the same name, the first one's counts, as long
/// as it isn't a directory for both.
#[derive(Default)]
struct Tree {
    nodes: Vec<Node>,
    /// Whether a name is a directory.
    known: HashMap<PathBuf, bool>,
}

impl Tree {
    fn package(&mut self, package: Package, rng: &mut Rng) {
        let place = rng.u32(..);
        for entry in package.entries {
            let Entry {
                path, mode, mtime, ..
            } = entry;
            let node = match entry.kind {
                Kind::Dir => {
                    self.dir(path, mode, mtime);
                    continue;
                }
                Kind::File { size, .. } => Node {
                    kind: Kind::File {
                        size,
                        seed: rng.u64(..),
                    },
                    path,
                    mode,
                    mtime,
                    place: 0,
                },
                // Its permissions and time can't be chosen everywhere.
                Kind::Symlink(target) => Node {
                    kind: Kind::Symlink(target),
                    path,
                    mode: 0o777,
                    mtime: EPOCH,
                    place: 0,
                },
            };
            // One file in five is not where the rest of its package is: an update, a configuration.
            let place = if rng.u8(..5) == 0 { rng.u32(..) } else { place };
            self.add(Node { place, ..node });
        }
    }

    fn dir(&mut self, path: PathBuf, mode: u32, mtime: i64) {
        self.add(Node {
            path,
            kind: Kind::Dir,
            mode,
            mtime,
            place: 0,
        });
    }

    /// Adds a name that isn't there yet, in a directory that is.
    fn add(&mut self, node: Node) {
        let parent = node.path.parent().unwrap_or(Path::new(""));
        let has_parent = parent.as_os_str().is_empty() || self.known.get(parent) == Some(&true);
        if has_parent && !self.known.contains_key(&node.path) {
            let is_dir = node.kind == Kind::Dir;
            self.known.insert(node.path.clone(), is_dir);
            self.nodes.push(node);
        }
    }
}

/// What the packages hold, from the list in `dir`.
fn packages(dir: &Path) -> Result<Vec<Package>> {
    let list = dir.join("debian.json");
    if !list.exists() {
        let archives = dir.join("packages");
        fetch(&archives)?;
        let packages = read_all(&archives)?;
        let unfinished = list.with_extension("unfinished");
        serde_json::to_writer(BufWriter::new(File::create(&unfinished)?), &packages)?;
        fs::rename(&unfinished, &list)?;
        fs::remove_dir_all(&archives)?;
    }
    let file = File::open(&list).with_context(|| format!("cannot open {}", list.display()))?;
    serde_json::from_reader(BufReader::new(file)).with_context(|| {
        let list = list.display();
        format!("{list} is no list of packages: delete it, and it is made again")
    })
}

/// Downloads the packages, as onto a machine that has none. Installs nothing.
fn fetch(archives: &Path) -> Result<()> {
    fs::create_dir_all(archives.join("partial"))?;
    let bar = ProgressBar::new_spinner().with_message("fetching 1.6 GB of Debian packages");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let cache = format!("Dir::Cache::archives={}", archives.display());
    let fetched = Command::new("apt-get")
        .args(["-o", "Dir::State::status=/dev/null", "-o", &cache])
        .args(["-o", "Debug::NoLocking=1", "--download-only", "--yes"])
        .args(["--no-install-recommends", "install"])
        .args(PACKAGES)
        .output()
        .context("cannot run apt-get: this image is made of Debian packages")?;
    bar.finish_and_clear();
    ensure!(
        fetched.status.success(),
        "apt-get could not fetch the packages (has `apt-get update` been run?); --image made needs \
         none:\n{}",
        String::from_utf8_lossy(&fetched.stderr)
    );
    Ok(())
}

/// Reads all archives, in the order of their names.
fn read_all(archives: &Path) -> Result<Vec<Package>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            files.push(path);
        }
    }
    files.sort_unstable();
    let bar = ProgressBar::new(files.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "reading packages {wide_bar} {pos}/{len}",
    )?);
    let read = |file: &PathBuf| {
        bar.inc(1);
        read_package(file).with_context(|| format!("cannot read {}", file.display()))
    };
    files.iter().map(read).collect()
}

fn read_package(file: &Path) -> Result<Package> {
    let mut unpacked = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let pipe = unpacked.stdout.take().context("no output")?;
    let entries = entries(pipe)?;
    ensure!(unpacked.wait()?.success(), "dpkg-deb failed");
    let name = file.file_stem().unwrap_or_default();
    Ok(Package {
        name: name.to_string_lossy().into_owned(),
        entries,
    })
}

/// Directories, files and symlinks of an archive. Hard links, of which there are a handful, and
/// names that are no text are left out.
fn entries(archive: impl Read) -> Result<Vec<Entry>> {
    let mut archive = tar::Archive::new(archive);
    let mut found = Vec::new();
    for entry in archive.entries()? {
        let entry = entry?;
        let header = entry.header();
        let kind = match header.entry_type() {
            tar::EntryType::Directory => Kind::Dir,
            tar::EntryType::Regular => Kind::File {
                size: entry.size(),
                seed: 0,
            },
            tar::EntryType::Symlink => match entry.link_name()? {
                Some(target) => Kind::Symlink(target.into_owned()),
                None => continue,
            },
            _ => continue,
        };
        let path: PathBuf = entry
            .path()?
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        if path.to_str().is_none() || path.as_os_str().is_empty() {
            continue;
        }
        found.push(Entry {
            path,
            kind,
            mode: header.mode()? & 0o7777,
            mtime: i64::try_from(header.mtime()?)?,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with these names; the ones that end with a slash are directories.
    fn archive(names: &[&str]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o100_755);
            header.set_mtime(1_234_567_890);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                archive.append_data(&mut header, name, &[][..]).unwrap();
            } else {
                header.set_size(5);
                archive
                    .append_data(&mut header, name, &b"hello"[..])
                    .unwrap();
            }
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        link.set_mode(0o777);
        link.set_mtime(0);
        archive
            .append_link(&mut link, "usr/share/link", "/etc/passwd")
            .unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn an_archive_is_read_as_it_was_written() {
        let names = ["./", "./usr/", "./usr/share/", "./usr/share/a"];
        let found = entries(&archive(&names)[..]).unwrap();
        let paths: Vec<_> = found
            .iter()
            .map(|entry| entry.path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["usr", "usr/share", "usr/share/a", "usr/share/link"]);
        assert_eq!(found[2].kind, Kind::File { size: 5, seed: 0 });
        assert_eq!((found[2].mode, found[2].mtime), (0o755, 1_234_567_890));
        assert_eq!(found[3].kind, Kind::Symlink("/etc/passwd".into()));
    }

    #[test]
    fn of_two_packages_one_has_a_name_and_nothing_lies_below_a_file() {
        let package = |name: &str, names: &[&str]| Package {
            name: name.to_owned(),
            entries: entries(&archive(names)[..]).unwrap(),
        };
        let packages = [
            package("one", &["usr/", "usr/share/", "usr/share/both"]),
            package("two", &["usr/", "usr/share/both", "usr/share/both/below"]),
        ];
        let dir = tempfile::tempdir().unwrap();
        let list = File::create(dir.path().join("debian.json")).unwrap();
        serde_json::to_writer(list, &packages).unwrap();
        let nodes = nodes(dir.path(), Scale::new(1.0).unwrap()).unwrap();
        let in_share = |node: &&Node| node.path.starts_with("usr/share/");
        let paths: Vec<_> = nodes
            .iter()
            .filter(in_share)
            .map(|node| &node.path)
            .collect();
        assert_eq!(
            paths,
            ["usr/share", "usr/share/both", "usr/share/link"]
                .map(PathBuf::from)
                .each_ref()
        );
    }

    #[test]
    fn a_list_that_is_none_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("debian.json"), "[{").unwrap();
        let error = nodes(dir.path(), Scale::new(1.0).unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("debian.json is no list"),
            "{error}"
        );
    }
}
