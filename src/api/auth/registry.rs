//! The callers of a list, found by what they present.
//!
//! `file` reads the list, `error` says why a list is rejected.

mod error;
mod file;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq};

use super::caller::Caller;
use super::peer::Peer;
pub use error::CallersError;
pub(crate) use file::read;

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
}

impl ConstantTimeEq for KeyDigest {
    fn ct_eq(&self, other: &Self) -> Choice {
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
    digests: Vec<(KeyDigest, u32)>,
}

/// The credentials that identify one caller of a list.
struct Credentials {
    spiffe: Vec<String>,
    dns: Vec<String>,
    subject: Vec<String>,
    uid: Vec<u32>,
    keys: Vec<KeyDigest>,
}

/// A credential that another caller of the list already has.
struct Conflict {
    /// The index of the other caller.
    other: usize,
    /// The credential for an error text; of a key only that it is one.
    credential: String,
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
        let mut found = u32::MAX;
        for (digest, caller) in &self.digests {
            found = u32::conditional_select(&found, caller, digest.ct_eq(key));
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

    fn find_by_name(&self, name: &str) -> Option<&Arc<Caller>> {
        self.callers.iter().find(|caller| caller.name() == name)
    }

    fn name(&self, index: usize) -> Option<&str> {
        self.callers.get(index).map(|caller| caller.name())
    }

    /// Adds `caller`, and indexes its credentials.
    fn add(&mut self, caller: Caller, credentials: Credentials) -> Result<(), Conflict> {
        let Credentials {
            spiffe,
            dns,
            subject,
            uid,
            keys,
        } = credentials;
        let index = self.callers.len();
        self.callers.push(Arc::new(caller));
        let dns = dns.into_iter().map(|name| name.to_ascii_lowercase());
        add_all(&mut self.spiffe, spiffe, index, |id| {
            format!("SPIFFE id `{id}`")
        })?;
        add_all(&mut self.dns, dns, index, |dns| format!("DNS name `{dns}`"))?;
        add_all(&mut self.subject, subject, index, |it| {
            format!("subject `{it}`")
        })?;
        add_all(&mut self.uid, uid, index, |uid| format!("user id {uid}"))?;
        add_all(&mut self.keys, keys.iter().copied(), index, |_| {
            "key".to_owned()
        })
    }

    /// Prepares the search by key, once all callers are added.
    fn finish(mut self) -> Self {
        let keys = self.keys.iter();
        self.digests = keys
            .filter_map(|(digest, index)| Some((*digest, u32::try_from(*index).ok()?)))
            .collect();
        self
    }
}

/// Adds the credentials of the caller at `index`. Fails if another caller has one of them.
fn add_all<K: Hash + Eq>(
    known: &mut HashMap<K, usize>,
    credentials: impl IntoIterator<Item = K>,
    index: usize,
    describe: impl Fn(&K) -> String,
) -> Result<(), Conflict> {
    for credential in credentials {
        let text = describe(&credential);
        match known.insert(credential, index) {
            Some(other) if other != index => {
                return Err(Conflict {
                    other,
                    credential: text,
                });
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
