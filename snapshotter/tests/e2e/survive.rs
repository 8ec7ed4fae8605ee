//! The daemon may die; the containers never notice.
//!
//! Containers run a load that knows what each of its calls has to answer (`examples/load`) while
//! the daemon is killed, its holder is killed, both are, or the daemon is replaced by another
//! build. `LAMINA_KILLS` says how often (0: the load alone), `LAMINA_SEED` repeats a run as far as
//! chance lets it, `LAMINA_CROWD` is the number of containers that measure pauses, and
//! `LAMINA_DEBIAN` names an archive of a Debian root with applications, which then run too
//! (`scripts/survive-campaign` makes one). `LAMINA_OLD_BIN` is the other build. `LAMINA_KEEP` is a
//! directory for the daemon's log and for what the containers have written, if one fails.
//!
//! With `SNAPSHOTTER=overlayfs` containerd is killed instead, and nobody notices: a failure there
//! is one of the load itself.

mod applications;
mod leaks;
mod moments;
mod pauses;
mod program;
mod remote;
mod scene;

use std::env;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::alone;
use super::harness::{Snapshotter, binary, holdings, signal, wait_for};
use moments::{Moments, number};
use pauses::Pauses;
use rustix::io::Errno;
use rustix::process::Signal;
use scene::{Scene, report};

/// How long anything may take that the daemon does by itself.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take to replace a holder: it rests longer and longer if they are short-lived.
const HOLDER_LIMIT: Duration = Duration::from_mins(1);
/// So often at most, therefore.
const HOLDERS: u64 = 10;
/// What has no connection (deleted files) is handed over after the rest.
const HANDED_OVER: Duration = Duration::from_millis(500);
/// How often a container of a lazy image is replaced by a new one: after so many kills.
const FRESH: u64 = 10;
/// All containers are replaced by new ones after so many: there is no end of files that are copied
/// up for the first time, and what is left behind shows early.
const ROUND: u64 = 100;

#[test]
fn no_container_notices_that_the_daemon_was_killed() -> Result<()> {
    killed_under_load("", number("LAMINA_KILLS")?.unwrap_or(12))
}

#[test]
fn nor_does_one_whose_data_all_go_through_the_daemon() -> Result<()> {
    killed_under_load(
        "passthrough = false\n",
        number("LAMINA_KILLS")?.unwrap_or(6),
    )
}

fn killed_under_load(config: &str, kills: u64) -> Result<()> {
    let _turn = alone();
    let mut moments = Moments::new()?;
    let mut pauses = Pauses::default();
    let mut scene = Scene::start(config, moments.seed)?;
    let mut done = 0;
    loop {
        scene.start_load().with_context(|| scene.told())?;
        if kills == 0 {
            moments::rest_without_kills()?;
        }
        let end = kills.min(done + ROUND);
        while done < end {
            let killed = kill_once(&mut scene, &mut moments, end - done);
            let before = done;
            done += killed.with_context(|| moments.told(before))?;
            if done < end && before / FRESH != done / FRESH {
                scene.renew_remote().with_context(|| moments.told(done))?;
            }
        }
        scene.end_load().with_context(|| moments.told(done))?;
        report(&format!("{done} kills, seed {}", moments.seed));
        scene.tell()?;
        pauses.add(scene.outside(), &moments.take())?;
        if done >= kills {
            break;
        }
        scene.is_clean().with_context(|| moments.told(done))?;
    }
    pauses.tell();
    scene.end().with_context(|| moments.told(done))
}

/// One death of a daemon, or several (at most so many) before one answers again.
fn kill_once(scene: &mut Scene, moments: &mut Moments, most: u64) -> Result<u64> {
    moments.rest();
    let mut kill = moments::kill(scene)?;
    while kill.times < most && moments.again() {
        moments.kill_while_it_starts(scene, &mut kill)?;
    }
    scene.wait_ready()?;
    moments.remember(kill);
    scene.look()?;
    Ok(kill.times)
}

#[test]
fn a_killed_holder_is_replaced_by_another_that_holds_everything() -> Result<()> {
    if Snapshotter::chosen()? != Snapshotter::Lamina {
        return Ok(());
    }
    let _turn = alone();
    let mut moments = Moments::new()?;
    let mut scene = Scene::start("", moments.seed)?;
    scene.expect("lamina_snapshotter::hold::client: the holder ");
    scene.start_load().with_context(|| scene.told())?;
    for round in 0..number("LAMINA_KILLS")?.map_or(3, |kills| kills.div_ceil(4).min(HOLDERS)) {
        moments.rest();
        let old = scene.holder().context("the daemon has no holder")?;
        let had = holdings(old);
        signal(old, Signal::KILL);
        // Whoever kills the daemon before that loses the mounts: see the test of both.
        wait_for("another holder has everything", HOLDER_LIMIT, || {
            let new = scene.holder().filter(|new| *new != old);
            new.is_some_and(|new| holdings(new) == had)
        })?;
        thread::sleep(HANDED_OVER);
        moments.rest();
        scene.look().with_context(|| moments.told(round))?;
        // The new one has everything: a new daemon goes on with what it gets from there.
        let kill = moments::kill(&mut scene)?;
        scene.wait_ready().with_context(|| moments.told(round))?;
        moments.remember(kill);
        scene.look().with_context(|| moments.told(round))?;
    }
    scene.end_load().with_context(|| moments.told(0))?;
    tell(&scene, &mut moments)?;
    scene.end()
}

#[test]
fn after_the_death_of_both_everything_synced_is_there() -> Result<()> {
    if Snapshotter::chosen()? != Snapshotter::Lamina {
        return Ok(());
    }
    let _turn = alone();
    let mut moments = Moments::new()?;
    let mut scene = Scene::start("", moments.seed)?;
    for round in 0..2 {
        scene.start_durable()?;
        moments.rest();
        scene.kill_both()?;
        let told = scene.wait_failed(LIMIT)?;
        // A call that was under way, or a later one.
        let is_abandoned = [Errno::CONNABORTED, Errno::NOTCONN]
            .iter()
            .any(|errno| told.contains(&format!("os error {}", errno.raw_os_error())));
        ensure!(is_abandoned, "round {round}: {told}");
        scene.begin(&binary()?)?;
        scene.wait_ready()?;
        scene.check_durable().with_context(|| moments.told(round))?;
    }
    scene.end()
}

#[test]
fn no_container_notices_an_upgrade_and_a_downgrade() -> Result<()> {
    let _turn = alone();
    let mut moments = Moments::new()?;
    let mut scene = Scene::start("", moments.seed)?;
    scene.start_load().with_context(|| scene.told())?;
    let new = binary()?;
    let old = env::var_os("LAMINA_OLD_BIN").map_or_else(|| new.clone(), PathBuf::from);
    for round in 0..number("LAMINA_KILLS")?.map_or(4, |kills| kills.div_ceil(4)) {
        moments.rest();
        let binary = if round % 2 == 0 { &old } else { &new };
        let stop = moments::replace(&mut scene, binary)?;
        scene.wait_ready().with_context(|| moments.told(round))?;
        moments.remember(stop);
        scene.look().with_context(|| moments.told(round))?;
    }
    if Snapshotter::chosen()? == Snapshotter::Lamina {
        is_refused(&mut scene)?;
    }
    scene.end_load().with_context(|| moments.told(0))?;
    tell(&scene, &mut moments)?;
    scene.end()
}

/// A daemon that is too old for what was left does not start, and loses nothing.
fn is_refused(scene: &mut Scene) -> Result<()> {
    scene.kill();
    scene.shift_record_versions(1)?;
    scene.begin(&binary()?)?;
    let refused = scene.wait_ready().err().context("it takes them over")?;
    let told = format!("{refused:#}");
    ensure!(told.contains("was served by a newer Lamina"), "{told}");
    scene.shift_record_versions(-1)?;
    scene.begin(&binary()?)?;
    scene.wait_ready()?;
    scene.look()
}

/// What the containers have done and measured.
fn tell(scene: &Scene, moments: &mut Moments) -> Result<()> {
    scene.tell()?;
    let mut pauses = Pauses::default();
    pauses.add(scene.outside(), &moments.take())?;
    pauses.tell();
    Ok(())
}
