//! Why a token is not believed: a closed list, which callers and operators read.
//!
//! No text here quotes a token: it may be a good one that was sent to the wrong place.

use std::borrow::Cow;

/// Why a token is not believed, as `google.rpc.ErrorInfo` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// There is no issuers file.
    NotConfigured,
    /// Longer than any token that is taken.
    TooLarge,
    /// Not a JWS in compact form with a sound header and claims.
    Malformed,
    /// Its `iss` is not in the issuers file.
    Issuer,
    /// A token of another kind.
    Type,
    /// Signed in a way that the issuer may not use.
    Algorithm,
    /// No key of the issuer has its `kid`.
    KeyUnknown,
    /// The issuer's keys could not be fetched.
    KeysUnavailable,
    /// The signature is not of that key.
    Signature,
    /// A claim is missing or of the wrong kind.
    Claims,
    /// Meant for someone else.
    Audience,
    /// Past its `exp`.
    Expired,
    /// Before its `nbf` or `iat`.
    NotYetValid,
    /// Issued longer ago than the issuer's `max_age`.
    TooOld,
    /// In the revocation file.
    Revoked,
    /// Its principal must be a stored entity, and is none.
    PrincipalUnknown,
}

impl Reason {
    /// All there are, in the order in which they are looked for.
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

    /// As it stands in `google.rpc.ErrorInfo`.
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

    /// What it means, in a line.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::NotConfigured => "a token was sent, and there is no issuers file",
            Self::TooLarge => "longer than `max_bytes`",
            Self::Malformed => {
                "no JWS in compact form, or a header or claims that are not sound: a member twice, nested too deep, `crit`"
            }
            Self::Issuer => "`iss` is not in the issuers file",
            Self::Type => "the header's `typ` is not among the issuer's `types`",
            Self::Algorithm => "the header's `alg` is not among the issuer's `algorithms`",
            Self::KeyUnknown => {
                "the issuer has no key of this `kid` that fits the algorithm, or the token names none and too many fit"
            }
            Self::KeysUnavailable => {
                "the key may exist, but the last attempt to fetch the issuer's keys failed or is not over, or too many wait for it; worth another try"
            }
            Self::Signature => "the signature does not verify",
            Self::Claims => {
                "a claim that is needed is missing or of the wrong kind: `exp`, or one that the mapping names"
            }
            Self::Audience => "`aud` names none of the issuer's `audiences`",
            Self::Expired => "`exp` has passed, leeway included",
            Self::NotYetValid => "`nbf` or `iat` is in the future, leeway included",
            Self::TooOld => "`iat` is longer ago than `max_age`",
            Self::Revoked => "the revocation file names it, its subject or its key",
            Self::PrincipalUnknown => {
                "the mapping says `stored = \"require\"`, and there is no such stored entity"
            }
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// A token that is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// Which of the reasons.
    pub reason: Reason,
    /// What is wrong, in a sentence that quotes nothing of the token.
    pub detail: Cow<'static, str>,
}

impl Refusal {
    /// The refusal for this reason.
    pub(super) fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }

    /// No issuer is configured.
    #[must_use]
    pub fn not_configured() -> Self {
        Self::new(
            Reason::NotConfigured,
            "`principal_token` was sent, and no token issuer is configured",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_place_and_a_code_of_its_own() {
        let mut codes = std::collections::BTreeSet::new();
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert!(codes.insert(reason.code()));
        }
    }
}
