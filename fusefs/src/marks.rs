//! How the union's marks look on disk: overlayfs's format, so that the kernel can mount what we
//! wrote and we what it wrote (Documentation/filesystems/overlayfs.rst, fs/overlayfs/overlayfs.h).
//!
//! | mark | on disk | meaning |
//! | --- | --- | --- |
//! | whiteout | character device 0:0 | nothing below shows through at this name |
//! | opaque | `trusted.overlay.opaque` = `y` on a directory | it hides the directory below |
//! | redirect | `trusted.overlay.redirect` on a directory | it continues the directory at this path below |
//! | origin | `trusted.overlay.origin` on a copied-up file | the file handle of the image's file |
//! | metacopy | `trusted.overlay.metacopy` on a regular file | its attributes are here, its data below: at the same path or where its redirect leads |
//! | partial | metacopy = `P`, and `trusted.overlay.lamina.partial` | as metacopy, but the blocks that are no holes are here, see [`Data::Partial`] |
//! | impure | `trusted.overlay.impure` = `y` on a directory | it holds files with an origin, redirected directories, or devices 0:0 |
//! | nlink | `trusted.overlay.nlink` on a file with hard links in the image | see [`Nlink`] |
//! | device | `trusted.overlay.lamina.device` on an empty regular file | a character device 0:0 of the container, see [`set_device`] |
//! | whiteout file | `trusted.overlay.whiteout` on an empty regular file in a layer, in a directory with opaque = `x` | as a whiteout; other tools write it |

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Stat, XattrFlags};
use rustix::io::Errno;

use crate::sys::handle::FileHandle;
use crate::sys::kind_of;
use crate::sys::place::Place;
use crate::types::{Attr, FileKind};

/// What all marks' names begin with. Containers neither see nor set such xattrs.
const PRIVATE: &[u8] = b"trusted.overlay.";
/// What stands after [`PRIVATE`] in the name of an xattr that a container gave a mark's name.
const ESCAPE: &[u8] = b"overlay.";
/// The longest name of an xattr (`XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;

const OPAQUE: &str = "trusted.overlay.opaque";
const REDIRECT: &str = "trusted.overlay.redirect";
const ORIGIN: &str = "trusted.overlay.origin";
const IMPURE: &str = "trusted.overlay.impure";
const METACOPY: &str = "trusted.overlay.metacopy";
const NLINK: &str = "trusted.overlay.nlink";
const PARTIAL: &str = "trusted.overlay.lamina.partial";
const DEVICE: &str = "trusted.overlay.lamina.device";
const WHITEOUT_FILE: &str = "trusted.overlay.whiteout";
const ESCAPED_WHITEOUT_FILE: &str = "trusted.overlay.overlay.whiteout";

/// What the kernel also writes to an opaque mark: the directory holds whiteouts that are xattrs.
const OPAQUE_XWHITEOUTS: &[u8] = b"x";

/// A mark that is an xattr, for whoever judges the values themselves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mark {
    Opaque,
    Redirect,
    Origin,
    Impure,
    Metacopy,
    Partial,
    Nlink,
}

impl Mark {
    const ALL: [(Mark, &str); 7] = [
        (Mark::Opaque, OPAQUE),
        (Mark::Redirect, REDIRECT),
        (Mark::Origin, ORIGIN),
        (Mark::Impure, IMPURE),
        (Mark::Metacopy, METACOPY),
        (Mark::Partial, PARTIAL),
        (Mark::Nlink, NLINK),
    ];

    /// All marks of a file with their values.
    pub(crate) fn all_of(file: &Place) -> Result<Vec<(Mark, Vec<u8>)>, Errno> {
        let names = file.xattr_names()?;
        let mut found = Vec::new();
        for (mark, name) in Mark::ALL {
            if names.iter().any(|other| other == name)
                && let Some(value) = file.xattr(OsStr::new(name))?
            {
                found.push((mark, value));
            }
        }
        Ok(found)
    }

    /// The xattr's name.
    pub(crate) fn name(self) -> &'static str {
        let named = Mark::ALL.iter().find(|(mark, _)| *mark == self);
        named.map_or("", |(_, name)| name)
    }

    /// Whether an overlay writes such a value: ours or the kernel's.
    pub(crate) fn is_written(self, value: &[u8]) -> bool {
        match self {
            Mark::Opaque => value == b"y" || value == OPAQUE_XWHITEOUTS,
            Mark::Redirect => parse_redirect(value).is_some(),
            // Empty: copied up from a file system without handles.
            Mark::Origin => value.is_empty() || decode_origin(value).is_some(),
            Mark::Impure => value == b"y",
            // No flag is defined yet.
            Mark::Metacopy => {
                value == METACOPY_PARTIAL
                    || is_metacopy_value(value) && value.get(2).is_none_or(|flags| *flags == 0)
            }
            Mark::Partial => parse_limit(value).is_some(),
            Mark::Nlink => parse_nlink(value).is_some(),
        }
    }
}

/// The device number of a whiteout: major 0, minor 0.
pub(crate) const WHITEOUT_DEVICE: u64 = 0;

/// Whether an xattr on disk is the union's own.
pub(crate) fn is_private(stored: &OsStr) -> bool {
    let own = stored.as_bytes().strip_prefix(PRIVATE);
    own.is_some_and(|rest| !rest.starts_with(ESCAPE))
}

/// The name on disk of the xattr that a container calls `name`; `None` if that is too long.
///
/// What looks like a mark is escaped by one `overlay.` more, so that an overlay in the container
/// can keep its marks on our files, and one in that one too.
pub(crate) fn stored_name(name: &OsStr) -> Option<Cow<'_, OsStr>> {
    let Some(rest) = name.as_bytes().strip_prefix(PRIVATE) else {
        return Some(Cow::Borrowed(name));
    };
    let stored = [PRIVATE, ESCAPE, rest].concat();
    (stored.len() <= XATTR_NAME_MAX).then(|| Cow::Owned(OsString::from_vec(stored)))
}

/// What a container calls an xattr on disk; `None` if it is the union's own.
pub(crate) fn shown_name(stored: &OsStr) -> Option<Cow<'_, OsStr>> {
    let Some(rest) = stored.as_bytes().strip_prefix(PRIVATE) else {
        return Some(Cow::Borrowed(stored));
    };
    let name = [PRIVATE, rest.strip_prefix(ESCAPE)?].concat();
    Some(Cow::Owned(OsString::from_vec(name)))
}

/// Whether an inode is a whiteout.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind_of(stat) == FileKind::CharDevice && stat.st_rdev == WHITEOUT_DEVICE
}

/// Whether an inode may have a mark that makes it something else than the file it is on disk. Only
/// such files are asked for one.
pub(crate) fn may_stand_for_another(stat: &Stat) -> bool {
    kind_of(stat) == FileKind::Regular && stat.st_size == 0
}

/// Whether a file is shown as a character device 0:0. Whoever asks has seen the impure mark on its
/// directory: without it the file is what it is on disk.
pub(crate) fn is_device(file: &Place, stat: &Stat) -> Result<bool, Errno> {
    Ok(may_stand_for_another(stat) && file.xattr(OsStr::new(DEVICE))?.is_some())
}

/// Makes an empty regular file stand for a character device 0:0 of the container, which as such
/// would be a whiteout.
///
/// Two marks: the one that we read, which no container can set, and overlayfs's escaped whiteout.
/// Through kernel overlayfs an overlay in the container reads the file as a whiteout by the latter,
/// as it does the device. That one alone is no device: a container sets it on a file of its own.
pub(crate) fn set_device(file: &Place) -> Result<(), Errno> {
    for name in [ESCAPED_WHITEOUT_FILE, DEVICE] {
        file.set_xattr(OsStr::new(name), b"y", XattrFlags::empty())?;
    }
    Ok(())
}

/// Turns the attributes of the file on disk into the device's.
pub(crate) fn show_device(attr: &mut Attr) {
    attr.kind = FileKind::CharDevice;
    attr.rdev = WHITEOUT_DEVICE;
    attr.blocks = 0;
}

/// Whether an xattr on disk belongs to what makes a file a device, though it is not private.
pub(crate) fn belongs_to_device(stored: &OsStr) -> bool {
    stored == ESCAPED_WHITEOUT_FILE
}

/// Whether a directory of a layer holds files that are whiteouts.
pub(crate) fn holds_whiteout_files(dir: &Place) -> Result<bool, Errno> {
    Ok(dir.xattr(OsStr::new(OPAQUE))?.as_deref() == Some(OPAQUE_XWHITEOUTS))
}

/// Whether a file in such a directory is a whiteout.
pub(crate) fn is_whiteout_file(file: &Place, stat: &Stat) -> Result<bool, Errno> {
    Ok(may_stand_for_another(stat) && file.xattr(OsStr::new(WHITEOUT_FILE))?.is_some())
}

/// Whether a directory hides what is below it.
pub(crate) fn is_opaque(dir: &Place) -> Result<bool, Errno> {
    Ok(dir.xattr(OsStr::new(OPAQUE))?.as_deref() == Some(b"y"))
}

/// Makes a directory hide what is below it.
pub(crate) fn set_opaque(dir: &Place) -> Result<(), Errno> {
    dir.set_xattr(OsStr::new(OPAQUE), b"y", XattrFlags::empty())
}

/// Where a directory continues below.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Redirect {
    /// At this path from the root of the tree below (empty for the root itself).
    Absolute(PathBuf),
    /// At another name in the same directory.
    Sibling(PathBuf),
}

/// Reads the redirect of a directory or of a metacopy file. A value that no overlay writes (with
/// `..`, empty, with a slash in a relative one) is an error: following it would be a guess.
pub(crate) fn redirect(at: &Place) -> Result<Option<Redirect>, Errno> {
    let Some(value) = at.xattr(OsStr::new(REDIRECT))? else {
        return Ok(None);
    };
    parse_redirect(&value).map(Some).ok_or(Errno::IO)
}

/// Reads a redirect's bytes; `None` if they are not one.
pub(crate) fn parse_redirect(value: &[u8]) -> Option<Redirect> {
    let path = Path::new(OsStr::from_bytes(value));
    let mut components = path.components().peekable();
    let absolute = components.next_if_eq(&Component::RootDir).is_some();
    let mut names = PathBuf::new();
    for component in components {
        match component {
            Component::Normal(name) if !name.as_bytes().contains(&0) => names.push(name),
            _ => return None,
        }
    }
    match (absolute, names.components().count()) {
        (true, _) => Some(Redirect::Absolute(names)),
        (false, 1) => Some(Redirect::Sibling(names)),
        (false, _) => None,
    }
}

/// Makes a directory continue the one at `path` (from the root of the image), or a metacopy file
/// have its data there.
pub(crate) fn set_redirect(at: &Place, path: &Path) -> Result<(), Errno> {
    let absolute = Path::new("/").join(path);
    at.set_xattr(
        OsStr::new(REDIRECT),
        absolute.as_os_str().as_bytes(),
        XattrFlags::empty(),
    )
}

/// Whether a directory may hold files with an origin or devices 0:0. Where it doesn't, a listing
/// need not ask each file.
pub(crate) fn is_impure(dir: &Place) -> Result<bool, Errno> {
    Ok(dir.xattr(OsStr::new(IMPURE))?.as_deref() == Some(b"y"))
}

/// Says that a directory holds files with an origin or devices 0:0.
pub(crate) fn set_impure(dir: &Place) -> Result<(), Errno> {
    dir.set_xattr(OsStr::new(IMPURE), b"y", XattrFlags::empty())
}

/// `struct ovl_fb` without the handle's bytes: version, magic, length, flags, type, UUID.
const ORIGIN_HEADER: usize = 21;
const ORIGIN_VERSION: u8 = 0;
const ORIGIN_MAGIC: u8 = 0xfb;
/// `OVL_FH_FLAG_CPU_ENDIAN` on a little-endian machine is 0, on a big-endian one 1.
const ORIGIN_FLAGS: u8 = if cfg!(target_endian = "big") { 1 } else { 0 };

/// A file handle in overlayfs's encoding. The UUID of the file system is left zero: we look the
/// handle up on the layers' file systems alone.
pub(crate) fn encode_origin(handle: &FileHandle) -> Vec<u8> {
    let mut bytes = vec![0; ORIGIN_HEADER];
    bytes[0] = ORIGIN_VERSION;
    bytes[1] = ORIGIN_MAGIC;
    bytes[2] = u8::try_from(ORIGIN_HEADER + handle.bytes.len()).unwrap_or(0);
    bytes[3] = ORIGIN_FLAGS;
    bytes[4] = handle.kind;
    bytes.extend_from_slice(&handle.bytes);
    bytes
}

/// Reads overlayfs's encoding of a file handle; `None` if it is none of this machine's kind.
pub(crate) fn decode_origin(bytes: &[u8]) -> Option<FileHandle> {
    let (header, handle) = bytes.split_at_checked(ORIGIN_HEADER)?;
    let fits = header[0] == ORIGIN_VERSION
        && header[1] == ORIGIN_MAGIC
        && usize::from(header[2]) == bytes.len()
        && header[3] & 1 == ORIGIN_FLAGS
        && !handle.is_empty();
    fits.then(|| FileHandle {
        kind: header[4],
        bytes: handle.to_vec(),
    })
}

/// The image file that a file was copied up from.
pub(crate) fn origin(file: &Place) -> Result<Option<FileHandle>, Errno> {
    let value = file.xattr(OsStr::new(ORIGIN))?;
    Ok(value.and_then(|value| decode_origin(&value)))
}

/// Notes which image file a file was copied up from.
pub(crate) fn set_origin(file: &Place, origin: &FileHandle) -> Result<(), Errno> {
    file.set_xattr(
        OsStr::new(ORIGIN),
        &encode_origin(origin),
        XattrFlags::empty(),
    )
}

/// Whether a file has its attributes here and its data below. A value that no overlay writes is an
/// error: the file's own data are zeros.
pub(crate) fn is_metacopy(file: &Place) -> Result<bool, Errno> {
    match file.xattr(OsStr::new(METACOPY))? {
        None => Ok(false),
        Some(value) if is_metacopy_value(&value) => Ok(true),
        Some(_) => Err(Errno::IO),
    }
}

/// Empty, or `struct ovl_metacopy`: version 0, the length of all, flags, a digest's algorithm and
/// bytes. The digest is fs-verity's and checked by nobody here, as with overlayfs's `verity=off`.
pub(crate) fn is_metacopy_value(value: &[u8]) -> bool {
    match value {
        [] => true,
        [version, len, _flags, _algorithm, ..] => *version == 0 && usize::from(*len) == value.len(),
        _ => false,
    }
}

/// Where the data of a regular file of an upper are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Data {
    /// In the file.
    Here,
    /// In the image's file, all of them.
    Below,
    /// In both: where the file has a hole, before its first `limit` bytes end, the image's file has
    /// the data. The length is the upper file's.
    ///
    /// overlayfs refuses such a file (EIO), instead of showing the image's data.
    Partial {
        /// How many bytes of the image's file may be seen.
        limit: u64,
    },
}

/// The metacopy mark of a partial file: shorter than any that overlayfs reads, which makes it refuse
/// the file on every way to it (`ovl_check_metacopy_xattr`: "too small xattr").
pub(crate) const METACOPY_PARTIAL: &[u8] = b"P";

/// Reads where a file's data are. A value that nobody writes is an error.
pub(crate) fn data(file: &Place) -> Result<Data, Errno> {
    match file.xattr(OsStr::new(METACOPY))? {
        None => Ok(Data::Here),
        Some(value) if is_metacopy_value(&value) => Ok(Data::Below),
        Some(value) if value == METACOPY_PARTIAL => {
            let limit = file.xattr(OsStr::new(PARTIAL))?;
            let limit = limit.and_then(|limit| parse_limit(&limit));
            Ok(Data::Partial {
                limit: limit.ok_or(Errno::IO)?,
            })
        }
        Some(_) => Err(Errno::IO),
    }
}

/// Reads the limit of a partial file, decimal digits; `None` if the bytes are something else.
pub(crate) fn parse_limit(value: &[u8]) -> Option<u64> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| is_number)?;
    text.parse().ok()
}

/// Says that a file has the data of its blocks that are no holes, and the image's file the others,
/// as far as `limit`.
pub(crate) fn set_partial(file: &Place, limit: u64) -> Result<(), Errno> {
    set_limit(file, limit)?;
    file.set_xattr(OsStr::new(METACOPY), METACOPY_PARTIAL, XattrFlags::empty())
}

/// Changes the limit of a partial file.
pub(crate) fn set_limit(file: &Place, limit: u64) -> Result<(), Errno> {
    let value = limit.to_string();
    file.set_xattr(OsStr::new(PARTIAL), value.as_bytes(), XattrFlags::empty())
}

/// Says that a partial file has its data here. A limit that is left over means nothing.
pub(crate) fn clear_partial(file: &Place) -> Result<(), Errno> {
    clear_metacopy(file)?;
    if let Err(error) = file.remove_xattr(OsStr::new(PARTIAL)) {
        tracing::debug!(?file, %error, "a limit that means nothing stays");
    }
    Ok(())
}

/// Says that a file has its data below.
pub(crate) fn set_metacopy(file: &Place) -> Result<(), Errno> {
    file.set_xattr(OsStr::new(METACOPY), b"", XattrFlags::empty())
}

/// Says that a file has its data here. The redirect means nothing from then on.
pub(crate) fn clear_metacopy(file: &Place) -> Result<(), Errno> {
    file.remove_xattr(OsStr::new(METACOPY))
}

/// How many links a file has in the union, as the difference to a count that the file system
/// keeps. Which one is chosen decides what a crash does to the sum; see [`crate::upper`]'s link
/// index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Nlink {
    /// `U+n`, `U-n`: relative to the links that the upper's file has. A step that gives or takes
    /// one changes the sum with it.
    Upper(i64),
    /// `L+n`, `L-n`: relative to the links of the image's file, which never change.
    Image(i64),
}

/// Reads the difference; none at all where there is no mark.
pub(crate) fn nlink(file: &Place) -> Result<Nlink, Errno> {
    let value = file.xattr(OsStr::new(NLINK))?;
    Ok(value
        .and_then(|value| parse_nlink(&value))
        .unwrap_or(Nlink::Upper(0)))
}

/// Reads the bytes of a link difference; `None` for anything else.
pub(crate) fn parse_nlink(value: &[u8]) -> Option<Nlink> {
    let (base, number) = value.split_first()?;
    let number = std::str::from_utf8(number).ok()?.parse().ok()?;
    match base {
        b'U' => Some(Nlink::Upper(number)),
        b'L' => Some(Nlink::Image(number)),
        _ => None,
    }
}

/// Sets the difference.
pub(crate) fn set_nlink(file: &Place, nlink: Nlink) -> Result<(), Errno> {
    let value = match nlink {
        Nlink::Upper(difference) => format!("U{difference:+}"),
        Nlink::Image(difference) => format!("L{difference:+}"),
    };
    file.set_xattr(OsStr::new(NLINK), value.as_bytes(), XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_that_an_overlay_writes_are_read() {
        assert_eq!(
            parse_redirect(b"/a/b"),
            Some(Redirect::Absolute("a/b".into()))
        );
        assert_eq!(parse_redirect(b"a"), Some(Redirect::Sibling("a".into())));
        assert_eq!(parse_redirect(b"/"), Some(Redirect::Absolute("".into())));
    }

    #[test]
    fn redirects_that_lead_elsewhere_are_refused() {
        for bad in [
            &b""[..],
            b"..",
            b"/..",
            b"/a/../b",
            b"a/b",
            b"../a",
            b"/a\0b",
        ] {
            assert_eq!(parse_redirect(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_origin_survives_its_encoding_and_nothing_else_does() {
        let handle = FileHandle {
            kind: 1,
            bytes: vec![1, 2, 3, 4, 5, 6, 7, 8],
        };
        let bytes = encode_origin(&handle);
        assert_eq!(decode_origin(&bytes), Some(handle));
        for cut in 0..bytes.len() {
            assert_eq!(decode_origin(&bytes[..cut]), None, "cut at {cut}");
        }
        let mut wrong = bytes;
        wrong[1] = 0;
        assert_eq!(decode_origin(&wrong), None);
    }

    proptest::proptest! {
        /// What a layer says is read to the end or refused, and never leads out of the image.
        #[test]
        fn no_bytes_make_a_mark_that_climbs(value in proptest::collection::vec(0_u8.., 0..300)) {
            let _ = (parse_nlink(&value), parse_limit(&value));
            if let Some(handle) = decode_origin(&value) {
                proptest::prop_assert!(handle.bytes.len() < value.len());
            }
            if let Some(Redirect::Absolute(path) | Redirect::Sibling(path)) = parse_redirect(&value) {
                let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
                proptest::prop_assert!(inside, "{path:?}");
            }
        }
    }

    #[test]
    fn a_limit_is_digits_and_nothing_else() {
        for limit in [0, 4097, u64::MAX] {
            assert_eq!(parse_limit(limit.to_string().as_bytes()), Some(limit));
        }
        for bad in ["", "-1", "+1", " 1", "1 ", "0x1", "18446744073709551616"] {
            assert_eq!(parse_limit(bad.as_bytes()), None, "{bad:?}");
        }
        assert!(!is_metacopy_value(METACOPY_PARTIAL));
        assert!(Mark::Metacopy.is_written(METACOPY_PARTIAL));
    }

    #[test]
    fn what_looks_like_a_mark_is_escaped_once_for_each_overlay() {
        for (name, stored) in [
            ("user.x", "user.x"),
            ("trusted.x", "trusted.x"),
            ("trusted.overlay", "trusted.overlay"),
            ("trusted.overlayx", "trusted.overlayx"),
            ("trusted.overlay.", "trusted.overlay.overlay."),
            ("trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
            (
                "trusted.overlay.overlay.opaque",
                "trusted.overlay.overlay.overlay.opaque",
            ),
        ] {
            let (name, stored) = (OsStr::new(name), OsStr::new(stored));
            assert_eq!(stored_name(name).as_deref(), Some(stored));
            assert_eq!(shown_name(stored).as_deref(), Some(name));
            assert!(!is_private(stored), "{stored:?}");
        }
        for own in [
            OPAQUE,
            ORIGIN,
            "trusted.overlay.",
            "trusted.overlay.overlay",
        ] {
            assert_eq!(shown_name(OsStr::new(own)), None);
            assert!(is_private(OsStr::new(own)), "{own}");
        }
    }

    #[test]
    fn a_name_that_grows_too_long_has_no_place() {
        let name = |length: usize| format!("trusted.overlay.{}", "x".repeat(length - 16));
        assert!(stored_name(OsStr::new(&name(247))).is_some());
        assert_eq!(stored_name(OsStr::new(&name(248))), None);
    }

    proptest::proptest! {
        #[test]
        fn every_name_comes_back(
            prefix in proptest::sample::select(vec!["", "trusted.overlay.", "trusted.overlay.overlay."]),
            rest in proptest::collection::vec(1_u8.., 0..200),
        ) {
            let name = OsString::from_vec([prefix.as_bytes(), &rest].concat());
            let stored = stored_name(&name).unwrap().into_owned();
            proptest::prop_assert!(!is_private(&stored));
            let shown = shown_name(&stored).map(Cow::into_owned);
            proptest::prop_assert_eq!(shown, Some(name));
        }
    }

    #[test]
    fn link_differences_are_signed() {
        assert_eq!(parse_nlink(b"U+3"), Some(Nlink::Upper(3)));
        assert_eq!(parse_nlink(b"U-1"), Some(Nlink::Upper(-1)));
        assert_eq!(parse_nlink(b"L+1"), Some(Nlink::Image(1)));
        assert_eq!(parse_nlink(b"X+1"), None);
        assert_eq!(parse_nlink(b"U"), None);
    }
}
