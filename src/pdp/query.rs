//! A request for a decision: principal, action, resource, context, and the request's own entities.
//!
//! These are plain values without Cedar types. Each protocol builds a [`Query`] from its messages,
//! and the cache uses it as key. Only [`authorize`](crate::pdp::authorize()) converts it
//! to Cedar's types, and only when it must.

use std::fmt;
use std::sync::Arc;

/// An entity's type and id, not validated.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid {
    /// The name of the type with its namespaces, such as `Shop::Order`.
    pub type_name: String,
    /// Any Unicode text; it may be empty and contain control characters.
    pub id: String,
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
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A 64-bit signed integer.
    Long(i64),
    /// Text.
    String(String),
    /// A reference to an entity, which need not exist.
    Entity(Uid),
    /// A set; order and duplicates are irrelevant.
    Set(Vec<Value>),
    /// A record.
    Record(Record),
    /// The text of a decimal, such as `12.50`.
    Decimal(String),
    /// The text of an IP address or range, such as `10.0.0.0/8`.
    Ip(String),
    /// The text of a point in time, such as `2024-10-15T11:35:00Z`.
    Datetime(String),
    /// The text of a duration, such as `1h30m`.
    Duration(String),
}

/// Values by name, sorted, with distinct names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record(Vec<(String, Value)>);

impl Record {
    /// Returns the fields, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no fields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<std::collections::BTreeMap<String, Value>> for Record {
    fn from(fields: std::collections::BTreeMap<String, Value>) -> Self {
        Self(fields.into_iter().collect())
    }
}

/// An entity that is sent with a request and exists for this request only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestEntity {
    /// Replaces a stored entity with the same uid.
    pub uid: Uid,
    /// Attribute values by name.
    pub attributes: Record,
    /// The direct parents.
    pub parents: Vec<Uid>,
    /// Tag values by name.
    pub tags: Record,
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

/// A path to a field of a request, such as `entities[3].attributes["owner"].record["x"]`.
///
/// It uses the names of the proto file. It is built from the inside out, and only for errors: the
/// function that detects the error names the field, and each caller prepends its part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldPath(String);

impl FieldPath {
    /// Creates the path of one field.
    #[must_use]
    pub fn field(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Prepends the field `name`.
    #[must_use]
    pub fn within(self, name: &str) -> Self {
        match self.0.as_str() {
            "" => Self(name.to_owned()),
            path if path.starts_with('[') => Self(format!("{name}{path}")),
            path => Self(format!("{name}.{path}")),
        }
    }

    /// Prepends the item `index` of a list.
    #[must_use]
    pub fn at_index(self, index: usize) -> Self {
        self.within(&format!("[{index}]"))
    }

    /// Prepends the entry `key` of a map.
    ///
    /// The key is escaped as in a Cedar string, and truncated when it is very long.
    #[must_use]
    pub fn at_key(self, key: &str) -> Self {
        const MAX_KEY_CHARS: usize = 128;
        let shown: String = key.chars().take(MAX_KEY_CHARS).collect();
        let ellipsis = if shown.len() < key.len() { "…" } else { "" };
        self.within(&format!("[\"{}{ellipsis}\"]", shown.escape_debug()))
    }

    /// Returns the text of the path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error for an invalid query, with the field at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct InvalidQuery {
    /// The field of the request.
    pub field: FieldPath,
    /// The fault of the field.
    pub problem: Problem,
}

impl InvalidQuery {
    /// Creates an error about the value itself; callers prepend its path.
    #[must_use]
    pub fn here(problem: Problem) -> Self {
        Self {
            field: FieldPath::default(),
            problem,
        }
    }

    /// Creates an error about the field `name` of the value.
    #[must_use]
    pub fn field(name: &str, problem: Problem) -> Self {
        Self {
            field: FieldPath::field(name),
            problem,
        }
    }

    /// Prepends the field `name` to the path.
    #[must_use]
    pub fn within(self, name: &str) -> Self {
        Self {
            field: self.field.within(name),
            ..self
        }
    }

    /// Prepends the item `index` to the path.
    #[must_use]
    pub fn at_index(self, index: usize) -> Self {
        Self {
            field: self.field.at_index(index),
            ..self
        }
    }

    /// Prepends the entry `key` to the path.
    #[must_use]
    pub fn at_key(self, key: &str) -> Self {
        Self {
            field: self.field.at_key(key),
            ..self
        }
    }
}

/// The fault of a field in a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A required field is missing.
    #[error("is missing")]
    Missing,
    /// The request has no identity, and no anonymous principal is configured.
    #[error("is missing, and this service accepts no anonymous requests")]
    NoIdentity,
    /// The entity type is empty.
    #[error("is empty; an entity type is needed, such as `User`")]
    EmptyType,
    /// The id is not set. An id that is set may be empty.
    #[error("is not set; an id may be empty but must be set")]
    UnsetId,
    /// The value has no kind.
    #[error(
        "has no kind; set one of bool, long, string, entity, set, record, decimal, ip, datetime, duration"
    )]
    UnsetKind,
    /// The text is not a valid entity type name.
    #[error("`{text}` is not an entity type name")]
    TypeName {
        /// The text that was sent, truncated when very long.
        text: String,
    },
    /// The schema does not declare the entity type.
    #[error("entity type `{type_name}` is not declared in the schema")]
    UnknownType {
        /// The type that was sent.
        type_name: String,
    },
    /// The schema does not declare the action.
    #[error("action `{action}` is not declared in the schema")]
    UnknownAction {
        /// The action that was sent.
        action: String,
    },
    /// The schema does not allow the type for this action.
    #[error("{message}")]
    NotApplicable {
        /// Cedar's error.
        message: String,
    },
    /// The value does not conform to the schema.
    #[error("{message}")]
    SchemaMismatch {
        /// Cedar's error.
        message: String,
    },
    /// The text is not a valid value of the extension type.
    #[error("not a valid {type_name}: {message}")]
    ExtensionValue {
        /// `decimal`, `ip`, `datetime` or `duration`.
        type_name: &'static str,
        /// Cedar's error.
        message: String,
    },
    /// Values are nested too deeply.
    #[error("is nested deeper than {limit} levels")]
    TooDeep {
        /// The maximum nesting.
        limit: usize,
    },
    /// Two entities have the same uid.
    #[error("`{uid}` is sent twice")]
    DuplicateEntity {
        /// The uid that is sent twice.
        uid: String,
    },
    /// The uid is the token's principal, an entity that the token names, or an ancestor of one.
    #[error(
        "`{uid}` is set by the token, or an ancestor of such an entity; a request cannot redefine it"
    )]
    ClaimedEntity {
        /// The uid that was sent.
        uid: String,
    },
    /// The uid is the anonymous principal or an ancestor of it, and the caller may not redefine it.
    #[error(
        "`{uid}` is the anonymous principal, or an ancestor of it; a caller that may not name principals cannot redefine it"
    )]
    AnonymousEntity {
        /// The uid that was sent.
        uid: String,
    },
    /// The entity is its own ancestor.
    #[error("`{uid}` is its own ancestor")]
    Cycle {
        /// An entity on the cycle.
        uid: String,
    },
    /// The entity is an action; actions come from the schema only.
    #[error("`{type_name}` is an action type; a request cannot send actions")]
    ActionEntity {
        /// The type that was sent.
        type_name: String,
    },
    /// `--request-entity-types` does not list the type.
    #[error("this service accepts no request entities of type `{type_name}`")]
    TypeNotAccepted {
        /// The type that was sent.
        type_name: String,
    },
    /// The hierarchy of the request's entities takes too many steps to follow.
    #[error("the hierarchy of these entities takes more than {limit} steps to follow")]
    HierarchyTooLarge {
        /// The maximum number of steps.
        limit: usize,
    },
    /// The entity has too many ancestors.
    #[error("`{uid}` would have more than {limit} ancestors")]
    TooManyAncestors {
        /// The entity.
        uid: String,
        /// The maximum number of ancestors.
        limit: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_paths_use_proto_names() {
        let path = FieldPath::default()
            .at_index(2)
            .within("set")
            .at_key("x")
            .within("record")
            .at_key("owner")
            .within("attributes")
            .at_index(3)
            .within("entities");
        assert_eq!(
            path.as_str(),
            r#"entities[3].attributes["owner"].record["x"].set[2]"#
        );
        assert_eq!(
            FieldPath::field("type").within("principal").as_str(),
            "principal.type"
        );
    }
}
