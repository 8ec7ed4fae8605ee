//! What was added is found; what a crash tore is not.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::sys::change::faults::{self, Fault};

const BYTES: &[u8] = b"the bytes of a file";

fn open(dir: &Path, boot: &str) -> Cache {
    Cache::open_in(dir, boot).expect("open")
}

fn add(cache: &Cache, bytes: &[u8]) -> Result<std::result::Result<File, Digest>> {
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    cache.add(Digest::of(bytes), [Ok(head.to_vec()), Ok(tail.to_vec())])
}

/// What the cache has under the digest of these bytes.
fn found(cache: &Cache, bytes: &[u8]) -> Option<Vec<u8>> {
    let file = cache.find(Digest::of(bytes), bytes.len() as u64);
    file.expect("find").map(|mut file| {
        let mut read = Vec::new();
        file.read_to_end(&mut read).expect("read");
        read
    })
}

/// The only file of a cache, wherever it lies in it.
fn only_file(dir: &Path) -> PathBuf {
    let (_, name) = place(Digest::of(BYTES));
    let found = walk(dir).into_iter().find(|path| path.ends_with(&name));
    found.expect("it is there")
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            all.extend(walk(&path));
        } else {
            all.push(path);
        }
    }
    all
}

#[test]
fn a_file_is_found_by_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), "boot 1");
    assert_eq!(found(&cache, BYTES), None);
    for bytes in [BYTES, b""] {
        let mut file = add(&cache, bytes).unwrap().unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        assert_eq!(found(&cache, bytes).as_deref(), Some(bytes));
    }
    add(&cache, BYTES).unwrap().expect("again");
    assert_eq!(cache.holds().unwrap().files, 2);
    // A daemon that was killed: the host still runs.
    drop(cache);
    assert_eq!(
        found(&open(dir.path(), "boot 1"), BYTES).as_deref(),
        Some(BYTES)
    );
}

#[test]
fn bytes_of_another_digest_are_not_added() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), "boot 1");
    let other = cache.add(Digest::of(BYTES), [Ok(b"others".to_vec())]);
    assert_eq!(other.unwrap().unwrap_err(), Digest::of(b"others"));
    let failed = cache.add(
        Digest::of(BYTES),
        [Ok(BYTES.to_vec()), Err(Error::NotFound)],
    );
    failed.unwrap_err();
    assert_eq!(cache.holds().unwrap(), Holds::default());
    assert_eq!(found(&cache, BYTES), None);
    assert_eq!(walk(&dir.path().join("new")), Vec::<PathBuf>::new());
}

#[test]
fn nobody_else_may_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), "boot 1");
    assert_eq!(
        Cache::open_in(dir.path(), "boot 1").unwrap_err(),
        Errno::AGAIN
    );
    drop(cache);
    open(dir.path(), "boot 1");
}

#[test]
fn after_a_power_loss_whole_files_are_found_and_torn_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    for torn in [
        None,
        Some(&b"the bytes of a fil\0"[..]),
        Some(b"the"),
        Some(b""),
    ] {
        add(&open(dir.path(), "boot 1"), BYTES).unwrap().unwrap();
        if let Some(torn) = torn {
            fs::write(only_file(dir.path()), torn).unwrap();
        }
        // The power fails, and once more before the file is wanted.
        drop(open(dir.path(), "boot 2"));
        let cache = open(dir.path(), "boot 3");
        assert_eq!(
            found(&cache, BYTES).as_deref(),
            torn.is_none().then_some(BYTES)
        );
        assert_eq!(cache.holds().unwrap().files, u64::from(torn.is_none()));
        cache.shrink(0).unwrap();
        assert_eq!(cache.holds().unwrap(), Holds::default());
        cache.close().unwrap();
    }
}

#[test]
fn files_of_several_boots_are_found() {
    let dir = tempfile::tempdir().unwrap();
    for boot in 0..3 {
        let cache = open(dir.path(), &format!("boot {boot}"));
        add(&cache, boot.to_string().as_bytes()).unwrap().unwrap();
    }
    let cache = open(dir.path(), "boot 3");
    assert_eq!(cache.doubtful.len(), 3);
    for boot in 0..3 {
        let bytes = boot.to_string();
        assert_eq!(
            found(&cache, bytes.as_bytes()).as_deref(),
            Some(bytes.as_bytes())
        );
    }
    drop(cache);
    assert!(
        open(dir.path(), "boot 3").doubtful.is_empty(),
        "all were found"
    );
}

#[test]
fn what_was_closed_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), "boot 1");
    add(&cache, BYTES).unwrap().unwrap();
    cache.close().unwrap();
    drop(cache);
    let cache = open(dir.path(), "boot 2");
    assert!(only_file(dir.path()).starts_with(dir.path().join("files")));
    assert_eq!(found(&cache, BYTES).as_deref(), Some(BYTES));
    // From then on it is not clean any more.
    drop(cache);
    drop(open(dir.path(), "boot 3"));
    assert!(!only_file(dir.path()).starts_with(dir.path().join("files")));
}

#[test]
fn a_file_of_another_length_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), "boot 1");
    add(&cache, BYTES).unwrap().unwrap();
    fs::write(only_file(dir.path()), b"short").unwrap();
    assert_eq!(found(&cache, BYTES), None);
    assert_eq!(cache.holds().unwrap().files, 0);
}

#[test]
fn those_that_were_not_used_for_longest_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), "boot 1");
    let files: Vec<Vec<u8>> = (0..4).map(|byte| vec![byte; 4096]).collect();
    for (age, bytes) in files.iter().enumerate() {
        let file = add(&cache, bytes).unwrap().unwrap();
        let used = i64::try_from(age).unwrap() + 1000;
        let time = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
        let times = Timestamps {
            last_access: time(used),
            last_modification: time(used),
        };
        futimens(&file, &times).unwrap();
    }
    // The oldest is used again.
    found(&cache, &files[0]).unwrap();
    let all = cache.holds().unwrap();
    assert_eq!(all.files, 4);
    let open_still = cache.find(Digest::of(&files[1]), 4096).unwrap().unwrap();
    futimens(
        &open_still,
        &Timestamps {
            last_access: Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
            last_modification: Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            },
        },
    )
    .unwrap();
    assert_eq!(cache.shrink(all.bytes).unwrap(), all, "there is room");
    let half = cache.shrink(all.bytes / 2).unwrap();
    assert_eq!(half, cache.holds().unwrap());
    assert_eq!(half.files, 2);
    for (number, bytes) in files.iter().enumerate() {
        // The oldest of all is open.
        let stays = number == 0 || number == 1;
        assert_eq!(found(&cache, bytes).is_some(), stays, "file {number}");
    }
    assert_eq!(digest_of(&open_still).unwrap(), Digest::of(&files[1]));
}

#[test]
fn a_crash_at_any_change_leaves_whole_files() {
    let work = |dir: &Path, boot: &str| -> Result<()> {
        let cache = Cache::open_in(dir, boot)?;
        add(&cache, b"first")?.expect("the right bytes");
        add(&cache, b"second")?.expect("the right bytes");
        cache.close()
    };
    let whole = tempfile::tempdir().unwrap();
    let (done, steps) = faults::with(Fault::Never, || work(whole.path(), "boot 1"));
    done.unwrap();
    assert!(steps > 10, "{steps}");
    for step in 0..steps {
        for fault in [
            Fault::CrashAfter(step),
            Fault::FailAfter(step, Errno::NOSPC),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (cut, _) = faults::with(fault, || work(dir.path(), "boot 1"));
            cut.unwrap_err();
            for boot in ["boot 1", "boot 2"] {
                let cache = open(dir.path(), boot);
                for bytes in [&b"first"[..], b"second"] {
                    let read = found(&cache, bytes);
                    assert!(read.is_none_or(|read| read == bytes), "{fault:?}");
                }
                assert_eq!(walk(&dir.path().join("new")), Vec::<PathBuf>::new());
            }
        }
    }
}

/// What a power loss may do to a file that was never synced.
fn tear(path: &Path, random: &mut impl FnMut(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    match random(4) {
        0 => bytes.truncate(random(bytes.len() + 1)),
        1 => bytes.fill(0),
        2 => {
            let at = random(bytes.len() + 1);
            bytes[at..].fill(0);
        }
        _ => {
            let at = random(bytes.len() + 1);
            bytes[at..].reverse();
        }
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_thousand_power_cuts_never_show_a_wrong_byte() {
    const CUTS: usize = 1000;
    let dir = tempfile::tempdir().unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below.max(1) as u64).unwrap()
    };
    let mut known: Vec<Vec<u8>> = Vec::new();
    let (mut torn, mut lost, mut kept) = (0, 0, 0);
    for cut in 0..CUTS {
        let cache = open(dir.path(), &format!("boot {cut}"));
        for _ in 0..4 {
            if let Some(bytes) = known.get(random(known.len())) {
                match found(&cache, bytes) {
                    Some(found) => {
                        assert_eq!(&found, bytes, "cut {cut}");
                        kept += 1;
                    }
                    None => lost += 1,
                }
            }
        }
        for _ in 0..random(4) {
            let mut bytes = vec![0; random(5000)];
            bytes.fill_with(|| u8::try_from(random(256)).unwrap());
            add(&cache, &bytes).unwrap().unwrap();
            known.push(bytes);
        }
        if cut % 50 == 0 {
            let (left, _) = cache.verify().unwrap();
            let (again, removed) = cache.verify().unwrap();
            assert_eq!((again, removed), (left, Holds::default()), "cut {cut}");
        }
        if cut % 100 == 99 {
            cache.shrink(0).unwrap();
            known.clear();
        }
        if random(5) == 0 {
            // In order: all of it is on disk, and the cut comes between two files.
            cache.close().unwrap();
            continue;
        }
        drop(cache);
        // The state on disk says that this boot did not end in order.
        for path in walk(dir.path()) {
            let is_file_of_cache = path.file_name().is_some_and(|name| name.len() == 64);
            if is_file_of_cache && random(6) == 0 {
                tear(&path, &mut random);
                torn += 1;
            }
        }
    }
    assert!(
        torn > 500 && kept > 500 && lost > 100,
        "{torn} {kept} {lost}"
    );
}

#[test]
fn times_of_use_before_and_after_a_jump_of_the_clock_do_no_harm() {
    assert!(is_noted(1000, 1000) && is_noted(1000, 1000 + USED_LATELY));
    assert!(!is_noted(1000, 1001 + USED_LATELY), "long ago");
    assert!(!is_noted(1001, 1000), "the clock went back");
    assert!(is_noted(i64::MAX, i64::MAX) && !is_noted(i64::MIN, i64::MAX));
    // What was used since goes last, whatever the clock said before.
    let mut files = [(500, 7), (1001, 0), (1 << 40, 0), (500, 3)];
    files.sort_by_key(|used| order_of(*used, 1000));
    assert_eq!(files, [(1 << 40, 0), (500, 3), (500, 7), (1001, 0)]);
}
