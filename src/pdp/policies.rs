//! Policies in a snapshot: a scope index, with conditions as bytecode and as read sets.

pub(in crate::pdp) mod bytecode;
pub(in crate::pdp) mod context_reads;
pub(in crate::pdp) mod cursor;
pub(in crate::pdp) mod index;
pub(in crate::pdp) mod policy;
pub(in crate::pdp) mod postings;
pub(in crate::pdp) mod read_set;
pub(in crate::pdp) mod scope;
