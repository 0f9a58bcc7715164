//! `principal_token` with the real process and real keys, valid and attacked.

mod attacks;
mod keys;
mod mapping;
mod replay;
mod revocation;
mod server;
mod setup;
