//! Idmapped mounts: users of the disk are other users of the mount.
//!
//! Kernel overlayfs can't be idmapped itself, so the yardstick is a directory of the host's file
//! system: the same steps through an idmapped mount of it have to give the same tree.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lamina_fusefs::session::{KernelFeatures, Session, SessionOptions};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::system::{Access, Layers, System};
use crate::tools::{
    Seen, USER, acl_with_user, append, chmod, fails, lchown, mode, read, set_xattr, stat,
    tree_without_inodes, write,
};

/// User 0 of the disk is this user of the mount, and so on.
const SHIFT: u32 = 100_000;
const LENGTH: u32 = 65_536;

/// A user namespace that shifts users and groups.
fn shifting_namespace() -> File {
    let mut child = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo ready; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let map = format!("0 {SHIFT} {LENGTH}");
    fs::write(proc.join("uid_map"), &map).unwrap();
    fs::write(proc.join("gid_map"), &map).unwrap();
    let namespace = File::open(proc.join("ns/user")).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    namespace
}

/// Idmaps a mount that is not in the tree yet.
#[allow(unsafe_code)]
fn set_idmap(mount: &OwnedFd, namespace: &File) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd().try_into().unwrap(),
    };
    // SAFETY: the descriptors are open, the path is a C string, and the kernel reads one
    // `mount_attr`, whose size it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An idmapped clone of a mount; detached when dropped.
struct Mapped(PathBuf);

impl Mapped {
    fn new(of: &Path, at: PathBuf) -> io::Result<Mapped> {
        fs::create_dir(&at)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = open_tree(CWD, of, flags)?;
        set_idmap(&clone, &shifting_namespace())?;
        move_mount(
            &clone,
            "",
            CWD,
            &at,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        Ok(Mapped(at))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Runs a script as a user of the host.
fn sh_as(user: u32, directory: &Path, script: &str) -> bool {
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    Command::new("setpriv")
        .args([&*uid, &*gid, "--clear-groups", "--", "sh", "-c", script])
        .current_dir(directory)
        .status()
        .unwrap()
        .success()
}

/// What is there before.
fn fill(root: &Path) {
    write(root.join("roots"), "image");
    write(root.join("users"), "image");
    lchown(root.join("users"), USER, USER);
    write(root.join("listed"), "image");
    set_xattr(
        root.join("listed"),
        "system.posix_acl_access",
        &acl_with_user(),
    )
    .unwrap();
    for (name, mode) in [("open", 0o777), ("group", 0o2777), ("acl", 0o777)] {
        fs::create_dir(root.join(name)).unwrap();
        chmod(root.join(name), mode);
    }
    lchown(root.join("group"), 0, 77);
    set_xattr(
        root.join("acl"),
        "system.posix_acl_default",
        &acl_with_user(),
    )
    .unwrap();
    for name in ["written", "cut"] {
        write(root.join(name), "#!");
        lchown(root.join(name), USER, USER);
        chmod(root.join(name), 0o6777);
    }
}

/// What is done through the idmapped mount.
fn change(at: &Path) {
    let (root, user) = (SHIFT, SHIFT + USER);
    let given = format!("chown {}:{} made/file", SHIFT + 5, SHIFT + 6);
    for (who, script) in [
        (
            root,
            "echo root >> roots && ln roots hard && mkdir made && echo x > made/file",
        ),
        (root, "mkfifo made/pipe && ln -s target made/link"),
        // Giving files away is a privilege that the root of the disk does not have here.
        (0, &*given),
        (
            user,
            "echo user >> users && echo listed >> listed && cat listed > /dev/null",
        ),
        (
            user,
            "umask 027; echo x > open/file && mkdir open/dir && ln -s y open/link",
        ),
        (
            user,
            "echo x > group/file && mkdir group/dir && echo x > acl/file && mkdir acl/dir",
        ),
        (
            user,
            "echo x >> written && truncate -s 1 cut && mv open/file open/moved",
        ),
    ] {
        assert!(sh_as(who, at, script), "{who}: {script}");
    }
    assert!(!sh_as(user, at, "(echo x >> roots) 2> /dev/null"));
    assert!(!sh_as(user + 1, at, "cat listed 2> /dev/null"));
    // Users that are none of the disk's can own nothing on it.
    let new = File::create(at.join("open/new"));
    fails(new, Errno::OVERFLOW);
    fails(
        std::os::unix::fs::lchown(at.join("roots"), Some(5), None),
        Errno::OVERFLOW,
    );
}

type Tree = std::collections::BTreeMap<PathBuf, Seen>;

/// The trees that the steps leave, as the mount shows it and as it is on the disk.
fn on_the_host() -> (Tree, Tree) {
    let layers = Layers::new(1);
    fill(&layers.upper());
    let mapped = Mapped::new(&layers.upper(), layers.beside("mapped")).unwrap();
    change(&mapped.0);
    (
        tree_without_inodes(&mapped.0),
        tree_without_inodes(layers.upper()),
    )
}

fn mount(layers: &Layers, options: SessionOptions) -> Session {
    let options = SessionOptions {
        idmap: true,
        ..options
    };
    layers.mount_lamina(Access::Write, &options)
}

#[test]
fn users_are_shifted_as_on_the_hosts_file_system() {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    let expected = on_the_host();
    let old = KernelFeatures::all() - KernelFeatures::IDMAP;
    for (passthrough, without) in [
        (true, KernelFeatures::empty()),
        (false, KernelFeatures::empty()),
        (false, old),
    ] {
        let layers = Layers::new(1);
        fill(layers.lowers()[0].as_path());
        let options = SessionOptions {
            passthrough,
            without,
            ..SessionOptions::default()
        };
        let session = mount(&layers, options);
        let mapped = Mapped::new(&layers.mountpoint(), layers.beside("mapped")).unwrap();
        assert_eq!(stat(mapped.path("roots")).uid(), SHIFT);
        change(&mapped.0);
        let same = |seen: Tree, expected: &Tree| {
            for (path, expected) in expected {
                // Whose the root directory is differs by how the fixture is made.
                if !path.as_os_str().is_empty() {
                    assert_eq!(seen.get(path), Some(expected), "{}", path.display());
                }
            }
            assert_eq!(seen.len(), expected.len());
        };
        same(tree_without_inodes(&mapped.0), &expected.0);
        same(tree_without_inodes(layers.mountpoint()), &expected.1);
        drop(mapped);
        assert!(session.unmount(Duration::from_secs(10)).unwrap());
    }
}

/// What the kernel does not tell is what costs setuid: more than elsewhere, never less.
#[test]
fn roots_truncate_takes_setuid_away_where_a_mount_may_be_idmapped() {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    let layers = Layers::new(1);
    fill(layers.lowers()[0].as_path());
    let session = mount(&layers, SessionOptions::default());
    let at = layers.mountpoint();
    append(at.join("written"), "x");
    assert_eq!(mode(at.join("written")), 0o6777);
    assert_eq!(read(at.join("written")), "#!x");
    crate::tools::truncate(at.join("cut"), 1).unwrap();
    assert_eq!(mode(at.join("cut")), 0o777);
    assert!(session.unmount(Duration::from_secs(10)).unwrap());
}

#[test]
fn a_mount_that_did_not_ask_for_it_is_not_idmapped() {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    let layers = Layers::new(1);
    let session = layers.mount_lamina(Access::Write, &SessionOptions::default());
    let mapped = Mapped::new(&layers.mountpoint(), layers.beside("mapped"));
    fails(mapped.map(|_| ()), Errno::INVAL);
    assert!(session.unmount(Duration::from_secs(10)).unwrap());

    let options = SessionOptions {
        idmap: true,
        without: KernelFeatures::IDMAP,
        ..SessionOptions::default()
    };
    let refused = layers
        .try_mount_lamina(Access::Write, &options)
        .unwrap_err();
    assert!(refused.to_string().contains("Linux 6.12"), "{refused}");
}
