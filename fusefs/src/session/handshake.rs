//! The handshake with the kernel, and how a process goes on without one.
//!
//! The kernel asks once, with INIT, and what was agreed holds for as long as the mount lives. fuser shakes
//! hands whenever it begins, so it does it with us: over a socket we hand it the request, take its answer,
//! and then put the connection in the socket's place. At a mount both pass through as they are. A process
//! that takes a mount over is handed the request that its predecessor got, but with no more on offer than
//! what was agreed then.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use super::handler::Handler;
use crate::sys::device;

/// The longest INIT and answer, several times over (bytes).
const LONGEST: usize = 4096;

/// Offsets in INIT (`struct fuse_in_header`, `struct fuse_init_in`) and in its answer
/// (`struct fuse_out_header`, `struct fuse_init_out`) of `<linux/fuse.h>`.
const REQUEST_FLAGS: usize = 40 + 12;
const REQUEST_FLAGS2: usize = 40 + 16;
const ANSWER_ERROR: usize = 4;
const ANSWER_FLAGS: usize = 16 + 12;
const ANSWER_FLAGS2: usize = 16 + 32;

/// `FUSE_HAS_RESEND`, in the second word of flags.
const HAS_RESEND: u32 = 1 << (39 - 32);

/// `FUSE_NOTIFY_INVAL_INODE`.
const NOTIFY_INVAL_INODE: i32 = 2;

/// `FUSE_NOTIFY_RESEND`.
const NOTIFY_RESEND: i32 = 7;

/// What was said at the handshake.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Agreement {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Agreement {
    /// Whether the kernel sends requests again on demand, and marks those.
    pub(super) fn has_resend(&self) -> bool {
        word(&self.answer, ANSWER_FLAGS2).is_some_and(|flags| flags & HAS_RESEND != 0)
    }

    /// The request as if the kernel had offered what was agreed, and nothing else.
    fn request_in_force(&self) -> Option<Vec<u8>> {
        let mut request = self.request.clone();
        for (at, from) in [
            (REQUEST_FLAGS, ANSWER_FLAGS),
            (REQUEST_FLAGS2, ANSWER_FLAGS2),
        ] {
            let agreed = word(&self.answer, from)?;
            let place = request.get_mut(at..at + 4)?;
            place.copy_from_slice(&agreed.to_ne_bytes());
        }
        Some(request)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}

/// Begins a session on a connection, whose kernel waits for the answer to INIT, or has it already: what
/// was `agreed`.
pub(super) fn begin(
    handler: Handler,
    mut connection: &File,
    agreed: Option<&Agreement>,
    config: fuser::Config,
) -> io::Result<(fuser::Session<Handler>, Agreement)> {
    let flags = SocketFlags::CLOEXEC;
    let (theirs, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let mut ours = File::from(ours);
    let corrupt = || io::Error::from(io::ErrorKind::InvalidData);
    let request = match agreed {
        Some(agreed) => agreed.request_in_force().ok_or_else(corrupt)?,
        None => read(connection)?,
    };
    ours.write_all(&request)?;
    let acl = config.acl;
    let begun = fuser::Session::from_fd(handler, theirs, acl, config);
    // An error has an answer too, which the kernel waits for.
    let answer = match &begun {
        Ok(_) => Some(read(&ours)?),
        Err(_) => read_if_any(&ours),
    };
    if let (None, Some(answer)) = (agreed, &answer) {
        connection.write_all(answer)?;
    }
    let session = begun?;
    let answer = answer.ok_or_else(corrupt)?;
    if word(&answer, ANSWER_ERROR) != Some(0) {
        return Err(corrupt());
    }
    device::replace(session.as_fd(), connection.as_fd())?;
    let agreement = match agreed {
        Some(agreed) => agreed.clone(),
        None => Agreement { request, answer },
    };
    Ok((session, agreement))
}

/// Has the kernel send all requests again that were read and not answered. Nobody may read meanwhile.
pub(super) fn ask_again(mut connection: &File) -> io::Result<()> {
    let mut notification = Vec::from(16_u32.to_ne_bytes());
    notification.extend(NOTIFY_RESEND.to_ne_bytes());
    notification.extend(0_u64.to_ne_bytes());
    connection.write_all(&notification)
}

/// Whether the kernel knows a node. It forgets the attributes of one that it knows. (fuser's notifier does
/// the same, and keeps the answer to itself.)
pub(super) fn knows(mut connection: &File, node: u64) -> io::Result<bool> {
    let mut notification = Vec::from(40_u32.to_ne_bytes());
    notification.extend(NOTIFY_INVAL_INODE.to_ne_bytes());
    notification.extend(0_u64.to_ne_bytes());
    notification.extend(node.to_ne_bytes());
    // A negative offset: attributes only.
    notification.extend((-1_i64).to_ne_bytes());
    notification.extend(0_i64.to_ne_bytes());
    match connection.write_all(&notification) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read(mut from: &File) -> io::Result<Vec<u8>> {
    // The kernel reads into no smaller buffer (`FUSE_MIN_READ_BUFFER`).
    let mut bytes = vec![0; 2 * LONGEST];
    let length = from.read(&mut bytes)?;
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(length);
    Ok(bytes)
}

fn read_if_any(from: &File) -> Option<Vec<u8>> {
    rustix::fs::fcntl_setfl(from, rustix::fs::OFlags::NONBLOCK).ok()?;
    read(from).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_is_offered_what_was_agreed_and_nothing_else() {
        let mut request = vec![0; 104];
        request[REQUEST_FLAGS..][..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        request[REQUEST_FLAGS2..][..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        let mut answer = vec![0; 80];
        answer[ANSWER_FLAGS..][..4].copy_from_slice(&5_u32.to_ne_bytes());
        answer[ANSWER_FLAGS2..][..4].copy_from_slice(&HAS_RESEND.to_ne_bytes());
        let agreed = Agreement { request, answer };
        assert!(agreed.has_resend());
        let again = agreed.request_in_force().unwrap();
        assert_eq!(word(&again, REQUEST_FLAGS), Some(5));
        assert_eq!(word(&again, REQUEST_FLAGS2), Some(HAS_RESEND));
    }

    #[test]
    fn an_agreement_that_is_cut_off_is_none() {
        let agreed = Agreement {
            request: vec![0; 50],
            answer: vec![0; 20],
        };
        assert!(!agreed.has_resend() && agreed.request_in_force().is_none());
    }
}
