//! containerd's filters: read, and then asked of a snapshot.
#![no_main]

use arbitrary::Arbitrary;
use lamina_snapshotter::filter::Filter;
use lamina_snapshotter::store::records::{Info, Kind, Record};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    filters: Vec<String>,
    key: String,
    parent: Option<String>,
    labels: Vec<(String, String)>,
}

fuzz_target!(|input: Input| {
    let Ok(filter) = Filter::parse(&input.filters) else {
        return;
    };
    let mut record = Record::unsaved(1, Kind::Active);
    record.parent = input.parent;
    record.labels = input.labels.into_iter().collect();
    let info = Info {
        key: input.key,
        record,
    };
    let matches = filter.matches(&info);
    // Alternatives: one that matches is enough, and none at all match everything.
    let each = input.filters.iter().map(|text| {
        let one = Filter::parse(&[text]).expect("it was read before");
        one.matches(&info)
    });
    assert_eq!(
        matches,
        input.filters.is_empty() || each.into_iter().any(|one| one)
    );
});
