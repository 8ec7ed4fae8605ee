//! Merging one directory: which layers it comes from, and which entries it has.
//!
//! The rules are overlayfs's (`ovl_lookup`, fs/overlayfs/namei.c): walking down the layers, the
//! first entry of a name decides; directories of one name merge until something that is no
//! directory, a whiteout or an opaque directory ends the walk; a redirect continues the walk in
//! the layers below at another path.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::lazy::{Children, Lazy, Node};
use super::{ImageId, Tree};
use crate::error::{Error, Result};
use crate::layer::{Below, EntryKind};
use crate::types::FileKind;

/// One layer's directory as a part of a merged one, or its file that has the data of one.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Index of the layer; 0 is the topmost.
    pub(super) layer: usize,
    /// The path in that layer.
    pub(super) path: PathBuf,
}

/// Where redirects were found to lead: by the topmost layer that counts and the path below it.
///
/// Each directory on the way to a redirect's target may have a redirect of its own. A stack of
/// layers could double the work with every layer, if each target were not looked for only once.
type Targets = HashMap<(usize, PathBuf), Vec<Part>>;

/// The parts of a directory, the topmost first.
pub(super) fn parts<'n>(image: &Lazy, id: ImageId, node: &'n Node) -> Result<&'n [Part]> {
    if let Some(parts) = node.parts.get() {
        return Ok(parts);
    }
    let found = if id == ImageId::ROOT {
        roots(image, 0)?
    } else {
        let parent = image.node(node.parent);
        let above = parts(image, node.parent, &parent)?;
        merged(image, above, &node.name, &mut Targets::new())?
    };
    Ok(node.parts.get_or_init(|| found))
}

/// Where the data of a regular file are: in its own layer, or below, if that has the attributes
/// alone (metacopy).
pub(super) fn data<'n>(image: &Lazy, id: ImageId, node: &'n Node) -> Result<&'n Part> {
    if node.kind != FileKind::Regular {
        return Err(Error::Invalid);
    }
    if node.parts.get().is_none() {
        let found = find_data(image, id)?;
        node.parts.get_or_init(|| vec![found]);
    }
    node.parts
        .get()
        .and_then(|parts| parts.first())
        .ok_or(Error::NotFound)
}

fn find_data(image: &Lazy, id: ImageId) -> Result<Part> {
    let node = image.node(id);
    let (layer, path) = image.source(id)?.ok_or(Error::NotFound)?;
    let top = (layer, path.clone());
    let mut at = Part { layer, path };
    let mut name = node.name.clone();
    let mut dirs = parts(image, node.parent, &image.node(node.parent))?.to_vec();
    let mut targets = Targets::new();
    // Each round goes on in a lower layer, so this ends.
    loop {
        match image.stack.layers[at.layer].data(&at.path)? {
            Below::Nothing => return Ok(at),
            Below::SamePath => {}
            Below::Sibling(other) => name = other,
            Below::Redirect(target) => {
                target.file_name().unwrap_or_default().clone_into(&mut name);
                let dir = target.parent().map(PathBuf::from).unwrap_or_default();
                dirs = at_path(image, at.layer + 1, dir, &mut targets)?;
            }
        }
        at = next_file(image, &dirs, at.layer, &name)?.ok_or_else(|| Error::BadLayer {
            layer: image.stack.layers[top.0].name().to_owned(),
            path: top.1.clone(),
            what: "its data should be in a layer below, and are not",
        })?;
    }
}

/// The regular file `name` in the topmost of the directories that know the name, below a layer.
fn next_file(image: &Lazy, dirs: &[Part], below: usize, name: &OsStr) -> Result<Option<Part>> {
    for dir in dirs.iter().filter(|dir| dir.layer > below) {
        let path = dir.path.join(name);
        match image.stack.layers[dir.layer].entry(&path)? {
            None => {}
            Some(EntryKind::File(FileKind::Regular)) => {
                let layer = dir.layer;
                return Ok(Some(Part { layer, path }));
            }
            Some(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// The merged entries of a directory. Their nodes are made here.
pub(super) fn children(image: &Lazy, id: ImageId, node: &Node) -> Result<Children> {
    if node.kind != FileKind::Directory {
        return Err(Error::NotDirectory);
    }
    // First decide, without numbers: of all layers that know a name the topmost decides.
    let mut decided = HashMap::new();
    for part in parts(image, id, node)? {
        for entry in image.stack.layers[part.layer].read_dir(&part.path)? {
            decided
                .entry(entry.name)
                .or_insert((part.layer, entry.kind, entry.ino));
        }
    }
    let mut nodes = image.nodes.write();
    let mut children = Children::new();
    for (name, (layer, kind, ino)) in decided {
        let EntryKind::File(kind) = kind else {
            continue;
        };
        let number = u32::try_from(nodes.len()).map_err(|_| Error::Invalid)?;
        nodes.push(Arc::new(Node {
            parent: id,
            name: name.clone(),
            kind,
            layer: Some(layer),
            ino: image
                .stack
                .inos
                .map(image.stack.layers[layer].device(), ino.0),
            attr: OnceLock::new(),
            parts: OnceLock::new(),
            children: OnceLock::new(),
        }));
        children.insert(name, ImageId(number));
    }
    Ok(children)
}

/// The roots of all layers from `top` down, as far as no opaque root ends them.
fn roots(image: &Lazy, top: usize) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for layer in top..image.stack.layers.len() {
        let path = PathBuf::new();
        let below = image.stack.layers[layer].below(&path)?;
        parts.push(Part { layer, path });
        if below == Below::Nothing {
            break;
        }
    }
    Ok(parts)
}

/// The parts of the directory `name` in a directory with the parts `above`.
fn merged(image: &Lazy, above: &[Part], name: &OsStr, targets: &mut Targets) -> Result<Vec<Part>> {
    let mut found = Vec::new();
    // A sibling redirect changes the name that the layers below are asked for.
    let mut name = name.to_owned();
    for part in above {
        let path = part.path.join(&name);
        match image.stack.layers[part.layer].entry(&path)? {
            None => continue,
            Some(EntryKind::File(FileKind::Directory)) => {}
            Some(_) => break,
        }
        let below = image.stack.layers[part.layer].below(&path)?;
        found.push(Part {
            layer: part.layer,
            path,
        });
        match below {
            Below::SamePath => {}
            Below::Nothing => break,
            Below::Sibling(other) => name = other,
            Below::Redirect(target) => {
                found.extend(at_path(image, part.layer + 1, target, targets)?);
                break;
            }
        }
    }
    Ok(found)
}

/// The parts of the directory at a path in the tree that the layers from `top` down make.
fn at_path(image: &Lazy, top: usize, path: PathBuf, targets: &mut Targets) -> Result<Vec<Part>> {
    let target = (top, path);
    if let Some(parts) = targets.get(&target) {
        return Ok(parts.clone());
    }
    // Each redirect leads to a lower layer, so this ends.
    let mut parts = roots(image, top)?;
    for name in &target.1 {
        parts = merged(image, &parts, name, targets)?;
    }
    targets.insert(target, parts.clone());
    Ok(parts)
}
