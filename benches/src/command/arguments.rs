//! What the command line of a race says.

use std::path::{Path, PathBuf};

use crate::containers::{self, ContainerWork};
use crate::image::{Scale, Source};
use crate::systems::{FuseOverlayfs, Lamina, LaminaWithKernelUpper, Overlayfs, System};
use crate::works::{self, Work};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;

/// Every system, in the order of the columns.
pub(super) const SYSTEMS: [&str; 5] = [
    "overlayfs",
    "fuse-overlayfs-1",
    "fuse-overlayfs-2",
    "lamina",
    "lamina+kernel",
];

/// Where Debian's package has it.
const FUSE_OVERLAYFS: &str = "/usr/bin/fuse-overlayfs";

/// Who races, in what, where and how often.
#[derive(Args, Debug)]
pub struct RaceArguments {
    /// Where layers and uppers lie [default: target/bench beside this program]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the report goes [default: DIR/report]
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Of what the image is made [default: debian, with --short made]
    #[arg(long, value_enum)]
    image: Option<Source>,
    /// Size of everything; 1 is 120,000 files and a file of 1 GiB
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// How often each system does each work
    #[arg(long)]
    rounds: Option<usize>,
    /// Five minutes: scale 0.1, 3 rounds
    #[arg(long)]
    short: bool,
    /// How many containers are kept at once to know their memory [default: 1,000 times the scale]
    #[arg(long, value_name = "CONTAINERS")]
    density: Option<usize>,
    /// Only these works, by name or by the beginning of a name
    #[arg(long, value_name = "WORK", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these systems
    #[arg(long = "systems", value_name = "SYSTEM", value_delimiter = ',')]
    systems: Vec<String>,
    /// The `lamina` program [default: beside this program]; NAME=PROGRAM gives it a name, and may
    /// be given several times: as a race of two builds
    #[arg(long, value_name = "[NAME=]PROGRAM")]
    lamina: Vec<String>,
    /// More mount options for `lamina`, such as without=passthrough
    #[arg(long, value_name = "OPTIONS", default_value = "")]
    lamina_options: String,
    /// fuse-overlayfs 1
    #[arg(long, value_name = "PROGRAM", default_value = FUSE_OVERLAYFS)]
    fuse_overlayfs_1: PathBuf,
    /// fuse-overlayfs 2 [default: target/tools/bin/fuse-overlayfs]
    #[arg(long, value_name = "PROGRAM")]
    fuse_overlayfs_2: Option<PathBuf>,
    /// Works by containerd only where it is installed.
    #[arg(skip)]
    containerd_is_optional: bool,
}

impl RaceArguments {
    /// A short race of the running program, which is `lamina`, with overlayfs, and with
    /// fuse-overlayfs if it is installed. Works by containerd that nobody named are left out where
    /// containerd is not installed.
    pub fn short(dir: &Path, rounds: usize, only: &[String]) -> Result<RaceArguments> {
        let fuse_overlayfs = PathBuf::from(FUSE_OVERLAYFS);
        let mut systems = vec!["overlayfs", "lamina"];
        if fuse_overlayfs.exists() {
            systems.push("fuse-overlayfs-1");
        }
        Ok(RaceArguments {
            dir: Some(dir.to_owned()),
            report: None,
            image: None,
            scale: None,
            rounds: Some(rounds),
            short: true,
            density: None,
            only: only.to_vec(),
            systems: systems.into_iter().map(str::to_owned).collect(),
            lamina: vec![std::env::current_exe()?.display().to_string()],
            lamina_options: String::new(),
            fuse_overlayfs_1: fuse_overlayfs,
            fuse_overlayfs_2: None,
            containerd_is_optional: only.is_empty(),
        })
    }

    pub(super) fn dir(&self) -> Result<PathBuf> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(target()?.join("bench")),
        }
    }

    pub(super) fn report(&self) -> Result<PathBuf> {
        match &self.report {
            Some(dir) => Ok(dir.clone()),
            None => Ok(self.dir()?.join("report")),
        }
    }

    pub(super) fn image(&self) -> Source {
        let by_size = if self.short {
            Source::Made
        } else {
            Source::Debian
        };
        self.image.unwrap_or(by_size)
    }

    pub(super) fn scale(&self) -> Result<Scale> {
        let factor = self.scale.unwrap_or(if self.short { 0.1 } else { 1.0 });
        Scale::new(factor).context("--scale has to be above 0 and at most 4")
    }

    pub(super) fn rounds(&self) -> usize {
        let rounds = self.rounds.unwrap_or(if self.short { 3 } else { 7 });
        rounds.max(1)
    }

    pub(super) fn density(&self) -> Option<usize> {
        self.density
    }

    /// The works in a mount that `--only` names.
    pub(super) fn works(&self) -> Result<Vec<Work>> {
        let names = self.names()?;
        let works = works::all().into_iter();
        Ok(works.filter(|work| names.contains(&work.name)).collect())
    }

    /// The works by containerd that `--only` names.
    pub(super) fn container_works(&self) -> Result<Vec<ContainerWork>> {
        let names = self.names()?;
        let missing = containers::missing();
        if self.containerd_is_optional && !missing.is_empty() {
            let missing = missing.join(" ");
            eprintln!("Left out, for want of these packages: works by containerd ({missing})");
            return Ok(Vec::new());
        }
        let works = containers::all().into_iter();
        Ok(works.filter(|work| names.contains(&work.name)).collect())
    }

    /// The works that `--only` names: by their whole name, or all whose names begin so.
    fn names(&self) -> Result<Vec<&'static str>> {
        let all = names();
        if self.only.is_empty() {
            return Ok(all);
        }
        let mut chosen = Vec::new();
        for name in &self.only {
            let exact = all.contains(&name.as_str());
            let is_meant =
                |work: &&str| *work == name || (!exact && work.starts_with(name.as_str()));
            let before = chosen.len();
            chosen.extend(all.iter().copied().filter(is_meant));
            ensure!(
                chosen.len() > before,
                "--only {name}: no such work; `lamina-benches list` names all"
            );
        }
        Ok(chosen)
    }

    /// The systems that `--systems` names.
    pub(super) fn systems(&self) -> Result<Vec<Box<dyn System>>> {
        let names: Vec<&str> = match self.systems.as_slice() {
            [] => SYSTEMS.into(),
            some => some.iter().map(String::as_str).collect(),
        };
        let mut systems: Vec<Box<dyn System>> = Vec::new();
        for name in names {
            match name {
                "overlayfs" => systems.push(Box::new(Overlayfs)),
                "fuse-overlayfs-1" => {
                    systems.push(Box::new(FuseOverlayfs::new(name, &self.fuse_overlayfs_1)));
                }
                "fuse-overlayfs-2" => {
                    let program = match &self.fuse_overlayfs_2 {
                        Some(program) => program.clone(),
                        None => target()?.join("tools/bin/fuse-overlayfs"),
                    };
                    systems.push(Box::new(FuseOverlayfs::new(name, &program)));
                }
                "lamina" => {
                    let all = self.laminas()?;
                    systems.extend(all.into_iter().map(|one| Box::new(one) as Box<dyn System>));
                }
                "lamina+kernel" => {
                    let all = self.laminas()?.into_iter().map(LaminaWithKernelUpper::new);
                    systems.extend(all.map(|one| Box::new(one) as Box<dyn System>));
                }
                _ => bail!("--systems {name}: there are {}", SYSTEMS.join(", ")),
            }
        }
        Ok(systems)
    }

    /// Each program that `--lamina` names.
    fn laminas(&self) -> Result<Vec<Lamina>> {
        if self.lamina.is_empty() {
            let program = std::env::current_exe()?.with_file_name("lamina");
            ensure!(
                program.exists(),
                "no {}: build it, or give --lamina",
                program.display()
            );
            return Ok(vec![Lamina::new("lamina", &program, &self.lamina_options)]);
        }
        let one = |text: &String| {
            let (name, program) = match text.split_once('=') {
                Some((name, program)) => (format!("lamina-{name}"), program),
                None => ("lamina".to_owned(), text.as_str()),
            };
            Lamina::new(&name, program.as_ref(), &self.lamina_options)
        };
        Ok(self.lamina.iter().map(one).collect())
    }
}

/// The names of all works.
fn names() -> Vec<&'static str> {
    let works = works::all().into_iter().map(|work| work.name);
    let by_containerd = containers::all().into_iter().map(|work| work.name);
    works.chain(by_containerd).collect()
}

/// The target directory: this program is in its `release/`.
fn target() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2);
    Ok(target.context("this program lies nowhere")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(names: &[&str]) -> Result<Vec<&'static str>> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let arguments = RaceArguments::short(Path::new("/nowhere"), 1, &names)?;
        Ok(arguments.works()?.iter().map(|work| work.name).collect())
    }

    #[test]
    fn a_whole_name_means_one_work_and_a_beginning_all_that_begin_so() {
        assert_eq!(only(&["find-cold"]).unwrap(), ["find-cold"]);
        assert_eq!(
            only(&["open", "tar"]).unwrap(),
            ["tar-warm", "open-cold", "open-warm"]
        );
        assert_eq!(only(&["unpack"]).unwrap(), [""; 0]);
        assert_eq!(only(&[]).unwrap().len(), works::all().len());
        let error = only(&["tar", "swim"]).unwrap_err().to_string();
        assert!(error.contains("--only swim: no such work"), "{error}");
    }
}
