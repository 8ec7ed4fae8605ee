//! Where directories of the upper continue.
//!
//! A redirect leads into the image, so following redirects always ends. But the rename that wrote
//! it also hid the directory at its old place; where that did not happen, or happened twice, one
//! directory of the image is two of the union, and may even lie in itself.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::entries::Walk;
use super::finding::Problem;
use crate::error::Result;
use crate::image::ImageId;
use crate::marks::{self, Redirect};
use crate::sys::beneath::open_beneath;
use crate::sys::kind_of;
use crate::sys::place::Place;
use crate::types::FileKind;

impl Walk<'_> {
    /// The image's directory to which the redirect of the directory at `path` leads; `parent` is
    /// the image's part of the directory that holds it.
    pub(super) fn check_redirect(
        &mut self,
        path: &Path,
        parent: Option<ImageId>,
        redirect: &Redirect,
    ) -> Result<Option<ImageId>> {
        let (target, found) = match redirect {
            Redirect::Absolute(target) => (target.clone(), self.image.find(target)?),
            Redirect::Sibling(name) => match parent {
                Some(parent) => (
                    self.image.path(parent).join(name),
                    self.image.lookup(parent, name.as_os_str())?,
                ),
                None => (name.clone(), None),
            },
        };
        let shown = Path::new("/").join(&target);
        let Some(id) = found.filter(|id| self.image.kind(*id) == FileKind::Directory) else {
            self.report(path, Problem::RedirectNowhere { target: shown });
            return Ok(None);
        };
        if let Some(other) = self.redirected.get(&id) {
            let other = other.clone();
            self.report(path, Problem::RedirectTwice { other });
        } else if self.is_shown(path, &target)? {
            self.report(path, Problem::RedirectToShown { target: shown });
        }
        self.redirected.entry(id).or_insert_with(|| path.to_owned());
        Ok(Some(id))
    }

    /// Whether the image's directory at `target` is still seen at its own path, although the
    /// directory at `path` continues it.
    fn is_shown(&self, path: &Path, target: &Path) -> Result<bool> {
        let mut at = PathBuf::new();
        for name in target {
            at.push(name);
            if at == path {
                return Ok(false);
            }
            let place = match open_beneath(self.root.as_fd(), &at, OFlags::PATH) {
                Ok(fd) => Place::Fd(Arc::new(fd)),
                Err(Errno::NOENT) => return Ok(true),
                Err(error) => return Err(error.into()),
            };
            let is_dir = kind_of(&place.stat()?) == FileKind::Directory;
            // A redirect that makes no sense is a finding of its own directory.
            let elsewhere = |place| !matches!(marks::redirect(place), Ok(None));
            if !is_dir || marks::is_opaque(&place)? || elsewhere(&place) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
