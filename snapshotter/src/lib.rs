//! The snapshotter.
