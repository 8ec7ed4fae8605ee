//! How layers become one tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::reference::{DataOf, Id, Inode, Kind, Model, ROOT_ID, special, xattr_refusal};
use crate::types::FileKind;
use crate::union::tests::script::{Entry, Layer, Meta, ROOT, Special, settled};

/// How the layers become one tree.
impl Model {
    /// The union of these layers, the topmost first, with an empty upper.
    pub(super) fn new(layers: &[Layer], zero_range: bool) -> Model {
        let root = Inode::new(Kind::Directory(BTreeMap::new()), 0o755, (0, 0));
        let mut model = Model {
            inodes: vec![root],
            held: [const { None }; 3],
            user: 0,
            zero_range,
        };
        for layer in layers.iter().rev() {
            model.put_on_top(layer);
        }
        model.count_hidden();
        model
    }

    fn put_on_top(&mut self, layer: &Layer) {
        let mut of_this_layer = BTreeMap::new();
        for (path, entry) in settled(layer) {
            if path == ROOT {
                // Its attributes are the upper's.
                continue;
            }
            let (dir, name) = self
                .ends(path)
                .expect("directories come before what is in them");
            let there = self.entry(dir, name);
            let id = match entry {
                Entry::Whiteout => None,
                Entry::HardLink { to } => Some(of_this_layer[to]),
                Entry::Dir { opaque, meta } => {
                    let mut made = made_of(Kind::Directory(BTreeMap::new()), meta);
                    // Directories merge; the topmost has the attributes.
                    if let Some(below) = there.filter(|id| self.inodes[*id].is_dir() && !opaque) {
                        made.kind = self.inodes[below].kind.clone();
                    }
                    Some(self.add_inode(made))
                }
                other => Some(self.add_inode(made_of_file(other))),
            };
            self.set_entry(dir, name, id);
            if let Some(id) = id {
                of_this_layer.insert(path, id);
                // All links of the layer, seen or hidden; `count_hidden` looks.
                self.inodes[id].hidden += 1;
            }
        }
    }

    /// Finds out which links are seen, now that all layers are there.
    fn count_hidden(&mut self) {
        let mut pending = vec![ROOT_ID];
        while let Some(dir) = pending.pop() {
            for id in self.entries_of(dir) {
                self.inodes[id].names += 1;
                self.inodes[id].hidden -= 1;
                if self.inodes[id].is_dir() {
                    pending.push(id);
                }
            }
        }
    }

    fn entries_of(&self, dir: Id) -> Vec<Id> {
        let entries = self.inodes[dir].entries().expect("a directory");
        entries.values().copied().collect()
    }

    pub(super) fn add_inode(&mut self, inode: Inode) -> Id {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }
}

fn made_of_file(entry: Entry) -> Inode {
    match entry {
        Entry::File { content, meta } => {
            let mut data = vec![0; usize::try_from(content.len()).unwrap()];
            for (at, piece) in content.pieces() {
                let at = usize::try_from(at).unwrap();
                data[at..at + piece.len()].copy_from_slice(&piece);
            }
            made_of(Kind::Regular(Arc::new(data)), meta)
        }
        Entry::Symlink { target, meta } => made_of(Kind::Symlink(target), meta),
        Entry::Fifo { meta } => made_of(Kind::Special(FileKind::Fifo, 0), meta),
        Entry::Node { device, meta } => made_of(special(Special::Of(device)), meta),
        other => unreachable!("{other:?} is no file"),
    }
}

fn made_of(kind: Kind, meta: Meta) -> Inode {
    let mut inode = Inode::new(kind, meta.mode.0, (meta.uid, meta.gid));
    if let Kind::Symlink(_) = inode.kind {
        inode.perm = 0o777;
    }
    if let Some((name, value)) = meta.xattr
        && xattr_refusal(name, inode.file_kind()).is_none()
    {
        inode.xattrs.insert(name, value);
    }
    inode.mtime = Some(meta.mtime);
    inode.data_of = DataOf::Image;
    inode
}
