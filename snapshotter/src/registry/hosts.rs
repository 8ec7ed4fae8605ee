//! Where the bytes of a registry are to be had.
//!
//! The files are containerd's (docs/hosts.md of containerd), so that a mirror is set up once:
//! `<directory>/<registry>/hosts.toml`, or `_default/hosts.toml` for all that have none. Read anew
//! for every request, since they are small and a change should need no restart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Access, RegistryError};

/// The directory of all `hosts.toml` files.
#[derive(Debug)]
pub(super) struct Hosts {
    dir: PathBuf,
}

/// One place that may have what is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The URL up to the repository, without a slash at its end.
    pub(super) base: String,
    /// Whether it is asked in the name of another registry.
    pub(super) is_mirror: bool,
    pub(super) tls: Tls,
    /// Further headers.
    pub(super) headers: Vec<(String, String)>,
}

/// How TLS is spoken with an endpoint.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct Tls {
    /// Files of authorities that are trusted besides the host's own.
    pub(super) ca: Vec<PathBuf>,
    pub(super) skip_verify: bool,
}

#[derive(Debug, Default, Deserialize)]
struct HostConfig {
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: OneOrMore,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: std::collections::BTreeMap<String, OneOrMore>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    #[default]
    None,
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(&self) -> &[String] {
        match self {
            OneOrMore::None => &[],
            OneOrMore::One(one) => std::slice::from_ref(one),
            OneOrMore::More(more) => more,
        }
    }
}

impl Hosts {
    pub(super) fn new(dir: PathBuf) -> Hosts {
        Hosts { dir }
    }

    /// The endpoints of a registry, in the order in which they are to be asked.
    pub(super) fn endpoints(
        &self,
        registry: &str,
        access: Access,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        // A registry's name chooses a directory, and comes from outside.
        if registry.contains(['/', '\0']) || registry.starts_with('.') {
            return Err(RegistryError::NoEndpoint {
                registry: registry.to_owned(),
            });
        }
        for name in [registry, "_default"] {
            let dir = self.dir.join(name);
            let path = dir.join("hosts.toml");
            match fs::read_to_string(&path) {
                Ok(text) => {
                    return parse(&text, &dir, registry, access)
                        .map_err(|reason| RegistryError::Config { path, reason });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(RegistryError::Config {
                        path,
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(vec![Endpoint::of(
            &own_url(registry),
            &HostConfig::default(),
            Path::new(""),
            false,
        )])
    }
}

fn parse(text: &str, dir: &Path, registry: &str, access: Access) -> Result<Vec<Endpoint>, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| plain(&error))?;
    let config = |value: &toml::Value| -> Result<HostConfig, String> {
        value
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| plain(&error))
    };
    let mut endpoints = Vec::new();
    let hosts = table.get("host").and_then(toml::Value::as_table);
    for (url, value) in hosts.into_iter().flatten() {
        let config = config(value)?;
        if may(&config, access) {
            endpoints.push(Endpoint::of(url, &config, dir, true));
        }
    }
    let server = match table.get("server") {
        None => own_url(registry),
        Some(server) => server.as_str().ok_or("`server` is no text")?.to_owned(),
    };
    let own = config(&toml::Value::Table(table))?;
    if may(&own, access) {
        let is_mirror = server != own_url(registry);
        endpoints.push(Endpoint::of(&server, &own, dir, is_mirror));
    }
    Ok(endpoints)
}

/// What the parser says, without the line that it shows: there may be a login in it.
fn plain(error: &toml::de::Error) -> String {
    error.message().to_owned()
}

/// Whether a host is for this. As for containerd, one of which nothing is said is for everything.
fn may(config: &HostConfig, access: Access) -> bool {
    let needed = match access {
        Access::Pull => "pull",
        Access::Push => "push",
    };
    let capabilities = config.capabilities.as_ref();
    capabilities.is_none_or(|all| all.iter().any(|one| one == needed))
}

/// Where a registry is by itself. One on this host needs no TLS, as for containerd.
fn own_url(registry: &str) -> String {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let is_local = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
    match registry {
        "docker.io" | "index.docker.io" => "https://registry-1.docker.io".to_owned(),
        _ if is_local => format!("http://{registry}"),
        _ => format!("https://{registry}"),
    }
}

impl Endpoint {
    fn of(url: &str, config: &HostConfig, dir: &Path, is_mirror: bool) -> Endpoint {
        let url = if url.contains("://") {
            url.to_owned()
        } else {
            own_url(url)
        };
        let url = url.trim_end_matches('/');
        let is_whole = config.override_path || url.ends_with("/v2");
        let base = if is_whole {
            url.to_owned()
        } else {
            format!("{url}/v2")
        };
        let headers = config.header.iter();
        let headers = headers.flat_map(|(name, values)| {
            let values = values.all().iter();
            values.map(|value| (name.clone(), value.clone()))
        });
        Endpoint {
            base,
            is_mirror,
            tls: Tls {
                ca: config.ca.all().iter().map(|path| dir.join(path)).collect(),
                skip_verify: config.skip_verify,
            },
            headers: headers.collect(),
        }
    }

    /// The URL of something in a repository. A mirror is told whose it is, as containerd does.
    pub(super) fn url(&self, registry: &str, repository: &str, path: &str) -> String {
        let namespace = match (self.is_mirror, path.contains('?')) {
            (false, _) => String::new(),
            (true, false) => format!("?ns={registry}"),
            (true, true) => format!("&ns={registry}"),
        };
        format!("{}/{repository}/{path}{namespace}", self.base)
    }

    /// The host whose login is the right one here.
    pub(super) fn credentials_of<'e>(&'e self, registry: &'e str) -> &'e str {
        if !self.is_mirror {
            return registry;
        }
        self.authority()
    }

    /// The host and its port, without a login.
    pub(super) fn host(&self) -> &str {
        let authority = self.authority();
        let host = authority.rsplit_once('@').map(|(_, host)| host);
        host.unwrap_or(authority)
    }

    fn authority(&self) -> &str {
        let host = self.base.split("://").nth(1).unwrap_or(&self.base);
        host.split('/').next().unwrap_or(host)
    }
}

/// A URL for people: without a login that is in it.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((login, _)) => format!("{scheme}://{}", &rest[login.len() + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
        endpoints
            .iter()
            .map(|endpoint| endpoint.base.as_str())
            .collect()
    }

    #[test]
    fn a_login_in_a_url_or_a_file_is_not_shown() {
        for (url, wanted) in [
            (
                "https://me:secret@r.example:5000/v2/a",
                "https://r.example:5000/v2/a",
            ),
            ("https://me:se@cret@r.example", "https://r.example"),
            ("https://r.example/a@b", "https://r.example/a@b"),
            ("no url", "no url"),
        ] {
            assert_eq!(shown(url), wanted);
        }
        for text in [
            "[host.\"https://a\".header]\nauthorization = Basic secret",
            "[host.\"https://a\".header]\nauthorization = { secret = 1 }",
        ] {
            let error = parse(text, Path::new(""), "r", Access::Pull).expect_err(text);
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_registry_without_a_file_is_asked_itself() {
        let dir = tempfile::tempdir().expect("tempdir");
        let hosts = Hosts::new(dir.path().to_owned());
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("quay.io", "https://quay.io/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
        ] {
            let endpoints = hosts.endpoints(registry, Access::Pull).expect("endpoints");
            assert_eq!(bases(&endpoints), [base]);
            assert_eq!(
                endpoints[0].url(registry, "a/b", "blobs/x"),
                format!("{base}/a/b/blobs/x")
            );
        }
        for bad in ["..", "a/b", "../../etc"] {
            hosts.endpoints(bad, Access::Pull).expect_err(bad);
        }
    }

    #[test]
    fn mirrors_come_first_in_the_order_of_the_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir(dir.path().join("docker.io")).expect("mkdir");
        let text = r#"
            server = "https://docker.io"
            [host."https://z.example"]
              capabilities = ["pull", "resolve"]
              ca = "z.pem"
              [host."https://z.example".header]
                x-team = ["one", "two"]
            [host."http://a.example:5000/path"]
              override_path = true
              skip_verify = true
            [host."https://push.example"]
              capabilities = ["push"]
        "#;
        fs::write(dir.path().join("docker.io/hosts.toml"), text).expect("write");
        let hosts = Hosts::new(dir.path().to_owned());
        let endpoints = hosts
            .endpoints("docker.io", Access::Pull)
            .expect("endpoints");
        assert_eq!(
            bases(&endpoints),
            [
                "https://z.example/v2",
                "http://a.example:5000/path",
                "https://docker.io/v2"
            ]
        );
        assert_eq!(endpoints[0].tls.ca, [dir.path().join("docker.io/z.pem")]);
        assert_eq!(endpoints[0].headers.len(), 2);
        assert!(endpoints[1].tls.skip_verify);
        assert_eq!(
            endpoints[1].url("docker.io", "library/x", "manifests/1"),
            "http://a.example:5000/path/library/x/manifests/1?ns=docker.io"
        );
        assert_eq!(endpoints[1].credentials_of("docker.io"), "a.example:5000");
        let pushed = hosts
            .endpoints("docker.io", Access::Push)
            .expect("endpoints");
        assert_eq!(
            bases(&pushed),
            [
                "http://a.example:5000/path",
                "https://push.example/v2",
                "https://docker.io/v2"
            ]
        );
        fs::write(dir.path().join("docker.io/hosts.toml"), "server = 1").expect("write");
        let error = hosts.endpoints("docker.io", Access::Pull).expect_err("bad");
        assert!(
            error.to_string().contains("hosts.toml: `server`"),
            "{error}"
        );
    }
}
