//! The worked example: every kind of call gives the decisions of its table.

use std::collections::BTreeMap;

use cedar_pdp::api::grpc::pb;
use pb::batch_authorize_result::Result as BatchResult;
use pb::stream_authorize_response::Result as StreamResult;
use pb::value::Kind;

use super::{authorize, context, field, next};
use crate::support::{Answer, Server, parse_uid, request, shipped_policies, uid};

/// principal, action, resource, context, whether it is allowed, determining policies
pub(super) type Row = (
    &'static str,
    &'static str,
    &'static str,
    BTreeMap<String, pb::Value>,
    bool,
    &'static [&'static str],
);

pub(super) fn user(id: &str) -> String {
    format!("Platform::User::{id:?}")
}

pub(super) fn example(principal: &str, action: &str, resource: &str) -> pb::AuthorizeRequest {
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

pub(super) fn morning() -> Kind {
    Kind::Datetime("2026-03-02T09:30:00Z".to_owned())
}

pub(super) fn office() -> BTreeMap<String, pb::Value> {
    context(&[
        ("ip", Kind::Ip("203.0.113.42".to_owned())),
        ("now", morning()),
    ])
}

/// No request is allowed if its principal, resource or a company on the resource is stored nowhere.
#[tokio::test]
async fn unknown_entities_allow_nothing() {
    let server = Server::start(&shipped_policies(), &[]);
    let stranger = r#"Platform::User::"stranger""#;
    let agent = r#"Support::Agent::"stranger""#;
    let amount = context(&[
        ("amount", Kind::Decimal("25000.00".to_owned())),
        ("now", morning()),
    ]);
    let limit = context(&[("newLimit", Kind::Decimal("1.00".to_owned()))]);
    let mfa = context(&[("mfa", Kind::Bool(true))]);
    let reference = |text: &str| pb::Value {
        kind: Some(Kind::Entity(parse_uid(text))),
    };
    let tenant = r#"Platform::Tenant::"unknown""#;
    // The paper of a stranger, at companies that are stored nowhere.
    let paper = |kind: &str, more: &[(&str, Kind)]| {
        let mut attributes = context(more);
        attributes.insert("tenant".to_owned(), reference(tenant));
        attributes.insert("owner".to_owned(), reference(stranger));
        pb::Entity {
            uid: Some(uid(&format!("Invoicing::{kind}"), "sent")),
            attributes,
            ..pb::Entity::default()
        }
    };
    let text = |text: &str| Kind::String(text.to_owned());
    let mut invoice = paper(
        "Invoice",
        &[
            ("number", text("1")),
            ("amount", Kind::Decimal("1.00".to_owned())),
            ("status", text("issued")),
            ("due", morning()),
        ],
    );
    invoice
        .attributes
        .insert("buyer".to_owned(), reference(tenant));
    let document = paper("Document", &[("title", text("t"))]);
    let mut denied = 0;
    for (action, kind, known, context) in [
        ("readInvoice", "Invoice", "INV-2041", office()),
        ("editInvoice", "Invoice", "INV-2044", office()),
        ("approveInvoice", "Invoice", "INV-2041", mfa),
        ("readCreditLine", "CreditLine", "CL-7", office()),
        ("drawCredit", "CreditLine", "CL-7", amount),
        ("adjustCreditLine", "CreditLine", "CL-7", limit),
        ("readDocument", "Document", "DOC-611", office()),
    ] {
        for principal in [
            stranger,
            agent,
            r#"Platform::User::"ines.varga""#,
            r#"Platform::User::"tobias.lindqvist""#,
        ] {
            for (resource, sent) in [
                (known, vec![]),
                ("unknown", vec![]),
                ("sent", vec![&invoice, &document]),
            ] {
                let is_known = principal.contains("ines") || principal.contains("tobias");
                if is_known && resource == known {
                    continue;
                }
                let mut asked = request(
                    principal,
                    &format!("Invoicing::Action::{action:?}"),
                    &format!("Invoicing::{kind}::{resource:?}"),
                );
                asked.context.clone_from(&context);
                asked.entities = sent.into_iter().cloned().collect();
                match authorize(&server, asked).await {
                    Ok(answer) => {
                        assert_eq!(
                            answer.decision(),
                            pb::Decision::Deny,
                            "{principal} {action} {resource}"
                        );
                        denied += 1;
                    }
                    // An agent does none of the staff's work, by the schema.
                    Err(status) => assert!(field(&status).starts_with("principal"), "{status}"),
                }
            }
        }
    }
    assert!(denied > 40, "{denied}");
}

/// Returns the table of `policies/README.md`.
pub(super) fn table() -> Vec<Row> {
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
async fn example_table_holds_for_every_call_kind() {
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
        let answer = Answer::from(answer);
        let case = format!("{principal} {resource}");
        assert_eq!(
            (answer.is_allow, &*answer.determining),
            (is_allow, &*strings(determining)),
            "{case}"
        );
        assert_eq!(answer.revision, batch.revision);
    }
    let unidentified = pb::AuthorizeRequest {
        identity: None,
        ..example("nobody", "readPriceList", "2026-standard")
    };
    let answer = client.authorize(unidentified).await.unwrap().into_inner();
    assert_eq!(answer.decision(), pb::Decision::Allow);
}

pub(super) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn missing_identity_needs_an_anonymous_principal() {
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

#[test]
fn uids_are_written_in_cedar_syntax() {
    assert_eq!(
        parse_uid(r#"Shop::Order::"a \"b\"""#),
        uid("Shop::Order", r#"a "b""#)
    );
}
