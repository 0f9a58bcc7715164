//! A data set, written to disk and loaded as the service does, in this process.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use cedar_pdp::pdp::answer::Decision;
use cedar_pdp::pdp::query::Query;
use cedar_pdp::pdp::{Settings, Snapshot, Workers, authorize, compile_from};
use cedar_pdp::policy_store::{SourceLimits, directory};
use tempfile::TempDir;

use crate::support::dataset::{Dataset, DrawnRequest};
use crate::support::targets::thousands;

/// A snapshot, its directory, and requests.
pub(crate) struct Loaded {
    pub(crate) directory: TempDir,
    pub(crate) dataset: Dataset,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) drawn_requests: Vec<DrawnRequest>,
}

impl Loaded {
    /// Generates a data set of this size with these requests.
    pub(crate) fn new(policies: usize, entities: usize, requests: usize) -> anyhow::Result<Self> {
        let dataset = Dataset::new(policies, entities)?;
        let directory = tempfile::tempdir()?;
        dataset.write(directory.path())?;
        let drawn_requests = dataset.requests(requests)?;
        let snapshot = load(directory.path())?;
        let loaded = Self {
            directory,
            dataset,
            snapshot,
            drawn_requests,
        };
        loaded.check()?;
        Ok(loaded)
    }

    /// Loads the same schema and entities with only this policy.
    pub(crate) fn with_policy_alone(&self, policy: &str) -> anyhow::Result<Arc<Snapshot>> {
        let directory = tempfile::tempdir()?;
        self.dataset.write(directory.path())?;
        fs::remove_dir_all(directory.path().join("policies"))?;
        fs::write(directory.path().join("alone.cedar"), policy)?;
        load(directory.path())
    }

    /// Describes the size, for a row of a table.
    pub(crate) fn size(&self) -> String {
        format!(
            "{} policies, {} entities",
            thousands(self.dataset.policies()),
            thousands(self.dataset.entities())
        )
    }

    /// Returns all requests as queries.
    pub(crate) fn queries(&self) -> Vec<Query> {
        self.drawn_requests
            .iter()
            .map(DrawnRequest::query)
            .collect()
    }

    /// Decides each request once, and checks the decision that the data set promises.
    fn check(&self) -> anyhow::Result<()> {
        for drawn in &self.drawn_requests {
            let answer = authorize(&self.snapshot, &drawn.query())
                .with_context(|| format!("{drawn:?} cannot be decided"))?;
            ensure!(
                (answer.decision == Decision::Allow) == drawn.is_allowed,
                "{drawn:?} is decided otherwise: {answer:?}"
            );
        }
        Ok(())
    }

    /// Returns the share of allowed requests.
    pub(crate) fn allowed(&self) -> f64 {
        let allowed = self
            .drawn_requests
            .iter()
            .filter(|drawn| drawn.is_allowed)
            .count();
        allowed as f64 / self.drawn_requests.len() as f64
    }
}

fn load(directory: &Path) -> anyhow::Result<Arc<Snapshot>> {
    let workers = Workers {
        threads: std::thread::available_parallelism()?,
        ..Workers::default()
    };
    let reading = directory::scan(directory, &SourceLimits::default(), None, &workers);
    let compiled = compile_from(None, &reading.sources, &Settings::default(), &workers)?;
    Ok(compiled.snapshot)
}
