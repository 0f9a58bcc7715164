//! The door of `pdp.v1.AuthorizationService`: parse, ask the engine, answer.
//!
//! tonic's generated service is not used here, but what it is made of: messages come as bytes and
//! are read in place where they have the plain shape (`scan`), and answers go as the bytes that
//! the engine remembers. Everything else is decoded by prost, with the same errors as ever.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use hyper::body::Incoming;
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};
use prost::encoding::{encode_varint, encoded_len_varint};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::answer::{AnswerBody, EncodedAnswer, put_decision_id};
use super::call::Call;
use super::callers::{IdentityKind, Right};
use super::figures::CallFigures;
use super::from_proto::{self, RequestRules};
use super::identity::{self, Identified};
use super::message::{self, Whole};
use super::pending::PendingBytes;
use super::scan::Sent;
use super::status::{Rejection, by_contract, to_message};
use super::turn::Turn;
use super::{codec, pb, scan};
use crate::decision_log::Method;
use crate::engine::query_ref::{QueryRef, UidRef};
use crate::engine::{self, Engine, Leave};
use crate::pdp::Snapshot;
use crate::pip::{KeyWait, Moment, Patience, Tokens};
use crate::readiness::ReadinessReader;

/// An answer, and what its decision is called.
type Decided = engine::Answered<EncodedAnswer>;

/// What a call may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationRules {
    /// What one request may hold.
    pub request: RequestRules,
    /// The most requests in one batch.
    pub max_batch_items: usize,
    /// Whether anyone is told why.
    pub explain: bool,
}

/// Answers `pdp.v1.AuthorizationService`.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    engine: Arc<Engine<EncodedAnswer>>,
    tokens: Option<Arc<Tokens>>,
    rules: Arc<AuthorizationRules>,
    max_message_bytes: usize,
    pending: PendingBytes,
    draining: ReadinessReader,
    figures: Option<Arc<CallFigures>>,
}

impl Authorization {
    /// A door to `engine`; `tokens` say who asks where a token does, `pending` bounds what has not
    /// come in full, `draining` ends its streams, and `figures` count what it refuses.
    #[must_use]
    pub(super) fn new(
        engine: Arc<Engine<EncodedAnswer>>,
        tokens: Option<Arc<Tokens>>,
        rules: AuthorizationRules,
        max_message_bytes: usize,
        pending: PendingBytes,
        draining: ReadinessReader,
        figures: Option<Arc<CallFigures>>,
    ) -> Self {
        Self {
            engine,
            tokens,
            rules: Arc::new(rules),
            max_message_bytes,
            pending,
            draining,
            figures,
        }
    }

    /// `Authorize`.
    pub(super) async fn authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let (head, body) = request.into_parts();
        // Whether an encoding is known is for tonic to say, even when it is not used.
        let body = if head.headers.contains_key("grpc-encoding") {
            Body::new(self.pending.counting(body))
        } else {
            match message::read(body, self.max_message_bytes).await {
                Ok(bytes) => {
                    let message = bytes.get(super::answer::PREFIX_BYTES..).unwrap_or_default();
                    let leave = match self.leave_for(call).await {
                        Ok(leave) => leave,
                        Err(rejection) => {
                            return self.ends(rejection).into_http().map(AnswerBody::Tonic);
                        }
                    };
                    match self.authorize_in_place(message, call, &leave) {
                        Some(Ok(answer)) => return answer.into_response(),
                        Some(Err(rejection)) => {
                            return Status::from(rejection).into_http().map(AnswerBody::Tonic);
                        }
                        None => Body::new(Whole(Some(bytes))),
                    }
                }
                Err(held) => Body::new(self.pending.counting(held)),
            }
        };
        let request = call.put_with(http::Request::from_parts(head, body));
        self.grpc()
            .unary(Unary(self), request)
            .await
            .map(AnswerBody::Tonic)
    }

    /// `BatchAuthorize`.
    pub(super) async fn batch_authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.put_with(request.map(|body| Body::new(self.pending.counting(body))));
        self.grpc()
            .unary(Batched(self), request)
            .await
            .map(AnswerBody::Tonic)
    }

    /// `StreamAuthorize`.
    pub(super) async fn stream_authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.put_with(request.map(|body| Body::new(self.pending.counting(body))));
        self.grpc()
            .streaming(Streamed(self), request)
            .await
            .map(AnswerBody::Tonic)
    }

    fn grpc(&self) -> Grpc<codec::Encoded> {
        Grpc::new(codec::Encoded).max_decoding_message_size(self.max_message_bytes)
    }

    fn snapshot(&self) -> Result<Arc<Snapshot>, Rejection> {
        self.engine.snapshot().ok_or(Rejection::NothingLoaded)
    }

    /// The status of a call that ends without an answer, which is counted.
    fn ends(&self, rejection: Rejection) -> Status {
        if let Some(figures) = &self.figures {
            figures.refused(&rejection);
        }
        rejection.into()
    }

    /// Leave to decide what `call` has sent by now, which may be long after it was let in: its
    /// caller may be another by then, or none.
    async fn leave_for(&self, call: &Call) -> Result<Leave, Rejection> {
        let leave = match self.engine.leave_now() {
            Some(leave) => leave,
            None => {
                let mut draining = self.draining.clone();
                tokio::select! {
                    biased;
                    leave = self.engine.leave() => leave,
                    // What the log has no room for by the end it will never have room for.
                    () = draining.draining() => return Err(Rejection::ShuttingDown),
                    () = call.deadline.passed() => return Err(Rejection::DeadlinePassed),
                }
            }
        };
        call.caller.is_still(Right::Authorize)?;
        Ok(leave)
    }

    fn refused(&self, rejection: &Rejection, call: &Call) {
        if let (Rejection::UnknownPrincipal, Some(tokens)) = (rejection, &self.tokens) {
            tokens.count_unknown_principal();
        }
        if let Some(figures) = &self.figures {
            figures.refused(rejection);
        }
        if let Some(span) = &call.span {
            span.refused();
        }
    }

    /// Whether the caller may ask so: on behalf of whom `identity` tells, and why.
    fn may(&self, call: &Call, identity: IdentityKind, explains: bool) -> Result<(), Rejection> {
        call.check(identity, explains)?;
        match explains && !self.rules.explain {
            true => Err(Rejection::ExplainOff),
            false => Ok(()),
        }
    }

    /// Decides a message of any shape, unless that takes a key that is not there yet.
    fn decide(
        &self,
        snapshot: &Snapshot,
        mut request: Box<pb::AuthorizeRequest>,
        (call, method): (&Call, Method),
        leave: &Leave,
        patience: Patience,
    ) -> Step {
        let origin = call.origin(method);
        let (rules, tokens) = (&self.rules.request, self.tokens.as_deref());
        // Before anything is looked at or verified: a caller that may not is told that alone.
        let may = self.may(call, from_proto::identity_kind(&request), request.explain);
        let identified =
            may.and_then(|()| identity::identify(&mut request, rules, tokens, patience));
        let query = match identified {
            Ok(Identified::Asker(asker)) => from_proto::query(*request, asker, rules),
            Ok(Identified::Wait(wait)) => return Step::Wait { wait, request },
            Err(rejection) => Err(rejection),
        };
        let query = query.inspect_err(|rejection| self.engine.refused(&origin, rejection.reason()));
        let decided = query.and_then(|query| {
            let answered = (self.engine).authorize(snapshot, &query, &origin, leave)?;
            call.answered(&answered, snapshot, &QueryRef::from(&query));
            Ok(answered)
        });
        Step::Decided(decided.inspect_err(|rejection| self.refused(rejection, call)))
    }

    /// Decides a message of any shape, waiting for a key if it must; without leave meanwhile, for
    /// others have use for it.
    async fn decide_waiting(
        &self,
        snapshot: &Snapshot,
        request: pb::AuthorizeRequest,
        of: (&Call, Method),
        leave: Leave,
    ) -> Result<Decided, Rejection> {
        match self.decide(snapshot, Box::new(request), of, &leave, Patience::Waits) {
            Step::Decided(decided) => decided,
            Step::Wait { wait, request } => {
                drop(leave);
                let waited = async {
                    identity::wait_for_keys(wait, of.0, self.draining.clone()).await?;
                    let leave = self.leave_for(of.0).await?;
                    of.0.deadline.check()?;
                    Ok(leave)
                };
                let leave = waited
                    .await
                    .inspect_err(|rejection| self.refused(rejection, of.0))?;
                match self.decide(snapshot, request, of, &leave, Patience::Spent) {
                    Step::Decided(decided) => decided,
                    // INVARIANT: without patience there is no waiting.
                    Step::Wait { .. } => Err(Rejection::DeadlinePassed),
                }
            }
        }
    }

    /// Decides a message of the plain shape; of any other `None`, and nothing is decided.
    fn decide_in_place(
        &self,
        snapshot: &Snapshot,
        message: &[u8],
        (call, method): (&Call, Method),
        leave: &Leave,
    ) -> Option<Result<Decided, Rejection>> {
        let scanned = scan::request(message, &self.rules.request)?;
        self.may(call, scanned.sent.kind(), scanned.explain).ok()?;
        let identified;
        let (principal, claimed) = match scanned.sent {
            Sent::Principal(principal) | Sent::Anonymous(principal) => (principal, None),
            Sent::Token(token) => {
                let tokens = self.tokens.as_deref()?;
                identified = tokens.recall(token, Moment::from(SystemTime::now()))?;
                let principal = UidRef::from(&identified.principal);
                (principal, Some(&identified.claimed))
            }
        };
        let query = scanned.query(principal, claimed);
        let origin = call.origin(method);
        let answered = (self.engine).authorize_ref(snapshot, &query, &origin, leave);
        Some(
            answered
                .inspect(|answered| call.answered(answered, snapshot, &query))
                .map_err(Rejection::from)
                .inspect_err(|rejection| self.refused(rejection, call)),
        )
    }

    /// `None` for whatever is not simply decided, so that of several faults the same one is told
    /// as ever.
    fn authorize_in_place(
        &self,
        message: &[u8],
        call: &Call,
        leave: &Leave,
    ) -> Option<Result<Decided, Rejection>> {
        call.deadline.check().ok()?;
        let snapshot = self.engine.snapshot()?;
        self.decide_in_place(&snapshot, message, (call, Method::Authorize), leave)
    }
}

/// What deciding a request comes to.
enum Step {
    Decided(Result<Decided, Rejection>),
    /// The key of its token may be on its way: wait, and decide the request then.
    Wait {
        wait: KeyWait,
        request: Box<pb::AuthorizeRequest>,
    },
}

type Answered<T> = Result<Response<T>, Status>;

/// `Authorize` of messages of any shape.
struct Unary<'a>(&'a Authorization);

impl UnaryService<Bytes> for Unary<'_> {
    type Response = Bytes;
    type Future = BoxFuture<'static, Answered<Bytes>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let call = Call::of(&request);
        let door = self.0.clone();
        Box::pin(async move {
            let message: pb::AuthorizeRequest = codec::decode(request.get_ref())?;
            let ready = async {
                let leave = door.leave_for(&call).await?;
                call.deadline.check()?;
                Ok((leave, door.snapshot()?))
            };
            let (leave, snapshot) = ready.await.map_err(|rejection| door.ends(rejection))?;
            let of = (&call, Method::Authorize);
            let decided = door.decide_waiting(&snapshot, message, of, leave).await?;
            let mut bytes = Vec::with_capacity(decided.message_len());
            decided.put_message(&mut bytes);
            let mut response = Response::new(bytes.into());
            let mut headers = std::mem::take(response.metadata_mut()).into_headers();
            put_decision_id(&mut headers, decided.decision_id);
            *response.metadata_mut() = MetadataMap::from_headers(headers);
            Ok(response)
        })
    }
}

struct Batched<'a>(&'a Authorization);

impl UnaryService<Bytes> for Batched<'_> {
    type Response = Bytes;
    type Future = BoxFuture<'static, Answered<Bytes>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let call = Call::of(&request);
        let door = self.0.clone();
        Box::pin(async move {
            let mut batch = Batch::begin(door.clone(), request.into_inner(), call)?;
            let first = batch.run()?;
            if !matches!(first, Progress::Done) {
                // It takes longer than a turn, or must wait for the decision log or a key.
                // Elsewhere it holds up nobody who waits for an answer on this connection, and
                // dropping the set ends it with the call.
                let mut elsewhere = JoinSet::new();
                elsewhere.spawn(async move {
                    let mut progress = first;
                    loop {
                        match progress {
                            Progress::Done => return Ok::<_, Status>(batch),
                            Progress::TurnOver => tokio::task::yield_now().await,
                            Progress::Waits(wait) => {
                                let draining = batch.door.draining.clone();
                                let waited =
                                    identity::wait_for_keys(wait, &batch.call, draining).await;
                                waited.map_err(|rejection| batch.door.ends(rejection))?;
                            }
                        }
                        let leave = batch.door.leave_for(&batch.call).await;
                        let _leave = leave.map_err(|rejection| batch.door.ends(rejection))?;
                        progress = batch.run()?;
                    }
                });
                batch = match elsewhere.join_next().await {
                    Some(Ok(done)) => done?,
                    Some(Err(error)) if error.is_panic() => {
                        std::panic::resume_unwind(error.into_panic())
                    }
                    Some(Err(_)) | None => return Err(door.ends(Rejection::ShuttingDown)),
                };
            }
            Ok(Response::new(batch.finish()))
        })
    }
}

/// One batch, decided item by item on one snapshot.
struct Batch {
    door: Authorization,
    snapshot: Arc<Snapshot>,
    call: Call,
    message: Bytes,
    items: Items,
    /// An item whose key may be on its way.
    held: Option<Box<pb::AuthorizeRequest>>,
    /// Until when the batch may wait for keys, from its first wait on. Tokens of several issuers may
    /// stand in it; but its caller is not kept waiting for each.
    waits_end: Option<Instant>,
    /// A `BatchAuthorizeResponse`, as far as it is known.
    response: Vec<u8>,
}

/// How far a batch has come.
enum Progress {
    Done,
    /// Its turn is, or there is no leave now.
    TurnOver,
    Waits(KeyWait),
}

/// What is left of a batch.
enum Items {
    /// From this byte of the message on; so many were decided.
    InPlace {
        at: usize,
        decided: usize,
    },
    Decoded(std::vec::IntoIter<pb::AuthorizeRequest>),
}

/// How many items are decided between two looks at the clock.
const ITEMS_A_LOOK: usize = 4;

impl Batch {
    fn begin(door: Authorization, message: Bytes, call: Call) -> Result<Self, Status> {
        let ends = |rejection| door.ends(rejection);
        call.caller.is_still(Right::Authorize).map_err(ends)?;
        let most = door.rules.max_batch_items;
        let in_place = scan::batch_len(&message).filter(|&count| count <= most);
        let items = match in_place {
            Some(_) if call.deadline.check().is_ok() && door.engine.snapshot().is_some() => {
                Items::InPlace { at: 0, decided: 0 }
            }
            Some(_) | None => {
                let requests = decode_batch(&message)?;
                call.deadline.check().map_err(ends)?;
                if requests.len() > most {
                    return Err(ends(Rejection::TooMany {
                        what: "requests in one batch",
                        most,
                    }));
                }
                Items::Decoded(requests.into_iter())
            }
        };
        // Loaded once: every item is decided on one and the same revision.
        let snapshot = door.snapshot().map_err(ends)?;
        Ok(Self {
            door,
            snapshot,
            call,
            message,
            items,
            held: None,
            waits_end: None,
            response: Vec::new(),
        })
    }

    /// Decides items for one turn, or as long as there is leave.
    fn run(&mut self) -> Result<Progress, Status> {
        let turn = Turn::begin();
        loop {
            let in_time = self.call.deadline.check();
            in_time.map_err(|rejection| self.door.ends(rejection))?;
            let Some(leave) = self.door.engine.leave_now() else {
                return Ok(Progress::TurnOver);
            };
            for _ in 0..ITEMS_A_LOOK {
                match self.next(&leave)? {
                    Some(Step::Decided(Ok(decided))) => {
                        put_result(&mut self.response, RESPONSE, decided.message_len());
                        decided.put_message(&mut self.response);
                    }
                    Some(Step::Wait { wait, request }) => {
                        self.held = Some(request);
                        return Ok(Progress::Waits(self.within_budget(wait)));
                    }
                    Some(Step::Decided(Err(rejection))) => {
                        let error = to_message(&rejection.into()).encode_to_vec();
                        put_result(&mut self.response, ERROR, error.len());
                        self.response.put_slice(&error);
                    }
                    None => return Ok(Progress::Done),
                }
            }
            if turn.is_over() {
                return Ok(Progress::TurnOver);
            }
        }
    }

    /// Decides the next item.
    fn next(&mut self, leave: &Leave) -> Result<Option<Step>, Status> {
        if let Some(request) = self.held.take() {
            // What could be done for its key was done.
            return Ok(Some(self.decide(request, leave, Patience::Spent)));
        }
        let of = (&self.call, Method::BatchAuthorize);
        if let Items::InPlace { at, decided } = &mut self.items {
            let item = match scan::batch_item(&self.message, at) {
                Some(None) => return Ok(None),
                Some(Some(item)) => self.door.decide_in_place(&self.snapshot, item, of, leave),
                None => None,
            };
            if let Some(answer) = item {
                *decided += 1;
                return Ok(Some(Step::Decided(answer)));
            }
            // Not of the plain shape, or no request at all, which fails the whole batch: from here
            // on it goes as prost reads it.
            let mut requests = decode_batch(&self.message)?.into_iter();
            requests.by_ref().take(*decided).for_each(drop);
            self.items = Items::Decoded(requests);
        }
        match &mut self.items {
            Items::Decoded(requests) => {
                let request = requests.next().map(Box::new);
                let patience = match self.waits_end {
                    Some(end) if Instant::now() >= end => Patience::Spent,
                    Some(_) | None => Patience::Waits,
                };
                Ok(request.map(|request| self.decide(request, leave, patience)))
            }
            Items::InPlace { .. } => Ok(None),
        }
    }

    /// All waits together take no longer than the first alone could.
    fn within_budget(&mut self, wait: KeyWait) -> KeyWait {
        let now = Instant::now();
        let end = *self.waits_end.get_or_insert(now + wait.most());
        wait.no_longer_than(end.saturating_duration_since(now))
    }

    fn decide(
        &self,
        request: Box<pb::AuthorizeRequest>,
        leave: &Leave,
        patience: Patience,
    ) -> Step {
        let of = (&self.call, Method::BatchAuthorize);
        self.door
            .decide(&self.snapshot, request, of, leave, patience)
    }

    fn finish(self) -> Bytes {
        const REVISION: u8 = 2;
        let Self {
            mut response,
            snapshot,
            ..
        } = self;
        let revision = snapshot.revision().as_str();
        put_head(&mut response, REVISION, revision.len());
        response.put_slice(revision.as_bytes());
        response.into()
    }
}

fn decode_batch(message: &[u8]) -> Result<Vec<pb::AuthorizeRequest>, Status> {
    codec::decode(message).map(|pb::BatchAuthorizeRequest { requests }| requests)
}

/// The fields of a `BatchAuthorizeResult`.
const RESPONSE: u8 = 1;
const ERROR: u8 = 2;

/// Writes a `BatchAuthorizeResult`, as a field of the `BatchAuthorizeResponse` that it is in, up to
/// the content of its one field, which has `length` bytes.
fn put_result(out: &mut Vec<u8>, field: u8, length: usize) {
    const RESULTS: u8 = 1;
    let of_field = encoded_len_varint(length as u64);
    out.put_u8(tag(RESULTS));
    encode_varint((1 + of_field + length) as u64, out);
    put_head(out, field, length);
}

/// Writes a field that holds a message or a text, up to its content, which has `length` bytes.
fn put_head(out: &mut Vec<u8>, field: u8, length: usize) {
    out.put_u8(tag(field));
    encode_varint(length as u64, out);
}

/// The tag of a length-delimited field.
const fn tag(field: u8) -> u8 {
    field << 3 | 2
}

struct Streamed<'a>(&'a Authorization);

/// The answers of one stream.
type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for Streamed<'_> {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = std::future::Ready<Answered<Answers>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let call = Call::of(&request);
        let begin = || {
            let ready = call.deadline.check();
            // Nothing loaded is refused before the stream begins; later there always is something.
            let ready = ready.and_then(|()| self.0.snapshot());
            ready.map_err(|rejection| self.0.ends(rejection))?;
            let state = AnswerStream {
                door: self.0.clone(),
                items: request.into_inner(),
                call,
                turn: Turn::begin(),
            };
            let answers: Answers = Box::pin(stream::try_unfold(state, AnswerStream::next));
            Ok(Response::new(answers))
        };
        std::future::ready(begin())
    }
}

/// One caller's stream: an item is read, decided and answered before the next is read, so a
/// caller that does not read its answers is not read from either, and holds nothing but itself.
struct AnswerStream {
    door: Authorization,
    items: Streaming<Bytes>,
    call: Call,
    turn: Turn,
}

impl AnswerStream {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Status> {
        self.turn.yield_when_over().await;
        let item = tokio::select! {
            biased;
            () = self.door.draining.draining() => Err(Rejection::ShuttingDown),
            () = self.call.deadline.passed() => Err(Rejection::DeadlinePassed),
            item = self.items.message() => Ok(item.map_err(by_contract)?),
        };
        let item = item.map_err(|rejection| self.door.ends(rejection))?;
        // Renewed, so that what it may is what the list says now.
        let renewed = self.call.caller.renew(Right::Authorize);
        renewed.map_err(|rejection| self.door.ends(rejection))?;
        let Some(message) = item else {
            return Ok(None);
        };
        let leave = self.door.leave_for(&self.call).await;
        let leave = leave.map_err(|rejection| self.door.ends(rejection))?;
        let (correlation_id, decided) = self.decide(&message, leave).await?;
        Ok(Some((stream_response(correlation_id, decided), self)))
    }

    /// Decides an item on the snapshot in force now.
    async fn decide(
        &self,
        message: &[u8],
        leave: Leave,
    ) -> Result<(u64, Result<Decided, Rejection>), Status> {
        let of = (&self.call, Method::StreamAuthorize);
        let snapshot = self.door.snapshot();
        if let Ok(snapshot) = &snapshot
            && let Some((correlation_id, request)) = scan::stream_item(message)
            && let Some(decided) = self.door.decide_in_place(snapshot, request, of, &leave)
        {
            return Ok((correlation_id, decided));
        }
        let pb::StreamAuthorizeRequest {
            correlation_id,
            request,
        } = codec::decode(message)?;
        let decided = match snapshot {
            Ok(snapshot) => {
                // An item without a request lacks what every request needs.
                let request = request.unwrap_or_default();
                self.door
                    .decide_waiting(&snapshot, request, of, leave)
                    .await
            }
            Err(rejection) => {
                self.door.refused(&rejection, &self.call);
                Err(rejection)
            }
        };
        Ok((correlation_id, decided))
    }
}

/// A `StreamAuthorizeResponse`.
fn stream_response(correlation_id: u64, decided: Result<Decided, Rejection>) -> Bytes {
    const RESPONSE: u8 = 2;
    let error = match decided {
        Err(rejection) => to_message(&rejection.into()),
        Ok(decided) => {
            // Proto3 leaves out what is zero.
            let mut response = pb::StreamAuthorizeResponse {
                correlation_id,
                result: None,
            }
            .encode_to_vec();
            put_head(&mut response, RESPONSE, decided.message_len());
            decided.put_message(&mut response);
            return response.into();
        }
    };
    pb::StreamAuthorizeResponse {
        correlation_id,
        result: Some(pb::stream_authorize_response::Result::Error(error)),
    }
    .encode_to_vec()
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

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
