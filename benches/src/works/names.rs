//! Works that change names: create small files, remove files of the image.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};

use anyhow::{Result, ensure};

use super::{Cache, Input, Outcome, Place, Target, Work, walk};
use crate::ground::Layers;
use crate::image::contents;

const CREATE: Work = Work {
    name: "create",
    title: "create 10,000 small files",
    layers: Layers::Userland(2),
    cache: Cache::Fresh,
    target: Target::Overlayfs(2.0),
    prepare: |place| Ok(new_files(place)),
    run: |_, input| create(input),
    check: Some(created),
};

/// The works of this module.
pub(super) fn works() -> Vec<Work> {
    vec![
        CREATE,
        Work {
            name: "remove",
            title: "remove 20,000 image files",
            target: Target::Overlayfs(1.5),
            prepare: |place| Ok(some_files(place)),
            run: |_, input| remove(input),
            check: Some(removed),
            ..CREATE
        },
    ]
}

/// New names in ten new directories of a directory of the image.
fn new_files(place: &Place) -> Input {
    let top = place.root.join("var/new");
    let count = place.count(10_000);
    let paths = (0..count).map(|n| top.join(format!("dir{}/file{n}", n % 10)));
    Input {
        paths: paths.collect(),
        expected: Outcome {
            count: count as u64,
            bytes: count as u64 * contents::PAGE as u64 / 4,
            digest: 0,
            took: None,
        },
    }
}

fn create(input: &Input) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for (number, path) in (0..).zip(&input.paths) {
        if number < 10 {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let bytes = small(number);
        file.write_all(&bytes)?;
        outcome.add(bytes.len() as u64, 0);
    }
    Ok(outcome)
}

fn small(number: u64) -> Vec<u8> {
    contents::whole(number, contents::PAGE as u64 / 4)
}

fn created(_: &Place, input: &Input) -> Result<()> {
    for (number, path) in (0..).zip(&input.paths) {
        let right = fs::read(path)? == small(number);
        ensure!(right, "{} has other bytes", path.display());
    }
    Ok(())
}

/// 20,000 files, of one package after the other.
fn some_files(place: &Place) -> Input {
    let files = place
        .image()
        .files()
        .map(|(node, _, _)| place.root.join(&node.path));
    let paths: Vec<_> = files.take(place.count(20_000)).collect();
    let expected = Outcome {
        count: paths.len() as u64,
        ..Outcome::default()
    };
    Input { paths, expected }
}

fn remove(input: &Input) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for path in &input.paths {
        fs::remove_file(path)?;
        outcome.add(0, 0);
    }
    Ok(outcome)
}

/// These files are gone, and everything else is there.
fn removed(place: &Place, input: &Input) -> Result<()> {
    for path in &input.paths {
        let error = fs::symlink_metadata(path).err().map(|error| error.kind());
        ensure!(
            error == Some(ErrorKind::NotFound),
            "{} is there",
            path.display()
        );
    }
    let found = walk::count(place.root)?;
    let left = place.image().nodes().len() - input.paths.len();
    ensure!(found == left, "{found} names are left, not {left}");
    Ok(())
}
