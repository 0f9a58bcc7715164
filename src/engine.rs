//! The one function that every door calls: snapshot in force, cache, PDP.
//!
//! Nothing here knows a wire format, and nothing here decides by itself.

pub mod cache;
mod key;

use std::sync::Arc;

use crate::pdp::NoAnswer;
use crate::pdp::answer::Answer;
use crate::pdp::query::Query;
use crate::pdp::{Snapshot, authorize};
use crate::policy_store::Reader;
use cache::{Cache, CacheFigures, CacheSettings};

/// Answers queries from the snapshot in force, remembering the answers.
#[derive(Debug)]
pub struct Engine {
    snapshots: Reader,
    cache: Option<Cache>,
}

impl Engine {
    /// An engine over the snapshots that `snapshots` reads.
    #[must_use]
    pub fn new(snapshots: Reader, settings: CacheSettings) -> Self {
        Self {
            snapshots,
            cache: Cache::new(settings),
        }
    }

    /// The snapshot in force; `None` while nothing has been loaded.
    ///
    /// A request or batch calls this once and passes the snapshot down: a reload between two
    /// loads would let one request see two policy sets.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshots.load()
    }

    /// Decides `query` on `snapshot`, from the cache when it is there.
    ///
    /// Does no I/O and does not block. The answer is the same with and without the cache.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`] when the query is malformed or does not fit the snapshot's schema, or when
    /// deciding it would take more than it may.
    #[tracing::instrument(level = "debug", skip_all, fields(
        action.r#type = %query.action.type_name,
        principal.r#type = %query.principal.type_name,
        resource.r#type = %query.resource.type_name,
        revision = %snapshot.revision(),
        cache = tracing::field::Empty,
    ))]
    pub fn authorize(&self, snapshot: &Snapshot, query: &Query) -> Result<Arc<Answer>, NoAnswer> {
        let Some(cache) = &self.cache else {
            return authorize(snapshot, query).map(Arc::new);
        };
        // The key holds all of the request and the revision, so a hit is a request that was
        // checked before, in full, on this very content.
        cache.get_or_decide(snapshot.revision(), query, || authorize(snapshot, query))
    }

    /// Drops the remembered answers of snapshots that are no longer in force.
    ///
    /// Only memory is at stake: no lookup under the snapshot in force can meet them.
    pub fn forget(&self) {
        if let Some(cache) = &self.cache {
            cache.forget();
        }
    }

    /// What the cache did since the start; `None` when it is off.
    #[must_use]
    pub fn cache_figures(&self) -> Option<CacheFigures> {
        self.cache.as_ref().map(Cache::figures)
    }
}
