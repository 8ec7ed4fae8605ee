//! SHA-256 digests, as OCI writes them.

use std::ffi::OsStr;
use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::upper::{from_hex, to_hex};

/// What a digest of this sort begins with.
const ALGORITHM: &str = "sha256:";

/// A SHA-256 digest, `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec,
/// descriptor.md, "Digests").
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Reads one. `None`: it is no digest, or one of another algorithm.
    pub fn parse(text: &str) -> Option<Digest> {
        let hex = text.strip_prefix(ALGORITHM)?;
        if hex.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return None;
        }
        let bytes = from_hex(OsStr::new(hex))?;
        bytes.try_into().ok().map(Digest)
    }

    /// Its 32 bytes.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its 64 hexadecimal digits: a name for a file.
    pub fn to_hex(self) -> String {
        to_hex(&self.0).to_string_lossy().into_owned()
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }
}

impl From<Sha256> for Digest {
    /// The digest of all that was hashed.
    fn from(hash: Sha256) -> Digest {
        Digest(hash.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What sha256sum(1) says of nothing.
    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY), Some(Digest::of(b"")));
        assert_ne!(Digest::parse(EMPTY), Some(Digest::of(b"x")));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in [
            "",
            "sha256:",
            "sha256:00",
            &EMPTY[..70],
            &EMPTY.replace("sha256", "sha512"),
            &EMPTY.replace('e', "E"),
            &EMPTY.replace('e', "g"),
            &format!("{EMPTY}00"),
        ] {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
    }
}
