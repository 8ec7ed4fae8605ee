//! Every way to ask for durability is an order to the disk before it is answered.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::OFlags;

use super::disk::{Entry, FileSystem};
use super::harness::Scratch;
use super::machine::Machine;
use super::{alone, require};

/// A way to have what was written on the disk.
struct Way {
    name: &'static str,
    flags: OFlags,
    sync: fn(&File) -> io::Result<()>,
}

const WAYS: [Way; 4] = [
    Way {
        name: "fsync",
        flags: OFlags::empty(),
        sync: File::sync_all,
    },
    Way {
        name: "fdatasync",
        flags: OFlags::empty(),
        sync: File::sync_data,
    },
    Way {
        name: "O_SYNC",
        flags: OFlags::SYNC,
        sync: |_| Ok(()),
    },
    Way {
        name: "O_DSYNC",
        flags: OFlags::DSYNC,
        sync: |_| Ok(()),
    },
];

#[test]
fn what_a_container_syncs_is_on_the_disk_when_it_is_answered() -> Result<()> {
    let _turn = alone();
    require()?;
    for kind in FileSystem::ALL {
        let scratch = Scratch::new()?;
        let mut machine = Machine::boot(kind.make(scratch.path())?, kind, scratch.path())?;
        let mut api = machine.api()?;
        api.prepare("extract-1 image", "")?;
        let layer = api.mounts("extract-1 image")?[0].source.clone();
        for way in WAYS {
            for (file, mode) in [("plain", 0o644), ("set-id", 0o4755)] {
                let path = Path::new(&layer).join(format!("{}-{file}", way.name));
                fs::write(&path, vec![b'i'; 20_000])?;
                fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
        }
        api.commit("image", "extract-1 image")?;
        api.prepare("box", "image")?;
        let root = api.mounts("box")?[0].source.clone();
        for way in WAYS {
            for file in ["plain", "set-id"] {
                let path = Path::new(&root).join(format!("{}-{file}", way.name));
                let was = || format!("{} of a {file} file on {kind:?}", way.name);
                // The first write copies the file up, and the others do not.
                for byte in [1, 2, 3] {
                    written(&machine, &path, &way, byte).with_context(was)?;
                }
            }
        }
        drop(api);
        machine.stop()?;
    }
    Ok(())
}

/// Writes a block of this byte, and fails unless it is in the log, and a flush behind it.
fn written(machine: &Machine, path: &Path, way: &Way, byte: u8) -> Result<()> {
    let flags = i32::try_from(way.flags.bits())?;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)?;
    let before = machine.clock().now();
    file.write_all_at(&[byte; 4096], 4096)?;
    (way.sync)(&file)?;
    let log = machine.clock().log();
    let is_of_it = |entry: &Entry| match entry {
        Entry::Write { data, .. } => data.windows(4096).any(|block| block == [byte; 4096]),
        Entry::Flush => false,
    };
    let since = &log[before..];
    let at = since.iter().position(is_of_it).context("it is not there")?;
    let mut rest = since[at..].iter();
    ensure!(
        rest.any(|entry| matches!(entry, Entry::Flush)),
        "it is in the disk's cache"
    );
    Ok(())
}
