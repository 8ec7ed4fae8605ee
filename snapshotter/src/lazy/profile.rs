//! What the containers of an image open first, merged over their runs.
//!
//! A profile belongs to a repository, not to one image in it: files are known by their digests, and
//! the next version of an image has most of them again. It lies in `<root>/profiles`, outlasts the
//! image, and says which files to fetch before anybody asks when an image of that repository is
//! next pulled. It holds no more than that, so that a wrong one costs time and never gives wrong
//! bytes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use lamina_fusefs::blob::Digest;
use lamina_fusefs::{Error, Result};
use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};

/// The version of the file.
const VERSION: u32 = 1;
/// The most bytes of a profile that is read.
pub(super) const MOST: u64 = 4 << 20;
/// The most files of a profile.
pub(super) const FILES: usize = 4096;
/// So many runs are remembered; then each counts half.
const RUNS: u32 = 16;

/// What is done about profiles.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profiles {
    /// Nothing.
    Off,
    /// They are recorded, and used on this host.
    #[default]
    Local,
    /// They come from the registry too, and go there.
    Shared,
}

/// What is opened first.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    version: u32,
    /// The repository, with its registry.
    pub repository: String,
    /// How many runs it tells of.
    pub runs: u32,
    /// Files, the one that is opened first at the front.
    pub files: Vec<ProfileFile>,
}

/// One file of a profile.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileFile {
    /// Its digest.
    #[serde(with = "text")]
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// In how many of the runs it was opened.
    pub runs: u32,
}

impl Profile {
    /// The profile of a repository of which nobody has run anything.
    pub fn new(repository: &str) -> Profile {
        Profile {
            version: VERSION,
            repository: repository.to_owned(),
            runs: 0,
            files: Vec::new(),
        }
    }

    /// Reads one of anybody's making.
    pub fn parse(bytes: &[u8]) -> io::Result<Profile> {
        let profile: Profile = serde_json::from_slice(bytes)?;
        let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if profile.version != VERSION {
            return wrong("it is of a version that is not known");
        }
        if profile.files.len() > FILES || profile.runs > RUNS {
            return wrong("it tells of more files or runs than are ever written down");
        }
        Ok(profile)
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Numbers and strings: nothing that JSON could not hold.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// The files that are worth fetching before they are asked for: what at least one run in four
    /// has opened.
    pub fn wanted(&self) -> Vec<Digest> {
        let files = self.files.iter();
        let wanted = files.filter(|file| file.runs.saturating_mul(4) >= self.runs);
        wanted.map(|file| file.digest).collect()
    }

    /// Adds what a run has opened, in that order, with the lengths in bytes.
    pub fn add_run(&mut self, opened: &[(Digest, u64)]) {
        let run = Profile {
            runs: 1,
            files: opened
                .iter()
                .map(|&(digest, size)| ProfileFile {
                    digest,
                    size,
                    runs: 1,
                })
                .collect(),
            ..Profile::new(&self.repository)
        };
        self.merge(&run);
    }

    /// Adds what another one tells. A file's place is the first that either gives it.
    pub fn merge(&mut self, other: &Profile) {
        let mut places: HashMap<Digest, (usize, ProfileFile)> = HashMap::new();
        for files in [&self.files, &other.files] {
            for (place, file) in files.iter().enumerate() {
                let known = places.entry(file.digest).or_insert_with(|| {
                    let runs = 0;
                    (place, ProfileFile { runs, ..*file })
                });
                known.0 = known.0.min(place);
                known.1.runs = known.1.runs.saturating_add(file.runs);
            }
        }
        self.runs = self.runs.saturating_add(other.runs);
        let mut files: Vec<_> = places.into_values().collect();
        while self.runs > RUNS {
            self.runs /= 2;
            for (_, file) in &mut files {
                file.runs /= 2;
            }
        }
        files.retain(|(_, file)| file.runs > 0);
        files.sort_by_key(|(place, file)| (*place, file.digest.to_hex()));
        files.truncate(FILES);
        self.files = files.into_iter().map(|(_, file)| file).collect();
    }
}

/// The repository that a profile of an image belongs to.
pub fn repository_of(image: &Reference) -> String {
    format!("{}/{}", image.registry(), image.repository())
}

/// Where the profile of a repository lies in a directory of profiles.
fn path(dir: &Path, repository: &str) -> PathBuf {
    let name = Digest::of(repository.as_bytes()).to_hex();
    dir.join(format!("{name}.json"))
}

/// Reads the profile of a repository; `None`: nobody has run it. One that is damaged is none.
pub fn read(dir: &Path, repository: &str) -> Result<Option<Profile>> {
    let path = path(dir, repository);
    let bytes = match fs::metadata(&path).map(|metadata| metadata.len()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(length) if length > MOST => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
        Ok(_) => fs::read(&path),
        Err(error) => Err(error),
    };
    let bytes = bytes.map_err(|source| Error::Path {
        action: "cannot read",
        path: path.clone(),
        source,
    })?;
    match Profile::parse(&bytes) {
        Ok(profile) if profile.repository == repository => Ok(Some(profile)),
        other => {
            let error = other.err().map(|error| error.to_string());
            tracing::warn!(path = %path.display(), ?error, "a damaged profile is not used");
            Ok(None)
        }
    }
}

/// Writes the profile of its repository, all or nothing.
pub fn write(dir: &Path, profile: &Profile) -> Result<()> {
    let path = path(dir, &profile.repository);
    let new = path.with_extension("new");
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&profile.to_bytes())?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&new, &path));
    let synced = renamed.and_then(|()| File::open(dir)?.sync_all());
    synced.map_err(|source| Error::Path {
        action: "cannot write",
        path,
        source,
    })
}

/// Digests as text.
mod text {
    use lamina_fusefs::blob::Digest;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(from)?;
        Digest::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no digest")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn profile(runs: &[&[&str]]) -> Profile {
        let mut profile = Profile::new("r/i");
        for run in runs {
            let opened: Vec<_> = run.iter().map(|name| (digest(name), 1)).collect();
            profile.add_run(&opened);
        }
        profile
    }

    fn digests(names: &[&str]) -> Vec<Digest> {
        names.iter().map(|name| digest(name)).collect()
    }

    #[test]
    fn runs_are_merged_by_what_came_first() {
        let merged = profile(&[&["sh", "libc", "python"], &["sh", "numpy", "python"]]);
        let wanted = merged.wanted();
        assert_eq!(wanted[0], digest("sh"));
        assert_eq!(wanted[3], digest("python"));
        assert_eq!((merged.runs, wanted.len()), (2, 4));
    }

    #[test]
    fn what_runs_open_no_more_is_forgotten() {
        let mut merged = profile(&[&["old"]]);
        for _ in 0..3 {
            merged.add_run(&[(digest("new"), 1)]);
        }
        assert_eq!(merged.wanted(), digests(&["new", "old"]));
        merged.add_run(&[(digest("new"), 1)]);
        assert_eq!(merged.wanted(), digests(&["new"]));
        for _ in 0..100 {
            merged.add_run(&[(digest("new"), 1)]);
        }
        assert!(merged.runs <= RUNS);
        assert_eq!(merged.files.len(), 1);
    }

    #[test]
    fn a_profile_never_grows_beyond_its_limit() {
        let opened: Vec<_> = (0..3 * FILES)
            .map(|n| (digest(&n.to_string()), 1))
            .collect();
        let mut merged = profile(&[]);
        merged.add_run(&opened);
        merged.add_run(&opened[FILES..]);
        assert_eq!(merged.files.len(), FILES);
        assert!((merged.to_bytes().len() as u64) < MOST);
        assert_eq!(Profile::parse(&merged.to_bytes()).unwrap(), merged);
    }

    #[test]
    fn a_profile_comes_back_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), "r/i").unwrap(), None);
        let written = profile(&[&["a", "b"]]);
        write(dir.path(), &written).unwrap();
        assert_eq!(read(dir.path(), "r/i").unwrap(), Some(written.clone()));
        assert_eq!(read(dir.path(), "r/other").unwrap(), None);
        let at = path(dir.path(), "r/i");
        let text = fs::read_to_string(&at).unwrap();
        for bad in [
            text.replace("\"version\": 1", "\"version\": 2"),
            text.replace("sha256:", "md5:"),
            text.replace("r/i", "r/x"),
            text.replace("\"runs\"", "\"more\""),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ] {
            fs::write(&at, bad).unwrap();
            assert_eq!(read(dir.path(), "r/i").unwrap(), None);
        }
        fs::write(&at, " ".repeat(5 << 20)).unwrap();
        read(dir.path(), "r/i").expect_err("too large");
    }
}
