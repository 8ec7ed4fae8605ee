//! The `lamina` command as its users meet it, as far as no mount is needed.
#![allow(clippy::unwrap_used)] // helpers of tests are not in a #[test] themselves

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Output};

fn lamina<S: AsRef<OsStr>>(args: &[S]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina"));
    for name in [
        "ROOT",
        "ADDRESS",
        "CONFIG",
        "THREADS",
        "PASSTHROUGH",
        "INDEX",
        "LOG_LEVEL",
    ] {
        command.env_remove(format!("LAMINA_{name}"));
    }
    command.args(args).output().unwrap()
}

/// The standard output of a command that must succeed.
fn output(args: &[&str]) -> String {
    let output = lamina(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The standard error of a command that must fail, and not by a panic.
fn failure(args: &[&str]) -> String {
    let output = lamina(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{args:?}: {text}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    text
}

#[test]
fn every_command_has_help_with_examples() {
    for command in [
        &[][..],
        &["serve"],
        &["mount"],
        &["status"],
        &["check"],
        &["bench"],
        &["hold"],
        &["upgrade"],
        &["config"],
        &["config", "default"],
        &["config", "containerd"],
        &["config", "systemd"],
        &["completions"],
    ] {
        let text = output(&[command, &["--help"]].concat());
        assert!(text.contains("Example"), "{command:?}: {text}");
        assert!(text.contains("Usage: lamina"), "{command:?}: {text}");
    }
}

#[test]
fn the_version_is_told() {
    let version = format!("lamina {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(output(&["version"]), version);
    assert_eq!(output(&["--version"]), version);
    assert_eq!(output(&["mount", "-V"]), version);
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(output(&["completions", shell]).contains("mount"), "{shell}");
    }
}

#[test]
fn the_default_configuration_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, output(&["config", "default"])).unwrap();
    let text = output(&["config", "containerd", "--config", file.to_str().unwrap()]);
    assert!(
        text.contains("address = \"/run/lamina/lamina.sock\""),
        "{text}"
    );
    assert!(text.contains("root = \"/var/lib/lamina\""), "{text}");
}

#[test]
fn systemd_accepts_the_unit() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    };
    let version = String::from_utf8(version.stdout).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lamina.service");
    // It looks whether the program is there.
    let unit = output(&["config", "systemd"]);
    let unit = unit.replace("/usr/bin/lamina", env!("CARGO_BIN_EXE_lamina"));
    fs::write(&file, unit).unwrap();
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8(verified.stderr).unwrap();
    assert!(verified.status.success(), "{said}");
    let number = version
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u32>().ok());
    let is_old = number.is_some_and(|number| number < 254);
    let is_newer_key =
        |line: &str| line.contains("'RestartSteps'") || line.contains("'RestartMaxDelaySec'");
    let bad: Vec<_> = said
        .lines()
        .filter(|line| line.contains("lamina.service") && !(is_old && is_newer_key(line)))
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn flags_override_the_environment_and_that_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, "root = \"/file\"\naddress = \"/file.sock\"").unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_lamina"))
            .args(["config", "containerd"])
            .args(args)
            .env("LAMINA_CONFIG", &file)
            .env("LAMINA_ROOT", "/env")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&[]);
    assert!(text.contains("root = \"/env\"") && text.contains("address = \"/file.sock\""));
    assert!(run(&["--root", "/flag"]).contains("root = \"/flag\""));
}

#[test]
fn a_bad_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let path = file.to_str().unwrap();
    for (text, wanted) in [
        (
            "adress = \"/x\"",
            "unknown key `adress` (did you mean `address`?)",
        ),
        ("threads = 0", "`threads` must be between 1 and 64, not 0"),
        ("threads = true", "threads = true"),
    ] {
        fs::write(&file, text).unwrap();
        let error = failure(&["serve", "--config", path]);
        assert!(error.starts_with(&format!("lamina: {path}: ")), "{error}");
        assert!(error.contains(wanted), "{error}");
    }
    let error = failure(&["serve", "--config", "/nonexistent/lamina.toml"]);
    assert!(error.contains("/nonexistent/lamina.toml"), "{error}");
    let error = failure(&["serve", "--threads", "99"]);
    assert!(
        error.contains("command line or environment: `threads`"),
        "{error}"
    );
}

#[test]
fn check_says_where_it_looked() {
    let error = failure(&["check", "--root", "/nonexistent/lamina"]);
    assert_eq!(
        error,
        "lamina: there is no Lamina root at /nonexistent/lamina\n"
    );
}

#[test]
fn check_says_which_entry_of_an_upper_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for name in ["top", "base", "upper/dir", "work"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    let (upper, work) = (path("upper"), path("work"));
    let lower = format!("{}:{}", path("top"), path("base"));
    let args = [
        "check", "--upper", &upper, "--work", &work, "--lower", &lower,
    ];
    assert_eq!(output(&args), format!("no problems in {upper}\n"));

    fs::write(path("upper/.wh.x"), "").unwrap();
    let notes = output(&args);
    assert!(
        notes.starts_with(&format!("note: {upper}/.wh.x: ")),
        "{notes}"
    );
    assert!(
        notes.ends_with(&format!("no problems in {upper}\n")),
        "{notes}"
    );

    let (redirect, flags) = ("trusted.overlay.redirect", rustix::fs::XattrFlags::empty());
    rustix::fs::lsetxattr(path("upper/dir"), redirect, b"/gone", flags).unwrap();
    let found = lamina(&args);
    assert_eq!(found.status.code(), Some(1));
    let text = String::from_utf8(found.stdout).unwrap();
    assert!(
        text.contains(&format!("{upper}/dir: its redirect leads to /gone")),
        "{text}"
    );
    assert!(!text.contains("no problems"), "{text}");

    let error = failure(&["check", "--upper", &upper, "--lower", "/nonexistent"]);
    assert!(
        error.contains("cannot open the layer /nonexistent"),
        "{error}"
    );
    failure(&["check", "--lower", &lower]);
}

#[test]
fn mount_warns_about_options_and_fails_for_directories() {
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = dir.path().to_str().unwrap();
    let options = "lowerdir=/nonexistent/layer,uidmapping=0:1:2,flux";
    let error = failure(&["mount", "-o", options, mountpoint]);
    assert_eq!(
        error,
        "lamina mount: warning: option `uidmapping` is not supported yet, and ignored\n\
         lamina mount: warning: option `flux` is unknown, and ignored\n\
         lamina: lowerdir /nonexistent/layer: No such file or directory (os error 2)\n"
    );
}

#[test]
fn mount_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for name in ["a", "u", "u/inside", "w", "m"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("file"), "").unwrap();
    let inside = path("u/inside");
    let (a, u, m, file) = (path("a"), path("u"), path("m"), path("file"));
    let elsewhere = "/proc";
    for (options, mountpoint, wanted) in [
        (String::new(), &m, "no layers"),
        (
            format!("lowerdir={a},upperdir={u}"),
            &m,
            "upperdir needs a workdir",
        ),
        (
            format!("lowerdir={a},upperdir={u},workdir={u}"),
            &m,
            "itself",
        ),
        (
            format!("lowerdir={a},upperdir={u},workdir={elsewhere}"),
            &m,
            "is not on the file system of upperdir",
        ),
        (
            format!("lowerdir={a},upperdir={u},workdir={inside}"),
            &m,
            "inside the upper",
        ),
        (
            format!("lowerdir={a},upperdir={inside},workdir={u}"),
            &m,
            "inside its work directory",
        ),
        (format!("lowerdir={file}"), &m, "not a directory"),
        (format!("lowerdir={a}"), &file, "not a directory"),
        (format!("lowerdir={a}"), &path("none"), "mount point"),
    ] {
        let error = failure(&["mount", "-o", &options, mountpoint]);
        assert!(error.contains(wanted), "{options}: {error}");
    }
}

#[test]
fn systemd_is_told_that_the_daemon_is_ready_and_alive() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let systemd = std::os::unix::net::UnixDatagram::bind(path("notify")).unwrap();
    let patience = std::time::Duration::from_secs(20);
    systemd.set_read_timeout(Some(patience)).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args(["serve", "--holder", "none", "--root"])
        .arg(path("root"))
        .arg("--address")
        .arg(path("lamina.sock"))
        .env("NOTIFY_SOCKET", path("notify"))
        .env("WATCHDOG_USEC", "200000")
        .env_remove("WATCHDOG_PID")
        .spawn()
        .unwrap();
    let mut wanted = vec!["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"];
    while !wanted.is_empty() {
        let mut text = [0; 512];
        let length = match systemd.recv(&mut text) {
            // With a time limit it is not taken up again after a stop of the machine (signal(7)).
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            told => told.expect("told in time"),
        };
        let text = String::from_utf8_lossy(&text[..length]);
        if let Some(place) = wanted
            .iter()
            .position(|word| text.lines().any(|line| line == *word))
        {
            wanted.remove(place);
        }
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn an_open_umask_opens_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::TempDir::new().expect("tempdir");
    let path = |name: &str| dir.path().join(name);
    let mut daemon = Command::new("sh")
        .args([
            "-c",
            "umask 000; exec \"$0\" serve --root \"$1\" --address \"$2\"",
        ])
        .arg(env!("CARGO_BIN_EXE_lamina"))
        .args([path("root"), path("run/lamina.sock")])
        .spawn()
        .expect("spawn");
    for _ in 0..500 {
        if path("run/lamina.sock").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for (name, wanted) in [
        ("root", 0o700),
        ("root/snapshots", 0o700),
        ("root/mounts", 0o700),
        ("root/lock", 0o600),
        ("root/metadata.redb", 0o600),
        ("run", 0o711),
        ("run/lamina.sock", 0o600),
    ] {
        let mode = fs::symlink_metadata(path(name)).map(|meta| meta.permissions().mode());
        assert_eq!(mode.expect(name) & 0o7777, wanted, "{name}");
    }
    daemon.kill().expect("kill");
    daemon.wait().expect("wait");
}
