//! The value of an origin: overlayfs's file handle.
#![no_main]

use lamina_fusefs::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::origin(bytes));
