//! Where policies are filed: by key, all that deciding asks of one laid out in one piece.
//!
//! A request looks under some sixty keys, and among a hundred thousand policies neither what is
//! found there nor the policies' scopes and conditions are in the processor's caches. So scope and
//! condition stand in one record, and the records of one key after one another.

use std::collections::BTreeMap;

use super::bytecode::Bytecode;
use super::cursor::{ByteCursor, piece};
use super::policy::RuleIndex;
use super::scope::{Key, RequestVariables, Scope, ScopeConstraint, Variable};
use crate::pdp::entities::interner::{TypeId, UidId};
use crate::pdp::workers::Workers;

/// Where the records of a key begin, counted in [`ALIGNMENT`]s.
type Offset = u32;

/// So many policies are filed between two pauses.
pub(super) const PAUSE_EACH: usize = 500;

/// Every bucket, and every record that a stub leads to, begins at a multiple of this many bytes.
const ALIGNMENT: usize = 8;

/// The records by key.
#[derive(Debug, Default)]
pub(super) struct Postings {
    entities: PerVariable<hashbrown::HashMap<UidId, Offset>>,
    types: PerVariable<hashbrown::HashMap<TypeId, Offset>>,
    any: Option<Offset>,
    /// Buckets, each the number of its records and then these; and records that stand in several.
    records: Vec<u8>,
}

/// The policies are too many, or their conditions too long, to be filed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policies' conditions are too long to be filed")]
pub(in crate::pdp) struct PostingsTooLarge;

/// One for each variable of a request.
#[derive(Debug, Default)]
struct PerVariable<T> {
    principal: T,
    action: T,
    resource: T,
}

impl<T> PerVariable<T> {
    fn of(&self, variable: Variable) -> &T {
        match variable {
            Variable::Principal => &self.principal,
            Variable::Action => &self.action,
            Variable::Resource => &self.resource,
        }
    }

    fn of_mut(&mut self, variable: Variable) -> &mut T {
        match variable {
            Variable::Principal => &mut self.principal,
            Variable::Action => &mut self.action,
            Variable::Resource => &mut self.resource,
        }
    }
}

/// A policy where it is filed.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Posting<'a> {
    pub(in crate::pdp) rule: RuleIndex,
    constraints: ByteCursor<'a>,
    condition: ByteCursor<'a>,
}

/// What a record is, in the byte behind its length.
mod record {
    /// A rule's number, its demands, and its condition.
    pub(super) const INLINE: u8 = 0;
    /// The place of a record that stands in several buckets.
    pub(super) const INDIRECT: u8 = 1;
}

/// What is demanded, in the first byte of a demand; then comes the variable.
mod constraint {
    pub(super) const IS: u8 = 0;
    pub(super) const IN: u8 = 1;
    pub(super) const OF_TYPE: u8 = 2;
    pub(super) const VARIABLE_SHIFT: u32 = 4;
    pub(super) const KIND: u8 = 0x0f;
}

impl Postings {
    /// Files each policy under its keys, `pairs` being sorted and without doubles.
    ///
    /// # Errors
    ///
    /// [`PostingsTooLarge`] when what is filed would have no 32-bit place.
    pub(super) fn new(
        pairs: &[(Key, RuleIndex)],
        scopes: &[Scope],
        conditions: &[&[u8]],
        workers: Workers,
    ) -> Result<Self, PostingsTooLarge> {
        let mut table = Self::default();
        let mut keys_of = vec![0_u32; scopes.len()];
        for (_, rule) in pairs {
            if let Some(keys) = keys_of.get_mut(*rule as usize) {
                *keys = keys.saturating_add(1);
            }
        }
        let write = |rule: RuleIndex, to: &mut Vec<u8>| {
            let (scope, condition) = (scopes.get(rule as usize), conditions.get(rule as usize));
            piece(to, |to| {
                to.push(record::INLINE);
                to.extend(rule.to_le_bytes());
                piece(to, |to| {
                    for (variable, constraint) in scope.iter().flat_map(|scope| &scope.constraints)
                    {
                        write_constraint(*variable, constraint, to);
                    }
                });
                to.extend(condition.copied().unwrap_or_default());
            });
        };
        // A policy with several keys would be as large as all its keys times all its keys, were
        // its record written under each.
        let mut shared: BTreeMap<RuleIndex, Offset> = BTreeMap::new();
        for rule in 0..=RuleIndex::MAX {
            match keys_of.get(rule as usize) {
                None => break,
                Some(0 | 1) => {}
                Some(_) => {
                    shared.insert(rule, table.begin()?);
                    write(rule, &mut table.records);
                }
            }
        }
        let buckets = pairs.chunk_by(|(one, _), (other, _)| one == other);
        for bucket in workers.pausing(buckets, PAUSE_EACH) {
            let Some((key, _)) = bucket.first() else {
                continue;
            };
            let place = table.begin()?;
            let count = u32::try_from(bucket.len()).map_err(|_| PostingsTooLarge)?;
            table.records.extend(count.to_le_bytes());
            for (_, rule) in bucket {
                match shared.get(rule) {
                    None => write(*rule, &mut table.records),
                    Some(place) => piece(&mut table.records, |to| {
                        to.push(record::INDIRECT);
                        to.extend(place.to_le_bytes());
                    }),
                }
            }
            match key {
                Key::Entity(variable, uid) => {
                    table.entities.of_mut(*variable).insert(*uid, place);
                }
                Key::Type(variable, ty) => {
                    table.types.of_mut(*variable).insert(*ty, place);
                }
                Key::Any => table.any = Some(place),
            }
        }
        table.records.shrink_to_fit();
        Ok(table)
    }

    /// The place that is written next.
    fn begin(&mut self) -> Result<Offset, PostingsTooLarge> {
        let begin = self.records.len().next_multiple_of(ALIGNMENT);
        self.records.resize(begin, 0);
        Offset::try_from(begin / ALIGNMENT).map_err(|_| PostingsTooLarge)
    }

    /// Where the records of `key` stand, if there are any.
    pub(super) fn bucket(&self, key: Key) -> Option<PostingList<'_>> {
        let place = match key {
            Key::Entity(variable, uid) => self.entities.of(variable).get(&uid).copied(),
            Key::Type(variable, ty) => self.types.of(variable).get(&ty).copied(),
            Key::Any => self.any,
        }?;
        let mut records = self.at(place);
        Some(PostingList {
            left: records.u32(),
            records,
            table: self,
        })
    }

    fn at(&self, place: Offset) -> ByteCursor<'_> {
        let begin = place as usize * ALIGNMENT;
        ByteCursor(self.records.get(begin..).unwrap_or_default())
    }

    /// The memory that it holds, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let of = |variable| {
            self.entities.of(variable).allocation_size() + self.types.of(variable).allocation_size()
        };
        let variables = [Variable::Principal, Variable::Action, Variable::Resource];
        self.records.capacity() + variables.map(of).iter().sum::<usize>()
    }
}

fn write_constraint(variable: Variable, constraint: &ScopeConstraint, to: &mut Vec<u8>) {
    let mut kind = |kind: u8| {
        let variable: u8 = match variable {
            Variable::Principal => 0,
            Variable::Action => 1,
            Variable::Resource => 2,
        };
        to.push(kind | variable << constraint::VARIABLE_SHIFT);
    };
    match constraint {
        ScopeConstraint::Is(UidId(uid)) => {
            kind(constraint::IS);
            to.extend(uid.to_le_bytes());
        }
        ScopeConstraint::OfType(TypeId(ty)) => {
            kind(constraint::OF_TYPE);
            to.extend(ty.to_le_bytes());
        }
        ScopeConstraint::In(any) => {
            kind(constraint::IN);
            piece(to, |to| {
                for UidId(uid) in any {
                    to.extend(uid.to_le_bytes());
                }
            });
        }
    }
}

/// The policies under one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct PostingList<'a> {
    left: u32,
    records: ByteCursor<'a>,
    table: &'a Postings,
}

impl PostingList<'_> {
    /// How many they are.
    pub(super) fn len(self) -> usize {
        self.left as usize
    }
}

impl<'a> Iterator for PostingList<'a> {
    type Item = Posting<'a>;

    fn next(&mut self) -> Option<Posting<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut record = self.records.piece();
        if record.u8() == record::INDIRECT {
            record = self.table.at(record.u32()).piece();
            record.u8();
        }
        let rule = record.u32();
        let constraints = record.piece();
        Some(Posting {
            rule,
            constraints,
            condition: record,
        })
    }
}

impl<'a> Posting<'a> {
    /// What is left of the condition where the demands are met; `None` always holds.
    pub(in crate::pdp) fn condition(&self) -> Option<Bytecode<'a>> {
        Bytecode::of(self.condition)
    }

    /// Whether a request meets what the policy demands of it.
    pub(super) fn is_match(&self, variables: &RequestVariables) -> bool {
        let mut constraints = self.constraints;
        while !constraints.is_empty() {
            let kind = constraints.u8();
            let variable = match kind >> constraint::VARIABLE_SHIFT {
                0 => &variables.principal,
                1 => &variables.action,
                _ => &variables.resource,
            };
            let is_match = match kind & constraint::KIND {
                constraint::IS => variable.uid == Some(UidId(constraints.u32())),
                constraint::IN => {
                    let mut any = constraints.piece();
                    let mut is_in = false;
                    while !any.is_empty() && !is_in {
                        is_in = variable.is_in(UidId(any.u32()));
                    }
                    is_in
                }
                _ => variable.ty == Some(TypeId(constraints.u32())),
            };
            if !is_match {
                return false;
            }
        }
        true
    }
}
