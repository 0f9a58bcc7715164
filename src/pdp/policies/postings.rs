//! Where policies are filed: by key, all that deciding asks of one laid out in one piece.
//!
//! A request looks under some sixty keys, and among a hundred thousand policies neither what is
//! found there nor the policies' scopes and conditions are in the processor's caches. So scope and
//! condition stand in one record, and the records of one key after one another.

use std::collections::BTreeMap;

use super::bytecode::Shorthand;
use super::cursor::{Bytes, piece};
use super::index::{Demand, Key, PAUSE_EACH, RuleNumber, Scope, Subjects, Variable};
use crate::pdp::entities::interner::{TypeNumber, UidNumber};
use crate::pdp::workers::Workers;

/// Where the records of a key begin, counted in [`GRAIN`]s.
type Place = u32;

/// Every bucket, and every record that a stub leads to, begins at a multiple of this many bytes.
const GRAIN: usize = 8;

/// The records by key.
#[derive(Debug, Default)]
pub(super) struct Table {
    entities: ByVariable<hashbrown::HashMap<UidNumber, Place>>,
    types: ByVariable<hashbrown::HashMap<TypeNumber, Place>>,
    any: Option<Place>,
    /// Buckets, each the number of its records and then these; and records that stand in several.
    records: Vec<u8>,
}

/// The policies are too many, or their conditions too long, to be filed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policies' conditions are too long to be filed")]
pub(in crate::pdp) struct TooLong;

/// One for each variable of a request.
#[derive(Debug, Default)]
struct ByVariable<T> {
    principal: T,
    action: T,
    resource: T,
}

impl<T> ByVariable<T> {
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
pub(in crate::pdp) struct Filed<'a> {
    pub(in crate::pdp) rule: RuleNumber,
    demands: Bytes<'a>,
    condition: Bytes<'a>,
}

/// What a record is, in the byte behind its length.
mod record {
    /// A rule's number, its demands, and its condition.
    pub(super) const HERE: u8 = 0;
    /// The place of a record that stands in several buckets.
    pub(super) const ELSEWHERE: u8 = 1;
}

/// What is demanded, in the first byte of a demand; then comes the variable.
mod demand {
    pub(super) const IS: u8 = 0;
    pub(super) const IS_IN: u8 = 1;
    pub(super) const OF_TYPE: u8 = 2;
    pub(super) const VARIABLE_SHIFT: u32 = 4;
    pub(super) const KIND: u8 = 0x0f;
}

impl Table {
    /// Files each policy under its keys, `pairs` being sorted and without doubles.
    ///
    /// # Errors
    ///
    /// [`TooLong`] when what is filed would have no 32-bit place.
    pub(super) fn new(
        pairs: &[(Key, RuleNumber)],
        scopes: &[Scope],
        conditions: &[&[u8]],
        workers: Workers,
    ) -> Result<Self, TooLong> {
        let mut table = Self::default();
        let mut keys_of = vec![0_u32; scopes.len()];
        for (_, rule) in pairs {
            if let Some(keys) = keys_of.get_mut(*rule as usize) {
                *keys = keys.saturating_add(1);
            }
        }
        let write = |rule: RuleNumber, to: &mut Vec<u8>| {
            let (scope, condition) = (scopes.get(rule as usize), conditions.get(rule as usize));
            piece(to, |to| {
                to.push(record::HERE);
                to.extend(rule.to_le_bytes());
                piece(to, |to| {
                    for (variable, demand) in scope.iter().flat_map(|scope| &scope.demands) {
                        write_demand(*variable, demand, to);
                    }
                });
                to.extend(condition.copied().unwrap_or_default());
            });
        };
        // A policy with several keys would be as large as all its keys times all its keys, were
        // its record written under each.
        let mut elsewhere: BTreeMap<RuleNumber, Place> = BTreeMap::new();
        for rule in 0..=RuleNumber::MAX {
            match keys_of.get(rule as usize) {
                None => break,
                Some(0 | 1) => {}
                Some(_) => {
                    elsewhere.insert(rule, table.begin()?);
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
            let count = u32::try_from(bucket.len()).map_err(|_| TooLong)?;
            table.records.extend(count.to_le_bytes());
            for (_, rule) in bucket {
                match elsewhere.get(rule) {
                    None => write(*rule, &mut table.records),
                    Some(place) => piece(&mut table.records, |to| {
                        to.push(record::ELSEWHERE);
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
    fn begin(&mut self) -> Result<Place, TooLong> {
        let begin = self.records.len().next_multiple_of(GRAIN);
        self.records.resize(begin, 0);
        Place::try_from(begin / GRAIN).map_err(|_| TooLong)
    }

    /// Where the records of `key` stand, if there are any.
    pub(super) fn bucket(&self, key: Key) -> Option<Bucket<'_>> {
        let place = match key {
            Key::Entity(variable, uid) => self.entities.of(variable).get(&uid).copied(),
            Key::Type(variable, ty) => self.types.of(variable).get(&ty).copied(),
            Key::Any => self.any,
        }?;
        let mut records = self.at(place);
        Some(Bucket {
            left: records.u32(),
            records,
            table: self,
        })
    }

    fn at(&self, place: Place) -> Bytes<'_> {
        let begin = place as usize * GRAIN;
        Bytes(self.records.get(begin..).unwrap_or_default())
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

fn write_demand(variable: Variable, demand: &Demand, to: &mut Vec<u8>) {
    let mut kind = |kind: u8| {
        let variable: u8 = match variable {
            Variable::Principal => 0,
            Variable::Action => 1,
            Variable::Resource => 2,
        };
        to.push(kind | variable << demand::VARIABLE_SHIFT);
    };
    match demand {
        Demand::Is(UidNumber(uid)) => {
            kind(demand::IS);
            to.extend(uid.to_le_bytes());
        }
        Demand::OfType(TypeNumber(ty)) => {
            kind(demand::OF_TYPE);
            to.extend(ty.to_le_bytes());
        }
        Demand::IsIn(any) => {
            kind(demand::IS_IN);
            piece(to, |to| {
                for UidNumber(uid) in any {
                    to.extend(uid.to_le_bytes());
                }
            });
        }
    }
}

/// The policies under one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket<'a> {
    left: u32,
    records: Bytes<'a>,
    table: &'a Table,
}

impl Bucket<'_> {
    /// How many they are.
    pub(super) fn len(self) -> usize {
        self.left as usize
    }
}

impl<'a> Iterator for Bucket<'a> {
    type Item = Filed<'a>;

    fn next(&mut self) -> Option<Filed<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut record = self.records.piece();
        if record.u8() == record::ELSEWHERE {
            record = self.table.at(record.u32()).piece();
            record.u8();
        }
        let rule = record.u32();
        let demands = record.piece();
        Some(Filed {
            rule,
            demands,
            condition: record,
        })
    }
}

impl<'a> Filed<'a> {
    /// What is left of the condition where the demands are met; `None` always holds.
    pub(in crate::pdp) fn condition(&self) -> Option<Shorthand<'a>> {
        Shorthand::of(self.condition)
    }

    /// Whether a request meets what the policy demands of it.
    pub(super) fn is_met(&self, subjects: &Subjects) -> bool {
        let mut demands = self.demands;
        while !demands.is_empty() {
            let kind = demands.u8();
            let subject = match kind >> demand::VARIABLE_SHIFT {
                0 => &subjects.principal,
                1 => &subjects.action,
                _ => &subjects.resource,
            };
            let is_met = match kind & demand::KIND {
                demand::IS => subject.uid == Some(UidNumber(demands.u32())),
                demand::IS_IN => {
                    let mut any = demands.piece();
                    let mut is_in = false;
                    while !any.is_empty() && !is_in {
                        is_in = subject.is_in(UidNumber(any.u32()));
                    }
                    is_in
                }
                _ => subject.ty == Some(TypeNumber(demands.u32())),
            };
            if !is_met {
                return false;
            }
        }
        true
    }
}
