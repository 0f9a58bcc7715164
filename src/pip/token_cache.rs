//! Caches verified tokens, bounded in bytes, so that the next request with the same token needs no
//! signature check.
//!
//! An entry holds only what does not change: the signature was valid under one set of keys, and
//! what the claims say. The reader checks on each hit that keys and revocations are still the same
//! and that the token has not expired. Only valid tokens are cached, so a caller without one cannot
//! fill the cache.

use std::num::NonZeroU64;

use foldhash::quality::RandomState;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::pdp::query::{Claimed, Record, Uid, Value};

/// Bytes that moka and the allocator need for an entry besides token and value, rounded up.
const ENTRY_BYTES: usize = 256;

/// Values by token, the least recently used evicted first.
#[derive(Debug)]
pub(super) struct TokenCache<V: Clone + Send + Sync + 'static>(Cache<Box<str>, V, RandomState>);

impl<V: Clone + Send + Sync + 'static> TokenCache<V> {
    /// Creates a cache that holds up to `capacity` bytes. `heap_size` returns the bytes that a value
    /// owns on the heap.
    pub(super) fn new(capacity: NonZeroU64, heap_size: fn(&V) -> usize) -> Self {
        let cache = Cache::<Box<str>, V>::builder()
            .max_capacity(capacity.get())
            .weigher(move |token, value| {
                let bytes = ENTRY_BYTES + token.len() + size_of::<V>() + heap_size(value);
                u32::try_from(bytes).unwrap_or(u32::MAX)
            })
            // By frequency, tokens that were used often before they expired would keep out new ones.
            .eviction_policy(EvictionPolicy::lru())
            .build_with_hasher(RandomState::default());
        Self(cache)
    }

    /// Returns the value cached for `token`, which is compared as a whole.
    pub(super) fn get(&self, token: &str) -> Option<V> {
        self.0.get(token)
    }

    /// Caches `value` for `token`, and replaces an earlier value.
    pub(super) fn insert(&self, token: &str, value: V) {
        self.0.insert(token.into(), value);
        // Evict now, not some inserts later: tokens may be large, and memory is bounded in bytes.
        // This costs little beside the signature check that came before.
        self.0.run_pending_tasks();
    }

    pub(super) fn len(&self) -> u64 {
        self.0.entry_count()
    }
}

/// Returns the bytes that a uid owns on the heap.
pub(super) fn heap_size_of_uid(uid: &Uid) -> usize {
    uid.type_name.capacity() + uid.id.capacity()
}

/// Returns the bytes that attributes and parents own on the heap.
pub(super) fn heap_size_of_claimed(claimed: &Claimed) -> usize {
    let Claimed {
        attributes,
        parents,
        stored: _,
    } = claimed;
    let of_parents: usize = parents.iter().map(heap_size_of_uid).sum();
    heap_size_of_record(attributes) + parents.capacity() * size_of::<Uid>() + of_parents
}

fn heap_size_of_record(fields: &Record) -> usize {
    let of_field = |(name, value): &(String, Value)| {
        size_of::<(String, Value)>() + name.len() + heap_size_of_value(value)
    };
    fields.iter().map(of_field).sum()
}

fn heap_size_of_value(value: &Value) -> usize {
    match value {
        Value::Bool(_) | Value::Long(_) => 0,
        Value::String(text)
        | Value::Decimal(text)
        | Value::Ip(text)
        | Value::Datetime(text)
        | Value::Duration(text) => text.capacity(),
        Value::Entity(uid) => heap_size_of_uid(uid),
        Value::Set(members) => {
            let of_members: usize = members.iter().map(heap_size_of_value).sum();
            members.capacity() * size_of::<Value>() + of_members
        }
        Value::Record(fields) => heap_size_of_record(fields),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::pdp::query::StoredPrincipal;

    fn cache(capacity: u64) -> TokenCache<Arc<Vec<u8>>> {
        let capacity = NonZeroU64::new(capacity).unwrap();
        TokenCache::new(capacity, |value| size_of::<Vec<u8>>() + value.capacity())
    }

    fn value(number: u8, bytes: usize) -> Arc<Vec<u8>> {
        Arc::new(vec![number; bytes])
    }

    #[test]
    fn token_is_found_by_its_whole_text() {
        let cache = cache(1 << 20);
        cache.insert("one", value(1, 1));
        assert_eq!(cache.get("one"), Some(value(1, 1)));
        assert_eq!(cache.get("on"), None);
        cache.insert("one", value(2, 1));
        assert_eq!(cache.get("one"), Some(value(2, 1)));
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn cache_is_bounded_in_bytes() {
        const VALUE_BYTES: usize = 4_096;
        let capacity = 1 << 20;
        let cache = cache(capacity);
        for number in 0..2_000 {
            cache.insert(&number.to_string(), value(0, VALUE_BYTES));
            assert!(cache.len() * VALUE_BYTES as u64 <= capacity);
        }
        assert!(cache.len() > 200, "{}", cache.len());
    }

    #[test]
    fn replaced_value_gives_its_bytes_back() {
        let cache = cache(1 << 20);
        cache.insert("kept", value(0, 4_096));
        for _ in 0..1_000 {
            cache.insert("replaced", value(0, 4_096));
        }
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn used_and_new_tokens_stay() {
        let cache = cache(1 << 16);
        cache.insert("used", value(1, 1));
        for number in 0..2_000 {
            let token = number.to_string();
            cache.insert(&token, value(2, 1));
            assert!(cache.get("used").is_some(), "{number}");
            assert!(cache.get(&token).is_some(), "{number}");
        }
        assert_eq!(cache.get("0"), None);
    }

    #[test]
    fn token_above_capacity_is_not_cached() {
        let cache = cache(1_000);
        cache.insert(&"x".repeat(1_000), value(1, 1));
        assert_eq!(cache.len(), 0);
    }

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
        let empty = heap_size_of_claimed(&claimed(0, 0));
        let with_parents = heap_size_of_claimed(&claimed(100, 0));
        assert!(with_parents >= empty + 100 * (size_of::<Uid>() + 24 + 4));
        let with_words = heap_size_of_claimed(&claimed(0, 100));
        assert!(with_words >= empty + 100 * (size_of::<Value>() + 4));
    }
}
