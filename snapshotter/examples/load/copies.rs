//! Files of the image that are changed for the first time: each is copied up, and stays what it was
//! but for that change.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fastrand::Rng;
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::random::{bytes, hash};
use crate::stage::{IMAGE, Stage, same, same_bytes};

const FILES: usize = 1500;
/// These are longer.
const LARGE: usize = 6;

pub(crate) fn fill(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for name in (0..FILES).map(name) {
        fs::write(dir.join(&name), first(&name))?;
        fs::set_permissions(dir.join(&name), Permissions::from_mode(0o640))?;
    }
    Ok(())
}

fn name(number: usize) -> String {
    let kind = if number < LARGE { "large" } else { "small" };
    format!("{kind}-{number}")
}

fn first(name: &str) -> Vec<u8> {
    let seed = hash(name);
    let length = if name.starts_with("large") {
        4 << 20
    } else {
        (seed % 9000) as usize
    };
    bytes(seed, length)
}

/// A file as it has to be.
struct Copy {
    path: PathBuf,
    ino: u64,
    mode: u32,
    uid: u32,
    names: u64,
    xattr: Option<&'static str>,
    data: Vec<u8>,
}

pub(crate) fn run(stage: &Stage, number: u64) -> Result<u64> {
    let mut random = Rng::with_seed(stage.seed.wrapping_mul(3).wrapping_add(number));
    let dir = Path::new(IMAGE).join("copies");
    let mut order: Vec<_> = (0..FILES).collect();
    random.shuffle(&mut order);
    let mut copies: Vec<Copy> = Vec::new();
    let mut count = 0;
    for number in order {
        if stage.is_over() {
            break;
        }
        let mut copy = Copy::of_image(&dir, &name(number))?;
        let what = copy.path.display().to_string();
        copy.change(&mut random).with_context(|| what.clone())?;
        copy.look()
            .with_context(|| format!("{what} after its copy-up"))?;
        copies.push(copy);
        count += 1;
        // An old one is changed again now and then.
        let again = random.usize(..copies.len());
        copies[again]
            .look()
            .with_context(|| format!("{what}, later"))?;
        thread::sleep(Duration::from_millis(30));
    }
    while !stage.is_over() {
        thread::sleep(Duration::from_millis(100));
    }
    copies
        .iter()
        .try_for_each(|copy| copy.look().context("at the end"))?;
    Ok(count)
}

impl Copy {
    fn of_image(dir: &Path, name: &str) -> Result<Copy> {
        let path = dir.join(name);
        let stat = fs::metadata(&path).with_context(|| format!("stat {}", path.display()))?;
        let copy = Copy {
            path,
            ino: stat.ino(),
            mode: 0o640,
            uid: 0,
            names: 1,
            xattr: None,
            data: first(name),
        };
        copy.look().context("as the image has it")?;
        Ok(copy)
    }

    fn change(&mut self, random: &mut Rng) -> Result<()> {
        let path = &self.path;
        let piece = bytes(random.u64(..), random.usize(1..3000));
        match random.u32(..9) {
            0 | 1 => {
                self.mode = 0o600 | random.u32(..0o100);
                fs::set_permissions(path, Permissions::from_mode(self.mode)).context("chmod")?;
            }
            2 => {
                let mut file = OpenOptions::new().append(true).open(path).context("open")?;
                file.write_all(&piece).context("append")?;
                self.data.extend(piece);
            }
            3 | 4 => {
                let at = random.usize(..=self.data.len());
                let file = OpenOptions::new().write(true).open(path).context("open")?;
                file.write_all_at(&piece, at as u64).context("pwrite")?;
                let end = at + piece.len();
                self.data.resize(self.data.len().max(end), 0);
                self.data[at..end].copy_from_slice(&piece);
            }
            5 => {
                let length = random.usize(..=self.data.len());
                let file = OpenOptions::new().write(true).open(path).context("open")?;
                file.set_len(length as u64).context("truncate")?;
                self.data.truncate(length);
            }
            6 => {
                self.uid = random.u32(1..1000);
                lchown(path, Some(self.uid), None).context("chown")?;
            }
            7 => {
                setxattr(path, "user.load", b"value", XattrFlags::CREATE).context("setxattr")?;
                self.xattr = Some("value");
            }
            _ => {
                let (other, link) = (path.with_extension("moved"), path.with_extension("link"));
                fs::rename(path, &other).context("rename")?;
                fs::hard_link(&other, &link).context("link")?;
                self.path = other;
                self.names = 2;
            }
        }
        Ok(())
    }

    fn look(&self) -> Result<()> {
        let what = self.path.display();
        let stat = fs::metadata(&self.path).with_context(|| format!("stat {what}"))?;
        let found = (
            stat.mode() & 0o7777,
            stat.uid(),
            stat.nlink(),
            stat.ino(),
            stat.len(),
        );
        let wanted = (
            self.mode,
            self.uid,
            self.names,
            self.ino,
            self.data.len() as u64,
        );
        same(
            &format!("mode, owner, links, inode, size of {what}"),
            &found,
            &wanted,
        )?;
        let data = fs::read(&self.path).with_context(|| format!("reading {what}"))?;
        same_bytes(&what.to_string(), &data, &self.data)?;
        if let Some(value) = self.xattr {
            let mut found = [0; 16];
            let length = getxattr(&self.path, "user.load", &mut found).context("getxattr")?;
            same("xattr", &found[..length], value.as_bytes())?;
        }
        Ok(())
    }
}
