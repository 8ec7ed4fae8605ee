//! Very many open files, and very few that are allowed.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lamina_proto::tonic::Code;
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::harness::{Api, Daemon, Scratch, Usage, binary, wait_for};
use super::stage::{Bound, CLOSE_LIMIT, container, image, image_of_names, refused};

/// How many files are open at once: half of them the image's, half of them new.
const FILES: usize = 10_000;
/// Every so manyth new one has no name.
const UNLINKED: usize = 5;
/// What a small daemon may have open.
const FEW: usize = 256;
/// How many files are closed to make room.
const CLOSED: usize = 20;

#[test]
fn ten_thousand_open_files_of_one_mount_outlive_the_daemon() -> Result<()> {
    let limit = getrlimit(Resource::Nofile).maximum;
    // The daemon has one for each, and one more for each that has no name.
    let enough = (FILES + FILES / 2) as u64;
    ensure!(
        limit.is_none_or(|limit| limit > enough),
        "the hard limit of open files is {limit:?}: {enough} are needed"
    );
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )?;
    let scratch = Scratch::new()?;
    let mut daemon = Daemon::start(scratch.path(), UpperMode::Union, "")?;
    let mut api = Api::connect(&daemon.socket(), "lamina", &[])?;
    let names: Vec<String> = (0..FILES / 2)
        .map(|number| format!("d{}/{number}", number % 50))
        .collect();
    image_of_names(&mut api, "image", &names)?;
    let bound = Bound::new(&container(&mut api, "box", "image")?, scratch.join("box"))?;
    drop(api);
    let root = bound.path();
    let image = names
        .iter()
        .map(|name| Ok(File::open(root.join(name))?))
        .collect::<Result<Vec<File>>>()?;
    let new = |name: &String| -> Result<File> {
        let path = root.join(format!("{name}-new"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.write_all_at(name.as_bytes(), 0)?;
        Ok(file)
    };
    let new = names.iter().map(new).collect::<Result<Vec<File>>>()?;
    for name in names.iter().step_by(UNLINKED) {
        fs::remove_file(root.join(format!("{name}-new")))?;
    }
    // All are right, and each can be written once more.
    let look = |byte: u8| -> Result<()> {
        for ((name, image), new) in names.iter().zip(&image).zip(&new) {
            ensure!(read(image)? == name.as_bytes(), "{name}");
            let mut expected = name.clone().into_bytes();
            let last = expected.len();
            new.write_all_at(&[byte], last as u64)?;
            expected.push(byte);
            ensure!(read(new)? == expected, "{name}");
        }
        Ok(())
    };
    look(b'1')?;
    daemon.kill();
    daemon.start_again()?;
    look(b'2').context("after the first kill")?;
    daemon.kill();
    daemon.start_again()?;
    look(b'3').context("after the second kill")?;
    for (number, (name, file)) in names.iter().zip(&new).enumerate() {
        let links = u64::from(number % UNLINKED != 0);
        let stat = rustix::fs::fstat(file)?;
        ensure!(stat.st_nlink == links, "{name}: {} links", stat.st_nlink);
    }
    drop((image, new, bound));
    let log = fs::read_to_string(daemon.log())?;
    ensure!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    daemon.stop()?;
    daemon.check()
}

#[test]
fn who_opens_too_many_files_is_refused_and_nobody_else_notices() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut daemon = few(scratch.path())?;
    let mut api = Api::connect(&daemon.socket(), "lamina", &[])?;
    let names: Vec<String> = (0..2 * FEW).map(|number| number.to_string()).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .collect();
    image(&mut api, "image", "", &files)?;
    let greedy = container(&mut api, "greedy", "image")?;
    let modest = container(&mut api, "modest", "image")?;
    let mut open = Vec::new();
    let refusal = loop {
        let number = open.len();
        ensure!(number < FEW, "{number} files are open");
        let file = if number % 2 == 0 {
            File::open(greedy.join(&names[number]))
        } else {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(greedy.join(format!("new{number}")))
        };
        match file {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
    };
    let errno = Errno::from_io_error(&refusal);
    ensure!(errno == Some(Errno::MFILE), "{refusal}");
    ensure!(open.len() > FEW / 2, "{} files", open.len());
    // Not made, and then not opened.
    let refused_new = File::create(greedy.join("refused"))
        .err()
        .and_then(|error| Errno::from_io_error(&error));
    ensure!(refused_new == Some(Errno::MFILE), "{refused_new:?}");
    ensure!(!greedy.join("refused").exists());
    for name in &names {
        ensure!(fs::symlink_metadata(modest.join(name))?.is_file());
    }
    fs::create_dir(modest.join("dir"))?;
    fs::rename(modest.join("1"), modest.join("dir/1"))?;
    ensure!(fs::read_dir(&modest)?.count() == names.len());
    api.list()?;
    ensure!(api.mounts("modest").is_ok());
    let more = &["too many files are open"];
    refused(api.prepare("other", "image"), Code::ResourceExhausted, more)?;
    ensure!(Api::connect(&daemon.socket(), "lamina", &[])?.list()?.len() == 3);
    for (number, file) in open.iter().enumerate().step_by(2) {
        ensure!(read(file)? == names[number].as_bytes());
    }
    // There is room again, a little at a time.
    let lamina = daemon.pid()?;
    let before = Usage::of(lamina)?.descriptors;
    open.truncate(open.len() - CLOSED);
    wait_for("the kernel tells of the closes", CLOSE_LIMIT, || {
        Usage::of(lamina).is_ok_and(|now| now.descriptors + CLOSED <= before)
    })?;
    ensure!(fs::read(modest.join("2"))? == b"2");
    fs::write(modest.join("3"), "changed")?;
    api.prepare("other", "image")?;
    drop((open, api));
    daemon.stop()?;
    daemon.check()
}

/// A daemon that may have few files open.
fn few(dir: &Path) -> Result<Daemon> {
    let script = dir.join("few");
    let lamina = binary()?;
    let text = format!(
        "#!/bin/sh\nulimit -n {FEW}\nexec {} \"$@\"\n",
        lamina.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    Daemon::start_with(&script, dir, UpperMode::Union, "")
}

fn read(file: &File) -> Result<Vec<u8>> {
    let mut bytes = [0; 64];
    let count = file.read_at(&mut bytes, 0)?;
    Ok(bytes[..count].to_vec())
}
