//! Posting lists: the policies under each key, encoded in one contiguous buffer.
//!
//! A request looks up about sixty keys, and with 100,000 policies neither the lists nor the
//! policies' scopes and conditions are in the processor's caches. So a record holds both scope and
//! condition of a policy, and the records of a key are contiguous.

use std::collections::BTreeMap;

use super::bytecode::Bytecode;
use super::cursor::{ByteCursor, write_piece};
use super::policy::RuleIndex;
use super::scope::{Key, PerVariable, RequestVariables, Scope, ScopeConstraint, Variable};
use crate::pdp::entities::interner::{TypeId, UidId};
use crate::pdp::workers::Workers;

/// An offset in the records, in units of [`ALIGNMENT`] bytes.
type Offset = u32;

/// Policies processed between two pauses.
pub(super) const PAUSE_EACH: usize = 500;

/// Alignment, in bytes, of posting lists and of records that an indirect record refers to.
const ALIGNMENT: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Postings {
    entities: PerVariable<hashbrown::HashMap<UidId, Offset>>,
    types: PerVariable<hashbrown::HashMap<TypeId, Offset>>,
    any: Option<Offset>,
    /// The lists, each the number of its records and then the records; and the shared records.
    records: Vec<u8>,
}

/// The error that the records exceed 32-bit offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policies' conditions are too long to index")]
pub(in crate::pdp) struct PostingsTooLarge;

/// A policy in a posting list, with its encoded scope and condition.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Posting<'a> {
    pub(in crate::pdp) rule: RuleIndex,
    constraints: ByteCursor<'a>,
    condition: ByteCursor<'a>,
}

/// The first byte of a record.
mod record {
    /// A record of the rule's index, its constraints and its condition.
    pub(super) const INLINE: u8 = 0;
    /// A record of the offset of an inline record that several lists share.
    pub(super) const INDIRECT: u8 = 1;
}

/// The first byte of an encoded constraint: its kind, and the variable in the upper bits.
mod constraint {
    pub(super) const IS: u8 = 0;
    pub(super) const IN: u8 = 1;
    pub(super) const OF_TYPE: u8 = 2;
    pub(super) const VARIABLE_SHIFT: u32 = 4;
    pub(super) const KIND: u8 = 0x0f;
}

impl Postings {
    /// Encodes the posting lists of `pairs`, which must be sorted and distinct.
    pub(super) fn new(
        pairs: &[(Key, RuleIndex)],
        scopes: &[Scope],
        conditions: &[&[u8]],
        workers: Workers,
    ) -> Result<Self, PostingsTooLarge> {
        let mut table = Self::default();
        let mut key_counts = vec![0_u32; scopes.len()];
        for (_, rule) in pairs {
            if let Some(count) = key_counts.get_mut(*rule as usize) {
                *count = count.saturating_add(1);
            }
        }
        let write = |rule: RuleIndex, records: &mut Vec<u8>| {
            let (scope, condition) = (scopes.get(rule as usize), conditions.get(rule as usize));
            write_record(rule, scope, condition.copied().unwrap_or_default(), records);
        };
        // A policy with several keys shares one record. A copy under each key, with all keys in
        // it, would take quadratic memory.
        let mut shared: BTreeMap<RuleIndex, Offset> = BTreeMap::new();
        for (rule, _) in (0..).zip(&key_counts).filter(|(_, count)| **count > 1) {
            shared.insert(rule, table.begin()?);
            write(rule, &mut table.records);
        }
        let lists = pairs.chunk_by(|(one, _), (other, _)| one == other);
        for list in workers.pausing(lists, PAUSE_EACH) {
            let Some((key, _)) = list.first() else {
                continue;
            };
            let offset = table.begin()?;
            let count = u32::try_from(list.len()).map_err(|_| PostingsTooLarge)?;
            table.records.extend(count.to_le_bytes());
            for (_, rule) in list {
                match shared.get(rule) {
                    None => write(*rule, &mut table.records),
                    Some(offset) => write_piece(&mut table.records, |records| {
                        records.push(record::INDIRECT);
                        records.extend(offset.to_le_bytes());
                    }),
                }
            }
            match key {
                Key::Entity(variable, uid) => {
                    table.entities.get_mut(*variable).insert(*uid, offset);
                }
                Key::Type(variable, ty) => {
                    table.types.get_mut(*variable).insert(*ty, offset);
                }
                Key::Any => table.any = Some(offset),
            }
        }
        table.records.shrink_to_fit();
        Ok(table)
    }

    /// Aligns the end of the records, and returns its offset.
    fn begin(&mut self) -> Result<Offset, PostingsTooLarge> {
        let begin = self.records.len().next_multiple_of(ALIGNMENT);
        self.records.resize(begin, 0);
        Offset::try_from(begin / ALIGNMENT).map_err(|_| PostingsTooLarge)
    }

    pub(super) fn list(&self, key: Key) -> Option<PostingList<'_>> {
        let offset = match key {
            Key::Entity(variable, uid) => self.entities.get(variable).get(&uid).copied(),
            Key::Type(variable, ty) => self.types.get(variable).get(&ty).copied(),
            Key::Any => self.any,
        }?;
        let mut records = self.read_at(offset);
        Some(PostingList {
            remaining: records.u32(),
            records,
            postings: self,
        })
    }

    fn read_at(&self, offset: Offset) -> ByteCursor<'_> {
        let begin = offset as usize * ALIGNMENT;
        ByteCursor(self.records.get(begin..).unwrap_or_default())
    }

    /// Returns the heap memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        let table_bytes = |variable| {
            self.entities.get(variable).allocation_size()
                + self.types.get(variable).allocation_size()
        };
        let variables = [Variable::Principal, Variable::Action, Variable::Resource];
        self.records.capacity() + variables.map(table_bytes).iter().sum::<usize>()
    }
}

fn write_record(rule: RuleIndex, scope: Option<&Scope>, condition: &[u8], records: &mut Vec<u8>) {
    write_piece(records, |record| {
        record.push(record::INLINE);
        record.extend(rule.to_le_bytes());
        write_piece(record, |constraints| {
            for (variable, constraint) in scope.iter().flat_map(|scope| &scope.constraints) {
                write_constraint(*variable, constraint, constraints);
            }
        });
        record.extend(condition);
    });
}

fn write_constraint(variable: Variable, constraint: &ScopeConstraint, to: &mut Vec<u8>) {
    let mut write_kind = |kind: u8| {
        let variable: u8 = match variable {
            Variable::Principal => 0,
            Variable::Action => 1,
            Variable::Resource => 2,
        };
        to.push(kind | variable << constraint::VARIABLE_SHIFT);
    };
    match constraint {
        ScopeConstraint::Is(UidId(uid)) => {
            write_kind(constraint::IS);
            to.extend(uid.to_le_bytes());
        }
        ScopeConstraint::OfType(TypeId(ty)) => {
            write_kind(constraint::OF_TYPE);
            to.extend(ty.to_le_bytes());
        }
        ScopeConstraint::In(uids) => {
            write_kind(constraint::IN);
            write_piece(to, |to| {
                for UidId(uid) in uids {
                    to.extend(uid.to_le_bytes());
                }
            });
        }
    }
}

/// The policies under one key, as an iterator of postings.
#[derive(Clone, Copy, Debug)]
pub(super) struct PostingList<'a> {
    remaining: u32,
    records: ByteCursor<'a>,
    postings: &'a Postings,
}

impl PostingList<'_> {
    pub(super) fn len(self) -> usize {
        self.remaining as usize
    }
}

impl<'a> Iterator for PostingList<'a> {
    type Item = Posting<'a>;

    fn next(&mut self) -> Option<Posting<'a>> {
        self.remaining = self.remaining.checked_sub(1)?;
        let mut record = self.records.piece();
        if record.u8() == record::INDIRECT {
            record = self.postings.read_at(record.u32()).piece();
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
    /// Returns the condition that remains if the scope matches; `None` is always true.
    pub(in crate::pdp) fn condition(&self) -> Option<Bytecode<'a>> {
        Bytecode::new(self.condition)
    }

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
                    let mut uids = constraints.piece();
                    let mut is_in = false;
                    while !uids.is_empty() && !is_in {
                        is_in = variable.is_in(UidId(uids.u32()));
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
