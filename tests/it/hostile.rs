//! Bad input over raw connections: each has its status and field, and the service goes on.
//!
//! Bytes that no typed client would send are written by hand. After every case the process must
//! be alive and the next good call answered, and in the end nothing in the log may have panicked.
//! `CEDAR_PDP_TEST_BINARY` runs all of it against another binary, such as the release build.
//! `CEDAR_PDP_HOSTILE_SEED` sets the seed of the mutations.

mod calls;
mod connections;
mod costs;
mod fields;
mod mutations;
mod nesting;
mod requests;
mod target;
