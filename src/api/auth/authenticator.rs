//! Authenticates the calls of one connection, and checks again in calls that last.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::caller::{Caller, Denied, IdentityKind, Right};
use super::callers::{Callers, ListedCallers};
use super::peer::{Peer, bearer_key};
use super::registry::KeyDigest;
use crate::versioned::Version;

/// Authenticates the calls of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionAuthenticator {
    callers: Arc<Callers>,
    peer: Peer,
    /// The caller if there is no list. Each connection has its own copy: one reference count
    /// shared by all connections would cost more than the rest of the authentication.
    anyone: Arc<Caller>,
    cached: Mutex<CachedLookups>,
}

/// The results of the last lookups in one version of the list.
#[derive(Debug, Default)]
struct CachedLookups {
    version: Version,
    /// The caller that the peer is; `Some(None)` if it is unknown, `None` before the first lookup.
    peer: Option<Option<Arc<Caller>>>,
    /// `None` before the first lookup.
    has_keys: Option<bool>,
    /// The digest of the last valid key, with its caller. The key itself is not kept: it would be
    /// a secret in memory for the life of the connection. So each call hashes its key, one or two
    /// blocks of SHA-256; only the search among all keys is saved.
    key: Option<(KeyDigest, Arc<Caller>)>,
}

/// A caller with the credentials that identified it, so that it can be looked up again later.
#[derive(Clone)]
pub(crate) struct AuthenticatedCaller {
    caller: Arc<Caller>,
    /// The connection, and the key if one was sent; `None` if there is no list.
    credentials: Option<(Arc<ConnectionAuthenticator>, Option<KeyDigest>)>,
    /// The version of the list that the caller was found in.
    version: Version,
}

impl fmt::Debug for AuthenticatedCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthenticatedCaller")
            .field(&self.caller)
            .finish()
    }
}

impl Default for AuthenticatedCaller {
    /// Returns an unauthenticated caller, which has no rights.
    fn default() -> Self {
        Self {
            caller: Arc::new(Caller::new("nobody", &[], &[])),
            credentials: None,
            version: Version::default(),
        }
    }
}

impl std::ops::Deref for AuthenticatedCaller {
    type Target = Arc<Caller>;

    fn deref(&self) -> &Arc<Caller> {
        &self.caller
    }
}

impl AuthenticatedCaller {
    /// Checks after a wait that the caller still has `right`. Compares the version of the list, and
    /// looks the caller up only if it has changed.
    pub(crate) fn recheck(&self, right: Right) -> Result<(), Denied> {
        self.current(right).map(drop)
    }

    /// Returns the caller as in the current list, if it has `right` there.
    pub(crate) fn current(&self, right: Right) -> Result<Cow<'_, Self>, Denied> {
        let current = self.find_again()?.map_or(Cow::Borrowed(self), Cow::Owned);
        current.check(right)?;
        Ok(current)
    }

    /// Replaces this by the caller as in the current list, and checks `right`. For streams and
    /// watches, which outlive lists.
    pub(crate) fn refresh(&mut self, right: Right) -> Result<(), Denied> {
        if let Some(current) = self.find_again()? {
            *self = current;
        }
        self.check(right)
    }

    /// Looks the caller up in the current list. Returns `None` if the list has not changed.
    fn find_again(&self) -> Result<Option<Self>, Denied> {
        let Some((connection, key)) = &self.credentials else {
            return Ok(None);
        };
        let Callers::Listed(listed) = &*connection.callers else {
            return Ok(None);
        };
        if key.is_none() && !connection.peer.is_current() {
            return Err(Denied::UnknownCaller);
        }
        if listed.current.version() == self.version {
            return Ok(None);
        }
        let (version, registry) = listed.current.load_with_version();
        let caller = match key {
            Some(key) => registry.find_by_key(key).ok_or(Denied::UnknownKey)?,
            None => (registry.find_by_peer(&connection.peer)).ok_or(Denied::UnknownCaller)?,
        };
        Ok(Some(Self {
            caller,
            credentials: self.credentials.clone(),
            version,
        }))
    }

    /// Returns the caller's name in the list; `None` if there is no list.
    pub(crate) fn listed_name(&self) -> Option<&str> {
        self.credentials.as_ref().map(|_| self.caller.name())
    }

    /// Checks that the caller has `right`.
    pub(crate) fn check(&self, right: Right) -> Result<(), Denied> {
        match self.may(right) {
            true => Ok(()),
            false => Err(Denied::MissingRight(right)),
        }
    }
}

impl ConnectionAuthenticator {
    pub(crate) fn new(callers: Arc<Callers>, peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            callers,
            peer,
            anyone: Arc::new(Caller::new("anyone", Right::ALL, IdentityKind::ALL)),
            cached: Mutex::default(),
        })
    }

    /// Returns the caller of a call with these headers.
    ///
    /// A key takes precedence over the connection's peer, since the caller sent it on purpose.
    pub(crate) fn authenticate(
        self: &Arc<Self>,
        headers: &http::HeaderMap,
    ) -> Result<AuthenticatedCaller, Denied> {
        let Callers::Listed(listed) = &*self.callers else {
            return Ok(AuthenticatedCaller {
                caller: Arc::clone(&self.anyone),
                credentials: None,
                version: Version::default(),
            });
        };
        let mut cached = self.cached();
        // Read before any lookup: a result of a newer list is then only looked up once more.
        let version = listed.current.version();
        if cached.version != version {
            *cached = CachedLookups {
                version,
                ..CachedLookups::default()
            };
        }
        let has_keys = || listed.current.load().has_keys();
        let key = bearer_key(headers).filter(|_| *cached.has_keys.get_or_insert_with(has_keys));
        let key = key.map(KeyDigest::of);
        let caller = match &key {
            Some(key) => cached.find_by_key(listed, key)?,
            None => cached.find_by_peer(listed, &self.peer)?,
        };
        Ok(AuthenticatedCaller {
            caller,
            credentials: Some((Arc::clone(self), key)),
            version,
        })
    }

    fn cached(&self) -> MutexGuard<'_, CachedLookups> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CachedLookups {
    fn find_by_key(
        &mut self,
        listed: &ListedCallers,
        sent: &KeyDigest,
    ) -> Result<Arc<Caller>, Denied> {
        if let Some((known, caller)) = &self.key
            && known.ct_eq(sent).into()
        {
            return Ok(Arc::clone(caller));
        }
        let caller = listed.current.load().find_by_key(sent);
        let caller = caller.ok_or(Denied::UnknownKey)?;
        self.key = Some((*sent, Arc::clone(&caller)));
        Ok(caller)
    }

    fn find_by_peer(&mut self, listed: &ListedCallers, peer: &Peer) -> Result<Arc<Caller>, Denied> {
        if !peer.is_current() {
            return Err(Denied::UnknownCaller);
        }
        let caller = self
            .peer
            .get_or_insert_with(|| listed.current.load().find_by_peer(peer));
        caller.clone().ok_or(Denied::UnknownCaller)
    }
}

#[cfg(test)]
mod tests;
