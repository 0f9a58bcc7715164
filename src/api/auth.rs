//! Authentication of callers: certificates, keys and user ids become a caller with its rights.

pub(crate) mod authenticator;
pub mod caller;
pub mod callers;
pub(crate) mod certificate;
pub(crate) mod clock;
mod distinguished_name;
pub(crate) mod peer;
pub(crate) mod registry;

#[cfg(test)]
mod tests;
