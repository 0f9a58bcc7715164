//! The decision log of the running service, read as an operator reads it.

mod collector;
mod faults;
mod records;
mod replay;
mod setup;
