//! The `-o` options of `lamina mount`: those of fuse-overlayfs and mount(8).
//!
//! Options are separated by commas, and layers in `lowerdir` by colons. A backslash takes the
//! meaning from the character after it (`\,`, `\:`, `\\`), and a value that begins with `"` keeps
//! its commas up to the closing quote, as `SELinux` contexts need it. All of this works on bytes,
//! because paths are bytes.
//!
//! Programs that were written for fuse-overlayfs hand over whatever they hand to that. So an
//! option that we can't honour is a warning, and never a failure: see [`MountOptions::warnings`].

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use lamina_fusefs::session::KernelFeatures;
use lamina_fusefs::union::PARTIAL_FROM;

/// What all `-o` options together ask for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // independent mount options, as mount(8) has them
pub(super) struct MountOptions {
    /// `lowerdir`: the layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// `upperdir`: where changes go; without it the mount is read-only.
    pub upper: Option<PathBuf>,
    /// `workdir`: an empty directory on the file system of the upper.
    pub work: Option<PathBuf>,
    /// `indexdir`: where the index of the image is kept; without it there is none.
    pub index_dir: Option<PathBuf>,
    /// `fsname`: the source that `/proc/mounts` shows.
    pub fsname: Option<String>,
    /// `ro`.
    pub read_only: bool,
    /// `allow_other`: the default for root.
    pub allow_other: bool,
    /// `suid`: the default for root.
    pub suid: bool,
    /// `dev`.
    pub dev: bool,
    /// `exec`: the default.
    pub exec: bool,
    /// `SELinux` contexts, as the kernel wants them: `context="..."`.
    pub contexts: Vec<String>,
    /// `no_open`: the kernel opens the files of a read-only mount without asking.
    pub no_open: bool,
    /// `without`: features of the kernel to leave aside.
    pub without: KernelFeatures,
    /// `metacopy`: a change of attributes copies up the attributes alone.
    pub metacopy: bool,
    /// `partial_copy_up`: the length from which files are copied up in part (bytes), if at all.
    pub partial_copy_up: Option<u64>,
    /// `record`: what the daemon writes down for the one after it is written down.
    pub record: bool,
    /// What was asked for and will not happen, one sentence each.
    pub warnings: Vec<String>,
}

/// Why options can't be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum OptionError {
    /// The option means nothing without a value.
    #[error("option `{0}` needs a value: {0}=...")]
    NoValue(&'static str),
    /// Two colons in a row, or one at an end.
    #[error("lowerdir has an empty entry")]
    EmptyLower,
    /// No switch.
    #[error("option `{0}` is `on` or `off`, not `{1}`")]
    BadSwitch(&'static str, String),
    /// Neither a switch nor a length.
    #[error("option `partial_copy_up` is `on`, `off` or a number of bytes, not `{0}`")]
    BadLength(String),
    /// No feature of that name.
    #[error("option `without` knows no `{0}`: {known}", known = feature_names())]
    UnknownFeature(String),
    /// Not even one layer.
    #[error("no layers: give at least one directory with -o lowerdir=A:B")]
    NoLower,
    /// An upper alone.
    #[error("upperdir needs a workdir: an empty directory on the same file system")]
    NoWork,
    /// A control character or a quote, which could smuggle in another option.
    #[error("the value of `{0}` has a character that is not allowed there")]
    BadCharacter(String),
}

impl MountOptions {
    /// Reads the arguments of all `-o`, in order; where they contradict each other the last wins.
    /// `privileged` decides the defaults of `allow_other` and `suid`, as in fuse-overlayfs.
    pub(super) fn parse(
        arguments: &[OsString],
        privileged: bool,
    ) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions {
            allow_other: privileged,
            suid: privileged,
            exec: true,
            metacopy: true,
            partial_copy_up: Some(PARTIAL_FROM),
            ..MountOptions::default()
        };
        for argument in arguments {
            for option in split_unescaped(argument.as_bytes(), b',') {
                if !option.is_empty() {
                    options.apply(option)?;
                }
            }
        }
        if options.lower.is_empty() {
            return Err(OptionError::NoLower);
        }
        match (&options.upper, &options.work) {
            (Some(_), None) => return Err(OptionError::NoWork),
            (None, Some(_)) => options
                .warnings
                .push("option `workdir` is ignored: there is no upperdir".to_owned()),
            _ => {}
        }
        options.read_only |= options.upper.is_none();
        if options.no_open && !options.read_only {
            options
                .warnings
                .push("option `no_open` is ignored: the mount is not read-only".to_owned());
        }
        Ok(options)
    }

    fn apply(&mut self, option: &[u8]) -> Result<(), OptionError> {
        let (name, value) = match option.iter().position(|&byte| byte == b'=') {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (option, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        match name.as_str() {
            "lowerdir" => self.lower = layers(needed("lowerdir", value)?)?,
            "lowerdir+" => self.lower.push(path(needed("lowerdir+", value)?)),
            "upperdir" => self.upper = Some(path(needed("upperdir", value)?)),
            "workdir" => self.work = Some(path(needed("workdir", value)?)),
            "indexdir" => self.index_dir = Some(path(needed("indexdir", value)?)),
            "noindexdir" => self.index_dir = None,
            "fsname" => {
                let value = unescape(needed("fsname", value)?);
                self.fsname = Some(printable("fsname", &value)?);
            }
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "no_open" => self.no_open = true,
            "defaults" => {
                (self.read_only, self.suid, self.dev, self.exec) = (false, true, true, true);
            }
            "record" => self.record = true,
            "without" => self.without |= features(needed("without", value)?)?,
            "metacopy" => self.metacopy = switch("metacopy", needed("metacopy", value)?)?,
            "partial_copy_up" => {
                self.partial_copy_up = length(needed("partial_copy_up", value)?)?;
            }
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                let value = unquote(value.unwrap_or_default());
                let value = printable(&name, &unescape(value))?;
                self.contexts.push(format!("{name}=\"{value}\""));
            }
            _ => self.other(&name, value),
        }
        Ok(())
    }

    /// Options that change nothing here: silently if we do the same anyway or it's a hint.
    fn other(&mut self, name: &str, value: Option<&[u8]>) {
        let value = value.map(String::from_utf8_lossy);
        let off = matches!(value.as_deref(), Some("0" | "off"));
        match name {
            // So it is in any case, or it is nobody's business but mount(8)'s.
            "default_permissions"
            | "noauto"
            | "auto"
            | "nofail"
            | "_netdev"
            | "async"
            | "relatime"
            | "lazytime"
            | "atime"
            | "noatime"
            | "diratime"
            | "nodiratime"
            | "nouser"
            | "subtype" => {}
            _ if name.starts_with("x-") || name.starts_with("comment") => {}
            // Hints about speed, to another implementation.
            "threaded" | "fast_ino" | "writeback" | "kernel_cache" | "auto_cache" | "max_write"
            | "max_read" | "max_background" | "clone_fd" => {}
            _ if name.starts_with("splice_") || name.starts_with("no_splice_") => {}
            // Turning off what we don't do.
            "squash_to_root" | "static_nlink" | "volatile" | "redirect_dir" | "metacopy"
            | "xattr_permissions" | "noxattrs" | "ino32_t" | "userxattr" | "index"
            | "nfs_export"
                if off => {}
            "fsync" | "xino" if !off => {}
            "uidmapping" | "gidmapping" | "squash_to_root" | "squash_to_uid" | "squash_to_gid"
            | "static_nlink" | "noacl" | "xino" | "ino32_t" | "timeout" | "fsync" | "noxattrs"
            | "xattr_permissions" | "volatile" | "plugins" | "redirect_dir" | "metacopy"
            | "userxattr" | "index" | "nfs_export" | "allow_root" | "sync" | "dirsync" => {
                self.warnings
                    .push(format!("option `{name}` is not supported yet, and ignored"));
            }
            _ => {
                let name = name.escape_debug();
                self.warnings
                    .push(format!("option `{name}` is unknown, and ignored"));
            }
        }
    }
}

/// `on` or `off`.
fn switch(name: &'static str, value: &[u8]) -> Result<bool, OptionError> {
    match String::from_utf8_lossy(value).as_ref() {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(OptionError::BadSwitch(
            name,
            other.escape_debug().to_string(),
        )),
    }
}

/// The length from which files are copied up in part.
fn length(value: &[u8]) -> Result<Option<u64>, OptionError> {
    match String::from_utf8_lossy(value).as_ref() {
        "on" => Ok(Some(PARTIAL_FROM)),
        "off" => Ok(None),
        number => match number.parse() {
            Ok(length) => Ok(Some(length)),
            Err(_) => Err(OptionError::BadLength(number.escape_debug().to_string())),
        },
    }
}

/// The features that `without=a:b` names; `all` is every one of them.
fn features(value: &[u8]) -> Result<KernelFeatures, OptionError> {
    split_unescaped(value, b':')
        .map(|name| match String::from_utf8_lossy(name).as_ref() {
            "all" => Ok(KernelFeatures::all()),
            name => KernelFeatures::from_name(&name.to_uppercase())
                .ok_or_else(|| OptionError::UnknownFeature(name.escape_debug().to_string())),
        })
        .collect()
}

/// Every name that `without` knows.
fn feature_names() -> String {
    let names = KernelFeatures::all().iter_names();
    let names = names.map(|(name, _)| name.to_lowercase());
    std::iter::once("all".to_owned())
        .chain(names)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The value of an option that must have one.
fn needed<'a>(name: &'static str, value: Option<&'a [u8]>) -> Result<&'a [u8], OptionError> {
    value
        .filter(|value| !value.is_empty())
        .ok_or(OptionError::NoValue(name))
}

/// The layers of a `lowerdir`.
pub(super) fn layers(value: &[u8]) -> Result<Vec<PathBuf>, OptionError> {
    split_unescaped(value, b':')
        .map(|layer| match layer {
            [] => Err(OptionError::EmptyLower),
            layer => Ok(path(layer)),
        })
        .collect()
}

fn path(value: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(value)))
}

/// A value that goes into a list of options again, so it may not look like more than one.
fn printable(name: &str, value: &[u8]) -> Result<String, OptionError> {
    String::from_utf8(value.to_vec())
        .ok()
        .filter(|text| !text.contains(|c: char| c.is_control() || c == '"'))
        .ok_or_else(|| OptionError::BadCharacter(name.to_owned()))
}

/// Cuts at each `separator` that has no backslash before it and is not in a quoted value.
fn split_unescaped(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (mut at, mut quoted) = (0, false);
        while at < text.len() {
            match text[at] {
                b'\\' => at += 1,
                b'"' if quoted => quoted = false,
                b'"' if at > 0 && text[at - 1] == b'=' => quoted = true,
                byte if byte == separator && !quoted => {
                    rest = Some(&text[at + 1..]);
                    return Some(&text[..at]);
                }
                _ => {}
            }
            at += 1;
        }
        rest = None;
        Some(text)
    })
}

/// Takes away each backslash that has something after it.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.push(bytes.next().unwrap_or(b'\\')),
            _ => plain.push(byte),
        }
    }
    plain
}

/// Takes away the quotes around a value.
fn unquote(value: &[u8]) -> &[u8] {
    value
        .strip_prefix(b"\"")
        .and_then(|value| value.strip_suffix(b"\""))
        .unwrap_or(value)
}

#[cfg(test)]
#[path = "mount_options_tests.rs"]
mod tests;
