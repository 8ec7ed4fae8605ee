//! Every operation, stopped at every one of its changes: by a crash, and by a disk that refuses.
//!
//! After a crash the next mount shows the state before the operation or the one after it, and the
//! operation can be done again. After an error the mount that goes on does, and so does the next
//! one: the state before if the operation failed, the one after if it could live with the error.
//!
//! What is done is in `scenes`, what it is done on in `ground`. A run tries some ten thousand points
//! in memory (`/dev/shm`); with `LAMINA_FAULTS=long` it tries every scene on every ground, and on
//! the file system of the temporary directory too. `LAMINA_FAULTS_ONLY=words` tries the scenes
//! whose names hold these words, and fails at the end, because they are too few.

mod again;
mod ground;
mod scenes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;

use rustix::io::Errno;

use super::tree::{Seen, tree};
use super::*;
use crate::sys::change::faults::{self, Fault};
use crate::types::Fh;
use ground::{Ground, Past, is_long};
use scenes::{Scene, scenes};

type Tree = BTreeMap<PathBuf, Seen>;

/// A scene on a ground, and what it should come to.
struct Trial<'a> {
    scene: &'a Scene,
    ground: &'a Ground,
    before: Tree,
    after: Tree,
    /// How many changes the operation makes.
    steps: u64,
}

impl<'a> Trial<'a> {
    /// Does the operation once, undisturbed.
    fn plan(scene: &'a Scene, ground: &'a Ground) -> Trial<'a> {
        let place = ground.place();
        let union = ground.prepare(&place, scene);
        // Another union, so that this one knows no more than the others will.
        let before = {
            let place = ground.place();
            tree(&ground.prepare(&place, scene))
        };
        let _readers = readers(&union, ground);
        let (result, steps) = faults::with(Fault::Never, || (scene.act)(&union));
        result.unwrap_or_else(|error| panic!("{} on {ground:?}: {error}", scene.name));
        let after = tree(&union);
        assert!(steps > 0, "{} on {ground:?} changes nothing", scene.name);
        Trial {
            scene,
            ground,
            before: comparable(&before),
            after: comparable(&after),
            steps,
        }
    }

    fn crash(&self, count: u64) {
        let place = self.ground.place();
        let union = self.ground.prepare(&place, self.scene);
        let _readers = readers(&union, self.ground);
        let _ = faults::with(Fault::CrashAfter(count), || {
            let result = (self.scene.act)(&union);
            drop(union);
            result
        });
        let union = self.ground.mount(&place);
        let what = self.what(&format!("crash after change {count}"));
        let seen = comparable(&tree(&union));
        assert_one_of(&what, &seen, &[&self.before, &self.after]);
        assert_eq!(place.in_work(), 0, "{what}: left in the work directory");
        if seen == self.before {
            let again = (self.scene.act)(&union);
            again.unwrap_or_else(|error| panic!("{what}, done again: {error}"));
            let what = format!("{what}, done again");
            assert_one_of(&what, &comparable(&tree(&union)), &[&self.after]);
        }
    }

    fn refuse(&self, count: u64, errno: Errno) {
        let place = self.ground.place();
        let union = self.ground.prepare(&place, self.scene);
        let readers = readers(&union, self.ground);
        let fault = Fault::FailAfter(count, errno);
        let (result, _) = faults::with(fault, || (self.scene.act)(&union));
        let what = self.what(&format!("{errno} at change {count}: {result:?}"));
        let wanted = match &result {
            Ok(()) => &self.after,
            Err(error) => {
                assert_eq!(error.errno(), errno, "{what}");
                assert_eq!(place.in_work(), 0, "{what}: left in the work directory");
                &self.before
            }
        };
        for (path, fh, old) in readers {
            assert_eq!(read_at(&union, fh), old, "{what}: a reader of {path:?}");
            union.release(fh);
        }
        assert_one_of(&what, &comparable(&tree(&union)), &[wanted]);
        drop(union);
        let seen = comparable(&tree(&self.ground.mount(&place)));
        assert_one_of(&format!("{what}, mounted again"), &seen, &[wanted]);
    }

    fn what(&self, fault: &str) -> String {
        let Trial { scene, ground, .. } = self;
        format!("{} on {ground:?}, {fault} of {}", scene.name, self.steps)
    }
}

/// Opens every regular file, where the ground has readers.
fn readers(union: &Union, ground: &Ground) -> Vec<(PathBuf, Fh, Vec<u8>)> {
    if ground.past != Past::Readers {
        return Vec::new();
    }
    let files = tree(union).into_iter();
    files
        .filter(|(_, seen)| seen.kind == FileKind::Regular)
        .map(|(path, seen)| {
            let node = walk(union, path.to_str().unwrap()).node;
            let opened = union.open(ROOT, node, OFlags::RDONLY).unwrap();
            (path, opened.fh, seen.data)
        })
        .collect()
}

fn read_at(union: &Union, fh: Fh) -> Vec<u8> {
    let mut buffer = vec![0; 64];
    let count = union.read(fh, 0, &mut buffer).unwrap();
    buffer.truncate(count);
    buffer
}

/// What may differ between two runs: each makes its own files, and new ones get the time of day.
fn comparable(tree: &Tree) -> Tree {
    let mut groups = BTreeMap::new();
    let mut tree = tree.clone();
    for (path, seen) in &mut tree {
        let first = groups.entry(seen.ino).or_insert_with(|| path.clone());
        seen.data.extend(first.as_os_str().as_bytes());
        (seen.ino, seen.mtime) = (0, None);
    }
    tree
}

fn differences(a: &Tree, b: &Tree) -> Vec<String> {
    let paths: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    (paths.into_iter())
        .filter(|path| a.get(*path) != b.get(*path))
        .map(|path| format!("{path:?}: {:?} / {:?}", a.get(path), b.get(path)))
        .collect()
}

fn assert_one_of(what: &str, seen: &Tree, allowed: &[&Tree]) {
    let wrong: Vec<_> = allowed.iter().map(|tree| differences(seen, tree)).collect();
    assert!(wrong.iter().any(Vec::is_empty), "{what}: {wrong:#?}");
}

/// Tries all scenes on all grounds, on all processors. Returns how many points `stop` says that it
/// has tried.
fn everywhere(stop: impl Fn(&Trial<'_>) -> u64 + Sync) -> u64 {
    let (mut scenes, grounds) = (scenes(), ground::all());
    let only = std::env::var("LAMINA_FAULTS_ONLY").unwrap_or_default();
    scenes.retain(|scene| scene.name.contains(&only));
    let pairs: Vec<_> = (scenes.iter())
        .flat_map(|scene| grounds.iter().map(move |ground| (scene, ground)))
        .collect();
    let (next, points) = (AtomicUsize::new(0), std::sync::atomic::AtomicU64::new(0));
    let threads = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((scene, ground)) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tried = stop(&Trial::plan(scene, ground));
                    points.fetch_add(tried, Ordering::Relaxed);
                }
            });
        }
    });
    points.into_inner()
}

/// Says how many, whether the test passes or not.
fn tell(points: u64, what: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{points} {what} tried").unwrap();
}

#[test]
fn a_crash_at_any_change_leaves_the_old_or_the_new_state() {
    let points = everywhere(|trial| {
        (0..trial.steps).for_each(|count| trial.crash(count));
        trial.steps
    });
    tell(points, "crash points");
    assert!(points > 5_000, "only {points} crash points");
}

#[test]
fn an_error_at_any_change_leaves_nothing_half_done() {
    // EINVAL is what a file system says that can't do a step that way.
    let errnos = [Errno::NOSPC, Errno::IO, Errno::INVAL];
    let points = everywhere(|trial| {
        for count in 0..trial.steps {
            let at = usize::try_from(count).unwrap() + trial.ground.layers;
            trial.refuse(count, errnos[at % errnos.len()]);
        }
        trial.steps
    });
    tell(points, "refused changes");
    assert!(points > 5_000, "only {points} refused changes");
}

/// A redirect that the file system has no room for is as between two file systems: mv(1) copies.
/// A disk that is full says so.
#[test]
fn a_redirect_that_does_not_fit_is_exdev() {
    for long in [10, 250] {
        let refused = |count| {
            let bed = Bed::new();
            let dir = format!("{}/{}", "p".repeat(long), "d".repeat(6));
            bed.lower(&format!("{dir}/file"), "");
            let union = bed.union();
            let parent = walk(&union, &"p".repeat(long)).node;
            let (name, to) = (OsStr::new("dddddd"), OsStr::new("moved"));
            let act = || union.rename(parent, name, NodeId::ROOT, to, RenameFlags::empty());
            let (result, _) = faults::with(Fault::FailAfter(count, Errno::NOSPC), act);
            result.map_err(|error| error.errno())
        };
        let results = (0..30).map(refused);
        let refusals: Vec<_> = results.filter_map(Result::err).collect();
        assert_eq!(refusals.contains(&Errno::XDEV), long > 200, "{refusals:?}");
        assert!(refusals.contains(&Errno::NOSPC), "{refusals:?}");
    }
}
