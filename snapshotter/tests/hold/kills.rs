//! Daemons and holders that die or hang, at any moment.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, kill_process};

use super::{Ground, eventually, memory, say, text_of, told};

#[test]
fn what_a_killed_daemon_gave_away_last_is_there_for_the_next() {
    let ground = Ground::new();
    for round in 0..10 {
        ground.daemon(&format!("keep-many 150;keep last {round};die"));
        let (holder, taken) = ground.open();
        assert_eq!(taken.len(), 151);
        assert_eq!(text_of(&taken["last"]), round.to_string());
        drop(holder);
    }
    ground.daemon("release-all 1;release last;keep 0.many other;die");
    let (holder, taken) = ground.open();
    assert!(!taken.contains_key("last") && !taken.contains_key("1.many"));
    assert_eq!(taken.len(), 150 - 1 - 10 - 50);
    assert_eq!(text_of(&taken["0.many"]), "other");
    holder.end();
}

#[test]
fn a_daemon_that_died_with_its_answer_unread_is_heard_to_the_end() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    drop(holder);
    let raw = ground.connect().expect("connect");
    let descriptor = memory("last words");
    say(&raw, b"LH\x03", &[]);
    eventually("the answer is there", || {
        let mut polled = [PollFd::new(&raw, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).expect("poll") > 0
    });
    say(&raw, b"LH\x012.fuse", &[descriptor.as_fd()]);
    drop((raw, descriptor));
    let (holder, taken) = ground.open();
    assert_eq!(told(&taken), "1.fuse=one 2.fuse=last words");
    holder.end();
}

#[test]
fn a_holder_that_is_killed_is_replaced_and_nothing_is_lost() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    for round in 0..3 {
        for number in 0..300 {
            holder.keep(&format!("{round}.{number}"), memory(&number.to_string()));
        }
        let pid = ground.pid().expect("a holder");
        kill_process(pid, Signal::KILL).expect("kill");
        // At once, when nobody knows yet.
        holder.keep("late", memory(&round.to_string()));
        holder.release(&format!("{round}.0"));
        eventually("there is another one", || {
            ground.pid().is_some_and(|other| other != pid)
        });
    }
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(taken.len(), 3 * 299 + 1);
    assert_eq!(text_of(&taken["late"]), "2");
    assert_eq!(text_of(&taken["1.299"]), "299");
    holder.end();
}

#[test]
fn keeping_and_releasing_while_holders_die_leaves_what_was_kept() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    thread::scope(|scope| {
        for thread in 0..4 {
            let holder = &holder;
            scope.spawn(move || {
                for number in 0..400 {
                    let name = format!("{thread}.{}", number % 7);
                    holder.keep(&name, memory(&number.to_string()));
                    if number % 3 == 0 {
                        holder.release(&name);
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
        }
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(80));
            if let Some(pid) = ground.pid() {
                // It may be over already.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    });
    let mut wanted = BTreeMap::new();
    for number in 0..400 {
        wanted.insert(number % 7, number);
        if number % 3 == 0 {
            wanted.remove(&(number % 7));
        }
    }
    let wanted: Vec<String> = (0..4)
        .flat_map(|thread| {
            wanted
                .iter()
                .map(move |(n, text)| format!("{thread}.{n}={text}"))
        })
        .collect();
    // The last death may not have been noticed yet.
    eventually("the table is with the holder", || {
        thread::sleep(Duration::from_millis(50));
        holder.is_well()
    });
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(told(&taken), wanted.join(" "));
    holder.end();
}

#[test]
fn a_holder_that_hangs_costs_a_second_and_gets_everything_when_it_goes_on() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    let pid = ground.pid().expect("a holder");
    kill_process(pid, Signal::STOP).expect("stop");
    let mut longest = Duration::ZERO;
    for number in 0..2000 {
        let begin = Instant::now();
        holder.keep(&format!("{number}.fuse"), memory(&number.to_string()));
        longest = longest.max(begin.elapsed());
    }
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    assert!(!holder.is_well());
    kill_process(pid, Signal::CONT).expect("continue");
    eventually("it has everything", || holder.is_well());
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(ground.pid(), Some(pid));
    assert_eq!(taken.len(), 2000);
    assert_eq!(text_of(&taken["1999.fuse"]), "1999");
    holder.end();
}
