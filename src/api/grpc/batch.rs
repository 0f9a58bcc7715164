//! `BatchAuthorize`: many requests decided on one snapshot, in time slices.
//!
//! If the last answers were cached, the next items are looked up together, which costs less than
//! single lookups. Items whose answers are not cached are decided as usual.

mod items;

use std::sync::Arc;

use hyper::body::Incoming;
use prost::bytes::{BufMut as _, Bytes};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::authorization::{Authorization, GrpcAnswer, MethodResult, Unary};
use super::decode;
use super::wire::body::AnswerBody;
use super::wire::borrowed_request;
use super::wire::fields::append_field_head;
use crate::api::auth::caller::Right;
use crate::api::decision::call::Call;
use crate::api::decision::decide::{Outcome, ParseFault};
use crate::api::decision::identity;
use crate::api::decision::large_requests::{self, LargeRequestPermit};
use crate::api::decision::memory::MemoryReservation;
use crate::api::decision::question::Parsed as _;
use crate::api::decision::rejection::Rejection;
use crate::api::decision::time_slice::TimeSlice;
use crate::decision_log::Method;
use crate::engine::{LogPermit, Source};
use crate::pdp::Snapshot;
use crate::pip::{KeyMiss, KeyWait};
use items::{RESULT_HEAD_BYTES, append_result, holds_more_than, next_item};

impl Authorization {
    pub(crate) async fn batch_authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = request.map(|body| self.metered(body));
        let method = Unary(|request: Request<Bytes>| self.decide_batch(request.into_inner(), call));
        let response = self.grpc().unary(method, request).await;
        response.map(AnswerBody::tonic)
    }

    async fn decide_batch(&self, message: Bytes, call: &Call) -> MethodResult<Bytes> {
        let mut batch = Batch::begin(self.clone(), message, call.clone())?;
        let first = batch.run(&LargeRequestPermit::NONE)?;
        if !matches!(first, Progress::Done) {
            // The batch takes longer than a time slice, or must wait. A separate task does not
            // delay the other calls of this connection. Dropping the set ends the task with the
            // call.
            let mut task = JoinSet::new();
            task.spawn(batch.run_to_end(first));
            batch = match task.join_next().await {
                Some(Ok(done)) => done?,
                Some(Err(error)) if error.is_panic() => {
                    std::panic::resume_unwind(error.into_panic())
                }
                Some(Err(_)) | None => return Err(self.reject_call(Rejection::ShuttingDown)),
            };
        }
        batch.finish()
    }
}

/// One batch, decided item by item on one snapshot.
struct Batch {
    service: Authorization,
    snapshot: Arc<Snapshot>,
    call: Call,
    message: Bytes,
    /// Offset of the first undecided byte of the message.
    offset: usize,
    /// Set once the batch has waited for the signing key of the next item.
    has_waited: bool,
    /// End of all waits for signing keys, set by the first wait.
    ///
    /// The tokens of a batch may have several issuers. The waits for them do not add up.
    wait_deadline: Option<Instant>,
    /// Set while the last items were cached, so that the next ones are likely to be.
    last_were_cached: bool,
    /// The encoded results so far, of a `BatchAuthorizeResponse`.
    response: Vec<u8>,
    /// The reservation for message and response, made when the first time slice is over.
    reserved: Option<MemoryReservation>,
}

/// The state of a batch after a time slice.
enum Progress {
    Done,
    /// The time slice is over, or the decision log is full.
    SliceOver,
    /// The next item's signing key is missing.
    NeedsKey(KeyWait),
    /// The next item is large, and needs a permit.
    NeedsPermit,
}

/// The outcome of an attempt to decide the next item.
enum NextItem {
    Done(Result<GrpcAnswer, Rejection>),
    NeedsKey(KeyWait),
    NeedsPermit,
    End,
}

/// Items decided between two reads of the clock.
const ITEMS_PER_CHECK: usize = 4;
/// Cached items answered between two reads of the clock. They take a fraction of the time.
const CACHED_ITEMS_PER_CHECK: usize = 16;
/// Items looked up together: a few for each shard of the cache.
const ITEMS_PER_LOOKUP: usize = 128;

impl Batch {
    /// Checks the whole batch, before any item is parsed.
    fn begin(service: Authorization, message: Bytes, call: Call) -> Result<Self, Status> {
        let reject = |rejection| service.reject_call(rejection);
        (call.caller.recheck(Right::Authorize)).map_err(|denied| reject(denied.into()))?;
        let limit = service.decider.rules.max_batch_items;
        let holds_too_many = holds_more_than(limit, &message)?;
        call.deadline.check().map_err(reject)?;
        if holds_too_many {
            return Err(reject(Rejection::TooManyItems {
                items: "requests in one batch",
                limit,
            }));
        }
        // Loaded once: every item is decided on the same revision.
        let snapshot = service.decider.snapshot().map_err(reject)?;
        Ok(Self {
            service,
            snapshot,
            call,
            message,
            offset: 0,
            has_waited: false,
            wait_deadline: None,
            last_were_cached: false,
            response: Vec::new(),
            reserved: None,
        })
    }

    /// Decides the items that the first time slice left.
    async fn run_to_end(mut self, first: Progress) -> Result<Self, Status> {
        let mut progress = first;
        loop {
            self.reserve()
                .map_err(|rejection| self.service.reject_call(rejection))?;
            let ready = self.wait_for(progress).await;
            let Some(permit) = ready.map_err(|rejection| self.service.reject_call(rejection))?
            else {
                return Ok(self);
            };
            progress = permit.run(|| self.run(&permit))?;
        }
    }

    /// Waits until the batch can continue, and returns the permit for its next item; `None` if it
    /// is done.
    async fn wait_for(&self, progress: Progress) -> Result<Option<LargeRequestPermit>, Rejection> {
        // `reserve` has already charged the batch's bytes.
        const BYTES: usize = 0;
        let Self { call, .. } = self;
        let decider = &self.service.decider;
        let mut permit = LargeRequestPermit::NONE;
        match progress {
            Progress::Done => return Ok(None),
            Progress::SliceOver => tokio::task::yield_now().await,
            Progress::NeedsKey(wait) => {
                identity::wait_for_keys(wait, call, decider.readiness.clone()).await?;
            }
            Progress::NeedsPermit => {
                permit = decider.large_request_permit(call, BYTES).await?;
            }
        }
        let _permit = decider.log_permit(call, BYTES).await?;
        Ok(Some(permit))
    }

    /// Charges the bytes that the batch now holds to the memory budget.
    fn reserve(&mut self) -> Result<(), Rejection> {
        let bytes = self.message.len() + self.response.len();
        match &mut self.reserved {
            Some(reserved) => reserved.resize(bytes),
            none => {
                *none = Some(self.service.decider.memory.reserve(bytes)?);
                Ok(())
            }
        }
    }

    /// Decides items until the time slice is over, the log is full, or the batch has to wait.
    fn run(&mut self, large: &LargeRequestPermit) -> Result<Progress, Status> {
        let slice = TimeSlice::begin();
        while let Some(permit) = self.log_permit(slice)? {
            if self.last_were_cached {
                self.run_cached(slice, permit)?;
                continue;
            }
            self.last_were_cached = true;
            for _ in 0..ITEMS_PER_CHECK {
                match self.next(&permit, large)? {
                    NextItem::Done(outcome) => {
                        let is_cached =
                            matches!(&outcome, Ok(answer) if answer.source == Source::Cache);
                        self.last_were_cached &= is_cached;
                        append_result(&mut self.response, outcome);
                    }
                    NextItem::NeedsKey(wait) => {
                        self.has_waited = true;
                        return Ok(Progress::NeedsKey(self.shorten(wait)));
                    }
                    NextItem::NeedsPermit => return Ok(Progress::NeedsPermit),
                    NextItem::End => return Ok(Progress::Done),
                }
            }
        }
        Ok(Progress::SliceOver)
    }

    /// Returns a permit to log one decision; `None` if the time slice is over or the log is full.
    fn log_permit(&self, slice: TimeSlice) -> Result<Option<LogPermit>, Status> {
        let in_time = self.call.deadline.check();
        in_time.map_err(|rejection| self.service.reject_call(rejection))?;
        match slice.is_over() {
            true => Ok(None),
            false => Ok(self.service.decider.engine.try_log_permit()),
        }
    }

    /// Looks up the next items together, and answers them until the time slice is over.
    ///
    /// Stops before the first item that a lookup alone cannot identify.
    fn run_cached(&mut self, slice: TimeSlice, mut permit: LogPermit) -> Result<(), Status> {
        let decider = &self.service.decider;
        let mut response = std::mem::take(&mut self.response);
        let (mut requests, mut ends) = (Vec::new(), Vec::new());
        let mut end = self.offset;
        while requests.len() < ITEMS_PER_LOOKUP
            && let Some(item) = next_item(&self.message, &mut end)
            && let Some(question) = borrowed_request::request(item, &decider.rules.request)
            && let Some(request) = decider.identify_cached(question, &self.call)
        {
            requests.push(request);
            ends.push(end);
        }
        let (principals, operations): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let queries = principals.iter().zip(operations);
        let queries = queries.map(|(principal, (operation, explain))| {
            operation.query(principal.uid(), principal.claimed(), explain)
        });
        let looked_up = decider.engine.look_up(&self.snapshot, queries.collect());
        let found = looked_up.iter().filter_map(|item| item.answer());
        let sizes = found.map(|answer| RESULT_HEAD_BYTES + answer.as_ref().len());
        response.reserve(sizes.sum());

        let origin = self.call.origin(Method::BatchAuthorize);
        let (mut all_found, mut since_check) = (!looked_up.is_empty(), 0);
        let mut offset = self.offset;
        for (item, end) in looked_up.iter().zip(ends) {
            if since_check >= CACHED_ITEMS_PER_CHECK {
                since_check = 0;
                match self.log_permit(slice)? {
                    Some(renewed) => permit = renewed,
                    None => break,
                }
            }
            let outcome = decider.engine.authorize_looked_up(item, &origin, &permit);
            let outcome = decider.record(outcome, &self.snapshot, item.query(), &self.call);
            append_result(&mut response, outcome);
            offset = end;
            let is_found = item.answer().is_some();
            since_check += match is_found {
                true => 1,
                false => CACHED_ITEMS_PER_CHECK / ITEMS_PER_CHECK,
            };
            all_found &= is_found;
        }
        self.offset = offset;
        self.response = response;
        self.last_were_cached = all_found;
        Ok(())
    }

    fn next(&mut self, permit: &LogPermit, large: &LargeRequestPermit) -> Result<NextItem, Status> {
        let decider = &self.service.decider;
        let rules = &decider.rules.request;
        let mut end = self.offset;
        let Some(item) = next_item(&self.message, &mut end) else {
            return Ok(NextItem::End);
        };
        let parsed = match borrowed_request::request(item, rules) {
            Some(question) => Ok(decode::Request::Borrowed(question)),
            None if large_requests::is_large(item.len()) && !large.permits_large() => {
                return Ok(NextItem::NeedsPermit);
            }
            None => decode::decode_request(item, rules),
        };
        let origin = (&self.call, Method::BatchAuthorize);
        let outcome = match parsed {
            Ok(request) => request.with_question(|question| {
                decider.decide(&self.snapshot, question, origin, permit, self.on_key_miss())
            }),
            Err(ParseFault::Request(rejection)) => {
                Outcome::Done(Err(decider.reject(rejection, &self.call, origin.1)))
            }
            // A malformed item fails the whole batch.
            Err(ParseFault::Call(status)) => return Err(status),
        };
        Ok(match outcome {
            Outcome::Done(outcome) => {
                (self.offset, self.has_waited) = (end, false);
                NextItem::Done(outcome)
            }
            Outcome::Wait(wait) => NextItem::NeedsKey(wait),
        })
    }

    /// Returns what to do if the next item's signing key is missing: each item waits at most once.
    fn on_key_miss(&self) -> KeyMiss {
        match self.wait_deadline {
            _ if self.has_waited => KeyMiss::Fail,
            Some(end) if Instant::now() >= end => KeyMiss::Fail,
            Some(_) | None => KeyMiss::Wait,
        }
    }

    /// Shortens `wait`, so that all waits together take no longer than the first one's limit.
    fn shorten(&mut self, wait: KeyWait) -> KeyWait {
        let now = Instant::now();
        let end = *self.wait_deadline.get_or_insert(now + wait.timeout());
        wait.with_max_timeout(end.saturating_duration_since(now))
    }

    fn finish(self) -> MethodResult<Bytes> {
        const REVISION: u8 = 2;
        let Self {
            service,
            mut response,
            snapshot,
            mut reserved,
            ..
        } = self;
        let revision = snapshot.revision().as_str();
        append_field_head(&mut response, REVISION, revision.len());
        response.put_slice(revision.as_bytes());
        // The caller may leave a long response unread, so the reservation stays with it.
        let resized = match &mut reserved {
            Some(reserved) => reserved.resize(response.len()),
            None => Ok(()),
        };
        resized.map_err(|rejection| service.reject_call(rejection))?;
        let mut response = Response::new(response.into());
        if let Some(reserved) = reserved {
            response.extensions_mut().insert(Arc::new(reserved));
        }
        Ok(response)
    }
}
