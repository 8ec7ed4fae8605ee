//! How many requests each common operation costs: the table in docs/performance.md.
//!
//! A request more is a regression, one less means that the table is out of date. The test has a
//! binary of its own, so that no other test starts a process that has our files open for a moment:
//! then the last close would not be ours. It needs root and `/dev/fuse`.

// In a test a failed step is the end of it, in helpers and closures too.
#![allow(clippy::unwrap_used)]

#[path = "mounted/system.rs"]
#[allow(dead_code)] // the part that mounts is what we use
mod system;
#[path = "mounted/tools.rs"]
#[allow(dead_code)]
mod tools;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lamina_fusefs::session::{Operation, Requests, Session, SessionOptions};
use rustix::fs::{CWD, Mode, OFlags, XattrFlags, fstatfs, openat};
use rustix::io::Errno;

use system::{Access, Layers};
use tools::{Map, append, chmod, lchown, truncate};

/// What is done, in a mount. The number is 0 for the first time (cold) and 1 for the second.
type Work = fn(&Tree, usize);

const OPERATIONS: &[(&str, Work)] = &[
    ("stat an image file", |tree, _| {
        fs::metadata(tree.at("image/file0")).unwrap();
    }),
    ("stat a name that is not there", |tree, _| {
        assert!(!tree.at("image/none").exists());
    }),
    ("open, read, close a small image file", |tree, _| {
        assert_eq!(fs::read(tree.at("image/file0")).unwrap(), b"image");
    }),
    ("open, read, close a small upper file", |tree, _| {
        assert_eq!(fs::read(tree.at("upper/file0")).unwrap(), b"upper");
    }),
    ("map a file and read a page", |tree, _| {
        let file = File::open(tree.at("image/file0")).unwrap();
        assert_eq!(Map::read_only(&file).get(0), b'i');
    }),
    ("run a program", |tree, _| {
        assert!(
            Command::new(tree.at("image/program"))
                .status()
                .unwrap()
                .success()
        );
    }),
    ("readlink", |tree, _| {
        fs::read_link(tree.at("image/symlink")).unwrap();
    }),
    ("list 1,000 image files", |tree, _| {
        assert_eq!(fs::read_dir(tree.at("many")).unwrap().count(), 1_000);
    }),
    ("list 1,000 image files and stat each", |tree, _| {
        for entry in fs::read_dir(tree.at("many")).unwrap() {
            entry.unwrap().metadata().unwrap();
        }
    }),
    ("list an empty directory", |tree, number| {
        let dir = tree.at(&format!("upper/empty{number}"));
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }),
    ("getxattr of one that is not there", |tree, _| {
        let got = rustix::fs::getxattr(tree.at("image/file0"), "user.none", &mut [0_u8; 16]);
        assert_eq!(got, Err(Errno::NODATA));
    }),
    ("getxattr of an ACL that is not there", |tree, _| {
        let acl = "system.posix_acl_access";
        let got = rustix::fs::getxattr(tree.at("image/file0"), acl, &mut [0_u8; 16]);
        assert_eq!(got, Err(Errno::NODATA));
    }),
    ("create, write 4 KiB, close", |tree, number| {
        let mut made = File::create_new(tree.at(&format!("upper/new{number}"))).unwrap();
        made.write_all(&[1; 4096]).unwrap();
    }),
    (
        "open an upper file, write 4 KiB 100 times, close",
        |tree, _| {
            let mut file = OpenOptions::new()
                .write(true)
                .open(tree.at("upper/file0"))
                .unwrap();
            for _ in 0..100 {
                file.write_all(&[1; 4096]).unwrap();
            }
        },
    ),
    ("append to an upper file", |tree, _| {
        append(tree.at("upper/file0"), "more");
    }),
    ("append to an image file, the first time", |tree, number| {
        append(tree.at(&format!("image/file{number}")), "more");
    }),
    ("open an upper file, fsync, close", |tree, _| {
        File::open(tree.at("upper/file0"))
            .unwrap()
            .sync_all()
            .unwrap();
    }),
    ("truncate an upper file", |tree, number| {
        let path = tree.at(&format!("upper/file{number}"));
        truncate(path, 1).unwrap();
    }),
    ("chmod an upper file", |tree, _| {
        chmod(tree.at("upper/file0"), 0o600);
    }),
    ("chmod an image file", |tree, number| {
        let path = tree.at(&format!("image/file{number}"));
        chmod(path, 0o600);
    }),
    ("chown an image file", |tree, number| {
        let path = tree.at(&format!("image/file{number}"));
        lchown(path, 1, 1);
    }),
    ("setxattr of an upper file", |tree, _| {
        let path = tree.at("upper/file0");
        rustix::fs::setxattr(path, "user.name", b"value", XattrFlags::empty()).unwrap();
    }),
    ("rename an upper file", |tree, number| {
        let from = tree.at(&format!("upper/file{number}"));
        fs::rename(from, tree.at(&format!("upper/moved{number}"))).unwrap();
    }),
    ("link an upper file", |tree, number| {
        let to = tree.at(&format!("upper/link{number}"));
        fs::hard_link(tree.at(&format!("upper/file{number}")), to).unwrap();
    }),
    ("symlink", |tree, number| {
        symlink("target", tree.at(&format!("upper/symlink{number}"))).unwrap();
    }),
    ("unlink an upper file", |tree, number| {
        fs::remove_file(tree.at(&format!("upper/file{number}"))).unwrap();
    }),
    ("unlink an image file", |tree, number| {
        fs::remove_file(tree.at(&format!("image/file{number}"))).unwrap();
    }),
    ("mkdir", |tree, number| {
        fs::create_dir(tree.at(&format!("upper/dir{number}"))).unwrap();
    }),
    ("rmdir", |tree, number| {
        fs::remove_dir(tree.at(&format!("upper/empty{number}"))).unwrap();
    }),
];

#[test]
fn the_table_in_the_documentation_is_true() {
    let count = |(name, work): &(&str, Work)| {
        let tree = Tree::new();
        let [cold, warm] = [0, 1].map(|number| tree.count(|tree| work(tree, number)));
        format!("| {name} | {} | {} |", cell(&cold), cell(&warm))
    };
    let counted: Vec<String> = OPERATIONS.iter().map(count).collect();
    let documented = documented();
    assert!(
        documented == counted,
        "docs/performance.md says:\n{}\nbut it is:\n{}",
        documented.join("\n"),
        counted.join("\n")
    );
}

/// The rows of the table.
fn documented() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("| operation | cold | warm |\n").unwrap();
    let rows = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    rows.map(str::to_owned).collect()
}

/// What the table says of these requests.
fn cell(requests: &Requests) -> String {
    let counted = requests.iter().filter(|(operation, _)| {
        // The one is ours (`Tree::settled`), and when the kernel forgets is its own business.
        !matches!(operation, Operation::Statfs | Operation::Forget)
    });
    let cells: Vec<String> = counted
        .map(|(operation, count)| match count {
            1 => operation.name().to_owned(),
            _ => format!("{count} {}", operation.name()),
        })
        .collect();
    if cells.is_empty() {
        "none".to_owned()
    } else {
        cells.join(", ")
    }
}

/// A fresh mount over one layer.
struct Tree {
    session: Option<Session>,
    root: Option<rustix::fd::OwnedFd>,
    layers: Layers,
}

impl Tree {
    fn new() -> Tree {
        let layers = Layers::new(1);
        for dir in ["image", "many"] {
            fs::create_dir(layers.bottom(dir)).unwrap();
        }
        for number in 0..2 {
            fs::write(layers.bottom(&format!("image/file{number}")), "image").unwrap();
        }
        for number in 0..1_000 {
            File::create(layers.bottom(&format!("many/{number}"))).unwrap();
        }
        symlink("target", layers.bottom("image/symlink")).unwrap();
        fs::copy("/bin/true", layers.bottom("image/program")).unwrap();

        let upper = layers.upper().join("upper");
        fs::create_dir(&upper).unwrap();
        for number in 0..2 {
            fs::write(upper.join(format!("file{number}")), "upper").unwrap();
            fs::create_dir(upper.join(format!("empty{number}"))).unwrap();
        }
        // One thread, so that requests are counted in the order in which they are made.
        let options = SessionOptions {
            threads: 1,
            ..SessionOptions::default()
        };
        let session = layers.mount_lamina(Access::Write, &options);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = openat(CWD, layers.mountpoint(), flags, Mode::empty()).unwrap();
        Tree {
            session: Some(session),
            root: Some(root),
            layers,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.layers.mountpoint().join(path)
    }

    /// The requests that some work costs.
    fn count(&self, work: impl Fn(&Tree)) -> Requests {
        let before = self.settled();
        work(self);
        self.settled() - before
    }

    /// What was asked so far, also those requests that nobody waits for (RELEASE): STATFS comes
    /// after them.
    fn settled(&self) -> Requests {
        fstatfs(self.root.as_ref().unwrap().as_fd()).unwrap();
        self.session.as_ref().unwrap().requests()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        drop(self.root.take());
        if let Some(session) = self.session.take() {
            let gone = session.unmount(Duration::from_secs(10)).unwrap();
            assert!(gone || std::thread::panicking(), "somebody uses the mount");
        }
    }
}
