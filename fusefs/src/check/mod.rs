//! Does an upper fit its layers? Which entry doesn't, and what is to be done?
//!
//! An upper means something only above the layers that it was written over: its whiteouts hide
//! their names, its redirects and origins name their files. [`check_upper`] looks at each entry
//! and each mark, with the merged image beside it. It changes nothing, opens everything by
//! descriptor and follows no symlink. What grows with the depth of a tree lies on the heap, and one
//! directory is open at a time.
//!
//! - `finding` has what can be wrong, and how serious it is;
//! - `entries` goes through the upper's tree, `redirects` judges where directories continue;
//! - `origins` finds the image files that handles name;
//! - `work` looks at the work directory and the index of hard links.

mod entries;
mod finding;
mod origins;
mod redirects;
mod work;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

pub use finding::{Finding, Problem, Severity};

use self::entries::Walk;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::{DirLayer, Layer};
use crate::marks;
use crate::sys::beneath::{open_beneath, open_root};
use crate::sys::dir::read_dir;
use crate::sys::place::Place;
use crate::types::FileKind;

/// Checks an upper, and its work directory if there is one, against the layers below it, the
/// topmost first. The upper may be in use, but then what is under construction is found too.
pub fn check_upper(upper: &Path, work: Option<&Path>, layers: &[PathBuf]) -> Result<Vec<Finding>> {
    let layers = layers
        .iter()
        .map(|path| Ok(Arc::new(DirLayer::open(path)?) as Arc<dyn Layer>))
        .collect::<Result<Vec<_>>>()?;
    check_upper_above(upper, work, &Image::new(layers)?)
}

/// As [`check_upper`], against an image.
pub fn check_upper_above(
    upper: &Path,
    work: Option<&Path>,
    image: &Arc<Image>,
) -> Result<Vec<Finding>> {
    let root = open(upper, "cannot open the upper")?;
    let mut walk = Walk::new(upper, Arc::new(root), image);
    walk.run()?;
    let (root, mut origins, mut findings) = walk.finish();
    if let Some(path) = work {
        let work = open(path, "cannot open the work directory")?;
        work::check(path, &work, (upper, &root), &mut origins, &mut findings)?;
    }
    Ok(findings)
}

/// Checks the lowest layer of a stack: there is nothing that its whiteouts could hide.
pub fn check_lowest(layer: &Path) -> Result<Vec<Finding>> {
    let root = open(layer, "cannot open the layer")?;
    let mut dirs = Dirs::new(Arc::new(root));
    let mut findings = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let dir = dirs.open(&path)?;
        for entry in read_dir(dir.as_fd())? {
            let inside = path.join(&entry.name);
            match entry.kind {
                FileKind::Directory => pending.push(inside),
                FileKind::CharDevice if is_whiteout(&Place::at(&dir, &entry.name))? => {
                    let problem = Problem::WhiteoutInLowest;
                    findings.push(Finding::new(layer, &inside, problem));
                }
                _ => {}
            }
        }
    }
    Ok(findings)
}

/// The directories of a tree, opened one after another. One that lies in the last one costs one
/// step, however deep both are.
struct Dirs {
    root: Arc<OwnedFd>,
    last: (PathBuf, Arc<OwnedFd>),
}

impl Dirs {
    fn new(root: Arc<OwnedFd>) -> Dirs {
        let last = (PathBuf::new(), Arc::clone(&root));
        Dirs { root, last }
    }

    fn open(&mut self, path: &Path) -> Result<Arc<OwnedFd>> {
        let (from, rest) = match path.strip_prefix(&self.last.0) {
            Ok(rest) => (&self.last.1, rest),
            Err(_) => (&self.root, path),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = Arc::new(open_beneath(from.as_fd(), rest, flags)?);
        self.last = (path.to_owned(), Arc::clone(&dir));
        Ok(dir)
    }
}

fn is_whiteout(place: &Place) -> Result<bool> {
    Ok(marks::is_whiteout(&place.stat()?))
}

fn open(path: &Path, action: &'static str) -> Result<OwnedFd> {
    open_root(path).map_err(|errno| Error::Path {
        action,
        path: path.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests;
