//! Datagrams that take descriptors along.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::cmsg_space;
use rustix::io::{Errno, Result, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recvmsg, sendmsg, socket_with,
};

/// The most descriptors that the kernel puts into one message (`SCM_MAX_FD`).
const MOST: usize = 253;

/// One datagram.
pub(super) struct Datagram {
    /// How many bytes of the buffer it filled.
    pub(super) length: usize,
    /// What came along.
    pub(super) descriptors: Vec<OwnedFd>,
    /// Whether the buffer was too small for it.
    pub(super) is_cut: bool,
    /// Whether descriptors were lost, for want of numbers for them.
    pub(super) lost_descriptors: bool,
}

/// A socket of datagrams in order, closed on exec.
pub(super) fn new(flags: SocketFlags) -> Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// A connection to whoever listens at `path`.
pub(super) fn connected(path: &Path) -> Result<OwnedFd> {
    let socket = new(SocketFlags::empty())?;
    let address = SocketAddrUnix::new(path)?;
    retry_on_intr(|| connect(&socket, &address))?;
    Ok(socket)
}

/// Sends one datagram, whole or not at all.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let sent = retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::TOOMANYREFS);
        }
        let flags = flags | SendFlags::NOSIGNAL;
        sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags)
    })?;
    // A datagram is never cut on the way.
    debug_assert_eq!(sent, bytes.len());
    Ok(())
}

/// Receives one datagram. One without bytes is the end of the connection.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> Result<Datagram> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(buffer)];
        recvmsg(&socket, &mut parts, &mut control, flags)
    })?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(Datagram {
        length: received.bytes,
        descriptors,
        is_cut: received.flags.contains(ReturnFlags::TRUNC),
        lost_descriptors: received.flags.contains(ReturnFlags::CTRUNC),
    })
}
