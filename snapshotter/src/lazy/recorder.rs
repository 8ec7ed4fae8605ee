//! Sees what the containers of an image open first.
//!
//! A recording begins when a container of a repository's images is mounted, and lasts for as long as
//! a start takes; what is opened later says nothing about the next start. When it has ended, the
//! keeper merges it into the repository's profile.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamina_fusefs::Result;
use lamina_fusefs::blob::{Digest, Files};
use lamina_fusefs::index::LayerData;
use lamina_fusefs::layer::Arriving;
use lamina_fusefs::types::Ino;
use parking_lot::Mutex;

use super::profile::{self, FILES, Profile};

/// How long a recording lasts.
const START: Duration = Duration::from_secs(30);
/// The most bytes of files of one recording: a container that reads all it has is no guide.
const BYTES: u64 = 512 << 20;

/// Everything that is recorded of a root's images.
#[derive(Debug)]
pub(super) struct Recorders {
    dir: PathBuf,
    /// By repository.
    all: Mutex<HashMap<String, Arc<Recorder>>>,
}

/// What is recorded of one repository's images.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// Whether a recording is under way: what every open looks at.
    is_on: AtomicBool,
    recording: Mutex<Option<Recording>>,
    /// The image that was used last, by its name.
    image: Mutex<String>,
}

#[derive(Debug)]
struct Recording {
    since: Instant,
    opened: Vec<(Digest, u64)>,
    seen: HashSet<Digest>,
    bytes: u64,
}

impl Recorders {
    /// Those of the profiles in a directory.
    pub(super) fn new(dir: PathBuf) -> Recorders {
        Recorders {
            dir,
            all: Mutex::default(),
        }
    }

    /// The one of a repository, which the image with this name is in.
    pub(super) fn of(&self, repository: &str, image: &str) -> Arc<Recorder> {
        let mut all = self.all.lock();
        let recorder = Arc::clone(all.entry(repository.to_owned()).or_default());
        image.clone_into(&mut recorder.image.lock());
        recorder
    }

    /// Adds what others have seen of a repository.
    pub(super) fn learn(&self, profile: &Profile) -> Result<()> {
        let known = profile::read(&self.dir, &profile.repository)?;
        let mut known = known.unwrap_or_else(|| Profile::new(&profile.repository));
        known.merge(profile);
        profile::write(&self.dir, &known)
    }

    /// The files to fetch first of a repository's images; none, if nothing is known of it.
    pub(super) fn wanted(&self, repository: &str) -> Vec<Digest> {
        match profile::read(&self.dir, repository) {
            Ok(profile) => profile.map_or_else(Vec::new, |profile| profile.wanted()),
            Err(error) => {
                tracing::warn!(%error, repository, "a profile is not used");
                Vec::new()
            }
        }
    }

    /// Writes down recordings that have ended; `all`: those that are under way, too. Answers the
    /// profiles that changed, with the names of the images.
    pub(super) fn keep(&self, all: bool) -> Vec<(Profile, String)> {
        let recorders: Vec<_> = {
            let mut known = self.all.lock();
            let recorders = known
                .iter()
                .map(|(name, one)| (name.clone(), Arc::clone(one)));
            let recorders = recorders.collect();
            // Of an image that nobody has open nothing more comes.
            known.retain(|_, one| Arc::strong_count(one) > 2 || one.recording.lock().is_some());
            recorders
        };
        let ended = recorders
            .into_iter()
            .filter_map(|(name, recorder)| Some((name, recorder.ended(all)?, recorder)));
        let written = ended.filter_map(|(repository, opened, recorder)| {
            let written = self.merge(&repository, &opened);
            let written = written
                .inspect_err(|error| tracing::warn!(%error, repository, "a profile is not kept"));
            Some((written.ok()?, recorder.image.lock().clone()))
        });
        written.collect()
    }

    fn merge(&self, repository: &str, opened: &[(Digest, u64)]) -> Result<Profile> {
        let known = profile::read(&self.dir, repository)?;
        let mut profile = known.unwrap_or_else(|| Profile::new(repository));
        profile.add_run(opened);
        profile::write(&self.dir, &profile)?;
        tracing::debug!(repository, files = opened.len(), "a start was recorded");
        Ok(profile)
    }
}

impl Recorder {
    /// A container starts. One that starts while another one is recorded belongs to that recording.
    pub(super) fn begin(&self) {
        let mut recording = self.recording.lock();
        if recording.is_none() {
            *recording = Some(Recording {
                since: Instant::now(),
                opened: Vec::new(),
                seen: HashSet::new(),
                bytes: 0,
            });
            self.is_on.store(true, Ordering::Relaxed);
        }
    }

    /// A file is opened; `what` tells its digest and its length in bytes.
    fn opened(&self, what: impl FnOnce() -> Option<(Digest, u64)>) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut recording = self.recording.lock();
        let Some(recording) = &mut *recording else {
            return;
        };
        let is_full = recording.opened.len() >= FILES || recording.bytes >= BYTES;
        if is_full || recording.since.elapsed() > START {
            self.is_on.store(false, Ordering::Relaxed);
            return;
        }
        if let Some((digest, size)) = what()
            && recording.seen.insert(digest)
        {
            recording.opened.push((digest, size));
            recording.bytes += size;
        }
    }

    /// What was opened, if the recording has ended, or must end now.
    fn ended(&self, now: bool) -> Option<Vec<(Digest, u64)>> {
        let mut recording = self.recording.lock();
        let is_over = |one: &Recording| now || one.since.elapsed() > START;
        let ended = recording.take_if(|one| is_over(one))?;
        self.is_on.store(false, Ordering::Relaxed);
        Some(ended.opened).filter(|opened| !opened.is_empty())
    }
}

/// The files of a blob, as the containers of one repository's images open them.
pub(super) struct Watched {
    pub(super) files: Arc<Files>,
    pub(super) recorder: Arc<Recorder>,
}

impl LayerData for Watched {
    fn name(&self) -> &str {
        self.files.name()
    }

    fn device(&self, identity: u64) -> u64 {
        self.files.device(identity)
    }

    fn is_remote(&self) -> bool {
        self.files.is_remote()
    }

    fn is_here(&self, path: &Path, ino: Ino) -> Result<bool> {
        self.files.is_here(path, ino)
    }

    fn open(&self, path: &Path, ino: Ino) -> Result<File> {
        // Of a large file only some of the bytes may have been wanted.
        self.recorder.opened(|| self.files.whole(ino));
        self.files.open(path, ino)
    }

    fn arriving(&self, ino: Ino) -> Result<Option<Arc<dyn Arriving>>> {
        self.files.arriving(ino)
    }

    fn file_system(&self) -> Option<BorrowedFd<'_>> {
        self.files.file_system()
    }

    fn host_file(&self, path: &Path) -> Result<Option<OwnedFd>> {
        self.files.host_file(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    #[test]
    fn what_is_opened_while_a_container_starts_is_in_the_profile() {
        let dir = tempfile::tempdir().unwrap();
        let recorders = Recorders::new(dir.path().to_owned());
        let recorder = recorders.of("r/i", "r/i:t");
        let open = |name: &str| recorder.opened(|| Some((digest(name), 7)));
        open("before");
        recorder.begin();
        for name in ["b", "a", "b"] {
            open(name);
        }
        // Another container of the same.
        recorder.begin();
        open("c");
        assert!(recorders.keep(false).is_empty(), "it is under way");
        assert_eq!(recorders.keep(true).len(), 1);
        open("after");
        assert!(recorders.keep(true).is_empty());
        let wanted = recorders.wanted("r/i");
        assert_eq!(wanted, [digest("b"), digest("a"), digest("c")]);
        assert!(recorders.wanted("r/other").is_empty());
    }

    #[test]
    fn a_container_that_reads_everything_is_not_followed_for_ever() {
        let recorder = Recorder::default();
        recorder.begin();
        for number in 0..2 * FILES {
            recorder.opened(|| Some((digest(&number.to_string()), 1)));
        }
        assert_eq!(recorder.ended(true).expect("ended").len(), FILES);
        recorder.begin();
        for number in 0..10 {
            recorder.opened(|| Some((digest(&number.to_string()), BYTES / 4)));
        }
        assert_eq!(recorder.ended(true).expect("ended").len(), 4);
    }
}
