//! A value that is replaced as a whole while others read it, with a number that tells one from the
//! next.

use std::sync::Arc;

use tokio::sync::watch;

/// Tells the values of one slot apart: 0 before the first, then counting up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Version(u64);

#[derive(Debug)]
struct Held<T> {
    version: Version,
    value: Option<Arc<T>>,
}

/// The write side.
#[derive(Debug)]
pub(super) struct Writer<T>(watch::Sender<Held<T>>);

/// The read side.
#[derive(Debug)]
pub(super) struct Reader<T>(watch::Receiver<Held<T>>);

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A slot that holds `first`, or nothing yet.
pub(super) fn slot<T>(first: Option<T>) -> (Writer<T>, Reader<T>) {
    let (writer, reader) = watch::channel(Held {
        version: Version(u64::from(first.is_some())),
        value: first.map(Arc::new),
    });
    (Writer(writer), Reader(reader))
}

impl<T> Writer<T> {
    /// Whoever reads from now on gets this value.
    pub(super) fn put(&self, value: T) {
        self.0.send_modify(|held| {
            held.version.0 += 1;
            held.value = Some(Arc::new(value));
        });
    }

    /// Whoever reads from now on gets nothing.
    pub(super) fn clear(&self) {
        self.0.send_modify(|held| {
            held.version.0 += 1;
            held.value = None;
        });
    }

    /// What is in it.
    pub(super) fn value(&self) -> Option<Arc<T>> {
        self.0.borrow().value.clone()
    }
}

impl<T> Reader<T> {
    /// What is in it, and its number.
    pub(super) fn load(&self) -> (Version, Option<Arc<T>>) {
        let held = self.0.borrow();
        (held.version, held.value.clone())
    }

    /// The number of what is in it.
    pub(super) fn version(&self) -> Version {
        self.0.borrow().version
    }
}
