//! Writing blobs and manifests.
//!
//! All of it goes to one place: the first endpoint of the registry that may be pushed to, as for
//! containerd. What is named by its digest may be written twice, so it is tried again when a failure
//! may pass. A tag is written once: meanwhile it may mean something else to somebody.

use std::time::Duration;

use lamina_fusefs::blob::Digest;
use oci_spec::distribution::Reference;
use ureq::http::HeaderMap;

use super::hosts::Endpoint;
pub use super::http::Body;
use super::http::{self, Write};
use super::{Access, Registry, RegistryError, Scope};

/// A link that is slower than so many bytes a second is not waited for.
const SLOWEST: u64 = 256 << 10;

/// What came of writing a manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pushed {
    /// Its digest.
    pub digest: Digest,
    /// Whether the registry has noted what it refers to (the header `OCI-Subject`). If not, whoever
    /// looks for what refers to an image finds only what a tag leads to.
    pub notes_subject: bool,
}

impl Registry {
    /// Writes a blob of `size` bytes with this digest, if it is not there.
    pub fn push_blob(
        &self,
        reference: &Reference,
        digest: Digest,
        size: u64,
        body: Body<'_>,
    ) -> Result<(), RegistryError> {
        let endpoint = self.writable(reference)?;
        let url = |path: &str| endpoint.url(reference.registry(), reference.repository(), path);
        let patience = self.patience + Duration::from_secs(size / SLOWEST);
        Registry::patiently(patience, |deadline| {
            let write = |write: Write<'_>| self.write(&endpoint, reference, &write, deadline);
            let look = Write {
                method: "HEAD",
                url: url(&format!("blobs/{digest}")),
                content_type: None,
                body: Body::Bytes(b""),
                expected: 200,
            };
            match write(look) {
                Ok(_) => return Ok(()),
                Err(RegistryError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            let begin = Write {
                method: "POST",
                url: url("blobs/uploads/"),
                content_type: None,
                body: Body::Bytes(b""),
                expected: 202,
            };
            let begun = write(begin.clone())?;
            let location = text(&begun, "location").ok_or_else(|| RegistryError::Answer {
                url: begin.url.clone(),
                what: "it does not say where the blob is to go".to_owned(),
            })?;
            let mut location = http::resolve(&begin.url, location);
            location.push(if location.contains('?') { '&' } else { '?' });
            let put = Write {
                method: "PUT",
                url: format!("{location}digest={digest}"),
                content_type: Some("application/octet-stream"),
                body,
                expected: 201,
            };
            write(put).map(drop)
        })
    }

    /// Writes a manifest, of which all blobs are there, under a tag or its digest.
    pub fn push_manifest(
        &self,
        reference: &Reference,
        target: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Pushed, RegistryError> {
        let endpoint = self.writable(reference)?;
        let path = format!("manifests/{target}");
        let put = Write {
            method: "PUT",
            url: endpoint.url(reference.registry(), reference.repository(), &path),
            content_type: Some(media_type),
            body: Body::Bytes(bytes),
            expected: 201,
        };
        let by_digest = Digest::parse(target).is_some();
        let headers = Registry::patiently(self.patience, |deadline| {
            let written = self.write(&endpoint, reference, &put, deadline);
            written.map_err(|error| match error {
                // It may have been done.
                RegistryError::Unreachable { url, reason } if !by_digest => RegistryError::Answer {
                    url,
                    what: format!("the connection broke when a tag was written: {reason}"),
                },
                other => other,
            })
        })?;
        Ok(Pushed {
            digest: Digest::of(bytes),
            notes_subject: headers.contains_key("oci-subject"),
        })
    }

    /// Where the things of a repository are written to.
    fn writable(&self, reference: &Reference) -> Result<Endpoint, RegistryError> {
        let registry = reference.registry();
        let endpoints = self.hosts.endpoints(registry, Access::Push)?;
        let first = endpoints.into_iter().next();
        first.ok_or_else(|| RegistryError::NoEndpoint {
            registry: registry.to_owned(),
        })
    }

    fn write(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        write: &Write<'_>,
        deadline: std::time::Instant,
    ) -> Result<HeaderMap, RegistryError> {
        let scope = Scope {
            registry: reference.registry(),
            repository: reference.repository(),
            access: Access::Push,
        };
        self.logged_in(endpoint, scope, deadline, |agent, login| {
            http::write(agent, endpoint, write, login, deadline)
        })
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
