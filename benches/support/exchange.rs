//! What callers say and what they are answered: distinct requests over a small data set, half of
//! them allowed, and the service's answers, which the echoes give.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use cedar_pdp::api::pb;
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
    /// So many requests, no two alike: the first of their kind, allowed or denied, as the data set
    /// draws them.
    pub fn new(requests: usize) -> anyhow::Result<Self> {
        let dataset = Dataset::new(POLICIES, ENTITIES)?;
        let directory = tempfile::tempdir()?;
        dataset.write(directory.path())?;
        let mut known = HashSet::new();
        let mut left = [requests / 2, requests - requests / 2];
        let mut asks = dataset.requests(MOST_DRAWS * requests)?;
        asks.retain(|ask| {
            let left = if ask.is_allowed {
                &mut left[0]
            } else {
                &mut left[1]
            };
            let is_wanted = *left > 0 && known.insert(ask.message().encode_to_vec());
            *left -= usize::from(is_wanted);
            is_wanted
        });
        ensure!(
            asks.len() == requests,
            "only {} of {requests} requests differ",
            asks.len()
        );
        Ok(Self { directory, asks })
    }

    /// The policy directory.
    pub fn policies(&self) -> &Path {
        self.directory.path()
    }

    /// All requests.
    pub fn requests(&self) -> Vec<pb::AuthorizeRequest> {
        self.asks.iter().map(Ask::message).collect()
    }

    /// Has `service` answer the first requests, sees that it answers as the data set promises, and
    /// writes its answers to `file`, for an echo.
    pub fn write_answers(&self, service: &Server, file: &Path) -> anyhow::Result<()> {
        fs::write(file, bodies(&self.answers_of(service)?))?;
        Ok(())
    }

    /// Sees that a server answers the first requests as the data set promises.
    pub fn check(&self, service: &Server) -> anyhow::Result<()> {
        self.answers_of(service).map(|_| ())
    }

    fn answers_of(&self, service: &Server) -> anyhow::Result<Vec<pb::AuthorizeResponse>> {
        let mut caller = Caller::of(service)?;
        let mut answers = Vec::new();
        for ask in self.asks.iter().take(LOOKED_AT) {
            let answer = caller.authorize(ask.message())?;
            ensure!(
                answer.decision() == ask.decision(),
                "the answer to {ask:?} is {answer:?}"
            );
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Sees that `echo` gives the answers in `file`: else it would be spared bytes that the
    /// service writes.
    pub fn check_echo(&self, echo: &Server, file: &Path) -> anyhow::Result<()> {
        let mut caller = Caller::of(echo)?;
        for answer in read_answers(file)? {
            let given = caller.authorize(pb::AuthorizeRequest::default())?;
            ensure!(given == answer, "the echo says {given:?} for {answer:?}");
        }
        Ok(())
    }

    /// Has `service` answer all requests, one batch after another.
    pub fn ask_all(&self, service: &Server, batch: usize) -> anyhow::Result<()> {
        let mut caller = Caller::of(service)?;
        for asks in self.asks.chunks(batch) {
            caller.authorize_batch(asks.iter().map(Ask::message).collect())?;
        }
        Ok(())
    }

    /// Sees that a batch of the first requests is answered as the data set promises, item by item.
    pub fn check_batch(&self, service: &Server, batch: usize) -> anyhow::Result<()> {
        let asks = self.asks.get(..batch).context("a batch of them")?;
        let requests = asks.iter().map(Ask::message).collect();
        let answers = Caller::of(service)?.authorize_batch(requests)?.results;
        ensure!(answers.len() == batch, "not every item is answered");
        for (ask, result) in asks.iter().zip(answers) {
            use pb::batch_authorize_result::Result::{Error, Response};
            match result.result.context("an item without a result")? {
                Response(answer) => ensure!(
                    answer.decision() == ask.decision(),
                    "the answer to {ask:?} is {answer:?}"
                ),
                Error(error) => anyhow::bail!("an item fails: {error:?}"),
            }
        }
        Ok(())
    }
}

/// The answers in a file that [`Exchange::write_answers`] wrote.
pub fn read_answers(file: &Path) -> anyhow::Result<Vec<pb::AuthorizeResponse>> {
    read_bodies(file)?
        .into_iter()
        // Behind gRPC's prefix.
        .map(|body| Ok(pb::AuthorizeResponse::decode(body.slice(5..))?))
        .collect()
}
