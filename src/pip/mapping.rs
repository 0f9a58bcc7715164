//! What an issuer's claims say in Cedar's terms: who the principal is, what is known of it, and
//! what it is in.
//!
//! Nothing here asks whether the claims are true, nor whether they fit the schema.

use std::collections::BTreeMap;
use std::fmt;

use super::json::{Json, Object};
use super::moment::Moment;
use super::refusal::{Reason, Refusal};
use crate::pdp::query::{Claimed, StoredPrincipal, Uid, Value};

/// The most members of one claim that is a list.
const MAX_MEMBERS: usize = 1_000;

/// Where a claim stands: its name, or the names that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimPath(pub(super) Vec<String>);

impl ClaimPath {
    fn find<'a>(&self, claims: &'a Object) -> Option<&'a Json> {
        let (last, before) = self.0.split_last()?;
        let mut members = claims;
        for name in before {
            match members.get(name)? {
                Json::Object(inner) => members = inner,
                Json::Null
                | Json::Bool(_)
                | Json::Integer(_)
                | Json::Float(_)
                | Json::String(_)
                | Json::Array(_) => return None,
            }
        }
        // A claim that is null says as much as one that is missing.
        members.get(last).filter(|claim| **claim != Json::Null)
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// A claim that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: ClaimPath,
    /// Whether a token may lack it.
    pub(super) optional: bool,
}

impl Wanted {
    fn find<'a>(&self, claims: &'a Object) -> Result<Option<&'a Json>, Refusal> {
        match self.path.find(claims) {
            None if !self.optional => Err(self.refused("is missing")),
            found => Ok(found),
        }
    }

    fn refused(&self, problem: impl fmt::Display) -> Refusal {
        Refusal::new(Reason::Claims, format!("claim `{}` {problem}", self.path))
    }
}

/// What becomes of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Long,
    String,
    /// A list of texts, or one text.
    Strings,
    /// One text with spaces between, as `scope` is.
    Words,
    Entity(String),
    /// A list of ids, or one id.
    Entities(String),
    Decimal,
    Ip,
    /// A number of seconds since 1970, or text as Cedar writes it.
    Datetime,
    /// A number of seconds, or text as Cedar writes it.
    Duration,
}

/// An attribute of the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub(super) wanted: Wanted,
    pub(super) kind: Kind,
}

/// Parents of the principal, all of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parents {
    pub(super) wanted: Wanted,
    pub(super) type_name: String,
    /// Stands before each id.
    pub(super) prefix: String,
}

/// How an issuer's claims become the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) type_name: String,
    pub(super) id: ClaimPath,
    /// Stands before the id, to tell apart what several issuers call by one name.
    pub(super) id_prefix: String,
    pub(super) attributes: BTreeMap<String, Attribute>,
    pub(super) parents: Vec<Parents>,
    pub(super) stored: StoredPrincipal,
}

impl Mapping {
    /// What the issuer calls the principal: its id, without what stands before it.
    pub(super) fn id<'a>(&self, claims: &'a Object) -> Option<&'a str> {
        match self.id.find(claims) {
            Some(Json::String(text)) if !text.is_empty() => Some(text),
            Some(_) | None => None,
        }
    }

    /// The principal that `claims` name, and what they say of it.
    pub(super) fn apply(&self, claims: &Object) -> Result<(Uid, Claimed), Refusal> {
        let id = Wanted {
            path: self.id.clone(),
            optional: false,
        };
        id.find(claims)?;
        let id = match self.id(claims) {
            Some(text) => format!("{}{text}", self.id_prefix),
            None => return Err(id.refused("is not a text that could be an id")),
        };
        let principal = Uid::new(self.type_name.clone(), id);
        let mut attributes = BTreeMap::new();
        for (name, Attribute { wanted, kind }) in &self.attributes {
            if let Some(claim) = wanted.find(claims)? {
                let value = kind
                    .read(claim)
                    .ok_or_else(|| wanted.refused(format_args!("is not {kind}")))?;
                attributes.insert(name.clone(), value);
            }
        }
        let mut parents: Vec<Uid> = Vec::new();
        for Parents {
            wanted,
            type_name,
            prefix,
        } in &self.parents
        {
            let Some(claim) = wanted.find(claims)? else {
                continue;
            };
            let ids = texts(claim)
                .filter(|ids| ids.iter().all(|id| !id.is_empty()))
                .ok_or_else(|| wanted.refused("is not an id, or a list of ids"))?;
            parents.extend(
                ids.into_iter()
                    .map(|id| Uid::new(type_name.clone(), format!("{prefix}{id}"))),
            );
        }
        // Order and repetition mean nothing, and would make two of one for the cache.
        parents.sort_unstable();
        parents.dedup();
        let claimed = Claimed {
            attributes: attributes.into(),
            parents,
            stored: self.stored,
        };
        Ok((principal, claimed))
    }
}

impl Kind {
    fn read(&self, claim: &Json) -> Option<Value> {
        let uid = |type_name: &str, id: &str| Value::Entity(Uid::new(type_name, id));
        match (self, claim) {
            (Self::Bool, Json::Bool(value)) => Some(Value::Bool(*value)),
            (Self::Long, Json::Integer(value)) => Some(Value::Long(*value)),
            (Self::String, Json::String(text)) => Some(Value::String(text.clone())),
            (Self::Strings, claim) => {
                let texts = texts(claim)?.into_iter();
                Some(Value::Set(
                    texts.map(|text| Value::String(text.to_owned())).collect(),
                ))
            }
            (Self::Words, Json::String(text)) => {
                let words = text.split(' ').filter(|word| !word.is_empty());
                Some(Value::Set(
                    words.map(|word| Value::String(word.to_owned())).collect(),
                ))
            }
            (Self::Entity(type_name), Json::String(id)) if !id.is_empty() => {
                Some(uid(type_name, id))
            }
            (Self::Entities(type_name), claim) => {
                let ids = texts(claim)?;
                if ids.iter().any(|id| id.is_empty()) {
                    return None;
                }
                Some(Value::Set(
                    ids.into_iter().map(|id| uid(type_name, id)).collect(),
                ))
            }
            (Self::Decimal, Json::String(text)) => Some(Value::Decimal(text.clone())),
            (Self::Ip, Json::String(text)) => Some(Value::Ip(text.clone())),
            (Self::Datetime, Json::String(text)) => Some(Value::Datetime(text.clone())),
            (Self::Datetime, Json::Integer(_) | Json::Float(_)) => {
                Some(Value::Datetime(Moment::of_claim(claim)?.to_rfc3339()))
            }
            (Self::Duration, Json::String(text)) => Some(Value::Duration(text.clone())),
            (Self::Duration, Json::Integer(seconds)) => {
                Some(Value::Duration(format!("{seconds}s")))
            }
            (
                Self::Bool
                | Self::Long
                | Self::String
                | Self::Words
                | Self::Entity(_)
                | Self::Decimal
                | Self::Ip
                | Self::Datetime
                | Self::Duration,
                _,
            ) => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "true or false",
            Self::Long => "a whole number of 64 bits",
            Self::String => "text",
            Self::Strings => "text, or a list of texts",
            Self::Words => "text with spaces between words",
            Self::Entity(_) => "the id of an entity",
            Self::Entities(_) => "an id, or a list of ids",
            Self::Decimal => "the text of a decimal",
            Self::Ip => "the text of an IP address",
            Self::Datetime => "a point in time",
            Self::Duration => "a duration",
        })
    }
}

fn texts(claim: &Json) -> Option<Vec<&str>> {
    match claim {
        Json::String(text) => Some(vec![text]),
        Json::Array(members) if members.len() <= MAX_MEMBERS => members
            .iter()
            .map(|member| match member {
                Json::String(text) => Some(text.as_str()),
                Json::Null
                | Json::Bool(_)
                | Json::Integer(_)
                | Json::Float(_)
                | Json::Array(_)
                | Json::Object(_) => None,
            })
            .collect(),
        Json::Array(_)
        | Json::Null
        | Json::Bool(_)
        | Json::Integer(_)
        | Json::Float(_)
        | Json::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pip::json;

    fn path(names: &[&str]) -> ClaimPath {
        ClaimPath(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn wanted(names: &[&str]) -> Wanted {
        Wanted {
            path: path(names),
            optional: false,
        }
    }

    fn mapping() -> Mapping {
        Mapping {
            type_name: "User".to_owned(),
            id: path(&["sub"]),
            id_prefix: String::new(),
            attributes: BTreeMap::new(),
            parents: Vec::new(),
            stored: StoredPrincipal::Join,
        }
    }

    fn apply(mapping: &Mapping, claims: &str) -> Result<(Uid, Claimed), Refusal> {
        mapping.apply(&json::object(claims.as_bytes()).unwrap())
    }

    #[track_caller]
    fn reads(kind: Kind, claim: &str, value: Option<Value>) {
        let mapping = Mapping {
            attributes: BTreeMap::from([(
                "a".to_owned(),
                Attribute {
                    wanted: wanted(&["c"]),
                    kind,
                },
            )]),
            ..mapping()
        };
        let read = apply(&mapping, &format!(r#"{{"sub": "s", "c": {claim}}}"#));
        match value {
            Some(value) => {
                let (_, claimed) = read.unwrap();
                assert_eq!(claimed.attributes.iter().next(), Some(("a", &value)));
            }
            None => assert_eq!(read.unwrap_err().reason, Reason::Claims, "{claim}"),
        }
    }

    #[test]
    fn a_claim_becomes_a_value_of_the_kind_that_was_asked_for_or_is_refused() {
        let text = |text: &str| Value::String(text.to_owned());
        reads(Kind::Bool, "true", Some(Value::Bool(true)));
        reads(Kind::Bool, "\"true\"", None);
        reads(Kind::Long, "-7", Some(Value::Long(-7)));
        reads(Kind::Long, "7.0", None);
        reads(Kind::Long, "9223372036854775808", None);
        reads(Kind::String, "\"x\"", Some(text("x")));
        reads(Kind::String, "1", None);
        reads(Kind::String, "null", None);
        reads(Kind::Strings, "\"x\"", Some(Value::Set(vec![text("x")])));
        reads(
            Kind::Strings,
            "[\"x\", \"y\"]",
            Some(Value::Set(vec![text("x"), text("y")])),
        );
        reads(Kind::Strings, "[]", Some(Value::Set(vec![])));
        reads(Kind::Strings, "[\"x\", 1]", None);
        reads(
            Kind::Words,
            "\"a  b\"",
            Some(Value::Set(vec![text("a"), text("b")])),
        );
        reads(
            Kind::Entity("T".to_owned()),
            "\"x\"",
            Some(Value::Entity(Uid::new("T", "x"))),
        );
        reads(Kind::Entity("T".to_owned()), "\"\"", None);
        reads(
            Kind::Entities("T".to_owned()),
            "[\"x\"]",
            Some(Value::Set(vec![Value::Entity(Uid::new("T", "x"))])),
        );
        reads(Kind::Entities("T".to_owned()), "[\"\"]", None);
        reads(
            Kind::Datetime,
            "1728992100",
            Some(Value::Datetime("2024-10-15T11:35:00.000Z".to_owned())),
        );
        reads(
            Kind::Duration,
            "90",
            Some(Value::Duration("90s".to_owned())),
        );
    }

    #[test]
    fn parents_come_from_texts_and_lists_at_any_place() {
        let mapping = Mapping {
            id_prefix: "corp:".to_owned(),
            parents: vec![
                Parents {
                    wanted: wanted(&["realm_access", "roles"]),
                    type_name: "Role".to_owned(),
                    prefix: "r/".to_owned(),
                },
                Parents {
                    wanted: Wanted {
                        optional: true,
                        ..wanted(&["tenant"])
                    },
                    type_name: "Tenant".to_owned(),
                    prefix: String::new(),
                },
            ],
            ..mapping()
        };
        let (principal, claimed) = apply(
            &mapping,
            r#"{"sub": "s", "realm_access": {"roles": ["b", "a", "b"]}, "tenant": "t"}"#,
        )
        .unwrap();
        assert_eq!(principal, Uid::new("User", "corp:s"));
        assert_eq!(
            claimed.parents,
            [
                Uid::new("Role", "r/a"),
                Uid::new("Role", "r/b"),
                Uid::new("Tenant", "t")
            ]
        );
        for claims in [
            r#"{"sub": "s"}"#,
            r#"{"sub": "s", "realm_access": []}"#,
            r#"{"sub": "s", "realm_access": {"roles": {"a": 1}}}"#,
            r#"{"sub": "s", "realm_access": {"roles": [""]}}"#,
            r#"{"sub": "", "realm_access": {"roles": []}}"#,
            r#"{"sub": 7, "realm_access": {"roles": []}}"#,
            r#"{"realm_access": {"roles": []}}"#,
        ] {
            let refused = apply(&mapping, claims);
            assert_eq!(refused.unwrap_err().reason, Reason::Claims, "{claims}");
        }
    }
}
