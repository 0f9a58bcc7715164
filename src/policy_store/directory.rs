//! Reads a policy directory: finds its files, follows links, and detects changes between scans.
//!
//! Only this module reads policy files. It does not know what they mean:
//! [`compile`](crate::pdp::compile()) does, and also reports the problems found here.

mod file;
mod fingerprint;
mod ignore_file;
mod scan;
mod walk;

pub use crate::config::SourceLimits;
pub use scan::DirectoryScan;
pub use walk::scan;

#[cfg(test)]
mod tests;
