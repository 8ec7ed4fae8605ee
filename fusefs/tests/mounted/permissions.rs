//! Who may do what: umask, ACLs, setgid directories, the sticky bit, and setuid bits that a
//! write takes away.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lamina_fusefs::session::{KernelFeatures, SessionOptions};

use crate::system::{Access, Layers, System, each_system};
use crate::tools::{
    USER, acl_with_user, append, chmod, lchown, mode, read, set_xattr, sh, sh_as_user, stat, write,
    xattr, xattr_names,
};

#[test]
fn umask_applies() {
    each_system(
        |_| {},
        |m| {
            assert!(sh(
                m.path(""),
                "umask 027; echo > file; mkdir dir; mkfifo fifo"
            ));
            assert_eq!(mode(m.path("file")), 0o640);
            assert_eq!(mode(m.path("dir")), 0o750);
            assert_eq!(mode(m.path("fifo")), 0o640);
        },
    );
}

#[test]
fn a_default_acl_is_inherited_and_replaces_the_umask() {
    each_system(
        |layers| {
            fs::create_dir(layers.bottom("lower")).unwrap();
            set_xattr(
                layers.bottom("lower"),
                "system.posix_acl_default",
                &acl_with_user(),
            )
            .unwrap();
        },
        |m| {
            fs::create_dir(m.path("upper")).unwrap();
            set_xattr(
                m.path("upper"),
                "system.posix_acl_default",
                &acl_with_user(),
            )
            .unwrap();
            for name in ["lower", "upper"] {
                let dir = m.path(name);
                assert!(sh(&dir, "umask 077; echo > file; mkdir sub; mkfifo fifo"));
                assert_eq!(mode(dir.join("file")), 0o660, "{name}");
                assert_eq!(mode(dir.join("fifo")), 0o660, "{name}");
                assert_eq!(mode(dir.join("sub")), 0o760, "{name}");
                assert_eq!(xattr_names(dir.join("file")), ["system.posix_acl_access"]);
                let inherited = xattr(dir.join("sub"), "system.posix_acl_default").unwrap();
                assert_eq!(inherited, acl_with_user());
                // The ACL lets the user in, the mode alone would not.
                chmod(&dir, 0o755);
                assert!(sh_as_user(&dir, "cat file > /dev/null && echo x >> file"));
            }
        },
    );
}

#[test]
fn chmod_changes_the_acl_mask() {
    each_system(
        |layers| {
            fs::create_dir(layers.bottom("dir")).unwrap();
            set_xattr(
                layers.bottom("dir"),
                "system.posix_acl_default",
                &acl_with_user(),
            )
            .unwrap();
            chmod(layers.bottom("dir"), 0o755);
        },
        |m| {
            write(m.path("dir/file"), "x");
            assert!(sh_as_user(m.path("dir"), "cat file > /dev/null"));
            chmod(m.path("dir/file"), 0o600);
            assert_eq!(mode(m.path("dir/file")), 0o600);
            assert!(!sh_as_user(m.path("dir"), "cat file 2> /dev/null"));
        },
    );
}

#[test]
fn setgid_directories_give_their_group() {
    each_system(
        |layers| {
            fs::create_dir(layers.bottom("dir")).unwrap();
            lchown(layers.bottom("dir"), 0, 1234);
            chmod(layers.bottom("dir"), 0o2777);
        },
        |m| {
            write(m.path("dir/file"), "");
            fs::create_dir(m.path("dir/sub")).unwrap();
            assert_eq!(stat(m.path("dir/file")).gid(), 1234);
            assert_eq!(stat(m.path("dir/sub")).gid(), 1234);
            assert_eq!(mode(m.path("dir/sub")) & 0o2000, 0o2000);
            assert!(sh_as_user(m.path("dir"), "umask 0; echo > users"));
            assert_eq!(
                (
                    stat(m.path("dir/users")).uid(),
                    stat(m.path("dir/users")).gid()
                ),
                (USER, 1234)
            );
        },
    );
}

#[test]
fn the_sticky_bit_protects() {
    each_system(
        |layers| {
            write(layers.bottom("dir/root"), "");
            chmod(layers.bottom("dir"), 0o1777);
        },
        |m| {
            assert!(sh_as_user(m.path("dir"), "echo > own && rm own"));
            assert!(!sh_as_user(m.path("dir"), "rm -f root 2> /dev/null"));
            assert!(!sh_as_user(m.path("dir"), "mv root moved 2> /dev/null"));
            fs::remove_file(m.path("dir/root")).unwrap();
        },
    );
}

#[test]
fn permissions_are_checked_for_everyone_but_root() {
    each_system(
        |layers| {
            write(layers.bottom("secret"), "s");
            chmod(layers.bottom("secret"), 0o600);
            write(layers.bottom("locked/file"), "s");
            chmod(layers.bottom("locked"), 0o700);
        },
        |m| {
            for denied in [
                "cat secret",
                "echo >> secret",
                "cat locked/file",
                "ls locked",
                "echo > x",
            ] {
                assert!(
                    !sh_as_user(m.path(""), &format!("({denied}) 2> /dev/null")),
                    "{denied}"
                );
            }
            assert!(!sh_as_user(m.path(""), "chmod 644 secret 2> /dev/null"));
            assert_eq!(read(m.path("secret")), "s");
        },
    );
}

/// Files that anybody may write, with setuid and setgid.
fn setuid_files(layers: &Layers) {
    for name in ["write", "truncate", "open", "root", "chown"] {
        write(layers.bottom(name), "#!");
        chmod(layers.bottom(name), 0o6777);
    }
}

#[test]
fn a_change_by_a_user_takes_setuid_away() {
    each_system(setuid_files, |m| {
        for (name, script) in [
            ("write", "echo x >> write"),
            ("truncate", "truncate -s 1 truncate"),
            ("open", ": > open"),
        ] {
            assert_eq!(mode(m.path(name)), 0o6777);
            assert!(sh_as_user(m.path(""), script), "{name}");
            assert_eq!(mode(m.path(name)), 0o777, "{name}");
        }
        m.remount();
        for name in ["write", "truncate", "open"] {
            assert_eq!(mode(m.path(name)), 0o777, "{name}");
        }
    });
}

#[test]
fn the_same_for_files_of_the_upper() {
    each_system(
        |_| {},
        |m| {
            write(m.path("file"), "#!");
            chmod(m.path("file"), 0o6777);
            assert!(sh_as_user(m.path(""), "echo x >> file"));
            assert_eq!(mode(m.path("file")), 0o777);
            // Set again after the first write, while another handle is open for reading.
            let _reader = fs::File::open(m.path("file")).unwrap();
            chmod(m.path("file"), 0o4777);
            assert!(sh_as_user(m.path(""), "echo y >> file"));
            assert_eq!(mode(m.path("file")), 0o777);
            assert_eq!(read(m.path("file")), "#!x\ny\n");
        },
    );
}

#[test]
fn a_write_by_root_keeps_setuid_and_chown_does_not() {
    each_system(setuid_files, |m| {
        append(m.path("root"), "x");
        assert_eq!(mode(m.path("root")), 0o6777);
        lchown(m.path("chown"), USER, USER);
        assert_eq!(mode(m.path("chown")), 0o777);
    });
}

#[test]
fn a_chown_that_names_no_owner_takes_setuid_away_too() {
    each_system(setuid_files, |m| {
        // A stranger must not be able to do so. (overlayfs refuses, Lamina does nothing.)
        sh_as_user(m.path(""), "chown : chown");
        assert_eq!(mode(m.path("chown")), 0o6777);
        std::os::unix::fs::chown(m.path("chown"), None, None).unwrap();
        assert_eq!(mode(m.path("chown")), 0o777);
        assert_eq!(mode(m.layers.bottom("chown")), 0o6777);
    });
}

#[test]
fn a_write_takes_capabilities_away() {
    // vfs_cap_data, revision 2, cap_net_raw permitted and effective.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    each_system(
        |layers| {
            write(layers.bottom("ping"), "#!");
            chmod(layers.bottom("ping"), 0o777);
            set_xattr(layers.bottom("ping"), "security.capability", &capability).unwrap();
        },
        |m| {
            assert_eq!(
                xattr(m.path("ping"), "security.capability").unwrap(),
                capability
            );
            chmod(m.path("ping"), 0o757);
            assert_eq!(
                xattr(m.path("ping"), "security.capability").unwrap(),
                capability
            );
            append(m.path("ping"), "x");
            assert!(xattr(m.path("ping"), "security.capability").is_err());
        },
    );
}

/// Old kernels don't say which writes take setuid away: they send a SETATTR before a write through
/// the cache, and nothing before one that bypasses it.
#[test]
fn setuid_goes_where_the_kernel_does_not_say_so() {
    if !(System::Lamina { passthrough: true }).is_wanted() {
        return;
    }
    for passthrough in [true, false] {
        let layers = Layers::new(1);
        setuid_files(&layers);
        let options = SessionOptions {
            passthrough,
            without: KernelFeatures::KILLPRIV_V2,
            ..SessionOptions::default()
        };
        let session = layers.mount_lamina(Access::Write, &options);
        let at = layers.mountpoint();
        append(at.join("root"), "x");
        assert_eq!(mode(at.join("root")), 0o6777);
        for (name, script) in [
            ("write", "echo x >> write"),
            ("truncate", "truncate -s 1 truncate"),
            ("open", ": > open"),
        ] {
            assert!(sh_as_user(&at, script), "{name}");
            assert_eq!(mode(at.join(name)), 0o777, "{name}, {passthrough}");
        }
        assert!(session.unmount(Duration::from_secs(10)).unwrap());
    }
}
