//! Generates the bindings. `protox` parses the `.proto` files, so no `protoc` is needed.

use std::error::Error;

const PROTOS: [&str; 7] = [
    "containerd/api/services/content/v1/content.proto",
    "containerd/api/services/diff/v1/diff.proto",
    "containerd/api/services/images/v1/images.proto",
    "containerd/api/services/leases/v1/leases.proto",
    "containerd/api/services/snapshots/v1/snapshots.proto",
    "cri/v1/image.proto",
    "lamina/v1/status.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=protos");
    let descriptors = protox::compile(PROTOS, ["protos"])?;
    tonic_prost_build::configure()
        // It holds secrets.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_fds(descriptors)?;
    Ok(())
}
