//! Tracks whether this process is ready for calls: nothing blocks it, and it is not shutting down.
//!
//! A part that is not ready holds an [`UnreadyGuard`] with its [`Reason`]. Shutdown calls
//! [`Readiness::drain`]. The health service reads the result.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::counters::page::{Export, Page, metrics};

metrics! {
    READY = Gauge "cedar_pdp_ready" []
        "1 if the service is ready for calls, else 0";
}

/// The write side of the readiness: blocks it, or ends it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<State>>);

/// The read side of the readiness.
#[derive(Clone, Debug)]
pub struct ReadinessReader(watch::Receiver<State>);

/// A guard that keeps the process from being ready until it is dropped.
#[must_use = "readiness is blocked only as long as this lives"]
#[derive(Debug)]
pub struct UnreadyGuard(Readiness, Reason);

/// The reason why calls should go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No policies have been loaded yet.
    NoPolicies,
    /// The service is shutting down, or will be shortly.
    ShuttingDown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPolicies => "no policies have been loaded yet",
            Self::ShuttingDown => "the service is shutting down",
        })
    }
}

/// The health that callers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// Calls are served.
    Serving,
    /// Calls should go elsewhere.
    NotServing,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// One for each guard, and one for each announcement of the shutdown.
    reasons: Vec<Reason>,
    is_draining: bool,
}

impl State {
    fn health(&self) -> Health {
        match self.reasons.is_empty() {
            true => Health::Serving,
            false => Health::NotServing,
        }
    }
}

impl Readiness {
    /// Creates the write side. It is ready: block it before others can read it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Blocks readiness until the guard is dropped. Several guards add up.
    pub fn block(&self, reason: Reason) -> UnreadyGuard {
        self.change(|state| state.reasons.push(reason));
        UnreadyGuard(self.clone(), reason)
    }

    /// Ends readiness for good. Calls are still accepted, while callers are sent elsewhere.
    pub fn stop_serving(&self) {
        self.change(|state| state.reasons.push(Reason::ShuttingDown));
    }

    /// Ends readiness for good, and begins draining.
    pub fn drain(&self) {
        self.change(|state| {
            state.reasons.push(Reason::ShuttingDown);
            state.is_draining = true;
        });
    }

    /// Creates a read side that has seen the current health.
    #[must_use]
    pub fn reader(&self) -> ReadinessReader {
        ReadinessReader(self.0.subscribe())
    }

    // Readers wake when the health changes or draining begins, not for each guard.
    fn change(&self, edit: impl FnOnce(&mut State)) {
        self.0.send_if_modified(|state| {
            let before = (state.health(), state.is_draining);
            edit(state);
            before != (state.health(), state.is_draining)
        });
    }
}

impl ReadinessReader {
    /// Returns the current health.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.borrow().health()
    }

    /// Returns all reasons why calls should go elsewhere, each once. Empty while serving.
    #[must_use]
    pub fn reasons(&self) -> Vec<Reason> {
        let state = self.0.borrow();
        let all = [Reason::NoPolicies, Reason::ShuttingDown].into_iter();
        all.filter(|reason| state.reasons.contains(reason))
            .collect()
    }

    /// Waits until the health changes or draining begins, and returns the health; `None` once no
    /// writer is left.
    ///
    /// Cancel-safe. A health that changed and changed back meanwhile is reported as it is now.
    pub async fn changed(&mut self) -> Option<Health> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().health())
    }

    /// Returns whether draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.borrow().is_draining
    }

    /// Waits until draining begins, or no writer is left.
    ///
    /// Cancel-safe.
    pub async fn draining(&mut self) {
        // Without a writer nothing will be served again, which is the same for those who wait.
        let _ = self.0.wait_for(|state| state.is_draining).await;
    }
}

impl Export for ReadinessReader {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        page.value(&READY, f64::from(self.health() == Health::Serving))
    }
}

impl Drop for UnreadyGuard {
    fn drop(&mut self) {
        let Self(readiness, reason) = self;
        readiness.change(|state| {
            // INVARIANT: the guard added its reason when it was created, and only it removes it.
            if let Some(at) = state.reasons.iter().position(|other| other == reason) {
                state.reasons.swap_remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_last_guard_makes_ready() {
        let readiness = Readiness::new();
        let reader = readiness.reader();
        let (first, second) = (
            readiness.block(Reason::NoPolicies),
            readiness.block(Reason::NoPolicies),
        );
        assert_eq!(reader.health(), Health::NotServing);
        drop(first);
        assert_eq!(reader.health(), Health::NotServing);
        drop(second);
        assert_eq!(reader.health(), Health::Serving);
    }

    #[test]
    fn each_reason_is_listed_once() {
        let readiness = Readiness::new();
        let reader = readiness.reader();
        assert_eq!(reader.reasons(), []);
        let guards = [(); 2].map(|()| readiness.block(Reason::NoPolicies));
        readiness.stop_serving();
        readiness.drain();
        assert_eq!(reader.reasons(), [Reason::NoPolicies, Reason::ShuttingDown]);
        drop(guards);
        assert_eq!(reader.reasons(), [Reason::ShuttingDown]);
    }

    #[tokio::test]
    async fn draining_ends_readiness_for_good() {
        let readiness = Readiness::new();
        let guard = readiness.block(Reason::NoPolicies);
        let mut reader = readiness.reader();
        readiness.drain();
        reader.draining().await;
        drop(guard);
        assert_eq!(reader.health(), Health::NotServing);
    }

    #[tokio::test]
    async fn readers_wake_when_the_health_changes() {
        let readiness = Readiness::new();
        let first = readiness.block(Reason::NoPolicies);
        let mut reader = readiness.reader();
        drop(readiness.block(Reason::NoPolicies));
        assert!(!reader.0.has_changed().unwrap(), "the health is unchanged");
        drop(first);
        assert_eq!(reader.changed().await, Some(Health::Serving));
        readiness.drain();
        assert_eq!(reader.changed().await, Some(Health::NotServing));
        // The last writer is gone.
        drop(readiness);
        assert_eq!(reader.changed().await, None);
    }
}
