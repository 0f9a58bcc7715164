//! The one function that every door calls: snapshot in force, cache, PDP, decision log.
//!
//! Nothing here knows a wire format, and nothing here decides by itself. What is decided is told to
//! the decision log here, and not by the doors, so that no door can forget to.

pub mod cache;
pub mod figures;
pub mod key;
pub mod query_ref;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::decision_log::{Answers, CacheUse, DecisionId, DecisionLog, Origin, Told};
use crate::pdp::Decided;
use crate::pdp::NoAnswer;
use crate::pdp::answer::{Answer, Decision, PolicyError};
use crate::pdp::id::PolicyId;
use crate::pdp::query::Query;
use crate::pdp::{Snapshot, authorize_with_stats};
use crate::policy_store::Reader;
use cache::{Cache, CacheFigures, CacheSettings};
use figures::DecisionFigures;
use query_ref::QueryRef;

/// What a door makes of an answer, and what is remembered of it.
pub trait Rendered: Answers + Clone + Debug + Send + Sync + 'static {
    /// What the cache holds of it.
    type Entry: Entry<Self>;

    /// Made once for each decision.
    fn render(answer: Answer) -> Self;

    /// The memory that one holds, in bytes.
    fn weight(&self) -> usize;
}

/// An answer and the key that it is found by, best in one piece of memory: whoever compares the
/// key then has the answer at hand, and need not fetch it from far away.
pub trait Entry<A>: Debug + Send + Sync + 'static {
    /// `answer`, to be found by `key`.
    fn of(key: &[u8], answer: &A) -> Self;

    /// The key.
    fn key(&self) -> &[u8];

    /// The answer.
    fn answer(&self) -> A;

    /// The memory that both hold, in bytes.
    fn weight(&self) -> usize;
}

/// In two pieces, for answers of any kind.
impl<A: Rendered> Entry<A> for (Box<[u8]>, A) {
    fn of(key: &[u8], answer: &A) -> Self {
        (key.into(), answer.clone())
    }

    fn key(&self) -> &[u8] {
        &self.0
    }

    fn answer(&self) -> A {
        self.1.clone()
    }

    fn weight(&self) -> usize {
        self.0.len() + self.1.weight()
    }
}

/// An answer, and how it was come by.
#[derive(Clone, Debug)]
pub struct Answered<A> {
    /// The answer.
    pub answer: A,
    /// Whether it was remembered.
    pub source: Source,
    /// By which it is found in the decision log, if it is there.
    pub decision_id: Option<DecisionId>,
}

impl<A> Answered<A> {
    fn remembered(answer: A) -> Self {
        Self {
            answer,
            source: Source::Cache,
            decision_id: None,
        }
    }

    fn decided(answer: A) -> Self {
        Self {
            answer,
            source: Source::Decided,
            decision_id: None,
        }
    }
}

/// A query, and its answer if that was at hand.
#[derive(Debug)]
pub struct LookedUp<'a, A> {
    snapshot: &'a Snapshot,
    query: QueryRef<'a>,
    answer: Option<A>,
    /// An even share of the time that looking took.
    took: Duration,
}

impl<'a, A> LookedUp<'a, A> {
    /// The query.
    #[must_use]
    pub fn query(&self) -> &QueryRef<'a> {
        &self.query
    }

    /// The answer, if it was at hand.
    #[must_use]
    pub fn answer(&self) -> Option<&A> {
        self.answer.as_ref()
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

/// Leave to decide: the decision log has room for what comes of it.
///
/// Good until the call waits for something, and for a few decisions: what is let in at a time
/// is what the log may hold beyond its bound.
#[must_use]
#[derive(Debug)]
pub struct Leave(());

/// Answers queries from the snapshot in force, remembering the answers as `A`.
#[derive(Debug)]
pub struct Engine<A: Rendered = Arc<Answer>> {
    snapshots: Reader,
    cache: Option<Cache<A>>,
    figures: Option<Arc<DecisionFigures>>,
    log: Option<DecisionLog>,
}

impl<A: Rendered> Engine<A> {
    /// An engine over the snapshots that `snapshots` reads.
    #[must_use]
    pub fn new(snapshots: Reader, settings: CacheSettings) -> Self {
        Self {
            snapshots,
            cache: Cache::new(settings),
            figures: None,
            log: None,
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

    /// The same, and what it decides is told to `log`.
    #[must_use]
    pub fn logged(self, log: DecisionLog) -> Self {
        Self {
            log: Some(log),
            ..self
        }
    }

    /// Whether decisions are logged.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Waits until it may decide, which is at once unless the decision log is full and calls are to
    /// wait for it. Dropping the future has no effect.
    pub async fn leave(&self) -> Leave {
        if let Some(log) = &self.log {
            log.wait_for_room().await;
        }
        Leave(())
    }

    /// Leave to decide, if there is no need to wait for it.
    pub fn leave_now(&self) -> Option<Leave> {
        let has_room = self.log.as_ref().is_none_or(DecisionLog::has_room);
        has_room.then_some(Leave(()))
    }

    /// The snapshot in force; `None` while nothing has been loaded.
    ///
    /// A request or batch calls this once and passes the snapshot down: a reload between two
    /// loads would let one request see two policy sets.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.load()
    }

    /// Decides `query` on `snapshot`, from the cache when it is there, and tells the decision log
    /// what came of it.
    ///
    /// Does no I/O and does not block. The answer is the same with and without the cache.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`] when the query is malformed or does not fit the snapshot's schema, or when
    /// deciding it would take more than it may.
    pub fn authorize(
        &self,
        snapshot: &Snapshot,
        query: &Query,
        origin: &Origin<'_>,
        leave: &Leave,
    ) -> Result<Answered<A>, NoAnswer> {
        let decide = || self.decide(snapshot, query);
        if self.cache.is_none() && self.log.is_none() && self.figures.is_none() {
            return decide().map(Answered::decided);
        }
        self.noted(snapshot, &QueryRef::from(query), origin, leave, decide)
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
        origin: &Origin<'_>,
        leave: &Leave,
    ) -> Result<Answered<A>, NoAnswer> {
        let decide = || self.decide(snapshot, &query.to_query());
        self.noted(snapshot, query, origin, leave, decide)
    }

    /// Looks whether the answers to `queries` are at hand: many at once cost less than one by one.
    /// Nothing is counted or logged until they are given, by
    /// [`authorize_looked_up`](Self::authorize_looked_up).
    pub fn look_up<'a>(
        &self,
        snapshot: &'a Snapshot,
        queries: Vec<QueryRef<'a>>,
    ) -> Vec<LookedUp<'a, A>> {
        let begun = self.is_timed().then(Instant::now);
        let mut answers = match &self.cache {
            Some(cache) => cache.look_up(snapshot, &queries),
            None => Vec::new(),
        }
        .into_iter();
        let took = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let share = took / u32::try_from(queries.len()).unwrap_or(u32::MAX).max(1);
        let looked_up = queries.into_iter().map(|query| LookedUp {
            snapshot,
            query,
            answer: answers.next().flatten(),
            took: share,
        });
        looked_up.collect()
    }

    /// Decides as [`authorize`](Self::authorize) does, on the snapshot that the query was looked up
    /// for.
    ///
    /// # Errors
    ///
    /// As [`authorize`](Self::authorize).
    pub fn authorize_looked_up(
        &self,
        looked_up: &LookedUp<'_, A>,
        origin: &Origin<'_>,
        leave: &Leave,
    ) -> Result<Answered<A>, NoAnswer> {
        let LookedUp {
            snapshot,
            query,
            answer,
            took,
        } = looked_up;
        let (Some(answer), Some(cache)) = (answer, &self.cache) else {
            return self.authorize_ref(snapshot, query, origin, leave);
        };
        cache.count_hit();
        let answered = Answered::remembered(answer.clone());
        Ok(self.told(snapshot, query, origin, answered, *took))
    }

    fn decide(&self, snapshot: &Snapshot, query: &Query) -> Result<A, NoAnswer> {
        let Decided { answer, candidates } = authorize_with_stats(snapshot, query)?;
        if let Some(figures) = &self.figures {
            figures.decided(candidates, answer.diagnostics.errors.len());
        }
        Ok(A::render(answer))
    }

    /// Takes the time of an answer, counts it and tells the log of it, as far as that is wanted.
    fn noted(
        &self,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        origin: &Origin<'_>,
        _leave: &Leave,
        decide: impl FnOnce() -> Result<A, NoAnswer>,
    ) -> Result<Answered<A>, NoAnswer> {
        let answer = || match &self.cache {
            Some(cache) => Self::ask(cache, snapshot, query, decide),
            None => decide().map(Answered::decided),
        };
        if !self.is_timed() {
            return answer();
        }
        let begun = Instant::now();
        let answered = answer();
        let took = begun.elapsed();
        match answered {
            Ok(answered) => Ok(self.told(snapshot, query, origin, answered, took)),
            Err(no_answer) => {
                self.refused(origin, reason(&no_answer));
                Err(no_answer)
            }
        }
    }

    /// Whether anyone wants to know how long answers take.
    fn is_timed(&self) -> bool {
        self.figures.is_some() || self.log.is_some()
    }

    /// Counts an answer and tells the log of it, as far as that is wanted.
    fn told(
        &self,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        origin: &Origin<'_>,
        mut answered: Answered<A>,
        took: Duration,
    ) -> Answered<A> {
        if let Some(figures) = &self.figures {
            figures.answered(answered.answer.decision(), answered.source, took);
        }
        if let Some(log) = &self.log {
            let told = Told {
                query,
                answer: &answered.answer,
                revision: snapshot.revision(),
                cache: match (answered.source, &self.cache) {
                    (Source::Cache, _) => CacheUse::Hit,
                    (Source::Decided, Some(_)) => CacheUse::Miss,
                    (Source::Decided, None) => CacheUse::Off,
                },
                took,
            };
            answered.decision_id = log.decided(origin, &told);
        }
        answered
    }

    /// Tells the decision log of a request that was refused, and why: by a door, so that it never
    /// came to a query, or here.
    pub fn refused(&self, origin: &Origin<'_>, reason: &'static str) {
        if let Some(log) = &self.log {
            log.refused(origin, reason);
        }
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

/// What the decision log calls it.
fn reason(no_answer: &NoAnswer) -> &'static str {
    match no_answer {
        NoAnswer::Invalid(_) => "INVALID_REQUEST",
        NoAnswer::UnknownPrincipal => "PRINCIPAL_UNKNOWN",
        NoAnswer::TooManyPolicies { .. } => "TOO_MANY_POLICIES",
        NoAnswer::TooManyEntities { .. } => "TOO_MANY_ENTITIES",
    }
}

impl Answers for Arc<Answer> {
    fn decision(&self) -> Decision {
        self.decision
    }

    fn determining(&self) -> impl Iterator<Item = &str> {
        self.diagnostics.determining.iter().map(PolicyId::as_str)
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.diagnostics
            .errors
            .iter()
            .map(|PolicyError { policy, message }| (policy.as_str(), message.as_str()))
    }
}
