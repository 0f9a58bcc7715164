//! From a token to who it says asks: form, issuer, algorithm, key, signature, claims, time,
//! revocation, and only then what the claims say.
//!
//! The order is the rule: nothing of the claims but `iss` is read before the signature is checked,
//! and `iss` only chooses whose keys it is checked with.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::figures::{Counters, KeyCounters, KeyFigures, TokenFigures};
use super::issuers::IssuerRules;
use super::json::{Json, Object};
use super::keys::refresh::{Fetches, Hope, KeyWait};
use super::keys::{Key, KeySet, TooManyFit};
use super::moment::Moment;
use super::refusal::{Reason, Refusal};
use super::remembered::Remembered;
use super::revocations::{Facts, Revocations};
use super::slot::{Reader, Version};
use super::token::{self, Header, Token};
use super::weight::Weighed;
use crate::pdp::query::{Claimed, Uid};

/// Who asks, as a token says it that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identified {
    /// Who asks.
    pub principal: Uid,
    /// What the issuer says of it.
    pub claimed: Arc<Claimed>,
    /// The issuer.
    pub issuer: Arc<str>,
}

/// What a look at a token comes to.
#[derive(Debug)]
pub enum Verdict {
    /// It is believed.
    Identified(Arc<Identified>),
    /// It is not.
    Refused(Refusal),
    /// Its key is not there and may be on its way: wait, and look again.
    Wait(KeyWait),
}

/// Whether a look may end in [`Verdict::Wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It may.
    Waits,
    /// Who asks has waited long enough.
    Spent,
}

/// Verifies tokens.
#[derive(Debug)]
pub struct Tokens {
    pub(super) issuers: Vec<Issuer>,
    pub(super) revocations: Reader<Revocations>,
    pub(super) remembered: Option<Remembered<Known>>,
    pub(super) counters: Arc<Counters>,
    /// The longest token that any issuer may send.
    pub(super) max_bytes: usize,
}

/// One issuer: its rules and its keys.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) name: Arc<str>,
    pub(super) rules: IssuerRules,
    pub(super) keys: Reader<KeySet>,
    /// For keys behind a URL.
    pub(super) fetches: Option<Fetches>,
    pub(super) counters: Arc<KeyCounters>,
}

/// A token that was verified: what was found, and under what.
#[derive(Debug)]
pub(super) struct Known {
    identified: Arc<Identified>,
    validity: Validity,
    /// The issuer's place among the issuers.
    issuer: usize,
    keys: Version,
    revocations: Version,
}

/// When a token may be believed, leeway included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    begins: Moment,
    ends: Moment,
    too_old: Option<Moment>,
}

/// A look that did not end in an identity.
enum Failure {
    Refused(Refusal),
    Wait(KeyWait),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Tokens {
    /// Whether `token` is to be believed at the moment `now`, and whom it names.
    ///
    /// Costs about a microsecond for a token that was verified before and is remembered, and a
    /// signature check otherwise. Does not block and does no I/O.
    #[must_use]
    pub fn verify(&self, token: &str, now: Moment, patience: Patience) -> Verdict {
        match self.look(token, now, patience) {
            Ok(identified) => Verdict::Identified(identified),
            Err(Failure::Wait(wait)) => Verdict::Wait(wait),
            Err(Failure::Refused(refusal)) => {
                self.counters.refused(refusal.reason);
                Verdict::Refused(refusal)
            }
        }
    }

    /// Whom `token` names, if it was verified before and is to be believed at the moment `now`;
    /// `None` says nothing about it, and counts nothing.
    #[must_use]
    pub fn recall(&self, token: &str, now: Moment) -> Option<Arc<Identified>> {
        let known = self.known(token)?;
        known.validity.check(now).ok()?;
        self.counters.remembered.add_one();
        Some(Arc::clone(&known.identified))
    }

    /// Counts a token that was believed and whose principal was refused all the same.
    pub fn count_unknown_principal(&self) {
        self.counters.refused(Reason::PrincipalUnknown);
    }

    /// What became of tokens so far, and how the keys are.
    #[must_use]
    pub fn figures(&self) -> TokenFigures {
        let Self {
            issuers,
            revocations,
            remembered,
            counters,
            max_bytes: _,
        } = self;
        let keys = issuers.iter().map(|issuer| {
            let (_, keys) = issuer.keys.load();
            KeyFigures {
                issuer: Arc::clone(&issuer.name),
                keys: keys.map_or(0, |keys| keys.len() as u64),
                age: issuer.fetches.as_ref().and_then(Fetches::age),
                taken: issuer.counters.taken.value(),
                failed: issuer.counters.failed.value(),
            }
        });
        TokenFigures {
            verified: counters.verified.value(),
            remembered: counters.remembered.value(),
            entries: remembered.as_ref().map_or(0, |it| it.len() as u64),
            refused: counters.refusals(),
            keys: keys.collect(),
            revocations: revocations.load().1.map_or(0, |list| list.len() as u64),
            revocations_refused: counters.revocations_refused.value(),
            revocations_shrunk: counters.revocations_shrunk.value(),
        }
    }

    fn look(
        &self,
        token: &str,
        now: Moment,
        patience: Patience,
    ) -> Result<Arc<Identified>, Failure> {
        if token.len() > self.max_bytes {
            return Err(too_large().into());
        }
        if let Some(known) = self.known(token) {
            known.validity.check(now)?;
            self.counters.remembered.add_one();
            return Ok(Arc::clone(&known.identified));
        }
        let known = Arc::new(self.verify_anew(token, now, patience)?);
        if let Some(remembered) = &self.remembered {
            remembered.put(token, Arc::clone(&known));
        }
        self.counters.verified.add_one();
        Ok(Arc::clone(&known.identified))
    }

    /// What was found of the token before, if that stands.
    fn known(&self, token: &str) -> Option<Arc<Known>> {
        let known = self.remembered.as_ref()?.get(token)?;
        self.stands(&known).then_some(known)
    }

    /// Whether keys and revocations are those under which the token was verified.
    fn stands(&self, known: &Known) -> bool {
        known.revocations == self.revocations.version()
            && self
                .issuers
                .get(known.issuer)
                .is_some_and(|issuer| issuer.keys.version() == known.keys)
    }

    fn verify_anew(&self, text: &str, now: Moment, patience: Patience) -> Result<Known, Failure> {
        let token = token::read(text)?;
        let (at, issuer) = self.issuer_of(&token.claims)?;
        let rules = &issuer.rules;
        if text.len() > rules.max_bytes {
            return Err(too_large().into());
        }
        check_type(rules, &token.header)?;
        let (keys, kid) = issuer.check_signature(&token, patience)?;
        let claims = &token.claims;
        check_audience(rules, claims)?;
        let validity = Validity::of(rules, claims)?;
        validity.check(now)?;
        let revocations = self.check_revocations(issuer, claims, kid)?;
        let (principal, claimed) = rules.mapping.apply(claims)?;
        Ok(Known {
            identified: Arc::new(Identified {
                principal,
                claimed: Arc::new(claimed),
                issuer: Arc::clone(&issuer.name),
            }),
            validity,
            issuer: at,
            keys,
            revocations,
        })
    }

    fn issuer_of(&self, claims: &Object) -> Result<(usize, &Issuer), Refusal> {
        let refused = |detail| Refusal::new(Reason::Issuer, detail);
        let name = match claims.get("iss") {
            Some(Json::String(name)) => name,
            Some(_) | None => return Err(refused("the token's `iss` is missing or not text")),
        };
        let mut issuers = self.issuers.iter().enumerate();
        issuers
            .find(|(_, issuer)| issuer.rules.name == *name)
            .ok_or_else(|| refused("the token's issuer is not one whose tokens are taken here"))
    }

    /// The version of the list that does not cover the token.
    fn check_revocations(
        &self,
        issuer: &Issuer,
        claims: &Object,
        kid: Option<String>,
    ) -> Result<Version, Refusal> {
        let (version, list) = self.revocations.load();
        let facts = Facts {
            issuer: &issuer.rules.name,
            jti: optional_text(claims, "jti")?,
            sub: optional_text(claims, "sub")?,
            id: issuer.rules.mapping.id(claims),
            kid: kid.as_deref(),
            issued: optional_moment(claims, "iat")?,
        };
        if list.is_some_and(|list| list.cover(facts)) {
            return Err(Refusal::new(Reason::Revoked, "the token was revoked"));
        }
        Ok(version)
    }
}

fn too_large() -> Refusal {
    Refusal::new(
        Reason::TooLarge,
        "the token is longer than any that is taken",
    )
}

impl Issuer {
    /// The version of the keys that the signature was checked with, and the key's name: its own, or
    /// what the header calls it if it has none.
    fn check_signature(
        &self,
        token: &Token<'_>,
        patience: Patience,
    ) -> Result<(Version, Option<String>), Failure> {
        let Header {
            algorithm,
            kid,
            typ: _,
        } = &token.header;
        let algorithm = algorithm
            .filter(|algorithm| self.rules.algorithms.contains(algorithm))
            .ok_or_else(|| {
                Refusal::new(
                    Reason::Algorithm,
                    "the token's `alg` is not one that its issuer may sign with",
                )
            })?;
        let (version, keys) = self.keys.load();
        let candidates = keys
            .as_deref()
            .map_or(Ok(Vec::new()), |keys| {
                keys.candidates(kid.as_deref(), algorithm)
            })
            // No fetch would help: the set is as its issuer wants it.
            .map_err(|TooManyFit| {
                Refusal::new(
                    Reason::KeyUnknown,
                    "more keys of the token's issuer fit than are tried, and the token names none",
                )
            })?;
        if candidates.is_empty() {
            return Err(self.without_key(patience));
        }
        let signed = |key: &&Key| key.has_signed(token.signed, token.signature, algorithm);
        match candidates.into_iter().find(signed) {
            Some(key) => Ok((version, key.kid().or(kid.as_deref()).map(ToOwned::to_owned))),
            None => {
                // A new key may go by the name of the old one, or by none. Whoever sends garbage
                // does not wait for a fetch, and has no more of them made than the interval lets.
                if let Some(fetches) = &self.fetches {
                    fetches.ask();
                }
                Err(Refusal::new(Reason::Signature, "the token's signature is wrong").into())
            }
        }
    }

    fn without_key(&self, patience: Patience) -> Failure {
        let hope = match (&self.fetches, patience) {
            (None, _) => Hope::None,
            (Some(fetches), Patience::Waits) => fetches.ask_and_wait(),
            (Some(fetches), Patience::Spent) => fetches.without_asking(),
        };
        Failure::Refused(match hope {
            Hope::Wait(wait) => return Failure::Wait(wait),
            Hope::None => Refusal::new(
                Reason::KeyUnknown,
                "the token's issuer has no key of that `kid` for that `alg`",
            ),
            Hope::Failed => Refusal::new(
                Reason::KeysUnavailable,
                "the keys of the token's issuer could not be fetched, or not yet",
            ),
        })
    }
}

/// What a header may say when the operator named no types: a JWT, a token of access, or nothing.
/// Tokens of other kinds (of logout, of security events) are for others.
const COMMON_TYPES: [&str; 2] = ["jwt", "at+jwt"];

fn check_type(rules: &IssuerRules, header: &Header) -> Result<(), Refusal> {
    let is_right = match (&rules.types, header.typ.as_deref()) {
        (None, None) => true,
        (None, Some(typ)) => COMMON_TYPES.contains(&typ),
        (Some(_), None) => false,
        (Some(types), Some(typ)) => types.contains(typ),
    };
    match is_right {
        true => Ok(()),
        false => Err(Refusal::new(
            Reason::Type,
            "the token's `typ` is not one that is taken from its issuer",
        )),
    }
}

fn check_audience(rules: &IssuerRules, claims: &Object) -> Result<(), Refusal> {
    let is_ours = |claim: &Json| match claim {
        Json::String(audience) => rules.audiences.contains(audience),
        Json::Null
        | Json::Bool(_)
        | Json::Integer(_)
        | Json::Float(_)
        | Json::Array(_)
        | Json::Object(_) => false,
    };
    let is_for_us = match claims.get("aud") {
        Some(Json::Array(audiences)) => audiences.iter().any(is_ours),
        Some(audience) => is_ours(audience),
        None => false,
    };
    match is_for_us {
        true => Ok(()),
        false => Err(Refusal::new(
            Reason::Audience,
            "the token's `aud` does not name this service",
        )),
    }
}

impl Validity {
    fn of(rules: &IssuerRules, claims: &Object) -> Result<Self, Refusal> {
        let leeway = rules.leeway;
        let ends = optional_moment(claims, "exp")?
            .ok_or_else(|| Refusal::new(Reason::Claims, "claim `exp` is missing"))?;
        let issued = optional_moment(claims, "iat")?;
        let too_old = match (rules.max_age, issued) {
            (None, _) => None,
            (Some(age), Some(issued)) => Some(issued.after(age).after(leeway)),
            (Some(_), None) => {
                return Err(Refusal::new(
                    Reason::Claims,
                    "claim `iat` is missing, and the issuer's tokens have a `max_age`",
                ));
            }
        };
        let earliest = optional_moment(claims, "nbf")?.max(issued);
        Ok(Self {
            begins: earliest.map_or(Moment::EARLIEST, |begin| begin.before(leeway)),
            ends: ends.after(leeway),
            too_old,
        })
    }

    fn check(&self, now: Moment) -> Result<(), Refusal> {
        if now >= self.ends {
            return Err(Refusal::new(Reason::Expired, "the token has expired"));
        }
        if now < self.begins {
            return Err(Refusal::new(
                Reason::NotYetValid,
                "the token is not valid yet",
            ));
        }
        if self.too_old.is_some_and(|too_old| now >= too_old) {
            return Err(Refusal::new(
                Reason::TooOld,
                "the token was issued too long ago",
            ));
        }
        Ok(())
    }
}

fn optional_moment(claims: &Object, name: &str) -> Result<Option<Moment>, Refusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(claim) => match Moment::of_claim(claim) {
            Some(moment) => Ok(Some(moment)),
            None => Err(Refusal::new(
                Reason::Claims,
                format!("claim `{name}` is no point in time"),
            )),
        },
    }
}

fn optional_text<'a>(claims: &'a Object, name: &str) -> Result<Option<&'a str>, Refusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::new(
            Reason::Claims,
            format!("claim `{name}` is not text"),
        )),
    }
}

impl Weighed for Known {
    fn heap_bytes(&self) -> usize {
        let Identified {
            principal,
            claimed,
            issuer: _,
        } = &*self.identified;
        size_of::<Identified>()
            + size_of::<Claimed>()
            + principal.heap_bytes()
            + claimed.heap_bytes()
    }
}

/// Room for remembered tokens; `None` when there is none.
pub(super) fn remembered(capacity_bytes: Option<NonZeroU64>) -> Option<Remembered<Known>> {
    capacity_bytes.map(Remembered::new)
}

#[cfg(test)]
mod tests;
