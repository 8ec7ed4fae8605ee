//! The configuration: a TOML file, and what stands in its place when there is none.
//!
//! Whoever starts the daemon may say the same thing three times: the file is overridden by the
//! environment, and that by the command line. This module knows the file; the command line (and,
//! through it, the environment) is applied on top by the `lamina` command.
//!
//! A key that nobody knows is an error, never a remark in a log: a misspelt `adress` would
//! otherwise be a daemon that listens somewhere else than its owner thinks.

pub mod limits;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::limits::LimitsConfig;
use crate::cri;
use crate::hold::{self, Keeper};
use crate::lazy::keeper;
use crate::lazy::profile::Profiles;
use crate::registry;
use crate::upper_mode::UpperMode;

/// Where the configuration file is looked for when nobody names one.
pub const DEFAULT_PATH: &str = "/etc/lamina/config.toml";

/// The most threads that one mount may be given.
pub const MAX_THREADS: usize = 64;

/// The longest that a container may be made to wait for bytes, in seconds.
pub const MAX_PATIENCE_SECS: u64 = 3600;

/// The longest that what is kept may wait for the next daemon, in seconds: a day.
pub const MAX_HOLD_SECS: u64 = 86400;

/// The whole configuration. The text that [`Config::commented`] gives explains each field.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // switches that have nothing to do with each other
pub struct Config {
    /// Where snapshots and their metadata live.
    pub root: PathBuf,
    /// The Unix socket on which containerd finds the snapshotter.
    pub address: PathBuf,
    /// Threads that serve one mount.
    pub threads: usize,
    /// Let the kernel read and write regular files by itself where it can.
    pub passthrough: bool,
    /// Let the kernel open the files of image mounts without asking.
    pub no_open: bool,
    /// Who holds the upper of a new container.
    pub upper: UpperMode,
    /// Keep what layers and images hold in indexes.
    pub index: bool,
    /// Copy up the attributes alone of a file of which nothing else changes.
    pub metacopy: bool,
    /// Copy up only the blocks of a large file that are written.
    pub partial_copy_up: bool,
    /// Who keeps the mounts of running containers while there is no daemon.
    pub holder: Keeper,
    /// How long a process does so, in seconds.
    pub hold_secs: u64,
    /// Layers that are served without being unpacked.
    pub lazy: LazyConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// The `[lazy]` table.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LazyConfig {
    /// Serve layers without unpacking them, where containerd says which they are.
    pub enabled: bool,
    /// How long a container waits for bytes from a registry before it gets an I/O error, in seconds.
    pub patience_secs: u64,
    /// The directory of `<registry>/hosts.toml`, as containerd's `config_path`.
    pub hosts: PathBuf,
    /// docker's `config.json` with the logins; empty: where docker looks for it.
    pub docker_config: PathBuf,
    /// The most that the cache may take, in MiB; 0: no limit.
    pub cache_mib: u64,
    /// How much of its file system the cache leaves free, in percent.
    pub free_percent: u64,
    /// Fetch layers as a whole while nobody waits for bytes.
    pub fill: bool,
    /// The most that this may take of the link, in MiB a second; 0: no limit.
    pub fill_mib_per_sec: u64,
    /// What is done about profiles of what containers open first.
    pub profiles: Profiles,
    /// The repositories of which indexes in the registry are believed.
    pub indexes: Vec<String>,
    /// The socket of a proxy of the CRI's image service, which learns image pull secrets; empty: none.
    pub cri_socket: PathBuf,
    /// The socket of containerd's CRI, which the proxy asks.
    pub cri_backend: PathBuf,
    /// How much a blob may ask for.
    pub limits: LimitsConfig,
}

impl LazyConfig {
    /// The proxy of the CRI's image service; `None`: there is none.
    pub fn cri(&self) -> Option<cri::Options> {
        let is_on = !self.cri_socket.as_os_str().is_empty();
        is_on.then(|| cri::Options {
            socket: self.cri_socket.clone(),
            backend: self.cri_backend.clone(),
        })
    }

    /// How the cache is kept.
    pub fn cache(&self) -> keeper::Limits {
        keeper::Limits {
            cache_bytes: self.cache_mib.saturating_mul(1 << 20),
            free_percent: self.free_percent,
            fill: self.fill,
            fill_rate: self.fill_mib_per_sec.saturating_mul(1 << 20),
            profiles: self.profiles,
            trusted_indexes: self.indexes.clone(),
        }
    }

    /// How registries are reached by the daemon; `None`: not at all.
    pub fn registry(&self) -> Option<registry::Options> {
        self.enabled.then(|| self.registries())
    }

    /// How registries are reached.
    pub fn registries(&self) -> registry::Options {
        let docker_config = Some(self.docker_config.clone());
        registry::Options {
            hosts: self.hosts.clone(),
            docker_config: docker_config.filter(|path| !path.as_os_str().is_empty()),
            patience: Duration::from_secs(self.patience_secs),
            manifest_bytes: self.limits.manifest_bytes(),
            ..registry::Options::default()
        }
    }
}

/// The `[log]` table.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or directives for single modules.
    pub level: String,
    /// Lines for people or for programs.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text for each event.
    Text,
    /// One JSON object for each event.
    Json,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is not TOML, or a value has the wrong type.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line.
        message: String,
    },
    /// A key that no version of Lamina up to this one knows.
    #[error("{}: unknown key `{key}`{}", path.display(), Suggestion(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key with the tables around it: `log.levle`.
        key: String,
        /// The known key that is most like it.
        nearest: Option<String>,
    },
    /// A value of the right type that makes no sense.
    #[error("{}: `{key}` {problem}", path.display())]
    Value {
        /// The file, or whatever else said so.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
}

/// The end of a sentence that says what may have been meant.
struct Suggestion<'a>(Option<&'a str>);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, " (did you mean `{key}`?)"),
            None => Ok(()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/lamina"),
            address: PathBuf::from("/run/lamina/lamina.sock"),
            threads: 2,
            passthrough: true,
            no_open: true,
            upper: UpperMode::default(),
            index: true,
            metacopy: true,
            partial_copy_up: true,
            holder: Keeper::default(),
            hold_secs: hold::DEFAULT_PATIENCE.as_secs(),
            lazy: LazyConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for LazyConfig {
    fn default() -> Self {
        let registry = registry::Options::default();
        Self {
            enabled: true,
            patience_secs: registry.patience.as_secs(),
            hosts: registry.hosts,
            docker_config: PathBuf::new(),
            cache_mib: 0,
            free_percent: keeper::Limits::default().free_percent,
            fill: true,
            fill_mib_per_sec: 0,
            profiles: Profiles::default(),
            indexes: Vec::new(),
            cri_socket: PathBuf::new(),
            cri_backend: PathBuf::from("/run/containerd/containerd.sock"),
            limits: LimitsConfig::default(),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

impl Config {
    /// Reads `path`, or, if nobody named a file, [`DEFAULT_PATH`] when it exists.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let (path, optional) = match path {
            Some(path) => (path, false),
            None => (Path::new(DEFAULT_PATH), true),
        };
        match fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, path),
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {
                Ok(Config::default())
            }
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Parses the text of a configuration file; `path` is its name in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let known = known_keys();
        if let Some(key) = first_unknown("", &table, &known) {
            return Err(ConfigError::UnknownKey {
                path: path.to_owned(),
                nearest: nearest(&key, &known),
                key,
            });
        }
        let config: Config = toml::from_str(text).map_err(syntax)?;
        config.validate(path)?;
        Ok(config)
    }

    /// How descriptors are kept while there is no daemon.
    pub fn hold(&self) -> hold::Options {
        hold::Options {
            keeper: self.holder,
            patience: Duration::from_secs(self.hold_secs),
            ..hold::Options::default()
        }
    }

    /// Checks what types can't say; `origin` is who gave the values, for the error.
    pub fn validate(&self, origin: &Path) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| {
            Err(ConfigError::Value {
                path: origin.to_owned(),
                key,
                problem,
            })
        };
        for (key, value) in [("root", &self.root), ("address", &self.address)] {
            if !value.is_absolute() {
                let shown = value.display();
                return wrong(key, format!("must be an absolute path, not `{shown}`"));
            }
        }
        if !(1..=MAX_THREADS).contains(&self.threads) {
            let threads = self.threads;
            return wrong(
                "threads",
                format!("must be between 1 and {MAX_THREADS}, not {threads}"),
            );
        }
        if !(1..=MAX_HOLD_SECS).contains(&self.hold_secs) {
            let seconds = self.hold_secs;
            return wrong(
                "hold_secs",
                format!("must be between 1 and {MAX_HOLD_SECS}, not {seconds}"),
            );
        }
        if !(1..=MAX_PATIENCE_SECS).contains(&self.lazy.patience_secs) {
            let patience = self.lazy.patience_secs;
            return wrong(
                "lazy.patience_secs",
                format!("must be between 1 and {MAX_PATIENCE_SECS}, not {patience}"),
            );
        }
        if self.lazy.free_percent > 90 {
            let percent = self.lazy.free_percent;
            return wrong(
                "lazy.free_percent",
                format!("must be between 0 and 90, not {percent}"),
            );
        }
        let mut patterns = self.lazy.indexes.iter();
        let is_odd = |pattern: &&String| {
            let rest = pattern.strip_suffix('*').unwrap_or(pattern);
            pattern.is_empty() || rest.contains('*')
        };
        if let Some(pattern) = patterns.find(is_odd) {
            return wrong(
                "lazy.indexes",
                format!("can't have `{pattern}`: `*` may stand at the end alone"),
            );
        }
        if let Some((key, problem)) = self.lazy.limits.wrong() {
            return wrong(key, problem);
        }
        if let Some(cri) = self.lazy.cri() {
            for (key, path) in [
                ("lazy.cri_socket", &cri.socket),
                ("lazy.cri_backend", &cri.backend),
            ] {
                if !path.is_absolute() {
                    let shown = path.display();
                    return wrong(key, format!("must be an absolute path, not `{shown}`"));
                }
            }
            if cri.socket == cri.backend || cri.socket == self.address {
                let shown = cri.socket.display();
                return wrong(
                    "lazy.cri_socket",
                    format!("must be a socket of its own, not `{shown}`"),
                );
            }
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            let level = &self.log.level;
            return wrong("log.level", format!("can't be `{level}`: {error}"));
        }
        Ok(())
    }

    /// The defaults as a file to begin with: each key explained, and parsing back to the defaults.
    pub fn commented() -> &'static str {
        COMMENTED
    }
}

/// All keys, with the tables around them, as the defaults have them.
fn known_keys() -> Vec<String> {
    fn collect(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            if let toml::Value::Table(inner) = value {
                collect(&format!("{key}."), inner, keys);
            }
            keys.push(key);
        }
    }
    let mut keys = Vec::new();
    if let Ok(table) = toml::Table::try_from(Config::default()) {
        collect("", &table, &mut keys);
    }
    keys
}

/// The first key of `table` that is not among `known`, with the tables around it.
fn first_unknown(prefix: &str, table: &toml::Table, known: &[String]) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        let key = format!("{prefix}{name}");
        if !known.contains(&key) {
            return Some(key);
        }
        let inner = value.as_table()?;
        first_unknown(&format!("{key}."), inner, known)
    })
}

/// The known key that is most like `key`: the whole of it, or its last part in another table.
fn nearest(key: &str, known: &[String]) -> Option<String> {
    let last = |key: &str| {
        key.rsplit('.')
            .next()
            .map(str::to_owned)
            .unwrap_or_default()
    };
    known
        .iter()
        .map(|candidate| {
            let whole = strsim::jaro_winkler(key, candidate);
            let part = strsim::jaro_winkler(&last(key), &last(candidate));
            (whole.max(part), candidate)
        })
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.clone())
}

const COMMENTED: &str = r#"# Configuration of `lamina serve`, usually /etc/lamina/config.toml.
# Every value here is the default. The environment (LAMINA_ROOT, LAMINA_ADDRESS, LAMINA_THREADS,
# LAMINA_PASSTHROUGH, LAMINA_NO_OPEN, LAMINA_UPPER, LAMINA_INDEX, LAMINA_METACOPY,
# LAMINA_PARTIAL_COPY_UP, LAMINA_HOLDER, LAMINA_HOLD_SECS, LAMINA_LAZY, LAMINA_LOG_LEVEL,
# LAMINA_LOG_FORMAT) overrides the file, and flags override both. A key that Lamina does not know is
# an error.

# Where snapshots and their metadata live: a file system with xattrs (ext4, xfs, btrfs), and a
# directory that only root can enter.
root = "/var/lib/lamina"

# The Unix socket on which containerd finds the snapshotter.
address = "/run/lamina/lamina.sock"

# Threads that serve one mount, 1 to 64.
threads = 2

# Let the kernel read and write regular files by itself, where it can (Linux 6.9 and newer).
passthrough = true

# Let the kernel open the files of image mounts (the read-only mounts of an image, for views and for
# upper = "kernel") without asking: small files that were read before cost nothing. What was read is
# then in memory twice, as a page of the layer's file and of the image mount's.
no_open = true

# Who holds the upper of a new container: "union" is Lamina's own union; "kernel" is the kernel's
# overlayfs above one read-only mount of the image, which all containers of the image share. A
# snapshot's label lamina/upper (by way of containerd: containerd.io/snapshot/lamina/upper)
# overrides it. A container keeps what it was made with. One with shifted users has a union.
upper = "union"

# Keep what layers and images hold in indexes beside them, and look there instead of into the layers.
# Only for telling apart what is broken: without them every directory is merged when it is first used.
index = true

# When a container changes owner, mode, times, xattrs or names of an image's file, copy no data.
# Only for telling apart what is broken.
metacopy = true

# Of an image's file of 64 MiB or more that a container writes, copy only the blocks that are written,
# where the file system can't share blocks (ext4). Until half of it is written, such a file is read
# and written through Lamina.
partial_copy_up = true

# Who keeps the mounts of running containers when the daemon dies, until the next one takes them:
# "systemd" (the unit needs FileDescriptorStoreMax=), "process" (a process of Lamina's own, `lamina hold`),
# "auto" (systemd, where it says that it does: version 254 and newer, else a process), or "none":
# containers lose their root then.
holder = "auto"

# How long such a process waits for the next daemon, 1 to 86400 seconds. Until then a container waits
# whenever it needs its root; afterwards it gets I/O errors. systemd waits until the service is stopped.
hold_secs = 300

[lazy]
# Serve layers without unpacking them, where containerd says which image and layer it is about to
# pull: the container starts before its image is here, and each file is fetched when it is first
# opened. Layers that were made so are served so, whatever stands here.
enabled = true

# How long a container waits for bytes from a registry before it gets an I/O error, 1 to 3600 seconds.
patience_secs = 30

# Mirrors and certificates of registries: the directory of <registry>/hosts.toml, as containerd's
# config_path.
hosts = "/etc/containerd/certs.d"

# docker's config.json with the logins for registries, and the credential helpers that it names.
# Empty: where docker looks for it ($DOCKER_CONFIG, or .docker in the home directory).
docker_config = ""

# The most that the cache of fetched files may take, in MiB; 0 is no limit. Beyond it, files that were
# not used for longest are removed until a tenth is free; none that is open.
cache_mib = 0

# How much of its file system the cache leaves free, 0 to 90 percent.
free_percent = 5

# Fetch layers as a whole while nobody waits for bytes, so that their images need no registry any more.
fill = true

# The most that this may take of the link, in MiB a second; 0 is no limit.
fill_mib_per_sec = 0

# "local": record which files the containers of an image open while they start, and fetch these first
# when an image of the same repository is next pulled. "shared": where this host knows nothing of a
# repository, look for a profile beside the image in the registry, and put what this host has seen there
# where there is none (with a login that may push). "off": neither.
profiles = "local"

# The repositories of which indexes are believed that `lamina image index` has put beside an image in the
# registry, as "registry.example/team/app" or "registry.example/team/*": an ordinary gzip layer is then
# served without being downloaded first. An image's manifest says nothing of its index, so this means to
# trust whoever may push there.
indexes = []

# Kubernetes' image pull secrets: the Unix socket of a proxy of the CRI's image service, for kubelet's
# --image-service-endpoint. It passes every call on to containerd, and keeps the logins of pulls in
# memory, for the registry that they are for. Empty: no proxy.
cri_socket = ""

# The socket of containerd's CRI, which the proxy asks.
cri_backend = "/run/containerd/containerd.sock"

[lazy.limits]
# How much a blob may ask for. Its maker may be anybody, so each number in it is held against one of
# these. A layer that asks for more is not served lazily: containerd unpacks it as any other.
# The most of a manifest, an index or a configuration, in MiB.
manifest_mib = 4

# Of a table of contents (eStargz, zstd:chunked), compressed and uncompressed, in MiB.
toc_mib = 256

# Entries of a layer, and chunks of all its files.
entries = 500000
chunks = 1000000

# Names in a path, bytes of one name (255 at most) and of the whole path (4095 at most).
depth = 1024
name_bytes = 255
path_bytes = 4095

# Bytes of all extended attributes of one entry, names and values.
xattr_bytes = 65536

# Of one chunk, uncompressed, in MiB, 1 to 1024: so much memory may a file take that is fetched, for
# each thread that waits.
chunk_mib = 64

# Of a layer, and of all layers of an image that are served lazily, uncompressed, in GiB.
layer_gib = 1024
image_gib = 4096

# How many uncompressed bytes may come of each compressed one, in a layer of more uncompressed MiB than
# the second number.
ratio = 200
ratio_floor_mib = 1024

# The window that a zstd layer may ask for, as a power of two, 10 to 31: 27 is 128 MiB of memory.
zstd_window_log = 27

[log]
# error, warn, info, debug or trace; or directives for single modules:
# "info,lamina_fusefs=debug".
level = "info"

# "text" for people, "json" for programs.
format = "text"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/lamina/config.toml"))
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_commented_file_is_the_defaults_and_names_every_key() {
        assert_eq!(parse(Config::commented()).unwrap(), Config::default());
        let table: toml::Table = toml::from_str(Config::commented()).unwrap();
        assert_eq!(table, toml::Table::try_from(Config::default()).unwrap());
    }

    #[test]
    fn a_part_of_the_keys_leaves_the_others_as_they_are() {
        let config = parse("threads = 4\n[log]\nformat = \"json\"\n").unwrap();
        assert_eq!(config.threads, 4);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.log.level, "info");
        assert_eq!(config.root, Config::default().root);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file_and_the_nearest_key() {
        for (text, key, nearest) in [
            ("adress = \"/x\"", "adress", "address"),
            ("[log]\nlevle = \"info\"", "log.levle", "log.level"),
            ("level = \"info\"", "level", "log.level"),
            ("[logs]\nlevel = \"info\"", "logs", "log"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("/etc/lamina/config.toml: unknown key `{key}` (did you mean `{nearest}`?)")
            );
        }
        let error = parse("quux = 1").unwrap_err().to_string();
        assert_eq!(error, "/etc/lamina/config.toml: unknown key `quux`");
    }

    #[test]
    fn a_bad_value_is_named_with_file_and_key() {
        for (text, wanted) in [
            ("threads = 0", "`threads` must be between 1 and 64, not 0"),
            (
                "root = \"lib\"",
                "`root` must be an absolute path, not `lib`",
            ),
            (
                "[lazy]\ncri_socket = \"cri\"",
                "`lazy.cri_socket` must be an absolute path, not `cri`",
            ),
            (
                "[lazy]\ncri_socket = \"/run/c\"\ncri_backend = \"\"",
                "`lazy.cri_backend` must be an absolute path, not ``",
            ),
            (
                "[lazy]\ncri_socket = \"/run/containerd/containerd.sock\"",
                "`lazy.cri_socket` must be a socket of its own",
            ),
            (
                "[lazy]\ncri_socket = \"/run/lamina/lamina.sock\"",
                "`lazy.cri_socket` must be a socket of its own",
            ),
            (
                "hold_secs = 0",
                "`hold_secs` must be between 1 and 86400, not 0",
            ),
            ("holder = \"init\"", "holder = \"init\""),
            ("threads = \"two\"", "threads = \"two\""),
            ("log = 3", "log = 3"),
            (
                "[lazy]\nindexes = [\"r.example/*/app\"]",
                "`lazy.indexes` can't have `r.example/*/app`",
            ),
            ("upper = \"fuse\"", "upper = \"fuse\""),
            ("[log]\nformat = \"xml\"", "format = \"xml\""),
            ("[log]\nlevel = \"a=b=c\"", "`log.level` can't be `a=b=c`"),
            ("threads = ", "line 1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("/etc/lamina/config.toml: "), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn there_is_no_proxy_of_the_cri_unless_it_has_a_socket() {
        assert_eq!(Config::default().lazy.cri(), None);
        let config = parse("[lazy]\ncri_socket = \"/run/lamina/cri.sock\"").expect("config");
        let cri = config.lazy.cri().expect("a proxy");
        assert_eq!(cri.socket, Path::new("/run/lamina/cri.sock"));
        assert_eq!(cri.backend, Path::new("/run/containerd/containerd.sock"));
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/lamina.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/lamina.toml"));
    }
}
