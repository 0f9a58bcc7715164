//! Identifies the principal of a request: a named one, a verified token's, or the anonymous one.

use std::sync::Arc;
use std::time::SystemTime;

use super::call::Call;
use super::question::Credential;
use super::rejection::Rejection;
use crate::pdp::query::{Claimed, InvalidQuery, Problem, Uid};
use crate::pdp::query_ref::UidRef;
use crate::pip::{self, KeyMiss, KeyWait, NumericDate, TokenRejection, Tokens, VerifyError};
use crate::readiness::ReadinessReader;

/// An identified principal, with the claims of its token if it has one.
#[derive(Debug)]
pub(crate) enum Principal<'a> {
    /// A principal that the caller or a setting names.
    Named(UidRef<'a>),
    /// The principal of a verified token.
    Token(Arc<pip::TokenIdentity>),
}

/// The outcome of identifying a principal.
#[derive(Debug)]
pub(crate) enum Identification<'a> {
    Known(Principal<'a>),
    /// The token's signing key may be about to arrive: wait, then identify again.
    Wait(KeyWait),
}

impl Principal<'_> {
    /// Returns the principal's uid.
    pub(crate) fn uid(&self) -> UidRef<'_> {
        match self {
            Self::Named(uid) => *uid,
            Self::Token(token) => (&token.principal).into(),
        }
    }

    /// Returns the claims of the principal's token.
    pub(crate) fn claimed(&self) -> Option<&Arc<Claimed>> {
        match self {
            Self::Named(_) => None,
            Self::Token(token) => Some(&token.claimed),
        }
    }
}

/// Identifies the principal of a request that presents `credential`.
///
/// A token is verified or rejected, never ignored, even if it is empty.
pub(crate) fn identify<'a>(
    credential: Credential<'a>,
    anonymous: Option<&'a Uid>,
    tokens: Option<&Tokens>,
    on_key_miss: KeyMiss,
) -> Result<Identification<'a>, Rejection> {
    let principal = match credential {
        Credential::Principal(uid) => Principal::Named(uid?),
        Credential::Token(token) => {
            let tokens =
                tokens.ok_or_else(|| Rejection::Token(TokenRejection::not_configured()))?;
            match tokens.verify(token, NumericDate::from(SystemTime::now()), on_key_miss) {
                Ok(identity) => Principal::Token(identity),
                Err(VerifyError::Rejected(rejection)) => return Err(Rejection::Token(rejection)),
                Err(VerifyError::WaitForKey(wait)) => return Ok(Identification::Wait(wait)),
            }
        }
        Credential::Anonymous => Principal::Named(anonymous_uid(anonymous)?),
    };
    Ok(Identification::Known(principal))
}

/// Identifies a principal without verifying a signature; `None` if that is not possible.
pub(crate) fn identify_cached<'a>(
    credential: Credential<'a>,
    anonymous: Option<&'a Uid>,
    tokens: Option<&Tokens>,
) -> Option<Principal<'a>> {
    match credential {
        Credential::Principal(uid) => uid.ok().map(Principal::Named),
        Credential::Token(token) => {
            let identified = tokens?.cached(token, NumericDate::from(SystemTime::now()))?;
            Some(Principal::Token(identified))
        }
        Credential::Anonymous => anonymous_uid(anonymous).ok().map(Principal::Named),
    }
}

fn anonymous_uid(anonymous: Option<&Uid>) -> Result<UidRef<'_>, InvalidQuery> {
    anonymous
        .map(UidRef::from)
        .ok_or_else(|| InvalidQuery::field("principal", Problem::NoIdentity))
}

/// Waits for signing keys until the call's deadline or the start of a drain.
pub(crate) async fn wait_for_keys(
    wait: KeyWait,
    call: &Call,
    mut readiness: ReadinessReader,
) -> Result<(), Rejection> {
    tokio::select! {
        () = wait.wait() => Ok(()),
        () = readiness.draining() => Err(Rejection::ShuttingDown),
        () = call.deadline.passed() => Err(Rejection::DeadlineExceeded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_request_needs_a_setting() {
        let identified = identify(Credential::Anonymous, None, None, KeyMiss::Wait);
        let missing = InvalidQuery::field("principal", Problem::NoIdentity);
        assert_eq!(identified.unwrap_err(), missing.into());
    }

    #[test]
    fn token_is_never_ignored() {
        // Neither an empty token nor one without a configured issuer falls back to anonymous.
        let anonymous = Uid::new("User", "nobody");
        for token in ["", "x.y.z"] {
            let rejected = identify(
                Credential::Token(token),
                Some(&anonymous),
                None,
                KeyMiss::Wait,
            );
            assert_eq!(
                rejected.unwrap_err(),
                Rejection::Token(TokenRejection::not_configured())
            );
        }
    }
}
