//! A holder as a process of its own: started, connected to, asked, and given everything again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lamina_fusefs::descriptors;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown, shutdown};

use super::client::Table;
use super::protocol::{Answer, MAX_ANSWER, Request};
use super::socket;
use crate::error::{Error, Result};

/// How long a holder may take to start and to answer.
const START: Duration = Duration::from_secs(10);

/// How long a message may wait for the holder to read what was sent before.
const SEND: Duration = Duration::from_secs(1);

/// How often it is looked whether a new holder listens.
const LOOK: Duration = Duration::from_millis(5);

/// What was got from a holder.
pub(super) type Taken = BTreeMap<String, OwnedFd>;

/// Where a holder is found, and how one is made.
pub(super) struct Place {
    pub(super) address: PathBuf,
    pub(super) patience: Duration,
    pub(super) program: PathBuf,
    /// Those that were started from here and may be running, the last one at the end.
    children: Vec<Child>,
}

/// A connection to a holder.
pub(super) struct Link(OwnedFd);

impl Place {
    pub(super) fn new(address: PathBuf, patience: Duration, program: PathBuf) -> Place {
        Place {
            // A holder has another working directory than the daemon.
            address: std::path::absolute(&address).unwrap_or(address),
            patience,
            program,
            children: Vec::new(),
        }
    }

    /// Connects to a holder and starts one if there is none, as long as `is_wanted`. `ask` is what is
    /// said first; a holder that ends before it has answered is not the one.
    pub(super) fn reach<T>(
        &mut self,
        is_wanted: impl Fn() -> bool,
        ask: impl Fn(&Link) -> Result<T, Errno>,
    ) -> Result<(Link, T)> {
        let address = self.address.clone();
        let failed = |error: io::Error| Error::io("cannot reach the holder on", &address)(error);
        let begin = Instant::now();
        let mut last = Errno::TIMEDOUT;
        let mut has_started = false;
        while is_wanted() && begin.elapsed() < START {
            let answered = Link::connect(&self.address).and_then(|link| {
                link.say(&Request::Patience(self.patience), None)?;
                let answer = ask(&link)?;
                Ok((link, answer))
            });
            match answered {
                Ok(reached) => return Ok(reached),
                // Nobody listens.
                Err(Errno::NOENT | Errno::CONNREFUSED) if !has_started => {
                    self.reap();
                    let child = self.start().map_err(failed)?;
                    self.children.push(child);
                    has_started = true;
                }
                // Nobody does yet.
                Err(Errno::NOENT | Errno::CONNREFUSED) => match self.ended() {
                    Some(status) if !status.success() => {
                        let text = format!("it ended at once: {status}");
                        return Err(failed(io::Error::other(text)));
                    }
                    Some(_) => has_started = false,
                    None => {}
                },
                // It ended, or took another for the daemon, while it was asked.
                Err(errno @ (Errno::PIPE | Errno::CONNRESET)) => last = errno,
                // It does not answer.
                Err(Errno::AGAIN) => return Err(failed(Errno::TIMEDOUT.into())),
                Err(errno) => return Err(failed(errno.into())),
            }
            thread::sleep(LOOK);
        }
        Err(failed(last.into()))
    }

    /// What became of the last child, once it is over.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.children.last_mut()?.try_wait().ok()??;
        self.children.pop();
        Some(status)
    }

    /// Forgets those that are over.
    fn reap(&mut self) {
        let is_over = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        self.children.retain_mut(|child| !is_over(child));
    }

    fn start(&self) -> io::Result<Child> {
        // Whatever this process inherited would stay open for as long as the holder lives.
        if let Err(error) = descriptors::close_all_on_exec() {
            tracing::debug!(%error, "cannot close inherited descriptors on exec");
        }
        Command::new(&self.program)
            .arg0("lamina")
            .arg("hold")
            .arg("--address")
            .arg(&self.address)
            .arg("--patience-secs")
            .arg(self.patience.as_secs().max(1).to_string())
            // Nothing of the daemon's is meant for it, least of all the sockets of its service manager.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Until it listens it may have to say why not; then it lets go of this one, too.
            .stderr(Stdio::inherit())
            .spawn()
    }
}

impl Link {
    fn connect(address: &std::path::Path) -> Result<Link, Errno> {
        let socket = socket::connected(address)?;
        set_socket_timeout(&socket, Timeout::Send, Some(SEND))?;
        Ok(Link(socket))
    }

    /// A connection to a holder that is there; `None`: there is none.
    pub(super) fn to_existing(address: &std::path::Path) -> Result<Option<Link>> {
        match Link::connect(address) {
            Ok(link) => Ok(Some(link)),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(errno) => Err(Error::io("cannot reach the holder on", address)(errno)),
        }
    }

    /// Sends one message, and the descriptor that belongs to it.
    pub(super) fn say(&self, request: &Request<'_>, fd: Option<&OwnedFd>) -> Result<(), Errno> {
        let borrowed = fd.map(AsFd::as_fd);
        socket::send(
            &self.0,
            &request.encode(),
            borrowed.as_slice(),
            SendFlags::empty(),
        )
    }

    /// Everything that the holder has.
    pub(super) fn take(&self) -> Result<Taken, Errno> {
        self.say(&Request::Take, None)?;
        set_socket_timeout(&self.0, Timeout::Recv, Some(START))?;
        let mut taken = Taken::new();
        loop {
            match self.hear()? {
                (Answer::Held(names), descriptors) => {
                    taken.extend(names.into_iter().zip(descriptors));
                }
                (Answer::Done, _) => break,
                (Answer::Refused(_), _) => {}
            }
        }
        set_socket_timeout(&self.0, Timeout::Recv, None)?;
        Ok(taken)
    }

    /// Says everything that is to be kept, and that nothing else is.
    pub(super) fn renew(&self, table: &Table) -> Result<(), Errno> {
        self.say(&Request::Renew, None)?;
        for (name, descriptor) in table {
            self.say(&Request::Keep(name), Some(descriptor))?;
        }
        self.say(&Request::Renewed, None)
    }

    /// Waits for the end of the connection.
    pub(super) fn watch(&self) {
        loop {
            match self.hear() {
                Ok((Answer::Refused(name), _)) => {
                    tracing::warn!(
                        name,
                        "the holder has no room for this descriptor: what it is for will not survive \
                         the daemon; raise the limit of open files"
                    );
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// Ends the connection, for whoever watches it as well. What was sent arrives.
    pub(super) fn hang_up(&self) {
        // Fails if the other side was faster.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    fn hear(&self) -> Result<(Answer, Vec<OwnedFd>), Errno> {
        let mut buffer = vec![0; MAX_ANSWER];
        let datagram = socket::receive(&self.0, &mut buffer, RecvFlags::empty())?;
        if datagram.length == 0 {
            return Err(Errno::PIPE);
        }
        if datagram.lost_descriptors {
            return Err(Errno::MFILE);
        }
        let answer = buffer.get(..datagram.length).and_then(Answer::decode);
        let names = match &answer {
            Some(Answer::Held(names)) => names.len(),
            _ => 0,
        };
        match answer {
            Some(answer) if names == datagram.descriptors.len() && !datagram.is_cut => {
                Ok((answer, datagram.descriptors))
            }
            _ => Err(Errno::PROTO),
        }
    }
}
