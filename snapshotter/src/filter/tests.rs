//! The cases of containerd's own filter tests that have a meaning for snapshots, and more.

use super::*;
use crate::error::Code;
use crate::store::records::{Kind, Labels, Record, Time, Usage};
use crate::upper_mode::UpperMode;

fn info(key: &str, kind: Kind, parent: Option<&str>, labels: &[(&str, &str)]) -> Info {
    let time = Time { secs: 0, nanos: 0 };
    let labels: Labels = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Info {
        key: key.to_owned(),
        record: Record {
            id: 1,
            kind,
            parent: parent.map(str::to_owned),
            labels,
            lazy: false,
            upper: UpperMode::default(),
            created: time,
            updated: time,
            usage: Usage::default(),
        },
    }
}

fn all() -> Vec<Info> {
    vec![
        info(
            "default/1/base layer",
            Kind::Committed,
            None,
            &[("a.b", "x,y"), ("foo", "true")],
        ),
        info(
            "default/2/run",
            Kind::Active,
            Some("default/1/base layer"),
            &[("foo", "omg_asdf")],
        ),
        info("look", Kind::View, Some("default/1/base layer"), &[]),
    ]
}

fn matching(filters: &[&str]) -> Vec<usize> {
    let filter = Filter::parse(filters).unwrap_or_else(|error| panic!("{filters:?}: {error}"));
    let all = all();
    (0..all.len())
        .filter(|index| filter.matches(&all[*index]))
        .collect()
}

#[test]
fn what_matches() {
    let cases: &[(&[&str], &[usize])] = &[
        (&[], &[0, 1, 2]),
        (&[""], &[0, 1, 2]),
        (&["kind==active"], &[1]),
        (&["kind==committed", "kind==view"], &[0, 2]),
        (&["kind!=view"], &[0, 1]),
        (&["name==look"], &[2]),
        (&["name==\"default/1/base layer\""], &[0]),
        (&["name~=^default/"], &[0, 1]),
        (&["name~=/base layer$/"], &[0]),
        (&["name~=|base l|"], &[0]),
        (&["parent==\"\""], &[0]),
        (&["parent"], &[0, 1, 2]),
        (&["parent~=base"], &[1, 2]),
        (&["labels.foo"], &[0, 1]),
        (&["labels.foo==true"], &[0]),
        (&["labels.foo!=true"], &[1, 2]),
        (&["labels.foo~=^omg"], &[1]),
        (&["labels.foo~=^$"], &[2]),
        (&["labels.\"a.b\"==\"x,y\""], &[0]),
        (&["labels.a.b"], &[0]),
        (&["labels.\"a\".b"], &[0]),
        (&["labels.\"\\x61.b\""], &[0]),
        (&["labels"], &[]),
        (&["unknown"], &[]),
        (&["unknown!=x"], &[0, 1, 2]),
        (&["kind==active,labels.foo"], &[1]),
        (&["kind==active,labels.foo==true"], &[]),
        (&["kind==active, labels.foo"], &[1]),
        (&["kind == active"], &[1]),
        (&["name==look", "labels.foo==true,kind==committed"], &[0, 2]),
    ];
    for (filters, expected) in cases {
        assert_eq!(matching(filters), *expected, "{filters:?}");
    }
}

#[test]
fn what_is_refused() {
    for filter in [
        ",",
        "kind==",
        "kind=",
        "kind=active",
        "kind===active",
        "==active",
        "kind==active,",
        "kind==active ,foo",
        "kind==active extra",
        "foo ",
        ".foo",
        "labels.",
        "labels..a",
        "labels.\"a",
        "labels.\"a\\q\"",
        "labels./a/",
        "name==/look/",
        "name~=/look",
        "name~=(",
        "na-me",
        "name==.x",
        "kind~active",
        "\0",
    ] {
        let error = Filter::parse(&[filter])
            .err()
            .unwrap_or_else(|| panic!("{filter:?} passed"));
        assert_eq!(error.code(), Code::InvalidArgument, "{filter:?}");
    }
}

#[test]
fn the_message_shows_the_place() {
    let error = Filter::parse(&["name==look,kind=x"]).expect_err("one equals sign");
    assert_eq!(
        error.to_string(),
        "cannot read the filter: [name==look,kind >|=|< x]: \"=\" is no operator"
    );
}
