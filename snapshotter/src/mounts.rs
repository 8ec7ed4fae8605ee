//! From what a snapshot is to the mounts that containerd is told. Nothing here touches the disk.

use std::path::{Path, PathBuf};

use crate::id_map::IdMap;
use crate::store::layout::Layout;
use crate::store::records::{Kind, Record};
use crate::upper_mode::UpperMode;

/// How a snapshot reaches its user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Access {
    /// containerd gets the directory itself: a layer without a parent that is being unpacked, or
    /// a view of nothing.
    Directory {
        /// `snapshots/<id>/fs`.
        fs: PathBuf,
        /// Whether it may be written.
        writable: bool,
    },
    /// A layer with parents that is being unpacked: the kernel's overlayfs writes straight into
    /// the upper.
    Overlay {
        /// Upper directory.
        fs: PathBuf,
        /// Work directory.
        work: PathBuf,
        /// The parents' directories, the topmost first.
        lower: Vec<PathBuf>,
    },
    /// A container: a union of its own.
    Union {
        /// Where it is mounted.
        at: PathBuf,
        /// How its users are shifted.
        id_map: Option<IdMap>,
    },
    /// An upper that the kernel's overlayfs holds, above the shared image mount: a container's, or
    /// that of a layer which is being unpacked above layers that were not.
    Kernel {
        /// Where the image is mounted.
        image: PathBuf,
        /// The id of the chain's topmost snapshot.
        chain: u64,
        /// Upper directory.
        fs: PathBuf,
        /// Work directory.
        work: PathBuf,
    },
    /// A view: the shared image mount of its chain.
    Shared {
        /// Where it is mounted.
        at: PathBuf,
        /// The id of the chain's topmost snapshot.
        chain: u64,
    },
}

/// A mount as containerd writes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// File system type, or "bind".
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// Options of mount(8).
    pub options: Vec<String>,
}

/// Whether containerd makes this snapshot to unpack a layer into it. Behind containerd's
/// `<namespace>/<number>/`, such a key is `extract-<random> <chain id>`.
pub fn is_extract(key: &str) -> bool {
    key.rsplit('/')
        .next()
        .is_some_and(|last| last.starts_with("extract-"))
}

/// How a snapshot that is not committed reaches its user. `chain` is what it stands on, topmost
/// first. `None` for a committed one, which nobody mounts.
pub fn access(layout: &Layout, key: &str, record: &Record, chain: &[u64]) -> Option<Access> {
    let id = record.id;
    match (record.kind, chain.first()) {
        (Kind::Committed, _) => None,
        (Kind::View, Some(&top)) => Some(Access::Shared {
            at: layout.mount(top),
            chain: top,
        }),
        (Kind::View, None) => Some(Access::Directory {
            fs: layout.fs(id),
            writable: false,
        }),
        // The kernel can't read layers that were not unpacked, so they are unpacked above their image.
        (Kind::Active, Some(&top))
            if is_extract(key) && record.lazy
                || record.upper == UpperMode::Kernel && !is_extract(key) =>
        {
            Some(Access::Kernel {
                image: layout.mount(top),
                chain: top,
                fs: layout.fs(id),
                work: layout.work(id),
            })
        }
        // Overlayfs needs a lower: without one the kernel writes into the directory itself.
        (Kind::Active, None) if record.upper == UpperMode::Kernel || is_extract(key) => {
            Some(Access::Directory {
                fs: layout.fs(id),
                writable: true,
            })
        }
        (Kind::Active, Some(_)) if is_extract(key) => Some(Access::Overlay {
            fs: layout.fs(id),
            work: layout.work(id),
            lower: chain.iter().map(|id| layout.fs(*id)).collect(),
        }),
        (Kind::Active, _) => Some(Access::Union {
            at: layout.mount(id),
            // Labels that are no map were refused when they were set.
            id_map: IdMap::of(&record.labels).unwrap_or_default(),
        }),
    }
}

/// What containerd is told to mount.
pub fn mounts(access: &Access) -> Vec<Mount> {
    let mount = match access {
        Access::Directory { fs, writable } => bind(fs, *writable),
        Access::Union { at, id_map } => {
            let mut mount = bind(at, true);
            let options = id_map.iter().flat_map(IdMap::mount_options);
            mount.options.extend(options);
            mount
        }
        Access::Shared { at, .. } => bind(at, false),
        // An index would tie the layer to this mount; layers are read one by one.
        Access::Overlay { fs, work, lower } => overlay(&["index=off"], fs, work, lower),
        Access::Kernel {
            image, fs, work, ..
        } => overlay(&ABOVE_IMAGE, fs, work, std::slice::from_ref(image)),
    };
    vec![mount]
}

/// How overlayfs is mounted above an image, whatever the kernel's defaults are.
///
/// What it writes becomes a layer: no index, and no attributes without their data. Redirects are
/// fine, since the paths of the one lower are those of the merged tree; with them directories of
/// the image can be renamed. `xino=on`: all files have the mount's device number and keep their
/// inode number when they are copied up, though the image is another file system than the upper.
const ABOVE_IMAGE: [&str; 5] = [
    "index=off",
    "metacopy=off",
    "redirect_dir=on",
    "nfs_export=off",
    "xino=on",
];

fn overlay(options: &[&str], fs: &Path, work: &Path, lower: &[PathBuf]) -> Mount {
    let lower: Vec<String> = lower.iter().map(|path| text(path)).collect();
    let mut options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    options.extend([
        format!("workdir={}", text(work)),
        format!("upperdir={}", text(fs)),
        format!("lowerdir={}", lower.join(":")),
    ]);
    Mount {
        kind: "overlay",
        source: "overlay".to_owned(),
        options,
    }
}

fn bind(source: &Path, writable: bool) -> Mount {
    let mode = if writable { "rw" } else { "ro" };
    Mount {
        kind: "bind",
        source: text(source),
        options: vec!["rbind".to_owned(), mode.to_owned()],
    }
}

/// The layout refuses a root that is not UTF-8, and everything below it is ours: nothing is lost.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    fn shown(kind: Kind, key: &str, chain: &[u64]) -> Option<String> {
        shown_by(UpperMode::Union, kind, key, chain)
    }

    fn shown_by(upper: UpperMode, kind: Kind, key: &str, chain: &[u64]) -> Option<String> {
        let dir = tempfile::tempdir().expect("tempdir");
        let layout = Layout::of(dir.path()).expect("layout");
        let record = Record {
            upper,
            ..Record::unsaved(9, kind)
        };
        let access = access(&layout, key, &record, chain)?;
        let root = layout.root().to_str().expect("utf-8").to_owned();
        let mounts = mounts(&access);
        let [mount] = mounts.as_slice() else {
            panic!("one mount")
        };
        let line = format!(
            "{} {} {}",
            mount.kind,
            mount.source,
            mount.options.join(",")
        );
        Some(line.replace(&root, "R"))
    }

    #[test]
    fn every_kind_of_snapshot_has_its_mount() {
        let extract = "k8s.io/12/extract-123-abc sha256:00";
        for (kind, key, chain, expected) in [
            (
                Kind::Active,
                "ns/1/c",
                &[][..],
                Some("bind R/mounts/9 rbind,rw"),
            ),
            (
                Kind::Active,
                "ns/1/c",
                &[7, 3],
                Some("bind R/mounts/9 rbind,rw"),
            ),
            (
                Kind::View,
                "ns/1/v",
                &[7, 3],
                Some("bind R/mounts/7 rbind,ro"),
            ),
            (
                Kind::View,
                "ns/1/v",
                &[],
                Some("bind R/snapshots/9/fs rbind,ro"),
            ),
            (Kind::View, extract, &[7], Some("bind R/mounts/7 rbind,ro")),
            (
                Kind::Active,
                extract,
                &[],
                Some("bind R/snapshots/9/fs rbind,rw"),
            ),
            (
                Kind::Active,
                extract,
                &[7, 3],
                Some(
                    "overlay overlay index=off,workdir=R/snapshots/9/work,\
                     upperdir=R/snapshots/9/fs,lowerdir=R/snapshots/7/fs:R/snapshots/3/fs",
                ),
            ),
            (Kind::Committed, "ns/1/l", &[7], None),
        ] {
            assert_eq!(
                shown(kind, key, chain).as_deref(),
                expected,
                "{kind} {key} {chain:?}"
            );
        }
    }

    #[test]
    fn the_kernel_holds_an_upper_above_the_shared_image() {
        let shown = |kind, key, chain: &[u64]| shown_by(UpperMode::Kernel, kind, key, chain);
        assert_eq!(
            shown(Kind::Active, "ns/1/c", &[7, 3]).as_deref(),
            Some(
                "overlay overlay index=off,metacopy=off,redirect_dir=on,nfs_export=off,xino=on,\
                 workdir=R/snapshots/9/work,upperdir=R/snapshots/9/fs,lowerdir=R/mounts/7"
            )
        );
        assert_eq!(
            shown(Kind::Active, "ns/1/c", &[]).as_deref(),
            Some("bind R/snapshots/9/fs rbind,rw")
        );
        // It is the container's business only.
        for (kind, key) in [
            (Kind::View, "ns/1/v"),
            (Kind::Active, "ns/1/extract-1 x"),
            (Kind::Committed, "ns/1/l"),
        ] {
            let by_union = shown_by(UpperMode::Union, kind, key, &[7, 3]);
            assert_eq!(shown(kind, key, &[7, 3]), by_union, "{kind} {key}");
        }
    }

    #[test]
    fn only_the_last_part_of_a_key_makes_it_an_extract() {
        assert!(is_extract("extract-1 sha256:0"));
        assert!(is_extract("default/3/extract-1 sha256:0"));
        assert!(!is_extract("extract-x/3/container"));
        assert!(!is_extract("default/3/my-extract-1"));
        assert!(!is_extract("default/3/extract"));
    }
}
