//! The configuration file: read, and then looked at closely.
#![no_main]

use std::path::Path;

use lamina_snapshotter::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let path = Path::new("config.toml");
    match Config::parse(text, path) {
        Ok(config) => {
            let _ = config.validate(path);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
