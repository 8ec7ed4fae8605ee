//! A record of the store: what is read comes back when it is written, and can be shown.
#![no_main]

use lamina_snapshotter::store::records::Record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(record) = serde_json::from_slice::<Record>(bytes) else {
        return;
    };
    assert!(record.created.to_string().ends_with('Z'));
    assert!(record.updated.to_string().ends_with('Z'));
    let text = serde_json::to_vec(&record).expect("a record is JSON");
    let again: Record = serde_json::from_slice(&text).expect("what was written is read");
    assert_eq!(again, record);
});
