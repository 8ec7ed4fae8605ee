//! The end of a blob, or the position of its table of contents.
#![no_main]

use lamina_fusefs::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::footer(bytes));
