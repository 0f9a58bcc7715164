//! Reports about a snapshot for policy authors.

pub mod advice;
