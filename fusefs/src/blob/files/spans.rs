//! What an operator sees of fetching: a span for each file, or part of one, that somebody waits for.
//!
//! The requests that it takes have spans of their own, which whoever makes them opens.

use std::ops::Range;
use std::path::Path;

use tracing::Span;
use tracing::field::{Empty, display};

use super::{Files, Found};
use crate::error::Result;

/// The span of a file that somebody waits for; `part`: of these bytes of it. `path`: its path in the layer,
/// where that is known.
pub(super) fn fetch(
    files: &Files,
    found: &Found,
    path: Option<&Path>,
    part: Option<&Range<u64>>,
) -> Span {
    let span = tracing::debug_span!(
        "fetch",
        layer = files.source.name(),
        path = Empty,
        file = %found.digest,
        bytes = part.map_or(found.size, |part| part.end.min(found.size).saturating_sub(part.start)),
        from = part.map_or(0, |part| part.start),
        joined = Empty,
        outcome = Empty,
    );
    if let Some(path) = path {
        span.record("path", display(path.display()));
    }
    span
}

/// Notes in the span of this thread that somebody else fetches what is wanted.
pub(super) fn joined() {
    Span::current().record("joined", true);
}

/// Notes how it ended.
pub(super) fn ended<T>(span: &Span, result: &Result<T>) {
    match result {
        Ok(_) => span.record("outcome", "fetched"),
        Err(error) => span.record("outcome", display(error)),
    };
}
