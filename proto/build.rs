//! Compiles evenkeel.v1 without protoc: protox parses, prost and tonic generate.

use prost::Message as _;
use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 8] = [
    "evenkeel/v1/plan.proto",
    "evenkeel/v1/agent.proto",
    "evenkeel/v1/peer.proto",
    "evenkeel/v1/simulated.proto",
    "evenkeel/v1/routing.proto",
    "evenkeel/v1/admin.proto",
    "evenkeel/v1/store.proto",
    "evenkeel/v1/stored.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("evenkeel_v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // One plan goes to thousands of agents: its chunks are shared, not copied.
        .bytes(".evenkeel.v1.PlanChunk.data")
        .compile_fds(descriptors)?;
    Ok(())
}
