//! The labels that containerd's own clients write: what keeps what, and where it came from.

use std::collections::HashMap;

use oci_spec::distribution::Reference;
use oci_spec::image::Descriptor;

use crate::containerd::Labels;

/// What the names of labels begin with that say which content something needs (containerd,
/// docs/garbage-collection.md).
const CONTENT: &str = "containerd.io/gc.ref.content.";
/// The same for a snapshot of the snapshotter whose name follows.
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// Repositories of the registry whose name follows that have a blob.
const SOURCE: &str = "containerd.io/distribution.source.";
/// The digest of the archive in a layer.
pub(super) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The most bytes of a label's name and value together (containerd, `labels.Validate`).
const LONGEST: usize = 4096;

/// What an index or a manifest needs: its children, in their order (containerd,
/// `images.SetChildrenMappedLabels`).
pub(super) fn children<'d>(children: impl IntoIterator<Item = &'d Descriptor>) -> Labels {
    let mut labels = Labels::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for child in children {
        let kind = kind(child.media_type().as_ref());
        let number = seen.entry(kind).or_default();
        // Of configurations there is one, and it has no number.
        let name = match (kind, *number) {
            ("config", 0) => format!("{CONTENT}{kind}"),
            (kind, number) => format!("{CONTENT}{kind}{number}"),
        };
        *number += 1;
        labels.insert(name, child.digest().to_string());
    }
    labels
}

/// What stands in a label's name for a media type (containerd, `images.ChildGCLabels`).
fn kind(media_type: &str) -> &'static str {
    match media_type {
        "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json" => "config",
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => "m.",
        layer
            if layer.starts_with("application/vnd.oci.image.layer.")
                || layer.starts_with("application/vnd.docker.image.rootfs.") =>
        {
            "l."
        }
        _ => "",
    }
}

/// A configuration needs the snapshot of the topmost layer, by its chain ID.
pub(super) fn unpacked(snapshotter: &str, chain_id: &str) -> Labels {
    Labels::from([(format!("{SNAPSHOT}{snapshotter}"), chain_id.to_owned())])
}

/// Where a blob with the labels `known` came from now, and before (containerd,
/// `docker.AppendDistributionSourceLabel`); none, if that would be too long.
pub(super) fn source(reference: &Reference, known: &Labels) -> Labels {
    let name = format!("{SOURCE}{}", host(reference.registry()));
    let before = known.get(&name).map_or("", String::as_str).split(',');
    let mut repositories: Vec<&str> = before.filter(|one| !one.is_empty()).collect();
    repositories.push(reference.repository());
    repositories.sort_unstable();
    repositories.dedup();
    let value = repositories.join(",");
    if name.len() + value.len() > LONGEST {
        return Labels::new();
    }
    Labels::from([(name, value)])
}

/// A registry's name without its port.
fn host(registry: &str) -> &str {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::image::{descriptor, parse};
    use lamina_fusefs::blob::Digest;
    use oci_spec::image::MediaType;

    #[test]
    fn an_index_and_a_manifest_need_what_containerd_says_they_need() {
        let child = |media_type: &str, bytes: &[u8]| {
            descriptor(MediaType::from(media_type), 1, Digest::of(bytes)).expect("descriptor")
        };
        let of = |descriptors: &[Descriptor]| {
            let mut labels: Vec<_> = children(descriptors).into_iter().collect();
            labels.sort_unstable();
            labels
        };
        let name = |name: &str, bytes: &[u8]| {
            let name = format!("containerd.io/gc.ref.content.{name}");
            (name, Digest::of(bytes).to_string())
        };
        let oci = "application/vnd.oci.image";
        let docker = "application/vnd.docker";
        assert_eq!(
            of(&[
                child(&format!("{oci}.config.v1+json"), b"c"),
                child(&format!("{oci}.layer.v1.tar+gzip"), b"0"),
                child(&format!("{docker}.image.rootfs.diff.tar.gzip"), b"1"),
                child("application/of.nobody", b"2"),
            ]),
            [
                name("0", b"2"),
                name("config", b"c"),
                name("l.0", b"0"),
                name("l.1", b"1")
            ]
        );
        assert_eq!(
            of(&[
                child(&format!("{oci}.manifest.v1+json"), b"0"),
                child(&format!("{docker}.distribution.manifest.v2+json"), b"1"),
            ]),
            [name("m.0", b"0"), name("m.1", b"1")]
        );
    }

    #[test]
    fn a_blob_remembers_all_repositories_of_a_registry() {
        let reference = parse("127.0.0.1:5000/b/c:1").expect("name");
        let name = "containerd.io/distribution.source.127.0.0.1".to_owned();
        let mut known = Labels::new();
        for (before, expected) in [("", "b/c"), ("a,d", "a,b/c,d"), ("a,b/c", "a,b/c")] {
            known.insert(name.clone(), before.to_owned());
            let labels = source(&reference, &known);
            assert_eq!(
                labels,
                Labels::from([(name.clone(), expected.to_owned())]),
                "{before}"
            );
        }
        known.insert(name, "x".repeat(4096));
        assert!(source(&reference, &known).is_empty());
    }

    #[test]
    fn a_host_is_a_registry_without_its_port() {
        for (registry, expected) in [
            ("docker.io", "docker.io"),
            ("localhost:5000", "localhost"),
            ("[::1]:5000", "::1"),
        ] {
            assert_eq!(host(registry), expected);
        }
    }
}
