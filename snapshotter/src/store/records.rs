//! What the store remembers of one snapshot, and how it is written.
//!
//! A record is JSON: the store has some hundred small records, a person can read them with any
//! tool, and a field that a later version adds is no new format. What must not be missed by an
//! older version raises [`FORMAT`], which the store checks when it is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::upper_mode::UpperMode;

/// The version of the records and tables.
pub const FORMAT: u64 = 1;

/// The version of a store that has held a layer which was not unpacked: for a program that knows
/// nothing of such layers, they would be empty. All else is as in [`FORMAT`].
pub const FORMAT_LAZY: u64 = 2;

/// Labels of a snapshot. Sorted, so that equal labels are equal bytes.
pub type Labels = BTreeMap<String, String>;

/// What a snapshot is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only look at a committed snapshot.
    View,
    /// Writable.
    Active,
    /// Immutable, and may be a parent.
    Committed,
}

impl Kind {
    /// The word that containerd's filters use.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A point in time. containerd compares times for equality, so they keep their nanoseconds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Time {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds within that second.
    pub nanos: u32,
}

impl Time {
    /// The present. A clock set before 1970 shows 1970.
    pub fn now() -> Time {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Time {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        }
    }
}

/// RFC 3339 in UTC, with as many digits of the second as it needs at most: nine.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.secs.div_euclid(86_400), self.secs.rem_euclid(86_400));
        // Civil date of a day number: eras of 400 years that begin on the first of March, so
        // that the leap day is the last of its year.
        let day = days + 719_468;
        let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        if self.nanos > 0 {
            let digits = format!("{:09}", self.nanos);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

/// What a snapshot takes on the disk, without its parents.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Bytes, as allocated.
    pub size: u64,
    /// Inodes; hard links of one inode count once.
    pub inodes: u64,
}

/// One snapshot in the store. Its key is the key of the table.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// Its number, which alone chooses its directories. Never used twice.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Key of the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Labels; never with an empty value (containerd's store drops those).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Who holds its upper, or held it before it was committed. Decided when it was made.
    #[serde(default, skip_serializing_if = "UpperMode::is_union")]
    pub upper: UpperMode,
    /// Whether it, or a layer below it, was not unpacked ([`crate::lazy`]).
    #[serde(default, skip_serializing_if = "is_false")]
    pub lazy: bool,
    /// When it was made, or committed.
    pub created: Time,
    /// When its labels last changed.
    pub updated: Time,
    /// For a committed snapshot: what it takes. Zero for the others, which are measured.
    #[serde(default)]
    pub usage: Usage,
}

impl Record {
    /// A record without parent and labels, made now.
    pub fn unsaved(id: u64, kind: Kind) -> Record {
        let now = Time::now();
        Record {
            id,
            kind,
            parent: None,
            labels: Labels::new(),
            upper: UpperMode::default(),
            lazy: false,
            created: now,
            updated: now,
            usage: Usage::default(),
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A snapshot with its key: what `Stat` and `List` answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Info {
    /// Key or name.
    pub key: String,
    /// Everything else.
    pub record: Record,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (secs, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_795_555_555, 120_000_000, "2026-11-24T21:25:55.12Z"),
            (4_107_542_399, 1, "2100-02-28T23:59:59.000000001Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(Time { secs, nanos }.to_string(), text);
        }
    }

    #[test]
    fn a_record_is_readable_json_and_comes_back() {
        let record = Record {
            id: 7,
            kind: Kind::Committed,
            parent: Some("below".to_owned()),
            labels: Labels::from([("a".to_owned(), "b".to_owned())]),
            upper: UpperMode::Union,
            lazy: false,
            created: Time { secs: 1, nanos: 2 },
            updated: Time { secs: 3, nanos: 4 },
            usage: Usage { size: 5, inodes: 6 },
        };
        let text = serde_json::to_string(&record).expect("encode");
        assert_eq!(
            text,
            r#"{"id":7,"kind":"committed","parent":"below","labels":{"a":"b"},"created":{"secs":1,"nanos":2},"updated":{"secs":3,"nanos":4},"usage":{"size":5,"inodes":6}}"#
        );
        assert_eq!(
            serde_json::from_str::<Record>(&text).expect("decode"),
            record
        );
    }

    #[test]
    fn who_holds_the_upper_is_written_only_if_it_is_the_kernel() {
        let record = Record {
            upper: UpperMode::Kernel,
            ..Record::unsaved(7, Kind::Active)
        };
        let text = serde_json::to_string(&record).expect("encode");
        assert!(
            text.contains(r#""kind":"active","upper":"kernel","created""#),
            "{text}"
        );
        let old = text.replace(r#""upper":"kernel","#, "");
        let old: Record = serde_json::from_str(&old).expect("decode");
        assert_eq!(old.upper, UpperMode::Union);
    }
}
