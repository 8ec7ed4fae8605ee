//! Images that are pulled and not unpacked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;
use lamina_fusefs::blob::Digest;
use lamina_proto::tonic::Code;

use super::super::harness::{Api, Fault, Packing, Proxy, Registry, run};
use super::super::model::Layer;

/// A registry with an image of each of two sorts.
pub(crate) struct Registries {
    _registry: Registry,
    /// Before what is read whole when it is pulled, and needs no registry from then on.
    proxy: Proxy,
    pub(crate) images: Vec<LazyImage>,
}

pub(crate) struct LazyImage {
    /// Its name.
    reference: String,
    /// The lowest first.
    pub(crate) layers: Vec<LazyLayer>,
}

pub(crate) struct LazyLayer {
    digest: String,
    pub(crate) chain_id: String,
    /// What a container of it sees.
    pub(crate) merged: Arc<Layer>,
}

impl Registries {
    pub(crate) fn start(dir: &Path) -> Result<Registries> {
        let registry = Registry::start(dir)?;
        let proxy = Proxy::start(registry.port())?;
        let mut images = Vec::new();
        for packing in [Packing::ZstdChunked, Packing::Gzip] {
            let trees = Trees::make(&dir.join(packing.name()))?;
            let name = registry.push(&[trees.base.clone(), trees.top.clone()], packing)?;
            let address = match packing {
                Packing::Gzip => proxy.address(),
                _ => registry.address(),
            };
            let (repository, tag) = name.split_once(':').context("no tag")?;
            let manifest = registry.read(repository, &format!("manifests/{tag}"))?;
            let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            let config = text(&manifest["config"]["digest"]).context("no configuration")?;
            let config = registry.read(repository, &format!("blobs/{config}"))?;
            let mut chain_id = String::new();
            let mut layers = Vec::new();
            for (number, tree) in [&trees.base, &trees.merged].into_iter().enumerate() {
                let diff_id = text(&config["rootfs"]["diff_ids"][number]).context("no diff ID")?;
                chain_id = match number {
                    0 => diff_id,
                    _ => Digest::of(format!("{chain_id} {diff_id}").as_bytes()).to_string(),
                };
                let digest = &manifest["layers"][number]["digest"];
                layers.push(LazyLayer {
                    digest: text(digest).context("no layer")?,
                    chain_id: chain_id.clone(),
                    merged: Arc::new(Layer::read(tree)?),
                });
            }
            images.push(LazyImage {
                reference: format!("{address}/{name}"),
                layers,
            });
        }
        Ok(Registries {
            _registry: registry,
            proxy,
            images,
        })
    }

    /// Whether the layers that are on the host can be had from the registry, too.
    pub(crate) fn offer_whole_layers(&self, offered: bool) {
        self.proxy
            .set(if offered { Fault::None } else { Fault::Refuse });
    }
}

impl LazyImage {
    /// Pulls a layer as containerd does: it asks for a place to unpack it into, and hears that it is there.
    pub(crate) fn pull(
        &self,
        layer: &LazyLayer,
        key: &str,
        parent: &str,
        api: &mut Api,
    ) -> Result<()> {
        let labels = [
            ("containerd.io/snapshot.ref", layer.chain_id.as_str()),
            ("containerd.io/snapshot/cri.image-ref", &self.reference),
            ("containerd.io/snapshot/cri.layer-digest", &layer.digest),
        ];
        match api.prepare_labelled(key, parent, &labels) {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(status.into()),
            Ok(()) => bail!("{} is to be unpacked", self.reference),
        }
    }
}

/// Two layers, and what they make.
struct Trees {
    base: PathBuf,
    top: PathBuf,
    merged: PathBuf,
}

impl Trees {
    fn make(dir: &Path) -> Result<Trees> {
        let trees = Trees {
            base: dir.join("base"),
            top: dir.join("top"),
            merged: dir.join("merged"),
        };
        let mut chance = Rng::with_seed(dir.as_os_str().len() as u64);
        for name in ["etc", "opt/data", "usr/bin"] {
            fs::create_dir_all(trees.base.join(name))?;
            for file in 0..8 {
                let path = trees.base.join(name).join(format!("base{file}"));
                write(&path, chance.usize(1..40_000), &mut chance)?;
            }
        }
        write(&trees.base.join("opt/large"), 600_000, &mut chance)?;
        symlink("base0", trees.base.join("etc/link"))?;
        fs::hard_link(
            trees.base.join("etc/base1"),
            trees.base.join("usr/bin/linked"),
        )?;
        fs::create_dir_all(trees.top.join("etc"))?;
        for file in 0..8 {
            let path = trees.top.join(format!("etc/top{file}"));
            write(&path, chance.usize(1..40_000), &mut chance)?;
        }
        write(&trees.top.join("etc/base2"), 12_345, &mut chance)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        fs::create_dir_all(&trees.merged)?;
        for layer in [&trees.base, &trees.top] {
            let all = format!("{}/.", text(layer));
            run("cp", &["-a", &all, &text(&trees.merged)])?;
        }
        fs::remove_file(trees.merged.join("etc/base3"))?;
        fs::write(trees.top.join("etc/.wh.base3"), "")?;
        Ok(trees)
    }
}

/// Half of it compresses.
fn write(path: &Path, count: usize, chance: &mut Rng) -> Result<()> {
    let bytes = (0..count).map(|at| if at % 2 == 0 { b'x' } else { chance.u8(..) });
    Ok(fs::write(path, bytes.collect::<Vec<u8>>())?)
}
