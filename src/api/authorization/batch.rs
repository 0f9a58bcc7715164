//! `BatchAuthorize`: many requests decided on one snapshot, in turns.
//!
//! Where the last few answers were remembered, the next ones are looked up many at once, which costs
//! less than one by one; what was not found so is then decided like any other.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};
use prost::encoding::{WireType, encode_varint, encoded_len_varint};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use super::{Answered, Authorization, Decided, Step, Undecoded, put_head, tag};
use crate::api::call::Call;
use crate::api::callers::Right;
use crate::api::heavy::Seat;
use crate::api::parts::Fields;
use crate::api::pending::HeldBytes;
use crate::api::status::{Rejection, to_message};
use crate::api::turn::Turn;
use crate::api::{codec, heavy, identity};
use crate::decision_log::Method;
use crate::engine::{Leave, Source};
use crate::pdp::Snapshot;
use crate::pip::{KeyMiss, KeyWait};

/// `BatchAuthorize` of messages of any shape.
pub(super) struct Batched<'a>(pub(super) &'a Authorization);

impl UnaryService<Bytes> for Batched<'_> {
    type Response = Bytes;
    type Future = BoxFuture<'static, Answered<Bytes>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let call = Call::of(&request);
        let door = self.0.clone();
        Box::pin(async move {
            let mut batch = Batch::begin(door.clone(), request.into_inner(), call)?;
            let first = batch.run(&Seat::NONE)?;
            if !matches!(first, Progress::Done) {
                // It takes longer than a turn, or must wait for something. Elsewhere it holds up
                // nobody who waits for an answer on this connection, and dropping the set ends it with
                // the call.
                let mut elsewhere = JoinSet::new();
                elsewhere.spawn(batch.run_to_end(first));
                batch = match elsewhere.join_next().await {
                    Some(Ok(done)) => done?,
                    Some(Err(error)) if error.is_panic() => {
                        std::panic::resume_unwind(error.into_panic())
                    }
                    Some(Err(_)) | None => return Err(door.ends(Rejection::ShuttingDown)),
                };
            }
            batch.finish()
        })
    }
}

/// One batch, decided item by item on one snapshot.
struct Batch {
    door: Authorization,
    snapshot: Arc<Snapshot>,
    call: Call,
    message: Bytes,
    /// The first byte of the message that is not decided.
    at: usize,
    /// Whether what could be done for the key of the next item was done.
    has_waited: bool,
    /// Until when the batch may wait for keys, from its first wait on. Tokens of several issuers may
    /// stand in it; but its caller is not kept waiting for each.
    waits_end: Option<Instant>,
    /// Whether the last few answers were remembered, so that the next ones may be as well.
    is_remembered: bool,
    /// A `BatchAuthorizeResponse`, as far as it is known.
    response: Vec<u8>,
    /// Message and response, once they are held for longer than a turn.
    held: Option<HeldBytes>,
}

/// How far a batch has come.
enum Progress {
    Done,
    /// Its turn is, or there is no leave now.
    TurnOver,
    Waits(KeyWait),
    /// The next item is large, and takes a seat.
    TakesSeat,
}

/// What came of looking at the next item.
enum Next {
    Decided(Result<Decided, Rejection>),
    Waits(KeyWait),
    TakesSeat,
    End,
}

/// How many items are decided between two looks at the clock.
const ITEMS_A_LOOK: usize = 4;
/// And how many whose answer is remembered, which takes a small part of the time.
const REMEMBERED_A_LOOK: usize = 16;
/// How many items are looked up at once. Among the shards of a cache that leaves a handful for each.
const ITEMS_A_LOOKUP: usize = 128;

impl Batch {
    fn begin(door: Authorization, message: Bytes, call: Call) -> Result<Self, Status> {
        let ends = |rejection| door.ends(rejection);
        call.caller.is_still(Right::Authorize).map_err(ends)?;
        let most = door.rules.max_batch_items;
        let holds_too_many = holds_more_than(most, &message)?;
        call.deadline.check().map_err(ends)?;
        if holds_too_many {
            return Err(ends(Rejection::TooMany {
                what: "requests in one batch",
                most,
            }));
        }
        // Loaded once: every item is decided on one and the same revision.
        let snapshot = door.snapshot().map_err(ends)?;
        Ok(Self {
            door,
            snapshot,
            call,
            message,
            at: 0,
            has_waited: false,
            waits_end: None,
            is_remembered: false,
            response: Vec::new(),
            held: None,
        })
    }

    /// Decides the items that are left after the first turn, which ended so.
    async fn run_to_end(mut self, first: Progress) -> Result<Self, Status> {
        let mut progress = first;
        loop {
            self.hold().map_err(|rejection| self.door.ends(rejection))?;
            let ready = self.ready(progress).await;
            let Some(seat) = ready.map_err(|rejection| self.door.ends(rejection))? else {
                return Ok(self);
            };
            progress = seat.run(|| self.run(&seat))?;
        }
    }

    /// Waits for what the batch needs to go on; `None` when it is done.
    async fn ready(&self, progress: Progress) -> Result<Option<Seat>, Rejection> {
        // Its bytes are on the account already.
        const HELD: usize = 0;
        let Self { door, call, .. } = self;
        let mut seat = Seat::NONE;
        match progress {
            Progress::Done => return Ok(None),
            Progress::TurnOver => tokio::task::yield_now().await,
            Progress::Waits(wait) => {
                identity::wait_for_keys(wait, call, door.draining.clone()).await?;
            }
            Progress::TakesSeat => seat = door.seat_for(call, HELD).await?,
        }
        let _leave = door.leave_for(call, HELD).await?;
        Ok(Some(seat))
    }

    /// Puts what the batch holds by now on the account.
    fn hold(&mut self) -> Result<(), Rejection> {
        let bytes = self.message.len() + self.response.len();
        match &mut self.held {
            Some(held) => held.change(bytes),
            none => {
                *none = Some(self.door.pending.hold(bytes)?);
                Ok(())
            }
        }
    }

    /// Decides items for one turn, or as long as there is leave. A large one is decided on a seat.
    fn run(&mut self, seat: &Seat) -> Result<Progress, Status> {
        let turn = Turn::begin();
        while let Some(leave) = self.leave(turn)? {
            if self.is_remembered {
                self.run_remembered(turn, leave)?;
                continue;
            }
            self.is_remembered = true;
            for _ in 0..ITEMS_A_LOOK {
                match self.next(&leave, seat)? {
                    Next::Decided(decided) => {
                        let is_remembered =
                            matches!(&decided, Ok(decided) if decided.source == Source::Cache);
                        self.is_remembered &= is_remembered;
                        put(&mut self.response, decided);
                    }
                    Next::Waits(wait) => {
                        self.has_waited = true;
                        return Ok(Progress::Waits(self.within_budget(wait)));
                    }
                    Next::TakesSeat => return Ok(Progress::TakesSeat),
                    Next::End => return Ok(Progress::Done),
                }
            }
        }
        Ok(Progress::TurnOver)
    }

    /// Leave to go on in this turn.
    fn leave(&self, turn: Turn) -> Result<Option<Leave>, Status> {
        let in_time = self.call.deadline.check();
        in_time.map_err(|rejection| self.door.ends(rejection))?;
        match turn.is_over() {
            true => Ok(None),
            false => Ok(self.door.engine.leave_now()),
        }
    }

    /// Looks up the next items all at once, and decides them until the turn is over. Of the plain
    /// shape they must be; from the first that is not, it is as if nothing were remembered.
    fn run_remembered(&mut self, turn: Turn, mut leave: Leave) -> Result<(), Status> {
        self.is_remembered = false;
        let mut response = std::mem::take(&mut self.response);
        let (mut read, mut ends) = (Vec::new(), Vec::new());
        let mut end = self.at;
        while read.len() < ITEMS_A_LOOKUP
            && let Some(item) = item(&self.message, &mut end)
            && let Some(item) = self.door.read_in_place(item, &self.call)
        {
            read.push(item);
            ends.push(end);
        }
        let (scanned, who): (Vec<_>, Vec<_>) = read.into_iter().unzip();
        let queries = who.iter().zip(scanned).map(|(who, item)| who.query(item));
        let looked_up = (self.door.engine).look_up(&self.snapshot, queries.collect());
        let found = looked_up.iter().filter_map(|item| item.answer());
        response.reserve(
            found
                .map(|answer| MOST_OF_HEAD + answer.as_ref().len())
                .sum(),
        );

        let origin = self.call.origin(Method::BatchAuthorize);
        let (mut all_found, mut since_look) = (!looked_up.is_empty(), 0);
        let mut at = self.at;
        for (item, end) in looked_up.iter().zip(ends) {
            if since_look >= REMEMBERED_A_LOOK {
                since_look = 0;
                match self.leave(turn)? {
                    Some(anew) => leave = anew,
                    None => break,
                }
            }
            let answered = (self.door.engine).authorize_looked_up(item, &origin, &leave);
            let answered = (self.door).noted(answered, &self.snapshot, item.query(), &self.call);
            put(&mut response, answered);
            at = end;
            let is_found = item.answer().is_some();
            since_look += if is_found {
                1
            } else {
                REMEMBERED_A_LOOK / ITEMS_A_LOOK
            };
            all_found &= is_found;
        }
        self.at = at;
        self.response = response;
        self.is_remembered = all_found;
        Ok(())
    }

    /// Decides the next item.
    fn next(&mut self, leave: &Leave, seat: &Seat) -> Result<Next, Status> {
        let of = (&self.call, Method::BatchAuthorize);
        let mut end = self.at;
        let Some(item) = item(&self.message, &mut end) else {
            return Ok(Next::End);
        };
        let step = match self.door.decide_in_place(&self.snapshot, item, of, leave) {
            Some(decided) => Step::Decided(decided),
            None if heavy::is_heavy(item.len()) && !seat.is_taken() => return Ok(Next::TakesSeat),
            None => {
                let on_key_miss = match self.waits_end {
                    _ if self.has_waited => KeyMiss::Fail,
                    Some(end) if Instant::now() >= end => KeyMiss::Fail,
                    Some(_) | None => KeyMiss::Wait,
                };
                let sent = Undecoded::Request(item);
                // What is no request at all fails the whole batch.
                (self.door).decide_sent(&self.snapshot, sent, of, leave, on_key_miss)?
            }
        };
        Ok(match step {
            Step::Decided(decided) => {
                (self.at, self.has_waited) = (end, false);
                Next::Decided(decided)
            }
            Step::Wait(wait) => Next::Waits(wait),
        })
    }

    /// All waits together take no longer than the first alone could.
    fn within_budget(&mut self, wait: KeyWait) -> KeyWait {
        let now = Instant::now();
        let end = *self.waits_end.get_or_insert(now + wait.timeout());
        wait.with_max_timeout(end.saturating_duration_since(now))
    }

    fn finish(self) -> Answered<Bytes> {
        const REVISION: u8 = 2;
        let Self {
            door,
            mut response,
            snapshot,
            mut held,
            ..
        } = self;
        let revision = snapshot.revision().as_str();
        put_head(&mut response, REVISION, revision.len());
        response.put_slice(revision.as_bytes());
        // A long one may lie here for as long as its caller likes.
        let holds = match &mut held {
            Some(held) => held.change(response.len()),
            None => Ok(()),
        };
        holds.map_err(|rejection| door.ends(rejection))?;
        let mut response = Response::new(response.into());
        if let Some(held) = held {
            response.extensions_mut().insert(Arc::new(held));
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
const MOST_OF_HEAD: usize = 6;

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
    use crate::api::pb;

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
