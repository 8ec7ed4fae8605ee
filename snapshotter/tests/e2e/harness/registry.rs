//! A registry on this host, with images in every format that layers have.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use flate2::write::GzEncoder;
use lamina_fusefs::blob::Digest;
use serde_json::{Value, json};

use super::host::require_tools;
use super::process::{Process, output, run};

/// How long the registry may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Debian's `docker-registry`. Dropping it kills it.
pub struct Registry {
    _process: Process,
    dir: PathBuf,
    port: u16,
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Packing {
    Tar,
    Gzip,
    Zstd,
    /// By skopeo.
    ZstdChunked,
    /// By ctr-remote.
    Estargz,
}

impl Packing {
    pub const ALL: [Packing; 5] = [
        Packing::Tar,
        Packing::Gzip,
        Packing::Zstd,
        Packing::ZstdChunked,
        Packing::Estargz,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Packing::Tar => "tar",
            Packing::Gzip => "gzip",
            Packing::Zstd => "zstd",
            Packing::ZstdChunked => "zstd-chunked",
            Packing::Estargz => "estargz",
        }
    }
}

/// A layer as a test has made it, honest or not.
#[derive(Clone)]
pub struct Made {
    pub blob: Vec<u8>,
    pub media_type: &'static str,
    /// What the image's configuration says.
    pub diff_id: Digest,
    /// What the manifest says.
    pub annotations: Value,
}

impl Made {
    pub fn new(media_type: &'static str, blob: Vec<u8>, diff_id: Digest) -> Made {
        Made {
            blob,
            media_type,
            diff_id,
            annotations: json!({}),
        }
    }
}

/// A port that nobody has.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Registry {
    pub fn start(dir: &Path) -> Result<Registry> {
        require_tools(&["docker-registry", "skopeo", "ctr-remote"])?;
        let dir = dir.join("registry");
        fs::create_dir_all(&dir)?;
        let port = free_port()?;
        let config = json!({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": dir.join("data")}},
            "http": {"addr": format!("127.0.0.1:{port}")},
        });
        // JSON is YAML.
        fs::write(dir.join("config.yml"), config.to_string())?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.join("config.yml"));
        let mut process = Process::spawn(&mut command, &dir.join("log"))?;
        process.wait_ready(START_LIMIT, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        Ok(Registry {
            _process: process,
            dir,
            port,
        })
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Pushes an image of these layers, each a directory (with whiteouts as OCI has them) or an
    /// archive, and answers its name without the registry.
    pub fn push(&self, layers: &[PathBuf], packing: Packing) -> Result<String> {
        let name = format!("{}:t", packing.name());
        let layout = self.dir.join(format!("layout-{}", packing.name()));
        write_layout(&layout, layers, packing)?;
        match packing {
            Packing::Tar | Packing::Gzip | Packing::Zstd => self.push_layout(&layout, &name)?,
            Packing::ZstdChunked => {
                let from = format!("oci:{}:t", layout.display());
                let to = format!("docker://{}/{name}", self.address());
                let format = "--dest-compress-format=zstd:chunked";
                let tls = "--dest-tls-verify=false";
                run("skopeo", &["copy", "--quiet", tls, format, &from, &to])?;
            }
            // What ctr-remote converts is an image that its containerd has: see `Ctr::convert`.
            Packing::Estargz => self.push_layout(&layout, "plain:t")?,
        }
        Ok(name)
    }

    /// Pushes an image of layers as they were made; `name` is without the registry.
    pub fn push_made(&self, name: &str, layers: &[Made]) -> Result<String> {
        let layout = self.dir.join("layout-made");
        if layout.exists() {
            fs::remove_dir_all(&layout)?;
        }
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        let (mut parts, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in layers {
            diff_ids.push(layer.diff_id.to_string());
            parts.push(json!({
                "mediaType": layer.media_type,
                "digest": put(&layout, &layer.blob)?,
                "size": layer.blob.len(),
                "annotations": layer.annotations,
            }));
        }
        write_image(&layout, &parts, &diff_ids)?;
        self.push_layout(&layout, name)?;
        Ok(format!("{}/{name}", self.address()))
    }

    /// An image's manifest, or its configuration, as this registry has it.
    pub fn read(&self, repository: &str, path: &str) -> Result<serde_json::Value> {
        let url = format!("http://{}/v2/{repository}/{path}", self.address());
        let mut answer = ureq::get(&url).header("Accept", MANIFEST).call()?;
        Ok(serde_json::from_str(&answer.body_mut().read_to_string()?)?)
    }

    /// Pushes a manifest of layers that the repository has, with this configuration.
    pub fn forge(
        &self,
        (repository, tag): (&str, &str),
        mut manifest: serde_json::Value,
        config: &serde_json::Value,
    ) -> Result<()> {
        let config = config.to_string();
        manifest["config"]["digest"] = json!(self.put_blob(repository, config.as_bytes())?);
        manifest["config"]["size"] = json!(config.len());
        self.put_manifest(repository, tag, manifest.to_string().as_bytes())
    }

    /// Pushes the one image of a layout, as it is.
    fn push_layout(&self, layout: &Path, name: &str) -> Result<()> {
        let (repository, tag) = name.split_once(':').context("no tag")?;
        let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
        let index = fs::read(layout.join("index.json"))?;
        let index: serde_json::Value = serde_json::from_slice(&index)?;
        let digest = index["manifests"][0]["digest"]
            .as_str()
            .context("no manifest")?;
        let manifest = fs::read(blob(digest))?;
        let told: serde_json::Value = serde_json::from_slice(&manifest)?;
        let layers = told["layers"].as_array().context("no layers")?;
        for part in layers.iter().chain([&told["config"]]) {
            let digest = part["digest"].as_str().context("no digest")?;
            self.put_blob(repository, &fs::read(blob(digest))?)?;
        }
        self.put_manifest(repository, tag, &manifest)
    }

    /// Pushes a blob, and answers its digest.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> Result<String> {
        let digest = Digest::of(bytes).to_string();
        let uploads = format!("http://{}/v2/{repository}/blobs/uploads/", self.address());
        let begun = ureq::post(&uploads).send_empty()?;
        let location = begun.headers().get("location").context("no location")?;
        let location = format!("{}&digest={digest}", location.to_str()?);
        ureq::put(&location).send(bytes)?;
        Ok(digest)
    }

    /// Pushes a manifest whose blobs are there.
    pub fn put_manifest(&self, repository: &str, tag: &str, manifest: &[u8]) -> Result<()> {
        self.put_as(MANIFEST, repository, tag, manifest)
    }

    /// Pushes an index of two images, of which this one, whose blobs are there, is for this host's platform.
    /// Answers its digest.
    pub fn put_index(&self, repository: &str, tag: &str, manifest: &Value) -> Result<String> {
        let mut other = manifest.clone();
        other["annotations"] = json!({"for": "another platform"});
        let mut manifests = Vec::new();
        for (manifest, architecture) in [(&other, "s390x"), (manifest, architecture())] {
            let bytes = manifest.to_string();
            let digest = Digest::of(bytes.as_bytes()).to_string();
            self.put_manifest(repository, &digest, bytes.as_bytes())?;
            manifests.push(json!({
                "mediaType": MANIFEST, "digest": digest, "size": bytes.len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let index = index.to_string();
        self.put_as(INDEX, repository, tag, index.as_bytes())?;
        Ok(Digest::of(index.as_bytes()).to_string())
    }

    fn put_as(&self, media_type: &str, repository: &str, tag: &str, bytes: &[u8]) -> Result<()> {
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address());
        ureq::put(&url)
            .header("Content-Type", media_type)
            .send(bytes)?;
        Ok(())
    }
}

/// This host's architecture, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes an OCI layout with one image.
fn write_layout(layout: &Path, layers: &[PathBuf], packing: Packing) -> Result<()> {
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let (mut parts, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        let mut tar = layer.clone();
        if layer.is_dir() {
            tar = layout.join("layer.tar");
            // Nothing behind the end: skopeo 1.9 fails on that at times ("short write").
            let options = [
                "--sort=name",
                "--numeric-owner",
                "--blocking-factor=1",
                "-cf",
            ];
            let mut command = Command::new("tar");
            command.arg("-C").arg(layer).args(options);
            output(command.arg(&tar).arg("."))?;
        }
        let tar = fs::read(&tar)?;
        diff_ids.push(Digest::of(&tar).to_string());
        let (packed, suffix) = match packing {
            Packing::Tar | Packing::ZstdChunked => (tar, ""),
            Packing::Zstd => (zstd::encode_all(&tar[..], 3)?, "+zstd"),
            Packing::Gzip | Packing::Estargz => {
                let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
                gzip.write_all(&tar)?;
                (gzip.finish()?, "+gzip")
            }
        };
        parts.push(json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            "digest": put(layout, &packed)?,
            "size": packed.len(),
        }));
    }
    write_image(layout, &parts, &diff_ids)
}

/// Adds a blob to a layout, and answers its digest.
fn put(layout: &Path, bytes: &[u8]) -> Result<String> {
    let digest = Digest::of(bytes);
    fs::write(layout.join("blobs/sha256").join(digest.to_hex()), bytes)?;
    Ok(digest.to_string())
}

/// Writes what makes an image of the layers in a layout.
fn write_image(layout: &Path, parts: &[Value], diff_ids: &[String]) -> Result<()> {
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config = json!({
        "mediaType": CONFIG, "digest": put(layout, config.as_bytes())?, "size": config.len(),
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": parts,
    })
    .to_string();
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": MANIFEST, "digest": put(layout, manifest.as_bytes())?, "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "t"},
    }]});
    fs::write(layout.join("index.json"), index.to_string())?;
    Ok(fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?)
}
