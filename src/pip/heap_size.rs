//! Sizes of the values that are cached for a token, so that the cache can be bounded in bytes.

use std::sync::Arc;

use crate::pdp::query::{Claimed, Record, Uid, Value};

/// A value that may own memory on the heap.
pub(super) trait HeapSize {
    /// Returns the bytes that the value owns on the heap, without its own size.
    fn heap_size(&self) -> usize;
}

impl<T: HeapSize> HeapSize for Arc<T> {
    fn heap_size(&self) -> usize {
        size_of::<T>() + T::heap_size(self)
    }
}

impl HeapSize for Uid {
    fn heap_size(&self) -> usize {
        self.type_name.capacity() + self.id.capacity()
    }
}

impl HeapSize for Claimed {
    fn heap_size(&self) -> usize {
        let Self {
            attributes,
            parents,
            stored: _,
        } = self;
        let of_parents: usize = parents.iter().map(HeapSize::heap_size).sum();
        attributes.heap_size() + parents.capacity() * size_of::<Uid>() + of_parents
    }
}

impl HeapSize for Record {
    fn heap_size(&self) -> usize {
        let fields = self
            .iter()
            .map(|(name, value)| size_of::<(String, Value)>() + name.len() + value.heap_size());
        fields.sum()
    }
}

impl HeapSize for Value {
    fn heap_size(&self) -> usize {
        match self {
            Self::Bool(_) | Self::Long(_) => 0,
            Self::String(text)
            | Self::Decimal(text)
            | Self::Ip(text)
            | Self::Datetime(text)
            | Self::Duration(text) => text.capacity(),
            Self::Entity(uid) => uid.heap_size(),
            Self::Set(members) => {
                let of_members: usize = members.iter().map(HeapSize::heap_size).sum();
                members.capacity() * size_of::<Self>() + of_members
            }
            Self::Record(fields) => fields.heap_size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pdp::query::StoredPrincipal;

    #[test]
    fn claims_count_parents_and_attribute_values() {
        let claimed = |parents: usize, words: usize| {
            let words = (0..words)
                .map(|n| Value::String(format!("{n:04}")))
                .collect();
            let attributes = BTreeMap::from([("words".to_owned(), Value::Set(words))]);
            Claimed {
                attributes: attributes.into(),
                parents: (0..parents)
                    .map(|n| Uid::new("Company::Directory::Role", format!("{n:04}")))
                    .collect(),
                stored: StoredPrincipal::Join,
            }
        };
        let empty = claimed(0, 0).heap_size();
        let with_parents = claimed(100, 0).heap_size();
        assert!(with_parents >= empty + 100 * (size_of::<Uid>() + 24 + 4));
        let with_words = claimed(0, 100).heap_size();
        assert!(with_words >= empty + 100 * (size_of::<Value>() + 4));
    }
}
