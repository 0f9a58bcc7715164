//! Who calls, and what it may: by certificate, by the user behind a Unix socket, or by a key.
//!
//! This is about the program that calls. On whose behalf it asks is another matter, and nothing
//! here looks at it, beyond the kinds of identity that a caller may send.

mod certificate;
mod list;
mod subject;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use subtle::ConstantTimeEq as _;

pub(super) use certificate::CertificateNames;
pub use list::CallersError;
use list::{KeyDigest, List};

use super::clock::unix_seconds;
use super::status::Rejection;
use crate::watch::WatchSettings;
use crate::watch::files::{FileReader, Fingerprint, reload_on_change};

/// A program that calls, and what it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    name: Arc<str>,
    rights: Rights,
    identities: Identities,
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Ask for decisions.
    Authorize,
    /// Ask why.
    Explain,
    /// Read what is in force.
    Store,
    /// Have the policies reread.
    Administer,
}

/// In which way a request says on whose behalf it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityKind {
    /// It names the principal.
    Principal,
    /// It brings a token.
    Token,
    /// It says nothing.
    Anonymous,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authorize => "authorize",
            Self::Explain => "explain",
            Self::Store => "store",
            Self::Administer => "administer",
        })
    }
}

impl fmt::Display for IdentityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Principal => "principal",
            Self::Token => "token",
            Self::Anonymous => "anonymous",
        })
    }
}

/// A set of [`Right`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rights {
    authorize: bool,
    explain: bool,
    store: bool,
    administer: bool,
}

/// A set of [`IdentityKind`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Identities {
    principal: bool,
    token: bool,
    anonymous: bool,
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        let mut set = Self::default();
        for right in rights {
            match right {
                Right::Authorize => set.authorize = true,
                Right::Explain => set.explain = true,
                Right::Store => set.store = true,
                Right::Administer => set.administer = true,
            }
        }
        set
    }
}

impl FromIterator<IdentityKind> for Identities {
    fn from_iter<I: IntoIterator<Item = IdentityKind>>(kinds: I) -> Self {
        let mut set = Self::default();
        for kind in kinds {
            match kind {
                IdentityKind::Principal => set.principal = true,
                IdentityKind::Token => set.token = true,
                IdentityKind::Anonymous => set.anonymous = true,
            }
        }
        set
    }
}

impl Caller {
    /// Whoever calls, where no list says who may: everything is allowed.
    fn anyone() -> Self {
        Self {
            name: "anyone".into(),
            rights: Rights {
                authorize: true,
                explain: true,
                store: true,
                administer: true,
            },
            identities: Identities {
                principal: true,
                token: true,
                anonymous: true,
            },
        }
    }

    /// Whoever calls without being known, where that is not asked.
    fn nobody() -> Self {
        Self {
            name: "nobody".into(),
            rights: Rights::default(),
            identities: Identities::default(),
        }
    }

    /// What it is called in the list of callers; one of a closed set.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has `right`.
    #[must_use]
    pub fn may(&self, right: Right) -> bool {
        match right {
            Right::Authorize => self.rights.authorize,
            Right::Explain => self.rights.explain,
            Right::Store => self.rights.store,
            Right::Administer => self.rights.administer,
        }
    }

    /// Whether it may ask on behalf of whom `kind` tells.
    #[must_use]
    pub fn may_send(&self, kind: IdentityKind) -> bool {
        match kind {
            IdentityKind::Principal => self.identities.principal,
            IdentityKind::Token => self.identities.token,
            IdentityKind::Anonymous => self.identities.anonymous,
        }
    }
}

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
    pub(super) fn open(file: &Path) -> Result<(Self, Fingerprint), CallersError> {
        let mut reading = FileReader::default();
        let list = list::read(file, &mut reading)?;
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
    pub(super) async fn follow(self: Arc<Self>, how: WatchSettings, first: Fingerprint) {
        let Self::Listed(listed) = &*self else {
            return;
        };
        let file = listed.file.clone();
        let load = move |reading: &mut FileReader| list::read(&file, reading);
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
    /// [`Rejection`] when the key is nobody's, or of one who may not.
    pub(super) fn administrator(
        &self,
        headers: &http::HeaderMap,
    ) -> Result<Option<String>, Rejection> {
        let (Self::Listed(listed), Some(key)) = (self, bearer(headers)) else {
            return Ok(None);
        };
        let list = listed.now().0;
        if !list.has_keys() {
            return Ok(None);
        }
        let caller = list.by_key(&KeyDigest::of(key));
        let caller = caller.ok_or(Rejection::KeyUnknown)?;
        match caller.may(Right::Administer) {
            true => Ok(Some(caller.name().to_owned())),
            false => Err(Rejection::RightMissing(Right::Administer)),
        }
    }

    /// Whether some of them are known by their certificates alone.
    pub(super) fn show_certificates(&self) -> bool {
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

/// What is known of the other end of a connection before it calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    /// What its certificate says, which was verified when the connection began.
    pub(super) certificate: Option<CertificateNames>,
    /// Who it runs as, on a Unix socket.
    pub(super) uid: Option<u32>,
}

impl Peer {
    /// Whether what it showed is still good: a connection may last longer than a certificate.
    fn is_current(&self) -> bool {
        self.certificate
            .as_ref()
            .is_none_or(|names| !names.has_expired(unix_seconds()))
    }
}

/// Tells the calls of one connection who makes them.
#[derive(Debug)]
pub(super) struct Identification {
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
pub(super) struct Admitted {
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
    pub(super) fn is_still(&self, right: Right) -> Result<(), Rejection> {
        self.now(right).map(drop)
    }

    /// The same caller as the list has it now, which has `right`.
    ///
    /// # Errors
    ///
    /// As [`renew`](Self::renew).
    pub(super) fn now(&self, right: Right) -> Result<Cow<'_, Self>, Rejection> {
        let now = self.anew()?.map_or(Cow::Borrowed(self), Cow::Owned);
        now.check(right)?;
        Ok(now)
    }

    /// Looks again who it is if the list has changed: what lasts, such as a stream, outlives
    /// lists.
    ///
    /// # Errors
    ///
    /// [`Rejection`] when it is unknown by now, or lacks `right`.
    pub(super) fn renew(&mut self, right: Right) -> Result<(), Rejection> {
        if let Some(anew) = self.anew()? {
            *self = anew;
        }
        self.check(right)
    }

    /// Who it is by the list as it is now, if that has changed since it was let in.
    fn anew(&self) -> Result<Option<Self>, Rejection> {
        let Some((identification, key)) = &self.by else {
            return Ok(None);
        };
        let Callers::Listed(listed) = &*identification.callers else {
            return Ok(None);
        };
        if key.is_none() && !identification.peer.is_current() {
            return Err(Rejection::CallerUnknown);
        }
        // Before the list, so that what is looked up is no older than what it is taken for.
        let version = listed.version.load(Ordering::Acquire);
        if version == self.version {
            return Ok(None);
        }
        let list = listed.now().0;
        let caller = match key {
            Some(key) => list.by_key(key).ok_or(Rejection::KeyUnknown)?,
            None => list
                .by_peer(&identification.peer)
                .ok_or(Rejection::CallerUnknown)?,
        };
        Ok(Some(Self {
            caller,
            by: self.by.clone(),
            version,
        }))
    }

    /// Its name in the list; `None` where there is no list.
    pub(super) fn listed_name(&self) -> Option<&str> {
        self.by.as_ref().map(|_| self.caller.name())
    }

    /// Whether it has `right`.
    ///
    /// # Errors
    ///
    /// [`Rejection::RightMissing`].
    pub(super) fn check(&self, right: Right) -> Result<(), Rejection> {
        match self.may(right) {
            true => Ok(()),
            false => Err(Rejection::RightMissing(right)),
        }
    }
}

impl Identification {
    pub(super) fn new(callers: Arc<Callers>, peer: Peer) -> Arc<Self> {
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
    /// [`Rejection`] for a caller that is not in the list.
    pub(super) fn admit(
        self: &Arc<Self>,
        headers: &http::HeaderMap,
    ) -> Result<Admitted, Rejection> {
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
                    let caller = caller.ok_or(Rejection::KeyUnknown)?;
                    seen.key = Some((sent, Arc::clone(&caller)));
                    caller
                }
            };
            return Ok(admitted(caller, Some(sent), version));
        }
        if !self.peer.is_current() {
            return Err(Rejection::CallerUnknown);
        }
        let caller = seen
            .peer
            .get_or_insert_with(|| listed.now().0.by_peer(&self.peer));
        match caller {
            Some(caller) => Ok(admitted(Arc::clone(caller), None, version)),
            None => Err(Rejection::CallerUnknown),
        }
    }
}

/// The key in `authorization: Bearer …`; of several headers none is believed.
fn bearer(headers: &http::HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    const NOBODYS: &[u8] = b"";
    let mut sent = headers.get_all(http::header::AUTHORIZATION).iter();
    let first = sent.next()?;
    if sent.next().is_some() {
        return Some(NOBODYS);
    }
    let (scheme, key) = first.as_bytes().split_at_checked(SCHEME.len())?;
    scheme
        .eq_ignore_ascii_case(SCHEME)
        .then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests;
