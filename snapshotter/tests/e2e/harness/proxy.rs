//! A proxy before a registry, which does to its answers what networks and registries do.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// What happens to an answer to Lamina about a blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It never comes.
    Hang,
    /// The connection is cut at once.
    Refuse,
    /// It ends in the middle.
    Cut,
    /// One byte of it is another one.
    WrongByte,
    /// It is all of the blob, whatever was asked for.
    NoRange,
    /// It is this status.
    Status(u16),
}

impl Fault {
    pub const ALL: [Fault; 11] = [
        Fault::Hang,
        Fault::Refuse,
        Fault::Cut,
        Fault::WrongByte,
        Fault::NoRange,
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(416),
        Fault::Status(429),
        Fault::Status(500),
    ];
}

#[derive(Debug)]
struct State {
    fault: Fault,
    /// How many answers it still happens to.
    times: usize,
}

/// A network link, as all clients of the proxy share it.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// From a request to the first byte of its answer.
    pub round_trip: Duration,
    /// Bytes a second, of all answers together.
    pub rate: u64,
}

/// When the link is free again.
struct Busy(Link, Mutex<Instant>);

impl Busy {
    /// Waits until so many bytes have passed.
    fn pass(&self, bytes: usize) {
        let takes = Duration::from_nanos(bytes as u64 * 1_000_000_000 / self.0.rate);
        let until = {
            let mut free = self.1.lock().expect("lock");
            *free = (*free).max(Instant::now()) + takes;
            *free
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// The proxy. It serves until the process ends.
pub struct Proxy {
    state: Arc<Mutex<State>>,
    bytes: Arc<AtomicU64>,
    port: u16,
}

impl Proxy {
    /// Listens, and passes on to a registry on this host.
    pub fn start(registry: u16) -> Result<Proxy> {
        Self::start_behind(registry, None)
    }

    /// The same, behind a slow link.
    pub fn start_behind(registry: u16, link: Option<Link>) -> Result<Proxy> {
        let link = link.map(|link| Arc::new(Busy(link, Mutex::new(Instant::now()))));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::new(State {
            fault: Fault::None,
            times: 0,
        }));
        let bytes = Arc::new(AtomicU64::new(0));
        let (shared, counter) = (Arc::clone(&state), Arc::clone(&bytes));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (state, bytes) = (Arc::clone(&shared), Arc::clone(&counter));
                let link = link.clone();
                // A client that goes away is no failure of the proxy's.
                thread::spawn(move || {
                    drop(serve(client, registry, &state, &bytes, link.as_deref()));
                });
            }
        });
        Ok(Proxy { state, bytes, port })
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on this happens to answers about blobs.
    pub fn set(&self, fault: Fault) {
        self.set_times(fault, usize::MAX);
    }

    /// The same, to so many answers.
    pub fn set_times(&self, fault: Fault, times: usize) {
        *self.state.lock().expect("lock") = State { fault, times };
    }

    /// Bytes that were passed on to clients so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

fn serve(
    mut client: TcpStream,
    registry: u16,
    state: &Mutex<State>,
    bytes: &AtomicU64,
    link: Option<&Busy>,
) -> io::Result<()> {
    // One request for each connection: "Connection: close" says so to both sides.
    let head = read_head(&mut client)?;
    let mut fault = Fault::None;
    // What containerd does about its own is its own business.
    if head.contains("/blobs/sha256") && head.to_ascii_lowercase().contains("user-agent: lamina") {
        let mut state = state.lock().expect("lock");
        if state.times > 0 {
            state.times -= 1;
            fault = state.fault;
        }
    }
    match fault {
        Fault::Hang => {
            // Until the client gives up.
            let _ = client.read(&mut [0]);
            return Ok(());
        }
        Fault::Refuse => return client.shutdown(Shutdown::Both),
        Fault::Status(status) => {
            let text =
                format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return client.write_all(text.as_bytes());
        }
        _ => {}
    }
    let is_dropped = |line: &&str| {
        let line = line.to_ascii_lowercase();
        line.starts_with("connection:") || fault == Fault::NoRange && line.starts_with("range:")
    };
    let lines: Vec<&str> = head.lines().filter(|line| !line.is_empty()).collect();
    let kept: Vec<&str> = lines.into_iter().filter(|line| !is_dropped(line)).collect();
    let mut upstream = TcpStream::connect(("127.0.0.1", registry))?;
    upstream.write_all(kept.join("\r\n").as_bytes())?;
    upstream.write_all(b"\r\nConnection: close\r\n\r\n")?;
    io::copy(&mut (&client).take(body_length(&head)), &mut upstream)?;
    if let Some(link) = link {
        thread::sleep(link.0.round_trip);
        let mut piece = vec![0; 64 << 10];
        loop {
            let count = upstream.read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            link.pass(count);
            bytes.fetch_add(count as u64, Ordering::SeqCst);
            client.write_all(&piece[..count])?;
        }
    }
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let body = body.map_or(answer.len(), |at| at + 4);
    let length = answer.len() - body;
    match fault {
        Fault::Cut => answer.truncate(body + length / 2),
        Fault::WrongByte if length > 0 => answer[body + length / 2] ^= 1,
        _ => {}
    }
    bytes.fetch_add(answer.len() as u64, Ordering::SeqCst);
    client.write_all(&answer)
}

/// How many bytes follow the head of a request.
fn body_length(head: &str) -> u64 {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length
        .and_then(|(_, length)| length.trim().parse().ok())
        .unwrap_or(0)
}

fn read_head(client: &mut TcpStream) -> io::Result<String> {
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    String::from_utf8(head).map_err(io::Error::other)
}
