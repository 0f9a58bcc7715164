//! The callers that the service accepts: anyone, or those of a list that is reloaded when it changes.
//!
//! A caller is the program that calls. On whose behalf it asks is not known here, except for the
//! kinds of identity that a caller may send.

use std::fmt;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::caller::{Denied, Right};
use super::peer::bearer_key;
use super::registry::{self, CallersError, KeyDigest, Registry};
use crate::counters::page::{Export, Page, metrics};
use crate::versioned::Versioned;
use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, Fingerprint, reload_on_change};

metrics! {
    CALLER_LISTS = Counter "cedar_pdp_caller_lists_total" ["result"]
        "Lists of callers read, by result (taken, refused)";
}

/// The state of the list of callers, and counts since startup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CallersMetrics {
    /// Callers in the current list.
    pub(crate) callers: usize,
    /// Lists that were accepted, the first one included.
    pub(crate) accepted: u64,
    pub(crate) rejected: u64,
}

/// The callers that are accepted.
#[derive(Debug)]
pub(crate) enum Callers {
    /// All callers; there is no list.
    Anyone,
    /// The callers of a list.
    Listed(ListedCallers),
}

/// The list of callers, which is replaced when its files change.
#[derive(Debug)]
pub(crate) struct ListedCallers {
    pub(super) file: PathBuf,
    pub(super) current: Versioned<Registry>,
    accepted: AtomicU64,
    rejected: AtomicU64,
}

impl Callers {
    /// Reads the list in `file`. Returns the fingerprint of the files that were read, for
    /// [`reload_on_change`](Self::reload_on_change).
    pub(crate) fn open(file: &Path) -> Result<(Self, Fingerprint), CallersError> {
        let mut files = FileReader::default();
        let listed = ListedCallers {
            file: file.to_owned(),
            current: Versioned::new(registry::read(file, &mut files)?),
            accepted: AtomicU64::new(1),
            rejected: AtomicU64::new(0),
        };
        Ok((Self::Listed(listed), files.fingerprint()))
    }

    /// Reloads the list when its files change. Never returns.
    pub(crate) async fn reload_on_change(
        self: Arc<Self>,
        settings: WatchSettings,
        first: Fingerprint,
    ) {
        let Self::Listed(listed) = &*self else {
            return;
        };
        let file = listed.file.clone();
        let load = move |files: &mut FileReader| registry::read(&file, files);
        let replace = |list| {
            listed.replace(list);
            ready(())
        };
        reload_on_change(settings, first, load, replace).await;
    }

    /// Returns the metrics of the list; `None` if there is no list.
    pub(crate) fn metrics(&self) -> Option<CallersMetrics> {
        match self {
            Self::Anyone => None,
            Self::Listed(listed) => Some(CallersMetrics {
                callers: listed.current.load().len(),
                accepted: listed.accepted.load(Ordering::Relaxed),
                rejected: listed.rejected.load(Ordering::Relaxed),
            }),
        }
    }

    /// Returns the name of the caller whose key is sent in `authorization`, if it has the right to
    /// `administer`. Returns `None` if no key is sent or the list has no keys.
    pub(crate) fn administrator(
        &self,
        headers: &http::HeaderMap,
    ) -> Result<Option<String>, Denied> {
        let (Self::Listed(listed), Some(key)) = (self, bearer_key(headers)) else {
            return Ok(None);
        };
        let registry = listed.current.load();
        if !registry.has_keys() {
            return Ok(None);
        }
        let caller = registry.find_by_key(&KeyDigest::of(key));
        let caller = caller.ok_or(Denied::UnknownKey)?;
        match caller.may(Right::Administer) {
            true => Ok(Some(caller.name().to_owned())),
            false => Err(Denied::MissingRight(Right::Administer)),
        }
    }

    /// Returns whether some callers are identified by certificate.
    pub(crate) fn uses_certificates(&self) -> bool {
        match self {
            Self::Anyone => false,
            Self::Listed(listed) => listed.current.load().has_certificates(),
        }
    }
}

impl ListedCallers {
    /// Replaces the list. A rejected list is logged and counted, and the current one stays in use.
    pub(super) fn replace(&self, list: Result<Registry, CallersError>) {
        match list {
            Ok(list) => {
                let callers = list.len();
                self.current.replace(list);
                self.accepted.fetch_add(1, Ordering::Relaxed);
                tracing::info!(callers, "new list of callers");
            }
            Err(error) => {
                self.rejected.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "new list of callers rejected, the current one stays in use");
            }
        }
    }
}

impl Export for CallersMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let results = [(["taken"], self.accepted), (["refused"], self.rejected)];
        page.counter(&CALLER_LISTS, results)
    }
}

impl Export for Callers {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        self.metrics()
            .map_or(Ok(()), |metrics| metrics.export(page))
    }
}
