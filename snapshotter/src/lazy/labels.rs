//! What containerd says of a layer when it asks for a place to unpack it into.

use std::collections::HashMap;

use crate::store::records::Labels;

/// The chain ID that the snapshot will have when the layer is unpacked (containerd,
/// `snapshots.LabelSnapshotRef`). containerd looks for it on the snapshot that it is told exists.
pub(crate) const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// The image's name and the layer's digest: containerd's CRI plugin, and nerdctl (containerd,
/// `snapshots.TargetRefLabel`, `snapshots.TargetLayerDigestLabel`).
const CRI: (&str, &str) = (
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/cri.layer-digest",
);

/// The same, as stargz's own tools say it.
const STARGZ: (&str, &str) = (
    "containerd.io/snapshot/remote/stargz.reference",
    "containerd.io/snapshot/remote/stargz.digest",
);

/// A layer that somebody is about to pull.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    /// The image's name.
    pub(crate) reference: String,
    /// The digest of the layer's blob.
    pub(crate) digest: String,
    /// The chain ID of the layer with those below.
    pub(crate) chain_id: String,
}

impl Wanted {
    /// What the labels of a new snapshot say; `None` if they do not say enough.
    pub(crate) fn of(labels: &Labels) -> Option<Wanted> {
        let chain_id = labels.get(SNAPSHOT_REF)?;
        let pair =
            |(reference, digest): (&str, &str)| Some((labels.get(reference)?, labels.get(digest)?));
        let (reference, digest) = pair(CRI).or_else(|| pair(STARGZ))?;
        Some(Wanted {
            reference: reference.clone(),
            digest: digest.clone(),
            chain_id: chain_id.clone(),
        })
    }

    /// The labels that say so, as containerd's CRI plugin writes them.
    pub(crate) fn labels(&self) -> HashMap<String, String> {
        let labels = [
            (SNAPSHOT_REF, &self.chain_id),
            (CRI.0, &self.reference),
            (CRI.1, &self.digest),
        ];
        let labels = labels.into_iter();
        labels
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_known_by_the_labels_of_cri_or_of_stargz() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            Wanted::of(
                &pairs
                    .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                    .collect(),
            )
        };
        let expected = Some(Wanted {
            reference: "r/i:t".to_owned(),
            digest: "sha256:d".to_owned(),
            chain_id: "sha256:c".to_owned(),
        });
        for (reference, digest) in [CRI, STARGZ] {
            let all = [
                (SNAPSHOT_REF, "sha256:c"),
                (reference, "r/i:t"),
                (digest, "sha256:d"),
            ];
            assert_eq!(of(&all), expected);
            for without in 0..3 {
                let mut some = all.to_vec();
                some.remove(without);
                assert_eq!(of(&some), None);
            }
        }
        let written = expected.as_ref().map(Wanted::labels).unwrap_or_default();
        assert_eq!(Wanted::of(&written.into_iter().collect()), expected);
    }
}
