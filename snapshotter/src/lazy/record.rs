//! What is remembered of a blob, as JSON in `blob.json`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use lamina_fusefs::{Error, Result};
use serde::{Deserialize, Serialize};

/// The version of the file.
const VERSION: u32 = 1;
/// How the name of one ends that is not in its place yet. As with an index, a crash may leave it.
const UNFINISHED: &str = "json.new-verdict";

/// What is remembered of a blob.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Record {
    version: u32,
    /// An image that it is a layer of.
    pub(crate) reference: String,
    /// Its digest.
    pub(crate) digest: String,
    /// Its bytes.
    pub(crate) size: u64,
    /// How it is read.
    pub(crate) format: Format,
    /// Bytes of its files.
    #[serde(default)]
    pub(crate) file_bytes: u64,
    /// The digest of the archive in it, by the image's configuration. Records of earlier versions have
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) diff_id: Option<String>,
    /// The digest of the directories that were told to have no entry
    /// ([`implied_digest`](lamina_fusefs::blob::implied_digest)). None where nobody told: the blob itself
    /// was read. Records of earlier versions have none either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) implied: Option<String>,
    /// What all of it turned out to be, once all of it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<Verdict>,
}

/// Whether a layer is what its image says.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// It is: the blob, the diff ID and the tree.
    Verified,
    /// It is not, and is not served; here stands why.
    Refused(String),
}

/// How a blob is read.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// eStargz.
    Estargz,
    /// zstd:chunked.
    ZstdChunked,
    /// Ordinary gzip, by checkpoints.
    Gzip,
    /// What can't be read from the middle: its files lie beside the layer, packed anew.
    Repacked,
}

impl Format {
    /// Its name, as in the file.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Format::Estargz => "estargz",
            Format::ZstdChunked => "zstd-chunked",
            Format::Gzip => "gzip",
            Format::Repacked => "repacked",
        }
    }
}

impl Record {
    pub(crate) fn new(reference: String, digest: String, size: u64, format: Format) -> Record {
        Record {
            version: VERSION,
            reference,
            digest,
            size,
            format,
            file_bytes: 0,
            diff_id: None,
            implied: None,
            verdict: None,
        }
    }

    /// Notes the diff ID, and whether all of the blob was read and held against it.
    pub(crate) fn of_archive(self, diff_id: String, is_verified: bool) -> Record {
        Record {
            diff_id: Some(diff_id),
            verdict: is_verified.then_some(Verdict::Verified),
            ..self
        }
    }

    /// Writes down what a layer turned out to be: all or nothing, and durably.
    pub(crate) fn judge(path: &Path, verdict: Verdict) -> Result<()> {
        let record = Record {
            verdict: Some(verdict),
            ..Record::read(path)?
        };
        let new = path.with_extension(UNFINISHED);
        let failed = |source| Error::Path {
            action: "cannot replace",
            path: path.to_owned(),
            source,
        };
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
        record.write(&new)?;
        let dir = path.parent().unwrap_or(path);
        fs::rename(&new, path)
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(failed)
    }

    pub(crate) fn read(path: &Path) -> Result<Record> {
        let failed = |source| Error::Path {
            action: "cannot read",
            path: path.to_owned(),
            source,
        };
        let text = fs::read(path).map_err(failed)?;
        let record: Record = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        if record.version != VERSION {
            return Err(failed(std::io::Error::other(format!(
                "its version is {}, and only {VERSION} is known",
                record.version
            ))));
        }
        Ok(record)
    }

    /// Writes the file, durably; the directory is the caller's to sync.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::Path {
            action: "cannot write",
            path: path.to_owned(),
            source,
        };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        let mut file = File::create_new(path).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.sync_all().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_one_of_a_later_version_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("blob.json");
        let record = Record::new(
            "r/i:t".to_owned(),
            "sha256:d".to_owned(),
            7,
            Format::Estargz,
        );
        record.write(&path).expect("write");
        assert_eq!(Record::read(&path).expect("read"), record);
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).expect("write");
        let error = Record::read(&path).expect_err("later").to_string();
        assert!(error.contains("version is 2"), "{error}");
    }

    #[test]
    fn a_verdict_is_written_down_and_a_record_without_one_is_read() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("blob.json");
        let old = r#"{"version": 1, "reference": "r/i:t", "digest": "sha256:d", "size": 7,
            "format": "estargz"}"#;
        fs::write(&path, old).expect("write");
        let record = Record::read(&path).expect("read");
        assert_eq!((&record.diff_id, &record.verdict), (&None, &None));
        // What a crash left is in nobody's way.
        let left = dir.path().join("blob.json.new-verdict");
        fs::write(&left, "half").expect("write");
        assert!(lamina_fusefs::index::is_leftover(
            left.file_name().expect("name")
        ));
        for verdict in [Verdict::Verified, Verdict::Refused("why".to_owned())] {
            Record::judge(&path, verdict.clone()).expect("judge");
            let judged = Record::read(&path).expect("read");
            assert_eq!(judged.verdict, Some(verdict));
            assert_eq!((judged.digest, judged.size), (record.digest.clone(), 7));
        }
        assert!(!left.exists());
    }
}
