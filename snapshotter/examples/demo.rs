//! Containers whose root file system is Lamina's, step by step. `scripts/demo` runs this.

#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

use anyhow::{Context as _, Result, ensure};
use harness::{Host, IMAGE, Snapshotter};

const CONTAINERS: [&str; 3] = ["red", "green", "blue"];

fn main() -> Result<()> {
    let site = format!("{IMAGE}:site");
    let name = Snapshotter::chosen()?.name();

    say("Making an image of three layers from busybox, and starting a private containerd");
    say(&format!(
        "  with the snapshotter {name}. Nothing of this touches the host's containerd."
    ));
    let mut host = Host::start()?;

    say(&format!(
        "Importing it: ctr images import --snapshotter {name}"
    ));
    host.import()?;
    for row in host.ctr.snapshots()? {
        say(&format!(
            "  {} layer {}",
            row.kind.to_lowercase(),
            short(&row.key)
        ));
    }
    let before = host.image_digest(&site)?;

    say("Running three containers of this image at once; each writes its own name.");
    for id in CONTAINERS {
        host.ctr.start(id, &site, "")?;
        host.ctr
            .exec(id, &format!("echo {id} > /etc/motd; echo {id} > /srv/{id}"))?;
    }
    show_each(&host)?;

    say("The image is what it was, byte for byte:");
    ensure!(
        host.image_digest(&site)? == before,
        "a container changed the image"
    );
    say(&format!("  sha256 {}", short(&before)));

    say("Removing a layer that the containers stand on is refused:");
    let parent = host
        .ctr
        .snapshots()?
        .into_iter()
        .find(|row| row.key == "red");
    let parent = parent.context("container red has no snapshot")?.parent;
    let refusal = host
        .ctr
        .remove_snapshot(&parent)
        .err()
        .context("the layer was removed")?;
    let refusal = refusal.to_string();
    ensure!(
        refusal.contains("failed precondition"),
        "the wrong refusal: {refusal}"
    );
    say(&format!(
        "  {}",
        refusal.rsplit("\": ").next().unwrap_or(&refusal)
    ));

    say("Making a new image of what container green wrote, and running that:");
    host.commit("green", "site", "greener")?;
    host.ctr.start("child", &format!("{IMAGE}:greener"), "")?;
    show(&host, "child", "green\n/srv/green\n")?;

    say("Stopping all containers, restarting the snapshotter, and starting them again:");
    host.restart_snapshotter()?;
    show_each(&host)?;
    show(&host, "child", "green\n/srv/green\n")?;

    say("Cleaning up: containers, images, daemons.");
    for id in host.ctr.tasks()? {
        host.ctr.stop_task(&id)?;
        host.ctr.delete(&id)?;
    }
    for image in host.ctr.images()? {
        host.ctr.run(&["images", "remove", "--sync", &image])?;
    }
    let left = host.ctr.snapshots()?;
    ensure!(left.is_empty(), "snapshots are left: {left:?}");
    host.stop()?;
    say("");
    say(&format!(
        "It works: containerd ran four containers on {name}, each on a writable file system of \
         its own over one shared image, and what they wrote outlived a restart."
    ));
    Ok(())
}

fn show_each(host: &Host) -> Result<()> {
    CONTAINERS
        .iter()
        .try_for_each(|id| show(host, id, &format!("{id}\n/srv/{id}\n")))
}

/// Shows what container `id` sees of what the containers wrote; anything else is an error.
fn show(host: &Host, id: &str, expected: &str) -> Result<()> {
    let seen = host.ctr.exec(id, "cat /etc/motd; ls -d /srv/*")?;
    ensure!(
        seen == expected,
        "container {id} sees {seen:?} instead of {expected:?}"
    );
    let [motd, files] = [seen.lines().next(), seen.lines().nth(1)].map(Option::unwrap_or_default);
    say(&format!(
        "  {id:5} sees /etc/motd = {motd:5}  and in /srv only {files}"
    ));
    Ok(())
}

/// The first characters of a digest.
fn short(digest: &str) -> &str {
    let digest = digest.trim_start_matches("sha256:");
    digest.get(..12).unwrap_or(digest)
}

fn say(line: &str) {
    println!("{line}");
}
