//! A value that is replaced as a whole while other threads read it.
//!
//! Nothing here waits for a replacement: readers load the value again when they need it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The number of a value in its [`Versioned`] cell: 0 for the first, one more at each replacement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(u64);

/// A cell for one value that can be replaced as a whole, such as a set of keys or a TLS
/// configuration.
///
/// Readers share the value by `Arc`. Results that were computed from a value can be cached together
/// with its [`Version`]: they are current as long as [`version`](Self::version) returns the same
/// number, which costs one atomic load.
#[derive(Debug, Default)]
pub struct Versioned<T> {
    value: RwLock<Arc<T>>,
    /// Written only under the write lock of `value`.
    version: AtomicU64,
}

impl<T> Versioned<T> {
    /// Creates a cell that holds `value`.
    pub fn new(value: T) -> Self {
        Self {
            value: RwLock::new(Arc::new(value)),
            version: AtomicU64::new(0),
        }
    }

    /// Returns the current value.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        self.load_with_version().1
    }

    /// Returns the current value and its version.
    #[must_use]
    pub fn load_with_version(&self) -> (Version, Arc<T>) {
        // A panic elsewhere leaves the value whole, since it is only ever replaced as a whole.
        let value = self.value.read().unwrap_or_else(PoisonError::into_inner);
        // INVARIANT: the version cannot change while the read lock is held.
        (self.version(), Arc::clone(&value))
    }

    /// Returns the version of the current value. Takes no lock.
    #[must_use]
    pub fn version(&self) -> Version {
        Version(self.version.load(Ordering::Acquire))
    }

    /// Replaces the value. When this returns, all readers get the new value and the new version.
    pub fn replace(&self, value: T) {
        let value = Arc::new(value);
        let mut current = self.value.write().unwrap_or_else(PoisonError::into_inner);
        let previous = std::mem::replace(&mut *current, value);
        self.version.fetch_add(1, Ordering::Release);
        drop(current);
        // Readers do not wait while a large value is freed.
        drop(previous);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacement_changes_value_and_version() {
        let cell = Versioned::new("first");
        let (version, value) = cell.load_with_version();
        assert_eq!((version, *value), (Version::default(), "first"));
        assert_eq!(cell.version(), version);
        cell.replace("second");
        assert_ne!(cell.version(), version);
        assert_eq!(*cell.load(), "second");
        assert_eq!(*value, "first", "a reader keeps the value that it loaded");
    }

    #[test]
    fn equal_value_gets_new_version() {
        let cell = Versioned::new(1);
        let before = cell.version();
        cell.replace(1);
        assert_ne!(cell.version(), before);
    }

    #[test]
    fn version_and_value_match_under_contention() {
        let cell = Versioned::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=10_000).for_each(|value| cell.replace(value)));
            for _ in 0..10_000 {
                let (Version(version), value) = cell.load_with_version();
                assert_eq!(version, *value);
            }
        });
    }
}
