//! Several threads at the same files: every call succeeds, and nothing is lost.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::Barrier;
use std::thread;

use crate::system::each_system;
use crate::tools::{append, chmod, exists, names, open_rw, read, read_open, sh, write};

const THREADS: usize = 8;

/// Runs `work` in all threads at once.
fn together(work: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (work, barrier) = (&work, &barrier);
            scope.spawn(move || {
                barrier.wait();
                work(thread);
            });
        }
    });
}

#[test]
fn readers_and_first_writers_of_image_files() {
    const FILES: usize = 40;
    each_system(
        |layers| {
            for file in 0..FILES {
                write(layers.bottom(&format!("dir/{file}")), "image");
            }
        },
        |m| {
            together(|thread| {
                for file in 0..FILES {
                    let path = m.path(&format!("dir/{file}"));
                    match thread % 4 {
                        0 => append(&path, "+"),
                        1 => chmod(&path, 0o640),
                        2 => drop(open_rw(&path)),
                        _ => assert!(read_open(&File::open(&path).unwrap()).starts_with("image")),
                    }
                }
            });
            for file in 0..FILES {
                assert_eq!(read(m.path(&format!("dir/{file}"))), "image++");
            }
        },
    );
}

#[test]
fn appends_to_one_file() {
    each_system(
        |layers| write(layers.bottom("log"), ""),
        |m| {
            together(|thread| {
                let mut log = OpenOptions::new().append(true).open(m.path("log")).unwrap();
                for line in 0..100 {
                    log.write_all(format!("{thread}-{line}\n").as_bytes())
                        .unwrap();
                }
            });
            assert_eq!(read(m.path("log")).lines().count(), THREADS * 100);
        },
    );
}

#[test]
fn appends_of_many_processes() {
    each_system(
        |layers| write(layers.bottom("log"), ""),
        |m| {
            let line = "0123456789".repeat(10);
            // One system call for each line, each from an open file of its own.
            let script = format!("for i in $(seq 100); do echo {line} >> log; done");
            together(|_| assert!(sh(m.path(""), &script)));
            let log = read(m.path("log"));
            assert_eq!(log.lines().count(), THREADS * 100);
            assert!(log.lines().all(|seen| seen == line), "two lines are mixed");
        },
    );
}

#[test]
fn appends_of_many_pages_are_not_mixed() {
    const BLOCK: usize = 20_000;
    each_system(
        |layers| write(layers.bottom("log"), ""),
        |m| {
            together(|thread| {
                let mut log = OpenOptions::new().append(true).open(m.path("log")).unwrap();
                for _ in 0..20 {
                    let block = vec![u8::try_from(thread).unwrap(); BLOCK];
                    assert_eq!(log.write(&block).unwrap(), BLOCK);
                }
            });
            let log = fs::read(m.path("log")).unwrap();
            assert_eq!(log.len(), THREADS * 20 * BLOCK);
            let is_whole = |block: &[u8]| block.iter().all(|byte| *byte == block[0]);
            assert!(log.chunks(BLOCK).all(is_whole), "two blocks are mixed");
        },
    );
}

#[test]
fn one_name_is_made_once() {
    each_system(
        |_| {},
        |m| {
            for name in 0..50 {
                let path = m.path(&format!("{name}"));
                let made = std::sync::atomic::AtomicUsize::new(0);
                together(|_| {
                    if File::create_new(&path).is_ok() {
                        made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
                assert_eq!(made.into_inner(), 1, "{name}");
            }
        },
    );
}

#[test]
fn names_in_one_directory() {
    each_system(
        |layers| {
            for number in 0..THREADS * 20 {
                write(layers.bottom(&format!("dir/image{number}")), "image");
            }
        },
        |m| {
            together(|thread| {
                for number in (0..20).map(|number| thread * 20 + number) {
                    let path = |name: &str| m.path(&format!("dir/{name}{number}"));
                    fs::rename(path("image"), path("moved")).unwrap();
                    write(path("new"), "new");
                    fs::hard_link(path("new"), path("link")).unwrap();
                    fs::remove_file(path("new")).unwrap();
                    assert!(!exists(path("image")));
                    assert!(names(m.path("dir")).len() >= THREADS * 20);
                }
            });
            assert_eq!(names(m.path("dir")).len(), THREADS * 20 * 2);
            m.remount();
            assert_eq!(names(m.path("dir")).len(), THREADS * 20 * 2);
        },
    );
}
