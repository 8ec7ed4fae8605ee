//! Archives that lead out, that can be read in two ways, or that have no end.

use anyhow::{Result, ensure};
use lamina_fusefs::blob::Digest;
use serde_json::json;

use super::super::alone;
use super::layers::{Entry, Tar, bomb, gzip, gzip_of, windowed, with_toc};
use super::opt;
use super::scene::Scene;

/// Extraction through `..`, absolute names and links: CVE-2021-32760 (chmod through a hard link to a
/// symlink), CVE-2025-47290 (a symlink put in the way), CVE-2026-33056 (tar-rs: a directory's mode
/// given to what a symlink leads to).
#[test]
fn no_name_and_no_link_of_a_layer_leads_out_of_it() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let canary = scene.canary();
    let up = format!("opt/../../../../../../../../../..{canary}");
    scene.expect_refused(
        &[opt(|tar| tar.file(&format!("{up}/new"), b"in"))],
        "a path with ..",
    )?;
    scene.expect_refused(
        &[opt(|tar| tar.link("opt/l", &format!("{up}/file")))],
        "a path with ..",
    )?;
    scene.expect_refused(
        &[opt(|tar| tar.link("opt/l", &format!("{canary}/file")))],
        "not in the layer",
    )?;
    // An absolute name is one in the layer.
    let file = format!("{canary}/file");
    let image = scene.expect_served(&[opt(|tar| tar.dir("tmp/").file(&file, b"inside"))])?;
    let seen = scene.run(&image, &format!("cat {file}"))?;
    ensure!(seen == "inside", "{seen:?}");

    // A symlink to the host's tree, and a file through it: in one layer, and over two.
    let out = |other: &str| opt(|tar| tar.symlink("opt/out", &canary).file(other, b""));
    scene.expect_refused(
        &[opt(|tar| {
            tar.symlink("opt/out", &canary).file("opt/out/file", b"in")
        })],
        "an entry in what is no directory",
    )?;
    scene.expect_refused(
        &[out("opt/1"), opt(|tar| tar.file("opt/out/file", b"in"))],
        "no entry for it",
    )?;
    let through = opt(|tar| tar.dir("opt/out/").file("opt/out/file", b"in"));
    let image = scene.expect_served(&[out("opt/2"), through])?;
    let seen = scene.run(&image, "cat /opt/out/file; stat -c ' %F' /opt/out")?;
    ensure!(seen == "in directory\n", "{seen:?}");

    // Modes through symlinks: of a directory, of a file, and of a hard link to the symlink.
    let image = scene.expect_served(&[opt(|tar| {
        tar.symlink("opt/a", &canary)
            .dir_mode("opt/a", 0o777)
            .symlink("opt/b", &file)
            .mode("opt/b", 0o777, b"in")
            .symlink("opt/c", &file)
            .add(&Entry {
                mode: 0o777,
                link: b"opt/c",
                ..Entry::of("opt/d", b'1', 0)
            })
    })])?;
    let seen = scene.run(&image, "stat -c '%a %F' /opt/a /opt/b /opt/d")?;
    ensure!(
        seen == "777 directory\n777 regular file\n777 symbolic link\n",
        "{seen:?}"
    );
    // What a container does with a symlink stays in the container.
    let image = scene.expect_served(&[out("opt/3")])?;
    let script = "cat /opt/out/file || echo none; echo in > /opt/out && echo written || echo not";
    let seen = scene.run(&image, script)?;
    ensure!(
        seen == "none\nnot\n" || seen == "none\nwritten\n",
        "{seen:?}"
    );
    // Symlinks in a circle.
    let circle = opt(|tar| tar.symlink("opt/a", "b").symlink("opt/b", "a"));
    let image = scene.expect_served(&[circle])?;
    let seen = scene.run(&image, "cat /opt/a || echo none")?;
    ensure!(seen == "none\n", "{seen:?}");
    scene.host.stop()
}

/// Two parsers that see two trees: CVE-2026-33055 (tar-rs left the size in a PAX header aside) and
/// CVE-2025-62518 (astral-tokio-tar took a file's data for the next headers).
#[test]
fn an_archive_that_two_parsers_read_differently_is_read_as_containerd_does_or_refused() -> Result<()>
{
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    // The header says no bytes, the extended one a whole archive: who believes the header finds it.
    let inner = Tar::default().file("opt/smuggled", b"in").end();
    let size = inner.len().to_string();
    let image = scene.expect_served(&[opt(|tar| {
        tar.pax(&[("size", size.as_bytes())]).add(&Entry {
            bytes: &inner,
            claims: Some(0),
            ..Entry::of("opt/archive", b'0', 0o644)
        })
    })])?;
    let seen = scene.run(&image, "ls /opt; stat -c %s /opt/archive")?;
    ensure!(seen == format!("archive\n{size}\n"), "{seen:?}");
    for (layer, why) in [
        (
            opt(|tar| {
                let tar = tar.pax(&[("size", b"0")]).pax(&[("size", b"512")]);
                tar.file("opt/f", &[0; 512])
            }),
            "two headers",
        ),
        (
            opt(|tar| tar.pax(&[("size", b"512")]).symlink("opt/l", "f")),
            "data of what is no file",
        ),
        (
            opt(|tar| tar.pax(&[("size", b"-1")]).file("opt/f", b"")),
            "no number",
        ),
        (
            opt(|tar| {
                tar.pax(&[("GNU.sparse.major", b"1")])
                    .file("opt/f", &[0; 512])
            }),
            "a sparse file",
        ),
        (
            opt(|tar| tar.pax(&[("path", b"opt/a\0b")]).file("opt/f", b"")),
            "makes no sense",
        ),
        (
            gzip_of(&[Tar::default().end(), inner.clone()].concat()),
            "bytes behind the end",
        ),
    ] {
        scene.expect_refused(&[layer], why)?;
    }
    // An entry that comes again replaces the first, as when it is unpacked.
    let image = scene.expect_served(&[opt(|tar| {
        tar.file("opt/f", b"first")
            .file("opt/f", b"last")
            .dir("opt/d")
            .file("opt/d/gone", b"")
            .file("opt/d", b"a file")
    })])?;
    let seen = scene.run(&image, "cat /opt/f /opt/d; ls /opt")?;
    ensure!(seen == "lasta filed\nf\n", "{seen:?}");
    scene.host.stop()
}

/// Decompression bombs, which no snapshotter has a limit for.
#[test]
fn a_bomb_is_not_read_to_its_end() -> Result<()> {
    let _turn = alone();
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    scene.expect_refused(&[bomb(16)], "lazy.limits.ratio")?;
    let zeros = vec![0; 16 << 20];
    let layer = Tar::default().dir("opt/").file("opt/more", &zeros).zstd();
    scene.expect_refused(&[layer], "lazy.limits.ratio")?;
    let behind = [Tar::default().dir("opt/").end(), zeros].concat();
    scene.expect_refused(&[gzip_of(&behind)], "lazy.limits.ratio")?;
    let small = Tar::default().dir("opt/").end();
    scene.expect_refused(&[windowed(&small, 28)], "lazy.limits.zstd_window_log")?;
    // A header alone may say so.
    let huge = Tar::default().dir("opt/").add(&Entry {
        claims: Some(0o77_777_777_777),
        ..Entry::of("opt/huge", b'0', 0o644)
    });
    scene.expect_refused(&[huge.gzip()], "ends in")?;
    // Of a chunk that holds more than it says, no more is unpacked than that.
    let mut blob = gzip(b"");
    let start = blob.len();
    blob.extend(gzip(&[&b"right"[..], &vec![b'.'; 16 << 20]].concat()));
    let digest = Digest::of(b"right").to_string();
    let toc = json!({"version": 1, "entries": [
        {"type": "dir", "name": "opt/", "mode": 0o755},
        {"type": "reg", "name": "opt/f", "size": 5, "offset": start, "digest": digest,
            "chunkDigest": digest},
    ]});
    let layer = with_toc(blob, Vec::new(), toc.to_string().as_bytes(), None);
    let image = scene.expect_served(&[layer])?;
    ensure!(scene.run(&image, "cat /opt/f")? == "right");
    scene.host.stop()
}
