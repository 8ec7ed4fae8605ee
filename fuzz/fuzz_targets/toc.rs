//! A table of contents of a blob.
#![no_main]

use lamina_fusefs::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::toc(bytes));
