//! Somebody deletes a layer under containers that use it.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use anyhow::{Result, ensure};
use lamina_snapshotter::check::{Finding, check};
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::io::Errno;

use super::harness::{Api, Daemon, Scratch};
use super::stage::{Bound, container, fails, image, root_of};

#[test]
fn a_deleted_layer_costs_its_own_files_alone() -> Result<()> {
    // Images are known from their indexes, and without any.
    for config in ["", "index = false\n"] {
        let scratch = Scratch::new()?;
        let mut daemon = Daemon::start(scratch.path(), UpperMode::Union, config)?;
        let mut api = Api::connect(&daemon.socket(), "lamina", &[])?;
        let lower: [(&str, &[u8]); 3] = [
            ("both", b"lower"),
            ("lower", b"lower"),
            ("d/both", b"lower"),
        ];
        image(&mut api, "lower", "", &lower)?;
        let upper: [(&str, &[u8]); 4] = [
            ("both", b"upper"),
            ("d/both", b"upper"),
            ("d/open", b"upper"),
            ("d/copied", b"upper"),
        ];
        image(&mut api, "upper", "lower", &upper)?;
        let root = container(&mut api, "box", "upper")?;
        let other = container(&mut api, "other", "lower")?;
        let mut open = File::open(root.join("d/open"))?;
        fs::write(root.join("d/copied"), "copied")?;
        ensure!(fs::read(root.join("both"))? == b"upper");
        let layer = daemon.root().join("snapshots/2/fs");
        fs::remove_dir_all(&layer)?;

        // Who has it open goes on, and so does what is elsewhere.
        let mut bytes = Vec::new();
        open.read_to_end(&mut bytes)?;
        ensure!(bytes == b"upper");
        ensure!(fs::read(root.join("d/copied"))? == b"copied");
        ensure!(fs::read(root.join("lower"))? == b"lower");
        ensure!(fs::read(other.join("both"))? == b"lower");
        // Their inode numbers are given out again.
        for number in 0..100 {
            let name = root.join(format!("new{number}"));
            fs::write(&name, number.to_string())?;
            ensure!(fs::read(&name)? == number.to_string().as_bytes());
        }
        // Never the bytes of the layer below.
        for name in ["both", "d/both"] {
            fails(fs::read(root.join(name)), Errno::IO)?;
            fails(fs::write(root.join(name), "changed"), Errno::IO)?;
            let log = fs::read_to_string(daemon.log())?;
            let said = format!("layer {}: {name}: it is gone", layer.display());
            ensure!(log.contains(&said), "{said} is not in {log}");
        }
        for number in 0..100 {
            let new = fs::read(root.join(format!("new{number}")))?;
            ensure!(new == number.to_string().as_bytes());
        }
        ensure!(fs::read(root.join("d/copied"))? == b"copied");
        // Nobody gets a new container of it.
        ensure!(api.prepare("new", "upper").is_err());
        drop((open, api));

        daemon.stop()?;
        let found = check(&daemon.root())?;
        let missing = Finding::MissingDirectory {
            key: "upper".to_owned(),
            path: layer,
        };
        ensure!(found.contains(&missing), "{found:?}");
        daemon.start_again()?;
        let mut api = Api::connect(&daemon.socket(), "lamina", &[])?;
        let other = root_of(&mut api, "other")?;
        ensure!(fs::read(other.join("both"))? == b"lower");
        ensure!(api.mounts("box").is_err());
        ensure!(fs::read(daemon.root().join("snapshots/3/fs/d/copied"))? == b"copied");
        // What it takes to be rid of it.
        api.remove("box")?;
        api.remove("upper")?;
        image(&mut api, "upper", "lower", &upper)?;
        let root = container(&mut api, "box", "upper")?;
        ensure!(fs::read(root.join("d/both"))? == b"upper");
        drop(api);
        daemon.stop()?;
        daemon.check()?;
    }
    Ok(())
}

#[test]
fn the_next_daemon_takes_over_what_does_not_stand_on_a_deleted_layer() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut daemon = Daemon::start(scratch.path(), UpperMode::Union, "")?;
    let mut api = Api::connect(&daemon.socket(), "lamina", &[])?;
    image(&mut api, "lost", "", &[("file", b"lost")])?;
    image(&mut api, "kept", "", &[("file", b"kept")])?;
    let lost = container(&mut api, "on lost", "lost")?;
    let kept = container(&mut api, "on kept", "kept")?;
    let lost = Bound::new(&lost, scratch.join("lost"))?;
    let kept = Bound::new(&kept, scratch.join("kept"))?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(kept.path().join("file"))?;
    file.write_all_at(b"K", 0)?;
    ensure!(fs::read(lost.path().join("file"))? == b"lost");
    drop(api);
    fs::remove_dir_all(daemon.root().join("snapshots/1/fs"))?;
    daemon.kill();
    daemon.start_again()?;
    file.write_all_at(b"E", 1)?;
    ensure!(fs::read(kept.path().join("file"))? == b"KEpt");
    fails(fs::read(lost.path().join("file")), Errno::NOTCONN)?;
    let log = fs::read_to_string(daemon.log())?;
    ensure!(log.contains("snapshots/1/fs"), "{log}");
    let mut api = Api::connect(&daemon.socket(), "lamina", &[])?;
    ensure!(api.list()?.len() == 4);
    drop((file, api));
    daemon.stop()
}
