//! The one function that every door calls: snapshot in force, cache, PDP.
//!
//! Nothing here knows a wire format, and nothing here decides by itself.

pub mod cache;
pub mod figures;
pub mod key;
pub mod query_ref;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use crate::pdp::NoAnswer;
use crate::pdp::answer::{Answer, Decision};
use crate::pdp::authorize::Decided;
use crate::pdp::query::Query;
use crate::pdp::{Snapshot, authorize_and_tell};
use crate::policy_store::Reader;
use cache::{Cache, CacheFigures, CacheSettings};
use figures::DecisionFigures;
use query_ref::QueryRef;

/// What a door makes of an answer, and what is remembered of it.
pub trait Rendered: Clone + Debug + Send + Sync + 'static {
    /// Made once for each decision.
    fn render(answer: Answer) -> Self;

    /// What was decided.
    fn decision(&self) -> Decision;

    /// The memory that one holds, in bytes.
    fn weight(&self) -> usize;
}

/// An answer, and how it was come by.
#[derive(Clone, Debug)]
pub struct Answered<A> {
    /// The answer.
    pub answer: A,
    /// Whether it was remembered.
    pub source: Source,
}

impl<A> Answered<A> {
    fn remembered(answer: A) -> Self {
        Self {
            answer,
            source: Source::Cache,
        }
    }

    fn decided(answer: A) -> Self {
        Self {
            answer,
            source: Source::Decided,
        }
    }
}

/// How an answer was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was remembered.
    Cache,
    /// It was decided for this query.
    Decided,
}

/// Answers queries from the snapshot in force, remembering the answers as `A`.
#[derive(Debug)]
pub struct Engine<A: Rendered = Arc<Answer>> {
    snapshots: Reader,
    cache: Option<Cache<A>>,
    figures: Option<Arc<DecisionFigures>>,
}

impl<A: Rendered> Engine<A> {
    /// An engine over the snapshots that `snapshots` reads.
    #[must_use]
    pub fn new(snapshots: Reader, settings: CacheSettings) -> Self {
        Self {
            snapshots,
            cache: Cache::new(settings),
            figures: None,
        }
    }

    /// The same, and what it does is counted.
    #[must_use]
    pub fn counted(self, figures: Arc<DecisionFigures>) -> Self {
        Self {
            figures: Some(figures),
            ..self
        }
    }

    /// The snapshot in force; `None` while nothing has been loaded.
    ///
    /// A request or batch calls this once and passes the snapshot down: a reload between two
    /// loads would let one request see two policy sets.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.load()
    }

    /// Decides `query` on `snapshot`, from the cache when it is there.
    ///
    /// Does no I/O and does not block. The answer is the same with and without the cache.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`] when the query is malformed or does not fit the snapshot's schema, or when
    /// deciding it would take more than it may.
    pub fn authorize(&self, snapshot: &Snapshot, query: &Query) -> Result<Answered<A>, NoAnswer> {
        let decide = || self.decide(snapshot, query);
        self.noted(|| match &self.cache {
            Some(cache) => Self::ask(cache, snapshot, &QueryRef::from(query), decide),
            None => decide().map(Answered::decided),
        })
    }

    /// Decides as [`authorize`](Self::authorize) does; the query is copied only when it must be
    /// decided.
    ///
    /// # Errors
    ///
    /// As [`authorize`](Self::authorize).
    pub fn authorize_ref(
        &self,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
    ) -> Result<Answered<A>, NoAnswer> {
        let decide = || self.decide(snapshot, &query.to_query());
        self.noted(|| match &self.cache {
            Some(cache) => Self::ask(cache, snapshot, query, decide),
            None => decide().map(Answered::decided),
        })
    }

    fn decide(&self, snapshot: &Snapshot, query: &Query) -> Result<A, NoAnswer> {
        let Decided { answer, candidates } = authorize_and_tell(snapshot, query)?;
        if let Some(figures) = &self.figures {
            figures.decided(candidates, answer.diagnostics.errors.len());
        }
        Ok(A::render(answer))
    }

    /// Takes the time of `answer`, and counts what it gives.
    fn noted(
        &self,
        answer: impl FnOnce() -> Result<Answered<A>, NoAnswer>,
    ) -> Result<Answered<A>, NoAnswer> {
        let Some(figures) = &self.figures else {
            return answer();
        };
        let begun = Instant::now();
        let answered = answer()?;
        figures.answered(answered.answer.decision(), answered.source, begun.elapsed());
        Ok(answered)
    }

    #[tracing::instrument(level = "debug", skip_all, fields(
        action.r#type = query.action.type_name,
        principal.r#type = query.principal.type_name,
        resource.r#type = query.resource.type_name,
        revision = %snapshot.revision(),
    ))]
    fn ask(
        cache: &Cache<A>,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        decide: impl FnOnce() -> Result<A, NoAnswer>,
    ) -> Result<Answered<A>, NoAnswer> {
        // The key holds of the request all that the outcome can depend on, and answers are kept
        // by revision: a hit is a request that was checked before on this very content.
        cache.get_or_decide(snapshot, query, decide)
    }

    /// Drops the remembered answers of snapshots that are no longer in force.
    ///
    /// Only memory is at stake: no lookup under the snapshot in force can meet them.
    pub fn forget(&self) {
        if let Some(cache) = &self.cache {
            cache.forget();
        }
    }

    /// What the cache did since the start; `None` when it is off.
    #[must_use]
    pub fn cache_figures(&self) -> Option<CacheFigures> {
        self.cache.as_ref().map(Cache::figures)
    }
}
