//! Logins that Kubernetes sends along with a pull (image pull secrets).
//!
//! They are kept in memory alone: no file, no log and no `Debug` has them, and after a restart they
//! are gone until the next pull. Each is for one repository of one registry.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lru::LruCache;
use parking_lot::Mutex;

use super::credentials::{Login, host_of, keys};
use super::image;

/// Logins of so many repositories are kept; those that were used longest ago go first.
const REPOSITORIES: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");
/// So many logins of one repository are kept: tenants may have different ones.
const LOGINS: usize = 4;
/// How long a login is kept after the last pull with it.
const AGE: Duration = Duration::from_hours(24);
/// The longest text that is kept; a registry's token has some thousand bytes.
const LONGEST: usize = 64 << 10;

/// A registry, and a repository in it.
type Place = (String, String);

/// A login with the moment of its last pull.
struct Kept {
    login: Login,
    since: Instant,
}

/// The logins of the pulls of late.
pub struct PulledLogins(Mutex<LruCache<Place, VecDeque<Kept>>>);

/// What Kubernetes says with a pull. A field that is empty was not said.
#[derive(Clone, Copy, Default)]
pub struct PullAuth<'a> {
    /// The user, with a password.
    pub user: &'a str,
    /// The password.
    pub password: &'a str,
    /// User and password with a colon between, in base64.
    pub pair: &'a str,
    /// The registry that it is for: a host or a URL.
    pub server: &'a str,
    /// A refresh token.
    pub identity_token: &'a str,
}

/// A login whose pull is under way. Unless the pull succeeds, a login that was not known before is
/// forgotten: whoever sends a wrong one can't put it before a right one.
pub struct Trial {
    logins: Arc<PulledLogins>,
    place: Place,
    login: Option<Login>,
}

impl Default for PulledLogins {
    fn default() -> PulledLogins {
        PulledLogins(Mutex::new(LruCache::new(REPOSITORIES)))
    }
}

impl std::fmt::Debug for PulledLogins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PulledLogins")
    }
}

impl PulledLogins {
    /// Notes the login of a pull that begins. `None`: it has none, or none for this image.
    pub fn begin(self: &Arc<Self>, image: &str, auth: PullAuth<'_>) -> Option<Trial> {
        let reference = image::parse(image).ok()?;
        let (registry, repository) = (reference.registry(), reference.repository());
        if !auth.server.is_empty() && !keys(registry).contains(&host_of(auth.server)) {
            return None;
        }
        let login = auth.login()?;
        let place = (registry.to_owned(), repository.to_owned());
        let is_new = self.keep(&place, login.clone(), Instant::now());
        Some(Trial {
            logins: Arc::clone(self),
            place,
            login: is_new.then_some(login),
        })
    }

    /// Puts a login before all others of its repository. Whether it was not there.
    fn keep(&self, place: &Place, login: Login, now: Instant) -> bool {
        let mut all = self.0.lock();
        let kept = all.get_or_insert_mut(place.clone(), VecDeque::new);
        let before = kept.len();
        kept.retain(|known| known.login != login);
        let is_new = kept.len() == before;
        kept.push_front(Kept { login, since: now });
        kept.truncate(LOGINS);
        is_new
    }

    fn forget(&self, place: &Place, login: &Login) {
        let mut all = self.0.lock();
        if let Some(kept) = all.peek_mut(place) {
            kept.retain(|known| known.login != *login);
            if kept.is_empty() {
                all.pop(place);
            }
        }
    }

    /// The logins for a repository, that of the last pull first.
    pub(super) fn of(&self, registry: &str, repository: &str) -> Vec<Login> {
        self.at(
            &(registry.to_owned(), repository.to_owned()),
            Instant::now(),
        )
    }

    fn at(&self, place: &Place, now: Instant) -> Vec<Login> {
        let mut all = self.0.lock();
        let Some(kept) = all.get_mut(place) else {
            return Vec::new();
        };
        kept.retain(|known| now.saturating_duration_since(known.since) < AGE);
        let logins: Vec<_> = kept.iter().map(|known| known.login.clone()).collect();
        if logins.is_empty() {
            all.pop(place);
        }
        logins
    }
}

impl Trial {
    /// The pull has succeeded: the login stays.
    pub fn succeeded(mut self) {
        self.login = None;
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(login) = self.login.take() {
            self.logins.forget(&self.place, &login);
        }
    }
}

impl PullAuth<'_> {
    /// In the order in which containerd takes them.
    fn login(self) -> Option<Login> {
        let texts = [self.user, self.password, self.pair, self.identity_token];
        if texts.iter().any(|text| text.len() > LONGEST) {
            return None;
        }
        if !self.user.is_empty() {
            return Some(Login::Password {
                user: self.user.to_owned(),
                password: self.password.to_owned(),
            });
        }
        if !self.identity_token.is_empty() {
            return Some(Login::RefreshToken(self.identity_token.to_owned()));
        }
        let text = String::from_utf8(STANDARD.decode(self.pair.trim()).ok()?).ok()?;
        let (user, password) = text.split_once(':')?;
        (!user.is_empty()).then(|| Login::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str) -> Login {
        let (user, password) = (user.to_owned(), "p".to_owned());
        Login::Password { user, password }
    }

    fn named(user: &str) -> PullAuth<'_> {
        PullAuth {
            user,
            password: "p",
            ..PullAuth::default()
        }
    }

    #[test]
    fn a_login_is_for_its_repository_alone() {
        let logins = Arc::new(PulledLogins::default());
        let trial = logins.begin("r.example/team/app:1", named("me"));
        trial.expect("kept").succeeded();
        assert!(logins.of("r.example", "team/app") == [password("me")]);
        assert!(logins.of("r.example", "team/other").is_empty());
        assert!(logins.of("other.example", "team/app").is_empty());
        let trial = logins.begin("busybox", named("hub"));
        assert!(logins.of("docker.io", "library/busybox") == [password("hub")]);
        drop(trial);
        assert!(logins.begin("not a name", named("me")).is_none());
    }

    #[test]
    fn the_last_pull_comes_first_and_one_that_fails_leaves_nothing() {
        let logins = Arc::new(PulledLogins::default());
        let begin = |user| logins.begin("r.example/a", named(user)).expect("kept");
        let all = || logins.of("r.example", "a");
        begin("one").succeeded();
        let trial = begin("wrong");
        assert!(all() == [password("wrong"), password("one")]);
        drop(trial);
        assert!(all() == [password("one")]);
        // One that was good stays, though a later pull with it fails.
        drop(begin("one"));
        assert!(all() == [password("one")]);
        for user in ["two", "three", "four", "five", "two"] {
            begin(user).succeeded();
        }
        assert!(all() == ["two", "five", "four", "three"].map(password));
    }

    #[test]
    fn logins_are_bounded_in_number_and_age() {
        let logins = PulledLogins::default();
        let now = Instant::now();
        let place = |number: usize| ("r".to_owned(), number.to_string());
        for number in 0..=REPOSITORIES.get() {
            logins.keep(&place(number), password("me"), now);
        }
        assert_eq!(logins.0.lock().len(), REPOSITORIES.get());
        assert!(logins.at(&place(0), now).is_empty());
        assert_eq!(logins.at(&place(1), now).len(), 1);
        assert!(logins.at(&place(1), now + AGE).is_empty());
        assert_eq!(logins.0.lock().len(), REPOSITORIES.get() - 1);
        let long = "x".repeat(LONGEST + 1);
        assert!(named(&long).login().is_none());
    }

    #[test]
    fn each_way_to_say_a_login_is_read_as_containerd_does() {
        let pair = PullAuth {
            pair: "bWU6cA==",
            ..PullAuth::default()
        };
        assert!(pair.login() == Some(password("me")));
        let token = PullAuth {
            identity_token: "t",
            ..pair
        };
        assert!(token.login() == Some(Login::RefreshToken("t".to_owned())));
        assert!(
            PullAuth {
                user: "me",
                password: "p",
                ..token
            }
            .login()
                == Some(password("me"))
        );
        for bad in ["", "?", "bWU=", "OnA="] {
            assert!(
                PullAuth {
                    pair: bad,
                    ..PullAuth::default()
                }
                .login()
                .is_none(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_login_for_another_server_is_not_kept() {
        let logins = Arc::new(PulledLogins::default());
        let begin = |image, server| {
            logins.begin(
                image,
                PullAuth {
                    server,
                    ..named("me")
                },
            )
        };
        assert!(begin("r.example/a", "https://other.example").is_none());
        assert!(begin("r.example/a", "https://r.example/v2/").is_some());
        assert!(begin("r.example/a", "r.example").is_some());
        assert!(begin("busybox", "https://index.docker.io/v1/").is_some());
    }

    #[test]
    fn no_login_is_shown() {
        let logins = Arc::new(PulledLogins::default());
        let _trial = logins.begin("r.example/a", named("me"));
        assert_eq!(format!("{logins:?}"), "PulledLogins");
    }
}
