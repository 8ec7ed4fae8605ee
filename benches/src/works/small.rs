//! Works on many small files of the image: read them, look names up, start a program.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{Cache, Input, Outcome, Place, Target, Work};
use crate::ground::Layers;
use crate::image::{USERLAND_MODULES, contents};

/// A small file has at most so many bytes.
const SMALL: u64 = 16 << 10;

const OPEN: Work = Work {
    name: "open-cold",
    title: "open+read+close of 20,000 small files, cold",
    layers: Layers::Userland(2),
    cache: Cache::Cold,
    target: Target::Overlayfs(1.1),
    prepare: |place| Ok(small_files(place)),
    run: |_, input| read_all(input),
    check: None,
};

const LOOKUPS: Work = Work {
    name: "lookups-1",
    title: "lookups with 1 layer, cold",
    layers: Layers::Userland(1),
    target: Target::None,
    prepare: |place| Ok(names(place)),
    run: |_, input| look_up(input),
    ..OPEN
};

/// The works of this module.
pub(super) fn works() -> Vec<Work> {
    vec![
        OPEN,
        Work {
            name: "open-warm",
            title: "open+read+close of 20,000 small files, warm",
            cache: Cache::Warm,
            target: Target::Overlayfs(2.0),
            ..OPEN
        },
        LOOKUPS,
        Work {
            name: "lookups-128",
            title: "lookups with 128 layers against 1 layer, cold",
            layers: Layers::Userland(128),
            target: Target::Itself("lookups-1", 1.1),
            ..LOOKUPS
        },
        Work {
            name: "start",
            title: "a start with 1,200 opens, in a fresh container",
            cache: Cache::Fresh,
            target: Target::Overlayfs(1.1),
            prepare: |place| Ok(modules(place)),
            run: start,
            ..OPEN
        },
        Work {
            name: "first-output",
            title: "mount to first output",
            cache: Cache::Unmounted,
            target: Target::None,
            prepare: |place| Ok(one_file(place)),
            ..OPEN
        },
    ]
}

/// 20,000 small files, from all over the image, in the order of their names.
fn small_files(place: &Place) -> Input {
    let small = || place.image().files().filter(|(_, size, _)| *size <= SMALL);
    let wanted = place.count(20_000);
    let every = (small().count() / wanted).max(1);
    files(place, small().step_by(every).take(wanted))
}

fn one_file(place: &Place) -> Input {
    files(place, place.image().files().skip(1000).take(1))
}

/// These files, and the digest of their bytes.
fn files<'a>(
    place: &Place,
    files: impl Iterator<Item = (&'a crate::image::Node, u64, u64)>,
) -> Input {
    let mut input = Input::default();
    for (node, size, seed) in files {
        input.paths.push(place.root.join(&node.path));
        let digest = contents::digest_of_file(seed, size);
        input.expected.add(size, digest);
    }
    input
}

fn read_all(input: &Input) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut buffer = vec![0; 256 << 10];
    for path in &input.paths {
        let bytes = read(File::open(path)?, &mut buffer)?;
        outcome.add(bytes.len() as u64, contents::digest(bytes));
    }
    Ok(outcome)
}

/// The whole file, without the fstat by which `fs::read` makes room.
fn read(mut file: File, buffer: &mut [u8]) -> Result<&[u8]> {
    let mut length = 0;
    loop {
        match file.read(&mut buffer[length..])? {
            0 => return Ok(&buffer[..length]),
            more => length += more,
        }
    }
}

/// 20,000 names all over the image, and as many that nobody has.
fn names(place: &Place) -> Input {
    let wanted = place.count(20_000);
    let every = (place.image().files().count() / wanted).max(1);
    let files = place.image().files().step_by(every).take(wanted);
    let mut input = Input::default();
    for (node, size, _) in files {
        let path = place.root.join(&node.path);
        input.paths.push(path.with_extension("missing"));
        input.paths.push(path);
        input.expected.add(size, 0);
    }
    input
}

fn look_up(input: &Input) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for path in &input.paths {
        match fs::symlink_metadata(path) {
            Ok(metadata) => outcome.add(metadata.len(), 0),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => bail!("{}: {error}", path.display()),
        }
    }
    Ok(outcome)
}

/// The modules of a program.
fn modules(place: &Place) -> Input {
    let image = place.image();
    let modules = image
        .files()
        .filter(|(node, _, _)| node.path.starts_with(USERLAND_MODULES));
    files(place, modules)
}

/// What an interpreter does for each module that it imports: look for it in the directories of its
/// path under the names that a module may have, then look at it, read it, and close it.
fn start(place: &Place, input: &Input) -> Result<Outcome> {
    let path = ["usr/lib", "usr/share", "usr/lib/modules.d"].map(|dir| place.root.join(dir));
    let mut outcome = Outcome::default();
    let mut buffer = vec![0; 256 << 10];
    for module in &input.paths {
        let file = File::open(search(&path, module)?)?;
        file.metadata()?;
        let bytes = read(file, &mut buffer)?;
        outcome.add(bytes.len() as u64, contents::digest(bytes));
    }
    Ok(outcome)
}

fn search(path: &[PathBuf], module: &std::path::Path) -> Result<PathBuf> {
    for dir in path {
        let name = dir.join(module.file_name().unwrap_or_default());
        for extension in ["abi3.so", "pyc", "so"] {
            let candidate = name.with_extension(extension);
            if fs::metadata(&candidate).is_ok() {
                return Ok(candidate);
            }
        }
    }
    bail!("{} is nowhere", module.display())
}
