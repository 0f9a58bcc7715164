//! Invalid input over raw connections: each case has its status and field, and the service keeps
//! running.
//!
//! Bytes that no typed client would send are written by hand. After every case the process must be
//! alive and answer the next valid call. At the end the log must contain no panic.
//! `CEDAR_PDP_TEST_BINARY` names another binary to test, such as the release build.
//! `CEDAR_PDP_HOSTILE_SEED` sets the seed of the mutations.

mod calls;
mod connections;
mod costs;
mod fields;
mod mutations;
mod nesting;
mod requests;
mod target;
