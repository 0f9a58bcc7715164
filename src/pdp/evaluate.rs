//! Decides a query on a snapshot.
//!
//! `bind` converts the query to Cedar values and finds the policies whose scope matches.
//! `interpreter` evaluates simple conditions directly on the store; `slicing` collects the entities
//! that Cedar needs for the rest. `explain` computes the explanation of a decision.

pub(in crate::pdp) mod authorize;
pub(in crate::pdp) mod bind;
pub(in crate::pdp) mod explain;
pub(in crate::pdp) mod interpreter;
pub(in crate::pdp) mod invalid_query;
pub(in crate::pdp) mod slicing;
pub(in crate::pdp) mod token_entity;
