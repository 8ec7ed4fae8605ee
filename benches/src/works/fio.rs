//! Random reads and writes of 4 KiB by fio.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Cache, Input, Outcome, Place, Target, Work};
use crate::ground::Layers;
use crate::image::BIG;

/// Bytes of one read or write.
const BLOCK: u64 = 4096;

const READ_1: Work = Work {
    name: "random-read-1",
    title: "random 4 KiB reads, fio, 1 job",
    layers: Layers::Data,
    cache: Cache::Warm,
    target: Target::Overlayfs(1.1),
    prepare: |place| Ok(requests(place, BIG)),
    run: |place, input| fio(place, input, "randread", 1),
    check: None,
};

const WRITE_1: Work = Work {
    name: "random-write-1",
    title: "random 4 KiB writes, fio, 1 job",
    cache: Cache::Fresh,
    target: Target::Overlayfs(1.5),
    prepare: |place| Ok(requests(place, "data/random")),
    run: |place, input| fio(place, input, "randwrite", 1),
    check: Some(|place, input| verify(place, input, 1)),
    ..READ_1
};

/// The works of this module.
pub(super) fn works() -> Vec<Work> {
    vec![
        READ_1,
        Work {
            name: "random-read-16",
            title: "random 4 KiB reads, fio, 16 jobs",
            run: |place, input| fio(place, input, "randread", 16),
            ..READ_1
        },
        WRITE_1,
        Work {
            name: "random-write-16",
            title: "random 4 KiB writes, fio, 16 jobs",
            run: |place, input| fio(place, input, "randwrite", 16),
            check: Some(|place, input| verify(place, input, 16)),
            ..WRITE_1
        },
    ]
}

/// As many requests as the large file has blocks, whatever the number of jobs.
fn requests(place: &Place, file: &str) -> Input {
    let size = place.ground.scale().mebibytes(1024);
    Input {
        paths: vec![place.root.join(file)],
        expected: Outcome {
            count: size / BLOCK,
            bytes: size,
            ..Outcome::default()
        },
    }
}

/// The arguments for each run of the same requests. Each job has a part of the file for itself.
fn arguments(place: &Place, file: &Path, kind: &str, jobs: u64) -> Vec<OsString> {
    let part = place.ground.scale().mebibytes(1024) / jobs / BLOCK * BLOCK;
    let mut filename = OsString::from("--filename=");
    filename.push(file);
    let mut arguments: Vec<OsString> = [
        "--name=race".to_owned(),
        format!("--rw={kind}"),
        format!("--bs={BLOCK}"),
        format!("--numjobs={jobs}"),
        format!("--size={part}"),
        format!("--offset_increment={part}"),
    ]
    .map(OsString::from)
    .into();
    let fixed = "--ioengine=psync --thread --group_reporting --output-format=json --invalidate=0 \
                 --randrepeat=1 --random_generator=lfsr --fallocate=none";
    arguments.extend(fixed.split(' ').map(OsString::from));
    if kind == "randwrite" {
        // Each block says where it belongs, so that a later run can verify it. How far fio came
        // is of no interest: it would write that into files of the working directory.
        let verify = "--verify=pattern --verify_pattern=%o --verify_state_save=0";
        arguments.extend(verify.split(' ').map(OsString::from));
    }
    arguments.push(filename);
    arguments
}

fn fio(place: &Place, input: &Input, kind: &str, jobs: u64) -> Result<Outcome> {
    let mut arguments = arguments(place, &input.paths[0], kind, jobs);
    arguments.push("--do_verify=0".into());
    let side = output(&arguments)?;
    Ok(Outcome {
        count: side.total_ios,
        bytes: side.io_bytes,
        digest: 0,
        took: Some(Duration::from_millis(side.runtime)),
    })
}

/// Reads all blocks again, and compares them with what was to be written.
fn verify(place: &Place, input: &Input, jobs: u64) -> Result<()> {
    let mut arguments = arguments(place, &input.paths[0], "randwrite", jobs);
    arguments.push("--verify_only".into());
    arguments.push("--verify_fatal=1".into());
    output(&arguments)?;
    Ok(())
}

/// What of fio's JSON we need.
#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i32,
    read: Side,
    write: Side,
}

#[derive(Deserialize)]
struct Side {
    io_bytes: u64,
    total_ios: u64,
    /// Milliseconds.
    runtime: u64,
}

/// Runs fio, and gives the reads or the writes, whichever there were.
fn output(arguments: &[OsString]) -> Result<Side> {
    let output = Command::new("fio")
        .args(arguments)
        .output()
        .context("cannot run fio: install the package fio")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "fio: {error}");
    // Notes may stand before the JSON.
    let text = String::from_utf8_lossy(&output.stdout);
    let start = text.find('{').context("fio wrote no JSON")?;
    let output: Output = serde_json::from_str(&text[start..]).context("fio wrote other JSON")?;
    let job = output.jobs.into_iter().next().context("fio ran no job")?;
    ensure!(job.error == 0, "fio: error {}", job.error);
    Ok(if job.read.total_ios > 0 {
        job.read
    } else {
        job.write
    })
}
