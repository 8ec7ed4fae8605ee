//! Logins, from where docker keeps them: `config.json`, and the helpers that it names.
//!
//! Read anew whenever a registry asks for a login, so that `docker login` needs no restart.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::RegistryError;

/// The name under which docker keeps the login for its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What a helper says as its user, if what it has is a refresh token.
const TOKEN_USER: &str = "<token>";

/// Where logins are looked for.
#[derive(Debug)]
pub(super) struct Credentials {
    config: Option<PathBuf>,
}

/// A login. It is never logged, and never leaves the process but to the registry.
#[derive(Clone, Eq, PartialEq)]
pub(super) enum Login {
    Password { user: String, password: String },
    RefreshToken(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: HashMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// User and password with a colon between, in base64.
    #[serde(rename = "auth")]
    pair: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

/// What a helper answers (docker-credential-helpers).
#[derive(Deserialize)]
struct Helped {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl Credentials {
    pub(super) fn new(config: Option<PathBuf>) -> Credentials {
        Credentials { config }
    }

    /// The login for a registry, if there is one.
    pub(super) fn of(&self, registry: &str) -> Result<Option<Login>, RegistryError> {
        let Some(path) = self.config.clone().or_else(default_config) else {
            return Ok(None);
        };
        let failed = |reason: String| RegistryError::Config {
            path: path.clone(),
            reason,
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        // The parser's message may quote what it read: a password.
        let config: DockerConfig = serde_json::from_slice(&text)
            .map_err(|error| failed(format!("no JSON at line {}", error.line())))?;
        let keys = keys(registry);
        let helper = keys.iter().find_map(|key| config.helpers.get(*key));
        if let Some(helper) = helper.or(config.store.as_ref()) {
            for key in &keys {
                if let Some(login) = ask_helper(helper, key).map_err(&failed)? {
                    return Ok(Some(login));
                }
            }
        }
        let auth = keys.iter().find_map(|key| {
            let same = |known: &&String| host_of(known) == *key || known.as_str() == *key;
            let known = config.auths.keys().find(same)?;
            config.auths.get(known)
        });
        Ok(auth.and_then(login_of))
    }
}

fn default_config() -> Option<PathBuf> {
    let dir = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let dir = dir.or_else(|| env::home_dir().map(|home| home.join(".docker")));
    dir.map(|dir| dir.join("config.json"))
}

/// The names under which the login for a registry may be.
pub(super) fn keys(registry: &str) -> Vec<&str> {
    match registry {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => {
            vec![
                DOCKER_HUB,
                "index.docker.io",
                "docker.io",
                "registry-1.docker.io",
            ]
        }
        other => vec![other],
    }
}

/// Keys may be URLs.
pub(super) fn host_of(key: &str) -> &str {
    let host = key.split("://").last().unwrap_or(key);
    host.split('/').next().unwrap_or(host)
}

fn login_of(auth: &Auth) -> Option<Login> {
    if let Some(token) = auth
        .identity_token
        .clone()
        .filter(|token| !token.is_empty())
    {
        return Some(Login::RefreshToken(token));
    }
    let pair = match (&auth.username, &auth.password, &auth.pair) {
        (Some(user), Some(password), _) => Some((user.clone(), password.clone())),
        (_, _, Some(pair)) => {
            let text = String::from_utf8(STANDARD.decode(pair.trim()).ok()?).ok()?;
            text.split_once(':').map(|(user, password)| {
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            })
        }
        _ => None,
    };
    let (user, password) = pair.filter(|(user, _)| !user.is_empty())?;
    Some(Login::Password { user, password })
}

/// Asks `docker-credential-<helper>`; that it knows nothing is no error.
fn ask_helper(helper: &str, key: &str) -> Result<Option<Login>, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !helper.chars().all(is_name) {
        return Err(format!("{helper:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: io::Error| format!("{program}: {error}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(key.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Ok(None);
    }
    let helped: Helped = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{program}: its answer is no login"))?;
    Ok(Some(if helped.user == TOKEN_USER {
        Login::RefreshToken(helped.secret)
    } else {
        Login::Password {
            user: helped.user,
            password: helped.secret,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(config: &str, registry: &str) -> Option<Login> {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("config.json");
        fs::write(&path, config).expect("write");
        Credentials::new(Some(path)).of(registry).expect("login")
    }

    #[test]
    fn a_login_is_found_by_any_of_its_names() {
        let auth = STANDARD.encode("me:secret:with:colons");
        let me = Some(Login::Password {
            user: "me".to_owned(),
            password: "secret:with:colons".to_owned(),
        });
        for (key, registry) in [
            ("r.example:5000", "r.example:5000"),
            ("https://r.example/v1/", "r.example"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
        ] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            assert_eq!(login(&config, registry), me, "{key}");
            assert_eq!(login(&config, "other.example"), None, "{key}");
        }
        let token = r#"{"auths":{"r":{"identitytoken":"t"}}}"#;
        assert_eq!(login(token, "r"), Some(Login::RefreshToken("t".to_owned())));
    }

    #[test]
    fn what_is_broken_is_said_without_what_it_holds() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("config.json");
        fs::write(&path, r#"{"auths":{"r":{"auth":"c2VjcmV0"} "#).expect("write");
        let error = Credentials::new(Some(path)).of("r").expect_err("broken");
        assert!(error.to_string().ends_with("no JSON at line 1"), "{error}");
        let login = Login::RefreshToken("secret".to_owned());
        assert_eq!(format!("{login:?}"), "Login");
        assert!(ask_helper("../../bin/sh", "r").is_err());
    }
}
