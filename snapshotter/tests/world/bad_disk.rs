//! The disk below the root fails.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lamina_proto::tonic::Code;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use super::disk::{BAD, Faults, FileSystem};
use super::harness::Scratch;
use super::stage::{Stage, container, fails, image, refused, root_of};

/// The last words of a message about a broken disk.
const BROKEN: &str = "may have to be unmounted and mounted anew";

#[test]
fn who_writes_to_a_bad_sector_sees_it_and_nobody_else() -> Result<()> {
    each_file_system(|kind, scratch| {
        // Every fsync of a btrfs with `notreelog` is one of everything.
        if kind == FileSystem::Btrfs {
            return Ok(());
        }
        let mut stage = Stage::new(kind, scratch.path())?;
        let mut api = stage.api()?;
        image(&mut api, "image", "", &[("file", b"of the image")])?;
        let sick = container(&mut api, "sick", "image")?;
        let well = container(&mut api, "well", "image")?;
        stage.fail(Faults::BadBlocks);
        let file = File::create(sick.join("new"))?;
        file.write_all_at(BAD, 0)?;
        fails(file.sync_all(), Errno::IO)?;
        durable(&well.join("file"), b"changed")?;
        let logged = r#"answered with EIO operation="FSYNC""#;
        ensure!(stage.log()?.contains(logged), "{}", stage.log()?);
        // What is lost can't become a layer, and the container goes on. So it is with those beside it that
        // may have been meant, and when the disk is well again.
        refused(api.commit("layer", "sick"), Code::Internal, &[BROKEN])?;
        stage.fail(Faults::None);
        let lost = &["what was written to it may be lost"];
        refused(api.commit("layer", "sick"), Code::DataLoss, lost)?;
        refused(api.commit("layer", "well"), Code::DataLoss, lost)?;
        ensure!(fs::read(sick.join("file"))? == b"of the image");
        durable(&sick.join("new"), b"written again")?;
        // Whatever is made from now on is whole.
        image(&mut api, "next", "image", &[])?;
        drop((file, api));
        stage.stop_and_check()?;
        let stage = stage.again()?;
        let mut api = stage.api()?;
        ensure!(fs::read(root_of(&mut api, "sick")?.join("new"))? == b"written again");
        ensure!(fs::read(root_of(&mut api, "well")?.join("file"))? == b"changed");
        ensure!(api.list()?.len() == 4, "{:?}", api.list()?);
        Ok(())
    })
}

#[test]
fn what_nobody_but_the_kernel_saw_fail_is_not_committed() -> Result<()> {
    each_file_system(|kind, scratch| {
        let stage = Stage::new(kind, scratch.path())?;
        let mut api = stage.api()?;
        api.prepare("extract-1 layer", "")?;
        let place = root_of(&mut api, "extract-1 layer")?;
        stage.fail(Faults::BadBlocks);
        fs::write(place.join("new"), BAD)?;
        // As the kernel does after some seconds; and somebody asks how it went.
        fails(sync(&place), Errno::IO)?;
        stage.fail(Faults::None);
        sync(&place)?;
        let committed = api.commit("layer", "extract-1 layer");
        refused(committed, Code::Internal, &[BROKEN])?;
        Ok(())
    })
}

#[test]
fn a_transaction_that_the_disk_does_not_take_has_not_happened() -> Result<()> {
    each_file_system(|kind, scratch| {
        let mut stage = Stage::new(kind, scratch.path())?;
        let mut api = stage.api()?;
        image(&mut api, "image", "", &[("file", b"of the image")])?;
        // Keys lie in the store as they are.
        let key = String::from_utf8_lossy(BAD);
        for _ in 0..2 {
            stage.fail(Faults::BadBlocks);
            refused(
                api.prepare(&key, "image"),
                Code::Internal,
                &["metadata.redb"],
            )?;
            stage.fail(Faults::None);
            ensure!(api.list()?.len() == 1, "{:?}", api.list()?);
        }
        api.prepare("box", "image")?;
        drop(api);
        stage.daemon.kill();
        let mut stage = stage.again()?;
        let mut api = stage.api()?;
        ensure!(api.list()?.keys().eq(["box", "image"]), "{:?}", api.list()?);
        drop(api);
        stage.stop_and_check()?;
        Ok(())
    })
}

#[test]
fn who_reads_a_bad_sector_sees_it_until_it_is_well_again() -> Result<()> {
    each_file_system(|kind, scratch| {
        let mut stage = Stage::new(kind, scratch.path())?;
        let mut api = stage.api()?;
        // A small one would lie among btrfs's metadata.
        let bad = [BAD, &[0; 10_000]].concat();
        let files: [(&str, &[u8]); 2] = [("bad/file", &bad), ("good", b"of the image")];
        image(&mut api, "image", "", &files)?;
        let layer = stage.daemon.root().join("snapshots/1/fs/bad/file");
        let root = container(&mut api, "box", "image")?;
        stage.fail(Faults::BadBlocks);
        let file = File::open(layer)?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        for _ in 0..2 {
            fails(fs::read(root.join("bad/file")), Errno::IO)?;
            if kind == FileSystem::Ext4 {
                // A copy is whole or is not made. The others share the blocks, and read nothing.
                let append = OpenOptions::new().append(true).open(root.join("bad/file"));
                fails(append, Errno::IO)?;
            }
            ensure!(fs::read(root.join("good"))? == b"of the image");
        }
        let other = container(&mut api, "other", "image")?;
        ensure!(fs::read(other.join("good"))? == b"of the image");
        stage.fail(Faults::None);
        ensure!(fs::read(root.join("bad/file"))? == bad);
        let mut append = OpenOptions::new()
            .append(true)
            .open(root.join("bad/file"))?;
        append.write_all(b"!")?;
        ensure!(fs::read(root.join("bad/file"))? == [&bad[..], b"!"].concat());
        ensure!(fs::read(other.join("bad/file"))? == bad);
        drop((append, api));
        stage.stop_and_check()
    })
}

#[test]
fn a_disk_that_takes_nothing_costs_what_is_new_and_nothing_else() -> Result<()> {
    each_file_system(|kind, scratch| {
        let stage = Stage::new(kind, scratch.path())?;
        let mut api = stage.api()?;
        image(&mut api, "image", "", &[("file", b"of the image")])?;
        let root = container(&mut api, "box", "image")?;
        durable(&root.join("kept"), b"kept")?;
        stage.fail(Faults::Writes);
        fails(durable(&root.join("lost"), b"lost"), Errno::IO)?;
        ensure!(api.commit("layer", "box").is_err(), "it was done");
        let refusal = api.prepare("other", "image");
        let read_only =
            (refusal.as_ref()).is_err_and(|status| status.code() == Code::FailedPrecondition);
        // It becomes read-only by itself, if not at once.
        if kind == FileSystem::Ext4 && read_only {
            refused(refusal, Code::FailedPrecondition, &["remount it"])?;
        } else {
            refused(refusal, Code::Internal, &[BROKEN])?;
        }
        ensure!(api.list()?.len() == 2, "{:?}", api.list()?);
        // The container has its mount still; the others read nothing any more.
        ensure!(root_of(&mut api, "box")? == root);
        if kind == FileSystem::Ext4 {
            ensure!(fs::read(root.join("kept"))? == b"kept");
            ensure!(fs::read(root.join("file"))? == b"of the image");
        }
        ensure!(api.remove("box").is_err(), "it was done");
        // A file system that has given up stays so until it is mounted anew.
        stage.fail(Faults::None);
        ensure!(api.prepare("other", "image").is_err(), "it was done");
        drop(api);
        let mut stage = stage.again()?;
        let mut api = stage.api()?;
        ensure!(api.list()?.keys().eq(["box", "image"]), "{:?}", api.list()?);
        let root = root_of(&mut api, "box")?;
        ensure!(fs::read(root.join("kept"))? == b"kept");
        ensure!(fs::read(root.join("file"))? == b"of the image");
        api.commit("layer", "box")?;
        drop(api);
        stage.stop_and_check()
    })
}

/// On each of them.
fn each_file_system(test: impl Fn(FileSystem, &Scratch) -> Result<()>) -> Result<()> {
    for kind in FileSystem::ALL {
        let scratch = Scratch::new()?;
        test(kind, &scratch).with_context(|| format!("on {kind:?}"))?;
    }
    Ok(())
}

/// Writes a file, and has it on the disk.
fn durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    File::open(path)?.sync_all()
}

/// Has everything on the disk, by a descriptor that nobody had before.
fn sync(dir: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}
