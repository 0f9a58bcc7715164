//! Who calls, and what it may: by certificate, by the user behind a Unix socket, or by a key.
//!
//! This is about the program that calls. On whose behalf it asks is another matter, and nothing
//! here looks at it, beyond the kinds of identity that a caller may send.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use subtle::ConstantTimeEq as _;

use super::caller::{Caller, Denied, Right};
use super::peer::{Peer, bearer};
use super::registry::{self, CallersError, KeyDigest, List};
use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, Fingerprint, reload_on_change};

/// How the list of callers came to be as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallersFigures {
    /// How many callers there are.
    pub callers: usize,
    /// How many lists were taken, the first one included.
    pub taken: u64,
    /// How many were refused.
    pub refused: u64,
}

/// Everyone who may call.
#[derive(Debug)]
pub enum Callers {
    /// No list says who may.
    Anyone,
    /// Those of a list that may change.
    Listed(Listed),
}

/// Those of a list, as it now is.
#[derive(Debug)]
pub struct Listed {
    file: PathBuf,
    in_force: RwLock<(Arc<List>, CallersFigures)>,
    /// Counts the lists; read once a call.
    version: AtomicU64,
}

impl Callers {
    /// Reads the list in `file`; gives the trace of all that was read, for
    /// [`follow`](Self::follow).
    ///
    /// # Errors
    ///
    /// [`CallersError`].
    pub(crate) fn open(file: &Path) -> Result<(Self, Fingerprint), CallersError> {
        let mut reading = FileReader::default();
        let list = registry::read(file, &mut reading)?;
        let figures = CallersFigures {
            callers: list.len(),
            taken: 1,
            refused: 0,
        };
        let listed = Listed {
            file: file.to_owned(),
            in_force: RwLock::new((Arc::new(list), figures)),
            version: AtomicU64::new(0),
        };
        Ok((Self::Listed(listed), reading.fingerprint()))
    }

    /// Takes what is written to the files from here on, when it is good. Never returns.
    pub(crate) async fn follow(self: Arc<Self>, how: WatchSettings, first: Fingerprint) {
        let Self::Listed(listed) = &*self else {
            return;
        };
        let file = listed.file.clone();
        let load = move |reading: &mut FileReader| registry::read(&file, reading);
        reload_on_change(how, first, load, |list| listed.take(list)).await;
    }

    /// How it stands; `None` where there is no list.
    #[must_use]
    pub fn figures(&self) -> Option<CallersFigures> {
        match self {
            Self::Anyone => None,
            Self::Listed(listed) => Some(listed.now().1),
        }
    }

    /// The name of whoever shows, as HTTP's `authorization`, the key of one who may administer; `None`
    /// when no key is shown, or none is listed.
    ///
    /// # Errors
    ///
    /// [`Denied`] when the key is nobody's, or of one who may not.
    pub(crate) fn administrator(
        &self,
        headers: &http::HeaderMap,
    ) -> Result<Option<String>, Denied> {
        let (Self::Listed(listed), Some(key)) = (self, bearer(headers)) else {
            return Ok(None);
        };
        let list = listed.now().0;
        if !list.has_keys() {
            return Ok(None);
        }
        let caller = list.by_key(&KeyDigest::of(key));
        let caller = caller.ok_or(Denied::UnknownKey)?;
        match caller.may(Right::Administer) {
            true => Ok(Some(caller.name().to_owned())),
            false => Err(Denied::MissingRight(Right::Administer)),
        }
    }

    /// Whether some of them are known by their certificates alone.
    pub(crate) fn show_certificates(&self) -> bool {
        match self {
            Self::Anyone => false,
            Self::Listed(listed) => listed.now().0.has_certificates(),
        }
    }
}

impl Listed {
    fn now(&self) -> (Arc<List>, CallersFigures) {
        // It is replaced as a whole, so a panic elsewhere left it whole.
        let in_force = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&in_force.0), in_force.1)
    }

    fn take(&self, list: Result<List, CallersError>) {
        let mut in_force = self
            .in_force
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match list {
            Ok(list) => {
                in_force.1.callers = list.len();
                in_force.1.taken += 1;
                in_force.0 = Arc::new(list);
                self.version.fetch_add(1, Ordering::Release);
                tracing::info!(callers = in_force.1.callers, "new list of callers");
            }
            Err(error) => {
                in_force.1.refused += 1;
                tracing::error!(%error, "the new list of callers is refused; the old one stays in force");
            }
        }
    }
}

/// Tells the calls of one connection who makes them.
#[derive(Debug)]
pub(crate) struct Identification {
    callers: Arc<Callers>,
    peer: Peer,
    /// Where no list says who may call. Its own for each connection: a count that all of them
    /// share would cost more than the rest of this.
    anyone: Arc<Caller>,
    seen: Mutex<Seen>,
}

/// What the last call found out, for the next one.
#[derive(Debug, Default)]
struct Seen {
    version: u64,
    /// Who the connection's peer is; the outer `None` is that nobody has looked.
    peer: Option<Option<Arc<Caller>>>,
    /// Whether the list has keys; `None` is that nobody has looked.
    has_keys: Option<bool>,
    /// The last key that was good, as the list has it: kept as it was sent, it would be a secret in
    /// memory for as long as the connection lasts. So each call's is hashed, a block or two of
    /// SHA-256; looking for it among all others is what is spared.
    key: Option<(KeyDigest, Arc<Caller>)>,
}

/// A caller that was let in, and by what, so that it can be asked for again later.
#[derive(Clone)]
pub(crate) struct Admitted {
    caller: Arc<Caller>,
    by: Option<(Arc<Identification>, Option<KeyDigest>)>,
    version: u64,
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admitted").field(&self.caller).finish()
    }
}

impl Default for Admitted {
    /// Nobody, who may nothing.
    fn default() -> Self {
        Self {
            caller: Arc::new(Caller::nobody()),
            by: None,
            version: 0,
        }
    }
}

impl std::ops::Deref for Admitted {
    type Target = Arc<Caller>;

    fn deref(&self) -> &Arc<Caller> {
        &self.caller
    }
}

impl Admitted {
    /// Whether it has `right` still, after some time: a look at the list's number, and only if that
    /// has changed at the list.
    ///
    /// # Errors
    ///
    /// As [`renew`](Self::renew).
    pub(crate) fn is_still(&self, right: Right) -> Result<(), Denied> {
        self.now(right).map(drop)
    }

    /// The same caller as the list has it now, which has `right`.
    ///
    /// # Errors
    ///
    /// As [`renew`](Self::renew).
    pub(crate) fn now(&self, right: Right) -> Result<Cow<'_, Self>, Denied> {
        let now = self.anew()?.map_or(Cow::Borrowed(self), Cow::Owned);
        now.check(right)?;
        Ok(now)
    }

    /// Looks again who it is if the list has changed: what lasts, such as a stream, outlives
    /// lists.
    ///
    /// # Errors
    ///
    /// [`Denied`] when it is unknown by now, or lacks `right`.
    pub(crate) fn renew(&mut self, right: Right) -> Result<(), Denied> {
        if let Some(anew) = self.anew()? {
            *self = anew;
        }
        self.check(right)
    }

    /// Who it is by the list as it is now, if that has changed since it was let in.
    fn anew(&self) -> Result<Option<Self>, Denied> {
        let Some((identification, key)) = &self.by else {
            return Ok(None);
        };
        let Callers::Listed(listed) = &*identification.callers else {
            return Ok(None);
        };
        if key.is_none() && !identification.peer.is_current() {
            return Err(Denied::UnknownCaller);
        }
        // Before the list, so that what is looked up is no older than what it is taken for.
        let version = listed.version.load(Ordering::Acquire);
        if version == self.version {
            return Ok(None);
        }
        let list = listed.now().0;
        let caller = match key {
            Some(key) => list.by_key(key).ok_or(Denied::UnknownKey)?,
            None => list
                .by_peer(&identification.peer)
                .ok_or(Denied::UnknownCaller)?,
        };
        Ok(Some(Self {
            caller,
            by: self.by.clone(),
            version,
        }))
    }

    /// Its name in the list; `None` where there is no list.
    pub(crate) fn listed_name(&self) -> Option<&str> {
        self.by.as_ref().map(|_| self.caller.name())
    }

    /// Whether it has `right`.
    ///
    /// # Errors
    ///
    /// [`Denied::MissingRight`].
    pub(crate) fn check(&self, right: Right) -> Result<(), Denied> {
        match self.may(right) {
            true => Ok(()),
            false => Err(Denied::MissingRight(right)),
        }
    }
}

impl Identification {
    pub(crate) fn new(callers: Arc<Callers>, peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            callers,
            peer,
            anyone: Arc::new(Caller::anyone()),
            seen: Mutex::default(),
        })
    }

    /// Who makes a call with these headers.
    ///
    /// A key beats what is known of the connection: who sends one says who it wants to be.
    ///
    /// # Errors
    ///
    /// [`Denied`] for a caller that is not in the list.
    pub(crate) fn admit(self: &Arc<Self>, headers: &http::HeaderMap) -> Result<Admitted, Denied> {
        let Callers::Listed(listed) = &*self.callers else {
            return Ok(Admitted {
                caller: Arc::clone(&self.anyone),
                by: None,
                version: 0,
            });
        };
        let admitted = |caller, key, version| Admitted {
            caller,
            by: Some((Arc::clone(self), key)),
            version,
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let version = listed.version.load(Ordering::Acquire);
        if seen.version != version {
            *seen = Seen {
                version,
                ..Seen::default()
            };
        }
        if let Some(sent) = bearer(headers)
            && *seen
                .has_keys
                .get_or_insert_with(|| listed.now().0.has_keys())
        {
            let sent = KeyDigest::of(sent);
            let caller = match &seen.key {
                Some((known, caller)) if known.ct_eq(&sent).into() => Arc::clone(caller),
                Some(_) | None => {
                    let caller = listed.now().0.by_key(&sent);
                    let caller = caller.ok_or(Denied::UnknownKey)?;
                    seen.key = Some((sent, Arc::clone(&caller)));
                    caller
                }
            };
            return Ok(admitted(caller, Some(sent), version));
        }
        if !self.peer.is_current() {
            return Err(Denied::UnknownCaller);
        }
        let caller = seen
            .peer
            .get_or_insert_with(|| listed.now().0.by_peer(&self.peer));
        match caller {
            Some(caller) => Ok(admitted(Arc::clone(caller), None, version)),
            None => Err(Denied::UnknownCaller),
        }
    }
}

#[cfg(test)]
mod tests;
