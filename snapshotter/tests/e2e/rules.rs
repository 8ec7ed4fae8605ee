//! What containerd and people rely on beside the main road: refusals, leases, collection.

use anyhow::{Context as _, Result, ensure};

use super::alone;
use super::harness::{Host, IMAGE, Kind};

#[test]
fn a_snapshot_with_children_stays() -> Result<()> {
    let _turn = alone();
    let host = Host::start()?;
    host.import()?;
    host.ctr.start("one", &format!("{IMAGE}:site"), "")?;
    let rows = host.ctr.snapshots()?;
    let parents = rows
        .iter()
        .filter(|row| rows.iter().any(|child| child.parent == row.key));
    let parents: Vec<_> = parents.map(|row| row.key.clone()).collect();
    ensure!(
        parents.len() == 3,
        "an image of three layers has three parents: {rows:?}"
    );
    for key in parents {
        let refused = host
            .ctr
            .remove_snapshot(&key)
            .err()
            .context("a parent was removed")?;
        let refused = refused.to_string();
        ensure!(
            refused.contains("failed precondition"),
            "the wrong refusal: {refused}"
        );
    }
    ensure!(
        host.ctr.snapshots()?.len() == rows.len(),
        "a refusal removed something"
    );
    ensure!(host.ctr.exec("one", "cat /etc/motd")? == "site\n");
    host.ctr.stop_task("one")?;
    host.ctr.delete("one")?;
    host.stop()
}

#[test]
fn a_lease_keeps_what_nothing_else_keeps() -> Result<()> {
    let _turn = alone();
    let host = Host::start()?;
    host.import()?;
    host.ctr.run(&["leases", "create", "--id", "hold"])?;
    host.api(Some("hold"))?.prepare("held", "")?;
    collect(&host)?;
    let kept = host.api(None)?.list()?;
    ensure!(
        kept.get("held") == Some(&(Kind::Active, String::new())),
        "collected: {kept:?}"
    );
    host.ctr.run(&["leases", "delete", "--sync", "hold"])?;
    let kept = host.api(None)?.list()?;
    ensure!(!kept.contains_key("held"), "not collected: {kept:?}");
    ensure!(
        kept.len() == 3,
        "the layers of the image belong to nobody's lease: {kept:?}"
    );
    host.stop()
}

#[test]
fn collection_takes_what_only_a_removed_image_used() -> Result<()> {
    let _turn = alone();
    let host = Host::start()?;
    host.import()?;
    host.ctr
        .start("one", &format!("{IMAGE}:app"), "echo one > /srv-file")?;
    for tag in ["base", "app", "site"] {
        host.ctr
            .run(&["images", "remove", "--sync", &format!("{IMAGE}:{tag}")])?;
    }
    collect(&host)?;
    let rows = host.ctr.snapshots()?;
    ensure!(rows.len() == 3, "a container on two layers: {rows:?}");
    ensure!(host.ctr.exec("one", "cat /etc/motd /srv-file")? == "app\none\n");
    host.ctr.stop_task("one")?;
    host.ctr.delete("one")?;
    host.ctr.run(&["leases", "create", "--id", "nothing"])?;
    host.ctr.run(&["leases", "delete", "--sync", "nothing"])?;
    let rows = host.ctr.snapshots()?;
    ensure!(rows.is_empty(), "left without an owner: {rows:?}");
    host.stop()
}

/// Prunes the content that is only there to be unpacked, and collects before it returns.
fn collect(host: &Host) -> Result<()> {
    host.ctr.run(&["content", "prune", "references"]).map(drop)
}
