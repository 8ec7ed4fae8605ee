//! Layers that were not unpacked: what a container sees while their bytes are elsewhere.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use lamina_fusefs::blob::{Cache, Contents, Files, Limits, Source};
use lamina_fusefs::image::{Image, LayerPlace};
use lamina_fusefs::index::{BlobLayer, LayerData};
use lamina_fusefs::session::{Session, SessionOptions};
use lamina_fusefs::union::Union;
use lamina_fusefs::upper::Upper;

use crate::layers::image;
use crate::system::{Layers, System};
use crate::tools::{append, read, tree_without_inodes, write};

/// More than a session has threads to fetch with.
const MANY: usize = 40;

/// Files of so many bytes come while they are read.
const LARGE: u64 = 4 << 20;

/// A blob behind a gate: it gives bytes while that is open, waits while it is closed, and fails
/// while the registry is dead.
struct Gate {
    blob: Vec<u8>,
    is_open: Mutex<bool>,
    changed: Condvar,
    is_dead: AtomicBool,
    reads: AtomicUsize,
}

impl Gate {
    fn set_open(&self, open: bool) {
        *self.is_open.lock().unwrap() = open;
        self.changed.notify_all();
    }
}

impl Source for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    /// Nothing comes along with what is asked for.
    fn is_far(&self) -> bool {
        false
    }

    fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let mut is_open = self.is_open.lock().unwrap();
        while !*is_open {
            is_open = self.changed.wait(is_open).unwrap();
        }
        if self.is_dead.load(Ordering::SeqCst) {
            return Err(io::Error::other("the registry is dead"));
        }
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
        Ok(self.blob[start..end].to_vec())
    }
}

/// The archive of a tree, compressed.
fn blob_of(tree: &Path) -> Vec<u8> {
    let made = Command::new("tar")
        .args([
            "--create",
            "--gzip",
            "--numeric-owner",
            "--sort=name",
            "--format=pax",
        ])
        // The same for the same tree.
        .arg("--pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime")
        .arg("--directory")
        .arg(tree)
        .arg(".")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    made.stdout
}

/// The image of one layer, as a blob, with its cache below `dir`.
fn lazy_image(dir: &Path, tree: &Path) -> (Arc<Image>, Arc<Gate>) {
    let gate = Arc::new(Gate {
        blob: blob_of(tree),
        is_open: Mutex::new(true),
        changed: Condvar::new(),
        is_dead: AtomicBool::new(false),
        reads: AtomicUsize::new(0),
    });
    let limits = Limits::default();
    let ordinary = Contents::of_gzip(&gate.blob[..], &limits).unwrap();
    let (index, table, cache) = (dir.join("i"), dir.join("t"), dir.join("cache"));
    ordinary.contents.save(&index, &table).unwrap();
    fs::create_dir(&cache).unwrap();
    let cache = Arc::new(Cache::open(&cache).unwrap());
    let source = Arc::clone(&gate) as Arc<dyn Source>;
    let files = Files::open(&table, source, cache, Arc::default(), &limits).unwrap();
    files.come_in_part_from(LARGE);
    let layer = BlobLayer::of_blob(files as Arc<dyn LayerData>, &index).unwrap();
    let places = [LayerPlace::Blob(Arc::new(layer))];
    let image = Image::open_indexed(&places, &dir.join("image.index")).unwrap();
    assert!(image.is_indexed());
    (image, gate)
}

/// Mounts the bottom layer of `layers` as a blob, read-only or with an upper.
fn mount(layers: &Layers, dir: &Path, writable: bool) -> (Session, Arc<Gate>) {
    let (image, gate) = lazy_image(dir, &layers.bottom(""));
    let upper = writable.then(|| Upper::open(&layers.upper(), &layers.work()).unwrap());
    let options = SessionOptions {
        read_only: !writable,
        no_open: !writable,
        ..SessionOptions::default()
    };
    let union = Arc::new(Union::new(image, upper).unwrap());
    (
        Session::mount(union, &layers.mountpoint(), &options).unwrap(),
        gate,
    )
}

/// Runs a check with the mount read-only, and with an upper.
fn each_way(fill: impl Fn(&Layers), check: impl Fn(&Layers, &Gate, bool)) {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    for writable in [false, true] {
        let layers = Layers::new(1);
        fill(&layers);
        let dir = tempfile::tempdir().unwrap();
        let (session, gate) = mount(&layers, dir.path(), writable);
        check(&layers, &gate, writable);
        gate.set_open(true);
        assert!(session.unmount(Duration::from_secs(10)).unwrap());
    }
}

#[test]
fn a_blob_looks_as_if_it_were_unpacked() {
    let fill = |layers: &Layers| {
        image(layers);
        // tar leaves xattrs out, unless it is told which to take.
        rustix::fs::removexattr(layers.bottom("meta"), "user.x").unwrap();
    };
    each_way(fill, |layers, gate, writable| {
        let at = layers.mountpoint();
        let expected = tree_without_inodes(layers.bottom(""));
        gate.set_open(false);
        assert_eq!(
            fs::read_dir(&at).unwrap().count(),
            fs::read_dir(layers.bottom("")).unwrap().count()
        );
        gate.set_open(true);
        assert_eq!(tree_without_inodes(&at), expected);
        if writable {
            append(at.join("data"), " and more");
            assert_eq!(read(at.join("data")), "data and more");
            assert_eq!(read(layers.bottom("data")), "data");
        }
    });
}

#[test]
fn who_waits_for_bytes_keeps_nobody_waiting() {
    let fill = |layers: &Layers| {
        write(layers.bottom("near"), "here before");
        for number in 0..MANY {
            write(
                layers.bottom(&format!("far-{number}")),
                format!("bytes of {number}"),
            );
        }
    };
    each_way(fill, |layers, gate, writable| {
        let at = layers.mountpoint();
        assert_eq!(read(at.join("near")), "here before");
        let before = gate.reads.load(Ordering::SeqCst);
        gate.set_open(false);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..MANY)
                .map(|number| {
                    let path = at.join(format!("far-{number}"));
                    scope.spawn(move || read(path))
                })
                .collect();
            while gate.reads.load(Ordering::SeqCst) == before {
                thread::sleep(Duration::from_millis(5));
            }
            // All threads of the session could be waiting now.
            assert_eq!(read(at.join("near")), "here before");
            assert_eq!(fs::metadata(at.join("far-3")).unwrap().len(), 10);
            if writable {
                write(at.join("new"), "new");
                fs::rename(at.join("far-5"), at.join("moved")).unwrap();
                fs::set_permissions(
                    at.join("far-6"),
                    std::os::unix::fs::PermissionsExt::from_mode(0o600),
                )
                .unwrap();
                // Nothing of what is cut off has to come.
                write(at.join("far-7"), "all new");
            }
            gate.set_open(true);
            for (number, reader) in readers.into_iter().enumerate() {
                let moved = writable && matches!(number, 5 | 7);
                match reader.join() {
                    Ok(text) if !moved => assert_eq!(text, format!("bytes of {number}")),
                    Ok(text) => assert!(text.starts_with("bytes of") || text == "all new"),
                    // It looked for its file after that was moved.
                    Err(_) => assert!(moved),
                }
            }
        });
        if writable {
            assert_eq!(read(at.join("moved")), "bytes of 5");
            assert_eq!(read(at.join("far-6")), "bytes of 6");
            assert_eq!(read(at.join("far-7")), "all new");
        }
    });
}

#[test]
fn bytes_that_cannot_be_had_are_an_error_and_come_when_they_can() {
    let fill = |layers: &Layers| write(layers.bottom("far"), "bytes");
    each_way(fill, |layers, gate, writable| {
        let far = layers.mountpoint().join("far");
        gate.is_dead.store(true, Ordering::SeqCst);
        let read_it = || {
            let mut text = String::new();
            File::open(&far)?.read_to_string(&mut text)?;
            Ok::<_, io::Error>(text)
        };
        let error = read_it().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        if writable {
            let error = File::options().append(true).open(&far).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
        assert_eq!(fs::metadata(&far).unwrap().len(), 5);
        gate.is_dead.store(false, Ordering::SeqCst);
        assert_eq!(read_it().unwrap(), "bytes");
        gate.is_dead.store(true, Ordering::SeqCst);
        assert_eq!(read_it().unwrap(), "bytes", "it is here now");
        if writable {
            let mut file = File::options().append(true).open(&far).unwrap();
            file.write_all(b" more").unwrap();
            assert_eq!(read_it().unwrap(), "bytes more");
        }
    });
}

/// More than the kernel reads ahead by itself, and another word at each place.
fn large() -> Vec<u8> {
    let words = (0..3_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 8).to_le_bytes());
    words.flatten().collect()
}

#[test]
fn a_large_file_can_be_read_before_all_of_it_is_here() {
    let bytes = large();
    let fill = |layers: &Layers| {
        write(layers.bottom("large"), &bytes);
        write(layers.bottom("near"), "here before");
    };
    each_way(fill, |layers, gate, writable| {
        let at = layers.mountpoint();
        assert_eq!(read(at.join("near")), "here before");
        let before = gate.reads.load(Ordering::SeqCst);
        let file = File::open(at.join("large")).unwrap();
        assert_eq!(
            gate.reads.load(Ordering::SeqCst),
            before,
            "nobody reads it yet"
        );
        let part = |at: usize| {
            let mut found = vec![0; 1000];
            file.read_exact_at(&mut found, at as u64)?;
            Ok::<_, io::Error>(found == bytes[at..at + 1000])
        };
        assert!(part(9_000_000).unwrap());
        gate.set_open(false);
        assert!(part(9_000_100).unwrap(), "this needs nobody");
        thread::scope(|scope| {
            let reader = scope.spawn(|| part(1_000_000));
            while gate.reads.load(Ordering::SeqCst) < before + 2 {
                thread::sleep(Duration::from_millis(5));
            }
            assert!(!reader.is_finished());
            assert_eq!(read(at.join("near")), "here before");
            gate.set_open(true);
            assert!(reader.join().unwrap().unwrap());
        });
        gate.is_dead.store(true, Ordering::SeqCst);
        let error = part(6_000_000).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        gate.is_dead.store(false, Ordering::SeqCst);
        assert!(part(6_000_000).unwrap());
        // The holes of what has not come are none of the file's.
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
        assert_eq!(end, bytes.len() as u64);
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(5_000_000)).unwrap();
        assert_eq!(data, 5_000_000);
        if writable {
            // A copy-up under the open handle takes all of it.
            append(at.join("large"), "more");
            assert!(fs::read(at.join("large")).unwrap() == [&bytes[..], b"more"].concat());
            assert!(part(11_000_000).unwrap());
        } else {
            assert!(fs::read(at.join("large")).unwrap() == bytes);
        }
        gate.is_dead.store(true, Ordering::SeqCst);
        assert!(part(3_000_000).unwrap(), "all of it is here now");
    });
}

#[test]
fn hard_links_of_a_blob_stay_links_and_keep_their_number() {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    let layers = Layers::new(1);
    for (name, other) in [("one", "two"), ("apart", "gone")] {
        write(layers.bottom(name), "bytes");
        fs::hard_link(layers.bottom(name), layers.bottom(other)).unwrap();
    }
    let (dir, at) = (tempfile::tempdir().unwrap(), layers.mountpoint());
    let seen = |name: &str| {
        let stat = fs::metadata(at.join(name)).unwrap();
        (stat.ino(), stat.nlink())
    };
    let (session, _) = mount(&layers, dir.path(), true);
    let before = ["one", "two", "apart"].map(seen);
    assert_eq!(before[0], before[1]);
    append(at.join("one"), " and more");
    fs::remove_file(at.join("gone")).unwrap();
    let check = || {
        assert_eq!(read(at.join("two")), "bytes and more");
        assert_eq!(["one", "two"].map(seen), [before[0], before[0]]);
        assert_eq!(seen("apart"), (before[2].0, 1));
        assert_eq!(read(at.join("apart")), "bytes");
    };
    check();
    assert!(session.unmount(Duration::from_secs(10)).unwrap());
    // By another session, from what is on disk alone.
    let other = tempfile::tempdir().unwrap();
    let (session, _) = mount(&layers, other.path(), true);
    check();
    append(at.join("two"), ", again");
    assert_eq!(read(at.join("one")), "bytes and more, again");
    fs::remove_file(at.join("one")).unwrap();
    assert_eq!(seen("two"), (before[0].0, 1));
    assert!(session.unmount(Duration::from_secs(10)).unwrap());
}
