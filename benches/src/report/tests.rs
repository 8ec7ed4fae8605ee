use super::*;
use crate::host::Host;
use crate::stats::{Samples, Unit};
use crate::works::Target;

fn samples(seconds: &[f64]) -> Samples {
    let mut samples = Samples::default();
    for second in seconds {
        samples.add(*second);
    }
    samples
}

fn row(work: &'static str, target: Target, overlayfs: &[f64], lamina: &[f64]) -> Row {
    Row {
        work,
        title: work,
        target,
        unit: Unit::Seconds,
        samples: vec![samples(overlayfs), samples(lamina)],
    }
}

fn results() -> Results {
    Results {
        host: Host {
            date: "2026-01-01 00:00 UTC".into(),
            kernel: "6.18".into(),
            cpu: "CPU".into(),
            cpus: 2,
            memory: 1024,
            filesystem: "ext4".into(),
            load: "0.1".into(),
        },
        image: "made",
        scale: 1.0,
        rounds: 3,
        systems: vec![
            ("overlayfs".into(), "Linux 6.18".into()),
            ("lamina".into(), "lamina 0.1".into()),
        ],
        rows: vec![
            row(
                "won",
                Target::Overlayfs(0.5),
                &[4.0, 2.0, 3.0],
                &[1.5, 1.0, 2.0],
            ),
            row("lost", Target::Overlayfs(1.0), &[1.0], &[1.1]),
            row("of-itself", Target::Itself("won", 1.1), &[9.0], &[1.6]),
            row("not-run", Target::None, &[], &[]),
            Row {
                unit: Unit::Kibibytes,
                ..row("memory", Target::Absolute(200.0), &[], &[201.4])
            },
        ],
        failures: Vec::new(),
        interrupted: false,
    }
}

#[test]
fn the_ratio_is_to_overlayfs_or_to_another_work() {
    let results = results();
    let ratios = results.rows.iter().map(|row| results.ratio(row, 1));
    let ratios: Vec<_> = ratios
        .map(|ratio| ratio.map(|ratio| format!("{ratio:.3}")))
        .collect();
    let expected = ["0.500", "1.100", "1.067"].map(|ratio| Some(ratio.to_owned()));
    assert_eq!(ratios[..3], expected);
    assert_eq!(ratios[3], None);
}

#[test]
fn markdown_says_what_was_met() {
    let text = markdown(&results());
    for line in [
        "| won | **1.00** 3.00 s (2.00 s … 4.00 s) | **0.50** 1.50 s (1.00 s … 2.00 s) | 0.50 | yes |",
        "| lost | **1.00** 1.00 s (1.00 s … 1.00 s) | **1.10** 1.10 s (1.10 s … 1.10 s) | 1.00 | **no** |",
        "| not-run | – | – |  |  |",
        "| memory | – | 201 KiB (201 KiB … 201 KiB) | 200 KiB | **no** |",
        "- lamina: lamina 0.1",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}

#[test]
fn json_has_the_rounds_and_what_they_say() {
    let text = json(&results()).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        value["rows"][0]["samples"][1],
        serde_json::json!([1.5, 1.0, 2.0])
    );
    assert_eq!(value["rows"][0]["summary"][1]["met"], true);
    assert_eq!(value["rows"][1]["summary"][1]["met"], false);
    assert_eq!(
        value["rows"][0]["summary"][0]["met"],
        serde_json::Value::Null
    );
    assert_eq!(value["rows"][3]["summary"][0], serde_json::Value::Null);
}

#[test]
fn the_plot_names_every_row_with_a_ratio_and_every_system() {
    let text = svg(&results()).unwrap();
    assert!(text.starts_with("<svg"), "{text}");
    for name in ["won", "lost", "of-itself", "not-run", "lamina: lamina 0.1"] {
        assert!(text.contains(name), "no {name}");
    }
    assert!(!text.contains("memory"), "memory has no ratio");
}
