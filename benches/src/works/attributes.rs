//! Works that change attributes of image files.

use std::fs;
use std::os::unix::fs::lchown;
use std::path::Path;

use anyhow::{Result, ensure};
use walkdir::WalkDir;

use super::walk::{Seen, find_with};
use super::{Cache, Input, Outcome, Place, Target, Work};
use crate::ground::Layers;
use crate::image::contents;

/// The new owner.
const OWNER: u32 = 1234;

/// Below which directory everything gets it.
const BELOW: &str = "usr/share";

/// The works of this module.
pub(super) fn works() -> Vec<Work> {
    vec![Work {
        name: "chown",
        title: "chown -R of 50,000 image files",
        layers: Layers::Userland(2),
        cache: Cache::Fresh,
        target: Target::Overlayfs(0.4),
        prepare: |place| Ok(all_below(place)),
        run: |place, _| chown(&place.root.join(BELOW)),
        check: Some(chowned),
    }]
}

fn all_below(place: &Place) -> Input {
    let below = place.image().below(Path::new(BELOW));
    let expected = Outcome {
        count: below.count() as u64,
        ..Outcome::default()
    };
    Input {
        paths: Vec::new(),
        expected,
    }
}

fn chown(top: &Path) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for entry in WalkDir::new(top) {
        lchown(entry?.path(), Some(OWNER), Some(OWNER))?;
        outcome.add(0, 0);
    }
    Ok(outcome)
}

/// Names, modes, sizes and files' times are as before, the owner is new, and the bytes of some files
/// are still there. Directories' times don't count: fuse-overlayfs changes them when it copies up,
/// and its speed shall be known all the same.
fn chowned(place: &Place, _: &Input) -> Result<()> {
    let below = Path::new(BELOW);
    let mut expected = Outcome::default();
    for node in place.image().below(below).filter(|node| node.path != below) {
        let seen = Seen::expected(node, OWNER, OWNER).without_times_of_dirs();
        expected.add(seen.size(), seen.digest(node.path.strip_prefix(below)?));
    }
    let found = find_with(&place.root.join(below), Seen::without_times_of_dirs)?;
    ensure!(
        found == expected,
        "{found:?}, but it has to be {expected:?}"
    );
    let files = place
        .image()
        .files()
        .filter(|(node, _, _)| node.path.starts_with(below));
    for (node, size, seed) in files.step_by(500) {
        let bytes = fs::read(place.root.join(&node.path))?;
        let right = bytes == contents::whole(seed, size);
        ensure!(right, "{} has other bytes", node.path.display());
    }
    Ok(())
}
