//! What the PDP says: a decision, what settled it, and by which content.

use std::fmt;
use std::sync::Arc;

use super::explain::Explanation;

/// The answer to "may this principal do this action on this resource?".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// At least one permit is satisfied, and no forbid.
    Allow,
    /// Everything else.
    Deny,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        })
    }
}

/// A digest of the content that a snapshot was made of: lower-case hex SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(Arc<str>);

impl Revision {
    /// The revision for a digest.
    #[must_use]
    pub fn from_digest(digest: &[u8; 32]) -> Self {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in digest {
            // INVARIANT: writing to a `String` cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }

    /// The revision that `text` writes out; `None` when it is not 64 lower-case hex digits.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 64 && text.bytes().all(is_digit)).then(|| Self(text.into()))
    }

    /// The 64 hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A policy's, template's or link's id: they share one space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId(Arc<str>);

impl PolicyId {
    /// The id with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A policy that was skipped because its evaluation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// Which policy.
    pub policy: PolicyId,
    /// What Cedar says of the failure, in its own words.
    pub message: String,
}

/// What settled a decision, and what could not be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// The satisfied policies that settled the decision, sorted by id.
    pub determining: Vec<PolicyId>,
    /// The policies skipped because their evaluation failed, sorted by id.
    pub errors: Vec<PolicyError>,
}

/// A decision with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Allow or deny.
    pub decision: Decision,
    /// Determining policies and evaluation errors.
    pub diagnostics: Diagnostics,
    /// Of the snapshot that decided.
    pub revision: Revision,
    /// Present exactly when the query asked for it.
    pub explanation: Option<Box<Explanation>>,
}
