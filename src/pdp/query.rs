//! What is asked: principal, action, resource, context, and the entities known to this request only.
//!
//! These are plain values without Cedar types. A door builds a [`Query`] from whatever its wire
//! carries; the cache is keyed by it; only [`authorize`](crate::pdp::evaluate::authorize()) turns it into
//! what Cedar evaluates, and only when it must.

use std::fmt;
use std::sync::Arc;

/// An entity's identity: its type and its id. Neither has been checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid {
    /// The type's name, namespaces included: `Shop::Order`.
    pub type_name: String,
    /// The id: any Unicode text, the empty one and control characters included.
    pub id: String,
}

impl Uid {
    /// The uid of this type and id.
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

/// The longest written uid that is parsed, in bytes: Cedar's parser is not for text without bound.
pub const MAX_UID_BYTES: usize = 4_096;

/// Why a text is no uid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUid {
    /// Longer than any uid that is read.
    #[error("a uid has at most {most} bytes, not {0}", most = MAX_UID_BYTES)]
    TooLong(usize),
    /// Cedar does not read it.
    #[error("`{text}` is no uid such as `User::\"alice\"`: {reason}")]
    Syntax {
        /// What was written.
        text: String,
        /// The parser's reason.
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
    /// A set; order and repetition mean nothing.
    Set(Vec<Value>),
    /// A record, sorted by name and each name once.
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

/// Named values, sorted by name and each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record(Vec<(String, Value)>);

impl Record {
    /// The fields, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no field.
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

/// An entity that a request brings along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestEntity {
    /// Its identity.
    pub uid: Uid,
    /// What is known of it.
    pub attributes: Record,
    /// The entities it is directly in.
    pub parents: Vec<Uid>,
    /// Its tags.
    pub tags: Record,
}

/// What a verified token says of the principal that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// What it says of it.
    pub attributes: Record,
    /// The entities that it says it is directly in.
    pub parents: Vec<Uid>,
    /// What becomes of the stored entity of the same uid.
    pub stored: StoredPrincipal,
}

/// What becomes of a stored entity whose uid a token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredPrincipal {
    /// Attributes and parents of both; of one attribute the token's value. Tags are the stored ones.
    Join,
    /// The token's alone: the stored entity does not exist for this question.
    Replace,
    /// As [`Join`](Self::Join), and without a stored entity there is no answer.
    Require,
}

/// One question, parsed and not yet decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Who asks to act.
    pub principal: Uid,
    /// What is to be done.
    pub action: Uid,
    /// What it is to be done to.
    pub resource: Uid,
    /// The circumstances.
    pub context: Record,
    /// Entities that exist for this question only; they replace stored ones of the same uid.
    pub entities: Vec<RequestEntity>,
    /// What a token says of the principal; `None` when the principal was named.
    pub claimed: Option<Arc<Claimed>>,
    /// Whether the answer must say why.
    pub explain: bool,
}

/// A field of a request, in proto names, such as `entities[3].attributes["owner"].record["x"]`.
///
/// Built inside out and only when something is wrong: the place that finds the fault names it,
/// and each caller prepends where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldPath(String);

impl FieldPath {
    /// The field of this name.
    #[must_use]
    pub fn field(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// This path, inside the field `name`.
    #[must_use]
    pub fn within(self, name: &str) -> Self {
        match self.0.as_str() {
            "" => Self(name.to_owned()),
            path if path.starts_with('[') => Self(format!("{name}{path}")),
            path => Self(format!("{name}.{path}")),
        }
    }

    /// This path, inside the item `index` of a list.
    #[must_use]
    pub fn at_index(self, index: usize) -> Self {
        self.within(&format!("[{index}]"))
    }

    /// This path, inside the entry `key` of a map. The key is escaped as in a Cedar string, and
    /// cut off when it is longer than any that a person wrote.
    #[must_use]
    pub fn at_key(self, key: &str) -> Self {
        const LONGEST: usize = 128;
        let shown: String = key.chars().take(LONGEST).collect();
        let more = if shown.len() < key.len() { "…" } else { "" };
        self.within(&format!("[\"{}{more}\"]", shown.escape_debug()))
    }

    /// The path's text.
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

/// A query that cannot be decided as it stands, with the field to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct InvalidQuery {
    /// Which field of the request.
    pub field: FieldPath,
    /// What is wrong with it.
    pub problem: Problem,
}

impl InvalidQuery {
    /// A fault in this very value; callers prepend where the value stands.
    #[must_use]
    pub fn here(problem: Problem) -> Self {
        Self {
            field: FieldPath::default(),
            problem,
        }
    }

    /// A fault in the field `name` of this value.
    #[must_use]
    pub fn field(name: &str, problem: Problem) -> Self {
        Self {
            field: FieldPath::field(name),
            problem,
        }
    }

    /// The same fault, seen from outside the field `name`.
    #[must_use]
    pub fn within(self, name: &str) -> Self {
        Self {
            field: self.field.within(name),
            ..self
        }
    }

    /// The same fault, seen from outside item `index`.
    #[must_use]
    pub fn at_index(self, index: usize) -> Self {
        Self {
            field: self.field.at_index(index),
            ..self
        }
    }

    /// The same fault, seen from outside entry `key`.
    #[must_use]
    pub fn at_key(self, key: &str) -> Self {
        Self {
            field: self.field.at_key(key),
            ..self
        }
    }
}

/// What can be wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The field is required.
    #[error("is missing")]
    Missing,
    /// No identity was sent and no anonymous principal is configured.
    #[error("is missing, and this service takes no anonymous requests")]
    NoIdentity,
    /// An entity type is required.
    #[error("is empty; an entity type is needed, such as `User`")]
    EmptyType,
    /// The id was not set. (An id that is set and empty is legal.)
    #[error("is not set; an id may be empty but must be set")]
    UnsetId,
    /// A value without a kind.
    #[error(
        "has no kind; set one of bool, long, string, entity, set, record, decimal, ip, datetime, duration"
    )]
    UnsetKind,
    /// The type's name is not one that Cedar can have.
    #[error("`{text}` is not an entity type name")]
    TypeName {
        /// What was sent, shortened when very long.
        text: String,
    },
    /// The schema knows no such entity type.
    #[error("entity type `{type_name}` is not declared in the schema")]
    UnknownType {
        /// The type that was sent.
        type_name: String,
    },
    /// The schema knows no such action.
    #[error("action `{action}` is not declared in the schema")]
    UnknownAction {
        /// The action that was sent.
        action: String,
    },
    /// The schema does not allow this type here.
    #[error("{message}")]
    NotApplicable {
        /// What Cedar says of it.
        message: String,
    },
    /// The value does not fit the schema.
    #[error("{message}")]
    SchemaMismatch {
        /// What Cedar says of it.
        message: String,
    },
    /// The text is not a value of the extension type.
    #[error("not a valid {type_name}: {message}")]
    ExtensionValue {
        /// `decimal`, `ip`, `datetime` or `duration`.
        type_name: &'static str,
        /// What Cedar says of it.
        message: String,
    },
    /// Values within values, beyond the limit.
    #[error("is nested deeper than {limit} levels")]
    TooDeep {
        /// The deepest nesting that is taken.
        limit: usize,
    },
    /// The same uid was sent twice.
    #[error("`{uid}` is sent twice")]
    DuplicateEntity {
        /// The uid that is sent twice.
        uid: String,
    },
    /// The uid is the token's principal, an entity that the token names, or one that these are
    /// stored to be in.
    #[error(
        "`{uid}` is what the token tells of, or what that is in; a request cannot tell it anew"
    )]
    ClaimedEntity {
        /// The uid that was sent.
        uid: String,
    },
    /// The uid is who asks without an identity, or one that this is stored to be in, and the caller may
    /// not name principals.
    #[error(
        "`{uid}` is who asks, or what that is in; a caller that may name no principal cannot tell it anew"
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
    /// Actions come from the schema, never from a request.
    #[error("`{type_name}` is an action type; a request cannot bring actions")]
    ActionEntity {
        /// The type that was sent.
        type_name: String,
    },
    /// `--request-entity-types` does not list the type.
    #[error("this service takes no request entities of type `{type_name}`")]
    TypeNotAccepted {
        /// The type that was sent.
        type_name: String,
    },
    /// The request's entities together take too long to join the stored ones.
    #[error("the hierarchy of these entities takes more than {limit} steps to follow")]
    HierarchyTooLarge {
        /// The most steps that are taken.
        limit: usize,
    },
    /// More ancestors than the limit.
    #[error("`{uid}` would have more than {limit} ancestors")]
    TooManyAncestors {
        /// The entity.
        uid: String,
        /// The most that an entity may have.
        limit: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_path_reads_as_the_proto_does() {
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
