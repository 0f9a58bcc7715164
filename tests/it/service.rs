//! The running service through real clients: its decisions, its status, its doors, its end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use cedar_pdp::api::pb;
use pb::authorize_request::Identity;
use pb::batch_authorize_result::Result as BatchResult;
use pb::stream_authorize_response::Result as StreamResult;
use pb::value::Kind;
use crate::support::{
    PATIENCE, Said, Server, command, parse_uid, policy_directory, request, revision,
    shipped_policies, uid, value, wait_for_status,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::{RpcStatusExt as _, StatusExt as _};

const ALL_ARE_PERMITTED: &str = "permit (principal, action, resource);";

fn question() -> pb::AuthorizeRequest {
    request(r#"User::"alice""#, r#"Action::"read""#, r#"Doc::"1""#)
}

fn context(fields: &[(&str, Kind)]) -> BTreeMap<String, pb::Value> {
    fields
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), value(kind.clone())))
        .collect()
}

async fn authorize(
    server: &Server,
    request: pb::AuthorizeRequest,
) -> Result<pb::AuthorizeResponse, Status> {
    let mut client = server.authorization().await;
    client
        .authorize(request)
        .await
        .map(tonic::Response::into_inner)
}

/// The field that an INVALID_ARGUMENT names.
#[track_caller]
fn field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("a BadRequest");
    details.field_violations[0].field.clone()
}

/// The next message of a stream, within reason.
async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await;
    next.expect("the stream goes on or ends in time")
}

// ---------------------------------------------------------------- Authorize

/// principal, action, resource, context, whether it is allowed, determining policies
type Row = (
    &'static str,
    &'static str,
    &'static str,
    BTreeMap<String, pb::Value>,
    bool,
    &'static [&'static str],
);

fn user(id: &str) -> String {
    format!("Platform::User::{id:?}")
}

fn example(principal: &str, action: &str, resource: &str) -> pb::AuthorizeRequest {
    let principal = if principal.contains("::") {
        principal.to_owned()
    } else {
        user(principal)
    };
    let kind = match resource.split('-').next() {
        Some("INV") => "Invoice",
        Some("CL") => "CreditLine",
        Some("DOC") => "Document",
        _ => "PriceList",
    };
    request(
        &principal,
        &format!("Invoicing::Action::{action:?}"),
        &format!("Invoicing::{kind}::{resource:?}"),
    )
}

fn morning() -> Kind {
    Kind::Datetime("2026-03-02T09:30:00Z".to_owned())
}

fn office() -> BTreeMap<String, pb::Value> {
    context(&[
        ("ip", Kind::Ip("203.0.113.42".to_owned())),
        ("now", morning()),
    ])
}

/// The table of `policies/README.md`.
fn table() -> Vec<Row> {
    let none = BTreeMap::new;
    let jonas = r#"Support::Agent::"jonas.weber""#;
    let draw = context(&[
        ("amount", Kind::Decimal("25000.00".to_owned())),
        ("now", morning()),
    ]);
    let mfa = context(&[("mfa", Kind::Bool(true))]);
    vec![
        (
            "felix.brandt",
            "readInvoice",
            "INV-2041",
            none(),
            true,
            &["invoices.parties-read"],
        ),
        (
            "felix.brandt",
            "readInvoice",
            "INV-2044",
            none(),
            false,
            &[],
        ),
        (
            "owen.price",
            "readInvoice",
            "INV-2041",
            none(),
            true,
            &["invoices.group-reads"],
        ),
        (
            "ines.varga",
            "approveInvoice",
            "INV-2041",
            none(),
            true,
            &["invoices.management-approves"],
        ),
        (
            "ines.varga",
            "approveInvoice",
            "INV-2042",
            none(),
            false,
            &[],
        ),
        (
            "tobias.lindqvist",
            "approveInvoice",
            "INV-2042",
            none(),
            true,
            &["invoices.management-approves"],
        ),
        (
            "marta.okafor",
            "approveInvoice",
            "INV-2043",
            none(),
            false,
            &["safety.large-sums-need-mfa"],
        ),
        (
            "marta.okafor",
            "approveInvoice",
            "INV-2043",
            mfa,
            true,
            &["invoices.management-approves"],
        ),
        (
            "rufus.tan",
            "approveInvoice",
            "INV-3007",
            none(),
            false,
            &["safety.frozen-tenant"],
        ),
        (
            "pia.sorensen",
            "readInvoice",
            "INV-2041",
            none(),
            false,
            &["safety.suspended-user"],
        ),
        (
            r#"Platform::Visitor::"anonymous""#,
            "readPriceList",
            "2026-standard",
            none(),
            true,
            &["public.price-list"],
        ),
        (
            "leo.marchetti",
            "readDocument",
            "DOC-611",
            none(),
            true,
            &["share.spring-room.lanternfield-underwriters"],
        ),
        (
            "tobias.lindqvist",
            "drawCredit",
            "CL-7",
            draw,
            true,
            &["credit-lines.treasurer-draws"],
        ),
        (
            jonas,
            "readInvoice",
            "INV-2041",
            office(),
            true,
            &["support.granted-reads"],
        ),
        (
            jonas,
            "readInvoice",
            "INV-2041",
            none(),
            false,
            &["support.office-network-only"],
        ),
    ]
}

#[tokio::test]
async fn the_example_answers_as_its_table_says_in_every_way_of_asking() {
    let anonymous = r#"Platform::Visitor::"anonymous""#;
    let server = Server::start(&shipped_policies(), &["--anonymous-principal", anonymous]);
    let mut client = server.authorization().await;
    let requests: Vec<_> = table()
        .into_iter()
        .map(
            |(principal, action, resource, context, ..)| pb::AuthorizeRequest {
                context,
                ..example(principal, action, resource)
            },
        )
        .collect();
    let batch = pb::BatchAuthorizeRequest {
        requests: requests.clone(),
    };
    let batch = client.batch_authorize(batch).await.unwrap().into_inner();
    let items: Vec<_> = requests
        .iter()
        .zip(0..)
        .map(|(request, correlation_id)| pb::StreamAuthorizeRequest {
            correlation_id,
            request: Some(request.clone()),
        })
        .collect();
    let mut stream = client
        .stream_authorize(tokio_stream::iter(items))
        .await
        .unwrap()
        .into_inner();
    let mut streamed = BTreeMap::new();
    while let Some(answer) = next(&mut stream).await.unwrap() {
        assert!(
            streamed
                .insert(answer.correlation_id, answer.result.unwrap())
                .is_none()
        );
    }
    for (index, (row, request)) in table().into_iter().zip(requests).enumerate() {
        let (principal, _, resource, _, is_allow, determining) = row;
        let answer = client.authorize(request).await.unwrap().into_inner();
        assert!(answer.errors.is_empty() && answer.explanation.is_none());
        assert_eq!(answer.decision_id, "");
        assert_eq!(
            batch.results[index].result,
            Some(BatchResult::Response(answer.clone()))
        );
        assert_eq!(
            streamed[&(index as u64)],
            StreamResult::Response(answer.clone())
        );
        let said = Said::from(answer);
        let asked = format!("{principal} {resource}");
        assert_eq!(
            (said.is_allow, &*said.determining),
            (is_allow, &*strings(determining)),
            "{asked}"
        );
        assert_eq!(said.revision, batch.revision);
    }
    let unidentified = pb::AuthorizeRequest {
        identity: None,
        ..example("nobody", "readPriceList", "2026-standard")
    };
    let answer = client.authorize(unidentified).await.unwrap().into_inner();
    assert_eq!(answer.decision(), pb::Decision::Allow);
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn a_request_without_identity_is_an_error_unless_somebody_stands_for_it() {
    let server = Server::start(&shipped_policies(), &[]);
    let unidentified = pb::AuthorizeRequest {
        identity: None,
        ..example("nobody", "readPriceList", "2026-standard")
    };
    assert_eq!(
        field(&authorize(&server, unidentified).await.unwrap_err()),
        "principal"
    );
}

#[tokio::test]
async fn the_example_explains_a_determining_policy() {
    let server = Server::start(&shipped_policies(), &[]);
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..example("leo.marchetti", "readDocument", "DOC-611")
    };
    let answer = authorize(&server, explained).await.unwrap();
    let explanation = answer.explanation.unwrap();
    assert_eq!(
        (explanation.unsatisfied.len(), explanation.unsatisfied_total),
        (0, 0)
    );
    let [policy] = &*explanation.determining else {
        panic!("{explanation:?}");
    };
    assert_eq!(
        policy.policy_id,
        "share.spring-room.lanternfield-underwriters"
    );
    assert_eq!(policy.template_id, "sharing.reader");
    assert_eq!(policy.effect(), pb::Effect::Permit);
    assert_eq!(policy.position.as_ref().unwrap().file, "sharing.links.json");
    assert_eq!(
        policy.annotations["description"],
        "The people a document or deal room is shared with read it"
    );
    assert_eq!(policy.annotations["id"], "sharing.reader");
}

#[tokio::test]
async fn the_example_explains_why_not() {
    let server = Server::start(&shipped_policies(), &[]);
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..example("ines.varga", "approveInvoice", "INV-2042")
    };
    let answer = authorize(&server, explained).await.unwrap();
    assert_eq!(answer.decision(), pb::Decision::Deny);
    let explanation = answer.explanation.unwrap();
    assert!(explanation.determining.is_empty());
    assert_eq!(explanation.unsatisfied_total, 1);
    let [unsatisfied] = &*explanation.unsatisfied else {
        panic!("{explanation:?}");
    };
    let policy = unsatisfied.policy.as_ref().unwrap();
    assert_eq!(policy.policy_id, "invoices.management-approves");
    assert_eq!(policy.effect(), pb::Effect::Permit);
    assert_eq!(unsatisfied.error, "");
    let clause = unsatisfied.clause.as_ref().unwrap();
    assert_eq!(clause.kind(), pb::condition_clause::Kind::When);
    assert!(clause.text.starts_with("when\n{"), "{}", clause.text);
    assert!(clause.text.ends_with('}'), "{}", clause.text);
    assert_eq!(
        clause.operand,
        "resource.amount.lessThanOrEqual(principal.approvalLimit)"
    );
    let position = clause.position.as_ref().unwrap();
    assert_eq!(position.file, "invoices.cedar");
    let text = fs::read_to_string(shipped_policies().join("invoices.cedar")).unwrap();
    let line = text.lines().nth(position.line as usize - 1).unwrap();
    assert!(
        line[position.column as usize - 1..].starts_with(&clause.operand),
        "{line}"
    );
}

#[tokio::test]
async fn an_explanation_tells_what_failed_and_how_many_more_permits_came_close() {
    let mut policies = String::new();
    for number in 0..25 {
        policies.push_str(&format!(
            "@id(\"p{number:02}\")\npermit (principal, action, resource) unless {{ context.missing == {number} }};\n"
        ));
    }
    let directory = policy_directory(&[("a.cedar", &policies)]);
    let server = Server::start(directory.path(), &[]);
    let explained = pb::AuthorizeRequest {
        explain: true,
        ..question()
    };
    let answer = authorize(&server, explained).await.unwrap();
    assert_eq!(answer.errors.len(), 25);
    let explanation = answer.explanation.unwrap();
    assert_eq!(explanation.unsatisfied_total, 25);
    assert_eq!(explanation.unsatisfied.len(), 20);
    for (number, unsatisfied) in explanation.unsatisfied.iter().enumerate() {
        assert_eq!(
            unsatisfied.policy.as_ref().unwrap().policy_id,
            format!("p{number:02}")
        );
        let clause = unsatisfied.clause.as_ref().unwrap();
        assert_eq!(clause.kind(), pb::condition_clause::Kind::Unless);
        assert!(
            unsatisfied.error.contains("missing"),
            "{}",
            unsatisfied.error
        );
    }
}

#[tokio::test]
async fn a_request_that_does_not_fit_the_schema_names_the_field() {
    let server = Server::start(&shipped_policies(), &[]);
    let good = || example("ines.varga", "approveInvoice", "INV-2041");
    let unknown_action = pb::AuthorizeRequest {
        action: Some(uid("Invoicing::Action", "burn")),
        ..good()
    };
    let unset_id = pb::AuthorizeRequest {
        resource: Some(pb::EntityUid {
            r#type: "Invoicing::Invoice".into(),
            id: None,
        }),
        ..good()
    };
    let empty_type = pb::AuthorizeRequest {
        identity: Some(Identity::Principal(uid("", "ines.varga"))),
        ..good()
    };
    let no_kind = pb::AuthorizeRequest {
        context: BTreeMap::from([("mfa".into(), pb::Value { kind: None })]),
        ..good()
    };
    let no_resource = pb::AuthorizeRequest {
        resource: None,
        ..good()
    };
    for (request, named) in [
        (unknown_action, "action"),
        (unset_id, "resource.id"),
        (empty_type, "principal.type"),
        (no_kind, r#"context["mfa"]"#),
        (no_resource, "resource"),
    ] {
        assert_eq!(
            field(&authorize(&server, request).await.unwrap_err()),
            named
        );
    }
    let ill_typed = pb::AuthorizeRequest {
        context: context(&[("mfa", Kind::Long(1))]),
        ..good()
    };
    let named = field(&authorize(&server, ill_typed).await.unwrap_err());
    assert!(named.starts_with("context"), "{named}");
}

#[tokio::test]
async fn an_empty_action_type_means_action_and_an_empty_id_is_an_id() {
    let policies = r#"permit (principal == User::"", action == Action::"read", resource);"#;
    let directory = policy_directory(&[("a.cedar", policies)]);
    let server = Server::start(directory.path(), &[]);
    let answer = authorize(
        &server,
        pb::AuthorizeRequest {
            identity: Some(Identity::Principal(uid("User", ""))),
            action: Some(uid("", "read")),
            ..question()
        },
    );
    assert_eq!(answer.await.unwrap().decision(), pb::Decision::Allow);
}

#[tokio::test]
async fn a_token_is_refused_while_no_issuer_is_configured() {
    let anonymous = r#"Platform::Visitor::"anonymous""#;
    let server = Server::start(&shipped_policies(), &["--anonymous-principal", anonymous]);
    for token in ["", "eyJhbGciOiJub25lIn0.e30."] {
        let request = pb::AuthorizeRequest {
            identity: Some(Identity::PrincipalToken(token.to_owned())),
            ..example("nobody", "readPriceList", "2026-standard")
        };
        let status = authorize(&server, request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(
            (&*info.reason, &*info.domain),
            ("TOKENS_NOT_CONFIGURED", "cedar-pdp")
        );
    }
}

#[tokio::test]
async fn a_forbid_that_fails_is_skipped_or_denies_as_the_operator_says() {
    let policies = "@id(\"all\")\npermit (principal, action, resource);\n\
         @id(\"suspended\")\nforbid (principal, action, resource) when { principal.suspended };\n\
         @id(\"fails\")\npermit (principal, action, resource) when { principal.age > 17 };\n";
    let directory = policy_directory(&[("a.cedar", policies)]);
    for (mode, is_allow, determining) in [
        ("skip", true, &["all"][..]),
        ("deny", false, &["suspended"][..]),
    ] {
        let server = Server::start(directory.path(), &["--on-policy-error", mode]);
        let answer = authorize(&server, question()).await.unwrap();
        let erring: Vec<_> = answer
            .errors
            .iter()
            .map(|error| error.policy_id.clone())
            .collect();
        assert_eq!(erring, ["fails", "suspended"]);
        assert!(answer.errors.iter().all(|error| !error.message.is_empty()));
        let said = Said::from(answer);
        assert_eq!(
            (said.is_allow, said.determining),
            (is_allow, strings(determining))
        );
    }
}

#[tokio::test]
async fn a_caller_sends_only_entities_of_the_types_that_the_operator_lists() {
    let policies = "permit (principal, action, resource) when { resource.is_open };";
    let directory = policy_directory(&[("a.cedar", policies)]);
    let open = |type_name: &str| pb::Entity {
        uid: Some(uid(type_name, "1")),
        attributes: context(&[("is_open", Kind::Bool(true))]),
        ..pb::Entity::default()
    };
    let sending = |entities: &[pb::Entity]| pb::AuthorizeRequest {
        entities: entities.to_vec(),
        ..question()
    };
    let server = Server::start(
        directory.path(),
        &["--request-entity-types", "Doc,Shop::Order"],
    );
    let answer = authorize(&server, sending(&[open("Doc"), open("Shop::Order")]))
        .await
        .unwrap();
    assert_eq!(answer.decision(), pb::Decision::Allow);
    let status = authorize(&server, sending(&[open("Doc"), open("User")]))
        .await
        .unwrap_err();
    let named = field(&status);
    assert!(named.starts_with("entities[1]"), "{named}");

    let server = Server::start(directory.path(), &["--request-entity-types", ""]);
    let status = authorize(&server, sending(&[open("Doc")]))
        .await
        .unwrap_err();
    assert!(field(&status).starts_with("entities[0]"));
    assert_eq!(
        authorize(&server, question()).await.unwrap().decision(),
        pb::Decision::Deny
    );

    let server = Server::start(directory.path(), &[]);
    let answer = authorize(&server, sending(&[open("Doc"), open("User")]))
        .await
        .unwrap();
    assert_eq!(answer.decision(), pb::Decision::Allow);
}

#[tokio::test]
async fn what_the_schema_rejects_is_refused_or_loaded_as_the_validation_mode_says() {
    let schema =
        "entity User; entity Doc; action read appliesTo { principal: User, resource: Doc };";
    let bad = "permit (principal, action, resource) when { principal.name == 1 };\n\
         @id(\"good\")\npermit (principal, action, resource);";
    let directory = policy_directory(&[("a.cedarschema", schema), ("a.cedar", bad)]);
    let refused = serve(directory.path(), &["127.0.0.1:0"], &[]);
    assert_eq!(refused.status.code(), Some(2));

    let unknown = || pb::AuthorizeRequest {
        action: Some(uid("Action", "burn")),
        ..question()
    };
    let server = Server::start(directory.path(), &["--validation", "warn"]);
    let status = wait_for_status(&server, "the status", |_| true).await;
    assert!(
        status
            .warnings
            .iter()
            .any(|warning| warning.file == "a.cedar" && warning.line == 1)
    );
    assert_eq!(
        authorize(&server, question()).await.unwrap().decision(),
        pb::Decision::Allow
    );
    assert_eq!(
        field(&authorize(&server, unknown()).await.unwrap_err()),
        "action"
    );

    let server = Server::start(directory.path(), &["--validation", "off"]);
    assert_eq!(
        authorize(&server, question()).await.unwrap().decision(),
        pb::Decision::Allow
    );
    assert_eq!(
        authorize(&server, unknown()).await.unwrap().decision(),
        pb::Decision::Allow
    );
}

#[tokio::test]
async fn a_service_without_a_schema_says_that_it_validates_nothing() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let status = wait_for_status(&server, "the status", |_| true).await;
    assert!(
        status
            .warnings
            .iter()
            .any(|warning| warning.message.contains("schema"))
    );
    server.wait_for_log("no schema");
}

// ---------------------------------------------------------------- BatchAuthorize

#[tokio::test]
async fn a_batch_keeps_the_order_and_an_item_that_fails_leaves_the_others_alone() {
    let server = Server::start(&shipped_policies(), &[]);
    let mut client = server.authorization().await;
    let invalid = pb::AuthorizeRequest {
        context: context(&[("ip", Kind::Ip("300.1.1.1".to_owned()))]),
        ..example("felix.brandt", "readInvoice", "INV-2041")
    };
    let token = pb::AuthorizeRequest {
        identity: Some(Identity::PrincipalToken("x".to_owned())),
        ..example("felix.brandt", "readInvoice", "INV-2041")
    };
    let requests = vec![
        example("felix.brandt", "readInvoice", "INV-2041"),
        invalid,
        example("felix.brandt", "readInvoice", "INV-2044"),
        token,
        pb::AuthorizeRequest::default(),
    ];
    let batch = pb::BatchAuthorizeRequest { requests };
    let answered = client.batch_authorize(batch).await.unwrap().into_inner();
    let decisions: Vec<_> = answered
        .results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            BatchResult::Response(response) => {
                assert_eq!(response.revision, answered.revision);
                Ok(response.decision())
            }
            BatchResult::Error(error) => {
                assert!(!error.message.is_empty());
                let field = error
                    .get_details_bad_request()
                    .map(|details| details.field_violations[0].field.clone());
                let reason = error.get_details_error_info().map(|info| info.reason);
                Err((Code::from(error.code), field.or(reason)))
            }
        })
        .collect();
    let invalid = |field: &str| Err((Code::InvalidArgument, Some(field.to_owned())));
    assert_eq!(
        decisions,
        [
            Ok(pb::Decision::Allow),
            invalid(r#"context["ip"]"#),
            Ok(pb::Decision::Deny),
            Err((
                Code::Unauthenticated,
                Some("TOKENS_NOT_CONFIGURED".to_owned())
            )),
            invalid("principal"),
        ]
    );
}

/// Remembered or not, next to one another or far apart, and whatever stands between them.
#[tokio::test]
async fn an_item_of_a_long_batch_is_answered_as_alone() {
    let policy =
        r#"permit(principal, action, resource) when { context.n == 7 || principal == User::"3" };"#;
    let directory = policy_directory(&[("a.cedar", policy)]);
    let server = Server::start(directory.path(), &[]);
    let mut client = server.authorization().await;
    // Some are twice in it, some cannot be decided, and of some a part is no plain request's.
    let item = |n: i64| {
        let user = format!(r#"User::"{}""#, n % 40);
        let mut item = request(&user, r#"Action::"read""#, r#"Doc::"1""#);
        item.context = context(&[("n", Kind::Long(n % 90))]);
        match n {
            250 => item.resource = None,
            450 => item.context = context(&[("n", Kind::Ip("300.1.1.1".to_owned()))]),
            550 => item.identity = Some(Identity::PrincipalToken("x".to_owned())),
            _ => {}
        }
        item
    };
    // On a server of its own, so that nothing is remembered here on its account.
    let apart = Server::start(directory.path(), &["--cache-bytes", "0"]);
    let mut alone = apart.authorization().await;
    let mut wanted = Vec::new();
    for n in 0..600 {
        wanted.push(match alone.authorize(item(n)).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err((i32::from(status.code()), status.message().to_owned())),
        });
        if n > 100 && n % 7 != 0 {
            let _remembered = client.authorize(item(n)).await;
        }
    }
    let batch = pb::BatchAuthorizeRequest {
        requests: (0..600).map(item).collect(),
    };
    for round in ["some are remembered", "all are"] {
        let answered = client.batch_authorize(batch.clone()).await.unwrap();
        let results = answered.into_inner().results;
        assert_eq!(results.len(), wanted.len());
        for (n, (result, wanted)) in results.into_iter().zip(&wanted).enumerate() {
            let got = match result.result.unwrap() {
                BatchResult::Response(response) => Ok(response),
                BatchResult::Error(error) => Err((error.code, error.message)),
            };
            assert_eq!(got, *wanted, "item {n} when {round}");
        }
    }
    let mut store = server.policy_store().await;
    let told = store.get_status(pb::GetStatusRequest {}).await.unwrap();
    let cache = told.into_inner().cache.unwrap();
    // Each is looked for once, however it is found: 1,200 items and 428 single ones, but for those two
    // in each round and alone that never come to a query.
    assert_eq!(cache.hits + cache.misses, 1_200 + 428 - 3 * 2, "{cache:?}");
}

#[tokio::test]
async fn an_empty_batch_is_answered_with_the_revision() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let mut client = server.authorization().await;
    let answered = client
        .batch_authorize(pb::BatchAuthorizeRequest::default())
        .await;
    let answered = answered.unwrap().into_inner();
    assert_eq!(
        answered.revision,
        revision(&[("a.cedar", ALL_ARE_PERMITTED)])
    );
    assert!(answered.results.is_empty());
}

#[tokio::test]
async fn a_batch_with_too_many_items_or_too_many_bytes_is_refused_whole() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let limits = ["--max-batch-items", "10", "--max-message-bytes", "20000"];
    let server = Server::start(directory.path(), &limits);
    let mut client = server.authorization().await;
    let mut ask = async |count: usize, id: &str| {
        let request = pb::AuthorizeRequest {
            identity: Some(Identity::Principal(uid("User", id))),
            ..question()
        };
        let batch = pb::BatchAuthorizeRequest {
            requests: vec![request; count],
        };
        client
            .batch_authorize(batch)
            .await
            .map(|answered| answered.into_inner().results.len())
    };
    assert_eq!(ask(10, "alice").await.unwrap(), 10);
    assert_eq!(
        ask(11, "alice").await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    assert_eq!(
        ask(1, &"a".repeat(30_000)).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
    assert_eq!(ask(10, "alice").await.unwrap(), 10);
}

// ---------------------------------------------------------------- StreamAuthorize

/// A stream and the end that sends on it.
async fn open_stream(
    server: &Server,
) -> (
    mpsc::Sender<pb::StreamAuthorizeRequest>,
    Streaming<pb::StreamAuthorizeResponse>,
) {
    let (items, sent) = mpsc::channel(8);
    let mut client = server.authorization().await;
    let answers = client
        .stream_authorize(ReceiverStream::new(sent))
        .await
        .unwrap();
    (items, answers.into_inner())
}

fn item(correlation_id: u64, request: Option<pb::AuthorizeRequest>) -> pb::StreamAuthorizeRequest {
    pb::StreamAuthorizeRequest {
        correlation_id,
        request,
    }
}

#[tokio::test]
async fn a_stream_answers_by_correlation_id_and_ends_well_after_half_close() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (items, mut answers) = open_stream(&server).await;
    // The caller's numbers mean nothing to the service: any will do, twice the same too.
    let ids = [7, 0, u64::MAX, 7];
    for id in ids {
        items.send(item(id, Some(question()))).await.unwrap();
    }
    drop(items);
    let mut answered = Vec::new();
    while let Some(answer) = next(&mut answers).await.unwrap() {
        assert!(matches!(answer.result, Some(StreamResult::Response(_))));
        answered.push(answer.correlation_id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [0, 7, 7, u64::MAX]);
}

#[tokio::test]
async fn an_item_that_fails_leaves_the_stream_open() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (items, mut answers) = open_stream(&server).await;
    items.send(item(1, None)).await.unwrap();
    let answer = next(&mut answers).await.unwrap().unwrap();
    assert_eq!(answer.correlation_id, 1);
    let Some(StreamResult::Error(error)) = answer.result else {
        panic!("{answer:?}");
    };
    assert_eq!(Code::from(error.code), Code::InvalidArgument);
    let details = error.get_details_bad_request().unwrap();
    assert_eq!(details.field_violations[0].field, "principal");
    items.send(item(2, Some(question()))).await.unwrap();
    let answer = next(&mut answers).await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(StreamResult::Response(_))));
}

#[tokio::test]
async fn a_stream_sees_every_reload() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (items, mut answers) = open_stream(&server).await;
    let mut store = server.policy_store().await;
    for text in [ALL_ARE_PERMITTED, "forbid (principal, action, resource);"] {
        fs::write(directory.path().join("a.cedar"), text).unwrap();
        store.reload(pb::ReloadRequest {}).await.unwrap();
        items.send(item(1, Some(question()))).await.unwrap();
        let answer = next(&mut answers).await.unwrap().unwrap();
        let Some(StreamResult::Response(answer)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(answer.revision, revision(&[("a.cedar", text)]));
        assert_eq!(
            answer.decision() == pb::Decision::Allow,
            text == ALL_ARE_PERMITTED
        );
    }
}

// ---------------------------------------------------------------- Too many policies

/// Asks whether the user `id` may read.
fn of_user(id: &str) -> pb::AuthorizeRequest {
    request(&format!("User::{id:?}"), r#"Action::"read""#, r#"Doc::"1""#)
}

#[tokio::test]
async fn a_request_that_more_policies_match_than_may_is_refused_and_no_other_is() {
    let to = |id: &str, count: usize| {
        format!("permit (principal == User::{id:?}, action, resource);\n").repeat(count)
    };
    let policies = [ALL_ARE_PERMITTED, "\n", &to("few", 4), &to("crowd", 6)].concat();
    let directory = policy_directory(&[("a.cedar", &policies)]);
    let server = Server::start(directory.path(), &["--max-candidates", "5"]);
    server.wait_for_log("7 policies, `a.cedar#10` among them, may match one and the same request");
    server.wait_for_log("raise `--max-candidates`");
    let told = "more than 5 policies match this principal, action and resource; `max_candidates` \
                allows no more";

    // Five match the few, which is as many as may.
    for (id, determining) in [("alice", 1), ("few", 5)] {
        let answer = authorize(&server, of_user(id)).await.unwrap();
        assert_eq!(answer.decision(), pb::Decision::Allow);
        assert_eq!(answer.determining_policies.len(), determining, "{answer:?}");
    }
    for explain in [false, true] {
        let request = pb::AuthorizeRequest {
            explain,
            ..of_user("crowd")
        };
        // What is refused is not remembered as anything else.
        for _ in 0..2 {
            let refused = authorize(&server, request.clone()).await.unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
            assert_eq!(refused.message(), told);
        }

        let mut client = server.authorization().await;
        let requests = vec![of_user("few"), request.clone(), of_user("alice")];
        let batch = pb::BatchAuthorizeRequest { requests };
        let answered = client.batch_authorize(batch).await.unwrap().into_inner();
        let results: Vec<_> = answered
            .results
            .into_iter()
            .map(|result| result.result.unwrap())
            .collect();
        let [
            BatchResult::Response(few),
            BatchResult::Error(refused),
            BatchResult::Response(alice),
        ] = &results[..]
        else {
            panic!("{results:?}");
        };
        assert_eq!(few.decision(), pb::Decision::Allow);
        assert_eq!(alice.decision(), pb::Decision::Allow);
        assert_eq!(Code::from(refused.code), Code::ResourceExhausted);
        assert_eq!(refused.message, told);

        let (items, mut answers) = open_stream(&server).await;
        for (id, request) in [(1, request), (2, of_user("few"))] {
            items.send(item(id, Some(request))).await.unwrap();
        }
        let answer = next(&mut answers).await.unwrap().unwrap();
        assert_eq!(answer.correlation_id, 1);
        let Some(StreamResult::Error(refused)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(Code::from(refused.code), Code::ResourceExhausted);
        assert_eq!(refused.message, told);
        let answer = next(&mut answers).await.unwrap().unwrap();
        assert_eq!(answer.correlation_id, 2);
        let Some(StreamResult::Response(few)) = answer.result else {
            panic!("{answer:?}");
        };
        assert_eq!(few.decision(), pb::Decision::Allow);
    }
}

// ---------------------------------------------------------------- PolicyStoreService

#[tokio::test]
async fn the_status_counts_what_is_in_force() {
    let server = Server::start(&shipped_policies(), &[]);
    let mut store = server.policy_store().await;
    let told = store
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let status = told.status.unwrap();
    assert_eq!(
        (status.policies, status.templates, status.links),
        (15, 1, 3)
    );
    assert!(status.entities > 20);
    assert!(status.refused.is_none() && status.loaded_at.is_some());
    assert_eq!(status.warnings, []);
    assert_eq!(told.reloads.unwrap().reloaded, 1);
    let mut watch = store
        .watch_status(pb::WatchStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        next(&mut watch).await.unwrap().unwrap().status.unwrap(),
        status
    );
}

#[tokio::test]
async fn policies_are_listed_by_page_and_a_token_belongs_to_a_revision() {
    let text = |ids: &[&str]| -> String {
        ids.iter()
            .map(|id| format!("@id(\"{id}\")\n{ALL_ARE_PERMITTED}\n"))
            .collect()
    };
    let template = "@id(\"t\")\npermit (principal == ?principal, action, resource);";
    let links = r#"[{"template_id": "t", "link_id": "z", "args": {"?principal": "User::\"a\""}}]"#;
    let directory = policy_directory(&[
        ("a.cedar", &text(&["e", "b", "d"])),
        ("below/b.cedar", &text(&["a", "c"])),
        ("t.cedar", template),
        ("t.links.json", links),
    ]);
    let server = Server::start(directory.path(), &[]);
    let mut store = server.policy_store().await;
    let mut list = async |page_size, page_token: &str| {
        let page_token = page_token.to_owned();
        let asked = pb::ListPoliciesRequest {
            page_size,
            page_token,
        };
        store
            .list_policies(asked)
            .await
            .map(tonic::Response::into_inner)
    };
    let all = list(0, "").await.unwrap();
    assert_eq!(all.next_page_token, "");
    let mut paged = Vec::new();
    let mut token = String::new();
    let mut tokens = Vec::new();
    loop {
        let page = list(4, &token).await.unwrap();
        assert!(page.policies.len() <= 4 && page.revision == all.revision);
        paged.extend(page.policies);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        tokens.push(token.clone());
    }
    assert_eq!(paged, all.policies);
    let mut ids: Vec<_> = paged.iter().map(|policy| policy.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "b", "c", "d", "e", "z"]);
    let found = |id: &str| paged.iter().find(|policy| policy.id == id).unwrap();
    assert_eq!((&*found("c").file, found("c").line), ("below/b.cedar", 3));
    assert_eq!(
        (&*found("z").file, &*found("z").template_id),
        ("t.links.json", "t")
    );
    assert_eq!(found("a").template_id, "");

    fs::write(directory.path().join("c.cedar"), ALL_ARE_PERMITTED).unwrap();
    server
        .policy_store()
        .await
        .reload(pb::ReloadRequest {})
        .await
        .unwrap();
    for token in [
        tokens[0].as_str(),
        "nonsense",
        &format!("{}.x", all.revision),
    ] {
        assert_eq!(field(&list(4, token).await.unwrap_err()), "page_token");
    }
}

#[tokio::test]
async fn the_cache_changes_its_figures_and_no_answer() {
    let cached = Server::start(&shipped_policies(), &[]);
    let uncached = Server::start(&shipped_policies(), &["--cache-bytes", "0"]);
    let mut answers = Vec::new();
    for server in [&cached, &uncached] {
        let mut client = server.authorization().await;
        let mut said = Vec::new();
        for _ in 0..3 {
            for (principal, action, resource, context, ..) in table() {
                let request = pb::AuthorizeRequest {
                    context,
                    explain: true,
                    ..example(principal, action, resource)
                };
                said.push(client.authorize(request).await.unwrap().into_inner());
            }
        }
        answers.push(said);
    }
    assert_eq!(answers[0], answers[1]);
    let figures = async |server: &Server| {
        let mut store = server.policy_store().await;
        store
            .get_status(pb::GetStatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .cache
            .unwrap()
    };
    let rows = table().len() as u64;
    let with = figures(&cached).await;
    assert_eq!((with.misses, with.hits), (rows, 2 * rows));
    assert!(with.capacity_bytes > 0 && with.bytes <= with.capacity_bytes);
    assert_eq!(figures(&uncached).await, pb::CacheFigures::default());
}

// ---------------------------------------------------------------- health, reflection

const HEALTH_NAMES: [&str; 3] = [
    "",
    "pdp.v1.AuthorizationService",
    "pdp.v1.PolicyStoreService",
];

async fn watch_health(server: &Server, service: &str) -> Streaming<HealthCheckResponse> {
    let mut health = HealthClient::new(server.channel().await);
    let service = service.to_owned();
    health
        .watch(HealthCheckRequest { service })
        .await
        .unwrap()
        .into_inner()
}

/// Waits until the health of `service` is `wanted`.
async fn wait_for_health(watch: &mut Streaming<HealthCheckResponse>, wanted: ServingStatus) {
    while next(watch)
        .await
        .unwrap()
        .expect("the watch goes on")
        .status()
        != wanted
    {}
}

#[tokio::test]
async fn health_is_told_of_three_names_and_of_no_other() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let mut health = HealthClient::new(server.channel().await);
    for service in HEALTH_NAMES {
        wait_for_health(
            &mut watch_health(&server, service).await,
            ServingStatus::Serving,
        )
        .await;
        let service = service.to_owned();
        let told = health
            .check(HealthCheckRequest { service })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(told.status(), ServingStatus::Serving);
    }
    let unknown = HealthCheckRequest {
        service: "pdp.v1.Nothing".to_owned(),
    };
    assert_eq!(
        health.check(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut watch = watch_health(&server, "pdp.v1.Nothing").await;
    let told = next(&mut watch).await.unwrap().unwrap();
    assert_eq!(told.status(), ServingStatus::ServiceUnknown);
}

#[tokio::test]
async fn health_follows_the_first_good_load_and_not_a_refused_reload() {
    let directory = policy_directory(&[("a.cedar", "permit (")]);
    let server = Server::start(directory.path(), &["--start-unready"]);
    let mut watches = Vec::new();
    for service in HEALTH_NAMES {
        let mut watch = watch_health(&server, service).await;
        assert_eq!(
            next(&mut watch).await.unwrap().unwrap().status(),
            ServingStatus::NotServing
        );
        watches.push(watch);
    }
    assert_eq!(
        authorize(&server, question()).await.unwrap_err().code(),
        Code::Unavailable
    );
    let mut client = server.authorization().await;
    let batch = client
        .batch_authorize(pb::BatchAuthorizeRequest::default())
        .await;
    assert_eq!(batch.unwrap_err().code(), Code::Unavailable);
    let mut store = server.policy_store().await;
    let told = store
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(told.status.unwrap().refused.is_some());
    let listed = store
        .list_policies(pb::ListPoliciesRequest::default())
        .await
        .unwrap();
    assert_eq!(listed.into_inner(), pb::ListPoliciesResponse::default());

    fs::write(directory.path().join("a.cedar"), ALL_ARE_PERMITTED).unwrap();
    for watch in &mut watches {
        wait_for_health(watch, ServingStatus::Serving).await;
    }
    assert_eq!(
        authorize(&server, question()).await.unwrap().decision(),
        pb::Decision::Allow
    );

    fs::write(directory.path().join("a.cedar"), "permit (").unwrap();
    wait_for_status(&server, "the refusal", |status| status.refused.is_some()).await;
    let mut health = HealthClient::new(server.channel().await);
    let told = health
        .check(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told.status(), ServingStatus::Serving);
    server.signal("TERM");
    for watch in &mut watches {
        let told = next(watch).await.unwrap().unwrap();
        assert_eq!(
            told.status(),
            ServingStatus::NotServing,
            "nothing stands between the two"
        );
    }
}

/// The answers of one version of server reflection to the requests.
macro_rules! reflect {
    ($version:ident, $server:expr, $requests:expr) => {{
        use reflection::server_reflection_client::ServerReflectionClient;
        use reflection::server_reflection_request::MessageRequest;
        use reflection::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::$version as reflection;
        let mut client = ServerReflectionClient::new($server.channel().await);
        let requests: Vec<_> = $requests
            .iter()
            .map(|symbol: &&str| reflection::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(match *symbol {
                    "" => MessageRequest::ListServices(String::new()),
                    symbol => MessageRequest::FileContainingSymbol(symbol.to_owned()),
                }),
            })
            .collect();
        let asked = client
            .server_reflection_info(tokio_stream::iter(requests))
            .await;
        let mut answers = asked.unwrap().into_inner();
        let mut services = Vec::new();
        let mut files = Vec::new();
        while let Some(answer) = next(&mut answers).await.unwrap() {
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(listed) => {
                    services.extend(listed.service.into_iter().map(|service| service.name));
                }
                MessageResponse::FileDescriptorResponse(found) => {
                    files.extend(found.file_descriptor_proto);
                }
                other => panic!("{other:?}"),
            }
        }
        (services, files)
    }};
}

#[tokio::test]
async fn reflection_lists_the_services_and_knows_the_error_details() {
    use prost::Message as _;
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let asked = [
        "",
        "pdp.v1.AuthorizationService",
        "pdp.v1.PolicyStoreService.WatchStatus",
        "grpc.health.v1.Health",
        "google.rpc.BadRequest",
        "google.rpc.ErrorInfo",
        "google.rpc.Status",
        "google.protobuf.Timestamp",
        "google.protobuf.Any",
    ];
    for (services, files) in [
        reflect!(v1, server, asked),
        reflect!(v1alpha, server, asked),
    ] {
        for name in [
            "pdp.v1.AuthorizationService",
            "pdp.v1.PolicyStoreService",
            "grpc.health.v1.Health",
        ] {
            assert!(
                services.iter().any(|service| service == name),
                "{services:?}"
            );
        }
        assert!(
            services
                .iter()
                .any(|service| service.ends_with("ServerReflection")),
            "{services:?}"
        );
        let files: Vec<_> = files
            .iter()
            .map(|file| prost_types::FileDescriptorProto::decode(file.as_slice()).unwrap())
            .collect();
        for message in [
            "BadRequest",
            "ErrorInfo",
            "Status",
            "Timestamp",
            "Any",
            "AuthorizeRequest",
        ] {
            let is_known = files.iter().any(|file| {
                file.message_type
                    .iter()
                    .any(|known| known.name() == message)
            });
            assert!(is_known, "{message}");
        }
    }
}

// ---------------------------------------------------------------- listening

/// Runs a `serve` that is to end by itself.
fn serve(policies: &Path, listen: &[&str], arguments: &[&str]) -> Output {
    let mut command = command();
    command.arg("serve").arg("--policies").arg(policies);
    for address in listen {
        command.args(["--listen", address]);
    }
    command.args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_serves_replaces_a_stale_one_and_is_removed_at_the_end() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("pdp.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "a stale socket is left");
    let listen = format!("unix:{}", socket.display());
    let mut server = Server::start_listening(directory.path(), &[&listen], &[]);
    assert_eq!(server.addresses, [listen.as_str()]);
    assert_eq!(
        authorize(&server, question()).await.unwrap().decision(),
        pb::Decision::Allow
    );

    // A live one is somebody's; the other process goes on.
    let second = serve(directory.path(), &[&listen], &[]);
    assert_eq!(second.status.code(), Some(2));
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(told.contains(&listen), "{told}");
    assert_eq!(
        authorize(&server, question()).await.unwrap().decision(),
        pb::Decision::Allow
    );

    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let precious = directory.path().join("precious");
    fs::write(&precious, "text").unwrap();
    let ended = serve(
        directory.path(),
        &[&format!("unix:{}", precious.display())],
        &[],
    );
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(fs::read_to_string(precious).unwrap(), "text");
}

#[tokio::test]
async fn several_addresses_are_served_and_printed_with_the_ports_that_they_got() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let socket = format!("unix://{}", directory.path().join("pdp.sock").display());
    let listen = ["127.0.0.1:0", "localhost:0", &socket];
    let server = Server::start_listening(directory.path(), &listen, &[]);
    assert_eq!(server.addresses.len(), 3);
    assert!(
        server
            .addresses
            .iter()
            .all(|address| !address.ends_with(":0")),
        "{:?}",
        server.addresses
    );
    for address in &server.addresses {
        let channel = crate::support::channel(address).await;
        let mut client = pb::authorization_service_client::AuthorizationServiceClient::new(channel);
        let answer = client.authorize(question()).await.unwrap().into_inner();
        assert_eq!(answer.decision(), pb::Decision::Allow);
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_and_leaves_no_socket_behind() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let socket = directory.path().join("pdp.sock");
    let listen = format!("unix:{}", socket.display());
    let ended = serve(directory.path(), &[&listen, server.address()], &[]);
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(
        ended.stdout, b"",
        "what did not come to be served is not announced"
    );
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_directory_that_is_bad_at_the_start_is_an_error_that_shows_every_finding() {
    let directory = policy_directory(&[("a.cedar", "permit ("), ("b.cedar", "forbid")]);
    let ended = serve(directory.path(), &["127.0.0.1:0"], &[]);
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(ended.stdout, b"");
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(
        told.contains("a.cedar:1:") && told.contains("b.cedar:1:"),
        "{told}"
    );
    let ended = serve(&directory.path().join("nowhere"), &["127.0.0.1:0"], &[]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(String::from_utf8(ended.stderr).unwrap().contains("nowhere"));
}

// ---------------------------------------------------------------- the end

/// A call that the server has begun to read, and that goes on until it is released.
struct CallInFlight {
    release: oneshot::Sender<()>,
    answer: tokio::task::JoinHandle<Result<pb::AuthorizeResponse, Status>>,
}

impl CallInFlight {
    async fn begin(server: &Server) -> Self {
        let channel = server.channel().await;
        let (started, has_started) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        // Sent as a stream, a request can be left without an end.
        let messages = futures_util::stream::once(async move {
            let _ = started.send(());
            let _ = released.await;
            question()
        });
        let answer = tokio::spawn({
            let channel = channel.clone();
            async move {
                let mut client = tonic::client::Grpc::new(channel);
                client.ready().await.expect("the connection stands");
                let path =
                    http::uri::PathAndQuery::from_static("/pdp.v1.AuthorizationService/Authorize");
                let codec =
                    tonic_prost::ProstCodec::<pb::AuthorizeRequest, pb::AuthorizeResponse>::default(
                    );
                let request = tonic::Request::new(messages);
                client
                    .client_streaming(request, path, codec)
                    .await
                    .map(tonic::Response::into_inner)
            }
        });
        has_started.await.unwrap();
        // An answer on the same connection: frames keep their order, so the call has come in.
        let mut client =
            pb::authorization_service_client::AuthorizationServiceClient::<Channel>::new(channel);
        client.authorize(question()).await.unwrap();
        Self { release, answer }
    }

    async fn finish(self) -> Result<pb::AuthorizeResponse, Status> {
        // Nobody hears it when the connection is gone.
        let _ = self.release.send(());
        tokio::time::timeout(PATIENCE, self.answer)
            .await
            .expect("an answer in time")
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_calls_in_flight_and_tells_streams_and_watches() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &[]);
    let mut health = watch_health(&server, "").await;
    wait_for_health(&mut health, ServingStatus::Serving).await;
    let mut store = server.policy_store().await;
    let mut status = store
        .watch_status(pb::WatchStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    next(&mut status).await.unwrap();
    let (items, mut answers) = open_stream(&server).await;
    items.send(item(1, Some(question()))).await.unwrap();
    next(&mut answers).await.unwrap();
    let call = CallInFlight::begin(&server).await;

    server.signal("TERM");
    wait_for_health(&mut health, ServingStatus::NotServing).await;
    assert_eq!(
        next(&mut health).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert_eq!(
        next(&mut answers).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert_eq!(
        next(&mut status).await.unwrap_err().code(),
        Code::Unavailable
    );
    assert!(server.is_alive(), "a call is still in flight");
    assert_eq!(call.finish().await.unwrap().decision(), pb::Decision::Allow);
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_stops_as_sigterm_does() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &[]);
    authorize(&server, question()).await.unwrap();
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &["--drain-timeout", "1h"]);
    let call = CallInFlight::begin(&server).await;
    server.signal("TERM");
    server.wait_for_log("draining");
    assert!(server.is_alive());
    server.signal("INT");
    server.wait();
    assert!(call.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_is_cut_off_after_the_drain_timeout() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let mut server = Server::start(directory.path(), &["--drain-timeout", "200ms"]);
    let call = CallInFlight::begin(&server).await;
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log().contains("drain timeout"), "{}", server.log());
    assert!(call.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_is_told_as_such() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    let (_items, sent) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(sent));
    request.set_timeout(Duration::from_millis(50));
    let mut client = server.authorization().await;
    let status = match client.stream_authorize(request).await {
        Ok(answers) => next(&mut answers.into_inner()).await.unwrap_err(),
        Err(status) => status,
    };
    // The client may be the first to notice, and calls it by the other name.
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status:?}"
    );
    assert_eq!(
        authorize(&server, question()).await.unwrap().decision(),
        pb::Decision::Allow
    );
}

#[test]
fn a_uid_is_written_as_cedar_writes_it() {
    assert_eq!(
        parse_uid(r#"Shop::Order::"a \"b\"""#),
        uid("Shop::Order", r#"a "b""#)
    );
}

#[tokio::test]
async fn a_connection_without_a_call_does_not_hold_up_the_stop() {
    let mut server = Server::start(&shipped_policies(), &["--drain-timeout", "1h"]);
    let silent = std::net::TcpStream::connect(server.address()).unwrap();
    let mut greeting = std::net::TcpStream::connect(server.address()).unwrap();
    std::io::Write::write_all(
        &mut greeting,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    )
    .unwrap();
    // A call on a connection of its own shows that the two before it have been accepted.
    server
        .authorization()
        .await
        .authorize(request(
            r#"Platform::User::"felix.brandt""#,
            r#"Invoicing::Action::"readInvoice""#,
            r#"Invoicing::Invoice::"INV-2041""#,
        ))
        .await
        .unwrap();
    server.signal("TERM");
    assert!(server.wait().success());
    drop((silent, greeting));
}
