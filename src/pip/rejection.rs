//! The reasons why tokens are rejected: a closed list for callers and operators.
//!
//! No text here quotes a token: it may be a valid one that was sent to the wrong place.

use std::borrow::Cow;

/// Declares the reasons, in the order in which they are checked, each with its code and description.
macro_rules! reasons {
    ($($reason:ident $code:literal $description:literal;)+) => {
        /// The reason why a token was rejected, as in `google.rpc.ErrorInfo`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum RejectionReason {
            $(#[doc = $description] $reason,)+
        }

        impl RejectionReason {
            /// All reasons, in the order in which they are checked.
            pub const ALL: [Self; [$($code),+].len()] = [$(Self::$reason),+];

            /// Returns the reason as it is sent in `google.rpc.ErrorInfo`.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$reason => $code,)+
                }
            }

            /// Returns the meaning for the documentation, in one line.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$reason => $description,)+
                }
            }
        }
    };
}

reasons! {
    NotConfigured "TOKENS_NOT_CONFIGURED"
        "a token was sent, and no issuers file is configured";
    TooLarge "TOKEN_TOO_LARGE"
        "longer than `max_bytes`";
    Malformed "TOKEN_MALFORMED"
        "not a JWS in compact form, or header or claims are invalid: duplicate member, nested too deep, `crit`";
    Issuer "TOKEN_ISSUER"
        "`iss` is not in the issuers file";
    Type "TOKEN_TYPE"
        "the header's `typ` is not among the issuer's `types`";
    Algorithm "TOKEN_ALGORITHM"
        "the header's `alg` is not among the issuer's `algorithms`";
    KeyUnknown "TOKEN_KEY_UNKNOWN"
        "the issuer has no key with this `kid` for the algorithm, or the token has no `kid` and too many keys fit";
    KeysUnavailable "KEYS_UNAVAILABLE"
        "the last fetch of the issuer's keys failed or has not ended, or too many requests wait for keys; retry";
    Signature "TOKEN_SIGNATURE"
        "the signature does not verify";
    Claims "TOKEN_CLAIMS"
        "a required claim is missing or of the wrong kind: `exp`, or one that the mapping names";
    Audience "TOKEN_AUDIENCE"
        "`aud` names none of the issuer's `audiences`";
    Expired "TOKEN_EXPIRED"
        "`exp` has passed, leeway included";
    NotYetValid "TOKEN_NOT_YET_VALID"
        "`nbf` or `iat` is in the future, leeway included";
    TooOld "TOKEN_TOO_OLD"
        "`iat` is longer ago than `max_age`";
    Revoked "TOKEN_REVOKED"
        "the revocation file lists the token, the subject or the key";
    PrincipalUnknown "PRINCIPAL_UNKNOWN"
        "the mapping says `stored = \"require\"`, and the principal is not a stored entity";
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
            assert_eq!(reason as usize, position);
            assert!(codes.insert(reason.code()));
        }
    }
}
