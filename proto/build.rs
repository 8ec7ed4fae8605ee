//! Generates the bindings. `protox` parses the `.proto` files, so no `protoc` is needed.

use std::error::Error;

const PROTOS: [&str; 2] = [
    "containerd/api/services/snapshots/v1/snapshots.proto",
    "lamina/v1/status.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=protos");
    let descriptors = protox::compile(PROTOS, ["protos"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
