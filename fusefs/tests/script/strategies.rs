//! proptest's strategies. What stands first in a choice is what it shrinks to.

use std::ops::RangeInclusive;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::Script;
use super::layers::{Content, Device, Entry, Layer, Meta, Mode, PLAIN, Time};
use super::op::{Access, Act, Allocate, Op, Renaming, Setting, Special, User};
use super::paths::{Path, ROOT, depth, paths};

/// How many layers a stack has.
const LAYERS: RangeInclusive<usize> = 0..=4;

/// How many entries are tried for one layer.
const ENTRIES: RangeInclusive<usize> = 0..=12;

/// How many files may be kept open.
const SLOTS: u8 = 2;

/// A script with up to this number of operations, of all kinds.
pub(crate) fn script(ops: RangeInclusive<usize>) -> impl Strategy<Value = Script> {
    (layers(), vec(op(), ops)).prop_map(|(layers, ops)| Script { layers, ops })
}

/// A stack of layers, the topmost first.
pub(crate) fn layers() -> impl Strategy<Value = Vec<Layer>> {
    vec(layer(), LAYERS)
}

/// What one layer is written from.
pub(crate) fn layer() -> impl Strategy<Value = Layer> {
    let root = meta().prop_map(|meta| {
        let opaque = false;
        (ROOT, Entry::Dir { opaque, meta })
    });
    let entries = vec(placed_entry(), ENTRIES);
    (option::weighted(0.1, root), entries).prop_map(|(root, entries)| {
        let mut layer = Layer::from_iter(root);
        layer.extend(entries);
        layer
    })
}

/// An entry with its path: files and directories mostly where they are looked for.
fn placed_entry() -> impl Strategy<Value = (Path, Entry)> {
    prop_oneof![
        4 => (file_path(), file()),
        4 => (dir_path(), dir()),
        2 => (file_path(), file_path().prop_map(|to| Entry::HardLink { to })),
        3 => (path(), other_entry()),
    ]
}

fn file() -> impl Strategy<Value = Entry> {
    (content(), meta()).prop_map(|(content, meta)| Entry::File { content, meta })
}

fn dir() -> impl Strategy<Value = Entry> {
    (prop::bool::weighted(0.2), meta()).prop_map(|(opaque, meta)| Entry::Dir { opaque, meta })
}

fn other_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => Just(Entry::Whiteout),
        2 => (target(), meta()).prop_map(|(target, meta)| Entry::Symlink { target, meta }),
        1 => meta().prop_map(|meta| Entry::Fifo { meta }),
        1 => (device(), meta()).prop_map(|(device, meta)| Entry::Node { device, meta }),
        1 => file(),
        1 => dir(),
    ]
}

/// Any operation.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        40 => name_op(),
        20 => data_op(),
        15 => attribute_op(),
        10 => look_op(),
        20 => held_op(),
        2 => mount_op(),
        1 => user_op(),
    ]
}

/// Names that come and go.
pub(crate) fn name_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (file_path(), any::<bool>(), mode())
            .prop_map(|(path, exclusive, mode)| Op::Create { path, exclusive, mode }),
        5 => (dir_path(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        1 => (path(), special(), mode())
            .prop_map(|(path, kind, mode)| Op::Mknod { path, kind, mode }),
        2 => (path(), target()).prop_map(|(path, target)| Op::Symlink { path, target }),
        3 => (file_path(), file_path()).prop_map(|(from, to)| Op::Link { from, to }),
        6 => file_path().prop_map(|path| Op::Unlink { path }),
        4 => dir_path().prop_map(|path| Op::Rmdir { path }),
        4 => (file_path(), file_path(), rename())
            .prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        4 => (dir_path(), dir_path(), rename())
            .prop_map(|(from, to, how)| Op::Rename { from, to, how }),
        2 => (path(), path(), rename())
            .prop_map(|(from, to, how)| Op::Rename { from, to, how }),
    ]
}

/// Bytes that change.
pub(crate) fn data_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (file_path(), offset(), len(), any::<u8>())
            .prop_map(|(path, at, len, byte)| Op::Write { path, at, len, byte }),
        3 => (file_path(), len(), any::<u8>())
            .prop_map(|(path, len, byte)| Op::Append { path, len, byte }),
        2 => (file_path(), offset()).prop_map(|(path, size)| Op::Truncate { path, size }),
        1 => file_path().prop_map(|path| Op::OpenTruncate { path }),
        2 => (file_path(), allocate(), offset(), offset())
            .prop_map(|(path, how, at, len)| Op::Fallocate { path, how, at, len }),
    ]
}

/// Attributes that change.
pub(crate) fn attribute_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (any_path(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        3 => (any_path(), option::of(user_id()), option::of(user_id()))
            .prop_map(|(path, uid, gid)| Op::Chown { path, uid, gid }),
        3 => (any_path(), option::of(time()), option::of(time()))
            .prop_map(|(path, atime, mtime)| Op::Utimens { path, atime, mtime }),
        3 => (any_path(), xattr_name(), xattr_value(), setting())
            .prop_map(|(path, name, value, how)| Op::SetXattr { path, name, value, how }),
        2 => (any_path(), xattr_name()).prop_map(|(path, name)| Op::RemoveXattr { path, name }),
    ]
}

/// Nothing changes.
pub(crate) fn look_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        any_path().prop_map(|path| Op::Stat { path }),
        file_path().prop_map(|path| Op::Read { path }),
        prop_oneof![4 => dir_path(), 1 => Just(ROOT)].prop_map(|path| Op::ReadDir { path }),
        any_path().prop_map(|path| Op::ReadXattrs { path }),
    ]
}

/// What is open for a while.
pub(crate) fn held_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (0..SLOTS, prop_oneof![4 => file_path(), 1 => any_path()], access())
            .prop_map(|(slot, path, access)| Op::Open { slot, path, access }),
        1 => (0..SLOTS, act()).prop_map(|(slot, act)| Op::Held { slot, act }),
    ]
}

/// The mount goes and comes.
pub(crate) fn mount_op() -> impl Strategy<Value = Op> {
    Just(Op::Remount)
}

/// Somebody else goes on.
pub(crate) fn user_op() -> impl Strategy<Value = Op> {
    // Back to root more often than away: most of what a user without privilege tries is refused.
    prop_oneof![2 => Just(User::Root), 1 => Just(User::Unprivileged)]
        .prop_map(|user| Op::Become { user })
}

/// Where files are, mostly.
fn file_path() -> impl Strategy<Value = Path> {
    prop_oneof![3 => select(vec!["c", "a/c", "b/c", "a/b/c"]), 1 => path()]
}

/// Where directories are, mostly.
fn dir_path() -> impl Strategy<Value = Path> {
    prop_oneof![3 => select(vec!["a", "b", "a/b", "b/a"]), 1 => path()]
}

/// A path that is not the root. The shorter ones come more often than their number says.
fn path() -> impl Strategy<Value = Path> {
    prop_oneof![
        4 => of_depth(1),
        4 => of_depth(2),
        1 => of_depth(3),
    ]
}

fn of_depth(wanted: usize) -> impl Strategy<Value = Path> {
    let of_depth = |path: &Path| depth(path) == wanted;
    select(paths().iter().copied().filter(of_depth).collect::<Vec<_>>())
}

fn any_path() -> impl Strategy<Value = Path> {
    prop_oneof![15 => path(), 1 => Just(ROOT)]
}

/// What a symbolic link says. No target leaves the tree.
fn target() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "c", "a/b", "b/c", "nowhere"])
}

fn content() -> impl Strategy<Value = Content> {
    let head = select(vec![0, 1, 10, 4096, 5000]);
    let hole = prop_oneof![3 => Just(0), 1 => select(vec![100, 4096, 65_536])];
    let tail = select(vec![0, 7, 4096]);
    (head, hole, tail, any::<u8>()).prop_map(|(head, hole, tail, byte)| Content {
        head,
        hole,
        tail,
        byte,
    })
}

fn meta() -> impl Strategy<Value = Meta> {
    let xattr = option::weighted(0.3, (layer_xattr_name(), xattr_value()));
    let changed = (mode(), user_id(), user_id(), time(), time(), xattr).prop_map(
        |(mode, uid, gid, atime, mtime, xattr)| Meta {
            mode,
            uid,
            gid,
            atime,
            mtime,
            xattr,
        },
    );
    prop_oneof![1 => Just(PLAIN), 1 => changed]
}

fn mode() -> impl Strategy<Value = Mode> {
    select(vec![
        0o755, 0o644, 0o777, 0o600, 0o700, 0o000, 0o4755, 0o2755, 0o6711, 0o1777, 0o2777, 0o2644,
    ])
    .prop_map(Mode)
}

fn user_id() -> impl Strategy<Value = u32> {
    select(vec![0, 1000, 7, 4_000_000_000])
}

fn time() -> impl Strategy<Value = Time> {
    select(vec![
        Time(0, 0),
        Time(1_000_000_000, 123_456_789),
        Time(-1, 250_000_000),
        Time(2_000_000_000, 999_999_999),
        Time(4_000_000_000, 1),
    ])
}

fn layer_xattr_name() -> impl Strategy<Value = &'static str> {
    select(vec!["user.x", "user.y", "trusted.x", "security.x"])
}

/// The marks of overlayfs are tried too: a container must not be able to set them.
fn xattr_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        8 => layer_xattr_name(),
        1 => select(vec!["trusted.overlay.opaque", "user.overlay.opaque", "trusted.overlay", "bad"]),
    ]
}

fn xattr_value() -> impl Strategy<Value = &'static str> {
    select(vec!["", "1", "y", "a somewhat longer value"])
}

fn setting() -> impl Strategy<Value = Setting> {
    prop_oneof![
        3 => Just(Setting::AnyWay),
        1 => Just(Setting::MustCreate),
        1 => Just(Setting::MustReplace),
    ]
}

fn special() -> impl Strategy<Value = Special> {
    prop_oneof![
        Just(Special::Pipe),
        Just(Special::Regular),
        Just(Special::Socket),
        device().prop_map(Special::Of),
        Just(Special::Of(Device::Char(0, 0))),
    ]
}

fn device() -> impl Strategy<Value = Device> {
    select(vec![
        Device::Char(1, 3),
        Device::Char(0, 1),
        Device::Block(0, 0),
        Device::Block(259, 300),
    ])
}

fn rename() -> impl Strategy<Value = Renaming> {
    prop_oneof![
        4 => Just(Renaming::Plain),
        1 => Just(Renaming::NoReplace),
        2 => Just(Renaming::Exchange),
        1 => Just(Renaming::LeaveWhiteout),
    ]
}

fn allocate() -> impl Strategy<Value = Allocate> {
    select(vec![
        Allocate::Extend,
        Allocate::KeepSize,
        Allocate::PunchHole,
        Allocate::ZeroRange,
    ])
}

/// Where something begins, or how long something becomes: around the edges of pages.
fn offset() -> impl Strategy<Value = u64> {
    select(vec![0, 1, 5, 4095, 4096, 10_000, 100_000])
}

fn len() -> impl Strategy<Value = u32> {
    select(vec![1, 7, 4096, 10_000])
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        3 => Just(Access::ReadOnly),
        1 => Just(Access::WriteOnly),
        2 => Just(Access::ReadWrite),
        1 => Just(Access::AppendOnly),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Read),
        2 => Just(Act::ReadDir),
        3 => (offset(), len(), any::<u8>())
            .prop_map(|(at, len, byte)| Act::Write { at, len, byte }),
        1 => offset().prop_map(|size| Act::Truncate { size }),
        1 => mode().prop_map(|mode| Act::Chmod { mode }),
        3 => Just(Act::Stat),
        1 => Just(Act::Sync),
        2 => Just(Act::Close),
    ]
}
