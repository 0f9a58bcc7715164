//! `principal_token`, from the outside: the real process, real keys, and the attacks.

mod attacks;
mod keys;
mod mapping;
mod replay;
mod revocation;
mod server;
mod setup;
