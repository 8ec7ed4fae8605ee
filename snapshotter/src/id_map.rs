//! Containers in user namespaces: the two labels by which containerd asks for a snapshot whose
//! users are shifted, and the two mount options by which it is told to shift them.
//!
//! The labels have the meaning of the capability `remap-ids` of a snapshotter (containerd 2.0).
//! As for containerd's own overlayfs, the snapshot stays as it is on the disk, and containerd
//! idmaps the bind mount that it makes of ours. All that we have to do is to allow that.

use crate::error::{Error, Result};
use crate::store::records::Labels;

const USERS: &str = "containerd.io/snapshot/uidmapping";
const GROUPS: &str = "containerd.io/snapshot/gidmapping";

/// How users and groups are shifted, each as `CONTAINER:HOST:LENGTH`, with commas between several.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdMap {
    users: String,
    groups: String,
}

impl IdMap {
    /// What labels ask for, if they do.
    pub fn of(labels: &Labels) -> Result<Option<IdMap>> {
        let (Some(users), Some(groups)) = (labels.get(USERS), labels.get(GROUPS)) else {
            return match [USERS, GROUPS].iter().find(|of| labels.contains_key(**of)) {
                None => Ok(None),
                Some(_) => Err(bad(&format!("{USERS} and {GROUPS} need each other"))),
            };
        };
        for (label, ranges) in [(USERS, users), (GROUPS, groups)] {
            if !ranges.split(',').all(is_range) {
                return Err(bad(&format!(
                    "{label} is {ranges:?}, not CONTAINER:HOST:LENGTH[,...]"
                )));
            }
        }
        Ok(Some(IdMap {
            users: users.clone(),
            groups: groups.clone(),
        }))
    }

    /// The options of a mount that has to be shifted so.
    pub(crate) fn mount_options(&self) -> [String; 2] {
        [
            format!("uidmap={}", self.users),
            format!("gidmap={}", self.groups),
        ]
    }
}

/// Whether a text is `CONTAINER:HOST:LENGTH`, three numbers of which the last is not zero.
fn is_range(text: &str) -> bool {
    let numbers: Vec<Option<u32>> = text.split(':').map(number).collect();
    matches!(numbers[..], [Some(_), Some(_), Some(1..)])
}

/// A number of digits alone: `parse` would take a sign too.
fn number(text: &str) -> Option<u32> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(())?;
    text.parse().ok()
}

fn bad(reason: &str) -> Error {
    Error::BadIdMap {
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: Option<&str>, groups: Option<&str>) -> Result<Option<IdMap>> {
        let labels = [(USERS, users), (GROUPS, groups)].into_iter();
        let given = labels.filter_map(|(label, value)| Some((label.to_owned(), value?.to_owned())));
        IdMap::of(&given.collect())
    }

    #[test]
    fn both_labels_become_options() {
        assert_eq!(of(None, None).expect("no labels"), None);
        let map = of(Some("0:100000:65536,70000:5:1"), Some("0:1:2"));
        let map = map.expect("labels").expect("a map");
        assert_eq!(
            map.mount_options(),
            ["uidmap=0:100000:65536,70000:5:1", "gidmap=0:1:2"]
        );
    }

    #[test]
    fn whatever_is_no_map_is_refused() {
        assert!(of(Some("0:1:2"), None).is_err());
        assert!(of(None, Some("0:1:2")).is_err());
        for wrong in [
            "0:1",
            "0:1:2:3",
            "0:1:0",
            "0:1:2,",
            "0:+1:2",
            "0:1:2,rw",
            "a:b:c",
            "0:1:4294967296",
        ] {
            assert!(of(Some(wrong), Some("0:1:2")).is_err(), "{wrong}");
        }
    }
}
