//! Who asks, as a request says it: a principal that is named, a token that is verified, or nobody.

use std::sync::Arc;
use std::time::SystemTime;

use super::call::Call;
use super::from_proto;
use super::pb;
use super::status::Rejection;
use crate::config::api::RequestRules;
use crate::pdp::query::{Claimed, InvalidQuery, Problem, Uid};
use crate::pip::{KeyWait, Moment, Patience, Refusal, Tokens, Verdict};
use crate::readiness::ReadinessReader;

/// Who asks, and what a token says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) principal: Uid,
    pub(super) claimed: Option<Arc<Claimed>>,
}

/// Who asks, or what it takes to know.
#[derive(Debug)]
pub(super) enum Identified {
    Asker(Asker),
    /// The key of the token may be on its way.
    Wait(KeyWait),
}

/// Who asks by `request`, which is taken from it; a token is verified or refused, never passed over, the empty one too.
pub(super) fn identify(
    request: &mut pb::AuthorizeRequest,
    rules: &RequestRules,
    tokens: Option<&Tokens>,
    patience: Patience,
) -> Result<Identified, Rejection> {
    use pb::authorize_request::Identity;
    let principal = match request.identity.take() {
        Some(Identity::Principal(principal)) => {
            from_proto::uid(principal, None).map_err(|error| error.within("principal"))?
        }
        Some(Identity::PrincipalToken(token)) => {
            let Some(tokens) = tokens else {
                return Err(Rejection::Token(Refusal::not_configured()));
            };
            return match tokens.verify(&token, Moment::from(SystemTime::now()), patience) {
                Verdict::Identified(identified) => Ok(Identified::Asker(Asker {
                    principal: identified.principal.clone(),
                    claimed: Some(Arc::clone(&identified.claimed)),
                })),
                Verdict::Refused(refusal) => Err(Rejection::Token(refusal)),
                Verdict::Wait(wait) => Ok(Identified::Wait(wait)),
            };
        }
        None => rules
            .anonymous_principal
            .clone()
            .ok_or_else(|| InvalidQuery::field("principal", Problem::NoIdentity))?,
    };
    Ok(Identified::Asker(Asker {
        principal,
        claimed: None,
    }))
}

/// Waits for keys, and no longer than the caller does, nor when the service is about to end.
pub(super) async fn wait_for_keys(
    wait: KeyWait,
    call: &Call,
    mut draining: ReadinessReader,
) -> Result<(), Rejection> {
    tokio::select! {
        () = wait.wait() => Ok(()),
        () = draining.draining() => Err(Rejection::ShuttingDown),
        () = call.deadline.passed() => Err(Rejection::DeadlinePassed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_passed_over() {
        for token in ["", "x.y.z"] {
            let identity = pb::authorize_request::Identity::PrincipalToken(token.to_owned());
            let mut request = pb::AuthorizeRequest {
                identity: Some(identity),
                ..pb::AuthorizeRequest::default()
            };
            let rules = RequestRules {
                anonymous_principal: Some(Uid::new("User", "nobody")),
                max_request_entities: 2,
                max_values: 100_000,
                max_value_depth: 32,
            };
            let refused = identify(&mut request, &rules, None, Patience::Waits);
            assert_eq!(
                refused.unwrap_err(),
                Rejection::Token(Refusal::not_configured())
            );
        }
    }
}
