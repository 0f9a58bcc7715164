//! Everything a decision is made of, immutable and under one revision.

use std::collections::BTreeSet;

/// What the operator decided about deciding; fixed for the life of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether policies and requests are checked against the schema.
    pub validation: Validation,
    /// What a failing `forbid` does.
    pub on_policy_error: OnPolicyError,
    /// The entity types that a request may bring; `None` takes any.
    pub request_entity_types: Option<BTreeSet<String>>,
}

/// Whether policies and requests are checked against the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Validation {
    /// One rejected policy refuses the load; requests are checked.
    #[default]
    Strict,
    /// Rejected policies are reported and loaded; requests are checked.
    Warn,
    /// Neither is checked.
    Off,
}

/// What happens when a `forbid` cannot be evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnPolicyError {
    /// It is skipped, as Cedar has it.
    #[default]
    Skip,
    /// It denies, and is among the determining policies and the errors.
    Deny,
}
