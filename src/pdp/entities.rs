//! Entities that decisions read: the compact store, and the overlay with a request's entities.

pub(in crate::pdp) mod hierarchy;
pub(in crate::pdp) mod interner;
pub(in crate::pdp) mod overlay;
pub(in crate::pdp) mod segment;
pub(in crate::pdp) mod store;
