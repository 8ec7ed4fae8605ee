//! Every operation, stopped at every one of its changes: by a crash, and by a disk that refuses.
//!
//! After a crash the next mount shows the state before the operation or the one after it. After
//! an error the mount that goes on does, and so does the next one: the state before if the
//! operation failed, the one after if it could live with the error.

use rustix::io::Errno;

use super::tree::{Seen, tree};
use super::*;
use crate::sys::change::faults::{self, Fault};

type Tree = std::collections::BTreeMap<PathBuf, Seen>;

/// A scene: what is below, what was done before, and the operation under test.
struct Scene {
    name: &'static str,
    before: fn(&Union),
    act: fn(&Union) -> Result<()>,
}

fn scene(name: &'static str, before: fn(&Union), act: fn(&Union) -> Result<()>) -> Scene {
    Scene { name, before, act }
}

/// One layer with everything that the scenes need.
fn bed() -> Bed {
    let bed = Bed::new();
    bed.lower("file", "image").lower("other", "another");
    bed.lower("d/in", "inside").lower("d/sub/deep", "deep");
    bed.lower("e/in", "also inside")
        .lower("e/sub/deep", "deeper");
    bed.lower("a", "linked");
    fs::hard_link(bed.path("lower/a"), bed.path("lower/b")).unwrap();
    fs::hard_link(bed.path("lower/a"), bed.path("lower/d/c")).unwrap();
    fs::set_permissions(
        bed.path("lower/file"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4711),
    )
    .unwrap();
    bed
}

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
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

fn rename(union: &Union, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
    let (parent, target) = (parent_of(union, from), parent_of(union, to));
    union.rename(parent, last(from), target, last(to), flags)
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

/// Removes everything in `e`, so that it is empty but holds whiteouts.
fn empty_e(union: &Union) {
    unlink(union, "e/in").unwrap();
    unlink(union, "e/sub/deep").unwrap();
    rmdir(union, "e/sub").unwrap();
}

fn open_for_writing(union: &Union, path: &str) -> Result<()> {
    let opened = union.open(ROOT, walk(union, path).node, OFlags::RDWR)?;
    union.release(opened.fh);
    Ok(())
}

fn chmod(union: &Union, path: &str) -> Result<()> {
    let change = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    union
        .setattr(ROOT, walk(union, path).node, None, &change)
        .map(drop)
}

fn scenes() -> Vec<Scene> {
    let none = |_: &Union| {};
    let plain = RenameFlags::empty;
    let swap = || RenameFlags::EXCHANGE;
    let _ = (plain, swap);
    vec![
        scene("open for writing", none, |u| {
            open_for_writing(u, "d/sub/deep")
        }),
        scene("chmod", none, |u| chmod(u, "file")),
        scene("chmod of a directory", none, |u| chmod(u, "d/sub")),
        scene("chmod of a hard link", none, |u| chmod(u, "d/c")),
        scene("rename of an image file", none, |u| {
            rename(u, "file", "d/moved", RenameFlags::empty())
        }),
        scene("rename over an image file", none, |u| {
            rename(u, "file", "d/in", RenameFlags::empty())
        }),
        scene("rename of an image directory", none, |u| {
            rename(u, "d", "moved", RenameFlags::empty())
        }),
        scene(
            "rename of a directory over one with whiteouts",
            empty_e,
            |u| rename(u, "d", "e", RenameFlags::empty()),
        ),
        scene(
            "rename of a directory over a whiteout",
            |u| {
                empty_e(u);
                rmdir(u, "e").unwrap();
            },
            |u| rename(u, "d", "e", RenameFlags::empty()),
        ),
        scene(
            "rename of a new directory over a whiteout",
            |u| {
                empty_e(u);
                rmdir(u, "e").unwrap();
                u.mkdir(ROOT, NodeId::ROOT, name("new"), 0o700).unwrap();
            },
            |u| rename(u, "new", "e", RenameFlags::empty()),
        ),
        scene("exchange of a file and a directory", none, |u| {
            rename(u, "d", "file", RenameFlags::EXCHANGE)
        }),
        scene("exchange of two directories", none, |u| {
            rename(u, "d", "e/sub", RenameFlags::EXCHANGE)
        }),
        scene("rename of a hard link", none, |u| {
            rename(u, "d/c", "e/c", RenameFlags::empty())
        }),
        scene("rename over a hard link", none, |u| {
            rename(u, "file", "b", RenameFlags::empty())
        }),
        scene(
            "rename of a hard link known by the index",
            |u| {
                write(u, "a", "L");
            },
            |u| rename(u, "d/c", "e/c", RenameFlags::empty()),
        ),
        scene("link of an image file", none, |u| link(u, "file", "d/new")),
        scene("link of a hard link", none, |u| link(u, "b", "e/new")),
        scene(
            "link over a whiteout",
            |u| unlink(u, "d/in").unwrap(),
            |u| link(u, "file", "d/in"),
        ),
        scene(
            "link of a hard link over a whiteout",
            |u| unlink(u, "d/in").unwrap(),
            |u| link(u, "a", "d/in"),
        ),
        scene("unlink of an image file", none, |u| unlink(u, "d/in")),
        scene("unlink of a hard link", none, |u| unlink(u, "b")),
        scene(
            "unlink of a hard link known by the index",
            |u| {
                write(u, "a", "L");
            },
            |u| unlink(u, "d/c"),
        ),
        scene(
            "unlink of a copied-up hard link",
            |u| {
                write(u, "a", "L");
            },
            |u| unlink(u, "a"),
        ),
        scene(
            "unlink of the last hard link",
            |u| {
                write(u, "a", "L");
                unlink(u, "a").unwrap();
                unlink(u, "b").unwrap();
            },
            |u| unlink(u, "d/c"),
        ),
        scene("rmdir of a directory with whiteouts", empty_e, |u| {
            rmdir(u, "e")
        }),
        scene(
            "create over a whiteout",
            |u| unlink(u, "d/in").unwrap(),
            |u| {
                let (_, opened) =
                    u.create(ROOT, parent_of(u, "d/in"), name("in"), 0o640, OFlags::RDWR)?;
                u.release(opened.fh);
                Ok(())
            },
        ),
        scene(
            "mkdir over a whiteout",
            |u| {
                empty_e(u);
                rmdir(u, "e").unwrap();
            },
            |u| u.mkdir(ROOT, NodeId::ROOT, name("e"), 0o755).map(drop),
        ),
        scene("symlink", none, |u| {
            u.symlink(ROOT, parent_of(u, "d/x"), name("x"), name("target"))
                .map(drop)
        }),
        scene("mknod of a device 0:0", none, |u| {
            let mode = rustix::fs::FileType::CharacterDevice.as_raw_mode() | 0o640;
            u.mknod(ROOT, parent_of(u, "d/x"), name("x"), mode, 0)
                .map(drop)
        }),
        scene("setxattr", none, |u| {
            let node = walk(u, "d/in").node;
            u.setxattr(
                node,
                name("user.x"),
                b"value",
                rustix::fs::XattrFlags::empty(),
            )
        }),
        scene(
            "seal",
            |u| {
                write(u, "a", "L");
            },
            Union::seal,
        ),
    ]
}

/// The states before and after a scene's operation, and its number of changes.
fn plan(scene: &Scene) -> (Tree, Tree, u64) {
    let bed = bed();
    let union = bed.union();
    (scene.before)(&union);
    let before = tree(&union);
    let (result, steps) = faults::with(Fault::Never, || (scene.act)(&union));
    result.unwrap_or_else(|error| panic!("{}: {error}", scene.name));
    let after = tree(&union);
    assert!(steps > 0, "{} changes nothing", scene.name);
    (before, after, steps)
}

/// What may differ between two runs: each makes its own files, and new ones get the time of day.
fn comparable(tree: &Tree) -> Tree {
    let mut groups = std::collections::BTreeMap::new();
    let mut tree = tree.clone();
    for (path, seen) in &mut tree {
        let first = groups.entry(seen.ino).or_insert_with(|| path.clone());
        seen.data.extend(first.as_os_str().as_bytes());
        (seen.ino, seen.mtime) = (0, None);
    }
    tree
}

fn differences(a: &Tree, b: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    (paths.into_iter())
        .filter(|path| a.get(*path) != b.get(*path))
        .map(|path| format!("{path:?}: {:?} / {:?}", a.get(path), b.get(path)))
        .collect()
}

fn assert_one_of(what: &str, seen: &Tree, allowed: &[&Tree]) {
    let seen = comparable(seen);
    let wrong: Vec<_> = allowed
        .iter()
        .map(|tree| differences(&seen, &comparable(tree)))
        .collect();
    assert!(wrong.iter().any(Vec::is_empty), "{what}: {wrong:#?}");
}

#[test]
fn a_crash_at_any_change_leaves_the_old_or_the_new_state() {
    for scene in scenes() {
        let (before, after, steps) = plan(&scene);
        for count in 0..steps {
            let bed = bed();
            {
                let union = bed.union();
                (scene.before)(&union);
                let _ = faults::with(Fault::CrashAfter(count), || {
                    let result = (scene.act)(&union);
                    drop(union);
                    result
                });
            }
            let union = bed.union();
            let what = format!("{}, crash after change {count} of {steps}", scene.name);
            assert_one_of(&what, &tree(&union), &[&before, &after]);
            let left = fs::read_dir(bed.path("work/work")).unwrap().count();
            assert_eq!(left, 0, "{what}: left in the work directory");
        }
    }
}

#[test]
fn an_error_at_any_change_leaves_nothing_half_done() {
    for scene in scenes() {
        let (before, after, steps) = plan(&scene);
        for count in 0..steps {
            let bed = bed();
            let what = format!("{}, error at change {count} of {steps}", scene.name);
            let result = {
                let union = bed.union();
                (scene.before)(&union);
                let fault = Fault::FailAfter(count, Errno::NOSPC);
                let (result, _) = faults::with(fault, || (scene.act)(&union));
                if let Err(error) = &result {
                    assert_eq!(error.errno(), Errno::NOSPC, "{what}");
                }
                let wanted = if result.is_ok() { &after } else { &before };
                assert_one_of(&format!("{what}, {result:?}"), &tree(&union), &[wanted]);
                result
            };
            let wanted = if result.is_ok() { &after } else { &before };
            let what = format!("{what}, {result:?}, mounted again");
            assert_one_of(&what, &tree(&bed.union()), &[wanted]);
        }
    }
}
