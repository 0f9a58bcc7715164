//! cedar-pdp: a policy decision point for Cedar.

pub mod pdp;
