//! An image's whole life, with nothing or with a restart between any two of its steps.

use anyhow::{Result, ensure};

use super::alone;
use super::harness::{Host, IMAGE};
use lamina_snapshotter::upper_mode::UpperMode;

const CONTAINERS: [&str; 3] = ["red", "green", "blue"];

#[test]
fn a_life_without_incident() -> Result<()> {
    life(UpperMode::Union, |_| Ok(()))
}

#[test]
fn a_life_on_the_kernels_uppers() -> Result<()> {
    life(UpperMode::Kernel, |_| Ok(()))
}

#[test]
fn a_life_on_the_kernels_uppers_with_lamina_restarted_between_any_two_steps() -> Result<()> {
    life(UpperMode::Kernel, Host::restart_snapshotter)
}

#[test]
fn a_label_chooses_who_holds_the_upper() -> Result<()> {
    let _turn = alone();
    let host = Host::start()?;
    host.import()?;
    let site = format!("{IMAGE}:site");
    for (id, upper) in [("red", UpperMode::Kernel), ("green", UpperMode::Union)] {
        host.ctr.start_with(Some(upper), id, &site, "")?;
        host.ctr.exec(id, &write_as(id))?;
        ensure!(seen(&host, id)? == expected(id), "{upper}");
        // containerd's own snapshotter knows no such label.
        if host.lamina.is_some() {
            let mount = root_mount(&host, id)?;
            ensure!(is_of(upper, &mount), "{upper}: {mount}");
        }
    }
    for id in ["red", "green"] {
        host.ctr.stop_task(id)?;
        host.ctr.delete(id)?;
    }
    host.stop()
}

/// How the root of a container is mounted, in its own words.
fn root_mount(host: &Host, id: &str) -> Result<String> {
    host.ctr.exec(id, "grep ' / ' /proc/mounts")
}

fn is_of(upper: UpperMode, mount: &str) -> bool {
    match upper {
        UpperMode::Kernel => mount.starts_with("overlay / overlay "),
        UpperMode::Union => mount.starts_with("lamina / fuse.lamina "),
    }
}

#[test]
fn a_life_with_lamina_restarted_between_any_two_steps() -> Result<()> {
    life(UpperMode::Union, Host::restart_snapshotter)
}

#[test]
fn a_life_with_containerd_restarted_between_any_two_steps() -> Result<()> {
    life(UpperMode::Union, Host::restart_containerd)
}

/// Import, run, write, commit, run the commit, delete, collect; `between` happens in between. The
/// commit runs once more with the other one of union and kernel, above what this one wrote.
fn life(upper: UpperMode, between: impl Fn(&mut Host) -> Result<()>) -> Result<()> {
    let _turn = alone();
    let mut host = Host::start_with(upper)?;
    let site = format!("{IMAGE}:site");

    host.import()?;
    between(&mut host)?;
    let before = host.image_digest(&site)?;
    between(&mut host)?;

    for id in CONTAINERS {
        host.ctr.start(id, &site, "")?;
    }
    between(&mut host)?;
    for id in CONTAINERS {
        host.ctr.exec(id, &write_as(id))?;
        ensure!(host.lamina.is_none() || is_of(upper, &root_mount(&host, id)?));
    }
    between(&mut host)?;
    each_sees_its_own(&host)?;
    ensure!(
        host.image_digest(&site)? == before,
        "a container changed the image"
    );

    host.commit("green", "site", "greener")?;
    between(&mut host)?;
    let greener = format!("{IMAGE}:greener");
    host.ctr.start("child", &greener, "")?;
    between(&mut host)?;
    ensure!(
        seen(&host, "child")? == expected("green"),
        "the commit differs from its container"
    );
    let other = match upper {
        UpperMode::Kernel => UpperMode::Union,
        UpperMode::Union => UpperMode::Kernel,
    };
    host.ctr.start_with(Some(other), "other", &greener, "")?;
    between(&mut host)?;
    ensure!(
        seen(&host, "other")? == expected("green"),
        "the commit differs from its container for {other}"
    );
    host.ctr
        .exec("child", "echo child > /srv/who; mkdir /srv/only-child")?;
    between(&mut host)?;
    each_sees_its_own(&host)?;
    ensure!(host.ctr.exec("child", "cat /srv/who")? == "child\n");

    for id in CONTAINERS.into_iter().chain(["child", "other"]) {
        host.ctr.stop_task(id)?;
    }
    between(&mut host)?;
    for id in CONTAINERS.into_iter().chain(["child", "other"]) {
        host.ctr.delete(id)?;
    }
    between(&mut host)?;
    ensure!(
        host.image_digest(&site)? == before,
        "the image changed in its life"
    );
    for image in host.ctr.images()? {
        host.ctr.run(&["images", "remove", "--sync", &image])?;
    }
    between(&mut host)?;
    let left = host.ctr.snapshots()?;
    ensure!(
        left.is_empty(),
        "left after the last image was removed: {left:?}"
    );
    host.stop()
}

/// What container `id` does to its root: new file, changed file, appended file, deletions.
fn write_as(id: &str) -> String {
    format!(
        "echo {id} > /srv/who; echo {id} > /etc/motd; echo {id} >> /opt/app/data; \
         mkdir -p /srv/{id}/deep; mv /etc/passwd /srv/{id}/deep/; rm /opt/app/old-link; \
         chmod 600 /bin/busybox; chmod 755 /bin/busybox"
    )
}

/// Prints what [`write_as`] touches.
fn seen(host: &Host, id: &str) -> Result<String> {
    let script = "cat /srv/who /etc/motd; tail -c +1048577 /opt/app/data; \
                  head -c 1048576 /opt/app/data | tr -d d | wc -c; \
                  cd /; find srv etc opt | sort; stat -c %a /bin/busybox";
    host.ctr.exec(id, script)
}

fn expected(id: &str) -> String {
    format!(
        "{id}\n{id}\n{id}\n0\netc\netc/motd\nopt\nopt/app\nopt/app/data\n\
         srv\nsrv/{id}\nsrv/{id}/deep\nsrv/{id}/deep/passwd\nsrv/who\n755\n"
    )
}

fn each_sees_its_own(host: &Host) -> Result<()> {
    for id in CONTAINERS {
        let (seen, expected) = (seen(host, id)?, expected(id));
        ensure!(
            seen == expected,
            "container {id} sees\n{seen}instead of\n{expected}"
        );
    }
    Ok(())
}
