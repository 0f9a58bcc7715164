//! `BatchAuthorize`: many requests decided on one snapshot, in turns.
//!
//! Where the last few answers were remembered, the next ones are looked up many at once, which costs
//! less than one by one; what was not found so is then decided like any other.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes};
use prost::encoding::{encode_varint, encoded_len_varint};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use super::{Answered, Authorization, Decided, Step, put_head, tag};
use crate::api::call::Call;
use crate::api::callers::Right;
use crate::api::status::{Rejection, to_message};
use crate::api::turn::Turn;
use crate::api::{codec, identity, pb, scan};
use crate::decision_log::Method;
use crate::engine::{Leave, Source};
use crate::pdp::Snapshot;
use crate::pip::{KeyWait, Patience};

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
    /// Whether the last few answers were remembered, so that the next ones may be as well.
    is_remembered: bool,
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
/// And how many whose answer is remembered, which takes a small part of the time.
const REMEMBERED_A_LOOK: usize = 16;
/// How many items are looked up at once. Among the shards of a cache that leaves a handful for each.
const ITEMS_A_LOOKUP: usize = 128;

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
            is_remembered: false,
            response: Vec::new(),
        })
    }

    /// Decides items for one turn, or as long as there is leave.
    fn run(&mut self) -> Result<Progress, Status> {
        let turn = Turn::begin();
        while let Some(leave) = self.leave(turn)? {
            if self.is_remembered {
                self.run_remembered(turn, leave)?;
                continue;
            }
            self.is_remembered = true;
            for _ in 0..ITEMS_A_LOOK {
                match self.next(&leave)? {
                    Some(Step::Decided(decided)) => {
                        let is_remembered =
                            matches!(&decided, Ok(decided) if decided.source == Source::Cache);
                        self.is_remembered &= is_remembered;
                        put(&mut self.response, decided);
                    }
                    Some(Step::Wait { wait, request }) => {
                        self.held = Some(request);
                        return Ok(Progress::Waits(self.within_budget(wait)));
                    }
                    None => return Ok(Progress::Done),
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
        let Items::InPlace { at, mut decided } = self.items else {
            return Ok(());
        };
        let mut response = std::mem::take(&mut self.response);
        let (mut read, mut ends) = (Vec::new(), Vec::new());
        let mut end = at;
        while read.len() < ITEMS_A_LOOKUP
            && let Some(Some(item)) = scan::batch_item(&self.message, &mut end)
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
        let mut at = at;
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
            (at, decided) = (end, decided + 1);
            let is_found = item.answer().is_some();
            since_look += if is_found {
                1
            } else {
                REMEMBERED_A_LOOK / ITEMS_A_LOOK
            };
            all_found &= is_found;
        }
        self.items = Items::InPlace { at, decided };
        self.response = response;
        self.is_remembered = all_found;
        Ok(())
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
