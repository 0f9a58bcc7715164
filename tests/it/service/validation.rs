//! Validation of requests, their entities and policies.

use std::collections::BTreeMap;

use cedar_pdp::api::grpc::pb;
use pb::authorize_request::Identity;
use pb::batch_authorize_result::Result as BatchResult;
use pb::stream_authorize_response::Result as StreamResult;
use pb::value::Kind;
use tonic::Code;
use tonic_types::{RpcStatusExt as _, StatusExt as _};

use super::example::{example, strings};
use super::listen::serve;
use super::stream::{item, open_stream};
use super::{ALL_ARE_PERMITTED, authorize, context, field, next, sample_request};
use crate::support::{
    Answer, Server, policy_directory, request, shipped_policies, uid, wait_for_status,
};

#[tokio::test]
async fn schema_violation_names_the_field() {
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
async fn empty_action_type_means_action() {
    // An empty id is valid.
    let policies = r#"permit (principal == User::"", action == Action::"read", resource);"#;
    let directory = policy_directory(&[("a.cedar", policies)]);
    let server = Server::start(directory.path(), &[]);
    let answer = authorize(
        &server,
        pb::AuthorizeRequest {
            identity: Some(Identity::Principal(uid("User", ""))),
            action: Some(uid("", "read")),
            ..sample_request()
        },
    );
    assert_eq!(answer.await.unwrap().decision(), pb::Decision::Allow);
}

#[tokio::test]
async fn token_without_configured_issuer_is_rejected() {
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
async fn failing_forbid_follows_the_configured_mode() {
    // The policy is skipped, or the request is denied.
    let policies = "@id(\"all\")\npermit (principal, action, resource);\n\
         @id(\"suspended\")\nforbid (principal, action, resource) when { principal.suspended };\n\
         @id(\"fails\")\npermit (principal, action, resource) when { principal.age > 17 };\n";
    let directory = policy_directory(&[("a.cedar", policies)]);
    for (mode, is_allow, determining) in [
        ("skip", true, &["all"][..]),
        ("deny", false, &["suspended"][..]),
    ] {
        let server = Server::start(directory.path(), &["--on-policy-error", mode]);
        let answer = authorize(&server, sample_request()).await.unwrap();
        let erring: Vec<_> = answer
            .errors
            .iter()
            .map(|error| error.policy_id.clone())
            .collect();
        assert_eq!(erring, ["fails", "suspended"]);
        assert!(answer.errors.iter().all(|error| !error.message.is_empty()));
        let answer = Answer::from(answer);
        assert_eq!(
            (answer.is_allow, answer.determining),
            (is_allow, strings(determining))
        );
    }
}

#[tokio::test]
async fn required_entities_must_be_known() {
    let files = [
        ("a.cedar", ALL_ARE_PERMITTED),
        (
            "entities.json",
            r#"[{"uid": {"type": "User", "id": "stored"}, "attrs": {}, "parents": [{"type": "User", "id": "group"}]}]"#,
        ),
    ];
    let directory = policy_directory(&files);
    let asking = |principal: &str, resource: &str, sent: &[(&str, &str)]| pb::AuthorizeRequest {
        entities: sent
            .iter()
            .map(|(type_name, id)| pb::Entity {
                uid: Some(uid(type_name, id)),
                ..pb::Entity::default()
            })
            .collect(),
        ..request(principal, r#"Action::"read""#, resource)
    };
    let stored = r#"User::"stored""#;
    let unknown = r#"User::"unknown""#;
    for (types, principal, resource, sent, rejected) in [
        ("User", stored, r#"Doc::"1""#, &[][..], None),
        ("User", unknown, r#"Doc::"1""#, &[], Some("principal")),
        // To be named as a parent is not to be known.
        (
            "User",
            r#"User::"group""#,
            r#"Doc::"1""#,
            &[],
            Some("principal"),
        ),
        ("User", unknown, r#"Doc::"1""#, &[("User", "unknown")], None),
        (
            "User",
            unknown,
            r#"Doc::"1""#,
            &[("Doc", "1")],
            Some("principal"),
        ),
        ("Group,User", stored, unknown, &[], Some("resource")),
        (
            "Doc",
            unknown,
            r#"Doc::"1""#,
            &[("User", "unknown")],
            Some("resource"),
        ),
        ("*", stored, r#"Doc::"1""#, &[("Doc", "1")], None),
        ("*", stored, r#"Doc::"1""#, &[], Some("resource")),
        ("", unknown, r#"Doc::"1""#, &[], None),
    ] {
        let server = Server::start(directory.path(), &["--require-known", types]);
        let call = asking(principal, resource, sent);
        // Each twice, so that the second may come from the cache.
        for _ in 0..2 {
            let named = |details: Option<tonic_types::BadRequest>| {
                Some(details?.field_violations[0].field.clone())
            };
            let expected = rejected.map(str::to_owned);
            let unary = authorize(&server, call.clone()).await;
            let unary = unary.err().map(|status| field(&status));
            assert_eq!(unary, expected, "{types} {principal} {resource}");
            let mut client = server.authorization().await;
            let batch = pb::BatchAuthorizeRequest {
                requests: vec![call.clone()],
            };
            let batch = client.batch_authorize(batch).await.unwrap().into_inner();
            let result = batch.results.into_iter().next().unwrap().result;
            let in_batch = match result {
                Some(BatchResult::Error(error)) => named(error.get_details_bad_request()),
                _ => None,
            };
            assert_eq!(in_batch, expected);
            let (items, mut answers) = open_stream(&server).await;
            items.send(item(1, Some(call.clone()))).await.unwrap();
            let in_stream = match next(&mut answers).await.unwrap().unwrap().result {
                Some(StreamResult::Error(error)) => named(error.get_details_bad_request()),
                _ => None,
            };
            assert_eq!(in_stream, expected);
        }
    }
}

#[tokio::test]
async fn request_entity_types_are_restricted() {
    let policies = "permit (principal, action, resource) when { resource.is_open };";
    let directory = policy_directory(&[("a.cedar", policies)]);
    let open = |type_name: &str| pb::Entity {
        uid: Some(uid(type_name, "1")),
        attributes: context(&[("is_open", Kind::Bool(true))]),
        ..pb::Entity::default()
    };
    let sending = |entities: &[pb::Entity]| pb::AuthorizeRequest {
        entities: entities.to_vec(),
        ..sample_request()
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
        authorize(&server, sample_request())
            .await
            .unwrap()
            .decision(),
        pb::Decision::Deny
    );

    let server = Server::start(directory.path(), &[]);
    let answer = authorize(&server, sending(&[open("Doc"), open("User")]))
        .await
        .unwrap();
    assert_eq!(answer.decision(), pb::Decision::Allow);
}

#[tokio::test]
async fn validation_mode_decides_about_invalid_policies() {
    let schema =
        "entity User; entity Doc; action read appliesTo { principal: User, resource: Doc };";
    let bad = "permit (principal, action, resource) when { principal.name == 1 };\n\
         @id(\"good\")\npermit (principal, action, resource);";
    let directory = policy_directory(&[("a.cedarschema", schema), ("a.cedar", bad)]);
    let rejected = serve(directory.path(), &["127.0.0.1:0"], &[]);
    assert_eq!(rejected.status.code(), Some(2));

    let unknown = || pb::AuthorizeRequest {
        action: Some(uid("Action", "burn")),
        ..sample_request()
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
        authorize(&server, sample_request())
            .await
            .unwrap()
            .decision(),
        pb::Decision::Allow
    );
    assert_eq!(
        field(&authorize(&server, unknown()).await.unwrap_err()),
        "action"
    );

    let server = Server::start(directory.path(), &["--validation", "off"]);
    assert_eq!(
        authorize(&server, sample_request())
            .await
            .unwrap()
            .decision(),
        pb::Decision::Allow
    );
    assert_eq!(
        authorize(&server, unknown()).await.unwrap().decision(),
        pb::Decision::Allow
    );
}

#[tokio::test]
async fn missing_schema_is_logged() {
    // Without a schema nothing is validated.
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
