//! A calling program, and its rights.

use std::sync::Arc;

use crate::api::metrics::label;

label! {
    /// An action that a caller may be allowed.
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    Right {
        /// Ask for decisions.
        Authorize = "authorize",
        /// Ask for explanations of decisions.
        Explain = "explain",
        /// Read the status of the policy store, and list policies.
        Store = "store",
        /// Reload the policies, and change the log filter.
        Administer = "administer",
    }
}

label! {
    /// The way in which a request identifies the principal.
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    IdentityKind {
        /// The request names the principal.
        Principal = "principal",
        /// The request holds a token.
        Token = "token",
        /// The request holds neither.
        Anonymous = "anonymous",
    }
}

/// A calling program: its name, rights and kinds of identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    name: Arc<str>,
    /// One bit for each [`Right`].
    rights: u8,
    /// One bit for each [`IdentityKind`].
    identities: u8,
}

impl Caller {
    pub(super) fn new(name: &str, rights: &[Right], identities: &[IdentityKind]) -> Self {
        Self {
            name: name.into(),
            rights: rights.iter().fold(0, |set, it| set | (1 << *it as u8)),
            identities: identities.iter().fold(0, |set, it| set | (1 << *it as u8)),
        }
    }

    /// Returns its name in the list of callers, which is one of a bounded set.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn may(&self, right: Right) -> bool {
        self.rights & (1 << right as u8) != 0
    }

    /// Returns whether the caller may send identities of this kind.
    pub(crate) fn may_send(&self, kind: IdentityKind) -> bool {
        self.identities & (1 << kind as u8) != 0
    }
}

/// The reason why a caller may not make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("unknown caller: no listed certificate, key or user id was presented")]
    UnknownCaller,
    #[error("the bearer key is unknown")]
    UnknownKey,
    #[error("the caller has no right to `{}`", .0.label())]
    MissingRight(Right),
    #[error("the caller may not send this identity: {}", .0.label())]
    IdentityNotAllowed(IdentityKind),
}
