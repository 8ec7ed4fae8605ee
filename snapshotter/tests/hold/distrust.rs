//! What a holder has, and what it does with what it should not be sent.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{RecvFlags, recv};
use rustix::process::{Signal, kill_process};

use super::{Ground, eventually, is_over, memory, say, status_of, text_of, told};

#[test]
fn a_holder_does_not_care_for_nonsense() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    holder.keep("1.fuse", memory("one"));
    let pid = ground.pid().expect("a holder");
    let descriptor = memory("foreign");
    let many = vec![descriptor.as_fd(); 253];
    let one = [descriptor.as_fd()];
    let long = [b"LH\x01".as_slice(), &b"n".repeat(100_000)].concat();
    for (bytes, descriptors) in [
        (&b"hello"[..], &[][..]),
        (b"", &[]),
        (b"", &one),
        (b"LH\x01x", &[]),
        (b"LH\x01x", &many),
        (b"LH\x01x", &one[..0]),
        (b"LH\x011.fuse", &many),
        (b"LH\x02", &[]),
        (b"LH\x03", &one),
        (b"LH\x05", &one),
        (b"LH\xff\xff", &many),
        (&long, &[]),
        (&long, &one),
    ] {
        let peer = ground.connect().expect("connect");
        say(&peer, bytes, descriptors);
        let mut answer = [0; 16];
        // Nobody could go on from there.
        let heard = recv(&peer, &mut answer, RecvFlags::empty());
        assert!(
            matches!(heard, Ok((_, 0)) | Err(Errno::CONNRESET)),
            "{bytes:?}: {heard:?}"
        );
    }
    let silent: Vec<_> = (0..100).filter_map(|_| ground.connect()).collect();
    assert_eq!(ground.pid(), Some(pid));
    holder.keep("2.fuse", memory("two"));
    drop(silent);
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(ground.pid(), Some(pid));
    assert_eq!(told(&taken), "1.fuse=one 2.fuse=two");
    holder.end();
}

#[test]
fn a_bad_name_is_not_kept_and_harms_nobody() {
    let ground = Ground::new();
    let (holder, _) = ground.open();
    let long = "n".repeat(201);
    for name in ["", "a:b", "a\nb", "ä", &long] {
        holder.keep(name, memory("bad"));
        holder.release(name);
    }
    holder.keep("good", memory("good"));
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(told(&taken), "good=good");
    holder.end();
}

#[test]
fn what_does_not_fit_is_refused_and_harms_nothing_else() {
    if may_raise_limits() {
        eprintln!("skipped: whoever has CAP_SYS_RESOURCE has no limit");
        return;
    }
    let ground = Ground::new();
    let mut by_hand = Command::new("sh")
        .args(["-c", "ulimit -n 128; exec \"$@\"", "sh"])
        .args([env!("CARGO_BIN_EXE_lamina"), "hold", "--address"])
        .arg(ground.address())
        .spawn()
        .expect("spawn");
    eventually("it listens", || ground.pid().is_some());
    let (holder, _) = ground.open();
    for number in 0..100 {
        holder.keep(&format!("{number:02}"), memory(&number.to_string()));
    }
    // One that is there is replaced even so.
    holder.keep("63", memory("other"));
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(taken.len(), 64);
    assert_eq!(text_of(&taken["63"]), "other");
    holder.release("00");
    holder.keep("99", memory("99"));
    drop(holder);
    let (holder, taken) = ground.open();
    assert_eq!(taken.len(), 64);
    assert_eq!(text_of(&taken["99"]), "99");
    holder.end();
    assert!(by_hand.wait().expect("wait").success());
}

#[test]
fn a_holder_has_nothing_but_what_it_holds() {
    let ground = Ground::new();
    let inherited = memory("inherited");
    fcntl_setfd(&inherited, FdFlags::empty()).expect("open for children");
    let (holder, _) = ground.open();
    for number in 0..5 {
        holder.keep(&format!("{number}.fuse"), memory("held"));
    }
    let pid = ground.pid().expect("a holder");
    let dir = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let links = || {
        let entries = fs::read_dir(dir.join("fd")).expect("list");
        let links = entries.map(|entry| fs::read_link(entry.expect("entry").path()));
        // One may be closed while it is listed.
        let mut links: Vec<String> = links
            .flatten()
            .map(|link| link.display().to_string())
            .map(|link| link.split(":[").next().unwrap_or_default().to_owned())
            .collect();
        links.sort();
        links
    };
    let null = ["/dev/null"; 3];
    let held = ["/memfd:held (deleted)"; 5];
    let wanted = [&null[..], &held, &["socket"; 2]].concat();
    eventually("it has that and no more", || links() == wanted);
    assert_eq!(fs::read_link(dir.join("cwd")).expect("cwd"), Path::new("/"));
    let environment = fs::read(dir.join("environ")).expect("environ");
    assert_eq!(environment, b"");

    let status = status_of(pid);
    for wanted in [
        "Name:\tlamina-hold",
        "Umask:\t0077",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Threads:\t1",
    ] {
        assert!(
            status.contains(&format!("{wanted}\n")),
            "{wanted}: {status}"
        );
    }
    let stat = fs::read_to_string(dir.join("stat")).expect("stat");
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .expect("fields")
        .split(' ')
        .collect();
    assert_eq!(
        fields[3],
        pid.as_raw_nonzero().to_string(),
        "its own session: {stat}"
    );
    if may_raise_limits() {
        let adjustment = fs::read_to_string(dir.join("oom_score_adj")).expect("oom");
        assert_eq!(adjustment, "-1000\n");
    }
    // A terminal's signals are not for it.
    for signal in [Signal::INT, Signal::HUP] {
        kill_process(pid, signal).expect("kill");
    }
    thread::sleep(Duration::from_millis(100));
    assert!(!is_over(pid));
    holder.end();
}

/// Whether this process has `CAP_SYS_RESOURCE`, which root lacks in some sandboxes.
fn may_raise_limits() -> bool {
    let own = rustix::thread::capabilities(None).expect("capabilities");
    let wanted = rustix::thread::CapabilitySet::SYS_RESOURCE;
    own.effective.contains(wanted)
}
