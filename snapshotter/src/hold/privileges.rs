//! What the holder gives up before it listens to anybody.

use std::fs;
use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, chdir, getrlimit, set_dumpable_behavior, setrlimit, setsid,
    umask,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_name,
    set_no_new_privs,
};

/// The descriptors that a holder wants to be able to have.
const DESCRIPTORS: u64 = 1 << 20;

/// Takes what needs privileges, then gives all of them away, for good.
///
/// The user stays root: a holder that were `nobody` could be killed by whatever else is `nobody`.
pub(super) fn drop_all() -> io::Result<()> {
    // Its death is the end of each container's root, and it has next to no memory to give back. Not
    // being allowed to is no reason not to run.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    raise_descriptor_limit();
    let _ = set_name(c"lamina-hold");
    // Refused to the leader of a process group, who was started by a shell and is where it should be.
    let _ = setsid();
    // No file system is in use because of us.
    chdir("/")?;
    umask(Mode::from_raw_mode(0o077));
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    // Older kernels have no ambient capabilities.
    let _ = clear_ambient_capability_set();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    // No core file with what it holds, and nobody but root looks into it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    close_streams()
}

/// Lets go of the caller's pipes and terminal: somebody may wait for the end of them.
fn close_streams() -> io::Result<()> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = maximum.map_or(DESCRIPTORS, |maximum| maximum.max(DESCRIPTORS));
    // More than we may have at most needs a privilege; what we may have does not.
    for most in [Some(most), maximum] {
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}
