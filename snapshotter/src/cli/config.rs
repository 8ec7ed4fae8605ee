//! `lamina config`: files to begin with, for Lamina itself and for its neighbours.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use lamina_snapshotter::config::{Config, DEFAULT_PATH};

use super::PlaceArgs;

/// Arguments of `lamina config`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  lamina config default > /etc/lamina/config.toml
  lamina config containerd >> /etc/containerd/config.toml
  lamina config systemd > /etc/systemd/system/lamina.service")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lamina's own configuration with all defaults, explained
    #[command(after_help = "Example:
  lamina config default > /etc/lamina/config.toml")]
    Default,
    /// What containerd's config.toml needs, to use this snapshotter
    #[command(after_help = "Examples:
  lamina config containerd >> /etc/containerd/config.toml
  lamina config containerd --cri        Kubernetes on containerd 2.x
  lamina config containerd --cri 1      Kubernetes on containerd 1.x")]
    Containerd {
        #[command(flatten)]
        place: PlaceArgs,
        /// Also make Lamina the snapshotter of Kubernetes pods, on this major version of
        /// containerd [default when no version is given: 2]
        #[arg(long, value_name = "MAJOR", num_args = 0..=1, default_missing_value = "2")]
        cri: Option<Major>,
    },
    /// A systemd unit for the daemon
    #[command(after_help = "Example:
  lamina config systemd > /etc/systemd/system/lamina.service
  systemctl daemon-reload && systemctl enable --now lamina")]
    Systemd {
        #[command(flatten)]
        place: PlaceArgs,
    },
}

/// The major version of a containerd.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Major {
    /// containerd 1.x, whose configuration has `version = 2`
    #[value(name = "1")]
    One,
    /// containerd 2.x, whose configuration has `version = 3`
    #[value(name = "2")]
    Two,
}

/// Runs the command.
pub(super) fn run(args: &ConfigArgs) -> Result<ExitCode> {
    let text = match &args.what {
        What::Default => Config::commented().to_owned(),
        What::Containerd { place, cri } => containerd(&place.load()?, *cri),
        What::Systemd { place } => systemd(&place.load()?, place.config.as_deref()),
    };
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}

fn containerd(config: &Config, cri: Option<Major>) -> String {
    let address = toml_string(&config.address);
    let root = toml_string(&config.root);
    let mut text = format!(
        r#"# For containerd's config.toml: version = 2 (containerd 1.x) and version = 3 (2.x).
[proxy_plugins.lamina]
  type = "snapshot"
  address = {address}
  # Pods with a user namespace (containerd 2.x, Linux 6.12): take it out on an older kernel.
  capabilities = ["remap-ids"]
  # The kubelet measures and limits disk use there.
  [proxy_plugins.lamina.exports]
    root = {root}

# containerd 2.x unpacks a `ctr image pull --snapshotter lamina` only with this, beside the
# entries that are there already:
# [[plugins."io.containerd.transfer.v1.local".unpack_config]]
#   platform = "linux"
#   snapshotter = "lamina"
"#
    );
    text.push_str(match cri {
        None => "",
        Some(Major::One) => {
            r#"
# Kubernetes pods on containerd 1.x.
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "lamina"
"#
        }
        Some(Major::Two) => {
            r#"
# Kubernetes pods on containerd 2.x.
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "lamina"
"#
        }
    });
    text
}

fn systemd(config: &Config, file: Option<&Path>) -> String {
    let defaults = Config::default();
    let mut command = "/usr/bin/lamina serve".to_owned();
    for (flag, value, default) in [
        ("root", Some(&*config.root), &*defaults.root),
        ("address", Some(&*config.address), &*defaults.address),
        ("config", file, Path::new(DEFAULT_PATH)),
    ] {
        if let Some(value) = value.filter(|value| *value != default) {
            // Writing to a String can't fail.
            let _ = write!(command, " --{flag} {}", systemd_word(value));
        }
    }
    format!(
        "[Unit]
Description=Lamina snapshotter for containerd
Before=containerd.service
After=local-fs.target

[Service]
Type=notify
ExecStart={command}
Restart=on-failure
RestartSec=1
# Mounts must be seen by containerd: no option here may give the daemon a mount namespace of its own.
KillMode=mixed
TimeoutStopSec=30
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-999
RuntimeDirectory=lamina
RuntimeDirectoryMode=0700

[Install]
WantedBy=multi-user.target
"
    )
}

fn toml_string(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

/// A word of an `ExecStart=`: quoted, with specifiers and variables kept from expanding.
fn systemd_word(path: &Path) -> String {
    let mut word = String::from("\"");
    for c in path.display().to_string().chars() {
        match c {
            '"' | '\\' => word.extend(['\\', c]),
            '%' | '$' => word.extend([c, c]),
            c => word.push(c),
        }
    }
    word.push('"');
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_snippet_is_toml_with_our_paths() {
        let config = Config {
            root: "/srv/a \"b\"".into(),
            address: "/run/l.sock".into(),
            ..Config::default()
        };
        for cri in [None, Some(Major::One), Some(Major::Two)] {
            let text = containerd(&config, cri);
            let table: toml::Table = toml::from_str(&text).unwrap();
            let plugin = &table["proxy_plugins"]["lamina"];
            assert_eq!(plugin["type"].as_str(), Some("snapshot"));
            assert_eq!(plugin["address"].as_str(), Some("/run/l.sock"));
            assert_eq!(plugin["exports"]["root"].as_str(), Some("/srv/a \"b\""));
            assert_eq!(table.contains_key("plugins"), cri.is_some());
        }
    }

    #[test]
    fn the_commented_part_for_2_x_is_toml_too() {
        let text = containerd(&Config::default(), None);
        let (_, commented) = text.split_once("# [[").unwrap();
        let text = format!("[[{}", commented.replace("\n#", "\n"));
        let table: toml::Table = toml::from_str(&text).unwrap();
        let transfer = &table["plugins"]["io.containerd.transfer.v1.local"];
        assert_eq!(
            transfer["unpack_config"][0]["snapshotter"].as_str(),
            Some("lamina")
        );
    }

    #[test]
    fn the_unit_names_only_what_differs() {
        let unit = systemd(&Config::default(), None);
        assert!(unit.contains("\nExecStart=/usr/bin/lamina serve\n"));
        let config = Config {
            root: "/srv/50%".into(),
            ..Config::default()
        };
        let unit = systemd(&config, Some(Path::new("/etc/x.toml")));
        let wanted =
            "\nExecStart=/usr/bin/lamina serve --root \"/srv/50%%\" --config \"/etc/x.toml\"\n";
        assert!(unit.contains(wanted), "{unit}");
    }
}
