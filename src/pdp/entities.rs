//! The entities that a decision reads: a compact store, and a request's own entities on top of it.

pub(in crate::pdp) mod hierarchy;
pub(in crate::pdp) mod interner;
pub(in crate::pdp) mod overlay;
pub(in crate::pdp) mod segment;
pub(in crate::pdp) mod store;
