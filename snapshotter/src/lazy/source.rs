//! Where the bytes of a blob come from: the copy beside its layer, or the registry.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use lamina_fusefs::blob::{Digest, Source};
use lamina_fusefs::{Error, Result};

use super::record::{Format, Record};
use crate::registry::blob::RemoteBlob;
use crate::registry::{Registry, image};

/// One blob.
pub(crate) struct BlobSource {
    local: Option<File>,
    remote: RemoteBlob,
    /// The copy is not the blob as it is in the registry.
    is_repacked: bool,
}

impl BlobSource {
    /// The blob that a record tells of. `local`: where its copy is, if it has one.
    pub(crate) fn open(
        registry: &Arc<Registry>,
        record: &Record,
        local: &Path,
    ) -> Result<BlobSource> {
        let failed = |action, source| Error::Path {
            action,
            path: local.to_owned(),
            source,
        };
        let local_file = match File::open(local) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("cannot open the blob", error)),
        };
        let broken = || failed("no record of the blob", io::ErrorKind::InvalidData.into());
        let reference = image::parse(&record.reference).map_err(|_| broken())?;
        let digest = Digest::parse(&record.digest).ok_or_else(broken)?;
        Ok(BlobSource {
            local: local_file,
            is_repacked: record.format == Format::Repacked,
            remote: RemoteBlob::new(Arc::clone(registry), reference, digest, record.size),
        })
    }

    /// The blob as it is in the registry.
    pub(crate) fn remote(&self) -> &RemoteBlob {
        &self.remote
    }
}

impl Source for BlobSource {
    fn name(&self) -> &str {
        self.remote.name()
    }

    fn is_far(&self) -> bool {
        self.local.is_none()
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let Some(local) = &self.local else {
            if self.is_repacked {
                return Err(io::Error::other(
                    "the layer's own copy of its files is gone: remove the image and pull it again",
                ));
            }
            return self.remote.read(range);
        };
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        local.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }
}
