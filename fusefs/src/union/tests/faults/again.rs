//! Every operation, cut off before each of its changes and each of its entries in the record, by the end
//! of the process. The next one puts back what this one knew, and gets the request again: it is done once.

use std::cell::RefCell;
use std::collections::HashMap;

use parking_lot::Mutex;

use super::*;
use crate::record::{Pins, Record};

/// The number of the request that is cut off, and FUSE's mark of one that comes again.
const REQUEST: u64 = 4711;
const AGAIN: u64 = 1 << 63;

/// Files that outlive the process.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<HashMap<NodeId, Arc<OwnedFd>>>>);

impl Pins for Kept {
    fn pin(&self, node: NodeId, file: &Arc<OwnedFd>) {
        if !faults::has_stopped() {
            self.0.lock().insert(node, Arc::clone(file));
        }
    }

    fn unpin(&self, node: NodeId) {
        if !faults::has_stopped() {
            self.0.lock().remove(&node);
        }
    }
}

/// What the first process did, and what of it is left.
struct First {
    union: Option<Union>,
    record: Arc<Record>,
    kept: Kept,
    readers: Vec<(PathBuf, Fh, Vec<u8>)>,
}

impl First {
    fn prepare(trial: &Trial<'_>, place: &ground::UpperPlace) -> First {
        let last = RefCell::new(None);
        let mount = |place: &ground::UpperPlace| {
            let kept = Kept::default();
            let record = Arc::new(Record::create(Arc::new(kept.clone())).unwrap());
            record.complete(b"").unwrap();
            last.replace(Some((Arc::clone(&record), kept)));
            trial.ground.mount(place).recorded(record)
        };
        let union = trial.ground.prepare_mounted(place, trial.scene, mount);
        let (record, kept) = last.take().unwrap();
        let readers = readers(&union, trial.ground);
        First {
            union: Some(union),
            record,
            kept,
            readers,
        }
    }

    /// Does the operation under a fault, and ends with the process. Answers how many changes there were.
    fn act(&mut self, trial: &Trial<'_>, fault: Fault) -> u64 {
        let union = self.union.take().unwrap();
        let ((), steps) = faults::with(fault, || {
            let request = union.request(REQUEST);
            let _ = (trial.scene.act)(&union);
            drop((request, union));
        });
        steps
    }

    /// The process that goes on.
    fn succeed(self, trial: &Trial<'_>, place: &ground::UpperPlace, what: &str) -> Union {
        let file = std::fs::File::from(self.record.keeper().unwrap());
        let kept = Arc::new(self.kept.clone());
        let (record, _, state) = Record::open(file, kept).unwrap();
        let union = trial.ground.mount(place).recorded(Arc::new(record));
        let pins = self.kept.0.lock().clone();
        let revived = union.revive(state, pins, &|_, _| {});
        assert_eq!(revived.lost, 0, "{what}: {revived:?}");
        union
    }
}

/// How many changes an operation makes, with those of the record.
fn steps(trial: &Trial<'_>) -> u64 {
    let place = trial.ground.place();
    First::prepare(trial, &place).act(trial, Fault::Never)
}

fn cut_off(trial: &Trial<'_>, count: u64, of: u64) {
    let place = trial.ground.place();
    let mut first = First::prepare(trial, &place);
    let what = trial.what(&format!("ended before change {count} of {of}"));
    first.act(trial, Fault::CrashAfter(count));
    let readers = first.readers.clone();
    let union = first.succeed(trial, &place, &what);
    let still_reads = |what: &str| {
        for (path, fh, old) in &readers {
            let data = read_at(&union, *fh);
            // The operation may write to a file of the upper that is open.
            let is_written = union.handles.get(*fh).unwrap().writable;
            assert!(
                is_written || data == *old,
                "{what}: a reader of {path:?}: {data:?}"
            );
        }
    };
    still_reads(&what);
    {
        let _request = union.request(REQUEST | AGAIN);
        let again = (trial.scene.act)(&union);
        again.unwrap_or_else(|error| panic!("{what}, comes again: {error}"));
    }
    let what = format!("{what}, and came again");
    assert_one_of(&what, &comparable(&tree(&union)), &[&trial.after]);
    still_reads(&what);
    for (_, fh, _) in &readers {
        union.release(*fh);
    }
    for (id, _) in union.references() {
        let attr = union.getattr(id, None);
        attr.unwrap_or_else(|error| panic!("{what}: node {id:?}: {error}"));
    }
    drop(union);
    let seen = comparable(&tree(&trial.ground.mount(&place)));
    assert_one_of(&format!("{what}, mounted again"), &seen, &[&trial.after]);
}

#[test]
fn a_request_that_is_cut_off_anywhere_and_comes_again_is_done_once() {
    let points = everywhere(|trial| {
        let steps = steps(trial);
        // Each third one in the short form, another third on each ground.
        let (each, from) = if is_long() {
            (1, 0)
        } else {
            (3, trial.ground.layers as u64 + steps)
        };
        let points = (0..=steps).filter(|count| (count + from).is_multiple_of(each));
        points.map(|count| cut_off(trial, count, steps)).count() as u64
    });
    tell(points, "ends of the process");
    assert!(points > 4_000, "only {points} ends of the process");
}
