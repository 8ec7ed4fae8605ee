//! The load and what it needs to run in an image of any distribution.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::harness::output;

/// A program that cargo has built as an example, beside this test.
pub(super) fn example(name: &str) -> Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own.ancestors().nth(2).context("no target folder")?;
    let path = target.join("examples").join(name);
    if !path.is_file() {
        bail!(
            "{} is not there: run `cargo build --examples` first",
            path.display()
        );
    }
    Ok(path)
}

/// Puts the load into a root: the image's part of it, and the program.
pub(super) fn put_load(root: &Path) -> Result<()> {
    let (load, churn) = (example("load")?, example("churn")?);
    put(root, &load, "run")?;
    put(root, &churn, "churn")?;
    let image = root.join("load/image");
    output(Command::new(&load).arg("fill").arg(&image))?;
    output(
        Command::new(&churn)
            .arg("fill")
            .arg(root.join("load/churned"))
            .arg(CHURNERS),
    )?;
    Ok(())
}

/// Threads of `churn`.
const CHURNERS: &str = "4";

/// Makes the directory of another file system that `churn` compares with.
pub(super) fn fill_churned(dir: &Path) -> Result<()> {
    let mut command = Command::new(example("churn")?);
    output(command.arg("fill").arg(dir).arg(CHURNERS)).map(drop)
}

/// `churn` for as long as the load lasts; then both directories are the same. Only Lamina renames
/// directories of the image.
pub(super) fn churn_script(seed: u64, of_image: bool) -> String {
    let (dir, make) = if of_image {
        ("/load/churned", ":".to_owned())
    } else {
        (
            "/load/new",
            format!("/load/churn fill /load/new {CHURNERS}"),
        )
    };
    format!(
        "{make}\nseed={seed}\n\
         while [ ! -e /outside/stop ]; do\n\
         /load/churn run {dir} /outside/churned {CHURNERS} 5 $seed\n\
         seed=$((seed + 1))\ndone\n\
         look() {{ cd $1; find . ! -path './fight/*' | sort\n\
         find . -type f ! -path './fight/*' | sort | xargs md5sum; }}\n\
         (look {dir}) > /outside/churn.mount\n(look /outside/churned) > /outside/churn.plain\n\
         cmp /outside/churn.mount /outside/churn.plain\n"
    )
}

/// Puts a program into a root as `/load/<name>`, together with all libraries and their loader, so
/// that it does not matter which ones the root has.
pub(super) fn put(root: &Path, program: &Path, name: &str) -> Result<()> {
    let (load, libraries) = (root.join("load"), root.join("load/lib"));
    fs::create_dir_all(&libraries)?;
    let listed = output(Command::new("ldd").arg(program))?;
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut loader = None;
    for path in paths.map(Path::new) {
        let file = path.file_name().context("a library without a name")?;
        fs::copy(path, libraries.join(file)).with_context(|| path.display().to_string())?;
        if file.to_string_lossy().starts_with("ld-linux") {
            loader = Some(file.to_string_lossy().into_owned());
        }
    }
    let loader = loader.context("the program has no loader")?;
    let inside = format!("{name}.program");
    // Without what only a debugger reads: it is most of the file.
    output(
        Command::new("strip")
            .arg("-o")
            .arg(load.join(&inside))
            .arg(program),
    )?;
    let script = format!(
        "#!/bin/sh\nexec /load/lib/{loader} --library-path /load/lib /load/{inside} \"$@\"\n"
    );
    fs::write(load.join(name), script)?;
    Ok(fs::set_permissions(
        load.join(name),
        Permissions::from_mode(0o755),
    )?)
}
