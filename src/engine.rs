//! Answers queries for every protocol: current snapshot, cache, PDP, decision log.
//!
//! Nothing here knows a wire format, and nothing here evaluates a policy. Decisions are logged
//! here and not in the protocols, so that no protocol can forget to.

pub mod cache;
mod cached_answer;
mod forbid_errors;
pub mod key;
pub mod metrics;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use cached_answer::{CacheEntry, CachedAnswer};

use crate::counters::page::{Export, Page};
use crate::decision_log::{CacheStatus, DecisionId, DecisionLog, LogEntry, Origin};
use crate::pdp::Decided;
use crate::pdp::answer::Answer;
use crate::pdp::query_ref::QueryRef;
use crate::pdp::{NoAnswer, Snapshot, authorize_with_stats};
use crate::policy_store::Reader;
use cache::{Cache, CacheMetrics, CacheSettings};
use metrics::DecisionMetrics;

/// An answer with its source and its id in the decision log.
#[derive(Clone, Debug)]
pub struct EngineAnswer<A> {
    /// The answer.
    pub answer: A,
    /// The source of the answer.
    pub source: Source,
    /// The record's id in the decision log, if this decision was logged.
    pub decision_id: Option<DecisionId>,
}

impl<A> EngineAnswer<A> {
    fn new(answer: A, source: Source) -> Self {
        Self {
            answer,
            source,
            decision_id: None,
        }
    }
}

/// The source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache.
    Cache,
    /// An evaluation of the policies for this query.
    Decided,
}

/// A query and its cached answer, if there was one.
#[derive(Debug)]
pub struct CacheLookup<'a, A> {
    snapshot: &'a Snapshot,
    query: QueryRef<'a>,
    answer: Option<A>,
    /// An equal share of the time that the lookup of all queries took.
    took: Duration,
}

impl<'a, A> CacheLookup<'a, A> {
    /// The query.
    #[must_use]
    pub fn query(&self) -> &QueryRef<'a> {
        &self.query
    }

    /// The cached answer; `None` if the query must be decided.
    #[must_use]
    pub fn answer(&self) -> Option<&A> {
        self.answer.as_ref()
    }
}

/// A permit to decide: the decision log has room for the record.
///
/// Valid until the caller waits for something, and for a few decisions. The calls that hold
/// permits at one time bound how far the log may exceed its capacity.
#[must_use]
#[derive(Debug)]
pub struct LogPermit(());

/// Answers queries from the current snapshot, and caches the answers as `A`.
#[derive(Debug)]
pub struct Engine<A: CachedAnswer = Arc<Answer>> {
    snapshots: Reader,
    cache: Option<Cache<A>>,
    metrics: Option<Arc<DecisionMetrics>>,
    log: Option<DecisionLog>,
}

impl<A: CachedAnswer> Engine<A> {
    /// Creates an engine that decides on the snapshots of `snapshots`.
    #[must_use]
    pub fn new(snapshots: Reader, settings: CacheSettings) -> Self {
        Self {
            snapshots,
            cache: Cache::new(settings),
            metrics: None,
            log: None,
        }
    }

    /// Counts decisions in `metrics` and records them in `log`, where given.
    #[must_use]
    pub fn observed_by(
        self,
        metrics: Option<Arc<DecisionMetrics>>,
        log: Option<DecisionLog>,
    ) -> Self {
        Self {
            metrics,
            log,
            ..self
        }
    }

    /// Returns whether decisions are logged.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Waits for a log permit. Returns at once unless the log is full and set to block.
    ///
    /// Cancel-safe: dropping the future has no effect.
    pub async fn log_permit(&self) -> LogPermit {
        if let Some(log) = &self.log {
            log.wait_for_space().await;
        }
        LogPermit(())
    }

    /// Returns a log permit, or `None` if the caller must wait for one.
    pub fn try_log_permit(&self) -> Option<LogPermit> {
        let has_space = self.log.as_ref().is_none_or(DecisionLog::has_space);
        has_space.then_some(LogPermit(()))
    }

    /// Returns the current snapshot, or `None` before the first one is loaded.
    ///
    /// A request or batch calls this once and passes the snapshot down: a reload between two
    /// loads would let one request see two policy sets.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.load()
    }

    /// Answers `query` on `snapshot`, from the cache if possible, and logs the decision.
    ///
    /// Does no I/O and does not block. The answer is the same with and without the cache.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`] if the query is malformed, does not fit the snapshot's schema, or exceeds a
    /// limit on evaluation.
    pub fn authorize(
        &self,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        origin: &Origin<'_>,
        _permit: &LogPermit,
    ) -> Result<EngineAnswer<A>, NoAnswer> {
        let decide = || self.decide(snapshot, query);
        let answer = || match &self.cache {
            Some(cache) => Self::get_or_decide(cache, snapshot, query, decide),
            None => decide().map(|answer| EngineAnswer::new(answer, Source::Decided)),
        };
        if !self.is_observed() {
            return answer();
        }
        let start = Instant::now();
        let result = answer();
        let took = start.elapsed();
        match result {
            Ok(result) => Ok(self.record(snapshot, query, origin, result, took)),
            Err(no_answer) => {
                self.log_rejection(origin, no_answer.reason());
                Err(no_answer)
            }
        }
    }

    /// Looks up the cached answers to `queries`, which is cheaper than one lookup each.
    ///
    /// Counts and logs nothing: [`authorize_looked_up`](Self::authorize_looked_up) does that for
    /// each answer that is used.
    pub fn look_up<'a>(
        &self,
        snapshot: &'a Snapshot,
        queries: Vec<QueryRef<'a>>,
    ) -> Vec<CacheLookup<'a, A>> {
        let start = self.is_observed().then(Instant::now);
        let mut answers = match &self.cache {
            Some(cache) => cache.look_up(snapshot, &queries),
            None => Vec::new(),
        }
        .into_iter();
        let took = start.map_or(Duration::ZERO, |start| start.elapsed());
        let share = took / u32::try_from(queries.len()).unwrap_or(u32::MAX).max(1);
        let lookups = queries.into_iter().map(|query| CacheLookup {
            snapshot,
            query,
            answer: answers.next().flatten(),
            took: share,
        });
        lookups.collect()
    }

    /// Answers as [`authorize`](Self::authorize) does, on the snapshot of the lookup.
    pub fn authorize_looked_up(
        &self,
        lookup: &CacheLookup<'_, A>,
        origin: &Origin<'_>,
        permit: &LogPermit,
    ) -> Result<EngineAnswer<A>, NoAnswer> {
        let (snapshot, query) = (lookup.snapshot, &lookup.query);
        let (Some(answer), Some(cache)) = (&lookup.answer, &self.cache) else {
            return self.authorize(snapshot, query, origin, permit);
        };
        cache.count_hit();
        let answer = EngineAnswer::new(answer.clone(), Source::Cache);
        Ok(self.record(snapshot, query, origin, answer, lookup.took))
    }

    /// Evaluates the policies, on a copy of the query.
    fn decide(&self, snapshot: &Snapshot, query: &QueryRef<'_>) -> Result<A, NoAnswer> {
        let Decided { answer, candidates } = authorize_with_stats(snapshot, &query.to_query())?;
        if let Some(metrics) = &self.metrics {
            metrics.count_evaluation(candidates, &answer);
        }
        Ok(A::from_answer(answer))
    }

    /// Returns whether metrics or the log are on, so that answers must be timed.
    fn is_observed(&self) -> bool {
        self.metrics.is_some() || self.log.is_some()
    }

    /// Counts and logs an answer, if metrics or the log are on.
    fn record(
        &self,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        origin: &Origin<'_>,
        mut result: EngineAnswer<A>,
        took: Duration,
    ) -> EngineAnswer<A> {
        if let Some(metrics) = &self.metrics {
            metrics.count_answer(result.answer.decision(), result.source, took);
        }
        if let Some(log) = &self.log {
            let entry = LogEntry {
                query,
                answer: &result.answer,
                revision: snapshot.revision(),
                cache: match (result.source, &self.cache) {
                    (Source::Cache, _) => CacheStatus::Hit,
                    (Source::Decided, Some(_)) => CacheStatus::Miss,
                    (Source::Decided, None) => CacheStatus::Off,
                },
                took,
            };
            result.decision_id = log.record(origin, &entry);
        }
        result
    }

    /// Logs a rejected request: one that never became a query, or one that has no answer.
    pub fn log_rejection(&self, origin: &Origin<'_>, reason: &'static str) {
        if let Some(log) = &self.log {
            log.record_rejection(origin, reason);
        }
    }

    #[tracing::instrument(level = "debug", skip_all, fields(
        action.r#type = query.action.type_name,
        principal.r#type = query.principal.type_name,
        resource.r#type = query.resource.type_name,
        revision = %snapshot.revision(),
    ))]
    fn get_or_decide(
        cache: &Cache<A>,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        decide: impl FnOnce() -> Result<A, NoAnswer>,
    ) -> Result<EngineAnswer<A>, NoAnswer> {
        // The key holds all of the request that the outcome can depend on, and answers are cached
        // by revision: a hit is a request that was validated before on this very content.
        let (answer, source) = cache.get_or_decide(snapshot, query, decide)?;
        Ok(EngineAnswer::new(answer, source))
    }

    /// Drops all cached answers, to free the memory of answers from replaced snapshots.
    ///
    /// Correctness does not need it: no lookup under the current snapshot finds another's answer.
    pub fn clear_cache(&self) {
        if let Some(cache) = &self.cache {
            cache.clear();
        }
    }

    /// Returns the cache's counts since startup, or `None` if the cache is off.
    #[must_use]
    pub fn cache_metrics(&self) -> Option<CacheMetrics> {
        self.cache.as_ref().map(Cache::metrics)
    }
}

impl<A: CachedAnswer> Export for Engine<A> {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        if let Some(metrics) = &self.metrics {
            metrics.export(page)?;
        }
        self.cache_metrics().unwrap_or_default().export(page)
    }
}
