//! Whether this process should be sent calls: nothing holds it back, and it is not stopping.
//!
//! Nothing here knows why. Who is not ready holds a [`Pending`]; who stops the service calls
//! [`Readiness::drain`]; the health service watches.

use std::sync::Arc;

use tokio::sync::watch;

/// The write side: holds readiness back, or ends it.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<State>>);

/// The read side.
#[derive(Clone, Debug)]
pub struct ReadinessReader(watch::Receiver<State>);

/// Holds readiness back until dropped.
#[must_use = "readiness is held back only as long as this lives"]
#[derive(Debug)]
pub struct Pending(Readiness);

/// What callers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Calls are welcome.
    Serving,
    /// Calls should go elsewhere.
    NotServing,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    pending: usize,
    draining: bool,
}

impl State {
    fn health(self) -> Health {
        match self {
            Self {
                pending: 0,
                draining: false,
            } => Health::Serving,
            Self { .. } => Health::NotServing,
        }
    }
}

impl Readiness {
    /// Ready until something holds it back: take the first [`Pending`] before showing it to anyone.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// Holds readiness back until the guard is dropped. Guards add up.
    pub fn pending(&self) -> Pending {
        self.change(|state| state.pending += 1);
        Pending(self.clone())
    }

    /// Ends readiness. There is no way back.
    pub fn drain(&self) {
        self.change(|state| state.draining = true);
    }

    /// A new read side, for which the present health counts as seen.
    #[must_use]
    pub fn reader(&self) -> ReadinessReader {
        ReadinessReader(self.0.subscribe())
    }

    // Readers wake when something turns, not for each guard that comes or goes.
    fn change(&self, edit: impl FnOnce(&mut State)) {
        self.0.send_if_modified(|state| {
            let before = (state.health(), state.draining);
            edit(state);
            before != (state.health(), state.draining)
        });
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl ReadinessReader {
    /// The present health.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.borrow().health()
    }

    /// Waits until the health turns or draining begins, and tells the health; `None` once nobody
    /// is left who could turn it.
    ///
    /// Cancel-safe. A health that turned and turned back in between is reported as it now is.
    pub async fn changed(&mut self) -> Option<Health> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().health())
    }

    /// Waits until draining begins, or nobody is left who could begin it.
    ///
    /// Cancel-safe.
    pub async fn draining(&mut self) {
        // Without a writer nothing will ever be served again: for those who wait, the same.
        let _ = self.0.wait_for(|state| state.draining).await;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // INVARIANT: this guard was counted once when it was made, so there is one to take off.
        self.0.change(|state| state.pending -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        let reader = readiness.reader();
        let (first, second) = (readiness.pending(), readiness.pending());
        assert_eq!(reader.health(), Health::NotServing);
        drop(first);
        assert_eq!(reader.health(), Health::NotServing);
        drop(second);
        assert_eq!(reader.health(), Health::Serving);
    }

    #[tokio::test]
    async fn a_service_that_drains_never_becomes_ready_again() {
        let readiness = Readiness::new();
        let pending = readiness.pending();
        let mut reader = readiness.reader();
        readiness.drain();
        reader.draining().await;
        drop(pending);
        assert_eq!(reader.health(), Health::NotServing);
    }

    #[tokio::test]
    async fn a_reader_wakes_when_the_health_turns_and_ends_with_the_last_writer() {
        let readiness = Readiness::new();
        let first = readiness.pending();
        let mut reader = readiness.reader();
        drop(readiness.pending());
        assert!(!reader.0.has_changed().unwrap(), "health is what it was");
        drop(first);
        assert_eq!(reader.changed().await, Some(Health::Serving));
        readiness.drain();
        assert_eq!(reader.changed().await, Some(Health::NotServing));
        drop(readiness);
        assert_eq!(reader.changed().await, None);
    }
}
