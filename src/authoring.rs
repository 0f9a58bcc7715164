//! Tools for policy authors: test cases of a snapshot, and answers as text and JSON.
//!
//! Values in, reports out: nothing here reads files or prints.

pub mod cases;
pub mod report;
