//! The names that everything happens at.

use std::sync::LazyLock;

/// A path from the root of a tree, like `a/b`; [`ROOT`] is the root itself.
pub(crate) type Path = &'static str;

/// The root of a tree.
pub(crate) const ROOT: Path = ".";

/// Few names, so that they meet.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// How many names a path has at most.
const DEPTH: usize = 3;

/// All paths but the root: the shorter ones first.
pub(crate) fn paths() -> &'static [Path] {
    static PATHS: LazyLock<Vec<Path>> = LazyLock::new(|| {
        let mut all: Vec<Path> = NAMES.to_vec();
        let mut longest = all.clone();
        for _ in 1..DEPTH {
            longest = longest.iter().flat_map(|path| below(path)).collect();
            all.extend(&longest);
        }
        all
    });
    &PATHS
}

/// The paths one step below a path. They live as long as the process: they are made once.
fn below(path: &str) -> impl Iterator<Item = Path> {
    NAMES
        .map(|name| &*format!("{path}/{name}").leak())
        .into_iter()
}

/// How many names a path has; none for the root.
pub(crate) fn depth(path: Path) -> usize {
    match path {
        ROOT => 0,
        path => path.split('/').count(),
    }
}

/// The directory that a path is in; the root is its own.
pub(crate) fn parent(path: Path) -> Path {
    path.rsplit_once('/').map_or(ROOT, |(parent, _)| parent)
}
