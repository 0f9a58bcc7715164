//! Evaluates simple conditions directly on the store, without Cedar's evaluator.
//!
//! Cedar's evaluator needs entities to be built for it, and copies every value that it touches.
//! Most conditions compare an attribute with a literal, or two uids. The interpreter decides only
//! what is certain: comparisons of two values of the same simple type. If an operation could fail,
//! or involves other values, it returns `None`, and Cedar alone evaluates the whole condition.

use std::cell::RefCell;
use std::collections::BTreeMap;

use cedar_policy_core::ast::{EntityUID, Literal, Value, ValueKind, Var};
use smallvec::SmallVec;
use smol_str::SmolStr;

use super::slicing::Bindings;
use crate::pdp::entities::interner::{TypeId, UidId};
use crate::pdp::entities::overlay::{Attribute, Attributes, Overlay};
use crate::pdp::entities::segment::{Stored, StoredRecord, StoredSet};
use crate::pdp::policies::bytecode::{BinaryOperator, Bytecode, Members, Node};
use crate::pdp::policies::scope::{RequestVariable, RequestVariables};

/// An evaluator of bytecode for one request.
pub(in crate::pdp) struct Interpreter<'a> {
    overlay: &'a Overlay<'a>,
    bindings: &'a Bindings,
    /// The attributes of the principal and the resource, which most conditions read; `None` if
    /// there is no such entity.
    prefetched: [(Option<UidId>, Option<Attributes<'a>>); 2],
    /// The attributes that were read first, as most conditions read the same few again.
    cache: RefCell<SmallVec<[CachedAttribute<'a>; MAX_CACHED_ATTRIBUTES]>>,
}

/// An entity, the name of an attribute, and its value, if there are such an entity and attribute.
type CachedAttribute<'a> = (UidId, &'a str, Option<Attribute<'a>>);

/// Most cached attributes; a linear search through more would take longer than a new lookup.
const MAX_CACHED_ATTRIBUTES: usize = 8;

/// A value in the form of its source, without copying.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Bool(bool),
    Long(i64),
    Text(&'a str),
    Uid(Uid<'a>),
    Set(Set<'a>),
    Record(Record<'a>),
}

/// A uid, as an id or as Cedar's type.
#[derive(Clone, Copy)]
enum Uid<'a> {
    Interned(UidId),
    /// A uid of Cedar's type, which may be interned too.
    Cedar(&'a EntityUID),
}

/// A set, encoded in a segment or as Cedar's type.
#[derive(Clone, Copy)]
enum Set<'a> {
    Stored(StoredSet<'a>),
    Cedar(&'a cedar_policy_core::ast::Set),
}

/// A record, encoded in a segment or as Cedar's type.
#[derive(Clone, Copy)]
enum Record<'a> {
    Stored(StoredRecord<'a>),
    Cedar(&'a BTreeMap<SmolStr, Value>),
}

impl<'a> Operand<'a> {
    fn from_stored(value: Stored<'a>) -> Option<Self> {
        match value {
            Stored::Bool(value) => Some(Self::Bool(value)),
            Stored::Long(value) => Some(Self::Long(value)),
            Stored::Text(text) => Some(Self::Text(text)),
            Stored::Uid(uid) => Some(Self::Uid(Uid::Interned(uid))),
            Stored::Set(set) => Some(Self::Set(Set::Stored(set))),
            Stored::Record(record) => Some(Self::Record(Record::Stored(record))),
            Stored::Extension => None,
        }
    }

    fn from_cedar(value: &'a Value) -> Option<Self> {
        match &value.value {
            ValueKind::Lit(Literal::Bool(value)) => Some(Self::Bool(*value)),
            ValueKind::Lit(Literal::Long(value)) => Some(Self::Long(*value)),
            ValueKind::Lit(Literal::String(text)) => Some(Self::Text(text)),
            ValueKind::Lit(Literal::EntityUID(uid)) => Some(Self::Uid(Uid::Cedar(uid))),
            ValueKind::Set(set) => Some(Self::Set(Set::Cedar(set))),
            ValueKind::Record(record) => Some(Self::Record(Record::Cedar(record))),
            ValueKind::ExtensionValue(_) => None,
        }
    }
}

impl<'a> Interpreter<'a> {
    pub(in crate::pdp) fn new(overlay: &'a Overlay<'a>, bindings: &'a Bindings) -> Self {
        let RequestVariables {
            principal,
            action: _,
            resource,
        } = &bindings.variables;
        // Both lookups start before either is used, so that their memory accesses overlap.
        let prefetched = [principal.uid, resource.uid]
            .map(|uid| (uid, uid.and_then(|uid| overlay.attributes(uid))));
        Self {
            overlay,
            bindings,
            prefetched,
            cache: RefCell::default(),
        }
    }

    /// Evaluates `condition`; `None` if Cedar must evaluate it.
    ///
    /// Recurses as deep as the condition is nested.
    pub(in crate::pdp) fn eval(&self, condition: Bytecode<'a>) -> Option<bool> {
        match condition.node() {
            Node::Bool(value) => Some(value),
            Node::Attribute(name, of) => {
                let Operand::Bool(value) = self.attribute(name, of)? else {
                    return None;
                };
                Some(value)
            }
            Node::Not(operand) => self.eval(operand).map(|eval| !eval),
            Node::Binary(BinaryOperator::And, left, right) => match self.eval(left)? {
                true => self.eval(right),
                false => Some(false),
            },
            Node::Binary(BinaryOperator::Or, left, right) => match self.eval(left)? {
                true => Some(true),
                false => self.eval(right),
            },
            Node::Binary(BinaryOperator::Equal, left, right) => {
                self.equal(self.value(left)?, self.value(right)?)
            }
            Node::Binary(BinaryOperator::Less, left, right) => {
                let (left, right) = self.long_operands(left, right)?;
                Some(left < right)
            }
            Node::Binary(BinaryOperator::LessOrEqual, left, right) => {
                let (left, right) = self.long_operands(left, right)?;
                Some(left <= right)
            }
            Node::Binary(BinaryOperator::Contains, left, right) => {
                let Operand::Set(set) = self.value(left)? else {
                    return None;
                };
                self.contains(set, self.value(right)?)
            }
            Node::In(left, members) => self.is_in(left, members),
            Node::Has(name, of) => self.has(name, of),
            Node::Is(ty, of) => Some(self.type_of(self.uid(of)?) == Some(ty)),
            Node::Like(pattern, of) => {
                let Operand::Text(text) = self.value(of)? else {
                    return None;
                };
                Some(pattern.matches(text))
            }
            Node::Fallback | Node::Long(_) | Node::Text(_) | Node::Uid(_) | Node::Variable(_) => {
                None
            }
        }
    }

    /// Returns both values, if they are integers.
    fn long_operands(&self, left: Bytecode<'a>, right: Bytecode<'a>) -> Option<(i64, i64)> {
        let (Operand::Long(left), Operand::Long(right)) = (self.value(left)?, self.value(right)?)
        else {
            return None;
        };
        Some((left, right))
    }

    /// Returns the value of `node`, if it is a uid.
    fn uid(&self, node: Bytecode<'a>) -> Option<Uid<'a>> {
        let Operand::Uid(uid) = self.value(node)? else {
            return None;
        };
        Some(uid)
    }

    /// Returns the value of `node`, if it exists and needs no computation.
    fn value(&self, node: Bytecode<'a>) -> Option<Operand<'a>> {
        match node.node() {
            Node::Bool(value) => Some(Operand::Bool(value)),
            Node::Long(value) => Some(Operand::Long(value)),
            Node::Text(text) => Some(Operand::Text(text)),
            Node::Uid(uid) => Some(Operand::Uid(Uid::Interned(uid))),
            Node::Variable(var) => {
                let bindings = self.bindings;
                let variables = &bindings.variables;
                let uid = |variable: &RequestVariable, uid: &'a EntityUID| {
                    let uid = variable.uid.map_or(Uid::Cedar(uid), Uid::Interned);
                    Some(Operand::Uid(uid))
                };
                match var {
                    Var::Principal => uid(&variables.principal, &bindings.principal),
                    Var::Action => uid(&variables.action, &bindings.action),
                    Var::Resource => uid(&variables.resource, &bindings.resource),
                    Var::Context => Some(Operand::Record(Record::Cedar(&bindings.context))),
                }
            }
            Node::Attribute(name, of) => self.attribute(name, of),
            Node::Fallback
            | Node::Has(..)
            | Node::Is(..)
            | Node::Like(..)
            | Node::Not(_)
            | Node::Binary(..)
            | Node::In(..) => None,
        }
    }

    /// Returns the attribute or field `name` of `holder`, if it has one.
    fn attribute(&self, name: &'a str, holder: Bytecode<'a>) -> Option<Operand<'a>> {
        match self.value(holder)? {
            Operand::Uid(uid) => match self.entity_attribute(self.id_of(uid)?, name)? {
                Attribute::Stored(value) => Operand::from_stored(value),
                Attribute::Request(value) => Operand::from_cedar(value),
            },
            Operand::Record(Record::Stored(record)) => Operand::from_stored(record.get(name)?),
            Operand::Record(Record::Cedar(record)) => Operand::from_cedar(record.get(name)?),
            Operand::Bool(_) | Operand::Long(_) | Operand::Text(_) | Operand::Set(_) => None,
        }
    }

    /// Returns whether `holder` has the attribute or field `name`.
    fn has(&self, name: &'a str, holder: Bytecode<'a>) -> Option<bool> {
        match self.value(holder)? {
            // A uid without an entity has no attributes.
            Operand::Uid(uid) => {
                let uid = self.id_of(uid);
                let attribute = uid.and_then(|uid| self.entity_attribute(uid, name));
                Some(attribute.is_some())
            }
            Operand::Record(Record::Stored(record)) => Some(record.get(name).is_some()),
            Operand::Record(Record::Cedar(record)) => Some(record.contains_key(name)),
            Operand::Bool(_) | Operand::Long(_) | Operand::Text(_) | Operand::Set(_) => None,
        }
    }

    /// Returns the attribute `name` of an entity, if there are both.
    fn entity_attribute(&self, uid: UidId, name: &'a str) -> Option<Attribute<'a>> {
        let mut cache = self.cache.borrow_mut();
        let cached = cache
            .iter()
            .find(|(cached_uid, cached_name, _)| *cached_uid == uid && *cached_name == name);
        if let Some((_, _, attribute)) = cached {
            return *attribute;
        }
        let prefetched = self
            .prefetched
            .iter()
            .find(|(variable, _)| *variable == Some(uid));
        let attributes = match prefetched {
            Some((_, attributes)) => *attributes,
            None => self.overlay.attributes(uid),
        };
        let attribute = attributes.and_then(|attributes| attributes.get(name));
        if cache.len() < MAX_CACHED_ATTRIBUTES {
            cache.push((uid, name, attribute));
        }
        attribute
    }

    /// Compares two values, if they are of the same simple type.
    fn equal(&self, one: Operand<'a>, other: Operand<'a>) -> Option<bool> {
        match (one, other) {
            (Operand::Bool(one), Operand::Bool(other)) => Some(one == other),
            (Operand::Long(one), Operand::Long(other)) => Some(one == other),
            (Operand::Text(one), Operand::Text(other)) => Some(one == other),
            (Operand::Uid(one), Operand::Uid(other)) => Some(self.equal_uids(one, other)),
            (
                Operand::Bool(_)
                | Operand::Long(_)
                | Operand::Text(_)
                | Operand::Uid(_)
                | Operand::Set(_)
                | Operand::Record(_),
                _,
            ) => None,
        }
    }

    fn equal_uids(&self, one: Uid<'a>, other: Uid<'a>) -> bool {
        match (one, other) {
            (Uid::Interned(one), Uid::Interned(other)) => one == other,
            (Uid::Cedar(one), Uid::Cedar(other)) => one == other,
            (Uid::Interned(id), Uid::Cedar(uid)) | (Uid::Cedar(uid), Uid::Interned(id)) => {
                self.overlay.find_uid(uid) == Some(id)
            }
        }
    }

    /// Returns whether a set contains `member`, if that is certain.
    fn contains(&self, set: Set<'a>, member: Operand<'a>) -> Option<bool> {
        // Values of different simple types differ. Sets, records and extension values are not
        // compared here, so they leave the result uncertain.
        let mut is_uncertain = matches!(member, Operand::Set(_) | Operand::Record(_));
        let mut is_member = |value: Option<Operand<'a>>| match value {
            Some(Operand::Set(_) | Operand::Record(_)) | None => {
                is_uncertain = true;
                false
            }
            Some(value) => self.equal(value, member) == Some(true),
        };
        let found = match set {
            Set::Stored(set) => set
                .members()
                .any(|value| is_member(Operand::from_stored(value))),
            Set::Cedar(set) => set
                .iter()
                .any(|value| is_member(Operand::from_cedar(value))),
        };
        (found || !is_uncertain).then_some(found)
    }

    /// Evaluates `in`, if the left side is a variable of the request.
    fn is_in(&self, left: Bytecode<'a>, members: Members<'a>) -> Option<bool> {
        let left = self.uid(left)?;
        // No other entity's ancestors are known.
        let variable = self.bindings.variables.find(self.id_of(left)?)?;
        let mut found = false;
        for uid in members {
            // Every member is checked: one that is not a uid makes the operation an error.
            let uid = self.uid(uid)?;
            let id = self.id_of(uid);
            found |= self.equal_uids(left, uid)
                || id.is_some_and(|id| variable.ancestors.binary_search(&id).is_ok());
        }
        Some(found)
    }

    fn id_of(&self, uid: Uid<'a>) -> Option<UidId> {
        match uid {
            Uid::Interned(id) => Some(id),
            Uid::Cedar(uid) => self.overlay.find_uid(uid),
        }
    }

    /// Returns the id of a uid's type, if it is interned.
    fn type_of(&self, uid: Uid<'a>) -> Option<TypeId> {
        match uid {
            Uid::Interned(id) => self.overlay.type_of(id),
            Uid::Cedar(uid) => self.overlay.find_type(uid.entity_type()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use crate::pdp::evaluate::bind::bind;
    use crate::pdp::query::{Query, Record, Uid, Value};
    use crate::pdp::sources::{FileKind, SourceFile, Sources};
    use crate::pdp::{Settings, compile};

    const ENTITIES: &str = r#"[
{"uid": {"type": "User", "id": "ann"}, "attrs": {"level": 3, "name": "ann", "tags": ["a", "b"],
  "boss": {"__entity": {"type": "User", "id": "bob"}}, "home": {"city": "X"},
  "since": {"__extn": {"fn": "datetime", "arg": "2024-01-01"}}},
 "parents": [{"type": "Group", "id": "staff"}]},
{"uid": {"type": "User", "id": "bob"}, "attrs": {"level": 5}, "parents": []}
]"#;

    /// Evaluates `condition` for `User::"ann"` on `Doc::"d"`, with `n: 7` in the context.
    ///
    /// `Doc::"d"` is not stored.
    fn eval(condition: &str) -> Option<bool> {
        // The first operand is not one that the scope absorbs.
        let policy =
            format!("permit(principal, action, resource) when {{ true && ({condition}) }};");
        let files = [("p.cedar", policy.as_str()), ("entities.json", ENTITIES)];
        let files = files.map(|(path, text)| {
            let kind = FileKind::from_name(path).expect("a name that matches");
            SourceFile::in_memory(path.to_owned(), kind, Arc::from(text))
        });
        let sources = Sources::new(files.to_vec(), vec![], vec![]);
        let snapshot = compile(&sources, &Settings::default()).unwrap();
        let query = Query {
            principal: Uid::new("User", "ann"),
            action: Uid::new("Action", "read"),
            resource: Uid::new("Doc", "d"),
            context: Record::from(BTreeMap::from([("n".to_owned(), Value::Long(7))])),
            entities: Vec::new(),
            claimed: None,
            explain: false,
        };
        let bound = bind(&snapshot, &snapshot.entities, &query).unwrap();
        bound
            .candidates
            .first()
            .expect("an unconstrained policy")
            .satisfied
    }

    #[test]
    fn simple_comparisons_are_certain() {
        for (condition, expected) in [
            ("principal.level == 3 && context.n > 6", true),
            ("principal.level < 3 || context.n <= 6", false),
            (
                r#"principal.name == "ann" && principal.name like "a*""#,
                true,
            ),
            (
                r#"principal.boss == User::"bob" && principal.boss.level == 5"#,
                true,
            ),
            (r#"principal.home.city == "Y""#, false),
            (
                r#"principal.tags.contains("b") && !principal.tags.contains("c")"#,
                true,
            ),
            ("principal has level && !(principal has nothing)", true),
            ("resource has level", false),
            ("resource is Doc && principal is User", true),
            (
                r#"principal in Group::"staff" && principal in [User::"ann", User::"bob"]"#,
                true,
            ),
            (r#"principal in [Group::"a", Group::"b"]"#, false),
            // The resource is not stored.
            (r#"resource in Doc::"d""#, true),
            ("context has n && !(context has m)", true),
        ] {
            assert_eq!(eval(condition), Some(expected), "{condition}");
        }
    }

    #[test]
    fn fallible_or_complex_conditions_fall_back() {
        for condition in [
            "principal.nothing == 3",
            "resource.level == 3",
            "context.m",
            "principal.level",
            r#"principal.level == "3""#,
            "principal.level + 1 == 4",
            r#"principal.since < datetime("2025-01-01")"#,
            "principal.since == principal.since",
            "principal.tags == principal.tags",
            r#"principal.boss in Group::"staff""#,
            // Nothing else names it, so it has no id.
            r#"resource in Doc::"other""#,
            "principal.tags.containsAny(principal.tags)",
            "if principal.level == 3 then true else false",
            // The first operand is certain, but the second could fail.
            "principal.level == 3 && principal.nothing",
        ] {
            assert_eq!(eval(condition), None, "{condition}");
        }
        // After a false operand, the rest cannot fail.
        assert_eq!(
            eval("principal.level == 4 && principal.nothing"),
            Some(false)
        );
    }
}
