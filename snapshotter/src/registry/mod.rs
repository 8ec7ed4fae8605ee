//! Registries (OCI distribution specification), as far as bytes are read from them.
//!
//! - [`hosts`] says where the bytes of a registry are to be had: at its mirrors first, as
//!   containerd's `hosts.toml` tells, then at the registry itself.
//! - [`credentials`] finds a user's name and password where docker keeps them.
//! - [`pulled`] keeps the logins that Kubernetes sends along with a pull, in memory.
//! - `auth` answers a challenge of a registry with them.
//! - `http` makes one request, and says in one of a few words what came of it.
//! - [`Registry`] asks until somebody answers, or patience is at its end.
//! - [`image`] reads manifests and configurations, [`blob`] ranges of a blob.
//!
//! Everything here waits, so whoever calls it does so on a thread that may.

mod auth;
pub mod blob;
pub mod credentials;
mod error;
pub mod hosts;
mod http;
pub mod image;
pub mod pulled;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use error::RegistryError;

use self::auth::Tokens;
use self::credentials::{Credentials, Login};
use self::hosts::{Endpoint, Hosts};
use self::http::{Agents, Answer};
use self::pulled::PulledLogins;

/// The first pause before a request is made again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause, unless a registry asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a mirror that failed is left alone while others answer.
const REST: Duration = Duration::from_secs(30);

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of `<registry>/hosts.toml` files.
    pub hosts: PathBuf,
    /// docker's `config.json`; `None`: where docker looks for it.
    pub docker_config: Option<PathBuf>,
    /// How long a request may take, with all that it is made again for.
    pub patience: Duration,
    /// Logins that came along with pulls; whoever notes them holds the same ones.
    pub pulled: Arc<PulledLogins>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            hosts: PathBuf::from("/etc/containerd/certs.d"),
            docker_config: None,
            patience: Duration::from_secs(30),
            pulled: Arc::default(),
        }
    }
}

/// What is asked of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    /// The registry, as image references name it.
    pub(crate) registry: &'a str,
    /// The repository in it.
    pub(crate) repository: &'a str,
    /// What of that: `manifests/…` or `blobs/…`.
    pub(crate) path: String,
    /// Media types that are understood.
    pub(crate) accept: &'a str,
    /// These bytes of it alone.
    pub(crate) part: Option<Range<u64>>,
    /// The most bytes that are read of an answer.
    pub(crate) most: u64,
}

/// All registries.
#[derive(Debug)]
pub struct Registry {
    hosts: Hosts,
    credentials: Credentials,
    pulled: Arc<PulledLogins>,
    patience: Duration,
    agents: Agents,
    tokens: Tokens,
    /// Until when which endpoints are left alone.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Registry {
    /// Nothing is read or asked until it is needed.
    pub fn new(options: &Options) -> Registry {
        Registry {
            hosts: Hosts::new(options.hosts.clone()),
            credentials: Credentials::new(options.docker_config.clone()),
            pulled: Arc::clone(&options.pulled),
            patience: options.patience,
            agents: Agents::default(),
            tokens: Tokens::default(),
            resting: Mutex::default(),
        }
    }

    /// Asks all endpoints of a registry in turn, and again while the failure may pass and there is
    /// time.
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let deadline = Instant::now() + self.patience;
        let endpoints = self.hosts.endpoints(ask.registry)?;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.ask_each(&endpoints, ask, deadline) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // Many who wait for the same should not come back at the same moment.
            let wait = error.retry_after().unwrap_or_default();
            let wait = wait.max(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
            if !error.may_pass() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, ?wait, "a registry is asked again");
            thread::sleep(wait);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn ask_each(
        &self,
        endpoints: &[Endpoint],
        ask: &Ask<'_>,
        deadline: Instant,
    ) -> Result<Answer, RegistryError> {
        let mut worst: Option<RegistryError> = None;
        let (rested, resting): (Vec<_>, Vec<_>) = endpoints
            .iter()
            .partition(|endpoint| !self.is_resting(endpoint));
        for endpoint in rested.into_iter().chain(resting) {
            match self.ask_one(endpoint, ask, deadline) {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    if endpoints.len() > 1 {
                        tracing::debug!(%error, "a mirror has not answered");
                        let until = Instant::now() + REST;
                        self.resting.lock().insert(endpoint.base.clone(), until);
                    }
                    // The one that may pass decides whether it is tried again; else the last, which
                    // is the registry's own.
                    worst = match worst {
                        Some(before) if before.may_pass() && !error.may_pass() => Some(before),
                        _ => Some(error),
                    };
                }
            }
        }
        Err(worst.unwrap_or(RegistryError::NoEndpoint {
            registry: ask.registry.to_owned(),
        }))
    }

    fn is_resting(&self, endpoint: &Endpoint) -> bool {
        let resting = self.resting.lock();
        resting
            .get(&endpoint.base)
            .is_some_and(|until| *until > Instant::now())
    }

    /// Asks one endpoint, and answers its challenge: with the logins of late pulls of the
    /// repository, then with docker's, then with none, until one is good.
    fn ask_one(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        deadline: Instant,
    ) -> Result<Answer, RegistryError> {
        let agent = self.agents.of(endpoint)?;
        let key = (endpoint.base.clone(), ask.repository.to_owned());
        let known = self.tokens.get(&key);
        let (url, challenges) = match http::get(&agent, endpoint, ask, known.as_deref(), deadline) {
            Err(RegistryError::Challenged { url, challenges }) => (url, challenges),
            other => return other,
        };
        let try_with = |login: Option<&Login>| {
            let denied = |url: &str| RegistryError::Denied {
                url: url.to_owned(),
                status: 401,
            };
            let answer = auth::answer(&agent, &challenges, login, ask, deadline)?;
            let header = answer.ok_or_else(|| denied(&url))?;
            match http::get(&agent, endpoint, ask, Some(&header), deadline) {
                Ok(answer) => {
                    self.tokens.keep(key.clone(), header);
                    Ok(answer)
                }
                Err(RegistryError::Challenged { url, .. }) => Err(denied(&url)),
                Err(error) => Err(error),
            }
        };
        let host = endpoint.credentials_of(ask.registry);
        // Those of a pull are for the registry, and none of its mirrors' business.
        if host == ask.registry {
            for login in self.pulled.of(ask.registry, ask.repository) {
                match try_with(Some(&login)) {
                    Err(RegistryError::Denied { .. }) => {}
                    other => return other,
                }
            }
        }
        if let Some(login) = self.credentials.of(host)? {
            match try_with(Some(&login)) {
                Err(RegistryError::Denied { .. }) => {}
                other => return other,
            }
        }
        try_with(None)
    }
}

#[cfg(test)]
mod tests;
