//! Registries (OCI distribution specification): reading images, and putting something beside them.
//!
//! - [`hosts`] says where the bytes of a registry are to be had: at its mirrors first, as
//!   containerd's `hosts.toml` tells, then at the registry itself.
//! - [`credentials`] finds a user's name and password where docker keeps them.
//! - [`pulled`] keeps the logins that Kubernetes sends along with a pull, in memory.
//! - `auth` answers a challenge of a registry with them.
//! - `http` makes one request, and says in one of a few words what came of it.
//! - [`Registry`] asks until somebody answers, or patience is at its end.
//! - [`image`] reads manifests and configurations, [`blob`] ranges of a blob.
//! - [`push`] writes blobs and manifests.
//! - [`artifact`] finds what refers to an image, and adds to it; [`layout`] carries that in files.
//!
//! Everything here waits, so whoever calls it does so on a thread that may.

pub mod artifact;
mod auth;
pub mod blob;
pub mod credentials;
mod error;
pub mod hosts;
mod http;
pub mod image;
pub mod layout;
pub mod pulled;
pub mod push;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ureq::Agent;

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
    /// The most bytes of a manifest, an index or a configuration.
    pub manifest_bytes: u64,
    /// Logins that came along with pulls; whoever notes them holds the same ones.
    pub pulled: Arc<PulledLogins>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            hosts: PathBuf::from("/etc/containerd/certs.d"),
            docker_config: None,
            patience: Duration::from_secs(30),
            // The specification asks registries for so much at least.
            manifest_bytes: 4 << 20,
            pulled: Arc::default(),
        }
    }
}

/// What somebody wants to do in a repository.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Access {
    /// Read.
    Pull,
    /// Write, and read what was written.
    Push,
}

impl Access {
    /// The actions that a token has to be good for.
    fn actions(self) -> &'static str {
        match self {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        }
    }
}

/// A repository, and what somebody wants to do in it.
#[derive(Clone, Copy, Debug)]
struct Scope<'a> {
    registry: &'a str,
    repository: &'a str,
    access: Access,
}

/// What is asked of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    /// The registry, as image references name it.
    pub(crate) registry: &'a str,
    /// The repository in it.
    pub(crate) repository: &'a str,
    /// What of that: `manifests/…`, `blobs/…` or `referrers/…`.
    pub(crate) path: String,
    /// Media types that are understood.
    pub(crate) accept: &'a str,
    /// These bytes of it alone.
    pub(crate) part: Option<Range<u64>>,
    /// The most bytes that are read of an answer.
    pub(crate) most: u64,
    /// Whether where it is read from has to be where it would be written to.
    pub(crate) access: Access,
    /// The one endpoint that is asked: what it has said leads there, and nowhere else.
    pub(crate) only: Option<&'a str>,
}

/// All registries.
#[derive(Debug)]
pub struct Registry {
    hosts: Hosts,
    credentials: Credentials,
    pulled: Arc<PulledLogins>,
    patience: Duration,
    manifest_bytes: u64,
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
            manifest_bytes: options.manifest_bytes,
            agents: Agents::default(),
            tokens: Tokens::default(),
            resting: Mutex::default(),
        }
    }

    /// The most bytes of a manifest, an index or a configuration.
    pub(crate) fn manifest_bytes(&self) -> u64 {
        self.manifest_bytes
    }

    /// Asks all endpoints of a registry in turn, and again while the failure may pass and there is
    /// time.
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        self.ask_by(http::get, ask)
    }

    /// The same, by another sort of request.
    fn ask_by<T>(&self, request: http::Get<T>, ask: &Ask<'_>) -> Result<T, RegistryError> {
        let mut endpoints = self.hosts.endpoints(ask.registry, ask.access)?;
        endpoints.retain(|endpoint| ask.only.is_none_or(|only| endpoint.base == only));
        Registry::patiently(self.patience, |deadline| {
            self.ask_each(request, &endpoints, ask, deadline)
        })
    }

    /// Tries something, and again while the failure may pass and there is time.
    fn patiently<T>(
        patience: Duration,
        mut attempt: impl FnMut(Instant) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let deadline = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match attempt(deadline) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // Many who wait for the same should not come back at the same moment.
            let wait = error.retry_after().unwrap_or_default();
            let wait = wait.max(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
            // It may ask for more than any clock can show.
            if !error.may_pass() || wait >= http::left(deadline) {
                return Err(error);
            }
            tracing::debug!(%error, ?wait, "a registry is asked again");
            thread::sleep(wait);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn ask_each<T>(
        &self,
        request: http::Get<T>,
        endpoints: &[Endpoint],
        ask: &Ask<'_>,
        deadline: Instant,
    ) -> Result<T, RegistryError> {
        let mut worst: Option<RegistryError> = None;
        let (rested, resting): (Vec<_>, Vec<_>) = endpoints
            .iter()
            .partition(|endpoint| !self.is_resting(endpoint));
        for endpoint in rested.into_iter().chain(resting) {
            match self.ask_one(request, endpoint, ask, deadline) {
                Ok(answer) => {
                    tracing::Span::current().record("host", endpoint.host());
                    return Ok(answer);
                }
                Err(error) => {
                    // That a mirror has no such manifest says nothing of the blobs that it has.
                    let is_absent = matches!(error, RegistryError::NotFound { .. })
                        && !ask.path.starts_with("blobs/");
                    if endpoints.len() > 1 && !is_absent {
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

    fn ask_one<T>(
        &self,
        request: http::Get<T>,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        deadline: Instant,
    ) -> Result<T, RegistryError> {
        let scope = Scope {
            registry: ask.registry,
            repository: ask.repository,
            access: ask.access,
        };
        self.logged_in(endpoint, scope, deadline, |agent, login| {
            request(agent, endpoint, ask, login, deadline)
        })
    }

    /// Makes a request to an endpoint, and answers its challenge: with the logins of late pulls of the
    /// repository, then with docker's, then with none, until one is good.
    fn logged_in<T>(
        &self,
        endpoint: &Endpoint,
        scope: Scope<'_>,
        deadline: Instant,
        mut request: impl FnMut(&Agent, Option<&str>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let agent = self.agents.of(endpoint)?;
        let key = auth::Key {
            base: endpoint.base.clone(),
            repository: scope.repository.to_owned(),
            access: scope.access,
        };
        let known = self.tokens.get(&key);
        let (url, challenges) = match request(&agent, known.as_deref()) {
            Err(RegistryError::Challenged { url, challenges }) => (url, challenges),
            other => return other,
        };
        let mut try_with = |login: Option<&Login>| {
            let denied = |url: &str| RegistryError::Denied {
                url: url.to_owned(),
                status: 401,
            };
            let answer = auth::answer(&agent, &challenges, login, scope, deadline)?;
            let header = answer.ok_or_else(|| denied(&url))?;
            match request(&agent, Some(&header)) {
                Ok(answer) => {
                    self.tokens.keep(key.clone(), header);
                    Ok(answer)
                }
                Err(RegistryError::Challenged { url, .. }) => Err(denied(&url)),
                Err(error) => Err(error),
            }
        };
        let host = endpoint.credentials_of(scope.registry);
        // Those of a pull are for the registry, and none of its mirrors' business.
        if host == scope.registry {
            for login in self.pulled.of(scope.registry, scope.repository) {
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
