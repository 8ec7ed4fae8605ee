//! Who holds the upper of a container: our union, or the kernel's overlayfs above the shared image
//! mount.
//!
//! The configuration says which for all containers, and a label of the snapshot says it for one.
//! It is decided when a snapshot is made and stands in its record: what a container was mounted
//! with, it is mounted with again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id_map::IdMap;
use crate::store::records::Labels;

/// The label by which a snapshot chooses, for whoever speaks to Lamina directly.
pub const LABEL: &str = "lamina/upper";

/// The same label by way of containerd, which hands on only what begins like this.
pub const INHERITED_LABEL: &str = "containerd.io/snapshot/lamina/upper";

/// Who holds an upper.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UpperMode {
    /// Our own union, in a FUSE mount for this container alone.
    #[default]
    Union,
    /// The kernel's overlayfs, with the shared image mount as its one lower.
    Kernel,
}

impl UpperMode {
    /// The word for it in the configuration, in labels and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            UpperMode::Union => "union",
            UpperMode::Kernel => "kernel",
        }
    }

    /// Whether it is the default, which the store leaves out.
    #[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
    pub(crate) fn is_union(&self) -> bool {
        *self == UpperMode::Union
    }

    /// What a new container with these labels gets where the configuration says `default`.
    ///
    /// Overlayfs shifts no users between its layers and its upper, so a container whose users are
    /// shifted gets the union; asking for both by labels is an error.
    pub(crate) fn of_new(labels: &Labels, default: UpperMode) -> Result<UpperMode> {
        let shifted = IdMap::of(labels)?.is_some();
        match asked_for(labels)? {
            Some(UpperMode::Kernel) if shifted => Err(Error::BadUpper {
                reason: "the kernel's overlayfs cannot shift the users of an image: leave the \
                         label out, or say union"
                    .to_owned(),
            }),
            Some(asked) => Ok(asked),
            None if shifted => Ok(UpperMode::Union),
            None => Ok(default),
        }
    }
}

impl fmt::Display for UpperMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for UpperMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<UpperMode> {
        [UpperMode::Union, UpperMode::Kernel]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| Error::BadUpper {
                reason: format!("it is `union` or `kernel`, not {text:?}"),
            })
    }
}

/// What the labels say, if they say anything; both labels have to say the same.
fn asked_for(labels: &Labels) -> Result<Option<UpperMode>> {
    let mut asked = None;
    for label in [LABEL, INHERITED_LABEL] {
        let Some(value) = labels.get(label).filter(|value| !value.is_empty()) else {
            continue;
        };
        let mode: UpperMode = value.parse()?;
        if asked.is_some_and(|before| before != mode) {
            return Err(Error::BadUpper {
                reason: format!("{LABEL} and {INHERITED_LABEL} contradict each other"),
            });
        }
        asked = Some(mode);
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIFT: [(&str, &str); 2] = [
        ("containerd.io/snapshot/uidmapping", "0:1:2"),
        ("containerd.io/snapshot/gidmapping", "0:1:2"),
    ];

    fn of(pairs: &[(&str, &str)], default: UpperMode) -> Result<UpperMode> {
        let labels = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        UpperMode::of_new(&labels.collect(), default)
    }

    #[test]
    fn a_label_overrides_the_configuration() {
        use UpperMode::{Kernel, Union};
        for default in [Union, Kernel] {
            assert_eq!(of(&[], default).expect("none"), default);
            assert_eq!(of(&[(LABEL, "")], default).expect("empty"), default);
            for label in [LABEL, INHERITED_LABEL] {
                assert_eq!(of(&[(label, "union")], default).expect("union"), Union);
                assert_eq!(of(&[(label, "kernel")], default).expect("kernel"), Kernel);
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(of(&[(LABEL, "Kernel")], UpperMode::Union).is_err());
        let both = [(LABEL, "kernel"), (INHERITED_LABEL, "union")];
        assert!(of(&both, UpperMode::Union).is_err());
    }

    #[test]
    fn shifted_users_have_a_union() {
        let default = of(&SHIFT, UpperMode::Kernel).expect("the configuration gives way");
        assert_eq!(default, UpperMode::Union);
        let [users, groups] = SHIFT;
        assert!(of(&[users, groups, (LABEL, "kernel")], UpperMode::Union).is_err());
    }
}
