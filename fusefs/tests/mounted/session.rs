//! Mounting and unmounting by Lamina itself.

use std::fs::{self, File};
use std::time::Duration;

use lamina_fusefs::session::SessionOptions;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::system::{Access, Layers, System};
use crate::tools::{append, fails, read, read_open, write};

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);

fn image() -> Option<Layers> {
    let layers = Layers::new(1);
    write(layers.bottom("file"), "image");
    (System::Lamina { passthrough: true })
        .is_wanted()
        .then_some(layers)
}

/// The line of a mount point in mountinfo.
fn mountinfo(layers: &Layers) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = format!(" {} ", layers.mountpoint().display());
    mounts
        .lines()
        .find(|line| line.contains(&point))
        .map(str::to_owned)
}

#[test]
fn a_mount_shows_its_options() {
    let Some(layers) = image() else { return };
    let options = SessionOptions {
        fsname: "lamina:a,b".to_owned(),
        dev: false,
        exec: false,
        ..SessionOptions::default()
    };
    let session = layers.mount_lamina(Access::Write, &options);
    let line = mountinfo(&layers).unwrap();
    for part in [
        "fuse.lamina lamina:a,b",
        "nodev",
        "noexec",
        "default_permissions",
        "allow_other",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains("nosuid"), "{line}");
    let device = line.split(' ').nth(2).unwrap();
    let read_ahead = read(format!("/sys/class/bdi/{device}/read_ahead_kb"));
    assert_eq!(read_ahead.trim(), "1024");
    assert!(session.is_alive());
    assert!(session.unmount(LONG).unwrap());
    assert_eq!(mountinfo(&layers), None);
}

#[test]
fn a_busy_mount_is_served_until_the_last_user_is_gone() {
    let Some(layers) = image() else { return };
    let session = layers.mount_lamina(Access::Write, &SessionOptions::default());
    let bound = layers.beside("bound");
    fs::create_dir(&bound).unwrap();
    mount_bind(layers.mountpoint(), &bound).unwrap();
    assert!(!session.unmount(SHORT).unwrap());
    assert_eq!(mountinfo(&layers), None);
    append(bound.join("file"), "!");
    assert_eq!(read(bound.join("file")), "image!");
    unmount(&bound, UnmountFlags::empty()).unwrap();
}

#[test]
fn an_open_file_keeps_a_dropped_session_served() {
    let Some(layers) = image() else { return };
    let options = SessionOptions {
        passthrough: false,
        ..SessionOptions::default()
    };
    let session = layers.mount_lamina(Access::Write, &options);
    let file = File::open(layers.mountpoint().join("file")).unwrap();
    drop(session);
    assert_eq!(mountinfo(&layers), None);
    assert_eq!(read_open(&file), "image");
}

#[test]
fn a_mount_that_somebody_else_unmounted() {
    let Some(layers) = image() else { return };
    let session = layers.mount_lamina(Access::Write, &SessionOptions::default());
    unmount(layers.mountpoint(), UnmountFlags::empty()).unwrap();
    session.wait().unwrap();
    let session = layers.mount_lamina(Access::Write, &SessionOptions::default());
    unmount(layers.mountpoint(), UnmountFlags::empty()).unwrap();
    assert!(session.unmount(LONG).unwrap());
}

#[test]
fn a_mount_of_somebody_else_stays() {
    let Some(layers) = image() else { return };
    let other = layers.beside("other");
    write(other.join("file"), "other");
    mount_bind(&other, layers.mountpoint()).unwrap();
    let session = layers.mount_lamina(Access::Write, &SessionOptions::default());
    unmount(layers.mountpoint(), UnmountFlags::empty()).unwrap();
    assert!(session.unmount(LONG).unwrap());
    assert_eq!(read(layers.mountpoint().join("file")), "other");
    unmount(layers.mountpoint(), UnmountFlags::empty()).unwrap();
}

#[test]
fn a_read_only_mount_refuses_by_itself() {
    let Some(layers) = image() else { return };
    let options = SessionOptions {
        read_only: true,
        ..SessionOptions::default()
    };
    let session = layers.mount_lamina(Access::Write, &options);
    fails(
        fs::write(layers.mountpoint().join("file"), "x"),
        rustix::io::Errno::ROFS,
    );
    assert!(session.unmount(LONG).unwrap());
}

#[test]
fn options_that_the_kernel_refuses_are_an_error() {
    let Some(layers) = image() else { return };
    let options = SessionOptions {
        extra: vec!["nonsense=1".to_owned()],
        ..Default::default()
    };
    let refused = layers.try_mount_lamina(Access::Write, &options);
    assert!(refused.is_err());
    assert_eq!(mountinfo(&layers), None);
}

#[test]
fn many_sessions_at_once_end_cleanly() {
    let Some(_) = image() else { return };
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let all: Vec<_> = (0..20)
        .map(|_| {
            let layers = image().unwrap();
            let session = layers.mount_lamina(Access::Write, &SessionOptions::default());
            append(layers.mountpoint().join("file"), "!");
            (layers, session)
        })
        .collect();
    assert!(threads() >= 40);
    for (layers, session) in all {
        assert_eq!(read(layers.mountpoint().join("file")), "image!");
        assert!(session.unmount(LONG).unwrap());
        assert_eq!(mountinfo(&layers), None);
    }
}
