//! What programs do while the server is killed. Each load knows what every call has to answer.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};

use super::server;

/// A sequence of numbers.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// One of 0 to `end`, without that.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}

/// Does something on the mount; its argument counts the rounds.
type Load<'m> = Box<dyn FnMut(u64) + Send + 'm>;

/// All loads, each with a name.
pub(crate) fn all(at: &Path) -> Vec<(&'static str, Load<'_>)> {
    vec![
        ("names", Box::new(|round| names(&at.join("names"), round))),
        (
            "names too",
            Box::new(|round| names(&at.join("more"), round)),
        ),
        ("removed", Box::new(|round| removed(at, round))),
        (
            "appends",
            Box::new(|round| appends(&at.join("appended"), round)),
        ),
        ("copies up", Box::new(|round| copies_up(at, round))),
        ("reads", Box::new(|_| reads(at))),
        ("lists", Box::new(|round| lists(&at.join("listed"), round))),
        (
            "xattrs",
            Box::new(|round| xattrs(&at.join("marked"), round)),
        ),
    ]
}

/// Every change of names there is, and its opposite.
fn names(dir: &Path, round: u64) {
    if round == 0 {
        fs::create_dir(dir).unwrap();
    }
    let path = |name: &str| dir.join(name);
    let mut made = File::create_new(path("file")).unwrap();
    made.write_all(b"text").unwrap();
    assert_eq!(
        File::create_new(path("file")).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    fs::create_dir(path("dir")).unwrap();
    fs::hard_link(path("file"), path("dir/link")).unwrap();
    assert_eq!(made.metadata().unwrap().nlink(), 2);
    symlink("file", path("symlink")).unwrap();
    assert_eq!(fs::read_link(path("symlink")).unwrap(), Path::new("file"));
    fs::rename(path("file"), path("renamed")).unwrap();
    assert_eq!(
        fs::metadata(path("file")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    fs::write(path("victim"), "other").unwrap();
    fs::rename(path("renamed"), path("victim")).unwrap();
    assert_eq!(fs::read_to_string(path("victim")).unwrap(), "text");
    fs::rename(path("dir"), path("moved")).unwrap();
    assert_eq!(fs::read_to_string(path("moved/link")).unwrap(), "text");
    let exchange = RenameFlags::EXCHANGE;
    renameat_with(CWD, path("victim"), CWD, path("symlink"), exchange).unwrap();
    assert_eq!(fs::read_link(path("victim")).unwrap(), Path::new("file"));
    assert_eq!(
        fs::remove_dir(path("moved")).unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
    fs::remove_file(path("moved/link")).unwrap();
    assert_eq!(made.metadata().unwrap().nlink(), 1);
    fs::remove_dir(path("moved")).unwrap();
    fs::remove_file(path("victim")).unwrap();
    fs::remove_file(path("symlink")).unwrap();
    assert_eq!(made.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
}

/// Files without a name are written and read.
fn removed(at: &Path, round: u64) {
    let path = at.join("nameless");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let file = options.open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    for step in 0..8 {
        let text = format!("{round} {step}");
        file.write_all_at(text.as_bytes(), 0).unwrap();
        let mut back = vec![0; text.len()];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back, text.as_bytes());
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.set_len(text.len() as u64).unwrap();
    }
    let dir = at.join("nameless-dir");
    fs::create_dir(&dir).unwrap();
    let held = File::open(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    assert!(held.metadata().unwrap().is_dir());
}

/// A file that only ever grows.
fn appends(path: &Path, round: u64) {
    let mut options = OpenOptions::new();
    let mut file = options
        .append(true)
        .create(true)
        .read(true)
        .open(path)
        .unwrap();
    file.write_all(&round.to_le_bytes()).unwrap();
    if round.is_multiple_of(16) {
        file.sync_data().unwrap();
    }
    assert_eq!(file.metadata().unwrap().len(), 8 * (round + 1));
    if round.is_multiple_of(64) {
        let mut all = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut all).unwrap();
        let numbers = all
            .chunks(8)
            .map(|eight| u64::from_le_bytes(eight.try_into().unwrap()));
        assert!(numbers.eq(0..=round));
    }
}

/// Files of the image are changed, each in another way, and read before and after.
fn copies_up(at: &Path, round: u64) {
    let number = usize::try_from(round).unwrap();
    if number >= server::MANY {
        return thread::sleep(Duration::from_millis(50));
    }
    let path = at.join(format!("many/{number}"));
    let before = File::open(&path).unwrap();
    let ino = before.metadata().unwrap().ino();
    let text = number.to_string();
    match number % 4 {
        0 => {
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(b" more").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text + " more");
        }
        1 => {
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        2 => {
            let other = at.join(format!("many/{number}.new"));
            fs::rename(&path, &other).unwrap();
            assert_eq!(fs::read_to_string(&other).unwrap(), text);
            fs::rename(&other, &path).unwrap();
        }
        _ => {
            fs::remove_file(&path).unwrap();
            let mut back = String::new();
            (&before).read_to_string(&mut back).unwrap();
            assert_eq!(back, text);
            assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
            return;
        }
    }
    assert_eq!(fs::metadata(&path).unwrap().ino(), ino);
}

/// The image's large file has its bytes.
fn reads(at: &Path) {
    assert!(fs::read(at.join("image/large")).unwrap() == server::large());
}

/// A directory is listed while names in it come and go; those that stay are listed once.
fn lists(dir: &Path, round: u64) {
    if round == 0 {
        fs::create_dir(dir).unwrap();
        for number in 0..200 {
            fs::write(dir.join(format!("stays-{number}")), "").unwrap();
        }
    }
    let mut seen = BTreeSet::new();
    for (number, entry) in fs::read_dir(dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if number.is_multiple_of(40) {
            let passing = dir.join(format!("passes-{round}-{number}"));
            fs::write(&passing, "").unwrap();
            fs::remove_file(&passing).unwrap();
        }
        if name.starts_with("stays") {
            assert!(seen.insert(name.clone()), "{name} is listed twice");
        }
    }
    assert_eq!(seen.len(), 200);
}

/// Attributes come and go, one at a time.
fn xattrs(path: &Path, round: u64) {
    if round == 0 {
        fs::write(path, "").unwrap();
    }
    let name = "user.mark";
    rustix::fs::setxattr(path, name, b"1", XattrFlags::CREATE).unwrap();
    let again = rustix::fs::setxattr(path, name, b"2", XattrFlags::CREATE);
    assert_eq!(again, Err(rustix::io::Errno::EXIST));
    rustix::fs::removexattr(path, name).unwrap();
    let again = rustix::fs::removexattr(path, name);
    assert_eq!(again, Err(rustix::io::Errno::NODATA));
}
