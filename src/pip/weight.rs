//! How much memory the things take that are remembered of a token, so that a bound in bytes is one.

use crate::pdp::query::{Claimed, Record, Uid, Value};

/// What takes memory beyond its own size.
pub(super) trait Weighed {
    /// The bytes that it holds elsewhere.
    fn heap_bytes(&self) -> usize;
}

impl Weighed for Uid {
    fn heap_bytes(&self) -> usize {
        self.type_name.capacity() + self.id.capacity()
    }
}

impl Weighed for Claimed {
    fn heap_bytes(&self) -> usize {
        let Self {
            attributes,
            parents,
            stored: _,
        } = self;
        let of_parents: usize = parents.iter().map(Weighed::heap_bytes).sum();
        attributes.heap_bytes() + parents.capacity() * size_of::<Uid>() + of_parents
    }
}

impl Weighed for Record {
    fn heap_bytes(&self) -> usize {
        let fields = self
            .iter()
            .map(|(name, value)| size_of::<(String, Value)>() + name.len() + value.heap_bytes());
        fields.sum()
    }
}

impl Weighed for Value {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Bool(_) | Self::Long(_) => 0,
            Self::String(text)
            | Self::Decimal(text)
            | Self::Ip(text)
            | Self::Datetime(text)
            | Self::Duration(text) => text.capacity(),
            Self::Entity(uid) => uid.heap_bytes(),
            Self::Set(members) => {
                let of_members: usize = members.iter().map(Weighed::heap_bytes).sum();
                members.capacity() * size_of::<Self>() + of_members
            }
            Self::Record(fields) => fields.heap_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pdp::query::StoredPrincipal;

    #[test]
    fn claims_weigh_what_they_hold() {
        let claimed = |roles: usize, words: usize| {
            let words = (0..words)
                .map(|n| Value::String(format!("{n:04}")))
                .collect();
            let attributes = BTreeMap::from([("words".to_owned(), Value::Set(words))]);
            Claimed {
                attributes: attributes.into(),
                parents: (0..roles)
                    .map(|n| Uid::new("Company::Directory::Role", format!("{n:04}")))
                    .collect(),
                stored: StoredPrincipal::Join,
            }
        };
        let least = claimed(0, 0).heap_bytes();
        let with_roles = claimed(100, 0).heap_bytes();
        assert!(with_roles >= least + 100 * (size_of::<Uid>() + 24 + 4));
        let with_words = claimed(0, 100).heap_bytes();
        assert!(with_words >= least + 100 * (size_of::<Value>() + 4));
    }
}
