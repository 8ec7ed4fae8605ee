//! The image in each format, in a registry of its own.

use std::path::Path;

use anyhow::{Context as _, Result};
use lamina_snapshotter::upper_mode::UpperMode;

use crate::harness::{Host, Packing, Registry};
use crate::say;

/// The image of which `ctr-remote images optimize` has watched the program.
pub(crate) const OPTIMIZED: &str = "optimized";

/// The registry, and the host that has filled it.
pub(crate) struct Images {
    pub(crate) registry: Registry,
    _stage: Host,
}

impl Images {
    /// Packs the archive; `script` is what the files of [`OPTIMIZED`] are put in order for. `None`: nobody
    /// minds how many bytes come.
    pub(crate) fn pack(
        archive: &Path,
        packings: &[Packing],
        script: Option<&str>,
    ) -> Result<Images> {
        say("Packing the image in each format, into a registry of its own");
        let stage = Host::start_configured(UpperMode::Union, "")?;
        let registry = Registry::start(stage.scratch())?;
        for packing in packings {
            registry.push(&[archive.to_owned()], *packing)?;
        }
        let address = registry.address();
        let plain = format!("{address}/plain:t");
        let estargz = format!("{address}/estargz:t");
        if let Some(script) = script {
            stage.ctr.convert_to_estargz(&plain, &estargz)?;
            let optimized = format!("{address}/{OPTIMIZED}:t");
            stage.ctr.optimize_as_estargz(&plain, &optimized, script)?;
            // It lies beside the image, and changes nothing for who does not look for it.
            let gzip = format!("{address}/gzip:t");
            let lamina = stage.lamina.as_ref().context("no daemon")?;
            lamina.command(&["image"], &["index", &gzip])?;
        } else {
            stage.ctr.convert_to_estargz_quickly(&plain, &estargz)?;
        }
        Ok(Images {
            registry,
            _stage: stage,
        })
    }

    /// What the registry says at a path below `/v2/`.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>> {
        get(&self.registry, path)
    }
}

/// What a registry says at a path below `/v2/`.
pub(crate) fn get(registry: &Registry, path: &str) -> Result<Vec<u8>> {
    let url = format!("http://{}/v2/{path}", registry.address());
    let accepted = "application/vnd.oci.image.manifest.v1+json, */*";
    let mut answer = ureq::get(&url).header("Accept", accepted).call()?;
    let body = answer.body_mut().with_config().limit(8 << 30);
    body.read_to_vec().with_context(|| url)
}
