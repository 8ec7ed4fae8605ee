//! How inode numbers of several file systems become one space of `st_ino`.

use crate::types::Ino;

/// Bits of a host's inode number that are kept as they are.
const HOST_BITS: u32 = 56;

/// Maps (device, inode number) to `st_ino`, as overlayfs's `xino` does: the first file system's
/// numbers stay as they are, every further one's carry its index in the top 8 bits.
#[derive(Clone, Debug)]
pub(crate) struct InoMap {
    devices: Vec<u64>,
}

impl InoMap {
    /// A map for these devices, in this order.
    pub(crate) fn new(devices: impl IntoIterator<Item = u64>) -> InoMap {
        let mut map = InoMap {
            devices: Vec::new(),
        };
        for device in devices {
            map.add(device);
        }
        map
    }

    /// The same map with one device more, for an upper on a file system of its own.
    pub(crate) fn with(&self, device: u64) -> InoMap {
        let mut map = self.clone();
        map.add(device);
        map
    }

    /// The `st_ino` of an inode.
    pub(crate) fn map(&self, device: u64, ino: u64) -> Ino {
        let index = self.devices.iter().position(|known| *known == device);
        // An unknown device is one that a layer mixes in (an overlay below a layer does that).
        let index = index.unwrap_or(self.devices.len()) as u64;
        Ino(ino ^ (index << HOST_BITS))
    }

    fn add(&mut self, device: u64) {
        if !self.devices.contains(&device) {
            self.devices.push(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_system_keeps_its_numbers() {
        let map = InoMap::new([7, 7]).with(7);
        assert_eq!(map.map(7, 42), Ino(42));
    }

    #[test]
    fn two_file_systems_never_clash() {
        let map = InoMap::new([7]).with(9);
        assert_ne!(map.map(7, 42), map.map(9, 42));
        assert_eq!(map.map(7, 42), Ino(42));
    }
}
