//! `BatchAuthorize`: many requests decided on one snapshot, in time slices.
//!
//! Where the last answers were cached, the next ones are looked up together, which costs less than
//! one by one. Items that are not found are decided like any others.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};
use prost::encoding::{WireType, encode_varint, encoded_len_varint};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use super::authorize::{Answer, Authorization, Decided};
use super::decode;
use super::status::to_message;
use super::wire::fields::{Fields, put_head, tag};
use super::wire::{borrowed_request, codec};
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

/// `BatchAuthorize`, as tonic calls it.
pub(super) struct BatchMethod<'a>(pub(super) &'a Authorization);

impl UnaryService<Bytes> for BatchMethod<'_> {
    type Response = Bytes;
    type Future = BoxFuture<'static, Answer<Bytes>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let call = Call::of(&request);
        let service = self.0.clone();
        Box::pin(async move {
            let mut batch = Batch::begin(service.clone(), request.into_inner(), call)?;
            let first = batch.run(&LargeRequestPermit::NONE)?;
            if !matches!(first, Progress::Done) {
                // The batch takes longer than a time slice, or has to wait. On a task of its own
                // it delays no other call of this connection. Dropping the set ends it with the
                // call.
                let mut task = JoinSet::new();
                task.spawn(batch.run_to_end(first));
                batch = match task.join_next().await {
                    Some(Ok(done)) => done?,
                    Some(Err(error)) if error.is_panic() => {
                        std::panic::resume_unwind(error.into_panic())
                    }
                    Some(Err(_)) | None => return Err(service.ends(Rejection::ShuttingDown)),
                };
            }
            batch.finish()
        })
    }
}

/// One batch, decided item by item on one snapshot.
struct Batch {
    service: Authorization,
    snapshot: Arc<Snapshot>,
    call: Call,
    message: Bytes,
    /// Offset of the first undecided byte of the message.
    at: usize,
    /// Whether the batch has already waited for the signing key of the next item.
    has_waited: bool,
    /// End of all waits for signing keys, set by the first one. The tokens of a batch may have
    /// several issuers, but its caller does not wait for each of them.
    wait_deadline: Option<Instant>,
    /// Whether the last items were cached, so that the next ones are likely to be.
    last_were_cached: bool,
    /// The part of the `BatchAuthorizeResponse` that is decided.
    response: Vec<u8>,
    /// Reservation for message and response, once they outlast a time slice.
    reserved: Option<MemoryReservation>,
}

/// The state of a batch after a time slice.
enum Progress {
    Done,
    /// The slice is over, or the decision log is full.
    SliceOver,
    /// The next item's signing key is missing.
    Waits(KeyWait),
    /// The next item is large, and needs a permit.
    NeedsPermit,
}

/// The outcome of the next item.
enum Next {
    Decided(Result<Decided, Rejection>),
    Waits(KeyWait),
    NeedsPermit,
    End,
}

/// Items decided between two reads of the clock.
const ITEMS_PER_CHECK: usize = 4;
/// Cached items answered between two reads of the clock; they take a fraction of the time.
const CACHED_ITEMS_PER_CHECK: usize = 16;
/// Items looked up together: a handful for each shard of the cache.
const ITEMS_PER_LOOKUP: usize = 128;

impl Batch {
    fn begin(service: Authorization, message: Bytes, call: Call) -> Result<Self, Status> {
        let ends = |rejection| service.ends(rejection);
        (call.caller.recheck(Right::Authorize)).map_err(|denied| ends(denied.into()))?;
        let limit = service.decider.rules.max_batch_items;
        let holds_too_many = holds_more_than(limit, &message)?;
        call.deadline.check().map_err(ends)?;
        if holds_too_many {
            return Err(ends(Rejection::TooManyItems {
                items: "requests in one batch",
                limit,
            }));
        }
        // Loaded once: every item is decided on the same revision.
        let snapshot = service.decider.snapshot().map_err(ends)?;
        Ok(Self {
            service,
            snapshot,
            call,
            message,
            at: 0,
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
                .map_err(|rejection| self.service.ends(rejection))?;
            let ready = self.ready(progress).await;
            let Some(permit) = ready.map_err(|rejection| self.service.ends(rejection))? else {
                return Ok(self);
            };
            progress = permit.run(|| self.run(&permit))?;
        }
    }

    /// Waits until the batch can go on; `None` if it is done.
    async fn ready(&self, progress: Progress) -> Result<Option<LargeRequestPermit>, Rejection> {
        // The batch's bytes are reserved already.
        const RESERVED: usize = 0;
        let Self { call, .. } = self;
        let decider = &self.service.decider;
        let mut permit = LargeRequestPermit::NONE;
        match progress {
            Progress::Done => return Ok(None),
            Progress::SliceOver => tokio::task::yield_now().await,
            Progress::Waits(wait) => {
                identity::wait_for_keys(wait, call, decider.readiness.clone()).await?;
            }
            Progress::NeedsPermit => {
                permit = decider.large_request_permit(call, RESERVED).await?;
            }
        }
        let _permit = decider.log_permit(call, RESERVED).await?;
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
                    Next::Decided(decided) => {
                        let is_cached =
                            matches!(&decided, Ok(decided) if decided.source == Source::Cache);
                        self.last_were_cached &= is_cached;
                        put(&mut self.response, decided);
                    }
                    Next::Waits(wait) => {
                        self.has_waited = true;
                        return Ok(Progress::Waits(self.within_deadline(wait)));
                    }
                    Next::NeedsPermit => return Ok(Progress::NeedsPermit),
                    Next::End => return Ok(Progress::Done),
                }
            }
        }
        Ok(Progress::SliceOver)
    }

    /// Returns a permit to go on in this time slice.
    fn log_permit(&self, slice: TimeSlice) -> Result<Option<LogPermit>, Status> {
        let in_time = self.call.deadline.check();
        in_time.map_err(|rejection| self.service.ends(rejection))?;
        match slice.is_over() {
            true => Ok(None),
            false => Ok(self.service.decider.engine.try_log_permit()),
        }
    }

    /// Looks up the next items together, which costs less than one by one, and answers them until
    /// the slice is over. Stops before the first item that takes more than a lookup to identify.
    fn run_cached(&mut self, slice: TimeSlice, mut permit: LogPermit) -> Result<(), Status> {
        let decider = &self.service.decider;
        let mut response = std::mem::take(&mut self.response);
        let (mut requests, mut ends) = (Vec::new(), Vec::new());
        let mut end = self.at;
        while requests.len() < ITEMS_PER_LOOKUP
            && let Some(item) = item(&self.message, &mut end)
            && let Some(question) = borrowed_request::request(item, &decider.rules.request)
            && let Some(request) = decider.identify_cached(question, &self.call)
        {
            requests.push(request.into_parts());
            ends.push(end);
        }
        let (principals, operations): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let queries = principals.iter().zip(operations);
        let queries = queries.map(|(principal, (operation, explain))| {
            operation.query(principal.uid(), principal.claimed(), explain)
        });
        let looked_up = decider.engine.look_up(&self.snapshot, queries.collect());
        let found = looked_up.iter().filter_map(|item| item.answer());
        response.reserve(
            found
                .map(|answer| MAX_HEAD_BYTES + answer.as_ref().len())
                .sum(),
        );

        let origin = self.call.origin(Method::BatchAuthorize);
        let (mut all_found, mut since_check) = (!looked_up.is_empty(), 0);
        let mut at = self.at;
        for (item, end) in looked_up.iter().zip(ends) {
            if since_check >= CACHED_ITEMS_PER_CHECK {
                since_check = 0;
                match self.log_permit(slice)? {
                    Some(renewed) => permit = renewed,
                    None => break,
                }
            }
            let answered = decider.engine.authorize_looked_up(item, &origin, &permit);
            let answered = decider.record(answered, &self.snapshot, item.query(), &self.call);
            put(&mut response, answered);
            at = end;
            let is_found = item.answer().is_some();
            since_check += if is_found {
                1
            } else {
                CACHED_ITEMS_PER_CHECK / ITEMS_PER_CHECK
            };
            all_found &= is_found;
        }
        self.at = at;
        self.response = response;
        self.last_were_cached = all_found;
        Ok(())
    }

    /// Decides the next item.
    fn next(&mut self, permit: &LogPermit, large: &LargeRequestPermit) -> Result<Next, Status> {
        let decider = &self.service.decider;
        let rules = &decider.rules.request;
        let mut end = self.at;
        let Some(item) = item(&self.message, &mut end) else {
            return Ok(Next::End);
        };
        let parsed = match borrowed_request::request(item, rules) {
            Some(question) => Ok(decode::Request::Borrowed(question)),
            None if large_requests::is_large(item.len()) && !large.is_held() => {
                return Ok(Next::NeedsPermit);
            }
            None => decode::decoded(item, rules),
        };
        let of = (&self.call, Method::BatchAuthorize);
        let outcome = match parsed {
            Ok(request) => request.with_question(|question| {
                decider.decide(&self.snapshot, question, of, permit, self.key_miss())
            }),
            Err(ParseFault::Request(rejection)) => {
                Outcome::Done(Err(decider.reject(rejection, &self.call, of.1)))
            }
            // A message that cannot be decoded fails the whole batch.
            Err(ParseFault::Call(status)) => return Err(status),
        };
        Ok(match outcome {
            Outcome::Done(decided) => {
                (self.at, self.has_waited) = (end, false);
                Next::Decided(decided)
            }
            Outcome::Wait(wait) => Next::Waits(wait),
        })
    }

    /// Returns whether the next item may still wait for a signing key.
    fn key_miss(&self) -> KeyMiss {
        match self.wait_deadline {
            _ if self.has_waited => KeyMiss::Fail,
            Some(end) if Instant::now() >= end => KeyMiss::Fail,
            Some(_) | None => KeyMiss::Wait,
        }
    }

    /// Shortens `wait`, so that all waits together take no longer than the first alone could.
    fn within_deadline(&mut self, wait: KeyWait) -> KeyWait {
        let now = Instant::now();
        let end = *self.wait_deadline.get_or_insert(now + wait.timeout());
        wait.with_max_timeout(end.saturating_duration_since(now))
    }

    fn finish(self) -> Answer<Bytes> {
        const REVISION: u8 = 2;
        let Self {
            service,
            mut response,
            snapshot,
            mut reserved,
            ..
        } = self;
        let revision = snapshot.revision().as_str();
        put_head(&mut response, REVISION, revision.len());
        response.put_slice(revision.as_bytes());
        // The caller may leave a long response unread for as long as it likes.
        let reserves = match &mut reserved {
            Some(reserved) => reserved.resize(response.len()),
            None => Ok(()),
        };
        reserves.map_err(|rejection| service.ends(rejection))?;
        let mut response = Response::new(response.into());
        if let Some(reserved) = reserved {
            response.extensions_mut().insert(Arc::new(reserved));
        }
        Ok(response)
    }
}

/// The field of a `BatchAuthorizeRequest` that holds its requests.
const REQUESTS: u64 = 1;

/// Whether the `BatchAuthorizeRequest` in `message` holds more requests than `most`. They are not
/// looked into, and what stands behind one too many is not looked at.
fn holds_more_than(most: usize, message: &[u8]) -> Result<bool, Status> {
    let mut fields = Fields(message);
    let mut count = 0;
    for (number, wire_type, _) in fields.by_ref() {
        match (number, wire_type) {
            (REQUESTS, WireType::LengthDelimited) if count == most => return Ok(true),
            (REQUESTS, WireType::LengthDelimited) => count += 1,
            (REQUESTS, _) => return Err(Status::invalid_argument("requests are no numbers")),
            _ => {}
        }
    }
    if fields.0.is_empty() {
        return Ok(false);
    }
    // prost says what is no message, in its words. Groups it passes over, and we do not.
    codec::decode::<()>(message)?;
    Err(Status::invalid_argument("groups are no part of proto3"))
}

/// The request that the `BatchAuthorizeRequest` in `message` holds at byte `at` or next after it,
/// which is moved past it; `None` at the end.
fn item<'m>(message: &'m [u8], at: &mut usize) -> Option<&'m [u8]> {
    let mut fields = Fields(message.get(*at..)?);
    let found = fields.find(|(number, ..)| *number == REQUESTS);
    *at = message.len() - fields.0.len();
    found.map(|(.., item)| item)
}

/// The fields of a `BatchAuthorizeResult`.
const RESPONSE: u8 = 1;
const ERROR: u8 = 2;
/// What stands before a result, commonly: two tags, and two lengths of two bytes.
const MAX_HEAD_BYTES: usize = 6;

/// Writes what came of an item.
fn put(out: &mut Vec<u8>, decided: Result<Decided, Rejection>) {
    match decided {
        Ok(decided) => {
            put_result(out, RESPONSE, decided.message_len());
            decided.put_message(out);
        }
        Err(rejection) => {
            let error = to_message(&rejection.into()).encode_to_vec();
            put_result(out, ERROR, error.len());
            out.put_slice(&error);
        }
    }
}

/// Writes a `BatchAuthorizeResult`, as a field of the `BatchAuthorizeResponse` that it is in, up to
/// the content of its one field, which has `length` bytes.
fn put_result(out: &mut Vec<u8>, field: u8, length: usize) {
    const RESULTS: u8 = 1;
    let of_field = encoded_len_varint(length as u64);
    out.put_u8(tag(RESULTS));
    encode_varint((1 + of_field + length) as u64, out);
    put_head(out, field, length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::grpc::pb;

    #[test]
    fn requests_are_found_among_whatever_else_stands_in_a_batch() {
        let message = [
            &[0x0a, 1, b'a'][..],
            // Fields that we do not know, of each kind.
            &[0x10, 0x80, 1, 0x1a, 2, 0x0a, 0],
            &[0x25, 1, 2, 3, 4, 0x29, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x0a, 0, 0x0a, 1, b'b', 0x10, 1],
        ]
        .concat();
        assert!(!holds_more_than(3, &message).unwrap());
        assert!(holds_more_than(2, &message).unwrap());
        let cut_off = [&message[..], &[0x0a]].concat();
        assert!(holds_more_than(2, &cut_off).unwrap());
        assert!(holds_more_than(3, &cut_off).is_err());
        let mut at = 0;
        let found: Vec<_> = std::iter::from_fn(|| item(&message, &mut at)).collect();
        assert_eq!(found, [&b"a"[..], b"", b"b"]);
        assert_eq!(at, message.len());
        for no_batch in [
            &[0x0a, 2, 0][..],
            &[0x08, 1],
            &[0x0b, 0x0c],
            &[0x13, 0x14],
            &[0xff],
            // Cut off: in a field, behind its tag, and behind its length.
            &[0x0a, 0, 0x10, 0x80],
            &[0x0a, 0, 0x0a],
            &[0x0a, 0, 0x0a, 1],
            // Fields of the numbers 0 and 2^29, which there are not.
            &[0x00, 0],
            &[0x80, 0x80, 0x80, 0x80, 0x10, 0],
        ] {
            let status = holds_more_than(10, no_batch).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{no_batch:?}");
        }
    }

    /// The results of a batch as we write them, read by prost.
    #[test]
    fn what_is_written_is_what_prost_reads() {
        let response = pb::AuthorizeResponse {
            decision: pb::Decision::Allow.into(),
            determining_policies: vec!["x".repeat(200)],
            ..pb::AuthorizeResponse::default()
        };
        let error = tonic_types::Status {
            code: 3,
            message: "no".to_owned(),
            details: Vec::new(),
        };
        let mut written = Vec::new();
        put_result(&mut written, RESPONSE, response.encoded_len());
        written.extend(response.encode_to_vec());
        put_result(&mut written, ERROR, error.encoded_len());
        written.extend(error.encode_to_vec());
        put_head(&mut written, 2, 8);
        written.extend(b"revision");
        use pb::batch_authorize_result::Result::{Error, Response};
        let results = [Response(response), Error(error)].map(|result| pb::BatchAuthorizeResult {
            result: Some(result),
        });
        let wanted = pb::BatchAuthorizeResponse {
            results: results.into(),
            revision: "revision".to_owned(),
        };
        assert_eq!(written, wanted.encode_to_vec());
    }
}
