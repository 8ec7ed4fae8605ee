use std::ffi::OsStr;

use proptest::prelude::*;

use super::*;

fn parse_all(arguments: &[&str]) -> Result<MountOptions, OptionError> {
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    MountOptions::parse(&arguments, true)
}

fn parse(argument: &str) -> MountOptions {
    parse_all(&[argument]).unwrap()
}

fn lower(argument: &str) -> Vec<String> {
    let paths = parse(argument).lower;
    paths.iter().map(|p| p.display().to_string()).collect()
}

/// Writes a path so that it can stand in a `lowerdir`.
fn escape(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in path {
        if matches!(byte, b'\\' | b',' | b':' | b'"') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

#[test]
fn what_podman_says() {
    let options =
        parse("lowerdir=/l/A:/l/B,upperdir=/c/diff,workdir=/c/work,nodev,fsync=0,volatile");
    assert_eq!(
        options.lower,
        [PathBuf::from("/l/A"), PathBuf::from("/l/B")]
    );
    assert_eq!(
        options.upper.as_deref(),
        Some(OsStr::new("/c/diff").as_ref())
    );
    assert_eq!(
        options.work.as_deref(),
        Some(OsStr::new("/c/work").as_ref())
    );
    assert!(!options.read_only && !options.dev && options.suid && options.allow_other);
    assert_eq!(
        options.warnings,
        [
            "option `fsync` is not supported yet, and ignored",
            "option `volatile` is not supported yet, and ignored",
        ]
    );
}

#[test]
fn defaults_follow_the_privilege() {
    let options = MountOptions::parse(&["lowerdir=/a".into()], false).unwrap();
    assert!(!options.allow_other && !options.suid && !options.dev && options.exec);
    let options = MountOptions::parse(&["lowerdir=/a".into()], true).unwrap();
    assert!(options.allow_other && options.suid && !options.dev && options.exec);
}

#[test]
fn several_o_are_one_list_and_the_last_word_counts() {
    let options = parse_all(&["lowerdir=/a,suid", "nosuid,dev,noexec", "lowerdir=/b"]).unwrap();
    assert_eq!(options.lower, [PathBuf::from("/b")]);
    assert!(!options.suid && options.dev && !options.exec);
    assert!(!parse("lowerdir=/a,upperdir=/u,workdir=/w,ro,rw").read_only);
    assert!(parse("lowerdir=/a,upperdir=/u,workdir=/w,rw,ro").read_only);
}

#[test]
fn files_are_opened_without_asking_where_nothing_is_written() {
    let options = parse("lowerdir=/a,no_open");
    assert!(options.no_open && options.warnings.is_empty());
    let options = parse("lowerdir=/a,upperdir=/u,workdir=/w,no_open");
    assert_eq!(
        options.warnings,
        ["option `no_open` is ignored: the mount is not read-only"]
    );
    assert!(!parse("lowerdir=/a").no_open);
}

#[test]
fn nothing_is_recorded_unless_somebody_asks_for_it() {
    assert!(parse("lowerdir=/a,record").record);
    assert!(!parse("lowerdir=/a").record);
}

#[test]
fn escapes_keep_separators_in_paths() {
    assert_eq!(lower(r"lowerdir=/a\:b:/c"), ["/a:b", "/c"]);
    assert_eq!(lower(r"lowerdir=/a\,b:/c"), ["/a,b", "/c"]);
    assert_eq!(lower(r"lowerdir=/a\\:/c"), [r"/a\", "/c"]);
    assert_eq!(lower(r"lowerdir=/a\"), [r"/a\"]);
    assert_eq!(lower(r#"lowerdir=/a"b,ro"#), [r#"/a"b"#]);
    let options = parse(r"lowerdir=/a,upperdir=/u\,u\:u,workdir=/w=w");
    assert_eq!(options.upper, Some(PathBuf::from("/u,u:u")));
    assert_eq!(options.work, Some(PathBuf::from("/w=w")));
    // A colon outside `lowerdir` separates nothing.
    assert_eq!(
        parse("lowerdir=/a,upperdir=/u:u,workdir=/w").upper,
        Some("/u:u".into())
    );
}

#[test]
fn lowerdir_plus_adds_one_layer() {
    assert_eq!(lower("lowerdir+=/a:a,lowerdir+=/b"), ["/a:a", "/b"]);
}

#[test]
fn without_an_upper_it_is_read_only() {
    assert!(parse("lowerdir=/a,rw").read_only);
    let options = parse("lowerdir=/a,workdir=/w");
    assert_eq!(
        options.warnings,
        ["option `workdir` is ignored: there is no upperdir"]
    );
}

#[test]
fn features_of_the_kernel_can_be_left_aside() {
    let two = KernelFeatures::PASSTHROUGH | KernelFeatures::KILLPRIV_V2;
    let options = parse("lowerdir=/a,without=passthrough:killpriv_v2");
    assert_eq!((options.without, &*options.warnings), (two, &[][..]));
    let options = parse("lowerdir=/a,without=passthrough,without=killpriv_v2");
    assert_eq!(options.without, two);
    assert_eq!(
        parse("lowerdir=/a,without=all").without,
        KernelFeatures::all()
    );
    let unknown = MountOptions::parse(&["lowerdir=/a,without=magic".into()], true).unwrap_err();
    let message = unknown.to_string();
    assert!(message.contains("`magic`: all passthrough"), "{message}");
}

#[test]
fn a_context_keeps_its_commas() {
    let wanted = [r#"context="system_u:object_r:container_file_t:s0:c1,c2""#];
    let given = r#"lowerdir=/a,context="system_u:object_r:container_file_t:s0:c1,c2",noexec"#;
    let options = parse(given);
    assert_eq!(options.contexts, wanted);
    assert!(!options.exec);
    let escaped = parse(r"context=system_u:object_r:container_file_t:s0:c1\,c2,lowerdir=/a");
    assert_eq!(escaped.contexts, wanted);
}

#[test]
fn a_value_cannot_smuggle_in_an_option() {
    for bad in [
        r#"lowerdir=/a,context=a\",allow_root"#,
        "lowerdir=/a,fsname=a\nb",
    ] {
        assert!(
            matches!(parse_all(&[bad]), Err(OptionError::BadCharacter(_))),
            "{bad}"
        );
    }
}

#[test]
fn fsname_is_the_source() {
    assert_eq!(
        parse("lowerdir=/a,fsname=box").fsname.as_deref(),
        Some("box")
    );
}

#[test]
fn hints_are_silent() {
    let options = parse(
        "lowerdir=/a,default_permissions,noatime,threaded=1,kernel_cache,xino=auto,\
         splice_read,redirect_dir=off,squash_to_root=0,x-systemd.automount,async",
    );
    assert_eq!(options.warnings, Vec::<String>::new());
}

#[test]
fn known_and_unknown_options_warn() {
    let options = parse("lowerdir=/a,uidmapping=0:1:2,plugins=x,flux,fl\nux=3");
    assert_eq!(
        options.warnings,
        [
            "option `uidmapping` is not supported yet, and ignored",
            "option `plugins` is not supported yet, and ignored",
            "option `flux` is unknown, and ignored",
            r"option `fl\nux` is unknown, and ignored",
        ]
    );
}

#[test]
fn what_is_missing_is_said() {
    for (bad, error) in [
        ("", OptionError::NoLower),
        ("ro", OptionError::NoLower),
        ("lowerdir=", OptionError::NoValue("lowerdir")),
        ("lowerdir", OptionError::NoValue("lowerdir")),
        ("lowerdir=/a::/b", OptionError::EmptyLower),
        ("lowerdir=/a:", OptionError::EmptyLower),
        ("lowerdir=/a,upperdir", OptionError::NoValue("upperdir")),
        ("lowerdir=/a,upperdir=/u", OptionError::NoWork),
        (
            "lowerdir=/a,upperdir=/u,workdir=",
            OptionError::NoValue("workdir"),
        ),
    ] {
        assert_eq!(parse_all(&[bad]), Err(error), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<Vec<u8>>, privileged: bool) {
        let arguments: Vec<_> = bytes.into_iter().map(OsString::from_vec).collect();
        let _ = MountOptions::parse(&arguments, privileged);
    }

    #[test]
    fn no_likely_text_makes_it_panic(text in r#"((lowerdir|upperdir|context|x)?[=:,\\"a/]){0,12}"#) {
        let _ = MountOptions::parse(&[text.into()], true);
    }

    #[test]
    fn escapes_round_trip(layers in prop::collection::vec(prop::collection::vec(1u8.., 1..20), 1..6),
                          upper in prop::collection::vec(1u8.., 1..20)) {
        let mut argument = b"lowerdir=".to_vec();
        argument.extend(layers.iter().map(|layer| escape(layer)).collect::<Vec<_>>().join(&b':'));
        argument.extend(b",upperdir=");
        argument.extend(escape(&upper));
        argument.extend(b",workdir=/w");
        let options = MountOptions::parse(&[OsString::from_vec(argument)], true).unwrap();
        let found: Vec<_> = options.lower.iter().map(|p| p.as_os_str().as_bytes()).collect();
        prop_assert_eq!(found, layers);
        let found = options.upper.unwrap();
        prop_assert_eq!(found.as_os_str().as_bytes(), &upper[..]);
    }
}

#[test]
fn an_index_has_a_place_or_is_left_out() {
    let options = parse("lowerdir=/a,indexdir=/var/a b");
    assert_eq!(options.index_dir, Some(PathBuf::from("/var/a b")));
    assert_eq!(parse("lowerdir=/a,indexdir=/b,noindexdir").index_dir, None);
    assert_eq!(parse("lowerdir=/a").index_dir, None);
    let error = parse_all(&["lowerdir=/a,indexdir"]).unwrap_err();
    assert_eq!(error, OptionError::NoValue("indexdir"));
}

#[test]
fn attributes_are_copied_up_alone_unless_switched_off() {
    assert!(parse("lowerdir=/l").metacopy);
    assert!(!parse("lowerdir=/l,metacopy=off").metacopy);
    assert!(parse("lowerdir=/l,metacopy=off,metacopy=on").metacopy);
    let refused = parse_all(&["lowerdir=/l,metacopy=yes"]).unwrap_err();
    assert_eq!(
        refused,
        OptionError::BadSwitch("metacopy", "yes".to_owned())
    );
}

#[test]
fn files_are_copied_up_in_part_from_a_length_on() {
    let from = |option: &str| parse(&format!("lowerdir=/l{option}")).partial_copy_up;
    assert_eq!(from(""), Some(PARTIAL_FROM));
    assert_eq!(from(",partial_copy_up=off"), None);
    assert_eq!(from(",partial_copy_up=off,partial_copy_up=on"), from(""));
    assert_eq!(from(",partial_copy_up=4096"), Some(4096));
    let refused = parse_all(&["lowerdir=/l,partial_copy_up=-1"]).unwrap_err();
    assert_eq!(refused, OptionError::BadLength("-1".to_owned()));
}
