//! A layer behind a registry, read to its end.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;

use flate2::write::GzEncoder;
use lamina_fusefs::blob::{Contents, Limits, implied_digest};
use lamina_fusefs::index::LayerData as _;

use super::super::record::Format;
use super::*;
use crate::lazy::keeper;
use crate::registry;

/// The number of the layer's snapshot.
const ID: u64 = 1;

/// What the registry does to a stretch of the blob.
type Change = dyn Fn(Range<usize>, &mut Vec<u8>) + Send + Sync;

/// A registry with one blob. Answers its address.
fn serve(blob: Vec<u8>, change: Arc<Change>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let (blob, change) = (blob.clone(), Arc::clone(&change));
            // Who has enough of it goes away.
            thread::spawn(move || answer(&mut client, &blob, &*change));
        }
    });
    address
}

fn answer(client: &mut TcpStream, blob: &[u8], change: &Change) -> Option<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).ok()? == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let range = head.lines().find_map(|l| l.strip_prefix("range: bytes="))?;
    let (start, last) = range.split_once('-')?;
    let range = start.parse().ok()?..last.parse::<usize>().ok()? + 1;
    let mut bytes = blob.get(range.clone())?.to_vec();
    change(range.clone(), &mut bytes);
    let head = format!(
        "HTTP/1.1 206 x\r\ncontent-length: {}\r\nconnection: close\r\n\
         content-range: bytes {}-{last}/{}\r\n\r\n",
        bytes.len(),
        range.start,
        blob.len()
    );
    client.write_all(head.as_bytes()).ok()?;
    client.write_all(&bytes).ok()
}

/// A gzip blob of some MiB with a file in it that does not compress, and its diff ID.
fn blob() -> (Vec<u8>, Digest) {
    let mut bytes = vec![0; 5 << 20];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    let mut header = [0; 512];
    header[..4].copy_from_slice(b"file");
    for (at, text) in [(100, "644"), (108, "0"), (116, "0"), (136, "0")] {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    let size = format!("{:011o}", bytes.len());
    header[124..135].copy_from_slice(size.as_bytes());
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    let tar = [&header[..], &bytes, &[0; 1024]].concat();
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).expect("gzip");
    (gzip.finish().expect("gzip"), Digest::of(&tar))
}

/// A root with a layer whose index came from elsewhere, and whose blob is in a registry.
struct Scene {
    lazy: Arc<Lazy>,
    layout: Layout,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(
        diff_id: Option<Digest>,
        change: impl Fn(Range<usize>, &mut Vec<u8>) + Send + Sync + 'static,
    ) -> Scene {
        let dir = tempfile::tempdir().expect("tempdir");
        let layout = Layout::create(dir.path()).expect("layout");
        let (blob, own) = blob();
        let ordinary = Contents::of_gzip(&blob[..], &Limits::default()).expect("contents");
        assert_eq!(ordinary.diff_id, own);
        fs::create_dir(layout.snapshot(ID)).expect("mkdir");
        let (index, table) = (layout.layer_index(ID), layout.blob_table(ID));
        ordinary.contents.save(&index, &table).expect("save");
        let (digest, size) = (ordinary.digest.to_string(), blob.len() as u64);
        let reference = format!("{}/app:1", serve(blob, Arc::new(change)));
        let record = Record::new(reference, digest, size, Format::Gzip);
        let record = record.of_archive(diff_id.unwrap_or(own).to_string(), false);
        record.write(&layout.blob_record(ID)).expect("write");
        let lazy = open(&layout, dir.path());
        Scene { lazy, layout, dir }
    }

    fn read(&self) -> lamina_fusefs::Result<bool> {
        let opened = self.lazy.layer(&self.layout, ID)?;
        read(&self.lazy, &self.layout, ID, &opened, &self.record())
    }

    fn record(&self) -> Record {
        Record::read(&self.layout.blob_record(ID)).expect("record")
    }

    fn status(&self) -> String {
        let mut all = self.lazy.status(&self.layout);
        all.remove(0).verdict
    }
}

fn open(layout: &Layout, dir: &Path) -> Arc<Lazy> {
    let options = registry::Options {
        hosts: dir.join("hosts"),
        docker_config: Some(dir.join("config.json")),
        patience: Duration::from_secs(20),
        ..registry::Options::default()
    };
    // What is read here is read by the test.
    let limits = keeper::Limits {
        fill: false,
        free_percent: 0,
        ..keeper::Limits::default()
    };
    Lazy::open(layout, &options, limits, Limits::default()).expect("open")
}

#[test]
fn a_layer_that_is_what_its_image_says_is_verified_for_ever() {
    let scene = Scene::new(None, |_, _| ());
    assert_eq!(scene.status(), "unverified");
    assert!(scene.read().expect("read"));
    assert_eq!(scene.record().verdict, Some(Verdict::Verified));
    assert_eq!(scene.status(), "verified");
    let here = scene
        .lazy
        .layer(&scene.layout, ID)
        .expect("layer")
        .files
        .here();
    assert_eq!(here.expect("here").cached, 5 << 20);
    scene.lazy.admit(&[ID]).expect("it may be mounted");
}

#[test]
fn a_layer_that_claims_a_diff_id_is_refused_for_ever() {
    let claimed = Digest::of(b"the layer of another image");
    let scene = Scene::new(Some(claimed), |_, _| ());
    let opened = scene.lazy.layer(&scene.layout, ID).expect("layer");
    assert!(!scene.read().expect("read"));
    assert_eq!(scene.status(), "refused");
    let said = scene.lazy.admit(&[7, ID]).expect_err("refused").to_string();
    for part in ["remove the image", "app:1", &claimed.to_string()] {
        assert!(said.contains(part), "{said}");
    }
    scene.lazy.admit(&[7]).expect("another layer");
    // Those who have it open, and those who open it after a restart.
    let ino = lamina_fusefs::types::Ino(3);
    assert!(matches!(
        opened.files.fetch(ino),
        Err(lamina_fusefs::Error::Blob { .. })
    ));
    drop(opened);
    scene.lazy.close();
    let Scene { lazy, layout, dir } = scene;
    drop(lazy);
    let lazy = open(&layout, dir.path());
    lazy.admit(&[ID]).expect_err("refused");
    let files = &lazy.layer(&layout, ID).expect("layer").files;
    files.fetch(ino).expect_err("refused");
    lazy.removed(&layout, ID);
    lazy.admit(&[ID]).expect("the number of nothing");
}

#[test]
fn an_index_that_hides_a_directory_without_an_entry_is_refused() {
    let scene = Scene::new(None, |_, _| ());
    let told = |paths: &[&str]| implied_digest(paths.iter().map(PathBuf::from).collect());
    for (paths, verdict) in [(&[][..], "verified"), (&["lib"], "refused")] {
        let path = scene.layout.blob_record(ID);
        let mut record = scene.record();
        (record.implied, record.verdict) = (Some(told(paths).to_string()), None);
        fs::remove_file(&path).expect("remove");
        record.write(&path).expect("write");
        assert_eq!(scene.read().expect("read"), verdict == "verified");
        assert_eq!(scene.status(), verdict);
    }
}

#[test]
fn a_byte_that_goes_wrong_on_its_way_is_no_lie_and_one_that_always_does_is() {
    let number = Arc::new(Mutex::new(0u8));
    let next = Arc::clone(&number);
    let scene = Scene::new(None, move |range, bytes| {
        if range.contains(&3_000_000) {
            let mut number = next.lock();
            *number += u8::from(*number < 3);
            bytes[3_000_000 - range.start] ^= *number;
        }
    });
    for _ in 0..3 {
        let error = scene.read().expect_err("a wrong byte").to_string();
        assert!(error.contains("the blob has digest"), "{error}");
        assert_eq!(scene.status(), "unverified");
    }
    // The third and the fourth time the same came.
    assert!(!scene.read().expect("read"));
    assert_eq!(scene.status(), "refused");
}

#[test]
fn what_cannot_be_had_is_no_lie_and_is_tried_again() {
    let is_dead = Arc::new(AtomicBool::new(true));
    let dead = Arc::clone(&is_dead);
    let scene = Scene::new(None, move |range, bytes| {
        if dead.load(Ordering::SeqCst) && range.start > 0 {
            bytes.clear();
        }
    });
    scene.read().expect_err("it cannot be had");
    assert_eq!(scene.status(), "unverified");
    is_dead.store(false, Ordering::SeqCst);
    assert!(scene.read().expect("read"));
    assert_eq!(scene.status(), "verified");
}

#[test]
fn a_reading_ends_when_its_layer_is_removed_or_the_daemon_stops() {
    for is_removed in [true, false] {
        let (asked, was_asked) = mpsc::channel();
        let asked = Mutex::new(asked);
        let scene = Scene::new(None, move |_, bytes| {
            // Never what was asked for: it is asked again until it is over.
            bytes.clear();
            let _ = asked.lock().send(());
        });
        thread::scope(|scope| {
            let reading = scope.spawn(|| scene.read());
            was_asked.recv().expect("asked");
            if is_removed {
                fs::remove_file(scene.layout.blob_record(ID)).expect("remove");
            } else {
                scene.lazy.orders.stop();
            }
            let read = reading.join().expect("join");
            assert!(!matches!(read, Ok(true)), "{read:?}");
        });
        assert!(is_removed || scene.record().verdict.is_none());
    }
}

#[test]
fn what_is_not_whole_is_dropped_for_room_unless_somebody_has_it_open() {
    let scene = Scene::new(None, |_, _| ());
    let opened = scene.lazy.layer(&scene.layout, ID).expect("layer");
    opened.files.come_in_part_from(1);
    let arriving = || {
        let found = opened.files.arriving(lamina_fusefs::types::Ino(3));
        found.expect("arriving").expect("large")
    };
    let file = arriving();
    file.fetch(0..1).expect("fetch");
    let shrink = || keeper::shrink(&scene.lazy, 0).expect("shrink");
    assert!(shrink() >= 1 << 20, "a chunk");
    assert!(file.has(0..1));
    drop(file);
    assert_eq!(shrink(), 0);
    assert!(!arriving().has(0..1));
}

/// Log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_fetch_and_each_request_is_a_span_with_its_fields() {
    let is_dead = Arc::new(AtomicBool::new(false));
    let dead = Arc::clone(&is_dead);
    let scene = Scene::new(None, move |_, bytes| {
        if dead.load(Ordering::SeqCst) {
            bytes.clear();
        }
    });
    let (lines, opened) = (
        Lines::default(),
        scene.lazy.layer(&scene.layout, ID).expect("layer"),
    );
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::DEBUG)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let open = || {
            let ino = lamina_fusefs::types::Ino(3);
            opened.files.open(Path::new("the/file"), ino)
        };
        is_dead.store(true, Ordering::SeqCst);
        open().expect_err("dead");
        is_dead.store(false, Ordering::SeqCst);
        open().expect("the file");
        keeper::prefetch_one(&scene.lazy, &scene.layout, ID).expect("prefetch");
    });
    let lines = String::from_utf8(lines.0.lock().clone()).expect("text");
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let lines: Vec<serde_json::Value> = lines.collect();
    let closed = |name: &str| -> Vec<_> {
        let of_it = lines
            .iter()
            .filter(|line| line["fields"]["message"] == "close" && line["span"]["name"] == name);
        of_it.cloned().collect()
    };
    let [failed, fetched] = &closed("fetch")[..] else {
        panic!("{lines:?}");
    };
    for (line, outcome) in [(failed, "bytes were asked for"), (fetched, "fetched")] {
        let span = &line["span"];
        assert!(
            span["outcome"].as_str().expect("text").contains(outcome),
            "{line}"
        );
        assert_eq!(span["path"], "the/file");
        assert_eq!(span["bytes"], 5 << 20);
        assert_eq!(span["layer"], opened.files.name());
        assert!(line["fields"]["time.busy"].is_string(), "{line}");
    }
    let requests = closed("request");
    let right: Vec<_> = requests
        .iter()
        .filter(|line| line["span"]["outcome"] == "fetched")
        .collect();
    assert!(
        !right.is_empty() && right.len() < requests.len(),
        "{requests:?}"
    );
    let record = scene.record();
    for line in right {
        let span = &line["span"];
        assert_eq!(span["blob"], record.digest);
        assert_eq!(span["repository"], "app");
        assert_eq!(span["host"], record.reference.trim_end_matches("/app:1"));
        assert!(span["bytes"].as_u64() > Some(1 << 20), "{line}");
        assert_eq!(line["spans"][0]["name"], "fetch");
    }
    let [prefetch] = &closed("prefetch")[..] else {
        panic!("{lines:?}");
    };
    let span = &prefetch["span"];
    assert_eq!(
        (&span["id"], &span["outcome"]),
        (&ID.into(), &"done".into())
    );
    assert_eq!(
        (&span["image"], &span["layer"]),
        (&record.reference.into(), &record.digest.into())
    );
}

#[test]
fn a_gate_lets_nothing_through_when_it_is_over_and_what_comes_first_at_once() {
    let scene = Scene::new(None, |_, _| ());
    let pace = || Pace::new(&scene.lazy, &scene.layout, ID, 10);
    let open = pace();
    assert!(open.admit(&(0..10)) && open.admit(&(10..20)));
    assert_eq!(open.requests.lock().under_way, 2);
    open.ended();
    open.ended();
    assert_eq!(open.requests.lock().under_way, 0);
    open.is_over.store(true, Ordering::Relaxed);
    assert!(!open.admit(&(0..10)));
    scene.lazy.orders.stop();
    let stopped = pace();
    assert!(!stopped.admit(&(0..10)));
    assert!(stopped.is_over.load(Ordering::Relaxed));
}

#[test]
fn while_somebody_waits_there_is_one_request_and_then_a_pause_but_for_what_comes_first() {
    let scene = Scene::new(None, |_, _| ());
    let pace = Pace::new(&scene.lazy, &scene.layout, ID, 10);
    assert_eq!(pace.holds_up(10, true), None, "nothing is under way");
    assert!(pace.admit(&(10..20)));
    assert_eq!(pace.holds_up(10, false), None, "nobody waits");
    assert_eq!(pace.holds_up(9, true), None, "it comes first");
    assert_eq!(pace.holds_up(10, true), Some(NAP));
    pace.ended();
    pace.requests.lock().lasted = Duration::from_hours(1);
    let pause = pace.holds_up(10, true).expect("a pause");
    assert!(pause <= STAND_BACK, "as long as the request, and no longer");
    assert_eq!(pace.holds_up(10, false), None);
    // Whoever has waited, and in vain, waits no more.
    let opened = scene.lazy.layer(&scene.layout, ID).expect("layer");
    assert!(
        !scene
            .lazy
            .flights
            .is_awaited_lately(Duration::from_hours(1))
    );
    let _ = opened.files.fetch(lamina_fusefs::types::Ino(3));
    assert!(!scene.lazy.flights.is_awaited());
    assert!(
        scene
            .lazy
            .flights
            .is_awaited_lately(Duration::from_hours(1))
    );
}

#[test]
fn a_rate_is_kept_by_all_requests_together() {
    let scene = Scene::new(None, |_, _| ());
    let mut pace = Pace::new(&scene.lazy, &scene.layout, ID, 10);
    pace.rate = 1;
    assert!(pace.admit(&(0..3600)));
    for start in [0, 10] {
        let rest = pace.holds_up(start, false).expect("held up");
        assert!(rest > Duration::from_mins(30), "{rest:?}");
    }
}
