//! A chunk table, with the checksum that fits.
#![no_main]

use lamina_fusefs::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::chunk_table(bytes));
