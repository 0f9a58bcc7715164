//! Tests the order of rejections, and the release of permits and memory, without a wire.

use std::sync::Arc;

use super::*;
use crate::api::auth::authenticator::ConnectionAuthenticator;
use crate::api::auth::caller::Denied;
use crate::api::auth::callers::Callers;
use crate::api::auth::peer::Peer;
use crate::api::decision::question::{Credential, Operation};
use crate::config::api::RequestRules;
use crate::engine::cache::CacheSettings;
use crate::pdp::answer::{Answer, Decision};
use crate::pdp::query::{InvalidQuery, Problem, Uid};
use crate::pdp::query_ref::{Fields, UidRef};
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::{Settings, compile};
use crate::pip::TokenRejection;
use crate::policy_store::snapshots;
use crate::readiness::Readiness;

type TestDecider = Decider<Arc<Answer>>;

fn decider(explain: bool) -> TestDecider {
    let (_, reader) = snapshots();
    let cache = CacheSettings {
        capacity_bytes: None,
    };
    Decider {
        engine: Arc::new(Engine::new(reader, cache)),
        tokens: None,
        rules: Arc::new(AuthorizationRules {
            request: RequestRules {
                anonymous_principal: Some(Uid::new("User", "nobody")),
                max_request_entities: 2,
                max_values: 100,
                max_value_depth: 8,
            },
            max_batch_items: 1,
            explain,
        }),
        memory: MemoryBudget::new(100, None, None),
        large_requests: LargeRequestLimiter::new(),
        readiness: Readiness::new().reader(),
        metrics: None,
    }
}

fn snapshot() -> Snapshot {
    let text = "permit(principal, action, resource);";
    let file = SourceFile::in_memory("some.cedar".to_owned(), FileKind::Policies, text.into());
    let sources = Sources::new(vec![file], Vec::new(), Vec::new());
    compile(&sources, &Settings::default()).unwrap()
}

/// A call whose caller has all rights.
fn permitted_call() -> Call {
    let caller = ConnectionAuthenticator::new(Arc::new(Callers::Anyone), Peer::default());
    Call {
        caller: caller.authenticate(&http::HeaderMap::new()).unwrap(),
        ..Call::default()
    }
}

fn uid<'a>(type_name: &'a str, id: &'a str) -> UidRef<'a> {
    UidRef { type_name, id }
}

fn operation<'a>() -> Operation<'a> {
    Operation {
        action: uid("Action", "read"),
        resource: uid("Doc", "1"),
        context: Fields::from_entries(Vec::new()).unwrap(),
        entities: Vec::new(),
    }
}

fn missing(field: &str) -> InvalidQuery {
    InvalidQuery::field(field, Problem::Missing)
}

fn decide(
    decider: &TestDecider,
    call: &Call,
    question: Question<'_>,
) -> Result<Decision, Rejection> {
    let permit = decider.engine.try_log_permit().unwrap();
    let call = (call, Method::Authorize);
    match decider.decide(&snapshot(), question, call, &permit, KeyMiss::Fail) {
        Outcome::Done(outcome) => outcome.map(|answer| answer.answer.decision),
        Outcome::Wait(_) => panic!("no token has a key to wait for"),
    }
}

#[test]
fn faults_are_reported_in_order() {
    // The caller's rights, then the explanation, then the credential, then the operation.
    let faulty = |credential| Question {
        credential,
        explain: true,
        operation: Err(missing("action").into()),
    };
    let principal = || Credential::Principal(Err(missing("principal")));
    let no_rights = decide(&decider(false), &Call::default(), faulty(principal()));
    assert!(
        matches!(
            no_rights,
            Err(Rejection::Caller(
                Denied::UnknownCaller | Denied::MissingRight(_)
            ))
        ),
        "{no_rights:?}"
    );
    let call = permitted_call();
    assert_eq!(
        decide(&decider(false), &call, faulty(principal())),
        Err(Rejection::ExplainDisabled)
    );
    assert_eq!(
        decide(&decider(true), &call, faulty(principal())),
        Err(missing("principal").into())
    );
    assert_eq!(
        decide(&decider(true), &call, faulty(Credential::Token(""))),
        Err(Rejection::Token(TokenRejection::not_configured()))
    );
    assert_eq!(
        decide(&decider(true), &call, faulty(Credential::Anonymous)),
        Err(missing("action").into())
    );
    let complete = Question {
        credential: Credential::Anonymous,
        explain: false,
        operation: Ok(operation()),
    };
    assert_eq!(
        decide(&decider(false), &call, complete),
        Ok(Decision::Allow)
    );
}

#[test]
fn cached_path_rejects_nothing_itself() {
    // Every fault must reach `decide`, which logs and counts it.
    let (decider, call) = (decider(false), permitted_call());
    let question = |credential, explain, operation| Question {
        credential,
        explain,
        operation,
    };
    let alice = Credential::Principal(Ok(uid("User", "alice")));
    let is_identified = |question: Question<'_>, call: &Call| {
        let identified = decider.identify_cached(question, call);
        identified.is_some()
    };
    let plain = || question(alice.clone(), false, Ok(operation()));
    assert!(is_identified(plain(), &call));
    assert!(!is_identified(plain(), &Call::default()));
    for faulty in [
        question(alice.clone(), true, Ok(operation())),
        question(alice.clone(), false, Err(missing("action").into())),
        question(
            Credential::Principal(Err(missing("principal"))),
            false,
            Ok(operation()),
        ),
        question(Credential::Token("x.y.z"), false, Ok(operation())),
    ] {
        assert!(!is_identified(faulty, &call));
    }
}

#[tokio::test]
async fn malformed_message_fails_the_whole_call() {
    let (decider, call, snapshot) = (decider(false), permitted_call(), snapshot());
    let permits = decider.permits(&call, 10).await.unwrap();
    let parse = || Err::<crate::api::grpc::decode::Request<'_>, _>(ParseFault::Call("bad"));
    let origin = (&call, Method::Authorize);
    let outcome = decider
        .decide_waiting(&snapshot, (parse, 10), origin, permits)
        .await;
    assert_eq!(outcome.unwrap_err(), "bad");
}

#[tokio::test]
async fn drain_ends_the_wait_for_a_permit() {
    let readiness = Readiness::new();
    let decider = TestDecider {
        readiness: readiness.reader(),
        ..decider(false)
    };
    readiness.drain();
    let never = std::future::pending::<()>();
    let waited = decider.wait_in_time(never, &permitted_call(), 60).await;
    assert_eq!(waited, Err(Rejection::ShuttingDown));
    // The reservation for the wait was released.
    assert_eq!(decider.memory.reserved(), 0);
    let never = std::future::pending::<()>();
    let waited = decider.wait_in_time(never, &permitted_call(), 101).await;
    assert_eq!(waited, Err(Rejection::BuffersFull));
}
