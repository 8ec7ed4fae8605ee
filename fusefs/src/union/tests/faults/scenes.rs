//! What is done, and what was done before.

use rustix::fs::{FallocateFlags, FileType};

use super::*;

type Step<T> = Box<dyn Fn(&Union) -> T + Send + Sync>;

/// An operation, and what leads to it.
pub(super) struct Scene {
    pub(super) name: String,
    pub(super) before: Step<()>,
    pub(super) act: Step<Result<()>>,
}

fn scene(
    name: impl Into<String>,
    before: impl Fn(&Union) + Send + Sync + 'static,
    act: impl Fn(&Union) -> Result<()> + Send + Sync + 'static,
) -> Scene {
    Scene {
        name: name.into(),
        before: Box::new(before),
        act: Box::new(act),
    }
}

fn parent_of(union: &Union, path: &str) -> NodeId {
    match Path::new(path).parent() {
        Some(parent) if parent != Path::new("") => walk(union, parent.to_str().unwrap()).node,
        _ => NodeId::ROOT,
    }
}

fn last(path: &str) -> &OsStr {
    Path::new(path).file_name().unwrap()
}

fn rename_with(union: &Union, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
    let (parent, target) = (parent_of(union, from), parent_of(union, to));
    union.rename(parent, last(from), target, last(to), flags)
}

fn rename(union: &Union, from: &str, to: &str) -> Result<()> {
    rename_with(union, from, to, RenameFlags::empty())
}

fn exchange(union: &Union, from: &str, to: &str) -> Result<()> {
    rename_with(union, from, to, RenameFlags::EXCHANGE)
}

fn link(union: &Union, from: &str, to: &str) -> Result<()> {
    let (node, target) = (walk(union, from).node, parent_of(union, to));
    union.link(node, target, last(to)).map(drop)
}

fn unlink(union: &Union, path: &str) -> Result<()> {
    union.unlink(parent_of(union, path), last(path))
}

fn rmdir(union: &Union, path: &str) -> Result<()> {
    union.rmdir(parent_of(union, path), last(path))
}

fn mkdir(union: &Union, path: &str) -> Result<()> {
    let parent = parent_of(union, path);
    union.mkdir(ROOT, parent, last(path), 0o750).map(drop)
}

/// Does `act` with a path's node; again if the node was handed over, as the kernel does.
fn on<T>(union: &Union, path: &str, act: impl Fn(NodeId) -> Result<T>) -> Result<T> {
    match act(walk(union, path).node) {
        Err(Error::HandedOver) => act(walk(union, path).node),
        other => other,
    }
}

pub(super) fn open(union: &Union, path: &str, flags: OFlags) -> Result<()> {
    let opened = on(union, path, |node| union.open(ROOT, node, flags))?;
    union.release(opened.fh);
    Ok(())
}

/// Writes a byte, or (`frees`) frees the space of one.
fn write(union: &Union, path: &str, frees: bool) -> Result<()> {
    let opened = on(union, path, |node| union.open(ROOT, node, OFlags::RDWR))?;
    let written = if frees {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        union.fallocate(ROOT, opened.fh, hole, 2, 1)
    } else {
        union.write(opened.fh, 3, b"X", false).map(drop)
    };
    union.release(opened.fh);
    written
}

fn resize(union: &Union, path: &str, size: u64) -> Result<()> {
    let size = Some(size);
    let change = SetAttr {
        size,
        ..SetAttr::default()
    };
    set(union, path, &change)
}

fn set(union: &Union, path: &str, change: &SetAttr) -> Result<()> {
    on(union, path, |node| union.setattr(ROOT, node, None, change)).map(drop)
}

pub(super) fn chmod(union: &Union, path: &str, mode: u32) -> Result<()> {
    let mode = Some(mode);
    let change = SetAttr {
        mode,
        ..SetAttr::default()
    };
    set(union, path, &change)
}

/// Removes everything in `e`, so that it is empty but holds whiteouts.
fn empty_e(union: &Union) {
    unlink(union, "e/in").unwrap();
    unlink(union, "e/sub/deep").unwrap();
    rmdir(union, "e/sub").unwrap();
}

fn remove_e(union: &Union) {
    empty_e(union);
    rmdir(union, "e").unwrap();
}

fn nothing(_: &Union) {}

pub(super) fn scenes() -> Vec<Scene> {
    let mut all = changes_of_files();
    all.extend(new_files());
    all.extend(renames_of_files());
    all.extend(renames_of_directories());
    all.extend(hard_links());
    all.extend(removals());
    all
}

fn changes_of_files() -> Vec<Scene> {
    let rdwr = OFlags::RDWR;
    vec![
        scene("open for writing", nothing, move |u| {
            open(u, "d/sub/deep", rdwr)
        }),
        scene("synchronous open for writing", nothing, move |u| {
            open(u, "d/sub/deep", rdwr | OFlags::DSYNC)
        }),
        scene("truncating open", nothing, move |u| {
            open(u, "d/sub/deep", rdwr | OFlags::TRUNC)
        }),
        scene("truncating open of a hard link", nothing, move |u| {
            open(u, "d/c", rdwr | OFlags::TRUNC)
        }),
        scene("truncate", nothing, |u| resize(u, "d/in", 3)),
        scene("truncate to more", nothing, |u| resize(u, "d/in", 9_000)),
        scene("write", nothing, |u| write(u, "d/sub/deep", false)),
        scene("write what was open before", nothing, |u| {
            write(u, "d/in", false)
        }),
        scene("write a hard link", nothing, |u| write(u, "d/c", false)),
        scene(
            "write what was shorter",
            |u| resize(u, "d/in", 2).unwrap(),
            |u| write(u, "d/in", false),
        ),
        scene("free space", nothing, |u| write(u, "d/in", true)),
        scene("chmod", nothing, |u| chmod(u, "file", 0o600)),
        scene("chown", nothing, |u| {
            let uid = Some(5);
            let change = SetAttr {
                uid,
                ..SetAttr::default()
            };
            set(u, "d/in", &change)
        }),
        scene("chmod of a directory", nothing, |u| {
            chmod(u, "d/sub", 0o700)
        }),
        scene("chmod of a hard link", nothing, |u| chmod(u, "d/c", 0o600)),
        scene("setxattr", nothing, |u| {
            let flags = rustix::fs::XattrFlags::empty();
            let node = walk(u, "d/in").node;
            u.setxattr(node, OsStr::new("user.x"), b"value", flags)
        }),
        scene("removexattr", nothing, |u| {
            u.removexattr(walk(u, "d").node, OsStr::new("user.of"))
        }),
    ]
}

/// All kinds of new things, at a name that is free and at one that a whiteout holds.
fn new_files() -> Vec<Scene> {
    let mut all = Vec::new();
    for over in [false, true] {
        let prepare = move |u: &Union| {
            if over {
                unlink(u, "d/in").unwrap();
            }
        };
        let (path, at) = if over {
            ("d/in", "over a whiteout")
        } else {
            ("d/new", "")
        };
        all.push(scene(format!("create {at}"), prepare, move |u| {
            let parent = parent_of(u, path);
            let (_, opened) = u.create(ROOT, parent, last(path), 0o640, OFlags::RDWR)?;
            u.release(opened.fh);
            Ok(())
        }));
        let makes = [
            (FileType::Fifo, 0),
            (FileType::Socket, 0),
            (FileType::BlockDevice, 0x701),
            (FileType::CharacterDevice, 0),
            (FileType::RegularFile, 0),
        ];
        for (kind, rdev) in makes {
            let mode = kind.as_raw_mode() | 0o600;
            all.push(scene(format!("mknod {kind:?} {at}"), prepare, move |u| {
                let parent = parent_of(u, path);
                u.mknod(ROOT, parent, last(path), mode, rdev).map(drop)
            }));
        }
        all.push(scene(format!("symlink {at}"), prepare, move |u| {
            let target = OsStr::new("target");
            u.symlink(ROOT, parent_of(u, path), last(path), target)
                .map(drop)
        }));
        all.push(scene(format!("mkdir {at}"), prepare, move |u| {
            mkdir(u, path)
        }));
        all.push(scene(format!("link {at}"), prepare, move |u| {
            link(u, "file", path)
        }));
        all.push(scene(
            format!("link of a hard link {at}"),
            prepare,
            move |u| link(u, "b", path),
        ));
        all.push(scene(format!("rename {at}"), prepare, move |u| {
            rename(u, "file", path)
        }));
        all.push(scene(
            format!("rename of a directory {at}"),
            prepare,
            move |u| rename(u, "e/sub", path),
        ));
    }
    all.push(scene("mkdir over a removed directory", remove_e, |u| {
        mkdir(u, "e")
    }));
    all
}

fn renames_of_files() -> Vec<Scene> {
    vec![
        scene("rename over an image file", nothing, |u| {
            rename(u, "file", "d/in")
        }),
        scene("rename without replacing", nothing, |u| {
            rename_with(u, "file", "e/new", RenameFlags::NOREPLACE)
        }),
        scene(
            "rename back",
            |u| rename(u, "file", "e/x").unwrap(),
            |u| rename(u, "e/x", "file"),
        ),
        scene("exchange of two files", nothing, |u| {
            exchange(u, "file", "d/in")
        }),
        scene(
            "exchange of a new file and an image file",
            |u| {
                let mode = FileType::RegularFile.as_raw_mode() | 0o600;
                let new = OsStr::new("new");
                u.mknod(ROOT, NodeId::ROOT, new, mode, 0).unwrap();
            },
            |u| exchange(u, "new", "d/in"),
        ),
    ]
}

fn renames_of_directories() -> Vec<Scene> {
    let new = |u: &Union| mkdir(u, "new").unwrap();
    vec![
        scene("rename of an image directory", nothing, |u| {
            rename(u, "d", "moved")
        }),
        scene(
            "rename of a directory over one with whiteouts",
            empty_e,
            |u| rename(u, "d", "e"),
        ),
        scene(
            "rename of a new directory over one with whiteouts",
            move |u| {
                empty_e(u);
                new(u);
            },
            |u| rename(u, "new", "e"),
        ),
        scene(
            "rename of a directory over an empty one of the image",
            |u| {
                unlink(u, "e/sub/deep").unwrap();
            },
            |u| rename(u, "d/sub", "e/sub"),
        ),
        scene("rename of a directory over a whiteout", remove_e, |u| {
            rename(u, "d", "e")
        }),
        scene(
            "rename of a new directory over a whiteout",
            move |u| {
                remove_e(u);
                new(u);
            },
            |u| rename(u, "new", "e"),
        ),
        scene(
            "rename of a directory into a renamed one",
            |u| rename(u, "d", "moved").unwrap(),
            |u| rename(u, "e", "moved/sub/e"),
        ),
        scene(
            "rename of a renamed directory",
            |u| rename(u, "d", "moved").unwrap(),
            |u| rename(u, "moved", "e/again"),
        ),
        scene(
            "rename of a file between renamed directories",
            |u| {
                rename(u, "d", "d1").unwrap();
                rename(u, "e", "e1").unwrap();
            },
            |u| rename(u, "d1/sub/deep", "e1/in"),
        ),
        scene(
            "rename back of a directory",
            |u| rename(u, "d", "moved").unwrap(),
            |u| rename(u, "moved", "d"),
        ),
        scene("exchange of a file and a directory", nothing, |u| {
            exchange(u, "d", "file")
        }),
        scene("exchange of two directories", nothing, |u| {
            exchange(u, "d", "e/sub")
        }),
        scene(
            "exchange of a directory with one that holds whiteouts",
            empty_e,
            |u| exchange(u, "d", "e"),
        ),
        scene(
            "exchange of a new directory with one of the image",
            new,
            |u| exchange(u, "new", "d"),
        ),
    ]
}

/// How a name of a file with several is known, and what makes it so.
type Known = (&'static str, fn(&Union));

fn links() -> [Known; 3] {
    [
        ("image alone", nothing),
        ("upper", |u| chmod(u, "d/c", 0o640).unwrap()),
        ("index alone", |u| chmod(u, "a", 0o640).unwrap()),
    ]
}

fn hard_links() -> Vec<Scene> {
    let mut all = Vec::new();
    for (at, known) in links() {
        let mut add = |name: &str, act: fn(&Union) -> Result<()>| {
            all.push(scene(format!("{name} (known by: {at})"), known, act));
        };
        add("rename of a link", |u| rename(u, "d/c", "e/c"));
        add("rename of a link over a file", |u| rename(u, "d/c", "e/in"));
        add("rename over a link", |u| rename(u, "file", "d/c"));
        add("rename over another file's link", |u| rename(u, "d/c", "x"));
        add("exchange of two files' links", |u| exchange(u, "d/c", "x"));
        add("exchange of a link and a directory", |u| {
            exchange(u, "d/c", "e")
        });
        add("link of a link", |u| link(u, "d/c", "e/new"));
        add("unlink of a link", |u| unlink(u, "d/c"));
    }
    for (at, known) in [links()[1], links()[2]] {
        all.push(scene(format!("seal (known by: {at})"), known, Union::seal));
    }
    all.push(scene("rename onto a link of the same file", nothing, |u| {
        rename(u, "d/c", "b")
    }));
    all.push(scene(
        "rename over the last link",
        |u| {
            unlink(u, "a").unwrap();
            unlink(u, "b").unwrap();
        },
        |u| rename(u, "file", "d/c"),
    ));
    all.push(scene(
        "seal of several files with many links",
        |u| {
            chmod(u, "a", 0o600).unwrap();
            chmod(u, "d/y", 0o600).unwrap();
            link(u, "a", "e/new").unwrap();
            rename(u, "d", "moved").unwrap();
        },
        Union::seal,
    ));
    all
}

fn removals() -> Vec<Scene> {
    vec![
        scene("unlink of an image file", nothing, |u| unlink(u, "d/in")),
        scene(
            "unlink of a copied-up file",
            |u| chmod(u, "d/in", 0o600).unwrap(),
            |u| unlink(u, "d/in"),
        ),
        scene(
            "unlink of a new link",
            |u| link(u, "file", "d/new").unwrap(),
            |u| unlink(u, "d/new"),
        ),
        scene(
            "unlink of the last link",
            |u| {
                unlink(u, "a").unwrap();
                unlink(u, "b").unwrap();
            },
            |u| unlink(u, "d/c"),
        ),
        scene("rmdir of a directory with whiteouts", empty_e, |u| {
            rmdir(u, "e")
        }),
        scene(
            "rmdir of a new directory with whiteouts",
            |u| {
                rename(u, "e", "moved").unwrap();
                unlink(u, "moved/in").unwrap();
                unlink(u, "moved/sub/deep").unwrap();
                rmdir(u, "moved/sub").unwrap();
            },
            |u| rmdir(u, "moved"),
        ),
        scene(
            "rmdir of an image directory",
            |u| unlink(u, "e/sub/deep").unwrap(),
            |u| rmdir(u, "e/sub"),
        ),
    ]
}
