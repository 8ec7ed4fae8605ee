//! The process that is killed.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use lamina_fusefs::image::{Image, LayerPlace};
use lamina_fusefs::record::Pins;
use lamina_fusefs::session::{Keeper, Kept, Session, SessionOptions};
use lamina_fusefs::types::NodeId;
use lamina_fusefs::union::Union;
use lamina_fusefs::upper::Upper;

use super::holder::{receive, send};

/// How many small files the image has in one directory.
pub(crate) const MANY: usize = 300;

/// The contents of the image's large file.
pub(crate) fn large() -> Vec<u8> {
    (0..=250_u8).cycle().take(3 << 20).collect()
}

/// Makes an image of one layer, and an empty upper.
pub(crate) fn make_layers(dir: &Path) {
    for name in ["layer/image", "layer/many", "upper", "work", "mnt"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    let layer = dir.join("layer");
    fs::write(layer.join("image/small"), "small of the image").unwrap();
    fs::write(layer.join("image/large"), large()).unwrap();
    for number in 0..MANY {
        fs::write(layer.join(format!("many/{number}")), number.to_string()).unwrap();
    }
}

struct Socket(OwnedFd);

impl Pins for Socket {
    fn pin(&self, node: NodeId, file: &Arc<OwnedFd>) {
        send(
            self.0.as_fd(),
            &format!("keep pin.{}", node.0),
            &[file.as_fd()],
        );
    }

    fn unpin(&self, node: NodeId) {
        send(self.0.as_fd(), &format!("drop pin.{}", node.0), &[]);
    }
}

impl Keeper for Socket {
    fn keep(&self, device: OwnedFd, record: OwnedFd) {
        send(
            self.0.as_fd(),
            "keep mount",
            &[device.as_fd(), record.as_fd()],
        );
    }

    fn release(&self) {
        send(self.0.as_fd(), "release", &[]);
    }
}

/// Serves a new mount, or the one that was held.
pub(crate) fn serve() {
    let dir = std::env::var_os("LAMINA_SERVER_DIR").expect("another test starts this one");
    let dir = Path::new(&dir);
    let options = std::env::var("LAMINA_SERVER_OPTIONS").unwrap();
    let options = SessionOptions {
        passthrough: options.contains("passthrough"),
        ..SessionOptions::default()
    };
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).unwrap();
    let (mut mount, mut pins) = (None, HashMap::new());
    while let Some((name, mut fds)) = receive(socket.as_fd()) {
        match name.strip_prefix("pin.") {
            Some(node) => {
                let node = NodeId(node.parse().unwrap());
                pins.insert(node, Arc::new(fds.remove(0)));
            }
            None if name == "go" => break,
            None => mount = Some(fds),
        }
    }
    let layer = LayerPlace::Dir {
        dir: dir.join("layer"),
        index: None,
    };
    let image = Image::open_indexed(&[layer], &dir.join("image.index")).unwrap();
    let upper = Upper::open(&dir.join("upper"), &dir.join("work")).unwrap();
    let union = Union::new(image, Some(upper)).unwrap();
    let union = union.partial_copy_up_from(Some(1 << 20));
    let told = socket.try_clone().unwrap();
    let keeper = Arc::new(Socket(socket));
    let at = dir.join("mnt");
    let session = match mount {
        None => {
            let session = Session::mount_kept(union, &at, &options, keeper).unwrap();
            send(told.as_fd(), "new, 0 lost", &[]);
            session
        }
        Some(mut fds) => {
            let (record, device) = (fds.remove(1), fds.remove(0));
            let kept = Kept {
                device,
                record,
                pins,
            };
            let (session, found) = Session::take_over(union, kept, &at, &options, keeper).unwrap();
            let text = format!(
                "{} nodes, {} handles, {} lost",
                found.nodes, found.handles, found.lost
            );
            send(told.as_fd(), &text, &[]);
            session
        }
    };
    session.wait().unwrap();
}
