//! When a holder begins, and when it ends.

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lamina_snapshotter::hold::{Holder, Keeper};
use rustix::process::{Signal, kill_process};

use super::{Ground, eventually, is_over, memory, options};

#[test]
fn a_holder_without_a_daemon_has_patience_and_then_lets_go() {
    let ground = Ground::new();
    let (holder, _) = ground.open_for(Duration::from_secs(2));
    let (mut read, write) = std::io::pipe().expect("pipe");
    holder.keep("1.pipe", Arc::new(write.into()));
    let pid = ground.pid().expect("a holder");
    thread::sleep(Duration::from_secs(3));
    assert!(!is_over(pid), "there is a daemon");
    let begin = Instant::now();
    drop(holder);
    // The end of the pipe is the end of the last descriptor of it.
    assert_eq!(read.read(&mut [0]).expect("read"), 0);
    let waited = begin.elapsed();
    assert!(waited > Duration::from_millis(1900), "{waited:?}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    eventually("it is over", || is_over(pid));
    assert!(!ground.address().exists());
}

#[test]
fn patience_is_what_the_last_daemon_said() {
    let ground = Ground::new();
    let (holder, _) = ground.open_for(Duration::from_secs(1));
    holder.keep("1.fuse", memory("one"));
    drop(holder);
    let (holder, _) = ground.open_for(Duration::from_mins(1));
    let pid = ground.pid().expect("a holder");
    drop(holder);
    thread::sleep(Duration::from_secs(2));
    assert!(!is_over(pid));
    let (holder, taken) = ground.open();
    assert_eq!(taken.len(), 1);
    holder.end();
}

#[test]
fn a_holder_that_holds_nothing_ends_with_its_daemon() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    let pid = ground.pid().expect("a holder");
    holder.end();
    eventually("it is over", || is_over(pid));
    assert_eq!(fs::read_dir(ground.0.path()).expect("list").count(), 0);

    let (holder, taken) = ground.open();
    assert!(taken.is_empty());
    let pid = ground.pid().expect("a holder");
    holder.keep("1.fuse", memory("one"));
    holder.release("1.fuse");
    drop(holder);
    eventually("it is over", || is_over(pid));
}

#[test]
fn an_administrator_can_end_a_holder() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    let pid = ground.pid().expect("a holder");
    drop(holder);
    kill_process(pid, Signal::TERM).expect("kill");
    eventually("it is over", || is_over(pid));
    let (holder, taken) = ground.open();
    assert!(taken.is_empty());
    holder.end();
}

#[test]
fn a_holder_that_cannot_start_is_told_with_the_reason() {
    let ground = Ground::new();
    fs::write(ground.address(), "precious").expect("write");
    let options = options(Keeper::Process, Duration::from_mins(1));
    let error = Holder::open(&options, &ground.address()).expect_err("a file is in the way");
    let text = error.to_string();
    assert!(text.contains("hold.sock"), "{text}");
    assert_eq!(fs::read(ground.address()).expect("read"), b"precious");
}
