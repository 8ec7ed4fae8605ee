//! The `[lazy.limits]` table: how much a blob may ask for.

use std::ops::RangeInclusive;

use lamina_fusefs::blob::{Cap, Limits};
use serde::{Deserialize, Serialize};

use crate::registry;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The windows that zstd knows (`ZSTD_WINDOWLOG_MIN`, `ZSTD_WINDOWLOG_MAX`).
const WINDOW_LOGS: RangeInclusive<u64> = 10..=31;

/// The `[lazy.limits]` table.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// MiB of a manifest, an index or a configuration.
    pub manifest_mib: u64,
    /// MiB of a table of contents, compressed and uncompressed.
    pub toc_mib: u64,
    /// Entries of a layer.
    pub entries: u64,
    /// Chunks of all files of a layer.
    pub chunks: u64,
    /// Names in the path of an entry.
    pub depth: u64,
    /// Bytes of a name.
    pub name_bytes: u64,
    /// Bytes of a path.
    pub path_bytes: u64,
    /// Bytes of all xattrs of an entry.
    pub xattr_bytes: u64,
    /// Uncompressed MiB of a chunk.
    pub chunk_mib: u64,
    /// Uncompressed GiB of a layer.
    pub layer_gib: u64,
    /// Uncompressed GiB of all lazy layers of an image.
    pub image_gib: u64,
    /// Uncompressed bytes for each compressed one.
    pub ratio: u64,
    /// Uncompressed MiB of a layer that need no ratio.
    pub ratio_floor_mib: u64,
    /// The window of a zstd blob, as a power of two.
    pub zstd_window_log: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            manifest_mib: registry::Options::default().manifest_bytes / MIB,
            toc_mib: limits.toc_bytes / MIB,
            entries: limits.entries as u64,
            chunks: limits.chunks as u64,
            depth: limits.depth as u64,
            name_bytes: limits.name_bytes as u64,
            path_bytes: limits.path_bytes as u64,
            xattr_bytes: limits.xattr_bytes as u64,
            chunk_mib: limits.chunk_bytes / MIB,
            layer_gib: limits.layer_bytes / GIB,
            image_gib: limits.image_bytes / GIB,
            ratio: limits.ratio,
            ratio_floor_mib: limits.ratio_floor / MIB,
            zstd_window_log: limits.window_log.into(),
        }
    }
}

impl LimitsConfig {
    /// The limits that it says.
    pub fn limits(&self) -> Limits {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Limits {
            toc_bytes: self.toc_mib.saturating_mul(MIB),
            entries: count(self.entries),
            chunks: count(self.chunks),
            depth: count(self.depth),
            name_bytes: count(self.name_bytes),
            path_bytes: count(self.path_bytes),
            xattr_bytes: count(self.xattr_bytes),
            chunk_bytes: self.chunk_mib.saturating_mul(MIB),
            layer_bytes: self.layer_gib.saturating_mul(GIB),
            image_bytes: self.image_gib.saturating_mul(GIB),
            below_bytes: 0,
            ratio: self.ratio,
            ratio_floor: self.ratio_floor_mib.saturating_mul(MIB),
            window_log: u32::try_from(self.zstd_window_log).unwrap_or(u32::MAX),
        }
    }

    /// Bytes of a manifest, an index or a configuration.
    pub fn manifest_bytes(&self) -> u64 {
        self.manifest_mib.saturating_mul(MIB)
    }

    /// The first key whose value makes no sense, and what is wrong with it.
    pub(super) fn wrong(&self) -> Option<(&'static str, String)> {
        let most = Limits::CHUNK_MOST / MIB;
        // The kernel takes no longer names, paths and xattrs, and an index has 32 bits for a number.
        let all = [
            ("lazy.limits.manifest_mib", self.manifest_mib, 1..=1024),
            (key(Cap::Toc), self.toc_mib, 1..=4096),
            (key(Cap::Entries), self.entries, 1..=100_000_000),
            (key(Cap::Chunks), self.chunks, 1..=100_000_000),
            (key(Cap::Depth), self.depth, 1..=2048),
            (key(Cap::Name), self.name_bytes, 1..=255),
            (key(Cap::Path), self.path_bytes, 1..=4095),
            (key(Cap::Xattrs), self.xattr_bytes, 0..=1_048_576),
            (key(Cap::Chunk), self.chunk_mib, 1..=most),
            (key(Cap::Layer), self.layer_gib, 1..=u64::MAX / GIB),
            (key(Cap::Image), self.image_gib, 1..=u64::MAX / GIB),
            (key(Cap::Ratio), self.ratio, 1..=1_000_000),
            (
                "lazy.limits.ratio_floor_mib",
                self.ratio_floor_mib,
                0..=u64::MAX / MIB,
            ),
            (key(Cap::Window), self.zstd_window_log, WINDOW_LOGS),
        ];
        let (key, value, may) = all
            .into_iter()
            .find(|(_, value, may)| !may.contains(value))?;
        let (least, most) = may.into_inner();
        Some((
            key,
            format!("must be between {least} and {most}, not {value}"),
        ))
    }
}

/// The key that sets a limit.
pub fn key(cap: Cap) -> &'static str {
    match cap {
        Cap::Toc => "lazy.limits.toc_mib",
        Cap::Entries => "lazy.limits.entries",
        Cap::Chunks => "lazy.limits.chunks",
        Cap::Depth => "lazy.limits.depth",
        Cap::Name => "lazy.limits.name_bytes",
        Cap::Path => "lazy.limits.path_bytes",
        Cap::Xattrs => "lazy.limits.xattr_bytes",
        Cap::Chunk => "lazy.limits.chunk_mib",
        Cap::Layer => "lazy.limits.layer_gib",
        Cap::Image => "lazy.limits.image_gib",
        Cap::Ratio => "lazy.limits.ratio",
        Cap::Window => "lazy.limits.zstd_window_log",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    type Change = fn(&mut Limits);

    fn parse(line: &str) -> Result<Limits, String> {
        let text = format!("[lazy.limits]\n{line}\n");
        let config = Config::parse(&text, Path::new("c.toml"));
        let config = config.map_err(|error| error.to_string())?;
        Ok(config.lazy.limits.limits())
    }

    #[test]
    fn the_defaults_are_those_of_the_parsers() {
        assert_eq!(parse(""), Ok(Limits::default()));
    }

    #[test]
    fn each_limit_can_be_set_and_nothing_else_changes() {
        let changed = |change: Change| {
            let mut limits = Limits::default();
            change(&mut limits);
            Ok(limits)
        };
        let all: [(&str, Change); 13] = [
            ("toc_mib = 3", |limits| {
                limits.toc_bytes = 3 << 20;
            }),
            ("entries = 4", |limits| {
                limits.entries = 4;
            }),
            ("chunks = 5", |limits| {
                limits.chunks = 5;
            }),
            ("depth = 6", |limits| {
                limits.depth = 6;
            }),
            ("name_bytes = 7", |limits| {
                limits.name_bytes = 7;
            }),
            ("path_bytes = 8", |limits| {
                limits.path_bytes = 8;
            }),
            ("xattr_bytes = 0", |limits| {
                limits.xattr_bytes = 0;
            }),
            ("chunk_mib = 9", |limits| {
                limits.chunk_bytes = 9 << 20;
            }),
            ("layer_gib = 10", |limits| {
                limits.layer_bytes = 10 << 30;
            }),
            ("image_gib = 11", |limits| {
                limits.image_bytes = 11 << 30;
            }),
            ("ratio = 12", |limits| {
                limits.ratio = 12;
            }),
            ("ratio_floor_mib = 13", |limits| {
                limits.ratio_floor = 13 << 20;
            }),
            ("zstd_window_log = 14", |limits| {
                limits.window_log = 14;
            }),
        ];
        for (line, change) in all {
            assert_eq!(parse(line), changed(change), "{line}");
        }
        let config = LimitsConfig {
            manifest_mib: 2,
            ..LimitsConfig::default()
        };
        assert_eq!(config.manifest_bytes(), 2 << 20);
    }

    #[test]
    fn a_limit_that_makes_no_sense_is_refused_by_name() {
        for (line, wanted) in [
            ("manifest_mib = 0", "manifest_mib` must be between 1 and"),
            ("toc_mib = 0", "toc_mib` must be between 1 and 4096, not 0"),
            ("name_bytes = 256", "name_bytes` must be between 1 and 255"),
            ("chunk_mib = 1025", "chunk_mib` must be between 1 and 1024"),
            ("zstd_window_log = 32", "must be between 10 and 31, not 32"),
            ("ratio = 0", "ratio` must be between 1 and"),
            ("layer_gib = -1", "layer_gib = -1"),
            ("toc_mb = 1", "unknown key `lazy.limits.toc_mb`"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }
}
