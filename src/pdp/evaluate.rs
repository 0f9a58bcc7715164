//! Decides a query on a snapshot.
//!
//! `bind` turns the query into Cedar's values and finds the policies whose scope matches,
//! `interpreter` evaluates plain conditions on the store, and `slicing` collects the entities that
//! Cedar needs for the rest. `explain` says why a decision is what it is.

pub(in crate::pdp) mod authorize;
pub(in crate::pdp) mod bind;
pub(in crate::pdp) mod explain;
pub(in crate::pdp) mod interpreter;
pub(in crate::pdp) mod invalid_query;
pub(in crate::pdp) mod slicing;
pub(in crate::pdp) mod token_entity;
