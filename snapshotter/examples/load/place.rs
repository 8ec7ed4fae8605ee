//! Processes in a directory that is renamed and removed below them, and programs that are started
//! again and again.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::stage::{Stage, is_over, room, same};

/// By which the program is started in the image.
const SELF: &str = "/load/run";
/// How often a process looks at its directory once that is gone, with rests: some time in all.
const LOOKS: usize = 40;

/// Starts this program once more.
pub(crate) fn again(arguments: &[&Path]) -> Result<Child> {
    let mut command = Command::new(SELF);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("starting {SELF}"))
}

/// Starts a process that stays in one directory, and another when that has ended well.
pub(crate) fn run(stage: &Stage, _number: u64) -> Result<u64> {
    let dir = room("place")?;
    let mut count = 0;
    while count == 0 || !stage.is_over() {
        let child = again(&["stay".as_ref(), &dir, stage.outside_dir()])?;
        let ended = child.wait_with_output()?;
        if !ended.status.success() {
            let told = String::from_utf8_lossy(&ended.stderr).into_owned();
            bail!("{}: {}", ended.status, told.trim());
        }
        count += 1;
    }
    Ok(count)
}

/// The life of such a process.
pub(crate) fn stay(dir: &str, outside: &str) -> Result<()> {
    let (here, there) = (Path::new(dir).join("here"), Path::new(dir).join("there"));
    fs::create_dir(&here).context("mkdir")?;
    env::set_current_dir(&here).context("chdir")?;
    fs::write("file", "in it").context("writing in it")?;
    fs::rename(&here, &there).context("rename")?;
    same(
        "a file beside me",
        &fs::read_to_string("file").context("reading in it")?,
        &"in it".to_owned(),
    )?;
    fs::create_dir("below").context("mkdir in it")?;
    fs::rename("file", "below/file").context("rename in it")?;
    let moved = fs::read_to_string(there.join("below/file")).context("reading from outside")?;
    same("the same from outside", &moved, &"in it".to_owned())?;
    fs::remove_file("below/file").context("unlink in it")?;
    let handle = File::open(".").context("opening it")?;
    fs::remove_dir("below").context("rmdir in it")?;
    fs::remove_dir(&there).context("rmdir")?;
    for _ in 0..LOOKS {
        same(
            "it is a directory",
            &fs::metadata(".").context("stat of it")?.is_dir(),
            &true,
        )?;
        same(
            "so is the handle",
            &handle.metadata().context("fstat of it")?.is_dir(),
            &true,
        )?;
        let listed = fs::read_dir(".").context("listing it")?.count();
        same("names in it", &listed, &0)?;
        match File::create_new("new") {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => bail!("create in a removed directory: {other:?} and not ENOENT"),
        }
        match fs::metadata(&there) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => bail!("stat of a removed directory: {other:?} and not ENOENT"),
        }
        if is_over(Path::new(outside)) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
