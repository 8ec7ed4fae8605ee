//! containerd APIs.
