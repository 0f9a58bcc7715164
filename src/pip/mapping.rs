//! Maps an issuer's claims to Cedar: the principal, its attributes and its parents.
//!
//! Nothing here verifies a token, or checks the result against the schema.

use std::collections::BTreeMap;
use std::fmt;

use super::json::{Json, Object};
use super::numeric_date::NumericDate;
use super::rejection::{RejectionReason, TokenRejection};
use crate::pdp::query::{Claimed, StoredPrincipal, Uid, Value};

/// Most members of a claim that is a list.
const MAX_MEMBERS: usize = 1_000;

/// The path to a claim: its name, or the names of the members that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimPath(pub(super) Vec<String>);

impl ClaimPath {
    fn find<'a>(&self, claims: &'a Object) -> Option<&'a Json> {
        let (last, outer) = self.0.split_last()?;
        let mut outer = outer.iter();
        let members = outer.try_fold(claims, |members, name| members.get(name)?.as_object())?;
        // A null claim counts as missing.
        members.get(last).filter(|claim| !claim.is_null())
    }

    fn rejection(&self, problem: impl fmt::Display) -> TokenRejection {
        TokenRejection::new(RejectionReason::Claims, format!("claim `{self}` {problem}"))
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimRef {
    pub(super) path: ClaimPath,
    /// Accepts tokens without this claim.
    pub(super) optional: bool,
}

impl ClaimRef {
    fn find<'a>(&self, claims: &'a Object) -> Result<Option<&'a Json>, TokenRejection> {
        match self.path.find(claims) {
            None if !self.optional => Err(self.path.rejection("is missing")),
            found => Ok(found),
        }
    }
}

/// The type of a claim and the Cedar value that it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClaimKind {
    Bool,
    Long,
    String,
    /// A list of strings, or one string.
    Strings,
    /// One string of words separated by spaces, as in `scope`.
    Words,
    Entity(String),
    /// A list of ids, or one id.
    Entities(String),
    Decimal,
    Ip,
    /// Seconds since 1970, or a string as Cedar writes it.
    Datetime,
    /// Seconds, or a string as Cedar writes it.
    Duration,
}

/// A claim that becomes an attribute of the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AttributeMapping {
    pub(super) claim: ClaimRef,
    pub(super) kind: ClaimKind,
}

/// A claim that becomes parents of the principal, all of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParentMapping {
    pub(super) claim: ClaimRef,
    pub(super) type_name: String,
    /// A prefix that is added to each id.
    pub(super) prefix: String,
}

/// The rules that turn an issuer's claims into the principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) type_name: String,
    pub(super) id: ClaimPath,
    /// A prefix that is added to the id, so that principals of different issuers stay distinct.
    pub(super) id_prefix: String,
    pub(super) attributes: BTreeMap<String, AttributeMapping>,
    pub(super) parents: Vec<ParentMapping>,
    pub(super) stored: StoredPrincipal,
}

impl Mapping {
    /// Returns the principal's id as the issuer writes it, without the prefix.
    pub(super) fn id<'a>(&self, claims: &'a Object) -> Option<&'a str> {
        let id = self.id.find(claims)?.as_str()?;
        (!id.is_empty()).then_some(id)
    }

    /// Returns the principal that `claims` name, with its attributes and parents.
    pub(super) fn apply(&self, claims: &Object) -> Result<(Uid, Claimed), TokenRejection> {
        let Some(id) = self.id(claims) else {
            return Err(self.id.rejection(match self.id.find(claims) {
                None => "is missing",
                Some(_) => "must be non-empty text",
            }));
        };
        let principal = Uid::new(self.type_name.clone(), format!("{}{id}", self.id_prefix));
        let claimed = Claimed {
            attributes: self.attributes(claims)?.into(),
            parents: self.parents(claims)?,
            stored: self.stored,
        };
        Ok((principal, claimed))
    }

    fn attributes(&self, claims: &Object) -> Result<BTreeMap<String, Value>, TokenRejection> {
        let mut attributes = BTreeMap::new();
        for (name, AttributeMapping { claim, kind }) in &self.attributes {
            if let Some(found) = claim.find(claims)? {
                let value = kind
                    .to_value(found)
                    .ok_or_else(|| claim.path.rejection(format_args!("is not {kind}")))?;
                attributes.insert(name.clone(), value);
            }
        }
        Ok(attributes)
    }

    fn parents(&self, claims: &Object) -> Result<Vec<Uid>, TokenRejection> {
        let mut parents: Vec<Uid> = Vec::new();
        for ParentMapping {
            claim,
            type_name,
            prefix,
        } in &self.parents
        {
            let Some(found) = claim.find(claims)? else {
                continue;
            };
            let ids = strings(found)
                .filter(|ids| ids.iter().all(|id| !id.is_empty()))
                .ok_or_else(|| claim.path.rejection("is not an id, or a list of ids"))?;
            parents.extend(
                ids.into_iter()
                    .map(|id| Uid::new(type_name.clone(), format!("{prefix}{id}"))),
            );
        }
        // Order and repetition mean nothing, and would give equal requests different cache keys.
        parents.sort_unstable();
        parents.dedup();
        Ok(parents)
    }
}

impl ClaimKind {
    /// Converts a claim. Returns `None` if it is not of this kind.
    fn to_value(&self, claim: &Json) -> Option<Value> {
        let text = |text: &str| Value::String(text.to_owned());
        let uid = |type_name: &str, id: &str| {
            (!id.is_empty()).then(|| Value::Entity(Uid::new(type_name, id)))
        };
        match (self, claim) {
            (Self::Bool, Json::Bool(value)) => Some(Value::Bool(*value)),
            (Self::Long, Json::Number(number)) => number.as_i64().map(Value::Long),
            (Self::String, Json::String(text)) => Some(Value::String(text.clone())),
            (Self::Strings, claim) => {
                let strings = strings(claim)?.into_iter();
                Some(Value::Set(strings.map(text).collect()))
            }
            (Self::Words, Json::String(words)) => {
                let words = words.split(' ').filter(|word| !word.is_empty());
                Some(Value::Set(words.map(text).collect()))
            }
            (Self::Entity(type_name), Json::String(id)) => uid(type_name, id),
            (Self::Entities(type_name), claim) => {
                let ids = strings(claim)?.into_iter().map(|id| uid(type_name, id));
                ids.collect::<Option<_>>().map(Value::Set)
            }
            (Self::Decimal, Json::String(text)) => Some(Value::Decimal(text.clone())),
            (Self::Ip, Json::String(text)) => Some(Value::Ip(text.clone())),
            (Self::Datetime, Json::String(text)) => Some(Value::Datetime(text.clone())),
            (Self::Datetime, Json::Number(_)) => {
                let date = NumericDate::from_claim(claim)?;
                Some(Value::Datetime(date.to_rfc3339()))
            }
            (Self::Duration, Json::String(text)) => Some(Value::Duration(text.clone())),
            (Self::Duration, Json::Number(number)) => {
                let seconds = number.as_i64()?;
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

impl fmt::Display for ClaimKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "true or false",
            Self::Long => "a 64-bit integer",
            Self::String => "text",
            Self::Strings => "text, or a list of texts",
            Self::Words => "words separated by spaces",
            Self::Entity(_) => "the id of an entity",
            Self::Entities(_) => "an id, or a list of ids",
            Self::Decimal => "the text of a decimal",
            Self::Ip => "the text of an IP address",
            Self::Datetime => "a point in time",
            Self::Duration => "a duration",
        })
    }
}

/// Returns the strings of a claim that is a string, or a list of strings of limited length.
fn strings(claim: &Json) -> Option<Vec<&str>> {
    let Json::Array(members) = claim else {
        return Some(vec![claim.as_str()?]);
    };
    if members.len() > MAX_MEMBERS {
        return None;
    }
    members.iter().map(Json::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pip::json::parse_object;

    fn path(names: &[&str]) -> ClaimPath {
        ClaimPath(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn claim(names: &[&str]) -> ClaimRef {
        ClaimRef {
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

    fn apply(mapping: &Mapping, claims: &str) -> Result<(Uid, Claimed), TokenRejection> {
        mapping.apply(&parse_object(claims.as_bytes()).unwrap())
    }

    #[track_caller]
    fn check_attribute(kind: ClaimKind, text: &str, value: Option<Value>) {
        let mapping = Mapping {
            attributes: BTreeMap::from([(
                "a".to_owned(),
                AttributeMapping {
                    claim: claim(&["c"]),
                    kind,
                },
            )]),
            ..mapping()
        };
        let applied = apply(&mapping, &format!(r#"{{"sub": "s", "c": {text}}}"#));
        match value {
            Some(value) => {
                let (_, claimed) = applied.unwrap();
                assert_eq!(claimed.attributes.first(), Some(&("a".to_owned(), value)));
            }
            None => assert_eq!(
                applied.unwrap_err().reason,
                RejectionReason::Claims,
                "{text}"
            ),
        }
    }

    #[test]
    fn claim_becomes_value_of_its_kind() {
        let text = |text: &str| Value::String(text.to_owned());
        check_attribute(ClaimKind::Bool, "true", Some(Value::Bool(true)));
        check_attribute(ClaimKind::Bool, "\"true\"", None);
        check_attribute(ClaimKind::Long, "-7", Some(Value::Long(-7)));
        check_attribute(ClaimKind::Long, "7.0", None);
        check_attribute(ClaimKind::Long, "9223372036854775808", None);
        check_attribute(ClaimKind::String, "\"x\"", Some(text("x")));
        check_attribute(ClaimKind::String, "1", None);
        check_attribute(ClaimKind::String, "null", None);
        check_attribute(
            ClaimKind::Strings,
            "\"x\"",
            Some(Value::Set(vec![text("x")])),
        );
        check_attribute(
            ClaimKind::Strings,
            "[\"x\", \"y\"]",
            Some(Value::Set(vec![text("x"), text("y")])),
        );
        check_attribute(ClaimKind::Strings, "[]", Some(Value::Set(vec![])));
        check_attribute(ClaimKind::Strings, "[\"x\", 1]", None);
        check_attribute(
            ClaimKind::Words,
            "\"a  b\"",
            Some(Value::Set(vec![text("a"), text("b")])),
        );
        check_attribute(
            ClaimKind::Entity("T".to_owned()),
            "\"x\"",
            Some(Value::Entity(Uid::new("T", "x"))),
        );
        check_attribute(ClaimKind::Entity("T".to_owned()), "\"\"", None);
        check_attribute(
            ClaimKind::Entities("T".to_owned()),
            "[\"x\"]",
            Some(Value::Set(vec![Value::Entity(Uid::new("T", "x"))])),
        );
        check_attribute(ClaimKind::Entities("T".to_owned()), "[\"\"]", None);
        check_attribute(
            ClaimKind::Datetime,
            "1728992100",
            Some(Value::Datetime("2024-10-15T11:35:00.000Z".to_owned())),
        );
        check_attribute(
            ClaimKind::Duration,
            "90",
            Some(Value::Duration("90s".to_owned())),
        );
    }

    #[test]
    fn parents_come_from_strings_and_lists() {
        let mapping = Mapping {
            id_prefix: "corp:".to_owned(),
            parents: vec![
                ParentMapping {
                    claim: claim(&["realm_access", "roles"]),
                    type_name: "Role".to_owned(),
                    prefix: "r/".to_owned(),
                },
                ParentMapping {
                    claim: ClaimRef {
                        optional: true,
                        ..claim(&["tenant"])
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
            let applied = apply(&mapping, claims);
            assert_eq!(
                applied.unwrap_err().reason,
                RejectionReason::Claims,
                "{claims}"
            );
        }
    }
}
