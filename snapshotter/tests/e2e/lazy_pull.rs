//! `lamina image pull`: lazy images for those who have nothing but containerd and `ctr`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lamina_snapshotter::upper_mode::UpperMode;
use rustix::process::{Pid, Signal, kill_process};

use super::alone;
use super::harness::{Fault, Host, Link, Packing, Proxy, wait_for};
use super::lazy::{LARGE, LOOK, PATIENCE, Scene, expected, wait_until_cache_is_empty};

/// The longest that may be waited for a collection.
const LIMIT: Duration = Duration::from_secs(20);
/// A link on which a layer takes some seconds.
const SLOW: Link = Link {
    round_trip: Duration::ZERO,
    rate: 200_000,
};

/// Everything that containerd has, by kind and name.
fn kept(host: &Host) -> Result<Vec<String>> {
    let ctr = &host.ctr;
    let mut kept = Vec::new();
    for (kind, args) in [
        ("image", &["images", "list", "-q"][..]),
        ("lease", &["leases", "list", "-q"]),
        ("content", &["content", "list", "-q"]),
    ] {
        let names = ctr.run(args)?;
        kept.extend(names.lines().map(|name| format!("{kind} {name}")));
    }
    let writes = ctr.run(&["content", "active"])?;
    kept.extend(writes.lines().skip(1).map(|line| format!("write {line}")));
    let snapshots = ctr.snapshots()?.into_iter();
    kept.extend(snapshots.map(|row| format!("snapshot {}", row.key)));
    Ok(kept)
}

/// After the last image was removed, nothing of it is left anywhere.
fn ensure_nothing_is_left(host: &Host) -> Result<()> {
    let kept = kept(host)?;
    ensure!(kept.is_empty(), "{kept:?}");
    let snapshots = host.snapshotter_root().join("snapshots");
    wait_for("no snapshots", LIMIT, || {
        fs::read_dir(&snapshots).map_or(0, Iterator::count) == 0
    })?;
    wait_until_cache_is_empty(host)
}

/// Runs a container of an image, and holds what it sees against what it should.
fn ensure_it_runs(host: &Host, scene: &Scene, image: &str, packing: Packing) -> Result<()> {
    host.ctr.start("box", image, "")?;
    let seen = host.ctr.exec("box", LOOK)?;
    let wanted = expected(&scene.layers, packing.name())?;
    ensure!(seen == wanted, "{packing:?}: {seen}\nand not\n{wanted}");
    host.ctr.end("box")
}

#[test]
fn an_image_of_every_format_is_pulled_lazily_runs_offline_and_leaves_nothing() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let config = format!("[lazy]\npatience_secs = {PATIENCE}\nfill = true\n");
    let mut host = Host::start_configured(UpperMode::Union, &config)?;
    for packing in Packing::ALL {
        let image = scene.push(packing)?;
        let said = host.pull(&image)?;
        ensure!(said.contains("2 layers lazy, 0 unpacked"), "{said}");
        ensure!(host.ctr.images()? == std::slice::from_ref(&image));
        let lazy = host.layers()?;
        ensure!(lazy.len() == 2, "{packing:?}: {lazy:?}");
        ensure_it_runs(&host, &scene, &image, packing)?;
        let lamina = host.lamina.as_ref().context("no daemon")?;
        wait_for("all of it is here", LIMIT, || {
            lamina.has_all_layers().unwrap_or(false)
        })?;
        // What is here needs no registry.
        scene.proxy.set(Fault::Refuse);
        host.restart_snapshotter()?;
        ensure_it_runs(&host, &scene, &image, packing)?;
        scene.proxy.set(Fault::None);
        host.ctr.remove_image(&image)?;
        ensure_nothing_is_left(&host)?;
    }
    host.stop()?;
    scene.host.stop()
}

#[test]
fn a_layer_that_cannot_be_lazy_is_unpacked_below_one_that_is() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    // The lower layer has more entries than that.
    let config = "[lazy]\nfill = false\n[lazy.limits]\nentries = 14\n";
    let host = Host::start_configured(UpperMode::Union, config)?;
    for packing in [Packing::Gzip, Packing::Estargz, Packing::Zstd] {
        let image = scene.push(packing)?;
        let said = host.pull(&image)?;
        ensure!(said.contains("1 layers lazy, 1 unpacked"), "{said}");
        ensure_it_runs(&host, &scene, &image, packing)?;
        host.ctr.remove_image(&image)?;
        ensure_nothing_is_left(&host)?;
    }
    host.stop()?;
    scene.host.stop()
}

#[test]
fn a_registry_without_range_requests_is_pulled_from_all_the_same() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    for packing in [Packing::Gzip, Packing::ZstdChunked] {
        let image = scene.push(packing)?;
        scene.proxy.set(Fault::NoRange);
        let said = scene.host.pull(&image)?;
        scene.proxy.set(Fault::None);
        ensure!(said.contains("0 layers lazy, 2 unpacked"), "{said}");
        ensure_it_runs(&scene.host, &scene, &image, packing)?;
        scene.host.ctr.remove_image(&image)?;
        ensure_nothing_is_left(&scene.host)?;
    }
    scene.host.stop()
}

#[test]
fn an_image_that_is_here_is_not_fetched_again() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    scene.host.pull(&image)?;
    let before = scene.proxy.bytes();
    // No blob is asked for, the configuration included; what the tag means now has to be.
    scene.proxy.set(Fault::Refuse);
    let said = scene.host.pull(&image)?;
    ensure!(said.contains("2 were here before"), "{said}");
    let fetched = scene.proxy.bytes() - before;
    ensure!(fetched < 4096, "{fetched} bytes");
    scene.proxy.set(Fault::None);
    ensure_it_runs(&scene.host, &scene, &image, Packing::Gzip)?;
    scene.host.ctr.remove_image(&image)?;
    ensure_nothing_is_left(&scene.host)?;
    scene.host.stop()
}

#[test]
fn a_layer_that_another_namespace_has_is_not_downloaded_again() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let host = Host::start_configured(UpperMode::Union, "[lazy]\nenabled = false\n")?;
    host.pull(&image)?;
    let before = scene.proxy.bytes();
    let lamina = host.lamina.as_ref().context("no daemon")?;
    let mut elsewhere = lamina.prepared_command(&["image"])?;
    elsewhere.args(["pull", &image, "--namespace", "lamina-other"]);
    elsewhere.arg("--address").arg(host.containerd.socket());
    let said = elsewhere.output()?;
    ensure!(said.status.success(), "{said:?}");
    let told = String::from_utf8_lossy(&said.stdout);
    ensure!(told.contains("2 unpacked"), "{told}");
    let fetched = scene.proxy.bytes() - before;
    ensure!(fetched < LARGE as u64 / 10, "{fetched} bytes");
    ensure_it_runs(&host, &scene, &image, Packing::Gzip)?;
    host.ctr.in_namespace("lamina-other").remove_image(&image)?;
    host.ctr.remove_image(&image)?;
    ensure_nothing_is_left(&host)?;
    host.stop()?;
    scene.host.stop()
}

#[test]
fn a_tag_that_means_another_image_a_moment_later_is_pulled_lazily_again() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    scene.host.pull(&image)?;
    fs::write(scene.layers[1].join("opt/later"), "later")?;
    scene.registry.push(&scene.layers, Packing::Gzip)?;
    let said = scene.host.pull(&image)?;
    ensure!(said.contains("1 layers lazy, 0 unpacked, 1 were"), "{said}");
    scene.host.ctr.start("box", &image, "")?;
    let seen = scene.host.ctr.exec("box", "cat /opt/later")?;
    ensure!(seen == "later", "{seen}");
    scene.host.ctr.end("box")?;
    scene.host.ctr.remove_image(&image)?;
    ensure_nothing_is_left(&scene.host)?;
    scene.host.stop()
}

#[test]
fn of_an_image_for_several_platforms_the_one_for_this_host_is_pulled() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let manifest = scene.registry.read("gzip", "manifests/t")?;
    let digest = scene.registry.put_index("gzip", "several", &manifest)?;
    let several = image.replace(":t", ":several");
    // By its digest too.
    let by_digest = image.replace(":t", &format!("@{digest}"));
    for name in [several, by_digest] {
        let said = scene.host.pull(&name)?;
        ensure!(said.contains("2 layers lazy"), "{said}");
        ensure_it_runs(&scene.host, &scene, &name, Packing::Gzip)?;
        scene.host.ctr.remove_image(&name)?;
        ensure_nothing_is_left(&scene.host)?;
    }
    scene.host.stop()
}

#[test]
fn a_pull_that_cannot_be_says_what_to_do() -> Result<()> {
    let _turn = alone();
    let Some(mut scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let missing = format!("{}:no-such-tag", image.trim_end_matches(":t"));
    let refused = |host: &Host, image: &str, args: &[&str], words: &str| -> Result<()> {
        let said = host.pull_command(image)?.args(args).output()?;
        let told = String::from_utf8_lossy(&said.stderr);
        ensure!(!said.status.success(), "{image} {args:?} is pulled");
        ensure!(
            told.contains(&format!("{image} was not pulled")) && told.contains(words),
            "{told}"
        );
        let kept = kept(host)?;
        ensure!(kept.is_empty(), "{kept:?}");
        Ok(())
    };
    let host = &scene.host;
    refused(host, "NO NAME", &[], "is no image reference")?;
    refused(host, &missing, &[], "check name and tag")?;
    // Neither Lamina nor containerd takes a layer for another one.
    let manifest = scene.registry.read("gzip", "manifests/t")?;
    let config = manifest["config"]["digest"].as_str().context("no digest")?;
    let mut config = scene.registry.read("gzip", &format!("blobs/{config}"))?;
    config["rootfs"]["diff_ids"][1] = config["rootfs"]["diff_ids"][0].clone();
    scene.registry.forge(("gzip", "lie"), manifest, &config)?;
    let lie = image.replace(":t", ":lie");
    refused(host, &lie, &[], "unpacks to an archive with the digest")?;
    refused(
        host,
        &image,
        &["--snapshotter", "nobody"],
        "`lamina config containerd`",
    )?;
    let lamina = scene.host.lamina.as_mut().context("no daemon")?;
    let mut elsewhere = lamina.prepared_command(&["image"])?;
    elsewhere.args(["pull", &image, "--address", "/no/such.sock"]);
    let told = String::from_utf8_lossy(&elsewhere.output()?.stderr).into_owned();
    ensure!(
        told.contains("does not answer on /no/such.sock") && told.contains("--address"),
        "{told}"
    );
    lamina.stop()?;
    let said = scene.host.pull_command(&image)?.output()?;
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(told.contains("is `lamina serve` running?"), "{told}");
    let lamina = scene.host.lamina.as_mut().context("no daemon")?;
    lamina.start_again()?;
    scene.host.stop()
}

/// Lamina's configuration, and what a pull says then: while the snapshotter reads a layer, and while one is
/// downloaded to be unpacked.
const MOMENTS: [(&str, &str); 2] = [
    ("[lazy]\nfill = false\n", "asking for it"),
    ("[lazy]\nenabled = false\n", "downloading"),
];

/// Begins a pull, and waits until it says that it is there. What it says then can be read.
fn pull_until(host: &Host, image: &str, moment: &str) -> Result<(Child, BufReader<ChildStderr>)> {
    let mut command = host.pull_command(image)?;
    let mut pull = command.stderr(Stdio::piped()).spawn()?;
    let mut told = BufReader::new(pull.stderr.take().context("no stderr")?);
    let mut line = String::new();
    while !line.contains(moment) {
        line.clear();
        ensure!(told.read_line(&mut line)? > 0, "never: {moment}");
    }
    Ok((pull, told))
}

/// After a pull that came to nothing: the image is not there, comes with the next one, and goes without a trace.
fn ensure_it_pulls_again(host: &Host, scene: &Scene, image: &str) -> Result<()> {
    ensure!(host.ctr.images()?.is_empty());
    host.pull(image)?;
    ensure_it_runs(host, scene, image, Packing::Gzip)?;
    host.ctr.remove_image(image)?;
    ensure_nothing_is_left(host)
}

#[test]
fn a_pull_that_is_broken_off_leaves_nothing() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let repository = image.split_once('/').context("no registry")?.1;
    for (config, moment) in MOMENTS {
        let host = Host::start_configured(UpperMode::Union, config)?;
        for signal in [Signal::INT, Signal::KILL] {
            let proxy = Proxy::start_behind(scene.registry.port(), Some(SLOW))?;
            let slow = format!("{}/{repository}", proxy.address());
            let (mut pull, _told) = pull_until(&host, &slow, moment)?;
            std::thread::sleep(Duration::from_millis(300));
            let pid = Pid::from_raw(pull.id().cast_signed()).context("no process")?;
            kill_process(pid, signal)?;
            let status = pull.wait()?;
            if signal == Signal::INT {
                ensure!(status.code() == Some(130), "{status}");
                let kept = kept(&host)?;
                ensure!(kept.is_empty(), "{moment}: {kept:?}");
            }
            ensure_it_pulls_again(&host, &scene, &image)
                .with_context(|| format!("{moment}, {signal:?}"))?;
        }
        host.stop()?;
    }
    scene.host.stop()
}

#[test]
fn containerd_killed_in_a_pull_leaves_nothing_and_pulls_again() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let image = scene.push(Packing::Gzip)?;
    let repository = image.split_once('/').context("no registry")?.1;
    for (config, moment) in MOMENTS {
        let mut host = Host::start_configured(UpperMode::Union, config)?;
        let proxy = Proxy::start_behind(scene.registry.port(), Some(SLOW))?;
        let slow = format!("{}/{repository}", proxy.address());
        let (mut pull, mut told) = pull_until(&host, &slow, moment)?;
        host.containerd.kill();
        let mut rest = String::new();
        told.read_to_string(&mut rest)?;
        ensure!(!pull.wait()?.success(), "{rest}");
        ensure!(rest.contains("was not pulled"), "{rest}");
        host.containerd.start_again()?;
        ensure_it_pulls_again(&host, &scene, &image).with_context(|| moment.to_owned())?;
        let lamina = host.lamina.as_mut().context("no daemon")?;
        lamina.stop()?;
        lamina.check()?;
        lamina.start_again()?;
        host.stop()?;
    }
    scene.host.stop()
}
