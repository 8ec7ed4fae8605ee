//! Creating something in another user's name.
//!
//! The owner, the group of a setgid directory, default ACLs and the umask are then the kernel's
//! work, done in the one system call that creates the file: no moment, and no crash, shows it with
//! a wrong owner. As in overlayfs (`ovl_override_creator_creds`), the capabilities stay ours: the
//! caller's permission was checked before the request was sent (`default_permissions`), with
//! groups and capabilities that we can't see.

use std::cell::Cell;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, capabilities, set_capabilities};

use crate::types::Caller;

/// Runs `create` with the file system identity and the umask of `caller`.
pub(crate) fn as_caller<T>(
    caller: Caller,
    create: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    own_umask()?;
    let _umask = Umask::set(caller.umask);
    let _identity = Identity::assume(caller)?;
    create()
}

/// The umask of this thread, given back when dropped (after a panic too).
struct Umask(Mode);

impl Umask {
    fn set(mask: u32) -> Umask {
        Umask(rustix::process::umask(Mode::from_raw_mode(mask & 0o777)))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}

thread_local! {
    /// Whether this thread has a umask of its own.
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
}

/// The umask belongs to the process's threads in common until one of them unshares it.
fn own_umask() -> Result<(), Errno> {
    if OWN_UMASK.get() {
        return Ok(());
    }
    // SAFETY: CLONE_FS gives this thread its own umask, root and working directory, as they are;
    // no descriptor is closed, which is the hazard of the call that makes it unsafe.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::FS)?;
    }
    OWN_UMASK.set(true);
    Ok(())
}

/// The file system identity of this thread, given back when dropped.
struct Identity {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Identity {
    fn assume(caller: Caller) -> Result<Identity, Errno> {
        let mut identity = Identity {
            uid: None,
            gid: None,
        };
        // What the process is itself needs no change; the common case (root's files) is free.
        if caller.gid != rustix::process::getegid().as_raw() {
            identity.gid = Some(set_fsgid(caller.gid)?);
        }
        if caller.uid != rustix::process::geteuid().as_raw() {
            identity.uid = Some(set_fsuid(caller.uid)?);
            // The change from root took the file system capabilities away: take them back.
            let mut sets = capabilities(None)?;
            sets.effective = sets.permitted;
            set_capabilities(None, sets)?;
        }
        Ok(identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Some(uid) = self.uid {
            let _ = set_fsuid(uid);
        }
        if let Some(gid) = self.gid {
            let _ = set_fsgid(gid);
        }
    }
}

/// Sets this thread's file system user and returns the one before.
fn set_fsuid(uid: u32) -> Result<u32, Errno> {
    // SAFETY: plain numbers in and out; the call changes this thread's credentials only.
    #[allow(unsafe_code)]
    let (before, now) = unsafe { (libc::setfsuid(uid), libc::setfsuid(u32::MAX)) };
    changed(before, now, uid)
}

/// Sets this thread's file system group and returns the one before.
fn set_fsgid(gid: u32) -> Result<u32, Errno> {
    // SAFETY: as for `set_fsuid`.
    #[allow(unsafe_code)]
    let (before, now) = unsafe { (libc::setfsgid(gid), libc::setfsgid(u32::MAX)) };
    changed(before, now, gid)
}

/// setfsuid(2) tells no error; a second call with an impossible ID tells what is in force.
fn changed(before: i32, now: i32, wanted: u32) -> Result<u32, Errno> {
    if now.cast_unsigned() == wanted {
        Ok(before.cast_unsigned())
    } else {
        Err(Errno::PERM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_gives_the_umask_back() {
        let caller = Caller {
            uid: 0,
            gid: 0,
            umask: 0o077,
        };
        own_umask().unwrap();
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let panicked = std::panic::catch_unwind(|| {
            as_caller(caller, || -> Result<(), Errno> { panic!("on purpose") })
        });
        assert!(panicked.is_err());
        assert_eq!(rustix::process::umask(Mode::empty()).as_raw_mode(), 0o022);
    }
}
