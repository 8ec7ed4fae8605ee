//! The signals that mean "stop".

use std::future::Future;
use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Ends at the first SIGTERM or SIGINT, with the signal's name. From this call on (not only from
/// the first poll) those signals no longer kill the process. Needs a runtime around it.
pub(super) fn stop() -> io::Result<impl Future<Output = &'static str> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
