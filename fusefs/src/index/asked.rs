//! Any bytes as an index, for `fuzz/` and the unit tests. In no other build.

use std::ffi::OsStr;

use super::tree::Index;
use super::{Kind, format};

/// Gives bytes the checksum that they should have, and asks everything of what is accepted.
/// Panics if an answer breaks a rule that the union rests on. Says whether anything was accepted.
pub(crate) fn seal_and_ask(bytes: &[u8]) -> bool {
    let mut bytes = bytes.to_vec();
    format::seal(&mut bytes);
    [Kind::Layer, Kind::Image].into_iter().any(|kind| {
        let index = Index::of_bytes(bytes.clone(), kind);
        index.is_ok_and(|index| {
            ask(&index);
            true
        })
    })
}

fn ask(index: &Index) {
    for record in 0..index.header().records {
        let name = index.name(record).to_owned();
        if record > 0 {
            assert_eq!(index.find(index.parent(record), &name), Some(record));
        }
        let mut children = index.children(record);
        assert!(children.all(|child| index.parent(child) == record));
        assert_eq!(index.find_path(&index.path(record)), Some(record));
        for xattr in index.xattr_names(record) {
            assert!(index.xattr(record, &xattr).is_some());
        }
        assert_eq!(index.find(record, OsStr::new("/")), None);
        let layers = index.header().layers as usize;
        assert!(index.layer(record) < layers);
        assert!(index.data(record).is_none_or(|(layer, _)| layer < layers));
        let _ = (index.attr(record), index.text(record));
        let _ = (index.below(record), index.source(record));
    }
}
