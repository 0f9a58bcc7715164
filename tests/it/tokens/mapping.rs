//! The principal that a valid token describes, with stored entities and request entities.

use cedar_pdp::api::grpc::pb;
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::setup::{
    MAPPING, TokenOptions, TokenService, claims, es256, is_allowed, reason, request, with,
};

/// Returns the field that a request is rejected for.
fn field(status: &tonic::Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    details.bad_request().unwrap().field_violations[0]
        .field
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_read_the_claims_of_the_token() {
    let key = es256("k");
    let service = TokenService::start(&[&key]);
    let token = |changes| key.token(&with(changes));
    assert!(
        service
            .is_allowed(&key.token(&claims()), "read")
            .await
            .unwrap()
    );
    assert!(
        !service
            .is_allowed(&key.token(&claims()), "write")
            .await
            .unwrap()
    );
    // A role that is stored in another role.
    assert!(
        service
            .is_allowed(&token(json!({"roles": ["chief"]})), "read")
            .await
            .unwrap()
    );
    assert!(
        service
            .is_allowed(&token(json!({"roles": "reader"})), "read")
            .await
            .unwrap()
    );
    for none in [json!([]), json!(["other"]), json!(null)] {
        assert!(
            !service
                .is_allowed(&token(json!({ "roles": none })), "read")
                .await
                .unwrap()
        );
    }
    let finance = token(json!({"department": "finance"}));
    assert!(service.is_allowed(&finance, "write").await.unwrap());
    // Cached answers depend on the claims, not only on the name.
    assert!(
        !service
            .is_allowed(&key.token(&claims()), "write")
            .await
            .unwrap()
    );
    assert!(service.is_allowed(&finance, "write").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_principal_is_joined_replaced_or_required() {
    let key = es256("k");
    let token = |sub: &str, department: &str| {
        key.token(&with(json!({"sub": sub, "department": department})))
    };
    let start_service = |stored: &str| {
        let mapping = MAPPING.replace(
            "type = \"User\"",
            &format!("type = \"User\"\nstored = \"{stored}\""),
        );
        let options = TokenOptions {
            mapping: &mapping,
            ..TokenOptions::default()
        };
        TokenService::start_with(&[&key], &options)
    };
    let join = start_service("join");
    assert!(
        join.is_allowed(&token("stored", "x"), "paint")
            .await
            .unwrap(),
        "the stored team"
    );
    assert!(
        join.is_allowed(&token("stored", "x"), "read")
            .await
            .unwrap(),
        "the token's role"
    );
    assert!(
        join.is_allowed(&token("stored", "finance"), "write")
            .await
            .unwrap(),
        "the token's attribute"
    );
    assert!(
        !join
            .is_allowed(&token("suspended", "finance"), "write")
            .await
            .unwrap(),
        "the stored attribute"
    );
    assert!(
        join.is_allowed(&token("new", "finance"), "write")
            .await
            .unwrap()
    );

    let replace = start_service("replace");
    assert!(
        !replace
            .is_allowed(&token("stored", "x"), "paint")
            .await
            .unwrap()
    );
    assert!(
        replace
            .is_allowed(&token("suspended", "finance"), "write")
            .await
            .unwrap()
    );

    let require = start_service("require");
    assert!(
        require
            .is_allowed(&token("stored", "x"), "paint")
            .await
            .unwrap()
    );
    let rejected = require
        .is_allowed(&token("new", "finance"), "write")
        .await
        .unwrap_err();
    assert_eq!(reason(&rejected), "PRINCIPAL_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_entities_cannot_override_token_claims() {
    let key = es256("k");
    // The setting for request entities does not restrict issuers.
    let options = TokenOptions {
        arguments: &["--request-entity-types", "Doc,User,Role"],
        ..TokenOptions::default()
    };
    let service = TokenService::start_with(&[&key], &options);
    let mut client = service.client().await;
    let token = key.token(&claims());
    let sent = |type_name: &str, id: &str, parents: &[(&str, &str)]| pb::AuthorizeRequest {
        entities: vec![pb::Entity {
            uid: Some(crate::support::uid(type_name, id)),
            attributes: match type_name {
                "User" => [(
                    "department".to_owned(),
                    crate::support::value(pb::value::Kind::String("finance".to_owned())),
                )]
                .into(),
                _ => [].into(),
            },
            parents: parents
                .iter()
                .map(|(ty, id)| crate::support::uid(ty, id))
                .collect(),
            ..pb::Entity::default()
        }],
        ..request(&token, "write")
    };
    for (type_name, id) in [("User", "alice"), ("Role", "reader")] {
        let rejected = is_allowed(&mut client, sent(type_name, id, &[]))
            .await
            .unwrap_err();
        assert_eq!(field(&rejected), "entities[0].uid");
    }
    // Nor can they redefine the stored parents of a role, which would add rights.
    let mut redefined = sent("Role", "reader", &[("Role", "other")]);
    let chief = key.token(&with(json!({"roles": ["chief"]})));
    redefined.identity = request(&chief, "write").identity;
    let rejected = is_allowed(&mut client, redefined).await.unwrap_err();
    assert_eq!(field(&rejected), "entities[0].uid");
    assert!(
        !is_allowed(&mut client, sent("Doc", "1", &[]))
            .await
            .unwrap()
    );
    // Nor can they create a cycle.
    let through = with(json!({"roles": ["a"]}));
    let mut circle = sent("Role", "b", &[("Role", "a")]);
    circle.identity = request(&key.token(&through), "write").identity;
    assert!(is_allowed(&mut client, circle).await.is_ok());

    let service = TokenService::start_with(
        &[&key],
        &TokenOptions {
            arguments: &["--request-entity-types", "Doc"],
            ..TokenOptions::default()
        },
    );
    assert!(service.is_allowed(&token, "read").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_violating_the_schema_are_named() {
    let key = es256("k");
    let mapping = r#"
[issuer.principal]
type = "User"
[issuer.principal.attributes]
department = { kind = "string", optional = true }
level = { kind = "string", optional = true }
[[issuer.principal.parents]]
claim = "docs"
type = "Doc"
optional = true
"#;
    let service = TokenService::start_with(
        &[&key],
        &TokenOptions {
            mapping,
            ..TokenOptions::default()
        },
    );
    let unfit = |changes| {
        let token = key.token(&with(changes));
        let service = &service;
        async move { field(&service.is_allowed(&token, "read").await.unwrap_err()) }
    };
    assert_eq!(
        unfit(json!({"department": null})).await,
        "principal_token.attributes[\"department\"]"
    );
    assert_eq!(
        unfit(json!({"level": "high"})).await,
        "principal_token.attributes[\"level\"]"
    );
    assert_eq!(
        unfit(json!({"docs": ["1"]})).await,
        "principal_token.parents[0]"
    );

    let mapping = "[issuer.principal]\ntype = \"Stranger\"\n";
    let service = TokenService::start_with(
        &[&key],
        &TokenOptions {
            mapping,
            ..TokenOptions::default()
        },
    );
    let rejected = service
        .is_allowed(&key.token(&claims()), "read")
        .await
        .unwrap_err();
    assert_eq!(rejected.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn authorize_command_sends_a_token() {
    let key = es256("k");
    let service = TokenService::start(&[&key]);
    std::fs::write(service.path("token"), format!("{}\n", key.token(&claims()))).unwrap();
    let run_authorize = |action: &str| {
        crate::support::command()
            .args([
                "authorize",
                "--connect",
                service.server.address(),
                "--token",
            ])
            .arg(service.path("token"))
            .args(["--action", action, "--resource", "Doc::\"1\""])
            .output()
            .unwrap()
    };
    assert_eq!(run_authorize("Action::\"read\"").status.code(), Some(0));
    assert_eq!(run_authorize("Action::\"write\"").status.code(), Some(1));
    std::fs::write(service.path("token"), "x.y.z").unwrap();
    let rejected = run_authorize("Action::\"read\"");
    assert_eq!(rejected.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&rejected.stderr).into_owned();
    assert!(
        stderr.contains("token") && !stderr.contains("x.y.z"),
        "{stderr}"
    );
}
