//! A name in the index of hard links.
#![no_main]

use lamina_fusefs::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::index_name(bytes));
