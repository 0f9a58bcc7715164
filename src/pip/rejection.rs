//! The reasons why tokens are rejected: a closed list for callers and operators.
//!
//! No text here quotes a token: it may be a valid one that was sent to the wrong place.

use std::borrow::Cow;

/// The reason why a token was rejected, as in `google.rpc.ErrorInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectionReason {
    /// No issuers file is configured.
    NotConfigured,
    /// The token is longer than allowed.
    TooLarge,
    /// The token is not a JWS in compact form with a valid header and claims.
    Malformed,
    /// The `iss` is not in the issuers file.
    Issuer,
    /// The `typ` is not accepted.
    Type,
    /// The `alg` is not one that the issuer may use.
    Algorithm,
    /// No key of the issuer has the token's `kid`.
    KeyUnknown,
    /// The issuer's keys could not be fetched.
    KeysUnavailable,
    /// The signature does not verify.
    Signature,
    /// A claim is missing or of the wrong type.
    Claims,
    /// The `aud` does not name this service.
    Audience,
    /// The `exp` has passed.
    Expired,
    /// The `nbf` or `iat` is in the future.
    NotYetValid,
    /// The `iat` is longer ago than the issuer's `max_age`.
    TooOld,
    /// The revocation list contains the token, its subject or its key.
    Revoked,
    /// The principal must be a stored entity and is not.
    PrincipalUnknown,
}

impl RejectionReason {
    /// All reasons, in the order in which they are checked.
    pub const ALL: [Self; 16] = [
        Self::NotConfigured,
        Self::TooLarge,
        Self::Malformed,
        Self::Issuer,
        Self::Type,
        Self::Algorithm,
        Self::KeyUnknown,
        Self::KeysUnavailable,
        Self::Signature,
        Self::Claims,
        Self::Audience,
        Self::Expired,
        Self::NotYetValid,
        Self::TooOld,
        Self::Revoked,
        Self::PrincipalUnknown,
    ];

    /// Returns the reason as it is sent in `google.rpc.ErrorInfo`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotConfigured => "TOKENS_NOT_CONFIGURED",
            Self::TooLarge => "TOKEN_TOO_LARGE",
            Self::Malformed => "TOKEN_MALFORMED",
            Self::Issuer => "TOKEN_ISSUER",
            Self::Type => "TOKEN_TYPE",
            Self::Algorithm => "TOKEN_ALGORITHM",
            Self::KeyUnknown => "TOKEN_KEY_UNKNOWN",
            Self::KeysUnavailable => "KEYS_UNAVAILABLE",
            Self::Signature => "TOKEN_SIGNATURE",
            Self::Claims => "TOKEN_CLAIMS",
            Self::Audience => "TOKEN_AUDIENCE",
            Self::Expired => "TOKEN_EXPIRED",
            Self::NotYetValid => "TOKEN_NOT_YET_VALID",
            Self::TooOld => "TOKEN_TOO_OLD",
            Self::Revoked => "TOKEN_REVOKED",
            Self::PrincipalUnknown => "PRINCIPAL_UNKNOWN",
        }
    }

    /// Returns the meaning for the documentation, in one line.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::NotConfigured => "a token was sent, and no issuers file is configured",
            Self::TooLarge => "longer than `max_bytes`",
            Self::Malformed => {
                "not a JWS in compact form, or header or claims are invalid: duplicate member, nested too deep, `crit`"
            }
            Self::Issuer => "`iss` is not in the issuers file",
            Self::Type => "the header's `typ` is not among the issuer's `types`",
            Self::Algorithm => "the header's `alg` is not among the issuer's `algorithms`",
            Self::KeyUnknown => {
                "the issuer has no key of this `kid` that fits the algorithm, or the token names none and too many fit"
            }
            Self::KeysUnavailable => {
                "the key may exist, but the last fetch of the issuer's keys failed or is not over, or too many requests wait for it; retry"
            }
            Self::Signature => "the signature does not verify",
            Self::Claims => {
                "a required claim is missing or of the wrong kind: `exp`, or one that the mapping names"
            }
            Self::Audience => "`aud` names none of the issuer's `audiences`",
            Self::Expired => "`exp` has passed, leeway included",
            Self::NotYetValid => "`nbf` or `iat` is in the future, leeway included",
            Self::TooOld => "`iat` is longer ago than `max_age`",
            Self::Revoked => "the revocation file names the token, its subject or its key",
            Self::PrincipalUnknown => {
                "the mapping says `stored = \"require\"`, and the principal is not a stored entity"
            }
        }
    }

    /// Returns the position in [`ALL`](Self::ALL).
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// The rejection of a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct TokenRejection {
    /// The reason.
    pub reason: RejectionReason,
    /// A sentence for people that quotes nothing of the token.
    pub detail: Cow<'static, str>,
}

impl TokenRejection {
    /// Creates a rejection.
    pub(super) fn new(reason: RejectionReason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }

    /// Creates the rejection of a token when no issuer is configured.
    #[must_use]
    pub fn not_configured() -> Self {
        Self::new(
            RejectionReason::NotConfigured,
            "`principal_token` was sent, and no token issuer is configured",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_in_order_with_unique_codes() {
        let mut codes = std::collections::BTreeSet::new();
        for (position, reason) in RejectionReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), position);
            assert!(codes.insert(reason.code()));
        }
    }
}
