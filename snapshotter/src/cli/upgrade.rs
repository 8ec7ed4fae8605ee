//! `lamina upgrade`: replaces the daemon that runs by another build, and containers notice nothing.
//!
//! The new daemon is started as the old one was: its arguments, its environment, its working directory, its
//! output. If it does not get ready, the old program is started again, even if its file is gone.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lamina_snapshotter::status;
use lamina_snapshotter::store::layout::Layout;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd, pidfd_open, pidfd_send_signal};

use super::PlaceArgs;

const EXAMPLES: &str = "Example:
  /opt/lamina-2.0/lamina upgrade

Containers see a pause, containerd sees none of its calls fail. Say --root or --config if the
daemon has one. A daemon that systemd started is upgraded by `systemctl restart`, and one that
somebody else starts again by whoever that is: replace the program, then send SIGUSR2.";

/// How long calls under way may take to end, and then the daemon.
const END: Duration = Duration::from_mins(1);
/// How long the new daemon may take to get ready. It may have to mount a thousand containers.
const START: Duration = Duration::from_mins(10);
/// How long one that is ready may take to answer.
const ANSWER: Duration = Duration::from_secs(1);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(5);

/// Arguments of `lamina upgrade`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The program to run from now on [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Runs the command: ends when the new daemon answers.
pub(super) fn run(args: &UpgradeArgs) -> Result<ExitCode> {
    let config = args.place.load()?;
    let program = match &args.program {
        Some(program) => {
            fs::canonicalize(program).with_context(|| program.display().to_string())?
        }
        None => std::env::current_exe().context("cannot find this program")?,
    };
    let new = version(&program)?;
    let daemon = Daemon::of(&config.root)?;
    let (old, pid) = (version(&daemon.program())?, daemon.pid.as_raw_nonzero());
    let begin = Instant::now();
    daemon.end()?;
    let started = daemon.start(&program, &config.address);
    let child = match started {
        Ok(child) => child,
        Err(error) => {
            let again = daemon.start(&daemon.program(), &config.address);
            let again = again
                .with_context(|| format!("{error:#}; neither does the old one start again"))?;
            bail!("{error:#}; {old} runs again (process {})", again.id());
        }
    };
    println!(
        "{old} (process {pid}) was replaced by {new} (process {}) in {} ms",
        child.id(),
        begin.elapsed().as_millis()
    );
    Ok(ExitCode::SUCCESS)
}

/// What a program says of itself; an error, if it is not Lamina.
fn version(program: &Path) -> Result<String> {
    let failed = || format!("{} is not a lamina that runs here", program.display());
    let told = Command::new(program).arg("version").output();
    let told = told.with_context(failed)?;
    let text = String::from_utf8_lossy(&told.stdout).trim().to_owned();
    ensure!(
        told.status.success() && text.starts_with("lamina "),
        failed()
    );
    Ok(text)
}

/// The daemon that runs, and how it was started.
struct Daemon {
    pid: Pid,
    process: OwnedFd,
    /// The program that it runs, whatever became of the file.
    program: File,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    dir: File,
    output: OwnedFd,
    errors: OwnedFd,
}

impl Daemon {
    /// The one that has the lock of a root.
    fn of(root: &Path) -> Result<Daemon> {
        let shown = root.display();
        let layout = Layout::of(root)?;
        let pid = owner(&layout.lock())?
            .with_context(|| format!("no daemon serves {shown}: start one with `lamina serve`"))?;
        let process = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("the daemon of {shown} has ended"))?;
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let failed = |what: &str| format!("cannot read {what} of {}", proc.display());
        let words = |what: &str| -> Result<Vec<OsString>> {
            let text = fs::read(proc.join(what)).with_context(|| failed(what))?;
            let words = text.split(|byte| *byte == 0).map(<[u8]>::to_vec);
            let mut words: Vec<_> = words.map(OsString::from_vec).collect();
            // Behind the last zero.
            words.pop();
            Ok(words)
        };
        let environment = words("environ")?;
        let environment = environment.iter().filter_map(|word| pair(word)).collect();
        let daemon = Daemon {
            pid,
            program: File::open(proc.join("exe")).with_context(|| failed("exe"))?,
            arguments: words("cmdline")?.split_off(1),
            environment,
            dir: File::open(proc.join("cwd")).with_context(|| failed("cwd"))?,
            output: pidfd_getfd(&process, 1, PidfdGetfdFlags::empty())
                .with_context(|| failed("fd/1"))?,
            errors: pidfd_getfd(&process, 2, PidfdGetfdFlags::empty())
                .with_context(|| failed("fd/2"))?,
            process,
        };
        let is_of_systemd = |(name, _): &(OsString, OsString)| name == "NOTIFY_SOCKET";
        ensure!(
            !daemon.environment.iter().any(is_of_systemd),
            "systemd started the daemon of {shown}: install the new program in the old one's place, \
             then `systemctl restart` its unit. That is the upgrade"
        );
        ensure!(
            layout.holder().exists(),
            "nobody would keep the mounts of {shown} while there is no daemon (holder = \"none\"): \
             stop it and start the new one yourself; containers that run lose their root"
        );
        Ok(daemon)
    }

    /// The program that it runs, by a path that this process and its children have.
    fn program(&self) -> PathBuf {
        path_of(&self.program)
    }

    /// Tells it that another one comes, and waits until it is gone.
    fn end(&self) -> Result<()> {
        let told = pidfd_send_signal(&self.process, Signal::USR2);
        told.context("cannot tell the daemon that another one comes")?;
        let mut ended = [rustix::event::PollFd::new(
            &self.process,
            rustix::event::PollFlags::IN,
        )];
        let limit = END.try_into().context("the limit")?;
        let count = rustix::event::poll(&mut ended, Some(&limit)).context("cannot wait for it")?;
        ensure!(
            count > 0,
            "the daemon (process {}) has not ended yet; it still serves",
            self.pid.as_raw_nonzero()
        );
        Ok(())
    }

    /// Starts a program in its place, and waits until it answers.
    fn start(&self, program: &Path, address: &Path) -> Result<Child> {
        let failed = || format!("{} does not start", program.display());
        let mut command = Command::new(program);
        command.arg0("lamina").args(&self.arguments);
        command.env_clear().envs(self.environment.iter().cloned());
        command.current_dir(path_of(&self.dir)).process_group(0);
        command.stdin(Stdio::null());
        command.stdout(self.output.try_clone()?);
        command.stderr(self.errors.try_clone()?);
        let mut child = command.spawn().with_context(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let begin = Instant::now();
        while !runtime.block_on(status::answers(address, ANSWER)) {
            if let Some(status) = child.try_wait().with_context(failed)? {
                bail!("{}: it ended with {status}, and its log says why", failed());
            }
            if begin.elapsed() > START {
                // Else there would be two.
                child
                    .kill()
                    .and_then(|()| child.wait())
                    .with_context(failed)?;
                bail!("{}: it did not get ready", failed());
            }
            thread::sleep(LOOK);
        }
        Ok(child)
    }
}

fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// `name=value`.
fn pair(word: &OsStr) -> Option<(OsString, OsString)> {
    let at = word.as_bytes().iter().position(|byte| *byte == b'=')?;
    let (name, value) = word.as_bytes().split_at(at);
    let own = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    Some((own(name), own(value.get(1..)?)))
}

/// The process that has a file locked (`proc_locks(5)`).
fn owner(lock: &Path) -> Result<Option<Pid>> {
    let file = match fs::metadata(lock) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| lock.display().to_string()),
    };
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let table = fs::read_to_string("/proc/locks").context("cannot read /proc/locks")?;
    Ok(owner_in(
        &table,
        &format!("{major:02x}:{minor:02x}:{}", file.ino()),
    ))
}

fn owner_in(table: &str, file: &str) -> Option<Pid> {
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        // 1: FLOCK ADVISORY WRITE 1234 fe:00:4711 0 EOF
        let (&[_, "FLOCK", _, "WRITE", pid, of], _) = words.split_first_chunk()? else {
            return None;
        };
        (of == file).then(|| Pid::from_raw(pid.parse().ok()?))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_lock_is_found_in_the_kernels_table() {
        let table = "1: POSIX  ADVISORY  WRITE 99 fe:00:4711 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 12 fe:00:471 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 13 fe:00:4711 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 14 fe:00:4711 0 EOF\n\
            4: FLOCK  ADVISORY  WRITE 0 fe:00:5 0 EOF\n";
        let owner = |file| owner_in(table, file).map(Pid::as_raw_pid);
        assert_eq!(owner("fe:00:4711"), Some(14));
        assert_eq!(owner("fe:00:5"), None, "of another PID namespace");
        assert_eq!(owner("fe:00:6"), None);
    }

    #[test]
    fn a_word_of_the_environment_is_split_at_its_first_equals_sign() {
        let pair = |word: &str| pair(OsStr::new(word));
        assert_eq!(pair("A=b=c"), Some(("A".into(), "b=c".into())));
        assert_eq!(pair("A="), Some(("A".into(), "".into())));
        assert_eq!(pair("A"), None);
    }
}
