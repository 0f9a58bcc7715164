//! Verifies a token: form, issuer, type, algorithm, key, signature, audience, time, revocation.
//! Its claims are mapped to the principal last.
//!
//! The order is a rule. Before the signature is checked, `iss` is the only claim that is read, and
//! it only selects the keys that the signature is checked with.

mod issuer;
mod validity;

use std::fmt;
use std::sync::Arc;

use super::json::{Json, Object};
use super::keys::refresh::{KeyMiss, KeyWait};
use super::metrics::{TokenCounters, TokenMetrics};
use super::numeric_date::NumericDate;
use super::rejection::{RejectionReason, TokenRejection};
use super::revocations::{RevocableToken, Revocations};
use super::token;
use super::token_cache::{TokenCache, heap_size_of_claimed, heap_size_of_uid};
use crate::counters::page::{Export, Page};
use crate::pdp::query::{Claimed, Uid};
use crate::versioned::{Version, Versioned};
pub(super) use issuer::Issuer;
use validity::{Validity, date_claim};

/// The principal that a verified token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIdentity {
    /// The principal.
    pub principal: Uid,
    /// The principal's attributes and parents by the token's claims.
    pub claimed: Arc<Claimed>,
    /// The issuer, as in `iss`.
    pub issuer: Arc<str>,
}

/// A verifier for tokens of the configured issuers.
#[derive(Debug)]
pub struct Tokens {
    pub(super) issuers: Vec<Issuer>,
    pub(super) revocations: Arc<Versioned<Revocations>>,
    /// `None` if the cache is off.
    pub(super) cache: Option<TokenCache<Arc<VerifiedToken>>>,
    pub(super) counters: Arc<TokenCounters>,
    /// The largest `max_bytes` of all issuers.
    pub(super) max_bytes: usize,
}

/// A verified token, with the versions of keys and revocations that it was checked against.
#[derive(Debug)]
pub(super) struct VerifiedToken {
    identity: Arc<TokenIdentity>,
    validity: Validity,
    /// The position in [`Tokens::issuers`].
    issuer: usize,
    keys: Version,
    revocations: Version,
}

impl VerifiedToken {
    /// Returns the bytes that the value owns on the heap, for the cache.
    pub(super) fn heap_size(token: &Arc<Self>) -> usize {
        let TokenIdentity {
            principal,
            claimed,
            issuer: _,
        } = &*token.identity;
        let owned = heap_size_of_uid(principal) + heap_size_of_claimed(claimed);
        size_of::<Self>() + size_of::<TokenIdentity>() + size_of::<Claimed>() + owned
    }
}

/// A token that could not be verified.
#[derive(Debug)]
pub enum VerifyError {
    /// The token is rejected.
    Rejected(TokenRejection),
    /// The token's key is missing, and a fetch may bring it. Wait, then verify again.
    WaitForKey(KeyWait),
}

impl From<TokenRejection> for VerifyError {
    fn from(rejection: TokenRejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl Tokens {
    /// Verifies `token` at the time `now`.
    ///
    /// Costs about a microsecond for a cached token, and a signature check otherwise. Does not
    /// block and does no I/O.
    ///
    /// # Errors
    ///
    /// [`VerifyError`] when the token is rejected, or when its key is missing and may be fetched.
    pub fn verify(
        &self,
        token: &str,
        now: NumericDate,
        on_key_miss: KeyMiss,
    ) -> Result<Arc<TokenIdentity>, VerifyError> {
        let verified = self.verify_uncounted(token, now, on_key_miss);
        if let Err(VerifyError::Rejected(rejection)) = &verified {
            self.counters.count_rejected(rejection.reason);
        }
        verified
    }

    /// Returns the identity of a cached token that is valid at `now`.
    ///
    /// `None` says nothing about the token, and is not counted.
    #[must_use]
    pub fn cached(&self, token: &str, now: NumericDate) -> Option<Arc<TokenIdentity>> {
        let verified = self.find_cached(token)?;
        verified.validity.check(now).ok()?;
        self.counters.cached.add_one();
        Some(Arc::clone(&verified.identity))
    }

    /// Counts a verified token whose principal must be stored and is not.
    pub fn count_unknown_principal(&self) {
        self.counters
            .count_rejected(RejectionReason::PrincipalUnknown);
    }

    /// Returns the counters, and the current state of keys, revocations and cache.
    #[must_use]
    pub fn metrics(&self) -> TokenMetrics {
        let counters = &self.counters;
        TokenMetrics {
            verified: counters.verified.value(),
            cached: counters.cached.value(),
            cache_entries: self.cache.as_ref().map_or(0, TokenCache::len),
            rejected: counters.rejected(),
            keys: self.issuers.iter().map(Issuer::key_metrics).collect(),
            revocations: self.revocations.load().len() as u64,
            revocations_rejected: counters.revocations_rejected.value(),
            revocations_shrunk: counters.revocations_shrunk.value(),
        }
    }

    fn verify_uncounted(
        &self,
        token: &str,
        now: NumericDate,
        on_key_miss: KeyMiss,
    ) -> Result<Arc<TokenIdentity>, VerifyError> {
        if token.len() > self.max_bytes {
            return Err(too_large().into());
        }
        if let Some(verified) = self.find_cached(token) {
            // A cached token expires like any other.
            verified.validity.check(now)?;
            self.counters.cached.add_one();
            return Ok(Arc::clone(&verified.identity));
        }
        let verified = Arc::new(self.verify_new(token, now, on_key_miss)?);
        if let Some(cache) = &self.cache {
            cache.insert(token, Arc::clone(&verified));
        }
        self.counters.verified.add_one();
        Ok(Arc::clone(&verified.identity))
    }

    /// Returns the cached token, if keys and revocations are the same as when it was verified.
    fn find_cached(&self, token: &str) -> Option<Arc<VerifiedToken>> {
        let verified = self.cache.as_ref()?.get(token)?;
        let is_current = verified.revocations == self.revocations.version()
            && self
                .issuers
                .get(verified.issuer)
                .is_some_and(|issuer| issuer.keys.version() == verified.keys);
        is_current.then_some(verified)
    }

    fn verify_new(
        &self,
        text: &str,
        now: NumericDate,
        on_key_miss: KeyMiss,
    ) -> Result<VerifiedToken, VerifyError> {
        let token = token::parse(text)?;
        let claims = &token.claims;
        let (position, issuer) = self.find_issuer(claims)?;
        if text.len() > issuer.rules.max_bytes {
            return Err(too_large().into());
        }
        issuer.check_type(&token.header)?;
        let (keys, kid) = issuer.check_signature(&token, on_key_miss)?;
        issuer.check_audience(claims)?;
        let validity = Validity::from_claims(&issuer.rules, claims)?;
        validity.check(now)?;
        let revocations = self.check_revocations(issuer, claims, kid.as_deref())?;
        let (principal, claimed) = issuer.rules.mapping.apply(claims)?;
        Ok(VerifiedToken {
            identity: Arc::new(TokenIdentity {
                principal,
                claimed: Arc::new(claimed),
                issuer: Arc::clone(&issuer.name),
            }),
            validity,
            issuer: position,
            keys,
            revocations,
        })
    }

    /// Returns the issuer that `iss` names, and its position.
    fn find_issuer(&self, claims: &Object) -> Result<(usize, &Issuer), TokenRejection> {
        let rejected = |detail| TokenRejection::new(RejectionReason::Issuer, detail);
        let Some(Json::String(name)) = claims.get("iss") else {
            return Err(rejected("the token's `iss` is missing or not text"));
        };
        let mut issuers = self.issuers.iter().enumerate();
        issuers
            .find(|(_, issuer)| issuer.rules.name == *name)
            .ok_or_else(|| rejected("the token's issuer is not configured"))
    }

    /// Rejects a revoked token. Returns the version of the list that was checked.
    fn check_revocations(
        &self,
        issuer: &Issuer,
        claims: &Object,
        kid: Option<&str>,
    ) -> Result<Version, TokenRejection> {
        let (version, revocations) = self.revocations.load_with_version();
        let token = RevocableToken {
            issuer: &issuer.rules.name,
            jti: text_claim(claims, "jti")?,
            sub: text_claim(claims, "sub")?,
            id: issuer.rules.mapping.id(claims),
            kid,
            issued: date_claim(claims, "iat")?,
        };
        if revocations.contains(token) {
            let detail = "the token was revoked";
            return Err(TokenRejection::new(RejectionReason::Revoked, detail));
        }
        Ok(version)
    }
}

impl Export for Tokens {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        self.metrics().export(page)
    }
}

fn too_large() -> TokenRejection {
    TokenRejection::new(
        RejectionReason::TooLarge,
        "the token is longer than allowed",
    )
}

/// Reads a claim that must be text if it is present.
fn text_claim<'a>(claims: &'a Object, name: &str) -> Result<Option<&'a str>, TokenRejection> {
    match claims.get(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(TokenRejection::new(
            RejectionReason::Claims,
            format!("claim `{name}` is not text"),
        )),
    }
}

#[cfg(test)]
mod tests;
