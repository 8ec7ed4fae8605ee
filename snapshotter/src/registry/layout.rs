//! An artifact in files, so that it can be carried to where the registry is: an OCI image layout (OCI
//! image specification 1.1, image-layout.md).
//!
//! ```text
//! oci-layout          the version of the layout
//! index.json          the one artifact in it
//! blobs/sha256/HEX    its manifest, and its blobs
//! ```
//!
//! The manifest that the artifact refers to is not in it: that is in the registry, with its image.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use lamina_fusefs::blob::Digest;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::json;

use super::RegistryError;
use super::artifact::{INDEX, Made};
use super::image::digest_of;

const VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The annotation by which a layout names what is in it (OCI image specification, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The directory of its blobs.
const BLOBS: &str = "blobs/sha256";

/// Writes an artifact into a directory, which is made and may not be there before. `name`: what the layout
/// calls it.
pub fn write(dir: &Path, made: &Made, name: &str) -> Result<(), RegistryError> {
    let blobs = dir.join(BLOBS);
    let begun = fs::create_dir(dir).and_then(|()| fs::create_dir_all(&blobs));
    begun.map_err(|error| wrong(dir, &error))?;
    let put = |path: &Path, bytes: &[u8]| {
        let written = fs::write(path, bytes);
        written.map_err(|error| wrong(path, &error))
    };
    for bytes in made.blobs.iter().chain([&made.manifest]) {
        put(&blobs.join(Digest::of(bytes).to_hex()), bytes)?;
    }
    let mut entry = made.entry.clone();
    let mut annotations = entry.annotations().clone().unwrap_or_default();
    annotations.insert(REF_NAME.to_owned(), name.to_owned());
    entry.set_annotations(Some(annotations));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    put(&dir.join("index.json"), index.to_string().as_bytes())?;
    put(&dir.join("oci-layout"), VERSION.as_bytes())
}

/// Reads the one artifact in a directory. All of it is held against its digests.
pub fn read(dir: &Path) -> Result<Made, RegistryError> {
    let path = dir.join("index.json");
    let bytes = fs::read(&path).map_err(|error| wrong(&path, &error))?;
    let index: ImageIndex = serde_json::from_slice(&bytes).map_err(|error| wrong(&path, &error))?;
    let [entry] = &index.manifests()[..] else {
        return Err(wrong(&path, &"it does not name one artifact"));
    };
    let bytes = blob(dir, entry)?;
    let manifest: ImageManifest =
        serde_json::from_slice(&bytes).map_err(|error| wrong(dir, &error))?;
    let parts = manifest.layers().iter().chain([manifest.config()]);
    let blobs = parts
        .map(|part| blob(dir, part))
        .collect::<Result<_, _>>()?;
    Made::of(bytes, blobs).map_err(|what| wrong(dir, &what))
}

/// A blob of a layout.
fn blob(dir: &Path, wanted: &Descriptor) -> Result<Vec<u8>, RegistryError> {
    let digest = digest_of(wanted).map_err(|what| wrong(dir, &what))?;
    let path = dir.join(BLOBS).join(digest.to_hex());
    let bytes = fs::read(&path).map_err(|error| wrong(&path, &error))?;
    if Digest::of(&bytes) != digest {
        return Err(wrong(&path, &"it is not what its name says"));
    }
    Ok(bytes)
}

fn wrong(path: &Path, what: &dyn Display) -> RegistryError {
    RegistryError::Layout {
        path: path.to_owned(),
        what: what.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use oci_spec::image::MediaType;

    use super::super::artifact::Part;
    use super::super::image::descriptor;
    use super::*;

    fn made() -> Made {
        let subject = descriptor(MediaType::ImageManifest, 3, Digest::of(b"sub")).expect("subject");
        let part = Part {
            media_type: "application/octet-stream".to_owned(),
            annotations: HashMap::from([("a".to_owned(), "b".to_owned())]),
            bytes: b"the part".to_vec(),
        };
        Made::new(&subject, "application/vnd.example.one", &[part]).expect("made")
    }

    #[test]
    fn an_artifact_comes_back_from_its_files() {
        let root = tempfile::tempdir().expect("tempdir");
        let (dir, made) = (root.path().join("layout"), made());
        write(&dir, &made, "name").expect("write");
        assert_eq!(read(&dir).expect("read"), made);
        let index = fs::read_to_string(dir.join("index.json")).expect("index");
        assert!(index.contains(REF_NAME), "{index}");
        let version = fs::read_to_string(dir.join("oci-layout")).expect("version");
        assert_eq!(version, VERSION);
        // What is there is not written over.
        let error = write(&dir, &made, "name").expect_err("there").to_string();
        assert!(error.contains("layout: "), "{error}");
    }

    #[test]
    fn a_layout_that_was_damaged_is_refused() {
        let root = tempfile::tempdir().expect("tempdir");
        let dir = root.path().join("layout");
        let made = made();
        write(&dir, &made, "name").expect("write");
        for bytes in made.blobs.iter().chain([&made.manifest]) {
            let path = dir.join(BLOBS).join(Digest::of(bytes).to_hex());
            fs::write(&path, b"other").expect("write");
            let error = read(&dir).expect_err("damaged").to_string();
            assert!(error.contains("not what its name says"), "{error}");
            fs::remove_file(&path).expect("remove");
            read(&dir).expect_err("gone");
            fs::write(&path, bytes).expect("write");
        }
        read(&dir).expect("whole again");
        fs::write(
            dir.join("index.json"),
            r#"{"schemaVersion":2,"manifests":[]}"#,
        )
        .expect("write");
        let error = read(&dir).expect_err("none").to_string();
        assert!(error.contains("does not name one artifact"), "{error}");
    }
}
