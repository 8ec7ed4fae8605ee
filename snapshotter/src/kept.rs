//! The mounts that an earlier daemon left, and how this one leaves its own.
//!
//! Of each mount the holder has the connection, the record and files without a name, under names that
//! begin with the snapshot's number: `12.fuse`, `12.record`, `12.pin.4711`. The sockets that are listened
//! on are `listen.2049.77`, after device and inode number of their files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use lamina_fusefs::record::Pins;
use lamina_fusefs::session::{Keeper, Kept};
use lamina_fusefs::types::NodeId;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::hold::{self, Holder};
use crate::recover;
use crate::store::layout::Layout;

/// Everything that outlives the daemon: what an earlier one left, and what this one leaves.
#[derive(Default)]
pub struct Keeping {
    /// `None`: nothing does.
    options: Option<hold::Options>,
    /// Since the root is ours.
    holder: OnceLock<Arc<Holder>>,
    left: Mutex<Left>,
}

/// What an earlier daemon left and nobody has taken yet.
#[derive(Default)]
struct Left {
    mounts: HashMap<u64, Kept>,
    others: Descriptors,
}

type Descriptors = BTreeMap<String, OwnedFd>;

impl Keeping {
    /// Who keeps it.
    pub fn by(options: hold::Options) -> Keeping {
        Keeping {
            options: Some(options),
            ..Keeping::default()
        }
    }

    /// Takes what an earlier daemon of this root left. The root is ours: there is no other any more. If that
    /// was a newer Lamina, everything stays as it left it.
    pub(crate) fn begin(&self, layout: &Layout) -> Result<()> {
        let Some(options) = &self.options else {
            return Ok(());
        };
        let (holder, all) = Holder::open(options, &layout.holder())?;
        if options.keeper != hold::Keeper::None {
            // Only one begins.
            let _ = self.holder.set(Arc::new(holder));
        }
        let (mounts, others) = sort(all);
        // All of them or none: whoever starts the wrong version by mistake must lose nothing.
        for (id, kept) in &mounts {
            if let Some(version) = kept.newer_version() {
                return Err(Error::NewerMount {
                    path: layout.mount(*id),
                    version,
                });
            }
        }
        *self.left.lock() = Left { mounts, others };
        Ok(())
    }

    /// The snapshots of which a mount was left, each with [how much](Kept::amount) there is to put back.
    pub(crate) fn mounts(&self) -> BTreeMap<u64, u64> {
        let left = self.left.lock();
        let mounts = left.mounts.iter();
        mounts.map(|(id, kept)| (*id, kept.amount())).collect()
    }

    /// Takes over what was left of a mount.
    pub(crate) fn take_mount(&self, id: u64) -> Option<Kept> {
        self.left.lock().mounts.remove(&id)
    }

    /// Who keeps the mount of a snapshot; `None`: nobody.
    pub(crate) fn keeper_of(&self, id: u64) -> Option<Arc<dyn Keeper>> {
        let holder = Arc::clone(self.holder.get()?);
        Some(Arc::new(MountKeeper { holder, id }))
    }

    /// Takes over the socket that was left of a file, given by device and inode number.
    pub(crate) fn take_socket(&self, file: (u64, u64)) -> Option<OwnedFd> {
        self.left.lock().others.remove(&socket_name(file))
    }

    /// Has a socket kept, for as long as its file is there.
    pub(crate) fn keep_socket(&self, file: (u64, u64), socket: OwnedFd) {
        if let Some(holder) = self.holder.get() {
            holder.keep(&socket_name(file), Arc::new(socket));
        }
    }

    /// Lets go of sockets that nobody took over.
    pub(crate) fn drop_sockets(&self) {
        let left = std::mem::take(&mut self.left.lock().others);
        if let Some(holder) = self.holder.get() {
            for name in left.keys() {
                holder.release(name);
            }
        }
    }

    /// Lets go of the mounts that nobody took over.
    pub(crate) fn drop_mounts(&self) {
        let left = std::mem::take(&mut self.left.lock().mounts);
        for id in left.keys() {
            if let Some(keeper) = self.keeper_of(*id) {
                keeper.release();
            }
        }
    }

    /// Whether anything that is mounted can be left to another daemon.
    pub(crate) fn outlives_us(&self) -> bool {
        self.holder.get().is_some()
    }

    /// Nothing is left to another daemon.
    pub(crate) fn end(&self) {
        if let Some(holder) = self.holder.get() {
            holder.end();
        }
    }
}

fn socket_name((device, inode): (u64, u64)) -> String {
    format!("listen.{device}.{inode}")
}

/// What was kept of mounts, by the number of their snapshot, and the rest by name.
fn sort(all: Descriptors) -> (HashMap<u64, Kept>, Descriptors) {
    #[derive(Default)]
    struct Parts {
        device: Option<OwnedFd>,
        record: Option<OwnedFd>,
        pins: HashMap<NodeId, Arc<OwnedFd>>,
    }
    let (mut mounts, mut rest) = (HashMap::<u64, Parts>::new(), BTreeMap::new());
    for (name, descriptor) in all {
        let Some((id, what)) = parse(&name) else {
            rest.insert(name, descriptor);
            continue;
        };
        let parts = mounts.entry(id).or_default();
        match what {
            Part::Device => parts.device = Some(descriptor),
            Part::Record => parts.record = Some(descriptor),
            Part::Pin(node) => drop(parts.pins.insert(node, Arc::new(descriptor))),
        }
    }
    let mounts = mounts.into_iter().filter_map(|(id, parts)| {
        // A daemon that died while it gave them away had not served it yet.
        let (device, record) = parts.device.zip(parts.record)?;
        let pins = parts.pins;
        let kept = Kept {
            device,
            record,
            pins,
        };
        Some((id, kept))
    });
    (mounts.collect(), rest)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Device,
    Record,
    Pin(NodeId),
}

fn parse(name: &str) -> Option<(u64, Part)> {
    let (id, what) = name.split_once('.')?;
    let part = match what {
        "fuse" => Part::Device,
        "record" => Part::Record,
        pin => Part::Pin(NodeId(pin.strip_prefix("pin.")?.parse().ok()?)),
    };
    Some((id.parse().ok()?, part))
}

/// Has the holder keep what belongs to the mount of one snapshot.
struct MountKeeper {
    holder: Arc<Holder>,
    id: u64,
}

impl Pins for MountKeeper {
    fn pin(&self, node: NodeId, file: &Arc<OwnedFd>) {
        let name = format!("{}.pin.{}", self.id, node.0);
        self.holder.keep(&name, Arc::clone(file));
    }

    fn unpin(&self, node: NodeId) {
        self.holder.release(&format!("{}.pin.{}", self.id, node.0));
    }
}

impl Keeper for MountKeeper {
    fn keep(&self, device: OwnedFd, record: OwnedFd) {
        // The record first: a connection without one would be of no use.
        (self.holder).keep(&format!("{}.record", self.id), Arc::new(record));
        (self.holder).keep(&format!("{}.fuse", self.id), Arc::new(device));
    }

    fn release(&self) {
        self.holder.release_all(&format!("{}.", self.id));
    }
}

/// What is mounted where, as each mount namespace with a process in it sees it
/// (`proc_pid_mountinfo(5)`). `None`: nobody could be asked.
pub struct MountTables(Option<Vec<Vec<u8>>>);

impl MountTables {
    /// Reads all of them.
    pub(crate) fn read() -> MountTables {
        let mut seen = HashSet::new();
        let tables = fs::read_dir("/proc").ok().map(|processes| {
            let dirs = processes.flatten().filter(|process| {
                let name = process.file_name();
                (name.as_encoded_bytes().iter()).all(u8::is_ascii_digit)
            });
            let dirs = dirs.map(|process| process.path()).filter(|dir| {
                // Those in one namespace see the same.
                let namespace = fs::read_link(dir.join("ns/mnt"));
                namespace.map_or(true, |namespace| seen.insert(namespace))
            });
            let tables = dirs.map(|dir| fs::read(dir.join("mountinfo")));
            tables.flatten().collect()
        });
        MountTables(tables)
    }

    /// Whether anybody uses a mount: it is mounted at another place too, or an overlay has it below.
    /// `device`: major and minor number of its file system.
    pub(crate) fn have_used(&self, at: &Path, device: (u32, u32)) -> bool {
        let tables = self.0.as_ref();
        tables.is_none_or(|tables| tables.iter().any(|table| uses(table, at, device)))
    }
}

/// Whether a table has a use of a mount beside the mount itself.
fn uses(table: &[u8], at: &Path, (major, minor): (u32, u32)) -> bool {
    let (at, device) = (at.as_os_str().as_bytes(), format!("{major}:{minor}"));
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (of, point) = (fields.nth(2), fields.nth(1).map(recover::unescape));
        let is_elsewhere = of == Some(device.as_bytes()) && point.as_deref() != Some(at);
        // Behind the mount point, only the options of an overlay name a path so.
        let words = fields.flat_map(|field| field.split(|byte| b",:=".contains(byte)));
        is_elsewhere || words.map(recover::unescape).any(|word| word == at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn what_was_kept_is_sorted_by_mount() {
        let names = [
            "12.fuse",
            "12.record",
            "12.pin.4711",
            "7.fuse",
            "listen.1.2",
            "x.fuse",
        ];
        let all = names.map(|name| (name.to_owned(), null()));
        let (mounts, rest) = sort(all.into());
        let pins: Vec<_> = mounts[&12].pins.keys().copied().collect();
        assert_eq!((mounts.len(), &*pins), (1, &[NodeId(4711)][..]));
        let rest: Vec<_> = rest.into_keys().collect();
        assert_eq!(rest, ["listen.1.2", "x.fuse"]);
    }

    #[test]
    fn a_mount_is_used_where_it_is_mounted_again_or_lies_below_an_overlay() {
        let at = Path::new("/root/mounts/5");
        let own = "30 22 0:40 / /root/mounts/5 rw - fuse.lamina lamina rw\n";
        let uses = |more: &str| uses(format!("{own}{more}").as_bytes(), at, (0, 40));
        assert!(!uses(""));
        assert!(!uses("31 22 0:4 / / rw - ext4 /dev/vda rw\n"));
        assert!(uses("31 22 0:40 / / rw - fuse.lamina lamina rw\n"));
        let overlay =
            "31 22 0:50 / / rw - overlay overlay rw,lowerdir=/a:/root/mounts/5,upperdir=/u\n";
        assert!(uses(overlay));
        let other = "31 22 0:50 / / rw - overlay overlay rw,lowerdir=/a:/root/mounts/55\n";
        assert!(!uses(other));
    }

    #[test]
    fn a_path_that_the_kernel_writes_with_escapes_is_the_mount_itself() {
        let own = b"30 22 0:40 / /a\\040root/mounts/5 rw - fuse.lamina lamina rw\n";
        assert!(!uses(own, Path::new("/a root/mounts/5"), (0, 40)));
    }
}
