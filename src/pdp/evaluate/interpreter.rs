//! Decides plain conditions without Cedar's evaluator, where there can be no doubt.
//!
//! Cedar's evaluator works on entities that have to be made for it, and copies every value that it
//! touches. Most conditions compare an attribute with a literal, or one uid with another, and can
//! be read straight off the store. What is decided here is what is certain: true or false by
//! comparisons of values of one plain kind. Whatever could be an error, and whatever is not
//! plain, is left to Cedar as a whole condition, which then has the only word on it.

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

/// What conditions are read on.
pub(in crate::pdp) struct Interpreter<'a> {
    overlay: &'a Overlay<'a>,
    bindings: &'a Bindings<'a>,
    /// The principal's and the resource's attributes, which most conditions read; `None` when
    /// there is no such entity.
    prefetched: [(Option<UidId>, Option<Attributes<'a>>); 2],
    /// The attributes that were read first: most conditions read the same few again.
    read: RefCell<SmallVec<[CachedAttribute<'a>; MAX_CACHED_ATTRIBUTES]>>,
}

/// An attribute that was read: of which entity, its name, and what was found.
type CachedAttribute<'a> = (UidId, &'a str, Option<Attribute<'a>>);

/// Looking through more than these would take longer than reading again.
const MAX_CACHED_ATTRIBUTES: usize = 8;

/// A value that is at hand.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Bool(bool),
    Long(i64),
    Text(&'a str),
    Uid(Uid<'a>),
    Set(Set<'a>),
    Record(Record<'a>),
}

#[derive(Clone, Copy)]
enum Uid<'a> {
    Interned(UidId),
    /// As Cedar holds it; it may have a number nevertheless.
    Cedar(&'a EntityUID),
}

#[derive(Clone, Copy)]
enum Set<'a> {
    Stored(StoredSet<'a>),
    Cedar(&'a cedar_policy_core::ast::Set),
}

#[derive(Clone, Copy)]
enum Record<'a> {
    Stored(StoredRecord<'a>),
    Cedar(&'a BTreeMap<SmolStr, Value>),
}

impl<'a> Operand<'a> {
    fn of_stored(value: Stored<'a>) -> Option<Self> {
        match value {
            Stored::Bool(value) => Some(Self::Bool(value)),
            Stored::Long(value) => Some(Self::Long(value)),
            Stored::Text(text) => Some(Self::Text(text)),
            Stored::Uid(uid) => Some(Self::Uid(Uid::Interned(uid))),
            Stored::Set(set) => Some(Self::Set(Set::Stored(set))),
            Stored::Record(record) => Some(Self::Record(Record::Stored(record))),
            Stored::Other => None,
        }
    }

    fn of_cedar(value: &'a Value) -> Option<Self> {
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
    pub(in crate::pdp) fn new(overlay: &'a Overlay<'a>, bindings: &'a Bindings<'a>) -> Self {
        let RequestVariables {
            principal,
            action: _,
            resource,
        } = bindings.variables;
        // Both are looked for before either is read, so that they are waited for together.
        let prefetched = [principal, resource].map(|variable| {
            (
                variable.uid,
                variable.uid.and_then(|uid| overlay.attributes(uid)),
            )
        });
        Self {
            overlay,
            bindings,
            prefetched,
            read: RefCell::default(),
        }
    }

    /// Whether `condition` holds; `None` when Cedar must say.
    ///
    /// Recurses as deep as the condition is nested.
    pub(in crate::pdp) fn eval(&self, condition: Bytecode<'a>) -> Option<bool> {
        match condition.node() {
            Node::Bool(value) => Some(value),
            Node::Attribute(name, of) => match self.attribute(name, of)? {
                Operand::Bool(value) => Some(value),
                Operand::Long(_)
                | Operand::Text(_)
                | Operand::Uid(_)
                | Operand::Set(_)
                | Operand::Record(_) => None,
            },
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
            Node::Binary(BinaryOperator::Contains, left, right) => match self.value(left)? {
                Operand::Set(set) => self.contains(set, self.value(right)?),
                Operand::Bool(_)
                | Operand::Long(_)
                | Operand::Text(_)
                | Operand::Uid(_)
                | Operand::Record(_) => None,
            },
            Node::In(left, members) => self.is_in(left, members),
            Node::Has(name, of) => self.has(name, of),
            Node::Is(ty, of) => match self.value(of)? {
                Operand::Uid(uid) => Some(self.type_of(uid) == Some(ty)),
                Operand::Bool(_)
                | Operand::Long(_)
                | Operand::Text(_)
                | Operand::Set(_)
                | Operand::Record(_) => None,
            },
            Node::Like(pattern, of) => match self.value(of)? {
                Operand::Text(text) => Some(pattern.matches(text)),
                Operand::Bool(_)
                | Operand::Long(_)
                | Operand::Uid(_)
                | Operand::Set(_)
                | Operand::Record(_) => None,
            },
            Node::Fallback | Node::Long(_) | Node::Text(_) | Node::Uid(_) | Node::Variable(_) => {
                None
            }
        }
    }

    /// Both values, if they are whole numbers.
    fn long_operands(&self, left: Bytecode<'a>, right: Bytecode<'a>) -> Option<(i64, i64)> {
        match (self.value(left)?, self.value(right)?) {
            (Operand::Long(left), Operand::Long(right)) => Some((left, right)),
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

    /// The value of `node`, if it is there and at hand.
    fn value(&self, node: Bytecode<'a>) -> Option<Operand<'a>> {
        match node.node() {
            Node::Bool(value) => Some(Operand::Bool(value)),
            Node::Long(value) => Some(Operand::Long(value)),
            Node::Text(text) => Some(Operand::Text(text)),
            Node::Uid(uid) => Some(Operand::Uid(Uid::Interned(uid))),
            Node::Variable(var) => {
                let RequestVariables {
                    principal,
                    action,
                    resource,
                } = self.bindings.variables;
                let uid = |variable: &RequestVariable, uid: &'a EntityUID| {
                    let uid = variable.uid.map_or(Uid::Cedar(uid), Uid::Interned);
                    Some(Operand::Uid(uid))
                };
                match var {
                    Var::Principal => uid(principal, self.bindings.principal),
                    Var::Action => uid(action, self.bindings.action),
                    Var::Resource => uid(resource, self.bindings.resource),
                    Var::Context => Some(Operand::Record(Record::Cedar(self.bindings.context))),
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

    /// The attribute or field `name` of what `of` is, if it has one.
    fn attribute(&self, name: &'a str, of: Bytecode<'a>) -> Option<Operand<'a>> {
        match self.value(of)? {
            Operand::Uid(uid) => match self.read(self.id_of(uid)?, name)? {
                Attribute::Stored(value) => Operand::of_stored(value),
                Attribute::Sent(value) => Operand::of_cedar(value),
                Attribute::Missing => None,
            },
            Operand::Record(Record::Stored(record)) => Operand::of_stored(record.get(name)?),
            Operand::Record(Record::Cedar(record)) => Operand::of_cedar(record.get(name)?),
            Operand::Bool(_) | Operand::Long(_) | Operand::Text(_) | Operand::Set(_) => None,
        }
    }

    fn has(&self, name: &'a str, of: Bytecode<'a>) -> Option<bool> {
        match self.value(of)? {
            // What does not exist has no attributes.
            Operand::Uid(uid) => {
                Some(
                    self.id_of(uid)
                        .is_some_and(|number| match self.read(number, name) {
                            Some(Attribute::Stored(_) | Attribute::Sent(_)) => true,
                            Some(Attribute::Missing) | None => false,
                        }),
                )
            }
            Operand::Record(Record::Stored(record)) => Some(record.get(name).is_some()),
            Operand::Record(Record::Cedar(record)) => Some(record.contains_key(name)),
            Operand::Bool(_) | Operand::Long(_) | Operand::Text(_) | Operand::Set(_) => None,
        }
    }

    /// The attribute `name` of an entity; `None` when there is no such entity.
    fn read(&self, uid: UidId, name: &'a str) -> Option<Attribute<'a>> {
        let mut read = self.read.borrow_mut();
        let before = read
            .iter()
            .find(|(of, called, _)| *of == uid && *called == name);
        if let Some((_, _, found)) = before {
            return *found;
        }
        let prefetched = self.prefetched.iter().find(|(of, _)| *of == Some(uid));
        let attributes = match prefetched {
            Some((_, attributes)) => *attributes,
            None => self.overlay.attributes(uid),
        };
        let found = attributes.map(|attributes| attributes.get(name));
        if read.len() < MAX_CACHED_ATTRIBUTES {
            read.push((uid, name, found));
        }
        found
    }

    /// Whether two values are equal, if they are of one plain kind.
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
            (Uid::Interned(number), Uid::Cedar(uid)) | (Uid::Cedar(uid), Uid::Interned(number)) => {
                self.overlay.find_uid(uid) == Some(number)
            }
        }
    }

    /// Whether a set has a member of a plain kind.
    fn contains(&self, set: Set<'a>, member: Operand<'a>) -> Option<bool> {
        // Values of different kinds are different; only those that are not plain are in doubt.
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
                .any(|value| is_member(Operand::of_stored(value))),
            Set::Cedar(set) => set.iter().any(|value| is_member(Operand::of_cedar(value))),
        };
        (found || !is_uncertain).then_some(found)
    }

    /// Whether a variable of the request is one of the uids on the right, or in one.
    fn is_in(&self, left: Bytecode<'a>, members: Members<'a>) -> Option<bool> {
        let Operand::Uid(left) = self.value(left)? else {
            return None;
        };
        let variable = self.variable(left)?;
        let mut found = false;
        for uid in members {
            // Every member is looked at: one that is no uid makes the whole an error.
            let Operand::Uid(uid) = self.value(uid)? else {
                return None;
            };
            let number = self.id_of(uid);
            found |= self.equal_uids(left, uid)
                || number.is_some_and(|number| variable.ancestors.binary_search(&number).is_ok());
        }
        Some(found)
    }

    /// The variable of the request that `uid` is: the ancestors of others are not at hand.
    fn variable(&self, uid: Uid<'a>) -> Option<&'a RequestVariable> {
        let RequestVariables {
            principal,
            action,
            resource,
        } = self.bindings.variables;
        let number = self.id_of(uid)?;
        [principal, action, resource]
            .into_iter()
            .find(|variable| variable.uid == Some(number))
    }

    fn id_of(&self, uid: Uid<'a>) -> Option<UidId> {
        match uid {
            Uid::Interned(number) => Some(number),
            Uid::Cedar(uid) => self.overlay.find_uid(uid),
        }
    }

    /// The number of a uid's type, if it has one.
    fn type_of(&self, uid: Uid<'a>) -> Option<TypeId> {
        match uid {
            Uid::Interned(number) => self.overlay.type_of(number),
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

    /// What is certain of `condition` for `User::"ann"`, asking on `Doc::"d"`, which is not
    /// stored, with `n: 7` in the context.
    fn eval(condition: &str) -> Option<bool> {
        // Nothing that could be taken into the scope stands first.
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
        bound.candidates.first().expect("it is open").satisfied
    }

    #[test]
    fn comparisons_of_plain_values_are_certain() {
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
            // Nothing is stored of it.
            (r#"resource in Doc::"d""#, true),
            ("context has n && !(context has m)", true),
        ] {
            assert_eq!(eval(condition), Some(expected), "{condition}");
        }
    }

    #[test]
    fn what_could_fail_or_is_not_plain_is_left_to_cedar() {
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
            // Nobody else names it, so it has no number.
            r#"resource in Doc::"other""#,
            "principal.tags.containsAny(principal.tags)",
            "if principal.level == 3 then true else false",
            // Certain as its first operand is, the second could fail.
            "principal.level == 3 && principal.nothing",
        ] {
            assert_eq!(eval(condition), None, "{condition}");
        }
        // And what is false before that is false whatever follows.
        assert_eq!(
            eval("principal.level == 4 && principal.nothing"),
            Some(false)
        );
    }
}
