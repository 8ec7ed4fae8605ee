//! The root's file system becomes read-only, and writable again.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use lamina_proto::tonic::Code;
use rustix::io::Errno;

use super::disk::FileSystem;
use super::harness::{Scratch, run};
use super::stage::{Bound, Stage, box_with_two_files, container, fails, image, refused, root_of};

/// What every message of it says.
const ADVICE: &str = "remount it";

#[test]
fn a_root_that_turns_read_only_costs_what_is_new_and_nothing_else() -> Result<()> {
    let scratch = Scratch::new()?;
    // Others can't become read-only while a daemon has files open for writing.
    let mut stage = Stage::new(FileSystem::Btrfs, scratch.path())?;
    let mut api = stage.api()?;
    image(&mut api, "image", "", &[("file", b"of the image")])?;
    let root = container(&mut api, "box", "image")?;
    fs::write(root.join("kept"), "kept")?;
    set_read_only(&stage.daemon.root(), true)?;
    let (kept, file) = (root.join("kept"), root.join("file"));
    for _ in 0..2 {
        fails(fs::write(root.join("new"), ""), Errno::ROFS)?;
        fails(fs::write(&file, "changed"), Errno::ROFS)?;
        fails(fs::create_dir(root.join("dir")), Errno::ROFS)?;
        fails(fs::remove_file(&kept), Errno::ROFS)?;
        fails(fs::rename(&kept, root.join("moved")), Errno::ROFS)?;
        ensure!(fs::read(&kept)? == b"kept");
        ensure!(fs::read(&file)? == b"of the image");
        let code = Code::FailedPrecondition;
        refused(
            api.prepare("other", "image"),
            code,
            &["cannot create", ADVICE],
        )?;
        refused(api.view("other", "image"), code, &["cannot create", ADVICE])?;
        refused(api.commit("layer", "box"), code, &["cannot create", ADVICE])?;
        ensure!(root_of(&mut api, "box")? == root);
        ensure!(api.list()?.keys().eq(["box", "image"]), "{:?}", api.list()?);
    }
    set_read_only(&stage.daemon.root(), false)?;
    fs::write(root.join("new"), "new")?;
    fs::write(&file, "changed")?;
    fs::remove_file(&kept)?;
    let other = container(&mut api, "other", "image")?;
    ensure!(fs::read(other.join("file"))? == b"of the image");
    api.commit("layer", "box")?;
    let above = container(&mut api, "above", "layer")?;
    ensure!(fs::read(above.join("file"))? == b"changed");
    ensure!(!above.join("kept").exists());
    drop(api);
    stage.stop_and_check()
}

#[test]
fn a_daemon_on_a_read_only_root_says_so_and_containers_wait_for_the_next() -> Result<()> {
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let scratch = Scratch::new()?;
        let mut stage = Stage::new(kind, scratch.path())?;
        let mut api = stage.api()?;
        let root = box_with_two_files(&mut api)?;
        drop(api);
        let at = stage.daemon.root().display().to_string();
        let remount = |how: &str| run("mount", &["-o", &format!("remount,{how}"), &at]);
        ensure!(remount("ro").is_err(), "under a daemon that runs");
        // As containerd does; for its sake the mount is left.
        let bound = Bound::new(&root, scratch.join("box"))?;
        stage.daemon.stop()?;
        remount("ro")?;
        let other = bound.path().join("other");
        let waiting = thread::spawn(move || fs::read(other));
        for _ in 0..2 {
            let error = stage.daemon.start_again().err().context("it runs")?;
            let said = format!("{error:#}");
            ensure!(
                said.contains(ADVICE) && said.contains("ended with"),
                "{said}"
            );
            ensure!(!waiting.is_finished(), "{:?}", waiting.join());
        }
        remount("rw")?;
        stage.daemon.start_again()?;
        let read = waiting.join();
        let read = read.map_err(|_| anyhow!("the reader panicked"))?;
        ensure!(read? == b"the other");
        ensure!(fs::read(root.join("kept"))? == b"kept");
        fs::write(root.join("file"), "changed")?;
        drop(bound);
        let mut api = stage.api()?;
        api.commit("layer", "box")?;
        drop(api);
        stage.stop_and_check()?;
    }
    Ok(())
}

/// Makes a btrfs read-only for whoever opens something, as a remount would.
fn set_read_only(root: &Path, is: bool) -> Result<()> {
    let (root, is) = (root.to_str().context("UTF-8")?, is.to_string());
    run(
        "btrfs",
        &["property", "set", "-t", "subvol", root, "ro", &is],
    )
    .map(drop)
}
