//! Makes Rust of the API's `.proto` files, and the descriptors that reflection serves.
//!
//! Nothing needs to be installed for it: `protox` is a protobuf compiler as a library.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

/// Where the `.proto` files are; imports are relative to these.
const ROOTS: [&str; 2] = ["proto", "third_party"];

const FILES: [&str; 3] = [
    "pdp/v1/authorization.proto",
    "pdp/v1/policy_store.proto",
    // No message of ours has a field of these, but clients that know us by reflection alone meet
    // them in the details of errors.
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for root in ROOTS {
        println!("cargo:rerun-if-changed={root}");
    }
    let descriptors = protox::compile(FILES, ROOTS)?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Sorted while decoding: equal requests then look equal to the cache, however they were
        // sent.
        .btree_map(".")
        .extern_path(".google.rpc", "::tonic_types::pb")
        // tonic's own codec calls a message that does not decode INTERNAL.
        .codec_path("crate::api::grpc::wire::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
