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

use super::slicing::Variables;
use crate::pdp::entities::interner::{TypeNumber, UidNumber};
use crate::pdp::entities::segment::{Stored, StoredRecord, StoredSet};
use crate::pdp::entities::store::{Attribute, Attributes, View};
use crate::pdp::policies::bytecode::{Members, Part, Shorthand, Two};
use crate::pdp::policies::index::{Subject, Subjects};

/// What conditions are read on.
pub(in crate::pdp) struct Reading<'a> {
    view: &'a View<'a>,
    variables: &'a Variables<'a>,
    /// The principal's and the resource's attributes, which most conditions read; `None` when
    /// there is no such entity.
    at_hand: [(Option<UidNumber>, Option<Attributes<'a>>); 2],
    /// The attributes that were read first: most conditions read the same few again.
    read: RefCell<SmallVec<[ReadAttribute<'a>; MOST_REMEMBERED]>>,
}

/// An attribute that was read: of which entity, its name, and what was found.
type ReadAttribute<'a> = (UidNumber, &'a str, Option<Attribute<'a>>);

/// Looking through more than these would take longer than reading again.
const MOST_REMEMBERED: usize = 8;

/// A value that is at hand.
#[derive(Clone, Copy)]
enum Known<'a> {
    Bool(bool),
    Long(i64),
    Text(&'a str),
    Uid(Uid<'a>),
    Set(Set<'a>),
    Record(Record<'a>),
}

#[derive(Clone, Copy)]
enum Uid<'a> {
    Numbered(UidNumber),
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

impl<'a> Known<'a> {
    fn of_stored(value: Stored<'a>) -> Option<Self> {
        match value {
            Stored::Bool(value) => Some(Self::Bool(value)),
            Stored::Long(value) => Some(Self::Long(value)),
            Stored::Text(text) => Some(Self::Text(text)),
            Stored::Uid(uid) => Some(Self::Uid(Uid::Numbered(uid))),
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

impl<'a> Reading<'a> {
    pub(in crate::pdp) fn new(view: &'a View<'a>, variables: &'a Variables<'a>) -> Self {
        let Subjects {
            principal,
            action: _,
            resource,
        } = variables.subjects;
        // Both are looked for before either is read, so that they are waited for together.
        let at_hand = [principal, resource].map(|subject| {
            (
                subject.uid,
                subject.uid.and_then(|uid| view.attributes(uid)),
            )
        });
        Self {
            view,
            variables,
            at_hand,
            read: RefCell::default(),
        }
    }

    /// Whether `condition` holds; `None` when Cedar must say.
    ///
    /// Recurses as deep as the condition is nested.
    pub(in crate::pdp) fn holds(&self, condition: Shorthand<'a>) -> Option<bool> {
        match condition.part() {
            Part::Bool(value) => Some(value),
            Part::Attribute(name, of) => match self.attribute(name, of)? {
                Known::Bool(value) => Some(value),
                Known::Long(_)
                | Known::Text(_)
                | Known::Uid(_)
                | Known::Set(_)
                | Known::Record(_) => None,
            },
            Part::Not(operand) => self.holds(operand).map(|holds| !holds),
            Part::Both(Two::And, left, right) => match self.holds(left)? {
                true => self.holds(right),
                false => Some(false),
            },
            Part::Both(Two::Or, left, right) => match self.holds(left)? {
                true => Some(true),
                false => self.holds(right),
            },
            Part::Both(Two::Equal, left, right) => self.same(self.value(left)?, self.value(right)?),
            Part::Both(Two::Less, left, right) => {
                let (left, right) = self.longs(left, right)?;
                Some(left < right)
            }
            Part::Both(Two::LessOrEqual, left, right) => {
                let (left, right) = self.longs(left, right)?;
                Some(left <= right)
            }
            Part::Both(Two::Contains, left, right) => match self.value(left)? {
                Known::Set(set) => self.contains(set, self.value(right)?),
                Known::Bool(_)
                | Known::Long(_)
                | Known::Text(_)
                | Known::Uid(_)
                | Known::Record(_) => None,
            },
            Part::In(left, members) => self.is_in(left, members),
            Part::Has(name, of) => self.has(name, of),
            Part::Is(ty, of) => match self.value(of)? {
                Known::Uid(uid) => Some(self.type_of(uid) == Some(ty)),
                Known::Bool(_)
                | Known::Long(_)
                | Known::Text(_)
                | Known::Set(_)
                | Known::Record(_) => None,
            },
            Part::Like(pattern, of) => match self.value(of)? {
                Known::Text(text) => Some(pattern.matches(text)),
                Known::Bool(_)
                | Known::Long(_)
                | Known::Uid(_)
                | Known::Set(_)
                | Known::Record(_) => None,
            },
            Part::Doubt | Part::Long(_) | Part::Text(_) | Part::Uid(_) | Part::Variable(_) => None,
        }
    }

    /// Both values, if they are whole numbers.
    fn longs(&self, left: Shorthand<'a>, right: Shorthand<'a>) -> Option<(i64, i64)> {
        match (self.value(left)?, self.value(right)?) {
            (Known::Long(left), Known::Long(right)) => Some((left, right)),
            (
                Known::Bool(_)
                | Known::Long(_)
                | Known::Text(_)
                | Known::Uid(_)
                | Known::Set(_)
                | Known::Record(_),
                _,
            ) => None,
        }
    }

    /// The value of `part`, if it is there and at hand.
    fn value(&self, part: Shorthand<'a>) -> Option<Known<'a>> {
        match part.part() {
            Part::Bool(value) => Some(Known::Bool(value)),
            Part::Long(value) => Some(Known::Long(value)),
            Part::Text(text) => Some(Known::Text(text)),
            Part::Uid(uid) => Some(Known::Uid(Uid::Numbered(uid))),
            Part::Variable(var) => {
                let Subjects {
                    principal,
                    action,
                    resource,
                } = self.variables.subjects;
                let uid = |subject: &Subject, uid: &'a EntityUID| {
                    let uid = subject.uid.map_or(Uid::Cedar(uid), Uid::Numbered);
                    Some(Known::Uid(uid))
                };
                match var {
                    Var::Principal => uid(principal, self.variables.principal),
                    Var::Action => uid(action, self.variables.action),
                    Var::Resource => uid(resource, self.variables.resource),
                    Var::Context => Some(Known::Record(Record::Cedar(self.variables.context))),
                }
            }
            Part::Attribute(name, of) => self.attribute(name, of),
            Part::Doubt
            | Part::Has(..)
            | Part::Is(..)
            | Part::Like(..)
            | Part::Not(_)
            | Part::Both(..)
            | Part::In(..) => None,
        }
    }

    /// The attribute or field `name` of what `of` is, if it has one.
    fn attribute(&self, name: &'a str, of: Shorthand<'a>) -> Option<Known<'a>> {
        match self.value(of)? {
            Known::Uid(uid) => match self.read(self.number(uid)?, name)? {
                Attribute::Stored(value) => Known::of_stored(value),
                Attribute::Sent(value) => Known::of_cedar(value),
                Attribute::Missing => None,
            },
            Known::Record(Record::Stored(record)) => Known::of_stored(record.get(name)?),
            Known::Record(Record::Cedar(record)) => Known::of_cedar(record.get(name)?),
            Known::Bool(_) | Known::Long(_) | Known::Text(_) | Known::Set(_) => None,
        }
    }

    fn has(&self, name: &'a str, of: Shorthand<'a>) -> Option<bool> {
        match self.value(of)? {
            // What does not exist has no attributes.
            Known::Uid(uid) => {
                Some(
                    self.number(uid)
                        .is_some_and(|number| match self.read(number, name) {
                            Some(Attribute::Stored(_) | Attribute::Sent(_)) => true,
                            Some(Attribute::Missing) | None => false,
                        }),
                )
            }
            Known::Record(Record::Stored(record)) => Some(record.get(name).is_some()),
            Known::Record(Record::Cedar(record)) => Some(record.contains_key(name)),
            Known::Bool(_) | Known::Long(_) | Known::Text(_) | Known::Set(_) => None,
        }
    }

    /// The attribute `name` of an entity; `None` when there is no such entity.
    fn read(&self, uid: UidNumber, name: &'a str) -> Option<Attribute<'a>> {
        let mut read = self.read.borrow_mut();
        let before = read
            .iter()
            .find(|(of, called, _)| *of == uid && *called == name);
        if let Some((_, _, found)) = before {
            return *found;
        }
        let at_hand = self.at_hand.iter().find(|(of, _)| *of == Some(uid));
        let attributes = match at_hand {
            Some((_, attributes)) => *attributes,
            None => self.view.attributes(uid),
        };
        let found = attributes.map(|attributes| attributes.get(name));
        if read.len() < MOST_REMEMBERED {
            read.push((uid, name, found));
        }
        found
    }

    /// Whether two values are equal, if they are of one plain kind.
    fn same(&self, one: Known<'a>, other: Known<'a>) -> Option<bool> {
        match (one, other) {
            (Known::Bool(one), Known::Bool(other)) => Some(one == other),
            (Known::Long(one), Known::Long(other)) => Some(one == other),
            (Known::Text(one), Known::Text(other)) => Some(one == other),
            (Known::Uid(one), Known::Uid(other)) => Some(self.same_uid(one, other)),
            (
                Known::Bool(_)
                | Known::Long(_)
                | Known::Text(_)
                | Known::Uid(_)
                | Known::Set(_)
                | Known::Record(_),
                _,
            ) => None,
        }
    }

    fn same_uid(&self, one: Uid<'a>, other: Uid<'a>) -> bool {
        match (one, other) {
            (Uid::Numbered(one), Uid::Numbered(other)) => one == other,
            (Uid::Cedar(one), Uid::Cedar(other)) => one == other,
            (Uid::Numbered(number), Uid::Cedar(uid)) | (Uid::Cedar(uid), Uid::Numbered(number)) => {
                self.view.number(uid) == Some(number)
            }
        }
    }

    /// Whether a set has a member of a plain kind.
    fn contains(&self, set: Set<'a>, member: Known<'a>) -> Option<bool> {
        // Values of different kinds are different; only those that are not plain are in doubt.
        let mut is_in_doubt = matches!(member, Known::Set(_) | Known::Record(_));
        let mut is_member = |value: Option<Known<'a>>| match value {
            Some(Known::Set(_) | Known::Record(_)) | None => {
                is_in_doubt = true;
                false
            }
            Some(value) => self.same(value, member) == Some(true),
        };
        let found = match set {
            Set::Stored(set) => set
                .members()
                .any(|value| is_member(Known::of_stored(value))),
            Set::Cedar(set) => set.iter().any(|value| is_member(Known::of_cedar(value))),
        };
        (found || !is_in_doubt).then_some(found)
    }

    /// Whether a variable of the request is one of the uids on the right, or in one.
    fn is_in(&self, left: Shorthand<'a>, members: Members<'a>) -> Option<bool> {
        let Known::Uid(left) = self.value(left)? else {
            return None;
        };
        let subject = self.subject(left)?;
        let mut found = false;
        for uid in members {
            // Every member is looked at: one that is no uid makes the whole an error.
            let Known::Uid(uid) = self.value(uid)? else {
                return None;
            };
            let number = self.number(uid);
            found |= self.same_uid(left, uid)
                || number.is_some_and(|number| subject.ancestors.binary_search(&number).is_ok());
        }
        Some(found)
    }

    /// The variable of the request that `uid` is: the ancestors of others are not at hand.
    fn subject(&self, uid: Uid<'a>) -> Option<&'a Subject> {
        let Subjects {
            principal,
            action,
            resource,
        } = self.variables.subjects;
        let number = self.number(uid)?;
        [principal, action, resource]
            .into_iter()
            .find(|subject| subject.uid == Some(number))
    }

    fn number(&self, uid: Uid<'a>) -> Option<UidNumber> {
        match uid {
            Uid::Numbered(number) => Some(number),
            Uid::Cedar(uid) => self.view.number(uid),
        }
    }

    /// The number of a uid's type, if it has one.
    fn type_of(&self, uid: Uid<'a>) -> Option<TypeNumber> {
        match uid {
            Uid::Numbered(number) => self.view.type_of(number),
            Uid::Cedar(uid) => self.view.type_number_of(uid.entity_type()),
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
    fn holds(condition: &str) -> Option<bool> {
        // Nothing that could be taken into the scope stands first.
        let policy =
            format!("permit(principal, action, resource) when {{ true && ({condition}) }};");
        let files = [("p.cedar", policy.as_str()), ("entities.json", ENTITIES)];
        let files = files.map(|(path, text)| {
            let kind = FileKind::of(path).expect("a name that matches");
            SourceFile::held(path.to_owned(), kind, Arc::from(text))
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
        bound.candidates.first().expect("it is open").holds
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
            assert_eq!(holds(condition), Some(expected), "{condition}");
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
            assert_eq!(holds(condition), None, "{condition}");
        }
        // And what is false before that is false whatever follows.
        assert_eq!(
            holds("principal.level == 4 && principal.nothing"),
            Some(false)
        );
    }
}
