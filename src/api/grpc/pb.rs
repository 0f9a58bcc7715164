//! The messages, servers and clients that `build.rs` generates from `proto/pdp/v1`.
//!
//! The `.proto` files define what each message means.
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

/// The `.proto` files of the API with their imports, as an encoded
/// `google.protobuf.FileDescriptorSet`; for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
