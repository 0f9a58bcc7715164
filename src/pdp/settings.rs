//! The operator's settings for deciding, and fixed limits.

use std::collections::BTreeSet;

/// What the operator decided about deciding; fixed for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether policies and requests are checked against the schema.
    pub validation: Validation,
    /// What a failing `forbid` does.
    pub on_policy_error: OnPolicyError,
    /// The entity types that a request may bring; `None` takes any.
    pub request_entity_types: Option<BTreeSet<String>>,
    /// The most policies that may match one request's principal, action and resource.
    pub max_candidates: usize,
    /// The most memory that policies and stored entities may take, in bytes.
    pub max_store_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            validation: Validation::default(),
            on_policy_error: OnPolicyError::default(),
            request_entity_types: None,
            max_candidates: 10_000,
            max_store_bytes: 4 << 30,
        }
    }
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

/// The most entities that one request may look up. Attributes and tags lead from one to others, so
/// a policy that follows them through all tags of an entity could reach a great many.
pub const MAX_LOOKUPS: usize = 20_000;

/// The most steps that finding them may take: one for each attribute and tag that is looked at and
/// each uid that is found there, and one for each ancestor that an entity is asked for or has.
///
/// Entities may be few and the ways to them many: each policy has its own, through all tags of an
/// entity. Twenty thousand entities with a hundred ancestors each take two million steps.
pub const MAX_LOOKUP_STEPS: usize = 2_000_000;
