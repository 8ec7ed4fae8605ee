//! What many lazy images take of the daemon's memory: twenty of 1.5 GB, each in a container that runs.
//!
//! All have one large layer above a small one of their own, so that each is a chain with an index of
//! its own, and only one large layer has to be made and converted.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lamina_snapshotter::upper_mode::UpperMode;
use serde_json::Value;

use crate::harness::{Host, Packing, Registry, Rollup, run};
use crate::images::get;
use crate::{Arguments, say};

const IMAGES: usize = 20;
/// How long nothing is wanted before the last look.
const IDLE: Duration = Duration::from_secs(30);
/// The repository with all of them.
const REPOSITORY: &str = "many";
/// One file of so many is read.
const ONE_OF: usize = 200;
/// Everything is looked at, so that the kernel and the daemon know each file.
const WALK: &str = "find / -xdev > /dev/null";

/// Makes the images, runs a container of each, and prints what the daemon's memory is.
pub(crate) fn measure(asked: &Arguments) -> Result<()> {
    say("Making the images (some minutes)");
    let stage = Host::start_configured(UpperMode::Union, "")?;
    let registry = Registry::start(stage.scratch())?;
    let mut layers = small_layers(stage.scratch())?;
    layers.push(large_layer(stage.scratch(), asked)?);
    registry.push(&layers, Packing::Tar)?;
    let name = |repository: &str| format!("{}/{repository}:t", registry.address());
    let (plain, many) = (name("tar"), name(REPOSITORY));
    stage.ctr.convert_to_estargz_quickly(&plain, &many)?;
    split(&registry)?;
    let large = layers.last().context("no layers")?;
    let files = run("find", &[&text(large), "-type", "f", "-printf", "/%P\\n"])?;
    let files: Vec<&str> = files.lines().filter(|name| !name.contains('\'')).collect();
    let some: Vec<_> = files.iter().copied().step_by(ONE_OF).collect();
    let read_some = format!("cat '{}' > /dev/null", some.join("' '"));
    let size = run("du", &["-sm", &text(large)])?;
    let size = size
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    fs::remove_dir_all(large)?;

    let host = Host::start_configured(UpperMode::Union, "[lazy]\nfill = false\n")?;
    let lamina = host.lamina.as_ref().context("Lamina is not chosen")?;
    say(&format!(
        "The daemon's memory with {IMAGES} lazy images of {size} MB and {} files, in MB:",
        files.len()
    ));
    say("");
    say("| when | RSS | PSS | anonymous | of files |");
    say("| --- | ---: | ---: | ---: | ---: |");
    let show = |when: &str| -> Result<()> {
        let now = Rollup::of(lamina.pid()?)?;
        let shown = |kib: i64| format!("{:.1}", kib as f64 * 1024.0 / 1e6);
        say(&format!(
            "| {when} | {} | {} | {} | {} |",
            shown(now.resident),
            shown(now.shared_out),
            shown(now.anonymous),
            shown(now.shared_out - now.anonymous)
        ));
        Ok(())
    };
    show("nothing pulled")?;
    for number in 0..IMAGES {
        let image = format!("{}/{REPOSITORY}:i{number}", registry.address());
        host.ctr.rpull(&image)?;
        host.ctr.start(&format!("c{number}"), &image, "true")?;
        if number == 0 {
            show("one container")?;
        }
    }
    show(&format!("{IMAGES} containers"))?;
    let read = format!("each has read {} files", some.len());
    for (when, script) in [
        (read.as_str(), read_some.as_str()),
        ("each has listed all", WALK),
    ] {
        for number in 0..IMAGES {
            host.ctr.exec(&format!("c{number}"), script)?;
        }
        show(when)?;
    }
    thread::sleep(IDLE);
    show("half a minute later")
}

/// A layer for each image.
fn small_layers(dir: &Path) -> Result<Vec<PathBuf>> {
    let make = |number| {
        let layer = dir.join(format!("small-{number}"));
        fs::create_dir_all(layer.join("srv"))?;
        fs::write(layer.join("srv/number"), format!("{number}\n"))?;
        Ok(layer)
    };
    (0..IMAGES).map(make).collect()
}

/// The archive's root, and copies of its /usr in which each file is another one.
fn large_layer(dir: &Path, asked: &Arguments) -> Result<PathBuf> {
    let (layer, archive) = (dir.join("large"), text(&asked.archive));
    if asked.archive.is_dir() {
        run("cp", &["-a", &archive, &text(&layer)])?;
    } else {
        fs::create_dir(&layer)?;
        run("tar", &["-C", &text(&layer), "-xf", &archive])?;
    }
    for number in 0..asked.copies {
        let copy = layer.join(format!("copy-{number}"));
        run("cp", &["-a", &text(&layer.join("usr")), &text(&copy)])?;
        let append = format!(r#"for file; do echo {number} >> "$file"; done"#);
        let each = ["-type", "f", "-exec", "sh", "-c", &append, "sh", "{}", "+"];
        run("find", &[&[text(&copy).as_str()], &each[..]].concat())?;
    }
    Ok(layer)
}

/// Makes an image of each small layer and the large one, out of the image that has all of them.
fn split(registry: &Registry) -> Result<()> {
    let json =
        |path: String| -> Result<Value> { Ok(serde_json::from_slice(&get(registry, &path)?)?) };
    let all = json(format!("{REPOSITORY}/manifests/t"))?;
    let digest = all["config"]["digest"].as_str().context("no digest")?;
    let config = json(format!("{REPOSITORY}/blobs/{digest}"))?;
    let two = |list: &Value, number: usize| -> Result<Value> {
        let last = list.as_array().and_then(|list| list.last());
        Ok(vec![list[number].clone(), last.context("no layers")?.clone()].into())
    };
    for number in 0..IMAGES {
        let mut config = config.clone();
        config["rootfs"]["diff_ids"] = two(&config["rootfs"]["diff_ids"], number)?;
        if let Some(config) = config.as_object_mut() {
            config.remove("history");
        }
        let config = config.to_string();
        let mut manifest = all.clone();
        manifest["layers"] = two(&manifest["layers"], number)?;
        manifest["config"]["digest"] = registry.put_blob(REPOSITORY, config.as_bytes())?.into();
        manifest["config"]["size"] = config.len().into();
        registry.put_manifest(
            REPOSITORY,
            &format!("i{number}"),
            manifest.to_string().as_bytes(),
        )?;
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
