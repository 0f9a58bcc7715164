//! Tests of the running service, its command line and its loader, from outside.
//!
//! One binary, to link once. `CEDAR_PDP_TEST_BINARY` names another server to test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where"
)]

use cedar_pdp_test_support as support;

mod admin;
mod cli;
mod decision_log;
mod docs;
mod faults;
mod hostile;
mod reload;
mod service;
mod tokens;
mod traces;
mod transport;
