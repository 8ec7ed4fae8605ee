//! What is data, whatever it looks like, and what is nobody's business.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::alone;
use super::layers::{Tar, estargz};
use super::opt;
use super::scene::Scene;

/// What a layer says to those who serve it: CVE-2023-2640 and CVE-2023-0386 (overlayfs's own xattrs,
/// capabilities and setuid files from a layer), devices, and names that others stumble over.
#[test]
fn marks_devices_and_odd_names_of_a_layer_are_data() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let capability = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    let marks: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.user.containers.override_stat", b"0:0:4777"),
        ("SCHILY.xattr.user.fuseoverlayfs.opaque", b"y"),
        ("SCHILY.xattr.security.capability", &capability),
    ];
    let image = scene.expect_served(&[Tar::default()
        .pax(&marks[..5])
        .dir("etc/")
        .pax(&marks)
        .file("etc/marked", b"own bytes")
        .dir("opt/")
        .mode("opt/set-id", 0o6755, b"")
        .device("opt/null", b'3', (1, 3))
        .device("opt/disk", b'4', (8, 0))
        .device("etc/hidden", b'3', (0, 0))
        .file(b"opt/new\nline", b"")
        .file(b"opt/no-\xff\xfe-text", b"")
        .file("opt/-rf *;$(id)", b"")
        .dir(&"d/".repeat(45))
        .gzip()])?;
    scene.view(&image, |root| {
        // Neither opaque nor moved: what is below is still there, but for what a device 0:0 hides.
        ensure!(fs::read(root.join("etc/seen"))? == b"below");
        ensure!(
            !root.join("etc/hidden").exists(),
            "a device 0:0 is a whiteout"
        );
        ensure!(fs::read(root.join("etc/marked"))? == b"own bytes");
        for path in ["etc", "etc/marked"] {
            let names = xattrs(&root.join(path))?;
            ensure!(
                !names
                    .iter()
                    .any(|name| name.starts_with("trusted.overlay.")),
                "{names:?}"
            );
        }
        ensure!(xattrs(&root.join("etc/marked"))?.contains("security.capability"));
        let meta = |name: &str| fs::symlink_metadata(root.join(name));
        ensure!(meta("etc/marked")?.mode() & 0o7777 == 0o644);
        ensure!(meta("opt/set-id")?.mode() & 0o7777 == 0o6755);
        ensure!(meta("opt/null")?.rdev() == rustix::fs::makedev(1, 3));
        let names = fs::read_dir(root.join("opt"))?;
        let names: BTreeSet<_> = names.flatten().map(|entry| entry.file_name()).collect();
        for name in [&b"new\nline"[..], b"no-\xff\xfe-text", b"-rf *;$(id)"] {
            ensure!(names.contains(&OsString::from_vec(name.to_vec())));
        }
        ensure!(root.join("d/".repeat(45)).is_dir());
        Ok(())
    })?;
    // Devices of a layer are not the container's to use, and nobody else can reach the mounts.
    let seen = scene.run(&image, "cat /opt/disk 2>&1 || true")?;
    ensure!(seen.contains("not permitted"), "{seen:?}");
    let root = fs::metadata(scene.host.snapshotter_root())?;
    ensure!(matches!(root.mode() & 0o777, 0o700 | 0o711));

    let value = vec![b'x'; 70_000];
    let huge = opt(|tar| {
        tar.pax(&[("SCHILY.xattr.user.a", &value)])
            .file("opt/f", b"")
    });
    scene.expect_refused(&[huge], "lazy.limits.xattr_bytes")?;
    let deep = "d/".repeat(1100);
    let deep = opt(|tar| tar.pax(&[("path", deep.as_bytes())]).dir("d"));
    scene.expect_refused(&[deep], "lazy.limits.depth")?;
    let long = "n".repeat(300);
    let long = opt(|tar| tar.pax(&[("path", long.as_bytes())]).dir("d"));
    scene.expect_refused(&[long], "lazy.limits.name_bytes")?;

    let many = estargz(&[], |entries| {
        let name = |number| json!({"type": "reg", "name": format!("opt/{number}"), "mode": 0o644});
        entries.extend((0..100_000).map(name));
    });
    let image = scene.expect_served(&[many])?;
    scene.view(&image, |root| {
        ensure!(fs::read_dir(root.join("opt"))?.count() == 100_000);
        Ok(())
    })?;
    scene.host.stop()
}

/// Logins are neither logged nor written down: those of docker's `config.json`, of `hosts.toml`, and
/// of URLs in it.
#[test]
fn no_login_is_logged_or_kept() -> Result<()> {
    const SECRET: &str = "hunter2";
    let _turn = alone();
    let dir = tempfile::tempdir()?;
    let config = format!(
        "[lazy]\nfill = false\nhosts = {:?}\ndocker_config = {:?}\n[log]\nlevel = \"debug\"\n",
        dir.path().join("hosts"),
        dir.path().join("config.json")
    );
    let Some(scene) = Scene::start_configured(&config)? else {
        return Ok(());
    };
    let registry = scene.registry.address();
    let hosts = dir.path().join("hosts").join(&registry);
    fs::create_dir_all(&hosts)?;
    let mirror = format!("http://me:{SECRET}@127.0.0.1:1");
    let text = format!(
        "[host.\"{mirror}\"]\n[host.\"{mirror}\".header]\nauthorization = \"Basic {SECRET}\"\n"
    );
    fs::write(hosts.join("hosts.toml"), text)?;
    let auths = json!({"auths": {registry: {"username": "me", "password": SECRET}}});
    fs::write(dir.path().join("config.json"), auths.to_string())?;
    let image = scene.expect_served(&[estargz(&[("opt/f", b"right")], |_| ())])?;
    ensure!(scene.run(&image, "cat /opt/f")? == "right");
    let log = scene.log()?;
    ensure!(log.contains("a mirror has not answered"), "{log}");
    ensure!(!log.contains(SECRET), "{log}");
    let mut rest = vec![scene.host.snapshotter_root()];
    while let Some(path) = rest.pop() {
        // The daemon goes on meanwhile.
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_dir() {
            for entry in fs::read_dir(&path).into_iter().flatten() {
                rest.push(entry?.path());
            }
        } else if meta.is_file() {
            let bytes = fs::read(&path)?;
            let held = bytes
                .windows(SECRET.len())
                .any(|some| some == SECRET.as_bytes());
            ensure!(!held, "{} holds it", path.display());
        }
    }
    scene.host.stop()
}

/// The names of a file's xattrs.
fn xattrs(path: &Path) -> Result<BTreeSet<String>> {
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut buffer[..])?;
    let names = buffer[..length].split(|byte| *byte == 0);
    let names = names.filter(|name| !name.is_empty());
    Ok(names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect())
}
