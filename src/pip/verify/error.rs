//! The outcome for a token that could not be verified.

use crate::pip::keys::fetch_request::KeyWait;
use crate::pip::rejection::TokenRejection;

/// A token that could not be verified.
#[derive(Debug)]
pub enum VerifyError {
    /// The token is rejected.
    Rejected(TokenRejection),
    /// The token's key is missing, and a fetch may bring it. Wait, then verify again.
    WaitForKey(KeyWait),
}

impl From<TokenRejection> for VerifyError {
    fn from(rejection: TokenRejection) -> Self {
        Self::Rejected(rejection)
    }
}
