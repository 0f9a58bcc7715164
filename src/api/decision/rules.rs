//! Limits on what one call may ask to be decided.

use crate::pdp::query::Uid;

/// Limits on a call to `AuthorizationService`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationRules {
    /// Limits on each request.
    pub request: RequestRules,
    /// Most requests in one batch.
    pub max_batch_items: usize,
    /// Whether explanations may be requested.
    pub explain: bool,
}

/// Limits on one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// The principal of a request without identity; `None` rejects such requests.
    pub anonymous_principal: Option<Uid>,
    /// Most entities in one request.
    pub max_request_entities: usize,
    /// Most attributes, set members, entities and parents in one request.
    pub max_values: usize,
    /// Deepest nesting of sets and records; a plain value counts as one.
    pub max_value_depth: usize,
}
