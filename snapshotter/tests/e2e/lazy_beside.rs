//! What lies beside an image in the registry: indexes of its layers, and what its containers open first.

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lamina_fusefs::blob::Digest;
use lamina_snapshotter::lazy::published::INDEX_TYPE;
use lamina_snapshotter::registry::artifact::Part;
use lamina_snapshotter::registry::{self, Registry};
use lamina_snapshotter::upper_mode::UpperMode;

use super::alone;
use super::harness::{Fault, Host, Packing};
use super::lazy::{LARGE, LOOK, PATIENCE, SEEN, Scene, expected};

/// A host that believes indexes of all repositories.
fn trusting() -> String {
    format!("[lazy]\npatience_secs = {PATIENCE}\nfill = false\nindexes = [\"*\"]\n")
}

#[test]
fn an_ordinary_image_with_an_index_starts_before_it_is_here() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let wanted = expected(&scene.layers, Packing::Gzip.name())?;
    let lamina = scene.host.lamina.as_ref().context("no daemon")?;
    let said = lamina.command(&["image"], &["index", &image])?;
    ensure!(said.contains("now has the index"), "{said}");
    // One that is told nothing downloads all of it first.
    let before = scene.proxy.bytes();
    scene.host.ctr.rpull(&image)?;
    let downloaded = scene.proxy.bytes() - before;
    ensure!(downloaded > LARGE as u64 / 2, "{downloaded} bytes");
    scene.host.ctr.remove_image(&image)?;

    let mut other = Host::start_configured(UpperMode::Union, &trusting())?;
    let before = scene.proxy.bytes();
    other.ctr.rpull(&image)?;
    other.ctr.start("box", &image, "")?;
    let fetched = scene.proxy.bytes() - before;
    ensure!(
        fetched < downloaded / 2,
        "{fetched} of {downloaded} bytes before the first output"
    );
    let seen = other.ctr.exec("box", LOOK)?;
    ensure!(seen == wanted, "{seen}\nand not\n{wanted}");
    other.ctr.end("box")?;
    // What was read is here, whoever is asked.
    scene.proxy.set(Fault::Refuse);
    other.restart_snapshotter()?;
    other.ctr.start("again", &image, "")?;
    let seen = other.ctr.exec("again", LOOK)?;
    ensure!(seen == wanted, "again: {seen}");
    scene.proxy.set(Fault::None);
    other.ctr.end("again")?;
    other.ctr.remove_image(&image)?;
    other.stop()?;
    scene.host.stop()
}

#[test]
fn an_index_is_carried_to_a_registry_in_files() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let lamina = scene.host.lamina.as_ref().context("no daemon")?;
    let dir = scene.host.scratch().join("index");
    let dir = dir.to_str().context("no text")?;
    let index = |args: &[&str]| lamina.command(&["image"], &[&["index"], args].concat());
    let said = index(&[&image, "--output", dir])?;
    ensure!(said.contains("now holds the index"), "{said}");
    let registry = Registry::new(&registry::Options::default());
    let known = registry.image(&image)?;
    let subject = Digest::parse(known.manifest.digest().as_ref()).context("no digest")?;
    let find = || registry.artifact(&known.reference, subject, INDEX_TYPE);
    ensure!(find()?.is_none(), "it was pushed");
    // Another program takes it as it is.
    let to = format!("{}/copy", scene.host.scratch().display());
    let copied = Command::new("skopeo")
        .args([
            "copy",
            "--quiet",
            &format!("oci:{dir}"),
            &format!("oci:{to}"),
        ])
        .status()?;
    ensure!(copied.success(), "skopeo fails");

    let other = scene.push(Packing::Zstd)?;
    let error = index(&[&other, "--input", dir])
        .err()
        .context("another image")?;
    ensure!(
        format!("{error:#}").contains("and the manifest of"),
        "{error:#}"
    );
    let said = index(&[&image, "--input", dir])?;
    ensure!(said.contains("now has the index"), "{said}");
    let found = find()?.context("it is not there")?;
    ensure!(said.contains(&found.digest.to_string()), "{said}");
    ensure!(found.parts.len() == known.layers.len());
    scene.host.stop()
}

#[test]
fn an_index_that_is_no_good_is_not_used() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let wanted = expected(&scene.layers, Packing::Gzip.name())?;
    let registry = Registry::new(&registry::Options::default());
    let known = registry.image(&image)?;
    let other = Host::start_configured(UpperMode::Union, &trusting())?;
    let noise: Vec<u8> = (0..10_000u32)
        .flat_map(|at| (at * at).to_le_bytes())
        .collect();
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend(&noise);
    for bytes in [noise, zstd::encode_all(&huge[..], 3)?, Vec::new()] {
        let layers = known.layers.iter();
        let parts: Vec<Part> = layers
            .map(|layer| Part {
                media_type: "application/vnd.lamina.index.layer.v1+zstd".to_owned(),
                annotations: HashMap::from([(
                    "dev.lamina.layer.digest".to_owned(),
                    layer.digest.to_string(),
                )]),
                bytes: bytes.clone(),
            })
            .collect();
        registry.push_artifact(&known.reference, &known.manifest, INDEX_TYPE, &parts)?;
        other.ctr.rpull(&image)?;
        other.ctr.start("box", &image, "")?;
        let seen = other.ctr.exec("box", LOOK)?;
        ensure!(seen == wanted, "{seen}");
        other.ctr.end("box")?;
        other.ctr.remove_image(&image)?;
    }
    other.stop()?;
    scene.host.stop()
}

#[test]
fn another_host_learns_from_the_registry_what_is_opened_first() -> Result<()> {
    let _turn = alone();
    let Some(mut scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Estargz)?;
    scene.host.ctr.rpull(&image)?;
    scene.host.ctr.start("box", &image, "")?;
    let first = scene.host.ctr.exec("box", SEEN)?;
    scene.host.ctr.end("box")?;
    scene.host.restart_snapshotter()?;
    let lamina = scene.host.lamina.as_ref().context("no daemon")?;
    let shown = lamina.command(&["image"], &["profile", "show", &image])?;
    ensure!(shown.contains("1 runs"), "{shown}");
    lamina.command(&["image"], &["profile", "push", &image])?;

    let config =
        format!("[lazy]\npatience_secs = {PATIENCE}\nfill = false\nprofiles = \"shared\"\n");
    let other = Host::start_configured(UpperMode::Union, &config)?;
    other.ctr.rpull(&image)?;
    scene.wait_until_prefetched(&other)?;
    scene.proxy.set(Fault::Refuse);
    other.ctr.start("box", &image, "")?;
    let seen = other.ctr.exec("box", SEEN)?;
    ensure!(seen == first, "{seen}");
    scene.proxy.set(Fault::None);
    let lamina = other.lamina.as_ref().context("no daemon")?;
    let pulled = lamina.command(&["image"], &["profile", "pull", &image])?;
    ensure!(pulled.contains("2 runs"), "{pulled}");
    other.ctr.end("box")?;
    other.stop()?;
    scene.host.stop()
}
