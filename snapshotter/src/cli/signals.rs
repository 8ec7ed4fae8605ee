//! The signals that mean "stop".

use std::future::Future;
use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Ctrl-C.
pub(super) const INTERRUPT: &str = "SIGINT";

/// Ends at the first SIGTERM or SIGINT, with the signal's name. From this call on (not only from
/// the first poll) those signals no longer kill the process. Needs a runtime around it.
pub(super) fn stop() -> io::Result<impl Future<Output = &'static str> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => INTERRUPT,
        }
    })
}

/// The same for SIGUSR2, by which a daemon is told that another one comes.
pub(super) fn hand_over() -> io::Result<impl Future<Output = ()> + Send> {
    let mut hand_over = signal(SignalKind::user_defined2())?;
    Ok(async move {
        hand_over.recv().await;
    })
}
