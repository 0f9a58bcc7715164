//! The messages, servers and clients that `build.rs` makes of `proto/pdp/v1`.
//!
//! Nothing is written here by hand: what a message means is said in its `.proto` file.
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code"
)]

tonic::include_proto!("pdp.v1");

/// Every `.proto` file of the API and what they import, as an encoded
/// `google.protobuf.FileDescriptorSet`; for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
