//! The process that serves a mount is killed at any moment, and another one goes on: programs see a
//! pause, and nothing else.
//!
//! The test process holds what has to outlive the server (`holder`), starts it again and again, and works
//! on the mount meanwhile (`load`): each answer of the file system must be the one that a file system gives
//! that was never interrupted. `LAMINA_KILLS` says how often it is killed.

// In a test a failed step is the end of it, in helpers and closures too.
#![allow(clippy::unwrap_used)]

mod holder;
mod load;
mod server;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use holder::Mounted;

/// What a test starts as another process: it serves until it is killed.
#[test]
#[ignore = "it is the process that the other tests start and kill"]
fn server() {
    server::serve();
}

#[test]
fn open_files_and_their_nodes_are_there_after_a_kill() {
    let mut mounted = Mounted::start(&[]);
    let at = mounted.at();
    let mut image = File::open(at.join("image/large")).unwrap();
    let mut written = File::options()
        .read(true)
        .append(true)
        .create_new(true)
        .open(at.join("new"))
        .unwrap();
    written.write_all(b"before ").unwrap();
    let removed = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(at.join("removed"))
        .unwrap();
    removed.write_all_at(b"still here", 0).unwrap();
    fs::remove_file(at.join("removed")).unwrap();
    let from_image = File::open(at.join("image/small")).unwrap();
    fs::remove_file(at.join("image/small")).unwrap();
    let directory = File::open(at.join("image")).unwrap();
    let ino = directory.metadata().unwrap().ino();

    for _ in 0..3 {
        mounted.kill_and_restart();
        written.write_all(b"after ").unwrap();
        written.sync_all().unwrap();
        let mut text = String::new();
        written.seek(SeekFrom::Start(0)).unwrap();
        written.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("before after "), "{text}");
        assert_eq!(written.metadata().unwrap().nlink(), 1);
        let mut bytes = [0; 10];
        removed.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"still here");
        removed.write_all_at(b"STILL", 0).unwrap();
        removed.write_all_at(b"still", 0).unwrap();
        assert_eq!(removed.metadata().unwrap().nlink(), 0);
        removed.set_len(10).unwrap();
        let mut text = String::new();
        let mut again = from_image.try_clone().unwrap();
        again.seek(SeekFrom::Start(0)).unwrap();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "small of the image");
        assert_eq!(directory.metadata().unwrap().ino(), ino);
        let mut all = Vec::new();
        image.seek(SeekFrom::Start(0)).unwrap();
        image.read_to_end(&mut all).unwrap();
        assert_eq!(all, server::large());
        assert!(!at.join("image/small").exists());
        assert!(at.join("new").exists());
    }
    drop((image, written, removed, from_image, directory));
    mounted.settles();
    mounted.end();
}

#[test]
fn a_file_that_was_copied_up_under_open_handles_is_still_two() {
    let mut mounted = Mounted::start(&[]);
    let at = mounted.at();
    let old = File::open(at.join("image/small")).unwrap();
    fs::write(at.join("image/small"), "new").unwrap();
    for _ in 0..2 {
        mounted.kill_and_restart();
        let mut bytes = [0; 5];
        old.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"small");
        assert_eq!(fs::read_to_string(at.join("image/small")).unwrap(), "new");
    }
    drop(old);
    mounted.end();
}

#[test]
fn programs_that_work_all_the_time_see_no_error() {
    let kills: u32 = match std::env::var("LAMINA_KILLS") {
        Ok(kills) => kills.parse().unwrap(),
        Err(_) => 40,
    };
    for options in [&["passthrough"][..], &[]] {
        let mut mounted = Mounted::start(options);
        let (at, stop) = (mounted.at(), AtomicBool::new(false));
        let begun = Instant::now();
        let mut pauses = Vec::new();
        let done = thread::scope(|scope| {
            let loads: Vec<_> = load::all(&at)
                .into_iter()
                .map(|(name, mut load)| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut rounds = 0_u64;
                        while !stop.load(Ordering::Relaxed) {
                            load(rounds);
                            rounds += 1;
                        }
                        (name, rounds)
                    })
                })
                .collect();
            let mut chance = load::Chance(begun.elapsed().subsec_nanos().into());
            for _ in 0..kills {
                thread::sleep(Duration::from_millis(chance.below(60)));
                pauses.push(mounted.kill_and_restart());
                if loads.iter().any(thread::ScopedJoinHandle::is_finished) {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            loads
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect::<Vec<_>>()
        });
        let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
        assert!(done.iter().all(|(_, rounds)| *rounds > 0), "{done:?}");
        pauses.sort();
        let last = pauses.last().unwrap();
        println!(
            "{options:?}: {} kills in {:.1} s, {done:?}; from kill to ready {:?}, at most {last:?}",
            pauses.len(),
            begun.elapsed().as_secs_f32(),
            pauses[pauses.len() / 2],
        );
        mounted.settles();
        mounted.end();
    }
}
