//! Where log lines go: to standard error, as text or as JSON. A span is a line when it ends.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result, anyhow};
use lamina_snapshotter::config::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Starts logging at `level` (a level, or directives for single modules).
pub(super) fn init(level: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("log level `{level}`"))?;
    let filter = filter.add_directive(lamina_fusefs::session::NO_UNWANTED_ANSWERS.parse()?);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| anyhow!("cannot start logging: {error}"))
}
