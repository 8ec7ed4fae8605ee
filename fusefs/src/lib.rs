//! The union file system.
