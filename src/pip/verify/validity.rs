//! The time in which a token is valid, from `exp`, `nbf`, `iat` and the issuer's rules.

use crate::pip::issuers::IssuerRules;
use crate::pip::json::Object;
use crate::pip::numeric_date::NumericDate;
use crate::pip::rejection::{RejectionReason, TokenRejection};

/// The time in which a token is valid, leeway included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    begins: NumericDate,
    ends: NumericDate,
    /// The end by the issuer's `max_age`.
    too_old: Option<NumericDate>,
}

impl Validity {
    /// Reads the claims. Does not compare them with the current time.
    pub(super) fn from_claims(
        rules: &IssuerRules,
        claims: &Object,
    ) -> Result<Self, TokenRejection> {
        let missing = |detail| TokenRejection::new(RejectionReason::Claims, detail);
        let leeway = rules.leeway;
        let ends = date_claim(claims, "exp")?
            .ok_or_else(|| missing("claim `exp` is missing"))?
            .plus(leeway);
        let issued = date_claim(claims, "iat")?;
        let too_old = match (rules.max_age, issued) {
            (None, _) => None,
            (Some(max_age), Some(issued)) => Some(issued.plus(max_age).plus(leeway)),
            (Some(_), None) => {
                let detail = "claim `iat` is missing, and the issuer's tokens have a `max_age`";
                return Err(missing(detail));
            }
        };
        let begins = date_claim(claims, "nbf")?.max(issued);
        Ok(Self {
            begins: begins.map_or(NumericDate::MIN, |begins| begins.minus(leeway)),
            ends,
            too_old,
        })
    }

    /// Rejects a token that is not valid at `now`.
    pub(super) fn check(&self, now: NumericDate) -> Result<(), TokenRejection> {
        let rejected = |reason, detail| Err(TokenRejection::new(reason, detail));
        if now >= self.ends {
            return rejected(RejectionReason::Expired, "the token has expired");
        }
        if now < self.begins {
            return rejected(RejectionReason::NotYetValid, "the token is not valid yet");
        }
        if self.too_old.is_some_and(|too_old| now >= too_old) {
            return rejected(RejectionReason::TooOld, "the token was issued too long ago");
        }
        Ok(())
    }
}

/// Reads a claim that must be a date if it is present.
pub(super) fn date_claim(
    claims: &Object,
    name: &str,
) -> Result<Option<NumericDate>, TokenRejection> {
    let read = |claim| {
        NumericDate::from_claim(claim).ok_or_else(|| {
            let detail = format!("claim `{name}` is not a date");
            TokenRejection::new(RejectionReason::Claims, detail)
        })
    };
    claims.get(name).map(read).transpose()
}
