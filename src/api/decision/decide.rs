//! Decides a parsed request: permits, rights, identity, engine, counters and log.
//!
//! Unary calls, batches and streams of every protocol call [`Decider::decide`].

use std::future::Future;
use std::sync::Arc;

use super::call::Call;
use super::identity::{self, Identification, Principal};
use super::large_requests::{self, LargeRequestLimiter, LargeRequestPermit};
use super::memory::MemoryBudget;
use super::question::{Operation, Parsed, Question};
use super::rejection::Rejection;
use crate::api::auth::caller::{Denied, IdentityKind, Right};
use crate::api::metrics::CallMetrics;
use crate::config::api::AuthorizationRules;
use crate::decision_log::Method;
use crate::engine::{CachedAnswer, Engine, EngineAnswer, LogPermit};
use crate::pdp::query::Uid;
use crate::pdp::query_ref::QueryRef;
use crate::pdp::{NoAnswer, Snapshot, reject_redefined_principal};
use crate::pip::{KeyMiss, KeyWait, Tokens};
use crate::readiness::ReadinessReader;

/// The decision path of all protocols, with answers encoded as `A`.
#[derive(Clone, Debug)]
pub(crate) struct Decider<A: CachedAnswer> {
    pub(crate) engine: Arc<Engine<A>>,
    pub(crate) tokens: Option<Arc<Tokens>>,
    pub(crate) rules: Arc<AuthorizationRules>,
    pub(crate) memory: MemoryBudget,
    pub(crate) large_requests: LargeRequestLimiter,
    pub(crate) readiness: ReadinessReader,
    pub(crate) metrics: Option<Arc<CallMetrics>>,
}

/// The permits needed to decide a message.
#[derive(Debug)]
pub(crate) struct Permits {
    pub(crate) log: LogPermit,
    pub(crate) large_request: LargeRequestPermit,
}

/// The outcome of an attempt to decide a request.
#[derive(Debug)]
pub(crate) enum Outcome<A> {
    Done(Result<EngineAnswer<A>, Rejection>),
    /// The signing key of the request's token is being fetched: wait, then decide again.
    Wait(KeyWait),
}

/// A message that could not be parsed.
#[derive(Debug)]
pub(crate) enum ParseFault<E> {
    /// The request exceeds a limit, and only the request is rejected.
    Request(Rejection),
    /// The message is malformed, and the whole call fails.
    Call(E),
}

/// The principal of a request, its operation, and whether it requests an explanation.
pub(crate) type Identified<'a> = (Principal<'a>, (Operation<'a>, bool));

impl<A: CachedAnswer> Decider<A> {
    /// Returns the current snapshot.
    ///
    /// A request or batch calls this once: a reload between two loads would let it see two
    /// policy sets.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>, Rejection> {
        self.engine.snapshot().ok_or(Rejection::NothingLoaded)
    }

    /// Counts a rejection of a whole call.
    pub(crate) fn count(&self, rejection: &Rejection) {
        rejection.count(self.metrics.as_deref());
    }

    /// Counts the rejection of a request of `call`.
    pub(crate) fn count_request(&self, rejection: &Rejection, call: &Call) {
        if let Rejection::NoAnswer(NoAnswer::UnknownPrincipal) = rejection
            && let Some(tokens) = &self.tokens
        {
            tokens.count_unknown_principal();
        }
        self.count(rejection);
        if let Some(span) = &call.span {
            span.record_rejection();
        }
    }

    /// Waits for a permit to log the decision of a message of `bytes` bytes.
    ///
    /// Checks the caller's right again, because the caller list may have changed.
    pub(crate) async fn log_permit(
        &self,
        call: &Call,
        bytes: usize,
    ) -> Result<LogPermit, Rejection> {
        let permit = match self.engine.try_log_permit() {
            Some(permit) => permit,
            // Not waited for while draining: a full log will not have room in time.
            None => Box::pin(self.wait_in_time(self.engine.log_permit(), call, bytes)).await?,
        };
        call.caller.recheck(Right::Authorize)?;
        Ok(permit)
    }

    /// Waits for a permit to decode and decide a large message of `bytes` bytes.
    pub(crate) async fn large_request_permit(
        &self,
        call: &Call,
        bytes: usize,
    ) -> Result<LargeRequestPermit, Rejection> {
        match self.large_requests.try_acquire() {
            Some(permit) => Ok(permit),
            None => Box::pin(self.wait_in_time(self.large_requests.acquire(), call, bytes)).await,
        }
    }

    /// Waits for all permits that a message of `bytes` bytes needs.
    pub(crate) async fn permits(&self, call: &Call, bytes: usize) -> Result<Permits, Rejection> {
        let large_request = match large_requests::is_large(bytes) {
            true => self.large_request_permit(call, bytes).await?,
            false => LargeRequestPermit::NONE,
        };
        let log = self.log_permit(call, bytes).await?;
        call.deadline.check()?;
        Ok(Permits { log, large_request })
    }

    /// Waits for `permit` until the call's deadline or the start of a drain, with `bytes` charged
    /// to the memory budget meanwhile.
    async fn wait_in_time<T>(
        &self,
        permit: impl Future<Output = T>,
        call: &Call,
        bytes: usize,
    ) -> Result<T, Rejection> {
        let _reserved = self.memory.reserve(bytes)?;
        let mut readiness = self.readiness.clone();
        tokio::select! {
            biased;
            permit = permit => Ok(permit),
            () = readiness.draining() => Err(Rejection::ShuttingDown),
            () = call.deadline.passed() => Err(Rejection::DeadlineExceeded),
        }
    }

    /// Decides `question` on `snapshot`, unless the signing key of its token is missing.
    ///
    /// Rejections are logged and counted here.
    pub(crate) fn decide(
        &self,
        snapshot: &Snapshot,
        question: Question<'_>,
        (call, method): (&Call, Method),
        permit: &LogPermit,
        on_key_miss: KeyMiss,
    ) -> Outcome<A> {
        let kind = question.credential.kind();
        // Checked first: a caller without the right learns nothing else.
        let rights = self.check_rights(call, kind, question.explain);
        let (anonymous, tokens) = (self.anonymous(), self.tokens.as_deref());
        let identified = rights
            .and_then(|()| identity::identify(question.credential, anonymous, tokens, on_key_miss));
        let principal = match identified {
            Ok(Identification::Known(principal)) => principal,
            Ok(Identification::Wait(wait)) => return Outcome::Wait(wait),
            Err(rejection) => return Outcome::Done(Err(self.reject(rejection, call, method))),
        };
        let query = question.operation.and_then(|operation| {
            let query = operation.query(principal.uid(), principal.claimed(), question.explain);
            check_entities(snapshot, &query, kind, call)?;
            Ok(query)
        });
        let query = match query {
            Ok(query) => query,
            Err(rejection) => return Outcome::Done(Err(self.reject(rejection, call, method))),
        };
        let outcome = (self.engine).authorize(snapshot, &query, &call.origin(method), permit);
        Outcome::Done(self.record(outcome, snapshot, &query, call))
    }

    fn anonymous(&self) -> Option<&Uid> {
        self.rules.request.anonymous_principal.as_ref()
    }

    /// Identifies the principal of `question` without verifying a signature.
    ///
    /// `None` if that is not possible, or if the request must be rejected.
    pub(crate) fn identify_cached<'a>(
        &'a self,
        question: Question<'a>,
        call: &Call,
    ) -> Option<Identified<'a>> {
        let kind = question.credential.kind();
        self.check_rights(call, kind, question.explain).ok()?;
        let operation = question.operation.ok()?;
        // `check_entities` must see this request.
        if kind == IdentityKind::Anonymous
            && !operation.entities.is_empty()
            && !call.may_name_principals().ok()?
        {
            return None;
        }
        let (anonymous, tokens) = (self.anonymous(), self.tokens.as_deref());
        let principal = identity::identify_cached(question.credential, anonymous, tokens)?;
        Some((principal, (operation, question.explain)))
    }

    /// Decides the message of `bytes` bytes that `parse` parses. Waits for a missing signing key.
    ///
    /// During the wait it holds no permit, so that other calls can use it, and only the unparsed
    /// message, which is smaller than the parsed request. The error is that of `parse` for a
    /// malformed message.
    pub(crate) async fn decide_waiting<P: Parsed, E>(
        &self,
        snapshot: &Snapshot,
        (parse, bytes): (impl Fn() -> Result<P, ParseFault<E>>, usize),
        (call, method): (&Call, Method),
        permits: Permits,
    ) -> Result<Result<EngineAnswer<A>, Rejection>, E> {
        let attempt = |permits: &Permits, on_key_miss| {
            let (origin, log) = ((call, method), &permits.log);
            permits.large_request.run(|| match parse() {
                Ok(parsed) => Ok(parsed.with_question(|question| {
                    self.decide(snapshot, question, origin, log, on_key_miss)
                })),
                Err(ParseFault::Request(rejection)) => {
                    Ok(Outcome::Done(Err(self.reject(rejection, call, method))))
                }
                Err(ParseFault::Call(error)) => Err(error),
            })
        };
        let wait = match attempt(&permits, KeyMiss::Wait)? {
            Outcome::Done(outcome) => return Ok(outcome),
            Outcome::Wait(wait) => wait,
        };
        drop(permits);
        let permits = match self.permits_after(wait, call, bytes).await {
            Ok(permits) => permits,
            Err(rejection) => {
                self.count_request(&rejection, call);
                return Ok(Err(rejection));
            }
        };
        match attempt(&permits, KeyMiss::Fail)? {
            Outcome::Done(outcome) => Ok(outcome),
            // INVARIANT: `KeyMiss::Fail` never waits.
            Outcome::Wait(_) => Ok(Err(Rejection::DeadlineExceeded)),
        }
    }

    /// Waits for a signing key, and then for the permits.
    async fn permits_after(
        &self,
        wait: KeyWait,
        call: &Call,
        bytes: usize,
    ) -> Result<Permits, Rejection> {
        let reserved = self.memory.reserve(bytes)?;
        identity::wait_for_keys(wait, call, self.readiness.clone()).await?;
        drop(reserved);
        self.permits(call, bytes).await
    }

    /// Traces an answer, or counts a rejection by the engine.
    pub(crate) fn record(
        &self,
        outcome: Result<EngineAnswer<A>, NoAnswer>,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        call: &Call,
    ) -> Result<EngineAnswer<A>, Rejection> {
        outcome
            .inspect(|answer| call.trace_answer(answer, snapshot, query))
            .map_err(Rejection::from)
            .inspect_err(|rejection| self.count_request(rejection, call))
    }

    /// Logs and counts a request that is rejected before it reaches the engine.
    pub(crate) fn reject(&self, rejection: Rejection, call: &Call, method: Method) -> Rejection {
        (self.engine).log_rejection(&call.origin(method), rejection.reason());
        self.count_request(&rejection, call);
        rejection
    }

    /// Checks that the caller may present this kind of identity, and may request an explanation if
    /// `explain` is set.
    fn check_rights(
        &self,
        call: &Call,
        identity: IdentityKind,
        explain: bool,
    ) -> Result<(), Rejection> {
        // Long after the call was admitted, the caller list may have changed.
        let caller = call.caller.current(Right::Authorize)?;
        if !caller.may_send(identity) {
            return Err(Denied::IdentityNotAllowed(identity).into());
        }
        if explain {
            caller.check(Right::Explain)?;
            if !self.rules.explain {
                return Err(Rejection::ExplainDisabled);
            }
        }
        Ok(())
    }
}

/// Checks that the request entities do not redefine the anonymous principal, unless the caller may
/// name principals.
fn check_entities(
    snapshot: &Snapshot,
    query: &QueryRef<'_>,
    kind: IdentityKind,
    call: &Call,
) -> Result<(), Rejection> {
    if kind == IdentityKind::Anonymous
        && !query.entities.is_empty()
        && !call.may_name_principals()?
    {
        let query = query.to_query();
        reject_redefined_principal(snapshot, &query.principal, &query.entities)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
