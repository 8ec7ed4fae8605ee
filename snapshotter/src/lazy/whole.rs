//! Reading a layer's blob to its end while nobody waits for it, and what is known of it afterwards.
//!
//! The requests for it are several at a time, so it is they who stand back ([`Pace`]), and not
//! whoever reads what they bring. What a layer turned out to be is written down in its record. One
//! that lies is never mounted again, and no file of it is served to those who have it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lamina_fusefs::blob::{Digest, Flaw, Flights, Promised, Whole};
use parking_lot::Mutex;

use super::keeper::{Orders, STAND_BACK};
use super::pieces::{Gate, Pieces, Shape};
use super::record::{Record, Verdict};
use super::{Lazy, Opened};
use crate::store::layout::Layout;

/// Small pieces, so that little is under way when somebody begins to wait.
const SHAPE: Shape = Shape {
    piece: 2 << 20,
    ahead: 4,
};
/// How long a request that is held up does not look whether it still should be.
const NAP: Duration = Duration::from_millis(10);
/// So long after somebody waited they may do so again.
const LATELY: Duration = Duration::from_millis(100);

/// Reads all of a layer that comes from far away, and writes down what it is. Whether it may be used,
/// and the rest of it fetched.
pub(super) fn read(
    lazy: &Lazy,
    layout: &Layout,
    id: u64,
    opened: &Opened,
    record: &Record,
) -> lamina_fusefs::Result<bool> {
    let (Some(digest), Some(diff_id)) = (
        Digest::parse(&record.digest),
        record.diff_id.as_deref().and_then(Digest::parse),
    ) else {
        // An earlier version did not note it.
        return Ok(true);
    };
    let pace = Arc::new(Pace::new(lazy, layout, id, opened.files.first_end()));
    let gate = Arc::clone(&pace) as Arc<dyn Gate>;
    let implied = record.implied.as_deref().and_then(Digest::parse);
    let promised = Promised {
        digest,
        diff_id,
        implied,
    };
    let read = Pieces::through(&gate, SHAPE, &opened.remote)
        .map_err(lamina_fusefs::Error::from)
        .and_then(|pieces| opened.files.read_whole(pieces, &promised, &opened.layer));
    let was_stopped = pace.is_over.swap(true, Ordering::Relaxed);
    let verdict = match read {
        Err(_) if was_stopped => return Ok(false),
        read => judge(lazy, id, digest, read?)?,
    };
    Record::judge(&layout.blob_record(id), verdict.clone())?;
    let Verdict::Refused(why) = verdict else {
        tracing::info!(
            id,
            image = record.reference,
            layer = record.digest,
            "a layer was verified"
        );
        return Ok(true);
    };
    tracing::error!(
        id,
        image = record.reference,
        layer = record.digest,
        why,
        "a layer is not what its image says, and is not served any more: remove the image"
    );
    lazy.note_verdict(id, &Record::read(&layout.blob_record(id))?);
    opened.files.refuse(why);
    Ok(false)
}

/// What is to be written down of a layer; an error if nothing is known of it.
fn judge(lazy: &Lazy, id: u64, digest: Digest, whole: Whole) -> lamina_fusefs::Result<Verdict> {
    let flaw = match whole {
        Whole::Right => return Ok(Verdict::Verified),
        Whole::Lie(flaw) => flaw,
        Whole::OtherBlob(found) => {
            let flaw = Flaw::Digest {
                what: "the blob",
                found,
                wanted: digest,
            };
            // A byte that went wrong on its way does not do so twice.
            if lazy.other_blobs.lock().insert(id, found) != Some(found) {
                return Err(lamina_fusefs::Error::Io(std::io::Error::other(flaw)));
            }
            flaw
        }
    };
    Ok(Verdict::Refused(flaw.to_string()))
}

/// When the next request for a blob may be made that nobody waits for.
struct Pace {
    flights: Arc<Flights>,
    orders: Arc<Orders>,
    /// The layer's record: without it the layer is gone.
    record: PathBuf,
    /// The most bytes a second; 0: no limit.
    rate: u64,
    /// Up to where in the blob all is wanted soon.
    first_end: u64,
    /// Held by the one request that is about to be let through; the others wait behind it.
    turn: Mutex<()>,
    /// Lock order: the turn, then this, which is never held for long.
    requests: Mutex<Requests>,
    /// Whether no request is made any more.
    is_over: AtomicBool,
}

/// What is known of the requests for a blob.
struct Requests {
    under_way: usize,
    /// Since when their number is what it is.
    since: Instant,
    /// How long the link was in use without a pause, when the last of them had ended.
    lasted: Duration,
    /// By the rate, the next one may be made then.
    next: Instant,
}

impl Pace {
    fn new(lazy: &Lazy, layout: &Layout, id: u64, first_end: u64) -> Pace {
        Pace {
            flights: Arc::clone(&lazy.flights),
            orders: Arc::clone(&lazy.orders),
            record: layout.blob_record(id),
            rate: lazy.limits_of_cache.fill_rate,
            first_end,
            turn: Mutex::default(),
            requests: Mutex::new(Requests {
                under_way: 0,
                since: Instant::now(),
                lasted: Duration::ZERO,
                next: Instant::now(),
            }),
            is_over: AtomicBool::new(false),
        }
    }

    fn goes_on(&self) -> bool {
        if !self.orders.may_fill() || !self.record.exists() {
            self.is_over.store(true, Ordering::Relaxed);
        }
        !self.is_over.load(Ordering::Relaxed)
    }

    /// How long a request is held up from now on, or until that is asked again; `None`: not at all.
    fn holds_up(&self, start: u64, is_awaited: bool) -> Option<Duration> {
        if self.orders.gives_way() {
            return Some(NAP);
        }
        let requests = self.requests.lock();
        let by_rate = requests.next.checked_duration_since(Instant::now());
        if start < self.first_end || !is_awaited {
            return by_rate;
        }
        // Somebody waits: the link is theirs half of the time, and nearly theirs in the other half.
        if requests.under_way > 0 {
            return Some(NAP);
        }
        let rest = requests.lasted.min(STAND_BACK);
        let rest = rest.checked_sub(requests.since.elapsed());
        rest.max(by_rate)
    }
}

impl Gate for Pace {
    fn admit(&self, range: &Range<u64>) -> bool {
        let _turn = self.turn.lock();
        let is_awaited = || self.flights.is_awaited_lately(LATELY);
        while let Some(rest) = self.holds_up(range.start, is_awaited())
            && self.goes_on()
        {
            thread::sleep(rest.min(NAP));
        }
        let bytes = range.end.saturating_sub(range.start);
        let nanos = bytes.saturating_mul(1_000_000_000).checked_div(self.rate);
        let mut requests = self.requests.lock();
        if requests.under_way == 0 {
            requests.since = Instant::now();
        }
        requests.under_way += 1;
        requests.next = Instant::now() + Duration::from_nanos(nanos.unwrap_or(0));
        self.goes_on()
    }

    fn ended(&self) {
        let mut requests = self.requests.lock();
        requests.under_way = requests.under_way.saturating_sub(1);
        if requests.under_way == 0 {
            requests.lasted = requests.since.elapsed();
            requests.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests;
