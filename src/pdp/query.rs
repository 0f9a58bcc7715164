//! A request for a decision: principal, action, resource, context, and the request's own entities.
//!
//! These are plain values without Cedar types. Each protocol builds a [`Query`] from its messages,
//! and the cache uses it as key. Only [`authorize`](crate::pdp::authorize()) converts it
//! to Cedar's types, and only when it must.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// An entity's type and id, not validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid<T = String> {
    /// The name of the type with its namespaces, such as `Shop::Order`.
    pub type_name: T,
    /// Any Unicode text; it may be empty and contain control characters.
    pub id: T,
}

impl Uid {
    /// Creates a uid from type and id.
    #[must_use]
    pub fn new(type_name: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            type_name: type_name.into(),
            id: id.into(),
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::\"{}\"", self.type_name, self.id.escape_debug())
    }
}

/// The maximum length of a uid in Cedar syntax, in bytes.
///
/// Cedar's parser must not get unbounded text.
pub const MAX_UID_BYTES: usize = 4_096;

/// The error for a text that is not a uid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUid {
    /// The text is longer than [`MAX_UID_BYTES`].
    #[error("a uid has at most {limit} bytes, not {0}", limit = MAX_UID_BYTES)]
    TooLong(usize),
    /// Cedar rejects the text.
    #[error("`{text}` is not a uid such as `User::\"alice\"`: {reason}")]
    Syntax {
        /// The text that was given.
        text: String,
        /// Cedar's error.
        reason: String,
    },
}

/// A value in a context, an attribute or a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<T = String> {
    /// True or false.
    Bool(bool),
    /// A 64-bit signed integer.
    Long(i64),
    /// Text.
    String(T),
    /// A reference to an entity, which need not exist.
    Entity(Uid<T>),
    /// A set; order and duplicates are irrelevant.
    Set(Vec<Value<T>>),
    /// A record.
    Record(Record<T>),
    /// The text of a decimal, such as `12.50`.
    Decimal(T),
    /// The text of an IP address or range, such as `10.0.0.0/8`.
    Ip(T),
    /// The text of a point in time, such as `2024-10-15T11:35:00Z`.
    Datetime(T),
    /// The text of a duration, such as `1h30m`.
    Duration(T),
}

/// Values by name, sorted, with distinct names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record<T = String>(pub(super) Vec<(T, Value<T>)>);

impl<T> Deref for Record<T> {
    type Target = [(T, Value<T>)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> From<BTreeMap<T, Value<T>>> for Record<T> {
    fn from(fields: BTreeMap<T, Value<T>>) -> Self {
        Self(fields.into_iter().collect())
    }
}

/// An entity that is sent with a request and exists for this request only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestEntity<T = String> {
    /// Replaces a stored entity with the same uid.
    pub uid: Uid<T>,
    /// Attribute values by name.
    pub attributes: Record<T>,
    /// The direct parents.
    pub parents: Vec<Uid<T>>,
    /// Tag values by name.
    pub tags: Record<T>,
}

/// Attributes and parents of the principal, from the claims of a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Attribute values by name.
    pub attributes: Record,
    /// The direct parents.
    pub parents: Vec<Uid>,
    /// The use of the stored entity with the same uid.
    pub stored: StoredPrincipal,
}

/// The use of the stored entity when a token names the principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredPrincipal {
    /// Attributes and parents are merged; the token's attributes win. Tags are the stored ones.
    Join,
    /// The stored entity is ignored.
    Replace,
    /// As [`Join`](Self::Join), but a query without stored entity is rejected.
    Require,
}

/// A parsed request for one decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The entity that wants to act.
    pub principal: Uid,
    /// The action on the resource.
    pub action: Uid,
    /// The entity to act on.
    pub resource: Uid,
    /// Attributes of the request itself.
    pub context: Record,
    /// Entities for this request only; they replace stored ones with the same uid.
    pub entities: Vec<RequestEntity>,
    /// The token's claims about the principal; `None` when the request names the principal itself.
    pub claimed: Option<Arc<Claimed>>,
    /// Requests an explanation in the answer.
    pub explain: bool,
}

/// The error for an invalid query, with the field at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct InvalidQuery {
    /// The path to the field, such as `entities[3].attributes["owner"].record["x"]`.
    ///
    /// It uses the names of the proto file. It is built from the inside out: the function that
    /// detects the error names the field, and each caller prepends its part.
    pub field: String,
    /// The fault of the field.
    pub problem: Problem,
}

impl InvalidQuery {
    /// Creates an error about the value itself; callers prepend its path.
    #[must_use]
    pub fn here(problem: Problem) -> Self {
        Self::field("", problem)
    }

    /// Creates an error about the field of the value that has the path `field`.
    #[must_use]
    pub fn field(field: &str, problem: Problem) -> Self {
        Self {
            field: field.to_owned(),
            problem,
        }
    }

    /// Prepends the field `name` to the path.
    #[must_use]
    pub fn within(mut self, name: &str) -> Self {
        let is_joined = self.field.is_empty() || self.field.starts_with('[');
        let separator = if is_joined { "" } else { "." };
        self.field = format!("{name}{separator}{}", self.field);
        self
    }

    /// Prepends the item `index` of a list to the path.
    #[must_use]
    pub fn at_index(self, index: usize) -> Self {
        self.within(&format!("[{index}]"))
    }

    /// Prepends the entry `key` of a map to the path.
    ///
    /// The key is escaped as in a Cedar string, and truncated when it is very long.
    #[must_use]
    pub fn at_key(self, key: &str) -> Self {
        const MAX_KEY_CHARS: usize = 128;
        let shown: String = key.chars().take(MAX_KEY_CHARS).collect();
        let ellipsis = if shown.len() < key.len() { "…" } else { "" };
        self.within(&format!("[\"{}{ellipsis}\"]", shown.escape_debug()))
    }
}

/// The fault of a field in a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the variants are")]
pub enum Problem {
    #[error("is missing")]
    Missing,
    #[error("is missing, and this service accepts no anonymous requests")]
    NoIdentity,
    #[error("is empty; an entity type is needed, such as `User`")]
    EmptyType,
    #[error("is not set; an id may be empty but must be set")]
    UnsetId,
    #[error(
        "has no kind; set one of bool, long, string, entity, set, record, decimal, ip, datetime, duration"
    )]
    UnsetKind,
    /// Contains the text, truncated when very long.
    #[error("`{0}` is not an entity type name")]
    TypeName(String),
    #[error("entity type `{0}` is not declared in the schema")]
    UnknownType(String),
    #[error("action `{0}` is not declared in the schema")]
    UnknownAction(String),
    /// The schema does not allow the type for this action. Contains Cedar's error.
    #[error("{0}")]
    NotApplicable(String),
    /// The value does not conform to the schema. Contains the error.
    #[error("{0}")]
    SchemaMismatch(String),
    #[error("not a valid {type_name}: {message}")]
    ExtensionValue {
        /// `decimal`, `ip`, `datetime` or `duration`.
        type_name: &'static str,
        message: String,
    },
    #[error("is nested deeper than {0} levels")]
    TooDeep(usize),
    #[error("`{0}` is sent twice")]
    DuplicateEntity(String),
    /// The uid is the token's principal, an entity that the token names, or an ancestor of one.
    #[error(
        "`{0}` is supplied by the token, or an ancestor of such an entity; requests cannot redefine these entities"
    )]
    ClaimedEntity(String),
    #[error(
        "`{0}` is the anonymous principal, or an ancestor of that principal; only callers that may name principals can redefine these entities"
    )]
    AnonymousEntity(String),
    #[error("the parents of `{0}` form a cycle")]
    Cycle(String),
    /// Actions come from the schema only.
    #[error("`{0}` is an action type; a request cannot send actions")]
    ActionEntity(String),
    /// The service requires entities of this type to be known.
    #[error("`{0}` is neither stored nor sent with the request; entities of this type must be")]
    UnknownEntity(String),
    #[error("this service accepts no request entities of type `{0}`")]
    TypeNotAccepted(String),
    #[error("the parents of these entities take more than {0} steps to follow")]
    HierarchyTooLarge(usize),
    #[error("`{uid}` would have more than {limit} ancestors")]
    TooManyAncestors { uid: String, limit: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_paths_use_proto_names() {
        let error = InvalidQuery::here(Problem::Missing)
            .at_index(2)
            .within("set")
            .at_key("x")
            .within("record")
            .at_key("owner")
            .within("attributes")
            .at_index(3)
            .within("entities");
        assert_eq!(
            error.field,
            r#"entities[3].attributes["owner"].record["x"].set[2]"#
        );
        let error = InvalidQuery::field("type", Problem::EmptyType).within("principal");
        assert_eq!(error.field, "principal.type");
    }
}
