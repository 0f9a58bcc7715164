//! Parses a request of plain shape in place, without copying a text.
//!
//! The plain shape is what callers commonly send: known fields, each singular field once, all
//! required fields, and no unusual size. All other messages are left to prost, which alone defines
//! what a message means and which errors it has: `None` here says nothing about a message.
//!
//! INVARIANT: a question parsed here equals the one that prost and `from_proto` make of the same
//! bytes. The tests compare the two.

use std::str;

use super::fields::{FieldContent, Fields};
use crate::api::decision::question::{Credential, Operation, Question};
use crate::config::api::RequestRules;
use crate::pdp::query_ref::{self, EntityRef, UidRef, ValueRef};
use crate::pdp::switches;

/// Most levels of nested values; prost's own bound on nesting is far above.
const MAX_DEPTH: usize = 8;
/// Most entries of one map, parents of one entity, and entities.
const MAX_ENTRIES: usize = 64;
/// Most values of one request, including entities and parents.
const MAX_VALUES: usize = 1_024;

/// Parses the `AuthorizeRequest` in `message`; `None` for a shape that is not plain.
pub(crate) fn request<'a>(message: &'a [u8], rules: &RequestRules) -> Option<Question<'a>> {
    if !switches::borrowed_parsing() {
        return None;
    }
    let (mut principal, mut token, mut action, mut resource) = (None, None, None, None);
    let mut context = Vec::new();
    let mut entities = Vec::new();
    let mut explain = None;
    let mut values = ValueParser {
        values_left: MAX_VALUES.min(rules.max_values),
        max_depth: rules.max_value_depth.min(MAX_DEPTH),
    };
    read_fields(message, |field| match field {
        (1, FieldContent::Bytes(bytes)) => set_once(&mut principal, uid(bytes, None)?),
        (2, FieldContent::Bytes(bytes)) => set_once(&mut token, text(bytes)?),
        (3, FieldContent::Bytes(bytes)) => set_once(&mut action, uid(bytes, Some("Action"))?),
        (4, FieldContent::Bytes(bytes)) => set_once(&mut resource, uid(bytes, None)?),
        (5, FieldContent::Bytes(bytes)) => push_bounded(&mut context, values.entry(bytes, 1)?),
        (6, FieldContent::Bytes(bytes)) => push_bounded(&mut entities, values.entity(bytes)?),
        (7, FieldContent::Varint(value)) => set_once(&mut explain, bool(value)?),
        _ => None,
    })?;
    if entities.len() > rules.max_request_entities {
        return None;
    }
    let credential = match (principal, token) {
        (Some(principal), None) => Credential::Principal(Ok(principal)),
        (None, Some(token)) => Credential::Token(token),
        (None, None) => Credential::Anonymous,
        // If both members of a oneof are sent, the later one counts.
        (Some(_), Some(_)) => return None,
    };
    Some(Question {
        credential,
        explain: explain.unwrap_or(false),
        operation: Ok(Operation {
            action: action?,
            resource: resource?,
            // Of two entries with one name, prost keeps the later.
            context: query_ref::Fields::from_entries(context)?,
            entities,
        }),
    })
}

/// Returns the correlation id and the request of the `StreamAuthorizeRequest` in `message`.
pub(crate) fn stream_item(message: &[u8]) -> Option<(u64, &[u8])> {
    let mut correlation_id = None;
    let mut request = None;
    read_fields(message, |field| match field {
        (1, FieldContent::Varint(id)) => set_once(&mut correlation_id, id),
        (2, FieldContent::Bytes(bytes)) => set_once(&mut request, bytes),
        _ => None,
    })?;
    Some((correlation_id.unwrap_or(0), request?))
}

/// Calls `read` for each field of `message`; `None` if `read` rejects a field, or if not all bytes
/// are fields.
fn read_fields<'a>(
    message: &'a [u8],
    read: impl FnMut((u64, FieldContent<'a>)) -> Option<()>,
) -> Option<()> {
    let mut fields = Fields(message);
    fields.by_ref().try_for_each(read)?;
    fields.0.is_empty().then_some(())
}

/// Sets `field`; `None` if it was set before.
fn set_once<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

/// Appends `value`; `None` if the list is full.
fn push_bounded<T>(list: &mut Vec<T>, value: T) -> Option<()> {
    (list.len() < MAX_ENTRIES).then(|| list.push(value))
}

fn bool(value: u64) -> Option<bool> {
    match value {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()
}

/// Parses an `EntityUid`; `default_type` replaces an empty type.
fn uid<'a>(message: &'a [u8], default_type: Option<&'a str>) -> Option<UidRef<'a>> {
    let mut type_name = None;
    let mut id = None;
    read_fields(message, |field| match field {
        (1, FieldContent::Bytes(bytes)) => set_once(&mut type_name, text(bytes)?),
        (2, FieldContent::Bytes(bytes)) => set_once(&mut id, text(bytes)?),
        _ => None,
    })?;
    Some(UidRef {
        type_name: type_name.filter(|name| !name.is_empty()).or(default_type)?,
        id: id?,
    })
}

/// A parser of values, which bounds their number and depth.
struct ValueParser {
    values_left: usize,
    max_depth: usize,
}

impl ValueParser {
    /// Counts one value; `None` if there are too many.
    fn count_value(&mut self) -> Option<()> {
        self.values_left = self.values_left.checked_sub(1)?;
        Some(())
    }

    fn entity<'a>(&mut self, message: &'a [u8]) -> Option<EntityRef<'a>> {
        self.count_value()?;
        let mut own_uid = None;
        let mut attributes = Vec::new();
        let mut parents = Vec::new();
        let mut tags = Vec::new();
        read_fields(message, |field| match field {
            (1, FieldContent::Bytes(bytes)) => set_once(&mut own_uid, uid(bytes, None)?),
            (2, FieldContent::Bytes(bytes)) => push_bounded(&mut attributes, self.entry(bytes, 1)?),
            (3, FieldContent::Bytes(bytes)) => {
                self.count_value()?;
                push_bounded(&mut parents, uid(bytes, None)?)
            }
            (4, FieldContent::Bytes(bytes)) => push_bounded(&mut tags, self.entry(bytes, 1)?),
            _ => None,
        })?;
        Some(EntityRef {
            uid: own_uid?,
            attributes: query_ref::Fields::from_entries(attributes)?,
            parents,
            tags: query_ref::Fields::from_entries(tags)?,
        })
    }

    /// Parses an entry of a map, whose value is nested `depth` levels deep.
    fn entry<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<(&'a str, ValueRef<'a>)> {
        let mut name = None;
        let mut value = None;
        read_fields(message, |field| match field {
            (1, FieldContent::Bytes(bytes)) => set_once(&mut name, text(bytes)?),
            (2, FieldContent::Bytes(bytes)) => set_once(&mut value, self.value(bytes, depth)?),
            _ => None,
        })?;
        Some((name?, value?))
    }

    fn value<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<ValueRef<'a>> {
        if depth > self.max_depth {
            return None;
        }
        self.count_value()?;
        let mut fields = Fields(message);
        let value = match fields.next()? {
            (1, FieldContent::Varint(value)) => ValueRef::Bool(bool(value)?),
            (2, FieldContent::Varint(value)) => ValueRef::Long(value.cast_signed()),
            (3, FieldContent::Bytes(bytes)) => ValueRef::String(text(bytes)?),
            (4, FieldContent::Bytes(bytes)) => ValueRef::Entity(uid(bytes, None)?),
            (5, FieldContent::Bytes(bytes)) => ValueRef::Set(self.set(bytes, depth + 1)?),
            (6, FieldContent::Bytes(bytes)) => ValueRef::Record(self.record(bytes, depth + 1)?),
            (7, FieldContent::Bytes(bytes)) => ValueRef::Decimal(text(bytes)?),
            (8, FieldContent::Bytes(bytes)) => ValueRef::Ip(text(bytes)?),
            (9, FieldContent::Bytes(bytes)) => ValueRef::Datetime(text(bytes)?),
            (10, FieldContent::Bytes(bytes)) => ValueRef::Duration(text(bytes)?),
            _ => return None,
        };
        // A second kind would replace the first one, or be merged with it.
        fields.0.is_empty().then_some(value)
    }

    fn set<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<Vec<ValueRef<'a>>> {
        let mut members = Vec::new();
        read_fields(message, |field| match field {
            (1, FieldContent::Bytes(bytes)) => {
                members.push(self.value(bytes, depth)?);
                Some(())
            }
            _ => None,
        })?;
        Some(members)
    }

    fn record<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<query_ref::Fields<'a>> {
        let mut entries = Vec::new();
        read_fields(message, |field| match field {
            (1, FieldContent::Bytes(bytes)) => {
                push_bounded(&mut entries, self.entry(bytes, depth)?)
            }
            _ => None,
        })?;
        query_ref::Fields::from_entries(entries)
    }
}

#[cfg(test)]
mod tests;
