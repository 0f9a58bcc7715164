//! The callers of a list, found by what they present. `file` reads the list.

mod file;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::caller::Caller;
use super::peer::Peer;
use file::{CallerProblem, ListedCaller};
pub(crate) use file::{CallersError, read};

/// Most callers in a list. Their names are labels of metrics, and each key is compared.
const MAX_CALLERS: usize = 1_000;

/// Least length of a key, in bytes.
const MIN_KEY_BYTES: usize = 16;

/// The SHA-256 digest of a key. Keys themselves are not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyDigest([u8; 32]);

impl KeyDigest {
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Compares in constant time.
    pub(super) fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest")
    }
}

/// The callers of a list, with an index for each kind of credential.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    callers: Vec<Arc<Caller>>,
    spiffe: HashMap<String, usize>,
    dns: HashMap<String, usize>,
    subject: HashMap<String, usize>,
    uid: HashMap<u32, usize>,
    keys: HashMap<KeyDigest, usize>,
    /// The content of `keys`, to be compared one by one in constant time.
    digests: Vec<(KeyDigest, u64)>,
}

impl Registry {
    pub(crate) fn len(&self) -> usize {
        self.callers.len()
    }

    pub(crate) fn has_keys(&self) -> bool {
        !self.digests.is_empty()
    }

    pub(crate) fn has_certificates(&self) -> bool {
        !(self.spiffe.is_empty() && self.dns.is_empty() && self.subject.is_empty())
    }

    /// Returns the caller with this key.
    ///
    /// Compares all keys to the end, so that the time reveals nothing about them.
    pub(crate) fn find_by_key(&self, key: &KeyDigest) -> Option<Arc<Caller>> {
        let mut found = u64::MAX;
        for (digest, caller) in &self.digests {
            found = u64::conditional_select(&found, caller, digest.ct_eq(key));
        }
        self.callers.get(usize::try_from(found).ok()?).cloned()
    }

    /// Returns the caller at the other end of a connection: by SPIFFE id, else by DNS name, else by
    /// subject, else by user id.
    pub(crate) fn find_by_peer(&self, peer: &Peer) -> Option<Arc<Caller>> {
        let by_certificate = peer.certificate.as_ref().and_then(|names| {
            names
                .spiffe
                .as_ref()
                .and_then(|id| self.spiffe.get(id))
                .or_else(|| names.dns.iter().find_map(|name| self.dns.get(name)))
                .or_else(|| self.subject.get(&names.subject))
        });
        let index = by_certificate.or_else(|| self.uid.get(&peer.uid?))?;
        self.callers.get(*index).cloned()
    }

    /// Adds `caller`, which was checked, and indexes its credentials.
    fn add(&mut self, caller: ListedCaller) -> Result<(), CallerProblem> {
        let index = self.callers.len();
        let all = &mut self.callers;
        all.push(Arc::new(Caller::new(
            &caller.name,
            &caller.rights,
            &caller.identities,
        )));
        self.digests
            .extend(caller.keys.iter().map(|key| (*key, index as u64)));
        let dns = caller.dns.iter().map(|name| name.to_ascii_lowercase());
        add_all(&mut self.spiffe, caller.spiffe, all, |id| {
            format!("SPIFFE id `{id}`")
        })?;
        add_all(&mut self.dns, dns, all, |name| format!("DNS name `{name}`"))?;
        add_all(&mut self.subject, caller.subject, all, |subject| {
            format!("subject `{subject}`")
        })?;
        add_all(&mut self.uid, caller.uid, all, |uid| {
            format!("user id {uid}")
        })?;
        // The error does not quote the key.
        add_all(&mut self.keys, caller.keys, all, |_| "key".to_owned())
    }
}

/// Adds the credentials of the last of `callers`. Fails if another caller has one of them.
fn add_all<K: Hash + Eq>(
    known: &mut HashMap<K, usize>,
    credentials: impl IntoIterator<Item = K>,
    callers: &[Arc<Caller>],
    describe: impl Fn(&K) -> String,
) -> Result<(), CallerProblem> {
    let Some((caller, others)) = callers.split_last() else {
        return Ok(());
    };
    for credential in credentials {
        let text = describe(&credential);
        let index = known.insert(credential, others.len());
        // A credential that the caller itself lists twice is no conflict.
        if let Some(other) = index.and_then(|index| others.get(index)) {
            return Err(CallerProblem::Ambiguous {
                one: other.name().to_owned(),
                other: caller.name().to_owned(),
                credential: text,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
