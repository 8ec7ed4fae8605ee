//! Manifests and tables of contents that lie.

use std::fs;

use anyhow::{Result, ensure};
use lamina_fusefs::blob::Digest;
use serde_json::{Value, json};

use super::super::alone;
use super::super::harness::Made;
use super::layers::{TOC_DIGEST, estargz, gzip, with_toc};
use super::opt;
use super::scene::Scene;

/// What is wrong with a table of contents.
type Lie<'l> = &'l dyn Fn(&mut Vec<Value>);

/// Two views of one layer, or one that nobody vouches for: containers/storage PR 1778, and labels by
/// which an image would turn verification off (stargz-snapshotter's `skipverify`).
#[test]
fn a_manifest_cannot_turn_verification_off_nor_name_two_tables_of_contents() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    // Each another layer, since containerd knows the others by their diff IDs.
    let honest = |name: &str| estargz(&[("opt/f", b"right"), (name, b"")], |_| ());
    let with = |layer: Made, changes: Value| {
        let mut layer = layer;
        for (name, value) in changes.as_object().into_iter().flatten() {
            layer.annotations[name] = value.clone();
        }
        layer
    };
    let other = Digest::of(b"another").to_string();
    let skip = json!({
        "containerd.io/snapshot/remote/stargz.skipverify": "true",
        "containerd.io/snapshot/remote/skipverify": "true",
    });
    let image = scene.expect_served(&[honest("opt/1")])?;
    ensure!(scene.run(&image, "cat /opt/f")? == "right");
    let two = json!({
        "io.github.containers.zstd-chunked.manifest-checksum": other,
        "io.github.containers.zstd-chunked.manifest-position": "8:100:100:1",
    });
    scene.expect_refused(&[with(honest("opt/2"), two)], "contradict each other")?;
    let half = json!({"io.github.containers.zstd-chunked.manifest-position": "8:100:100:1"});
    scene.expect_refused(&[with(honest("opt/3"), half)], "contradict each other")?;
    let wrong = with(
        with(honest("opt/4"), skip.clone()),
        json!({TOC_DIGEST: other}),
    );
    scene.expect_refused(&[wrong], "and should have")?;
    // A wrong chunk is no better for an annotation.
    let lie = estargz(&[("opt/f", b"right")], |entries| {
        let digest = Digest::of(b"wrong").to_string();
        entries[1]["digest"] = digest.clone().into();
        entries[1]["chunkDigest"] = digest.into();
    });
    let image = scene.expect_served(&[with(lie, skip.clone())])?;
    let seen = scene.run(&image, "cat /opt/f 2>&1 || true")?;
    ensure!(seen.contains("Input/output error"), "{seen:?}");
    // Without a digest the table is no table: the blob is read to its end, as any other.
    let mut bare = estargz(&[("opt/f", b"as the archive has it")], |entries| {
        entries[1]["name"] = "opt/other".into();
    });
    bare.annotations = skip;
    let image = scene.expect_served(&[bare])?;
    ensure!(scene.run(&image, "cat /opt/f")? == "as the archive has it");
    scene.host.stop()
}

/// A table of contents is right in form, and lies: refused where that can be seen, else an I/O error
/// for who opens the file, and never another file's bytes.
#[test]
fn a_table_of_contents_that_lies_gives_no_wrong_byte() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let files: &[(&str, &[u8])] = &[("opt/a", b"the bytes of a"), ("opt/b", b"the bytes of b")];
    let lying = |lie: Lie<'_>| estargz(files, lie);
    let link = |from: &str, to: &str| json!({"type": "hardlink", "name": from, "linkName": to});
    let refused: [(Lie<'_>, &str); 8] = [
        (
            &|all| all[1]["offset"] = (1u64 << 40).into(),
            "outside the data",
        ),
        (
            &|all| all[1]["offset"] = (-1).into(),
            "its table of contents",
        ),
        (&|all| all[1]["size"] = (1u64 << 62).into(), "lazy.limits."),
        (
            &|all| {
                all[1]["chunkSize"] = 10.into();
                let digest = all[1]["digest"].clone();
                all.insert(
                    2,
                    json!({"type": "chunk", "name": "opt/a", "offset": 1,
                    "chunkOffset": 5, "chunkDigest": digest}),
                );
            },
            "not next to each other",
        ),
        (
            &|all| all[1]["chunkDigest"] = "md5:0".into(),
            "without a known digest",
        ),
        (
            &|all| all.extend([link("opt/x", "opt/y"), link("opt/y", "opt/x")]),
            "not in the layer",
        ),
        (&|all| all.push(link("opt/x", "opt/x")), "not in the layer"),
        (
            &|all| all.resize(150_002, json!({"type": "dir", "name": "opt"})),
            "lazy.limits.entries",
        ),
    ];
    for (lie, why) in refused {
        scene.expect_refused(&[lying(lie)], why)?;
    }
    // Two billion entries, or at least so many bytes of them.
    for claims in [2_000_000_000, 0o77_777_777_777] {
        let layer = with_toc(gzip(b""), Vec::new(), b"{}", Some(claims));
        scene.expect_refused(&[layer], "lazy.limits.toc_mib")?;
    }
    // What only the bytes can tell: swapped files, more bytes than there are, overlapping ones.
    let swapped = |all: &mut Vec<Value>| {
        let first = all[1]["offset"].clone();
        all[1]["offset"] = all[2]["offset"].clone();
        all[2]["offset"] = first;
    };
    let larger = |all: &mut Vec<Value>| all[1]["size"] = 2000.into();
    let overlapping = |all: &mut Vec<Value>| all[1]["offset"] = all[2]["offset"].clone();
    let all: [Lie<'_>; 3] = [&swapped, &larger, &overlapping];
    for lie in all {
        let image = scene.expect_served(&[lying(lie)])?;
        let seen = scene.run(&image, "cat /opt/a 2>&1 || true")?;
        ensure!(
            seen.contains("Input/output error") && !seen.contains("the bytes"),
            "{seen:?}"
        );
    }
    scene.host.stop()
}

/// A diff ID that an image claims, to hand its layer to another image: containers/storage PR 1627.
#[test]
fn a_claimed_diff_id_reaches_no_image_of_another_namespace() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let honest = opt(|tar| tar.file("opt/f", b"right"));
    // All of an ordinary blob is read before the layer exists.
    let mut claims = opt(|tar| tar.file("opt/f", b"wrong"));
    claims.diff_id = honest.diff_id;
    let pulled = scene.expect_refused(&[claims], "and should have")?;
    ensure!(pulled.result.is_err(), "containerd believes it");
    // A table of contents is served before, and its layer has the other's name: but in the namespace
    // of who pulled it alone.
    let mut claims = estargz(&[("opt/f", b"wrong")], |_| ());
    claims.diff_id = honest.diff_id;
    let image = scene
        .registry
        .push_made("claims:t", &[scene.base.clone(), claims])?;
    let elsewhere = scene.host.ctr.in_namespace("elsewhere");
    let before = scene.lazy()?.len();
    elsewhere.rpull(&image)?;
    ensure!(scene.lazy()?.len() == before + 1, "the lie was not served");
    let image = scene
        .registry
        .push_made("honest:t", &[scene.base.clone(), honest])?;
    scene.host.ctr.rpull(&image)?;
    let seen = scene.run(&image, "cat /opt/f")?;
    ensure!(seen == "right", "{seen:?}");
    scene.host.stop()
}

/// Many layers that are each within the limits.
#[test]
fn the_layers_of_an_image_count_together() -> Result<()> {
    let _turn = alone();
    // Filled, they would be found out: the archives in them are none.
    let config = "[lazy]\nfill = false\n[lazy.limits]\nimage_gib = 1\n";
    let Some(scene) = Scene::start_configured(config)? else {
        return Ok(());
    };
    // 600 MiB, as it claims.
    let layer = |name: &str| {
        estargz(&[(name, b"bytes")], |entries| {
            let mut large = entries[1].clone();
            large["size"] = (60u64 << 20).into();
            for number in 0..10 {
                large["name"] = format!("opt/{number}").into();
                entries.push(large.clone());
            }
        })
    };
    scene.expect_served(&[layer("opt/a")])?;
    let pulled =
        scene.expect_refused(&[layer("opt/b"), layer("opt/c")], "lazy.limits.image_gib")?;
    // The first of them is served as it is, and the other above it as containerd has unpacked it.
    pulled.result?;
    let seen = scene.run(&pulled.image, "cat /opt/b /opt/c")?;
    ensure!(seen == "bytesbytes", "{seen:?}");
    scene.host.stop()
}

/// What was allowed once is not taken away from a container that has it.
#[test]
fn a_layer_stays_readable_when_the_limits_are_made_smaller() -> Result<()> {
    let _turn = alone();
    let Some(mut scene) = Scene::start()? else {
        return Ok(());
    };
    let bytes = vec![b'x'; 2 << 20];
    let image = scene.expect_served(&[estargz(&[("opt/f", &bytes)], |_| ())])?;
    let config = scene.host.scratch().join("lamina.toml");
    fs::write(
        config,
        "[lazy]\nfill = false\n[lazy.limits]\nchunk_mib = 1\n",
    )?;
    scene.host.restart_snapshotter()?;
    let other = estargz(&[("opt/g", &bytes)], |_| ());
    scene.expect_refused(&[other], "lazy.limits.chunk_mib")?;
    let seen = scene.run(&image, "cat /opt/f | sha256sum")?;
    let wanted = Digest::of(&bytes).to_hex();
    ensure!(seen.starts_with(&wanted), "{seen:?}");
    scene.host.stop()
}
