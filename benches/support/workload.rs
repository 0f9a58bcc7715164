//! Requests of a benchmark and their answers: distinct requests over a small data set, half of them
//! allowed, and the service's answers, which the echoes return.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use tempfile::TempDir;

use super::dataset::{Dataset, DrawnRequest};
use super::load::{bodies, read_bodies};
use super::processes::Client;
use super::running::Server;

/// The number of policies in the small data set, including those without scope.
pub const POLICIES: usize = 12;
pub const ENTITIES: usize = 1_000;

/// The number of answers that an echo returns in turn, and of requests whose answers are checked.
const CHECKED_ANSWERS: usize = 1_000;

/// Draws per distinct request after which a data set counts as too small.
const MAX_DRAWS: usize = 16;

/// A policy directory and its requests.
pub struct Workload {
    directory: TempDir,
    drawn_requests: Vec<DrawnRequest>,
}

impl Workload {
    /// Draws `count` distinct requests, alternately allowed and denied.
    pub fn new(requests: usize) -> anyhow::Result<Self> {
        let dataset = Dataset::new(POLICIES, ENTITIES)?;
        let directory = tempfile::tempdir()?;
        dataset.write(directory.path())?;
        let mut known = HashSet::new();
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for drawn in dataset.draws()?.take(MAX_DRAWS * requests) {
            let drawn = drawn?;
            let of_its_kind = if drawn.is_allowed {
                &mut allowed
            } else {
                &mut denied
            };
            if of_its_kind.len() < requests / 2 && known.insert(drawn.message().encode_to_vec()) {
                of_its_kind.push(drawn);
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
        let drawn_requests = pairs.flat_map(|(allowed, denied)| [allowed, denied]);
        Ok(Self {
            directory,
            drawn_requests: drawn_requests.collect(),
        })
    }

    /// Returns the policy directory.
    pub fn policies(&self) -> &Path {
        self.directory.path()
    }

    /// Returns all requests.
    pub fn requests(&self) -> Vec<pb::AuthorizeRequest> {
        self.drawn_requests
            .iter()
            .map(DrawnRequest::message)
            .collect()
    }

    /// Sends the first requests to `service`, and writes its answers to `file` for an echo.
    pub fn write_answers(&self, service: &Server, most: usize, file: &Path) -> anyhow::Result<()> {
        let mut answers = self.answers_of(service)?;
        answers.truncate(most);
        fs::write(file, bodies(&answers))?;
        Ok(())
    }

    /// Sends the first requests to `service`. Returns the answers, which must be as expected.
    pub fn answers_of(&self, service: &Server) -> anyhow::Result<Vec<pb::AuthorizeResponse>> {
        let mut client = Client::of(service)?;
        let drawn_requests = self.drawn_requests.iter().take(CHECKED_ANSWERS);
        drawn_requests
            .map(|drawn| check_decision(drawn, client.authorize(drawn.message())?))
            .collect()
    }

    /// Checks in batches that `service` answers all requests as expected.
    pub fn check_batches(&self, service: &Server, batch: usize) -> anyhow::Result<()> {
        use pb::batch_authorize_result::Result::{Error, Response};
        let mut client = Client::of(service)?;
        for drawn_requests in self.drawn_requests.chunks(batch) {
            let requests = drawn_requests.iter().map(DrawnRequest::message).collect();
            let answers = client.authorize_batch(requests)?.results;
            ensure!(
                answers.len() == drawn_requests.len(),
                "not every item is answered"
            );
            for (drawn, result) in drawn_requests.iter().zip(answers) {
                match result.result.context("an item without a result")? {
                    Response(answer) => check_decision(drawn, answer)?,
                    Error(error) => anyhow::bail!("an item fails: {error:?}"),
                };
            }
        }
        Ok(())
    }
}

fn check_decision(
    drawn: &DrawnRequest,
    answer: pb::AuthorizeResponse,
) -> anyhow::Result<pb::AuthorizeResponse> {
    ensure!(
        answer.decision() == drawn.decision(),
        "the answer to {drawn:?} is {answer:?}"
    );
    Ok(answer)
}

/// Checks that `echo` returns the answers in `file`, alone and in a batch. Otherwise it would write
/// fewer bytes than the service.
pub fn check_echo(echo: &Server, file: &Path) -> anyhow::Result<()> {
    use pb::batch_authorize_result::Result::Response;
    let mut client = Client::of(echo)?;
    let answers = read_answers(file)?;
    for answer in &answers {
        let given = client.authorize(pb::AuthorizeRequest::default())?;
        ensure!(
            given == *answer,
            "the echo answers {given:?} instead of {answer:?}"
        );
    }
    let requests = answers.iter().map(|_| pb::AuthorizeRequest::default());
    let given = client.authorize_batch(requests.collect())?.results;
    let given = given.into_iter().map(|result| result.result);
    ensure!(
        given.eq(answers.into_iter().map(|answer| Some(Response(answer)))),
        "the echo gives other answers in a batch"
    );
    Ok(())
}

/// Reads the answers in a file of [`Workload::write_answers`].
pub fn read_answers(file: &Path) -> anyhow::Result<Vec<pb::AuthorizeResponse>> {
    read_bodies(file)?
        .into_iter()
        // After gRPC's prefix.
        .map(|body| Ok(pb::AuthorizeResponse::decode(body.slice(5..))?))
        .collect()
}
