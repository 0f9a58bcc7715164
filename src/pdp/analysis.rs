//! Reports about a snapshot, and the layout of policy files, for policy authors.

pub mod advice;
pub mod format;
