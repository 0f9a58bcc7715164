//! What policy authors run on a snapshot: test cases, and answers as text and JSON.
//!
//! Values in, reports out: nothing here reads files or prints.

pub mod cases;
pub mod report;
