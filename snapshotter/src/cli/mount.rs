//! `lamina mount`: the union without containerd, by fuse-overlayfs's command line.
//!
//! Without `-f` the mount outlives the command. Forking a process that has threads is not safe,
//! so the command starts itself again with `-f` and the hidden `--ready-on-stdout`: that child
//! mounts, writes a line to its standard output, lets go of the terminal and of all standard
//! streams, and serves. The parent waits for the line, or for the child's death: so its exit
//! status says whether the mount answers, and the child's reasons stand on standard error.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgAction, Args};
use lamina_fusefs::image::{Image, LayerPlace, index_in};
use lamina_fusefs::layer::{DirLayer, Layer};
use lamina_fusefs::record::Pins;
use lamina_fusefs::session::{Keeper, Session, SessionOptions};
use lamina_fusefs::types::NodeId;
use lamina_fusefs::union::Union;
use lamina_fusefs::upper::Upper;
use lamina_snapshotter::config::LogFormat;

use super::mount_options::MountOptions;
use super::{logging, signals};

/// What the child says when the mount answers.
const READY: &str = "ready";

/// How often a served mount is asked whether it was unmounted.
const POLL: Duration = Duration::from_millis(200);

/// How long a mount that is in use is served after a signal to stop.
const PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = r"Examples:
  lamina mount -o lowerdir=/layers/top:/layers/base,upperdir=/c1/diff,workdir=/c1/work /mnt
  lamina mount -f -o lowerdir=/layers/base /mnt      read-only, until ctrl-C
  umount /mnt

Options (-o), separated by commas; a backslash before `,` `:` `\` keeps them in a path:
  lowerdir=A:B      the layers, the topmost first
  upperdir=U        where changes go; without it the mount is read-only
  workdir=W         an empty directory on the file system of the upper
  indexdir=DIR      keep what the layers hold in an index in DIR, which is made once for each list
                    of layers; they must not change as long as it is there
  noindexdir        no index: look into the layers
  fsname=NAME       the source that /proc/mounts shows
  ro rw suid nosuid dev nodev exec noexec allow_other context=...
  no_open           on a read-only mount: the kernel opens files without asking the daemon, and
                    keeps what was read in this mount's page cache (instead of passthrough)
  without=A:B       features of the kernel to leave aside, as if it were an older one: passthrough,
                    idmap, readdirplus, parallel_dirops, killpriv_v2, cached_symlinks,
                    no_opendir, or all
  metacopy=off      copy the data too where only attributes or names of a file change
  partial_copy_up=X on, off, or the length in bytes from which only the blocks of a file are copied
                    up that are written (64 MiB)
  record            write down what `lamina serve` writes down so that another daemon can go on, for a
                    fair race: nobody reads it, and the mount ends with this process
  Other options of fuse-overlayfs and unknown ones are ignored with a warning.

For podman, in storage.conf:
  [storage.options.overlay]
  mount_program = '/usr/bin/lamina'";

/// Arguments of `lamina mount`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, disable_version_flag = true)]
#[allow(clippy::struct_excessive_bools)] // they are flags
pub(super) struct MountArgs {
    /// Mount options, separated by commas; may be given several times
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Stay in the foreground; ctrl-C or SIGTERM unmounts
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Log everything to standard error, and stay in the foreground
    #[arg(short = 'd', long)]
    debug: bool,
    /// Print version
    #[arg(short = 'V', long)]
    version: bool,
    /// Written to standard output when the mount answers; for our own parent process.
    #[arg(long, hide = true)]
    ready_on_stdout: bool,
    /// Flags of mount(8) that mean nothing here.
    #[arg(short = 'n', short_aliases = ['s', 'v'], hide = true, action = ArgAction::Count)]
    ignored: u8,
    /// The type that mount(8) tells its helpers.
    #[arg(short = 't', hide = true)]
    fs_type: Option<OsString>,
    /// An optional source (only a name, as in fstab), and the directory to mount on
    #[arg(
        value_name = "[SOURCE] MOUNTPOINT", num_args = 1..=2, required_unless_present = "version"
    )]
    operands: Vec<OsString>,
}

/// Runs the command.
pub(super) fn run(args: &MountArgs) -> Result<ExitCode> {
    if args.version {
        return Ok(super::version());
    }
    let plan = Plan::new(args)?;
    if args.foreground || args.debug || args.ready_on_stdout {
        let level = if args.debug { "debug" } else { "warn" };
        logging::init(level, LogFormat::Text)?;
        serve(&plan, args.ready_on_stdout)
    } else {
        go_to_background(args)
    }
}

/// What to mount where, looked at closely enough for clear errors.
#[derive(Debug)]
struct Plan {
    options: MountOptions,
    mountpoint: PathBuf,
    fsname: String,
}

impl Plan {
    fn new(args: &MountArgs) -> Result<Plan> {
        let privileged = rustix::process::geteuid().is_root();
        let mut options = MountOptions::parse(&args.options, privileged)?;
        if !args.ready_on_stdout {
            // Once, by the process that the user started, and before anything can fail.
            for warning in &options.warnings {
                eprintln!("lamina mount: warning: {warning}");
            }
        }
        let (source, mountpoint) = match args.operands.as_slice() {
            [mountpoint] => (None, mountpoint),
            [source, mountpoint] => (Some(source), mountpoint),
            _ => bail!("give one directory to mount on"),
        };
        // Absolute, since the serving process leaves its working directory.
        let mountpoint = PathBuf::from(mountpoint);
        directory("mount point", &mountpoint)?;
        let mountpoint = fs::canonicalize(&mountpoint)
            .with_context(|| format!("mount point {}", mountpoint.display()))?;
        for lower in &mut options.lower {
            directory("lowerdir", lower)?;
            *lower = std::path::absolute(&*lower)?;
        }
        if let Some(dir) = &mut options.index_dir {
            directory("indexdir", dir)?;
            *dir = std::path::absolute(&*dir)?;
        }
        if let (Some(upper), Some(work)) = (&mut options.upper, &mut options.work) {
            check_upper(upper, work)?;
            *upper = std::path::absolute(&*upper)?;
            *work = std::path::absolute(&*work)?;
        }
        let fsname = match (&options.fsname, source) {
            (Some(name), _) => name.clone(),
            (None, Some(source)) => source.to_string_lossy().into_owned(),
            (None, None) => "lamina".to_owned(),
        };
        Ok(Plan {
            options,
            mountpoint,
            fsname,
        })
    }

    fn mount(&self) -> Result<Session> {
        let options = &self.options;
        let image = image(&options.lower, options.index_dir.as_deref())?;
        let upper = match (&options.upper, &options.work) {
            (Some(upper), Some(work)) => Some(Upper::open(upper, work)?),
            _ => None,
        };
        let union = Union::new(image, upper)?
            .metacopy(options.metacopy)
            .partial_copy_up_from(options.partial_copy_up);
        let session = SessionOptions {
            fsname: self.fsname.clone(),
            read_only: options.read_only,
            allow_other: options.allow_other,
            suid: options.suid,
            dev: options.dev,
            exec: options.exec,
            no_open: options.no_open,
            without: options.without,
            extra: options.contexts.clone(),
            ..SessionOptions::default()
        };
        let at = &self.mountpoint;
        Ok(if options.record {
            Session::mount_kept(union, at, &session, Arc::new(Nobody))?
        } else {
            Session::mount(Arc::new(union), at, &session)?
        })
    }
}

/// Keeps nothing.
struct Nobody;

impl Pins for Nobody {
    fn pin(&self, _: NodeId, _: &Arc<OwnedFd>) {}
    fn unpin(&self, _: NodeId) {}
}

impl Keeper for Nobody {
    fn keep(&self, _: OwnedFd, _: OwnedFd) {}
    fn release(&self) {}
}

/// The image of the layers, by its index if there is a place for one.
fn image(lower: &[PathBuf], index_dir: Option<&Path>) -> lamina_fusefs::Result<Arc<Image>> {
    if let Some(dir) = index_dir {
        let layers = lower.iter().map(|dir| LayerPlace::Dir {
            dir: dir.clone(),
            index: None,
        });
        let layers: Vec<_> = layers.collect();
        return Image::open_indexed(&layers, &index_in(dir, lower));
    }
    let open = |path| Ok(Arc::new(DirLayer::open(path)?) as Arc<dyn Layer>);
    let layers = lower.iter().map(|path| open(path));
    Image::new(layers.collect::<lamina_fusefs::Result<_>>()?)
}

/// The metadata of a directory, or why it can't be one.
fn directory(what: &str, path: &Path) -> Result<Metadata> {
    let metadata = fs::metadata(path).with_context(|| format!("{what} {}", path.display()))?;
    let shown = path.display();
    ensure!(metadata.is_dir(), "{what} {shown}: not a directory");
    Ok(metadata)
}

/// An upper and its work directory must be two directories of one file system.
fn check_upper(upper: &Path, work: &Path) -> Result<()> {
    let upper_stat = directory("upperdir", upper)?;
    let work_stat = directory("workdir", work)?;
    let (upper, work) = (upper.display(), work.display());
    ensure!(
        upper_stat.dev() == work_stat.dev(),
        "workdir {work} is not on the file system of upperdir {upper}"
    );
    ensure!(
        upper_stat.ino() != work_stat.ino(),
        "workdir {work} is upperdir {upper} itself"
    );
    Ok(())
}

/// Mounts, and serves until it is unmounted or told to stop.
fn serve(plan: &Plan, report: bool) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let stop = {
        let _guard = runtime.enter();
        signals::stop()?
    };
    let session = plan.mount()?;
    let union = Arc::clone(session.union());
    if report {
        detach_from_caller()?;
    }
    let stopped = runtime.block_on(async {
        tokio::select! {
            signal = stop => Some(signal),
            () = unmounted(&session) => None,
        }
    });
    let Some(signal) = stopped else {
        session.wait()?;
        // The next mount may be the kernel's.
        union.settle()?;
        return Ok(ExitCode::SUCCESS);
    };
    tracing::info!(signal, "unmounting");
    if !session.unmount(PATIENCE)? {
        bail!(
            "{} is still in use: stopped all the same",
            plan.mountpoint.display()
        );
    }
    union.settle()?;
    Ok(ExitCode::SUCCESS)
}

/// Ends when the mount is not served any more. It is asked for: a blocking wait in a thread of its
/// own would have to own the session, and then a signal could not unmount it.
async fn unmounted(session: &Session) {
    let mut tick = tokio::time::interval(POLL);
    while session.is_alive() {
        tick.tick().await;
    }
}

/// Tells the parent that the mount answers, and becomes a daemon: own session, root as working
/// directory, no standard streams. A caller that reads our standard error to its end goes on.
fn detach_from_caller() -> Result<()> {
    // Fails if we lead a process group already, which is as good.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "no session of our own");
    }
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{READY}").and_then(|()| stdout.flush())?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Starts the serving process, and waits until the mount answers.
fn go_to_background(args: &MountArgs) -> Result<ExitCode> {
    let mut command = Command::new(std::env::current_exe()?);
    // A name of our own, whatever name we were called by.
    command.arg0("lamina").args(["mount", "--ready-on-stdout"]);
    for option in &args.options {
        command.arg("-o").arg(option);
    }
    command.arg("--").args(&args.operands);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .context("cannot start the serving process")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim_end() == READY {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why on standard error, unless something killed it.
    let status = child.wait()?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1).max(1))),
        None => bail!("the serving process ended before the mount answered: {status}"),
    }
}
