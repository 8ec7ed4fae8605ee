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
# Containers wait for the daemon: it is started again however often it fails.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
Restart=always
# Another daemon comes: it gets the sockets too, whether a container runs or not.
RestartKillSignal=SIGUSR2
# At once, then less and less often (systemd 254; an older one warns that it does not know two of these).
RestartSec=100ms
RestartSteps=8
RestartMaxDelaySec=30
TimeoutStartSec=10min
TimeoutStopSec=30
# A daemon whose parts do not answer any more is killed and started again.
WatchdogSec=60

# What outlives the daemon. systemd 254 keeps it itself, up to this many descriptors: two for each
# container, and one for each file that a container has open and has deleted.
FileDescriptorStoreMax=16384
# An older one does not say that it would; a process of Lamina's own does then. It belongs to this
# service, and neither a stop nor somebody else's hunger for memory may end it; its socket lies in the
# runtime directory.
KillMode=process
OOMPolicy=continue
OOMScoreAdjust=-999
RuntimeDirectory=lamina
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes

LimitNOFILE=1048576
TasksMax=infinity

# Mounts must be seen by containerd, so nothing here may give the daemon a mount namespace of its own:
# no PrivateTmp=, PrivateDevices=, PrivateMounts=, ProtectSystem=, ProtectHome=, ProtectProc=,
# ProtectKernelModules=, ProtectKernelTunables=, ProtectKernelLogs=, ProtectControlGroups=, no paths
# made read-only or inaccessible. No RestrictSUIDSGID= either: images have such files. No RestrictRealtime=:
# it refuses SCHED_RESET_ON_FORK too, by which a start that containers wait for goes first. What is left:
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
KeyringMode=private
CapabilityBoundingSet=~CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_BLOCK_SUSPEND CAP_BPF CAP_NET_ADMIN
CapabilityBoundingSet=~CAP_NET_BROADCAST CAP_NET_RAW CAP_PERFMON CAP_SYS_BOOT CAP_SYS_MODULE
CapabilityBoundingSet=~CAP_SYS_PACCT CAP_SYS_RAWIO CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_SYSLOG
CapabilityBoundingSet=~CAP_WAKE_ALARM

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
    fn the_unit_leaves_the_daemon_in_the_mount_namespace_of_the_host() {
        let unit = systemd(&Config::default(), None);
        for line in unit.lines().filter(|line| !line.starts_with('#')) {
            // All that systemd.exec(5) says of file systems makes one.
            let makes_one = [
                "Private",
                "Protect",
                "ReadOnly",
                "Inaccessible",
                "Bind",
                "Root",
            ]
            .iter()
            .chain(&[
                "MountFlags",
                "MountAPIVFS",
                "TemporaryFileSystem",
                "ExecPaths",
            ])
            .any(|option| line.starts_with(option));
            assert!(!makes_one, "{line}");
        }
    }

    #[test]
    fn the_unit_lets_a_start_go_first() {
        let unit = systemd(&Config::default(), None);
        assert!(!unit.contains("\nRestrictRealtime="), "{unit}");
        assert!(!unit.contains("CAP_SYS_NICE"), "{unit}");
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
