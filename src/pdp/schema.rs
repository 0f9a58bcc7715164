//! Schema checks of requests and entities that need no call to Cedar.

pub(in crate::pdp) mod conformance;
