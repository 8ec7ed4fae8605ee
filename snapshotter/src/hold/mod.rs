//! What has to outlive the daemon, kept by somebody who does.
//!
//! A container's root is a FUSE connection. When the last descriptor of it is closed, the root answers
//! ENOTCONN, and nothing brings it back. A daemon that may be killed at any moment must therefore not
//! be the only one who has it. The same goes for files that containers have open and that have no name
//! any more, and for the memory in which the daemon writes down what the next one has to know.
//!
//! - [`Holder`] is the daemon's side: [`Holder::keep`] gives away a duplicate, [`Holder::release`] lets
//!   go of it, and [`Holder::open`] brings back what an earlier daemon gave away (`client`).
//! - `holder` is the process that keeps them, `lamina hold`: a table of names and descriptors, and
//!   nothing else. `listen` is its socket, `privileges` is what it gives up first.
//! - `protocol` is what the two say to each other, in datagrams of a socket between them; `socket`
//!   moves those and the descriptors along with them. `process` starts a holder and speaks with it.
//! - `systemd` is the other one who can keep them: the service manager, in its file descriptor store.
//!
//! The rule on which all rests: **when `keep` returns, the descriptor is in the holder's socket.** It is
//! then referred to from there, whatever becomes of the daemon; and the holder reads everything that an
//! earlier daemon sent before it answers the next one.

mod client;
mod holder;
mod listen;
mod privileges;
mod process;
mod protocol;
mod socket;
mod systemd;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use client::Holder;
pub use holder::run;
pub use protocol::{MAX_NAME, is_name};

/// How long a holder waits for the next daemon, unless it is told otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_mins(5);

/// Who keeps the descriptors.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// systemd where it says that it does, else a process of our own.
    #[default]
    Auto,
    /// systemd's file descriptor store.
    Systemd,
    /// A process of our own.
    Process,
    /// Nobody: the mounts end with the daemon.
    None,
}

/// How descriptors are kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Who keeps them.
    pub keeper: Keeper,
    /// How long a process that keeps them waits for the next daemon.
    pub patience: Duration,
    /// The `lamina` program, which becomes that process.
    pub program: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keeper: Keeper::default(),
            patience: DEFAULT_PATIENCE,
            program: PathBuf::from("/proc/self/exe"),
        }
    }
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Keeper::Auto => "auto",
            Keeper::Systemd => "systemd",
            Keeper::Process => "process",
            Keeper::None => "none",
        })
    }
}

impl FromStr for Keeper {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Keeper::Auto),
            "systemd" => Ok(Keeper::Systemd),
            "process" => Ok(Keeper::Process),
            "none" => Ok(Keeper::None),
            _ => Err("must be auto, systemd, process or none".to_owned()),
        }
    }
}
