//! The door of `pdp.v1.AuthorizationService`: parse, ask the engine, answer.
//!
//! tonic's generated service is not used here, but what it is made of: messages come as bytes and
//! are read in place where they have the plain shape (`scan`), and answers go as the bytes that
//! the engine remembers. Everything else is decoded by prost, with the same errors as ever.

mod batch;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use hyper::body::Incoming;
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};
use prost::encoding::encode_varint;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::answer::{AnswerBody, EncodedAnswer, put_decision_id};
use super::call::Call;
use super::callers::{IdentityKind, Right};
use super::figures::CallFigures;
use super::from_proto;
use super::heavy::{self, Seat, Seats};
use super::identity::{self, Identified};
use super::message::{self, Unread, Whole};
use super::parts::{self, Shape};
use super::pending::PendingBytes;
use super::scan::{Scanned, Sent};
use super::status::{Rejection, by_contract, to_message};
use super::turn::Turn;
use super::{codec, pb, scan};
use crate::config::api::AuthorizationRules;
use crate::decision_log::Method;
use crate::engine::query_ref::{QueryRef, UidRef};
use crate::engine::{self, Engine, Leave};
use crate::pdp::{NoAnswer, Snapshot, refuse_telling_anew};
use crate::pip::{self, KeyWait, Moment, Patience, Tokens};
use crate::readiness::ReadinessReader;

/// An answer, and what its decision is called.
type Decided = engine::Answered<EncodedAnswer>;

/// Answers `pdp.v1.AuthorizationService`.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    engine: Arc<Engine<EncodedAnswer>>,
    tokens: Option<Arc<Tokens>>,
    rules: Arc<AuthorizationRules>,
    max_message_bytes: usize,
    pending: PendingBytes,
    seats: Seats,
    draining: ReadinessReader,
    figures: Option<Arc<CallFigures>>,
}

impl Authorization {
    /// A door to `engine`; `tokens` say who asks where a token does, `pending` bounds what
    /// comes and waits, `draining` ends its streams, and `figures` count what it refuses.
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
            seats: Seats::new(),
            draining,
            figures,
        }
    }

    /// `Authorize`.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn has room for its arguments twice"
    )]
    pub(super) fn authorize<'a>(
        &'a self,
        request: http::Request<Incoming>,
        call: &'a Call,
    ) -> impl Future<Output = http::Response<AnswerBody>> + use<'a> {
        async move {
            let (head, body) = request.into_parts();
            // Whether an encoding is known is for tonic to say, even when it is not used.
            let body = if head.headers.contains_key("grpc-encoding") {
                Body::new(self.pending.counting(body))
            } else {
                match message::read(body, self.max_message_bytes, &self.pending).await {
                    Ok(bytes) => {
                        let message = bytes.get(super::answer::PREFIX_BYTES..).unwrap_or_default();
                        let leave = match self.leave_for(call, bytes.len()).await {
                            Ok(leave) => leave,
                            Err(rejection) => {
                                return self.ends(rejection).into_http().map(AnswerBody::tonic);
                            }
                        };
                        match self.authorize_in_place(message, call, &leave) {
                            Some(Ok(answer)) => return answer.into_response(),
                            Some(Err(rejection)) => {
                                return Status::from(rejection).into_http().map(AnswerBody::tonic);
                            }
                            None => Body::new(Whole(Some(bytes))),
                        }
                    }
                    Err(Unread::Held(held)) => Body::new(self.pending.counting(held)),
                    Err(Unread::Refused(rejection)) => {
                        return self.ends(rejection).into_http().map(AnswerBody::tonic);
                    }
                }
            };
            let request = call.put_with(http::Request::from_parts(head, body));
            // Boxed, as few come here and all would make room for it.
            Box::pin(async move { self.grpc().unary(Unary(self), request).await })
                .await
                .map(AnswerBody::tonic)
        }
    }

    /// `BatchAuthorize`.
    pub(super) async fn batch_authorize(
        &self,
        request: http::Request<Incoming>,
        call: &Call,
    ) -> http::Response<AnswerBody> {
        let request = call.put_with(request.map(|body| Body::new(self.pending.counting(body))));
        self.grpc()
            .unary(batch::Batched(self), request)
            .await
            .map(AnswerBody::tonic)
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
            .map(AnswerBody::tonic)
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
    /// caller may be another by then, or none. While it must wait, it holds so many `bytes`.
    async fn leave_for(&self, call: &Call, bytes: usize) -> Result<Leave, Rejection> {
        let leave = match self.engine.leave_now() {
            Some(leave) => leave,
            // What the log has no room for by the end it will never have room for.
            None => Box::pin(self.in_time(self.engine.leave(), call, bytes)).await?,
        };
        call.caller.is_still(Right::Authorize)?;
        Ok(leave)
    }

    /// A seat for a message of so many `bytes`, which it holds while it must wait.
    async fn seat_for(&self, call: &Call, bytes: usize) -> Result<Seat, Rejection> {
        match self.seats.seat_now() {
            Some(seat) => Ok(seat),
            None => Box::pin(self.in_time(self.seats.seat(), call, bytes)).await,
        }
    }

    /// What is `awaited`, if it comes in time, with so many `bytes` on the account until then.
    async fn in_time<T>(
        &self,
        awaited: impl Future<Output = T>,
        call: &Call,
        bytes: usize,
    ) -> Result<T, Rejection> {
        let _held = self.pending.hold(bytes)?;
        let mut draining = self.draining.clone();
        tokio::select! {
            biased;
            come = awaited => Ok(come),
            () = draining.draining() => Err(Rejection::ShuttingDown),
            () = call.deadline.passed() => Err(Rejection::DeadlinePassed),
        }
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

    /// Decides a request of any shape, unless that takes a key that is not there yet.
    fn decide(
        &self,
        snapshot: &Snapshot,
        mut request: pb::AuthorizeRequest,
        (call, method): (&Call, Method),
        leave: &Leave,
        patience: Patience,
    ) -> Step {
        let origin = call.origin(method);
        let (rules, tokens) = (&self.rules.request, self.tokens.as_deref());
        // Before anything is looked at or verified: a caller that may not is told that alone.
        let kind = from_proto::identity_kind(&request);
        let may = self.may(call, kind, request.explain);
        let identified =
            may.and_then(|()| identity::identify(&mut request, rules, tokens, patience));
        let query = match identified {
            Ok(Identified::Asker(asker)) => from_proto::query(request, asker, rules),
            Ok(Identified::Wait(wait)) => return Step::Wait(wait),
            Err(rejection) => Err(rejection),
        };
        let query = query.and_then(|query| {
            if kind == IdentityKind::Anonymous && !call.names_principals()? {
                refuse_telling_anew(snapshot, &query.principal, &query.entities)?;
            }
            Ok(query)
        });
        let query = query.inspect_err(|rejection| self.engine.refused(&origin, rejection.reason()));
        let decided = query.and_then(|query| {
            let answered = (self.engine).authorize(snapshot, &query, &origin, leave)?;
            call.answered(&answered, snapshot, &QueryRef::from(&query));
            Ok(answered)
        });
        Step::Decided(decided.inspect_err(|rejection| self.refused(rejection, call)))
    }

    /// Decides what `sent` asks, unless that takes a key that is not there yet.
    ///
    /// # Errors
    ///
    /// The status of the whole call, when it is no message.
    fn decide_sent(
        &self,
        snapshot: &Snapshot,
        sent: Undecoded<'_>,
        of: (&Call, Method),
        leave: &Leave,
        patience: Patience,
    ) -> Result<Step, Status> {
        let (message, shape) = match sent {
            Undecoded::Request(message) => (message, Shape::Request),
            Undecoded::StreamItem(message) => (message, Shape::StreamItem),
        };
        if let Err(rejection) = parts::check(message, shape, self.rules.request.max_values) {
            let (call, method) = of;
            (self.engine).refused(&call.origin(method), rejection.reason());
            self.refused(&rejection, call);
            return Ok(Step::Decided(Err(rejection)));
        }
        let request = match sent {
            Undecoded::Request(message) => codec::decode(message)?,
            // An item without a request lacks what every request needs.
            Undecoded::StreamItem(message) => {
                let item: pb::StreamAuthorizeRequest = codec::decode(message)?;
                item.request.unwrap_or_default()
            }
        };
        Ok(self.decide(snapshot, request, of, leave, patience))
    }

    /// Decides what `sent` asks, waiting for a key if it must: without leave meanwhile, for others
    /// have use for it, and undecoded, which is smaller.
    ///
    /// # Errors
    ///
    /// As [`Authorization::decide_sent`].
    async fn decide_waiting(
        &self,
        snapshot: &Snapshot,
        sent: Undecoded<'_>,
        of: (&Call, Method),
        (leave, seat): (Leave, Seat),
    ) -> Result<Result<Decided, Rejection>, Status> {
        let wait =
            match seat.run(|| self.decide_sent(snapshot, sent, of, &leave, Patience::Waits))? {
                Step::Decided(decided) => return Ok(decided),
                Step::Wait(wait) => wait,
            };
        drop((leave, seat));
        let bytes = sent.bytes();
        let ready = async {
            let held = self.pending.hold(bytes)?;
            identity::wait_for_keys(wait, of.0, self.draining.clone()).await?;
            drop(held);
            self.ready_for(of.0, bytes).await
        };
        let (leave, seat) = match ready.await {
            Ok(ready) => ready,
            Err(rejection) => {
                self.refused(&rejection, of.0);
                return Ok(Err(rejection));
            }
        };
        let again = || self.decide_sent(snapshot, sent, of, &leave, Patience::Spent);
        match seat.run(again)? {
            Step::Decided(decided) => Ok(decided),
            // INVARIANT: without patience there is no waiting.
            Step::Wait(_) => Ok(Err(Rejection::DeadlinePassed)),
        }
    }

    /// What it takes to decide a message of so many `bytes` in time.
    async fn ready_for(&self, call: &Call, bytes: usize) -> Result<(Leave, Seat), Rejection> {
        let seat = match heavy::is_heavy(bytes) {
            true => self.seat_for(call, bytes).await?,
            false => Seat::NONE,
        };
        let leave = self.leave_for(call, bytes).await?;
        call.deadline.check()?;
        Ok((leave, seat))
    }

    /// Decides a message of the plain shape; of any other `None`, and nothing is decided.
    fn decide_in_place(
        &self,
        snapshot: &Snapshot,
        message: &[u8],
        (call, method): (&Call, Method),
        leave: &Leave,
    ) -> Option<Result<Decided, Rejection>> {
        let (scanned, who) = self.read_in_place(message, call)?;
        let query = who.query(scanned);
        let origin = call.origin(method);
        let answered = (self.engine).authorize_ref(snapshot, &query, &origin, leave);
        Some(self.noted(answered, snapshot, &query, call))
    }

    /// Reads a message of the plain shape whose caller may ask so; who asks is known at once.
    fn read_in_place<'a>(
        &'a self,
        message: &'a [u8],
        call: &Call,
    ) -> Option<(Scanned<'a>, Who<'a>)> {
        let scanned = scan::request(message, &self.rules.request)?;
        self.may(call, scanned.sent.kind(), scanned.explain).ok()?;
        let who = match scanned.sent {
            Sent::Principal(principal) => Who::Named(principal),
            // Entities beside it may have to be looked at.
            Sent::Anonymous(_) if scanned.brings_entities() && !call.names_principals().ok()? => {
                return None;
            }
            Sent::Anonymous(principal) => Who::Named(principal),
            Sent::Token(token) => {
                let tokens = self.tokens.as_deref()?;
                Who::Known(tokens.recall(token, Moment::from(SystemTime::now()))?)
            }
        };
        Some((scanned, who))
    }

    /// Notes for those who look on what came of `query`.
    fn noted(
        &self,
        answered: Result<Decided, NoAnswer>,
        snapshot: &Snapshot,
        query: &QueryRef<'_>,
        call: &Call,
    ) -> Result<Decided, Rejection> {
        answered
            .inspect(|answered| call.answered(answered, snapshot, query))
            .map_err(Rejection::from)
            .inspect_err(|rejection| self.refused(rejection, call))
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

/// Who asks, where that needs no further looking.
enum Who<'a> {
    Named(UidRef<'a>),
    /// By a token that was verified before.
    Known(Arc<pip::Identified>),
}

impl Who<'_> {
    fn query<'q>(&'q self, scanned: Scanned<'q>) -> QueryRef<'q> {
        match self {
            Self::Named(principal) => scanned.query(*principal, None),
            Self::Known(identified) => {
                let principal = UidRef::from(&identified.principal);
                scanned.query(principal, Some(&identified.claimed))
            }
        }
    }
}

/// A message that holds a request.
#[derive(Clone, Copy)]
enum Undecoded<'a> {
    Request(&'a [u8]),
    StreamItem(&'a [u8]),
}

impl Undecoded<'_> {
    fn bytes(self) -> usize {
        match self {
            Self::Request(message) | Self::StreamItem(message) => message.len(),
        }
    }
}

/// What deciding a request comes to.
enum Step {
    Decided(Result<Decided, Rejection>),
    /// The key of its token may be on its way: wait, and decide the request then.
    Wait(KeyWait),
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
            let sent = Undecoded::Request(request.get_ref());
            let ready = async {
                let ready = door.ready_for(&call, sent.bytes()).await?;
                Ok((ready, door.snapshot()?))
            };
            let (ready, snapshot) = ready.await.map_err(|rejection| door.ends(rejection))?;
            let of = (&call, Method::Authorize);
            let decided = door.decide_waiting(&snapshot, sent, of, ready).await??;
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
        let ready = self.door.ready_for(&self.call, message.len()).await;
        let ready = ready.map_err(|rejection| self.door.ends(rejection))?;
        let (correlation_id, decided) = self.decide(&message, ready).await?;
        Ok(Some((stream_response(correlation_id, decided), self)))
    }

    /// Decides an item on the snapshot in force now.
    async fn decide(
        &self,
        message: &[u8],
        (leave, seat): (Leave, Seat),
    ) -> Result<(u64, Result<Decided, Rejection>), Status> {
        let of = (&self.call, Method::StreamAuthorize);
        let snapshot = self.door.snapshot();
        if let Ok(snapshot) = &snapshot
            && let Some((correlation_id, request)) = scan::stream_item(message)
            && let Some(decided) = self.door.decide_in_place(snapshot, request, of, &leave)
        {
            return Ok((correlation_id, decided));
        }
        let CorrelationId { correlation_id } = codec::decode(message)?;
        let decided = match snapshot {
            Ok(snapshot) => {
                let sent = Undecoded::StreamItem(message);
                (self.door)
                    .decide_waiting(&snapshot, sent, of, (leave, seat))
                    .await?
            }
            Err(rejection) => {
                self.door.refused(&rejection, &self.call);
                Err(rejection)
            }
        };
        Ok((correlation_id, decided))
    }
}

/// A `StreamAuthorizeRequest`, read for this alone.
#[derive(Clone, PartialEq, prost::Message)]
struct CorrelationId {
    #[prost(uint64, tag = "1")]
    correlation_id: u64,
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
