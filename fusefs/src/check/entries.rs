//! The upper's tree, entry by entry.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::finding::{Finding, Problem};
use super::origins::{Origin, Origins};
use super::{Dirs, is_whiteout};
use crate::error::{Error, Result};
use crate::image::{Image, ImageId};
use crate::marks::{METACOPY_PARTIAL, Mark, Redirect, parse_redirect};
use crate::sys::dir::{RawEntry, read_dir};
use crate::sys::place::Place;
use crate::types::FileKind;

/// How the names of whiteouts in OCI archives begin.
const OCI_WHITEOUT: &[u8] = b".wh.";

/// A walk through an upper.
pub(super) struct Walk<'i> {
    upper: &'i Path,
    pub(super) root: Arc<OwnedFd>,
    dirs: Dirs,
    pub(super) image: &'i Image,
    origins: Origins<'i>,
    /// The directory of the upper that continues a directory of the image by a redirect.
    pub(super) redirected: HashMap<ImageId, PathBuf>,
    findings: Vec<Finding>,
    /// Directories still to be looked at.
    pending: Vec<Dir>,
}

/// A directory of the upper.
struct Dir {
    /// From the upper's root.
    path: PathBuf,
    /// The image's directory that it continues.
    image: Option<ImageId>,
    marks: Vec<(Mark, Vec<u8>)>,
}

/// An entry of a directory of the upper.
struct Entry<'d> {
    dir: &'d Dir,
    raw: RawEntry,
    path: PathBuf,
    marks: Vec<(Mark, Vec<u8>)>,
}

impl<'i> Walk<'i> {
    pub(super) fn new(upper: &'i Path, root: Arc<OwnedFd>, image: &'i Image) -> Walk<'i> {
        Walk {
            upper,
            dirs: Dirs::new(Arc::clone(&root)),
            root,
            image,
            origins: Origins::new(image),
            redirected: HashMap::new(),
            findings: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Looks at everything.
    pub(super) fn run(&mut self) -> Result<()> {
        let marks = Mark::all_of(&Place::Fd(Arc::clone(&self.root)))?;
        self.check_values(Path::new(""), &marks);
        let opaque = is_opaque(&marks);
        self.pending.push(Dir {
            path: PathBuf::new(),
            image: (self.image.has_root() && !opaque).then_some(ImageId::ROOT),
            marks,
        });
        while let Some(dir) = self.pending.pop() {
            if let Err(error) = self.check_dir(&dir) {
                self.unreadable(&dir.path, &error)?;
            }
        }
        Ok(())
    }

    /// What was found, and what is needed to go on with the work directory.
    pub(super) fn finish(self) -> (Arc<OwnedFd>, Origins<'i>, Vec<Finding>) {
        (self.root, self.origins, self.findings)
    }

    pub(super) fn report(&mut self, path: &Path, problem: Problem) {
        self.findings.push(Finding::new(self.upper, path, problem));
    }

    /// What somebody removes meanwhile is no finding; without privilege nothing can be judged.
    fn unreadable(&mut self, path: &Path, error: &Error) -> Result<()> {
        match error.errno() {
            Errno::NOENT => {}
            errno @ (Errno::PERM | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                return Err(errno.into());
            }
            _ => self.report(path, Problem::Unreadable(error.to_string())),
        }
        Ok(())
    }

    fn check_dir(&mut self, dir: &Dir) -> Result<()> {
        let fd = self.dirs.open(&dir.path)?;
        let mut impure_by = None;
        for raw in read_dir(fd.as_fd())? {
            let path = dir.path.join(&raw.name);
            let place = Place::at(&fd, &raw.name);
            match self.check_entry(dir, raw, &path, &place) {
                Ok(from_image) if from_image && impure_by.is_none() => impure_by = Some(path),
                Ok(_) => {}
                Err(error) => self.unreadable(&path, &error)?,
            }
        }
        let is_impure = dir.marks.iter().any(|(mark, _)| *mark == Mark::Impure);
        if let Some(entry) = impure_by
            && !is_impure
        {
            self.report(&dir.path, Problem::NotImpure { entry });
        }
        Ok(())
    }

    /// Checks one entry. True if its directory has to be impure.
    fn check_entry(
        &mut self,
        dir: &Dir,
        raw: RawEntry,
        path: &Path,
        place: &Place,
    ) -> Result<bool> {
        if raw.kind == FileKind::CharDevice && is_whiteout(place)? {
            if self.image_entry(dir, &raw.name)?.is_none() {
                self.report(path, Problem::WhiteoutHidesNothing);
            }
            return Ok(false);
        }
        if raw.name.as_bytes().starts_with(OCI_WHITEOUT) {
            self.report(path, Problem::OciWhiteout);
        }
        let marks = Mark::all_of(place)?;
        self.check_values(path, &marks);
        let entry = Entry {
            dir,
            raw,
            path: path.to_owned(),
            marks,
        };
        let copied_up = self.check_origin(&entry)?;
        if entry.raw.kind == FileKind::Directory {
            let redirected = entry.redirect().is_some();
            let image = self.continued(&entry)?;
            self.pending.push(Dir {
                path: entry.path,
                image,
                marks: entry.marks,
            });
            return Ok(redirected);
        }
        if let Some(value) = entry.value(Mark::Metacopy) {
            if !self.data_below(&entry)? {
                self.report(path, Problem::MetacopyWithoutData);
            } else if value == METACOPY_PARTIAL {
                self.report(path, Problem::Partial);
            }
        }
        Ok(copied_up)
    }

    /// Reports marks with values that mean nothing.
    fn check_values(&mut self, path: &Path, marks: &[(Mark, Vec<u8>)]) {
        for (mark, value) in marks {
            if mark.is_written(value) {
                continue;
            }
            let text = Path::new(OsStr::from_bytes(value));
            let climbs = text.components().any(|part| part.as_os_str() == "..");
            let problem = if *mark == Mark::Redirect && climbs {
                Problem::RedirectOutside {
                    target: text.to_owned(),
                }
            } else {
                Problem::BadValue {
                    mark: mark.name(),
                    value: value.escape_ascii().to_string(),
                }
            };
            self.report(path, problem);
        }
    }

    /// Checks an entry's origin. True if it has one.
    fn check_origin(&mut self, entry: &Entry<'_>) -> Result<bool> {
        let Some(value) = entry.value(Mark::Origin) else {
            return Ok(false);
        };
        let likely = self.image_entry(entry.dir, &entry.raw.name)?;
        match self.origins.find(value, likely)? {
            Origin::None => return Ok(false),
            Origin::InImage(_) => {}
            Origin::Gone => self.report(&entry.path, Problem::OriginUnknown),
            Origin::Elsewhere => self.report(&entry.path, Problem::OriginElsewhere),
        }
        Ok(true)
    }

    /// The image's directory that a directory continues.
    fn continued(&mut self, entry: &Entry<'_>) -> Result<Option<ImageId>> {
        if is_opaque(&entry.marks) {
            return Ok(None);
        }
        if let Some(redirect) = entry.redirect() {
            return self.check_redirect(&entry.path, entry.dir.image, &redirect);
        }
        let below = self.image_entry(entry.dir, &entry.raw.name)?;
        Ok(below.filter(|id| self.image.kind(*id) == FileKind::Directory))
    }

    /// Whether the image has the data of a file that has none of its own.
    fn data_below(&self, entry: &Entry<'_>) -> Result<bool> {
        let below = match entry.redirect() {
            None => self.image_entry(entry.dir, &entry.raw.name)?,
            Some(Redirect::Absolute(path)) => self.image.find(&path)?,
            Some(Redirect::Sibling(name)) => self.image_entry(entry.dir, name.as_os_str())?,
        };
        Ok(below.is_some_and(|id| self.image.kind(id) == FileKind::Regular))
    }

    fn image_entry(&self, dir: &Dir, name: &OsStr) -> Result<Option<ImageId>> {
        match dir.image {
            Some(id) => self.image.lookup(id, name),
            None => Ok(None),
        }
    }
}

impl Entry<'_> {
    fn value(&self, mark: Mark) -> Option<&[u8]> {
        let found = self.marks.iter().find(|(found, _)| *found == mark);
        found.map(|(_, value)| value.as_slice())
    }

    fn redirect(&self) -> Option<Redirect> {
        parse_redirect(self.value(Mark::Redirect)?)
    }
}

fn is_opaque(marks: &[(Mark, Vec<u8>)]) -> bool {
    let opaque = marks.iter().find(|(mark, _)| *mark == Mark::Opaque);
    opaque.is_some_and(|(_, value)| value == b"y")
}
