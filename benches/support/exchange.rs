//! What callers say and what they are answered: distinct requests over a small data set, half of
//! them allowed, and the service's answers, which the echoes give.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use tempfile::TempDir;

use super::dataset::{Ask, Dataset};
use super::load::{bodies, read_bodies};
use super::processes::Caller;
use super::running::Server;

/// The policies of the small data set, those without scope among them.
pub const POLICIES: usize = 12;
pub const ENTITIES: usize = 1_000;

/// Answers that an echo gives in turn, and requests whose answers are looked at.
const LOOKED_AT: usize = 1_000;

/// Draws per distinct request after which a data set counts as one that has too few of them.
const MOST_DRAWS: usize = 16;

/// A policy directory and requests to it.
pub struct Exchange {
    directory: TempDir,
    asks: Vec<Ask>,
}

impl Exchange {
    /// So many requests, no two alike, allowed and denied ones in turn: the first of their kind that
    /// the data set draws.
    pub fn new(requests: usize) -> anyhow::Result<Self> {
        let dataset = Dataset::new(POLICIES, ENTITIES)?;
        let directory = tempfile::tempdir()?;
        dataset.write(directory.path())?;
        let mut known = HashSet::new();
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for ask in dataset.draws()?.take(MOST_DRAWS * requests) {
            let ask = ask?;
            let of_its_kind = if ask.is_allowed {
                &mut allowed
            } else {
                &mut denied
            };
            if of_its_kind.len() < requests / 2 && known.insert(ask.message().encode_to_vec()) {
                of_its_kind.push(ask);
            }
            if allowed.len() + denied.len() == requests {
                break;
            }
        }
        ensure!(
            allowed.len() + denied.len() == requests,
            "only {} allowed and {} denied requests differ, of {requests}, an even number",
            allowed.len(),
            denied.len()
        );
        let pairs = allowed.into_iter().zip(denied);
        let asks = pairs.flat_map(|(allowed, denied)| [allowed, denied]);
        Ok(Self {
            directory,
            asks: asks.collect(),
        })
    }

    /// The policy directory.
    pub fn policies(&self) -> &Path {
        self.directory.path()
    }

    /// All requests.
    pub fn requests(&self) -> Vec<pb::AuthorizeRequest> {
        self.asks.iter().map(Ask::message).collect()
    }

    /// Has `service` answer the first requests, so many at most as are looked at, and writes its
    /// answers to `file`, for an echo.
    pub fn write_answers(&self, service: &Server, most: usize, file: &Path) -> anyhow::Result<()> {
        let mut answers = self.answers_of(service)?;
        answers.truncate(most);
        fs::write(file, bodies(&answers))?;
        Ok(())
    }

    /// The answers of `service` to the first requests, which must be as the data set promises.
    pub fn answers_of(&self, service: &Server) -> anyhow::Result<Vec<pb::AuthorizeResponse>> {
        let mut caller = Caller::of(service)?;
        let asks = self.asks.iter().take(LOOKED_AT);
        asks.map(|ask| as_promised(ask, caller.authorize(ask.message())?))
            .collect()
    }

    /// Sees that `service` answers all requests as the data set promises, in one batch after another.
    pub fn check_batches(&self, service: &Server, batch: usize) -> anyhow::Result<()> {
        use pb::batch_authorize_result::Result::{Error, Response};
        let mut caller = Caller::of(service)?;
        for asks in self.asks.chunks(batch) {
            let requests = asks.iter().map(Ask::message).collect();
            let answers = caller.authorize_batch(requests)?.results;
            ensure!(answers.len() == asks.len(), "not every item is answered");
            for (ask, result) in asks.iter().zip(answers) {
                match result.result.context("an item without a result")? {
                    Response(answer) => as_promised(ask, answer)?,
                    Error(error) => anyhow::bail!("an item fails: {error:?}"),
                };
            }
        }
        Ok(())
    }
}

fn as_promised(ask: &Ask, answer: pb::AuthorizeResponse) -> anyhow::Result<pb::AuthorizeResponse> {
    ensure!(
        answer.decision() == ask.decision(),
        "the answer to {ask:?} is {answer:?}"
    );
    Ok(answer)
}

/// Sees that `echo` gives the answers in `file`, one by one and in a batch: else it would be spared
/// bytes that the service writes.
pub fn check_echo(echo: &Server, file: &Path) -> anyhow::Result<()> {
    use pb::batch_authorize_result::Result::Response;
    let mut caller = Caller::of(echo)?;
    let answers = read_answers(file)?;
    for answer in &answers {
        let given = caller.authorize(pb::AuthorizeRequest::default())?;
        ensure!(given == *answer, "the echo says {given:?} for {answer:?}");
    }
    let requests = answers.iter().map(|_| pb::AuthorizeRequest::default());
    let given = caller.authorize_batch(requests.collect())?.results;
    let given = given.into_iter().map(|result| result.result);
    ensure!(
        given.eq(answers.into_iter().map(|answer| Some(Response(answer)))),
        "the echo gives other answers in a batch"
    );
    Ok(())
}

/// The answers in a file that [`Exchange::write_answers`] wrote.
pub fn read_answers(file: &Path) -> anyhow::Result<Vec<pb::AuthorizeResponse>> {
    read_bodies(file)?
        .into_iter()
        // Behind gRPC's prefix.
        .map(|body| Ok(pb::AuthorizeResponse::decode(body.slice(5..))?))
        .collect()
}
