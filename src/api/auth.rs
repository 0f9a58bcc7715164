//! Authentication of callers: certificates, keys and user ids become a caller with its rights.

pub(crate) mod authenticator;
pub(crate) mod caller;
pub(crate) mod callers;
mod distinguished_name;
pub(crate) mod peer;
pub(crate) mod registry;

#[cfg(test)]
mod tests;
