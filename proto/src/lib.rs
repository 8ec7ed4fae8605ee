//! The gRPC APIs that Lamina serves, and those of containerd that it calls, as Rust types, servers and
//! clients.
//!
//! The modules are generated at build time from the files in `protos/` and follow the names of
//! the protobuf packages, so that [`containerd::services::snapshots::v1`] is the package
//! `containerd.services.snapshots.v1`. Beside them stand the few conversions from plain types,
//! and nothing else: no rule of containerd's is decided here.

pub mod raw;

use std::fmt;

pub use prost::bytes::Bytes;
pub use prost_types::{FieldMask, Timestamp};
pub use tonic;

/// containerd's packages.
pub mod containerd {
    /// Its services. That of snapshots is called by containerd, the others by us.
    pub mod services {
        /// The content store: blobs by digest.
        pub mod content {
            /// Version 1, spoken by containerd 1.x and 2.x.
            #[allow(missing_docs, clippy::pedantic)]
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
        /// Unpacking layers.
        pub mod diff {
            /// Version 1, spoken by containerd 1.x and 2.x.
            #[allow(missing_docs, clippy::pedantic)]
            pub mod v1 {
                tonic::include_proto!("containerd.services.diff.v1");
            }
        }
        /// Names of images.
        pub mod images {
            /// Version 1, spoken by containerd 1.x and 2.x.
            #[allow(missing_docs, clippy::pedantic)]
            pub mod v1 {
                tonic::include_proto!("containerd.services.images.v1");
            }
        }
        /// What keeps things from being collected.
        pub mod leases {
            /// Version 1, spoken by containerd 1.x and 2.x.
            #[allow(missing_docs, clippy::pedantic)]
            pub mod v1 {
                tonic::include_proto!("containerd.services.leases.v1");
            }
        }
        /// The snapshots service.
        pub mod snapshots {
            /// Version 1, spoken by containerd 1.x and 2.x.
            #[allow(missing_docs, clippy::pedantic)]
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }

    /// The types that several services share.
    #[allow(missing_docs, clippy::pedantic)]
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
}

/// Kubernetes' CRI, as far as Lamina looks into it.
pub mod runtime {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

/// What is in it is never shown.
impl fmt::Debug for runtime::v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthConfig")
    }
}

/// Reads a `PullImage` request; `None` if it is not one.
pub fn pull_image_request(bytes: &[u8]) -> Option<runtime::v1::PullImageRequest> {
    prost::Message::decode(bytes).ok()
}

/// Lamina's own package.
pub mod lamina {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("lamina.v1");
    }
}

/// Seconds and nanoseconds since the epoch as protobuf's timestamp. Nanoseconds that no clock can
/// show (a second or more) become the last one of that second.
pub fn timestamp(secs: i64, nanos: u32) -> Timestamp {
    let nanos = i32::try_from(nanos.min(999_999_999)).unwrap_or(999_999_999);
    Timestamp {
        seconds: secs,
        nanos,
    }
}

/// A mount of the container runtime: what `mount(8)` would be told.
pub fn mount(kind: &str, source: String, options: Vec<String>) -> containerd::types::Mount {
    containerd::types::Mount {
        r#type: kind.to_owned(),
        source,
        target: String::new(),
        options,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_keeps_its_nanoseconds() {
        let sent = timestamp(-2, 123_456_789);
        assert_eq!((sent.seconds, sent.nanos), (-2, 123_456_789));
    }

    #[test]
    fn nanoseconds_never_reach_the_next_second() {
        assert_eq!(timestamp(0, u32::MAX).nanos, 999_999_999);
    }

    #[test]
    fn a_pull_is_read_by_the_field_numbers_of_kubernetes_and_shows_no_secret() {
        // ImageSpec with an annotation that is unknown here, and an AuthConfig.
        let bytes =
            b"\x0a\x08\x0a\x03a:1\x1a\x01x\x12\x11\x0a\x01u\x12\x01p\x1a\x01a\x22\x01s\x2a\x03tok";
        let pull = pull_image_request(bytes).expect("a pull");
        assert_eq!(pull.image.as_ref().expect("image").image, "a:1");
        assert!(!format!("{pull:?}").contains("tok"), "{pull:?}");
        let auth = pull.auth.expect("auth");
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("u", "p"));
        assert_eq!(
            (auth.auth.as_str(), auth.server_address.as_str()),
            ("a", "s")
        );
        assert_eq!(auth.identity_token, "tok");
        assert!(pull_image_request(b"\x0a\xff").is_none());
    }

    #[test]
    fn a_mount_keeps_containerds_field_numbers() {
        use prost::Message as _;
        let bytes = mount("bind", "/a".to_owned(), vec!["ro".to_owned()]).encode_to_vec();
        assert_eq!(bytes, b"\x0a\x04bind\x12\x02/a\x22\x02ro");
    }
}
