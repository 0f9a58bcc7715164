//! Whether this process should be sent calls: nothing holds it back, and it is not stopping.
//!
//! Who is not ready holds a [`Pending`], which says why; who stops the service calls
//! [`Readiness::drain`]; the health service watches.

use std::fmt;
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
pub struct Pending(Readiness, Wanting);

/// What holds readiness back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanting {
    /// No policies have been loaded yet.
    Policies,
}

/// Why calls should go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unready {
    /// Something has not come yet.
    Wants(Wanting),
    /// The service is going down, or will be shortly.
    Draining,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wants(Wanting::Policies) => "no policies have been loaded yet",
            Self::Draining => "the service is shutting down",
        })
    }
}

/// What callers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Calls are welcome.
    Serving,
    /// Calls should go elsewhere.
    NotServing,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// What is wanting, once for each guard.
    pending: Vec<Wanting>,
    /// The end has been announced, or has begun.
    leaving: bool,
    draining: bool,
}

impl State {
    fn health(&self) -> Health {
        match self.pending.is_empty() && !self.leaving {
            true => Health::Serving,
            false => Health::NotServing,
        }
    }

    fn unready(&self) -> Vec<Unready> {
        let mut reasons = Vec::new();
        for wanting in &self.pending {
            let reason = Unready::Wants(*wanting);
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        if self.leaving {
            reasons.push(Unready::Draining);
        }
        reasons
    }
}

impl Readiness {
    /// Ready until something holds it back: take the first [`Pending`] before showing it to anyone.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// Holds readiness back until the guard is dropped. Guards add up.
    pub fn pending(&self, wanting: Wanting) -> Pending {
        self.change(|state| state.pending.push(wanting));
        Pending(self.clone(), wanting)
    }

    /// Ends readiness, while calls are still taken: who asks goes elsewhere in good time. There is
    /// no way back.
    pub fn leave(&self) {
        self.change(|state| state.leaving = true);
    }

    /// Ends readiness and begins draining. There is no way back.
    pub fn drain(&self) {
        self.change(|state| (state.leaving, state.draining) = (true, true));
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

    /// Everything that speaks against sending calls; nothing when they are welcome.
    #[must_use]
    pub fn unready(&self) -> Vec<Unready> {
        self.0.borrow().unready()
    }

    /// Waits until the health turns or draining begins, and tells the health; `None` once nobody
    /// is left who could turn it.
    ///
    /// Cancel-safe. A health that turned and turned back in between is reported as it now is.
    pub async fn changed(&mut self) -> Option<Health> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().health())
    }

    /// Whether draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.borrow().draining
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
        let Self(readiness, wanting) = self;
        readiness.change(|state| {
            // INVARIANT: this guard's was put there when it was made, and is taken off only here.
            if let Some(at) = state.pending.iter().position(|other| other == wanting) {
                state.pending.swap_remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        let reader = readiness.reader();
        let (first, second) = (
            readiness.pending(Wanting::Policies),
            readiness.pending(Wanting::Policies),
        );
        assert_eq!(reader.health(), Health::NotServing);
        drop(first);
        assert_eq!(reader.health(), Health::NotServing);
        drop(second);
        assert_eq!(reader.health(), Health::Serving);
    }

    #[test]
    fn what_speaks_against_calls_is_told_once_each() {
        let readiness = Readiness::new();
        let reader = readiness.reader();
        assert_eq!(reader.unready(), []);
        let wanting = [(); 2].map(|()| readiness.pending(Wanting::Policies));
        readiness.drain();
        let policies = Unready::Wants(Wanting::Policies);
        assert_eq!(reader.unready(), [policies, Unready::Draining]);
        drop(wanting);
        assert_eq!(reader.unready(), [Unready::Draining]);
    }

    #[tokio::test]
    async fn a_service_that_drains_never_becomes_ready_again() {
        let readiness = Readiness::new();
        let pending = readiness.pending(Wanting::Policies);
        let mut reader = readiness.reader();
        readiness.drain();
        reader.draining().await;
        drop(pending);
        assert_eq!(reader.health(), Health::NotServing);
    }

    #[tokio::test]
    async fn a_reader_wakes_when_the_health_turns_and_ends_with_the_last_writer() {
        let readiness = Readiness::new();
        let first = readiness.pending(Wanting::Policies);
        let mut reader = readiness.reader();
        drop(readiness.pending(Wanting::Policies));
        assert!(!reader.0.has_changed().unwrap(), "health is what it was");
        drop(first);
        assert_eq!(reader.changed().await, Some(Health::Serving));
        readiness.drain();
        assert_eq!(reader.changed().await, Some(Health::NotServing));
        drop(readiness);
        assert_eq!(reader.changed().await, None);
    }
}
