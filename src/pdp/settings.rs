//! The operator's settings for decisions, and fixed limits.

use std::collections::BTreeSet;

/// The operator's settings for decisions, fixed for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The checks of policies and requests against the schema.
    pub validation: Validation,
    /// The effect of a `forbid` that cannot be evaluated.
    pub on_policy_error: OnPolicyError,
    /// The entity types that a request may send; `None` accepts any.
    pub request_entity_types: Option<BTreeSet<String>>,
    /// The entity types of which a principal or resource must be known; `None` is no type.
    pub require_known: Option<KnownTypes>,
    /// The maximum number of policies that may match a request's principal, action and resource.
    pub max_candidates: usize,
    /// The maximum memory of policies and stored entities, in bytes.
    pub max_store_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            validation: Validation::default(),
            on_policy_error: OnPolicyError::default(),
            request_entity_types: None,
            require_known: None,
            max_candidates: 10_000,
            max_store_bytes: 4 << 30,
        }
    }
}

/// The entity types of which a request's principal and resource must be known: stored, or sent with
/// the request, or described by its token.
///
/// A policy that reads an attribute of an unknown entity fails, and a failed `forbid` is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownTypes {
    /// These types, by their full names.
    Named(BTreeSet<String>),
    /// All types.
    All,
}

impl KnownTypes {
    /// Returns whether an entity of the type must be known.
    #[must_use]
    pub fn include(&self, type_name: &str) -> bool {
        match self {
            Self::Named(names) => names.contains(type_name),
            Self::All => true,
        }
    }
}

/// The checks of policies and requests against the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Validation {
    /// One invalid policy rejects the load; requests are checked.
    #[default]
    Strict,
    /// Invalid policies are reported and loaded; requests are checked.
    Warn,
    /// Neither policies nor requests are checked.
    Off,
}

/// The effect of a `forbid` that cannot be evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnPolicyError {
    /// The policy is skipped, which is Cedar's rule.
    #[default]
    Skip,
    /// The policy denies the request, and is a determining policy and an error.
    Deny,
}

/// The maximum number of entities that one request may look up.
///
/// Attributes and tags refer to further entities, so a policy that follows all tags of an entity
/// could reach a great many.
pub const MAX_LOOKUPS: usize = 20_000;

/// The maximum number of steps for finding these entities.
///
/// A step is an attribute or tag that is read, a uid found in it, or an ancestor that is looked up
/// or collected. There can be far more steps than entities, because each policy follows its own
/// paths. 20,000 entities with a hundred ancestors each take two million steps.
pub const MAX_LOOKUP_STEPS: usize = 2_000_000;
