//! Who a lease belongs to, so that those of pulls which were killed go before they expire.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::process;
use std::time::Duration;

use jiff::Timestamp;

use crate::containerd::{Containerd, ContainerdError};

/// The label of a lease that names its process.
const OWNER: &str = "lamina/puller";
/// When containerd may forget a lease whatever comes (containerd, `leases.WithExpiration`).
const EXPIRE: &str = "containerd.io/gc.expire";
/// How long that is from now: containerd's own clients say so too.
const LIFE: Duration = Duration::from_hours(24);

/// The labels of a lease of this process.
pub(super) fn labels() -> HashMap<String, String> {
    let mut labels = HashMap::new();
    let expire = Timestamp::now() + LIFE;
    labels.insert(EXPIRE.to_owned(), expire.to_string());
    // Without /proc it stays until it expires.
    if let Ok(owner) = owner(process::id()) {
        labels.insert(OWNER.to_owned(), owner);
    }
    labels
}

/// Removes the leases of pulls whose process is gone.
pub(super) async fn remove_leftovers(containerd: &Containerd) -> Result<(), ContainerdError> {
    for lease in containerd.leases(OWNER).await? {
        if lease.labels.get(OWNER).is_some_and(|owner| is_gone(owner)) {
            containerd.remove_lease(&lease.id, false).await?;
        }
    }
    Ok(())
}

/// A process by what no other one has: the boot, its PID namespace, its number there, and when it began.
fn owner(pid: u32) -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let namespace = fs::read_link("/proc/self/ns/pid")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // What stands behind the name, in which anything may stand: the state, and so on (proc(5)).
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let (Some(state), Some(since)) = (fields.first(), fields.get(19)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if matches!(*state, "Z" | "X") {
        return Err(io::ErrorKind::NotFound.into());
    }
    let (boot, namespace) = (boot.trim(), namespace.display());
    Ok(format!("{boot} {namespace} {pid} {since}"))
}

/// Whether the process is surely not there any more. Of another PID namespace nobody can tell.
fn is_gone(of: &str) -> bool {
    let words: Vec<&str> = of.split(' ').collect();
    let [boot, namespace, pid, _] = words[..] else {
        return false;
    };
    let (Ok(ours), Ok(pid)) = (owner(process::id()), pid.parse()) else {
        return false;
    };
    let mut ours = ours.split(' ');
    if ours.next() != Some(boot) {
        return true;
    }
    if ours.next() != Some(namespace) {
        return false;
    }
    match owner(pid) {
        Ok(now) => now != of,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_gone_when_it_has_ended_or_its_number_is_anothers() {
        let ours = owner(process::id()).expect("owner");
        assert!(!is_gone(&ours));
        assert!(is_gone(&format!("{ours}1")), "it began at another time");
        assert!(is_gone(&format!("another-{ours}")), "another boot");
        let elsewhere = ours.replace("pid:[", "pid:[1");
        assert!(!is_gone(&elsewhere), "another namespace");
        assert!(!is_gone("no owner"));

        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let theirs = owner(child.id()).expect("owner");
        assert!(!is_gone(&theirs));
        child.kill().expect("kill");
        while !is_gone(&theirs) {
            std::thread::yield_now();
        }
        child.wait().expect("wait");
        assert!(is_gone(&theirs));
    }
}
