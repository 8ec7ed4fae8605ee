//! `lamina mount -o`: what is read holds nothing that could smuggle another option to the kernel.
#![no_main]
#![allow(dead_code)] // the command's own file, of which a part is used here

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;

#[path = "../../snapshotter/src/cli/mount_options.rs"]
mod mount_options;

use mount_options::MountOptions;

fuzz_target!(|input: (Vec<Vec<u8>>, bool)| {
    let (arguments, privileged) = input;
    let arguments: Vec<OsString> = arguments.into_iter().map(OsString::from_vec).collect();
    let Ok(options) = MountOptions::parse(&arguments, privileged) else {
        return;
    };
    assert!(!options.lower.is_empty());
    assert!(
        options
            .lower
            .iter()
            .all(|path| !path.as_os_str().is_empty())
    );
    assert!(options.upper.is_none() || options.work.is_some());
    assert!(options.upper.is_some() || options.read_only);
    let no_control = |text: &String| !text.contains(char::is_control);
    assert!(options.fsname.iter().all(no_control));
    for context in &options.contexts {
        assert!(no_control(context) && context.ends_with('"'));
        assert_eq!(context.matches('"').count(), 2, "{context}");
    }
    assert!(options.warnings.iter().all(no_control));
});
