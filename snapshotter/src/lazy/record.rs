//! What is remembered of a blob, as JSON in `blob.json`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use lamina_fusefs::{Error, Result};
use serde::{Deserialize, Serialize};

/// The version of the file.
const VERSION: u32 = 1;

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
        }
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
}
