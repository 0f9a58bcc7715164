//! A calling program, and its rights.

use std::fmt;
use std::sync::Arc;

/// A calling program: its name, rights and kinds of identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub(super) name: Arc<str>,
    pub(super) rights: Rights,
    pub(super) identities: Identities,
}

/// An action that a caller may be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Ask for decisions.
    Authorize,
    /// Ask for explanations of decisions.
    Explain,
    /// Read the status of the policy store, and list policies.
    Store,
    /// Reload the policies, and change the log filter.
    Administer,
}

/// The way in which a request identifies the principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityKind {
    /// The request names the principal.
    Principal,
    /// The request holds a token.
    Token,
    /// The request holds neither.
    Anonymous,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authorize => "authorize",
            Self::Explain => "explain",
            Self::Store => "store",
            Self::Administer => "administer",
        })
    }
}

impl fmt::Display for IdentityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Principal => "principal",
            Self::Token => "token",
            Self::Anonymous => "anonymous",
        })
    }
}

/// A set of [`Right`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    authorize: bool,
    explain: bool,
    store: bool,
    administer: bool,
}

/// A set of [`IdentityKind`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Identities {
    principal: bool,
    token: bool,
    anonymous: bool,
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        let mut set = Self::default();
        for right in rights {
            match right {
                Right::Authorize => set.authorize = true,
                Right::Explain => set.explain = true,
                Right::Store => set.store = true,
                Right::Administer => set.administer = true,
            }
        }
        set
    }
}

impl FromIterator<IdentityKind> for Identities {
    fn from_iter<I: IntoIterator<Item = IdentityKind>>(kinds: I) -> Self {
        let mut set = Self::default();
        for kind in kinds {
            match kind {
                IdentityKind::Principal => set.principal = true,
                IdentityKind::Token => set.token = true,
                IdentityKind::Anonymous => set.anonymous = true,
            }
        }
        set
    }
}

impl Caller {
    /// Returns the caller of a service without a caller list: it has every right.
    pub(super) fn anyone() -> Self {
        Self {
            name: "anyone".into(),
            rights: Rights {
                authorize: true,
                explain: true,
                store: true,
                administer: true,
            },
            identities: Identities {
                principal: true,
                token: true,
                anonymous: true,
            },
        }
    }

    /// Returns an unauthenticated caller, who may only call methods that are open to all.
    pub(super) fn nobody() -> Self {
        Self {
            name: "nobody".into(),
            rights: Rights::default(),
            identities: Identities::default(),
        }
    }

    /// Returns its name in the list of callers, which is one of a bounded set.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the caller has `right`.
    #[must_use]
    pub fn may(&self, right: Right) -> bool {
        match right {
            Right::Authorize => self.rights.authorize,
            Right::Explain => self.rights.explain,
            Right::Store => self.rights.store,
            Right::Administer => self.rights.administer,
        }
    }

    /// Returns whether the caller may send identities of this kind.
    #[must_use]
    pub fn may_send(&self, kind: IdentityKind) -> bool {
        match kind {
            IdentityKind::Principal => self.identities.principal,
            IdentityKind::Token => self.identities.token,
            IdentityKind::Anonymous => self.identities.anonymous,
        }
    }
}

/// The reason why a caller may not make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// The caller list has no entry for the caller.
    #[error("unknown caller: no listed certificate, key or user id was presented")]
    UnknownCaller,
    /// The bearer key is of no listed caller.
    #[error("the bearer key is unknown")]
    UnknownKey,
    /// The caller lacks a right.
    #[error("the caller has no right to `{0}`")]
    MissingRight(Right),
    /// The caller may not send this kind of identity.
    #[error("the caller may not send this identity: {0}")]
    IdentityNotAllowed(IdentityKind),
}
