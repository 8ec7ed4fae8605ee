//! A blob of a registry, read in parts or whole.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use lamina_fusefs::blob::{Digest, Source};
use oci_spec::distribution::Reference;
use tracing::field::{Empty, display};

use super::{Access, Ask, Registry, RegistryError, http};

/// One blob.
#[derive(Clone, Debug)]
pub struct RemoteBlob {
    registry: Arc<Registry>,
    reference: Reference,
    digest: Digest,
    size: u64,
    name: String,
}

impl RemoteBlob {
    /// The blob with this digest, of which the manifest says the size in bytes.
    pub fn new(
        registry: Arc<Registry>,
        reference: Reference,
        digest: Digest,
        size: u64,
    ) -> RemoteBlob {
        let name = format!("{} of {}", digest, reference.whole());
        RemoteBlob {
            registry,
            reference,
            digest,
            size,
            name,
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads a part, all of it.
    pub fn part(&self, range: Range<u64>) -> Result<Vec<u8>, RegistryError> {
        self.registry
            .part(&self.reference, self.digest, self.size, range)
    }

    /// All of it in one answer, read as it comes: for registries that hand out no parts. Nothing is held
    /// against the digest, and what breaks off is not asked for again.
    pub fn whole(&self) -> Result<impl Read + Send + use<>, RegistryError> {
        let most = self.size.saturating_add(1);
        let ask = ask_for(&self.reference, self.digest, None, most);
        self.registry.ask_by(http::open, &ask)
    }
}

/// What to ask for a blob, or for a part of it. An answer of more than `most` bytes is none.
fn ask_for(reference: &Reference, digest: Digest, part: Option<Range<u64>>, most: u64) -> Ask<'_> {
    Ask {
        registry: reference.registry(),
        repository: reference.repository(),
        path: format!("blobs/{digest}"),
        accept: "*/*",
        part,
        most,
        access: Access::Pull,
        only: None,
    }
}

impl Registry {
    /// Reads a part of a blob of `size` bytes, all of the part, in a span of its own.
    pub(super) fn part(
        &self,
        reference: &Reference,
        digest: Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<Vec<u8>, RegistryError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let span = tracing::debug_span!(
            "request",
            repository = reference.repository(),
            blob = %digest,
            from = range.start,
            bytes = range.end - range.start,
            // The one that has answered.
            host = Empty,
            outcome = Empty,
        );
        let part = span.in_scope(|| self.ask_part(reference, digest, size, range));
        match &part {
            Ok(_) => span.record("outcome", "fetched"),
            Err(error) => span.record("outcome", display(error)),
        };
        part
    }

    fn ask_part(
        &self,
        reference: &Reference,
        digest: Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<Vec<u8>, RegistryError> {
        let length = range.end - range.start;
        let most = length.saturating_add(1);
        let answer = self.ask(&ask_for(reference, digest, Some(range.clone()), most))?;
        let wrong = |what: String| RegistryError::Answer {
            url: answer.url.clone(),
            what,
        };
        match answer.range {
            Some((found, whole)) if found == range && whole == size => {}
            found => {
                return Err(wrong(format!(
                    "bytes {range:?} of {size} were asked for, and it answers with {found:?}"
                )));
            }
        }
        if answer.bytes.len() as u64 != length {
            return Err(wrong(format!(
                "{length} bytes were asked for, and {} came",
                answer.bytes.len()
            )));
        }
        Ok(answer.bytes)
    }
}

impl Source for RemoteBlob {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.part(range).map_err(io::Error::other)
    }
}
