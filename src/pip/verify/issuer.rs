//! One issuer: its rules and keys, and the checks that need no clock and no revocation list.

use std::sync::Arc;

use jsonwebtoken::Algorithm;

use super::VerifyError;
use crate::pip::issuers::IssuerRules;
use crate::pip::json::{Json, Object};
use crate::pip::keys::refresh::{FetchRequester, KeyMiss, MissingKey};
use crate::pip::keys::{Key, KeySet, TooManyCandidates};
use crate::pip::metrics::{IssuerKeyMetrics, KeyCounters};
use crate::pip::rejection::{RejectionReason, TokenRejection};
use crate::pip::token::{Header, ParsedToken};
use crate::versioned::{Version, Versioned};

/// The accepted `typ` values if the operator sets none: a JWT or an access token.
///
/// Tokens of other types (logout, security events) are meant for other services.
const DEFAULT_TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// One issuer: its rules and its current keys.
#[derive(Debug)]
pub(in crate::pip) struct Issuer {
    pub(in crate::pip) name: Arc<str>,
    pub(in crate::pip) rules: IssuerRules,
    /// `None` if there are no keys now: not fetched yet, or too old.
    pub(in crate::pip) keys: Arc<Versioned<Option<KeySet>>>,
    /// The handle to request a fetch; `None` for keys from a file.
    pub(in crate::pip) fetches: Option<FetchRequester>,
    pub(in crate::pip) counters: Arc<KeyCounters>,
}

impl Issuer {
    pub(super) fn key_metrics(&self) -> IssuerKeyMetrics {
        IssuerKeyMetrics {
            issuer: Arc::clone(&self.name),
            keys: (*self.keys.load()).as_ref().map_or(0, KeySet::len) as u64,
            age: self.fetches.as_ref().and_then(FetchRequester::age),
            accepted: self.counters.accepted.value(),
            failed: self.counters.failed.value(),
        }
    }

    /// Rejects a token whose `typ` is not accepted.
    pub(super) fn check_type(&self, header: &Header) -> Result<(), TokenRejection> {
        let is_accepted = match (&self.rules.types, header.typ.as_deref()) {
            (None, None) => true,
            (None, Some(typ)) => DEFAULT_TYPES.contains(&typ),
            (Some(_), None) => false,
            (Some(types), Some(typ)) => types.contains(typ),
        };
        match is_accepted {
            true => Ok(()),
            false => Err(TokenRejection::new(
                RejectionReason::Type,
                "the token's `typ` is not accepted from this issuer",
            )),
        }
    }

    /// Rejects a token whose `aud` does not name this service.
    pub(super) fn check_audience(&self, claims: &Object) -> Result<(), TokenRejection> {
        let is_ours = |audience: &Json| {
            let audience = audience.as_str();
            audience.is_some_and(|audience| self.rules.audiences.contains(audience))
        };
        let is_for_us = match claims.get("aud") {
            Some(Json::Array(audiences)) => audiences.iter().any(is_ours),
            Some(audience) => is_ours(audience),
            None => false,
        };
        match is_for_us {
            true => Ok(()),
            false => Err(TokenRejection::new(
                RejectionReason::Audience,
                "the token's `aud` does not name this service",
            )),
        }
    }

    /// Checks the signature. Returns the version of the key set, and the id of the key that verifies
    /// it, or the `kid` of the token if the key has none.
    pub(super) fn check_signature(
        &self,
        token: &ParsedToken<'_>,
        on_key_miss: KeyMiss,
    ) -> Result<(Version, Option<String>), VerifyError> {
        let algorithm = self.check_algorithm(&token.header)?;
        let kid = token.header.kid.as_deref();
        let (version, keys) = self.keys.load_with_version();
        let candidates = match &*keys {
            None => Vec::new(),
            // No fetch is requested for too many candidates: another set would not help.
            Some(keys) => keys
                .candidates(kid, algorithm)
                .map_err(|TooManyCandidates| {
                    TokenRejection::new(
                        RejectionReason::KeyUnknown,
                        "the token names no key, and too many keys of the issuer fit",
                    )
                })?,
        };
        if candidates.is_empty() {
            return Err(self.missing_key(on_key_miss));
        }
        let has_signed = |key: &&Key| key.has_signed(token.signed, token.signature, algorithm);
        let Some(key) = candidates.into_iter().find(has_signed) else {
            // A new key may have the id of the old one, or none. The request does not wait, so that
            // invalid tokens cost little, and fetches are limited by their interval.
            if let Some(fetches) = &self.fetches {
                fetches.request();
            }
            let detail = "the token's signature does not verify";
            return Err(TokenRejection::new(RejectionReason::Signature, detail).into());
        };
        Ok((version, key.kid().or(kid).map(ToOwned::to_owned)))
    }

    /// Returns the token's algorithm, if its issuer may use it.
    fn check_algorithm(&self, header: &Header) -> Result<Algorithm, TokenRejection> {
        let rejected = || {
            TokenRejection::new(
                RejectionReason::Algorithm,
                "the token's `alg` is not accepted from this issuer",
            )
        };
        header
            .algorithm
            .filter(|algorithm| self.rules.algorithms.contains(algorithm))
            .ok_or_else(rejected)
    }

    /// Returns the outcome for a token whose key is missing.
    fn missing_key(&self, on_key_miss: KeyMiss) -> VerifyError {
        let missing = match (&self.fetches, on_key_miss) {
            (None, _) => MissingKey::Unknown,
            (Some(fetches), KeyMiss::Wait) => fetches.request_and_wait(),
            (Some(fetches), KeyMiss::Fail) => fetches.without_request(),
        };
        let (reason, detail) = match missing {
            MissingKey::Wait(wait) => return VerifyError::WaitForKey(wait),
            MissingKey::Unknown => (
                RejectionReason::KeyUnknown,
                "the token's issuer has no key with this `kid` for this `alg`",
            ),
            MissingKey::Unavailable => (
                RejectionReason::KeysUnavailable,
                "the keys of the token's issuer are not available: the fetch failed or has not ended",
            ),
        };
        TokenRejection::new(reason, detail).into()
    }
}
