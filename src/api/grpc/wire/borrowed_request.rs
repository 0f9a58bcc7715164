//! Reads a request of the plain shape where it lies, without copying a text.
//!
//! The plain shape is what callers send: known fields, each singular one once, everything that a
//! request needs, nothing of unusual size. Whatever else comes is left to prost, which is the one
//! definition of what a message means and of every error: `None` here says nothing about it.
//!
//! INVARIANT: what is read here is what prost and `from_proto` make of the same bytes. The tests
//! hold the two against each other.

use std::str;

use crate::api::decision::question::{Credential, Operation, Question};
use crate::config::api::RequestRules;
use crate::pdp::query_ref::{self, EntityRef, UidRef, ValueRef};

/// The most values within one another; prost's own bound on nesting is far above.
const MAX_DEPTH: usize = 8;
/// The most entries of one map, parents of one entity, and entities.
const MAX_ENTRIES: usize = 64;
/// The most values in all, entities and parents among them.
const MAX_VALUES: usize = 1_024;

/// Parses the `AuthorizeRequest` in `message`; `None` for a shape that is not plain.
pub(crate) fn request<'a>(message: &'a [u8], rules: &RequestRules) -> Option<Question<'a>> {
    let mut principal = None;
    let mut token = None;
    let mut action = None;
    let mut resource = None;
    let mut context = Vec::new();
    let mut entities = Vec::new();
    let mut explain = None;
    let mut values = Values {
        left: MAX_VALUES.min(rules.max_values),
        max_depth: rules.max_value_depth.min(MAX_DEPTH),
    };
    let mut rest = Bytes(message);
    while let Some(field) = rest.field()? {
        match field {
            (1, Content::Bytes(bytes)) => once(&mut principal, uid(bytes, None)?)?,
            (2, Content::Bytes(bytes)) => once(&mut token, text(bytes)?)?,
            (3, Content::Bytes(bytes)) => once(&mut action, uid(bytes, Some("Action"))?)?,
            (4, Content::Bytes(bytes)) => once(&mut resource, uid(bytes, None)?)?,
            (5, Content::Bytes(bytes)) => push(&mut context, values.entry(bytes, 1)?)?,
            (6, Content::Bytes(bytes)) => push(&mut entities, entity(bytes, &mut values)?)?,
            (7, Content::Varint(value)) => once(&mut explain, bool(value)?)?,
            (_, Content::Bytes(_) | Content::Varint(_)) => return None,
        }
    }
    if entities.len() > rules.max_request_entities {
        return None;
    }
    let credential = match (principal, token) {
        (Some(principal), None) => Credential::Principal(Ok(principal)),
        (None, Some(token)) => Credential::Token(token),
        (None, None) => Credential::Anonymous,
        // Of two members of a oneof the later counts.
        (Some(_), Some(_)) => return None,
    };
    Some(Question {
        credential,
        explain: explain.unwrap_or(false),
        operation: Ok(Operation {
            action: action?,
            resource: resource?,
            // Of two entries with one name prost keeps the later.
            context: query_ref::Fields::from_entries(context)?,
            entities,
        }),
    })
}

/// The correlation id and the request of the `StreamAuthorizeRequest` in `message`.
pub(crate) fn stream_item(message: &[u8]) -> Option<(u64, &[u8])> {
    let mut correlation_id = None;
    let mut request = None;
    let mut rest = Bytes(message);
    while let Some(field) = rest.field()? {
        match field {
            (1, Content::Varint(id)) => once(&mut correlation_id, id)?,
            (2, Content::Bytes(bytes)) => once(&mut request, bytes)?,
            (_, Content::Bytes(_) | Content::Varint(_)) => return None,
        }
    }
    Some((correlation_id.unwrap_or(0), request?))
}

/// The fields of a message of the plain shape; of any other those before the first that is not.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u8, Content<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = Bytes(self.0);
        let field = rest.field().flatten();
        self.0 = rest.0;
        field
    }
}

/// What is left of a message.
struct Bytes<'a>(&'a [u8]);

/// What stands in a field. The plain shape has fields of no other kind.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

impl<'a> Bytes<'a> {
    /// The next field and its number: `Some(None)` at the end, `None` for what is not plain.
    fn field(&mut self) -> Option<Option<(u8, Content<'a>)>> {
        // Every field here has a number below 16, and so a tag of one byte.
        let Some((&tag, rest)) = self.0.split_first() else {
            return Some(None);
        };
        self.0 = rest;
        let content = match tag & 7 {
            0 => Content::Varint(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (content, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Content::Bytes(content)
            }
            _ => return None,
        };
        (tag < 0x80).then_some(Some((tag >> 3, content)))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (at, &byte) in self.0.iter().enumerate().take(10) {
            // The tenth byte has room for one bit.
            if at == 9 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = self.0.get(at + 1..)?;
                return Some(value);
            }
        }
        None
    }
}

/// Sets what must not be set twice.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

fn push<T>(list: &mut Vec<T>, value: T) -> Option<()> {
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

/// An `EntityUid`; an empty type is `default_type`.
fn uid<'a>(message: &'a [u8], default_type: Option<&'a str>) -> Option<UidRef<'a>> {
    let mut type_name = None;
    let mut id = None;
    let mut rest = Bytes(message);
    while let Some(field) = rest.field()? {
        match field {
            (1, Content::Bytes(bytes)) => once(&mut type_name, text(bytes)?)?,
            (2, Content::Bytes(bytes)) => once(&mut id, text(bytes)?)?,
            (_, Content::Bytes(_) | Content::Varint(_)) => return None,
        }
    }
    Some(UidRef {
        type_name: type_name.filter(|name| !name.is_empty()).or(default_type)?,
        id: id?,
    })
}

fn entity<'a>(message: &'a [u8], values: &mut Values) -> Option<EntityRef<'a>> {
    values.one()?;
    let mut own = None;
    let mut attributes = Vec::new();
    let mut parents = Vec::new();
    let mut tags = Vec::new();
    let mut rest = Bytes(message);
    while let Some(field) = rest.field()? {
        match field {
            (1, Content::Bytes(bytes)) => once(&mut own, uid(bytes, None)?)?,
            (2, Content::Bytes(bytes)) => push(&mut attributes, values.entry(bytes, 1)?)?,
            (3, Content::Bytes(bytes)) => {
                values.one()?;
                push(&mut parents, uid(bytes, None)?)?;
            }
            (4, Content::Bytes(bytes)) => push(&mut tags, values.entry(bytes, 1)?)?,
            (_, Content::Bytes(_) | Content::Varint(_)) => return None,
        }
    }
    Some(EntityRef {
        uid: own?,
        attributes: query_ref::Fields::from_entries(attributes)?,
        parents,
        tags: query_ref::Fields::from_entries(tags)?,
    })
}

/// Reads values, and counts them.
struct Values {
    left: usize,
    max_depth: usize,
}

impl Values {
    /// Counts one more.
    fn one(&mut self) -> Option<()> {
        self.left = self.left.checked_sub(1)?;
        Some(())
    }

    /// An entry of a map, whose value stands at `depth`.
    fn entry<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<(&'a str, ValueRef<'a>)> {
        let mut name = None;
        let mut value = None;
        let mut rest = Bytes(message);
        while let Some(field) = rest.field()? {
            match field {
                (1, Content::Bytes(bytes)) => once(&mut name, text(bytes)?)?,
                (2, Content::Bytes(bytes)) => once(&mut value, self.value(bytes, depth)?)?,
                (_, Content::Bytes(_) | Content::Varint(_)) => return None,
            }
        }
        Some((name?, value?))
    }

    fn value<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<ValueRef<'a>> {
        if depth > self.max_depth {
            return None;
        }
        self.one()?;
        let mut rest = Bytes(message);
        let value = match rest.field()?? {
            (1, Content::Varint(value)) => ValueRef::Bool(bool(value)?),
            (2, Content::Varint(value)) => ValueRef::Long(value.cast_signed()),
            (3, Content::Bytes(bytes)) => ValueRef::String(text(bytes)?),
            (4, Content::Bytes(bytes)) => ValueRef::Entity(uid(bytes, None)?),
            (5, Content::Bytes(bytes)) => ValueRef::Set(self.set(bytes, depth + 1)?),
            (6, Content::Bytes(bytes)) => ValueRef::Record(self.record(bytes, depth + 1)?),
            (7, Content::Bytes(bytes)) => ValueRef::Decimal(text(bytes)?),
            (8, Content::Bytes(bytes)) => ValueRef::Ip(text(bytes)?),
            (9, Content::Bytes(bytes)) => ValueRef::Datetime(text(bytes)?),
            (10, Content::Bytes(bytes)) => ValueRef::Duration(text(bytes)?),
            (_, Content::Bytes(_) | Content::Varint(_)) => return None,
        };
        // A second kind would replace the first one, or join it.
        rest.0.is_empty().then_some(value)
    }

    fn set<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<Vec<ValueRef<'a>>> {
        let mut members = Vec::new();
        let mut rest = Bytes(message);
        while let Some(field) = rest.field()? {
            match field {
                (1, Content::Bytes(bytes)) => members.push(self.value(bytes, depth)?),
                (_, Content::Bytes(_) | Content::Varint(_)) => return None,
            }
        }
        Some(members)
    }

    fn record<'a>(&mut self, message: &'a [u8], depth: usize) -> Option<query_ref::Fields<'a>> {
        let mut fields = Vec::new();
        let mut rest = Bytes(message);
        while let Some(field) = rest.field()? {
            match field {
                (1, Content::Bytes(bytes)) => push(&mut fields, self.entry(bytes, depth)?)?,
                (_, Content::Bytes(_) | Content::Varint(_)) => return None,
            }
        }
        query_ref::Fields::from_entries(fields)
    }
}

#[cfg(test)]
mod tests;
