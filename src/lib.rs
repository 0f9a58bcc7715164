//! cedar-pdp: a policy decision point for Cedar.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod engine;
pub mod pdp;
pub mod policy_store;
pub mod readiness;
pub mod telemetry;
pub mod watch;
