//! The disk below the root is full.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lamina_proto::tonic::Code;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::disk::FileSystem;
use super::harness::{Api, Scratch, wait_for};
use super::stage::{Bound, CLOSE_LIMIT, Stage, box_with_two_files, fails, refused};

/// More than small files and a snapshot need, in bytes.
const ROOM: u64 = 1 << 20;

#[test]
fn a_daemon_that_dies_on_a_full_disk_starts_on_it_and_all_is_there() -> Result<()> {
    for kind in [FileSystem::Ext4, FileSystem::Xfs] {
        let scratch = Scratch::new()?;
        let stage = Stage::new(kind, scratch.path())?;
        full(stage, &scratch).with_context(|| format!("on {kind:?}"))?;
    }
    Ok(())
}

fn full(mut stage: Stage, scratch: &Scratch) -> Result<()> {
    let mut api = stage.api()?;
    let root = box_with_two_files(&mut api)?;
    let bound = Bound::new(&root, scratch.join("box"))?;
    let root = bound.path();
    let filler = fill(root)?;
    for _ in 0..2 {
        let mut api = stage.api()?;
        see_it_full(&mut api, root)?;
        drop(api);
        stage.daemon.kill();
        stage.daemon.start_again()?;
        let log = stage.log()?;
        ensure!(!log.contains(" ERROR "), "{log}");
        // What the kill has freed.
        fill(root)?;
    }
    fs::remove_file(filler)?;
    wait_for("the kernel tells of the close", CLOSE_LIMIT, || {
        statvfs(stage.daemon.root()).is_ok_and(|disk| disk.f_bavail * disk.f_frsize > ROOM)
    })?;
    fs::write(root.join("new"), "new")?;
    fs::write(root.join("file"), "changed")?;
    let mut api = stage.api()?;
    api.prepare("later", "image")?;
    let expected = ["box", "image", "later"];
    ensure!(api.list()?.keys().eq(expected), "{:?}", api.list()?);
    drop((bound, api));
    stage.stop_and_check()
}

/// Whoever wants room is refused, and everything else goes on.
fn see_it_full(api: &mut Api, root: &Path) -> Result<()> {
    fails(fs::write(root.join("new"), vec![1; 1 << 20]), Errno::NOSPC)?;
    ensure!(fs::read(root.join("kept"))? == b"kept");
    ensure!(fs::read(root.join("file"))? == b"of the image");
    ensure!(fs::read(root.join("other"))? == b"the other");
    // A directory may still find room where data do not; whatever is answered is true.
    let code = Code::ResourceExhausted;
    let mut made = 0;
    let answer = loop {
        match api.prepare(&format!("more{made}"), "image") {
            Ok(()) => made += 1,
            refusal => break refusal,
        }
        ensure!(made < 1000, "the disk is not full");
    };
    refused(answer, code, &["No space left on device"])?;
    let all = api.list()?;
    ensure!(all.len() == 2 + made, "{made} were made: {all:?}");
    for number in 0..made {
        api.remove(&format!("more{number}"))?;
    }
    ensure!(api.list()?.keys().eq(["box", "image"]), "{:?}", api.list()?);
    Ok(())
}

/// Takes every block that is left.
fn fill(root: &Path) -> Result<PathBuf> {
    let path = root.join("filler");
    let file = File::options().create(true).append(true).open(&path)?;
    for block in [64 << 20, 1 << 20, 4096] {
        let refusal = loop {
            let length = file.metadata()?.len();
            if let Err(errno) = fallocate(&file, FallocateFlags::empty(), length, block) {
                break errno;
            }
        };
        ensure!(refusal == Errno::NOSPC, "{refusal}");
    }
    Ok(path)
}
