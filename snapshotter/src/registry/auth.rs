//! Answering a registry's challenge (RFC 9110, 11; the distribution project's token specification).

use std::collections::HashMap;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::Deserialize;
use ureq::Agent;

use super::credentials::Login;
use super::http::left;
use super::{Access, RegistryError, Scope};

/// The most bytes of a token.
const MOST: u64 = 1 << 20;
/// So many tokens are kept; beyond that all are asked for again.
const TOKENS: usize = 1000;

/// What a token is good for.
#[derive(Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// The endpoint.
    pub(super) base: String,
    pub(super) repository: String,
    pub(super) access: Access,
}

/// `Authorization` headers that were good.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<Key, String>>);

impl Tokens {
    pub(super) fn get(&self, key: &Key) -> Option<String> {
        self.0.lock().get(key).cloned()
    }

    pub(super) fn keep(&self, key: Key, header: String) {
        let mut tokens = self.0.lock();
        if tokens.len() >= TOKENS {
            tokens.clear();
        }
        tokens.insert(key, header);
    }
}

/// The `Authorization` header that answers one of the challenges; `None` if none can be answered.
pub(super) fn answer(
    agent: &Agent,
    challenges: &[String],
    login: Option<&Login>,
    scope: Scope<'_>,
    deadline: Instant,
) -> Result<Option<String>, RegistryError> {
    for challenge in challenges.iter().filter_map(|text| Challenge::parse(text)) {
        match challenge.scheme.as_str() {
            "bearer" => return token(agent, &challenge, login, scope, deadline).map(Some),
            "basic" => {
                if let Some(Login::Password { user, password }) = login {
                    return Ok(Some(basic(user, password)));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Asks the server that the challenge names for a token.
fn token(
    agent: &Agent,
    challenge: &Challenge,
    login: Option<&Login>,
    wanted: Scope<'_>,
    deadline: Instant,
) -> Result<String, RegistryError> {
    let realm = challenge.parameter("realm").unwrap_or_default();
    let actions = wanted.access.actions();
    let scope = format!("repository:{}:{actions}", wanted.repository);
    // The answer to a look at what is to be written asks for less than writing takes.
    let asked = challenge.parameter("scope");
    let asked = asked.filter(|asked| wanted.access == Access::Pull || asked.contains("push"));
    let scope = asked.unwrap_or(&scope);
    let unreachable = |error: ureq::Error| RegistryError::Unreachable {
        url: realm.to_owned(),
        reason: error.to_string(),
    };
    let service = challenge.parameter("service");
    let mut response = match login {
        Some(Login::RefreshToken(refresh)) => {
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("refresh_token", refresh),
                ("scope", scope),
                ("client_id", "lamina"),
            ];
            form.extend(service.map(|service| ("service", service)));
            let request = agent.post(realm).config();
            let request = request.timeout_global(Some(left(deadline))).build();
            request.send_form(form).map_err(unreachable)?
        }
        login => {
            let mut request = agent.get(realm).query("scope", scope);
            if let Some(service) = service {
                request = request.query("service", service);
            }
            if let Some(Login::Password { user, password }) = login {
                request = request.header("Authorization", basic(user, password));
            }
            let request = request.config().timeout_global(Some(left(deadline)));
            request.build().call().map_err(unreachable)?
        }
    };
    let status = response.status().as_u16();
    let url = realm.to_owned();
    match status {
        200 => {}
        401 | 403 => return Err(RegistryError::Denied { url, status }),
        429 | 503 => {
            return Err(RegistryError::Busy {
                url,
                status,
                retry_after: None,
            });
        }
        status => return Err(RegistryError::Status { url, status }),
    }
    let body = response.body_mut().with_config().limit(MOST);
    let bytes = body.read_to_vec().map_err(unreachable)?;
    let token = serde_json::from_slice::<Token>(&bytes).ok();
    let token = token.and_then(|token| token.token.or(token.access_token));
    let token =
        token.filter(|token| !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic()));
    token
        .map(|token| format!("Bearer {token}"))
        .ok_or(RegistryError::Answer {
            url,
            what: "it answers with no token".to_owned(),
        })
}

/// A challenge: a scheme with parameters.
#[derive(Debug, Eq, PartialEq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Reads `Bearer realm="https://…",service="…",scope="…"`.
    fn parse(text: &str) -> Option<Challenge> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            let Some((name, after)) = rest.split_once('=') else {
                break;
            };
            let value;
            if let Some(quoted) = after.strip_prefix('"') {
                let mut text = String::new();
                let mut chars = quoted.char_indices();
                let end = loop {
                    match chars.next()? {
                        (_, '\\') => text.push(chars.next()?.1),
                        (at, '"') => break at + 1,
                        (_, other) => text.push(other),
                    }
                };
                value = text;
                rest = &quoted[end..];
            } else {
                let (text, after) = after.split_once(',').unwrap_or((after, ""));
                value = text.trim().to_owned();
                rest = after;
            }
            parameters.push((name.trim().to_ascii_lowercase(), value));
        }
        Some(Challenge {
            scheme: scheme.to_ascii_lowercase(),
            parameters,
        })
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_taken_apart() {
        let text = r#"Bearer realm="https://auth.example/token?a=b,c",service="r.example", scope=repository:x:pull"#;
        let challenge = Challenge::parse(text).expect("challenge");
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(
            challenge.parameter("realm"),
            Some("https://auth.example/token?a=b,c")
        );
        assert_eq!(challenge.parameter("service"), Some("r.example"));
        assert_eq!(challenge.parameter("scope"), Some("repository:x:pull"));
        let basic = Challenge::parse(r#"Basic realm="a \"b\"""#).expect("challenge");
        assert_eq!(
            (basic.scheme.as_str(), basic.parameter("realm")),
            ("basic", Some("a \"b\""))
        );
        for odd in [
            "",
            "Bearer",
            "Bearer realm=\"never closed",
            "Bearer =,=,",
            "=\"ä",
        ] {
            let _ = Challenge::parse(odd);
        }
    }
}
