//! Who is asking: a token becomes a principal, and what its issuer says of it.
//!
//! `verify` goes through a token step by step; `token` and `json` read its form, `keys` are what it
//! is verified with, `mapping` is what its claims become, `revocations` what was taken back. Keys and
//! revocations change while requests go on; [`Upkeep`] sees to that. The clock is a parameter.
//!
//! Nothing here decides anything, and no policy sees a claim that was not verified here.

mod figures;
mod issuers;
mod json;
mod keys;
mod mapping;
mod moment;
mod refusal;
mod remembered;
mod revocations;
mod slot;
mod token;
mod verify;
mod weight;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use jsonwebtoken::Algorithm;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use figures::{KeyFigures, TokenFigures};
pub use issuers::{Issuers, IssuersError};
pub use keys::BadKeys;
pub use keys::refresh::KeyWait;
pub use moment::Moment;
pub use refusal::{Reason, Refusal};
pub use revocations::RevocationsError;
pub use verify::{Identified, Patience, Tokens, Verdict};

pub use crate::config::TokenSettings;
use crate::followed::{self, FollowSettings, ReadError, Reading};
use figures::{Counters, KeyCounters};
use issuers::{IssuerRules, KeySource};
use keys::KeySet;
use keys::refresh::Refresher;
use revocations::Revocations;
use slot::Writer;
use verify::Issuer;

/// The largest file that is read here, in bytes: lists of revocations grow.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Why tokens cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum OpenRefused {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ReadError),
    /// The issuers file makes no sense.
    #[error("`{}`: {source}", path.display())]
    Issuers {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: IssuersError,
    },
    /// A file of keys holds none.
    #[error("issuer `{issuer}`: `{}`: {source}", path.display())]
    Keys {
        /// Whose keys.
        issuer: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadKeys,
    },
    /// There is nobody to vouch for the server of an issuer's keys.
    #[error("issuer `{issuer}`: {reason}")]
    Roots {
        /// Whose keys.
        issuer: String,
        /// What is wrong.
        reason: String,
    },
    /// The revocation list makes no sense.
    #[error("`{}`: {source}", path.display())]
    Revocations {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RevocationsError,
    },
}

/// Tokens can be verified, and will be for as long as the upkeep runs.
pub struct Opened {
    /// Verifies.
    pub tokens: Arc<Tokens>,
    /// Keeps keys and revocations as they should be.
    pub upkeep: Upkeep,
}

/// Fetches keys, and follows the files.
#[must_use = "without it keys are not fetched"]
pub struct Upkeep {
    refreshers: Vec<Refresher>,
    followed: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
    following: FollowSettings,
}

impl Upkeep {
    /// Reads `path`, and has `take` read each other text that comes to stand in it, where it says
    /// what became of it or why it is refused; `refused` is told of each that is not taken.
    fn read_and_follow(
        &mut self,
        path: &Path,
        take: impl Fn(&[u8]) -> Result<String, String> + Send + Sync + 'static,
        refused: impl Fn() + Send + Sync + 'static,
    ) -> Result<Vec<u8>, ReadError> {
        let mut reading = Reading::default();
        let text = reading.read_up_to(path, MAX_FILE_BYTES)?;
        let file = path.to_owned();
        let load = {
            let file = file.clone();
            move |reading: &mut Reading| reading.read_up_to(&file, MAX_FILE_BYTES)
        };
        let (changed, changes) = watch::channel(None);
        let following = followed::follow(self.following, reading.trace(), load, move |read| {
            changed.send_replace(Some(Arc::new(read)));
        });
        let taking = take_changes(changes, move |read: &Result<Vec<u8>, ReadError>| {
            let taken = match read {
                Ok(text) => {
                    take(text).map_err(|problem| format!("`{}`: {problem}", file.display()))
                }
                Err(error) => Err(error.to_string()),
            };
            match taken {
                Ok(what) => tracing::info!(file = %file.display(), "{what}"),
                Err(problem) => {
                    refused();
                    tracing::error!(
                        %problem,
                        "a changed file is refused; what stood in it before stays in force"
                    );
                }
            }
        });
        self.followed.push(Box::pin(async move {
            tokio::join!(following, taking);
        }));
        Ok(text)
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        let Self {
            refreshers,
            followed,
            following: _,
        } = self;
        let mut tasks = JoinSet::new();
        for refresher in refreshers {
            tasks.spawn(refresher.run());
        }
        for file in followed {
            tasks.spawn(file);
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "keys or revocations are not kept up any more");
            }
        }
    }
}

/// Has `take` see each change, the last of several, where blocking is allowed: a large list takes
/// long to read, and calls are answered on the other threads.
async fn take_changes<T: Send + Sync + 'static>(
    mut changes: watch::Receiver<Option<Arc<T>>>,
    take: impl Fn(&T) + Send + Sync + 'static,
) {
    let take = Arc::new(take);
    while changes.changed().await.is_ok() {
        let Some(change) = changes.borrow_and_update().clone() else {
            continue;
        };
        let take = Arc::clone(&take);
        if let Err(error) = tokio::task::spawn_blocking(move || take(&change)).await {
            tracing::error!(%error, "a changed file could not be taken");
        }
    }
}

/// Reads everything that tokens are verified with, but for keys behind URLs, which are fetched once
/// the upkeep runs.
///
/// # Errors
///
/// [`OpenRefused`] for the first thing that is missing or wrong.
pub fn open(settings: &TokenSettings) -> Result<Opened, OpenRefused> {
    let path = &settings.issuers;
    let text = Reading::default().read(path)?;
    let refused = |source| OpenRefused::Issuers {
        path: path.clone(),
        source,
    };
    let directory = path.parent().unwrap_or(Path::new(""));
    let issuers = Issuers::parse(&String::from_utf8_lossy(&text), directory).map_err(refused)?;
    for (one, other) in issuers.sharing_ids() {
        tracing::warn!(
            one,
            other,
            "two issuers name principals of one type without `id_prefix`es that keep them apart: whoever has the right id with one is the principal of the other"
        );
    }
    for (one, other) in issuers.sharing_parents() {
        tracing::warn!(
            one,
            other,
            "two claims name parents of one type without `prefix`es that keep them apart: what one says is as good as what the other says"
        );
    }
    let counters = Arc::new(Counters::default());
    let mut upkeep = Upkeep {
        refreshers: Vec::new(),
        followed: Vec::new(),
        following: settings.following,
    };
    let names: BTreeSet<String> = issuers.0.iter().map(|rules| rules.name.clone()).collect();
    let max_bytes = issuers.0.iter().map(|rules| rules.max_bytes).max();
    let issuers = issuers
        .0
        .into_iter()
        .map(|rules| open_issuer(rules, &mut upkeep))
        .collect::<Result<Vec<_>, _>>()?;
    let first = match &settings.revocations {
        None => None,
        Some(path) => Some(open_revocations(path, names, &counters, &mut upkeep)?),
    };
    let revocations = match first {
        Some(reader) => reader,
        None => slot::slot(None).1,
    };
    let tokens = Tokens {
        issuers,
        revocations,
        remembered: verify::remembered(settings.cache_bytes),
        counters,
        max_bytes: max_bytes.unwrap_or(0),
    };
    Ok(Opened {
        tokens: Arc::new(tokens),
        upkeep,
    })
}

/// Makes keys of a file's text, for the algorithms that the issuer may use.
type ReadKeys = fn(&[u8], &[Algorithm]) -> Result<KeySet, BadKeys>;

fn open_issuer(rules: IssuerRules, upkeep: &mut Upkeep) -> Result<Issuer, OpenRefused> {
    let name: Arc<str> = rules.name.as_str().into();
    let counters = Arc::new(KeyCounters::default());
    let allowed = rules.algorithms.clone();
    let (path, read): (_, ReadKeys) = match &rules.keys {
        KeySource::File(path) => (path.clone(), KeySet::from_jwks),
        KeySource::Secret(path) => (path.clone(), KeySet::from_secret),
        KeySource::Url(source) => {
            // Whatever can be known to fail each time is told at the start.
            keys::fetch::client_config(source.ca_file.clone()).map_err(|error| {
                OpenRefused::Roots {
                    issuer: rules.name.clone(),
                    reason: error.to_string(),
                }
            })?;
            let (writer, reader) = slot::slot(None);
            let (refresher, fetches) = keys::refresh::refresher(
                Arc::clone(&name),
                source.clone(),
                allowed,
                writer,
                Arc::clone(&counters),
            );
            upkeep.refreshers.push(refresher);
            return Ok(Issuer {
                name,
                rules,
                keys: reader,
                fetches: Some(fetches),
                counters,
            });
        }
    };
    let (writer, reader) = slot::slot(None);
    let writer = Arc::new(writer);
    let take = {
        let (writer, counters) = (Arc::clone(&writer), Arc::clone(&counters));
        let (allowed, name) = (allowed.clone(), Arc::clone(&name));
        move |text: &[u8]| {
            let keys = read(text, &allowed).map_err(|error| error.to_string())?;
            warn_if_none(&name, &keys);
            let what = format!("{} keys were taken from the file", keys.len());
            writer.put(keys);
            counters.taken.add_one();
            Ok(what)
        }
    };
    let failed = Arc::clone(&counters);
    let text = upkeep.read_and_follow(&path, take, move || failed.failed.add_one())?;
    let keys = read(&text, &allowed).map_err(|source| OpenRefused::Keys {
        issuer: rules.name.clone(),
        path: path.clone(),
        source,
    })?;
    warn_if_none(&name, &keys);
    writer.put(keys);
    counters.taken.add_one();
    Ok(Issuer {
        name,
        rules,
        keys: reader,
        fetches: None,
        counters,
    })
}

/// An issuer may withdraw all its keys; more often `algorithms` is wrong.
fn warn_if_none(issuer: &str, keys: &KeySet) {
    if keys.len() == 0 {
        tracing::warn!(
            issuer,
            "the issuer's file holds no key that verifies by its `algorithms`; none of its tokens is believed"
        );
    }
}

fn open_revocations(
    path: &Path,
    issuers: BTreeSet<String>,
    counters: &Arc<Counters>,
    upkeep: &mut Upkeep,
) -> Result<slot::Reader<Revocations>, OpenRefused> {
    let parse = Arc::new(move |text: &[u8]| {
        let list = Revocations::parse(text)?;
        for issuer in list.issuers() {
            if !issuers.contains(issuer) {
                tracing::warn!(
                    issuer,
                    "the revocation list names an issuer that the issuers file does not"
                );
            }
        }
        Ok::<_, RevocationsError>(list)
    });
    let (writer, reader): (Writer<Revocations>, _) = slot::slot(None);
    let writer = Arc::new(writer);
    let take = {
        let (parse, writer) = (Arc::clone(&parse), Arc::clone(&writer));
        let counters = Arc::clone(counters);
        move |text: &[u8]| {
            let list = parse(text).map_err(|error| error.to_string())?;
            if let Some(held) = writer.value() {
                list.check_after(&held).map_err(|error| error.to_string())?;
                let (before, now) = (held.len(), list.len());
                if now < before {
                    counters.revocations_shrunk.add_one();
                    tracing::warn!(before, now, "the list of revocations has become shorter");
                }
            }
            let what = format!("{} revocations were taken from the file", list.len());
            writer.put(list);
            Ok(what)
        }
    };
    let counters = Arc::clone(counters);
    let text =
        upkeep.read_and_follow(path, take, move || counters.revocations_refused.add_one())?;
    let list = parse(&text).map_err(|source| OpenRefused::Revocations {
        path: path.to_owned(),
        source,
    })?;
    writer.put(list);
    Ok(reader)
}

#[cfg(test)]
mod tests;
