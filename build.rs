//! Makes Rust of the API's `.proto` files, and the descriptors that reflection serves.
//!
//! Nothing needs to be installed for it: `protox` is a protobuf compiler as a library. It also packs
//! the relocations of a static binary.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
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

/// The first glibc whose startup code applies packed relocations to a static binary.
const PACKED_SINCE: (u32, u32) = (2, 36);

fn main() -> Result<(), Box<dyn Error>> {
    pack_relocations();
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

/// Has the relocations of a static binary packed (RELR): they are read at startup, and unpacked they
/// are 600 KiB of an idle service's memory.
///
/// A binary that loads the C library at run time may meet an older one, and stays as it is.
fn pack_relocations() {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    let is_native = env::var("HOST").ok() == env::var("TARGET").ok();
    if is_static
        && is_native
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && glibc_version().is_some_and(|version| version >= PACKED_SINCE)
    {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Returns the version of this machine's glibc, which a native static build links.
fn glibc_version() -> Option<(u32, u32)> {
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
