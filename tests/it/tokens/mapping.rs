//! The principal that a valid token describes, with stored entities and request entities.

use cedar_pdp::api::grpc::pb;
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::setup::{House, MAPPING, Plan, ask, claims, es256, reason, request, with};

/// Returns the field that a request is rejected for.
fn field(status: &tonic::Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_error_details();
    details.bad_request().unwrap().field_violations[0]
        .field
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_what_policies_read_of_the_bearer() {
    let key = es256("k");
    let house = House::start(&[&key]);
    let token = |changes| key.token(&with(changes));
    assert!(house.ask(&key.token(&claims()), "read").await.unwrap());
    assert!(!house.ask(&key.token(&claims()), "write").await.unwrap());
    // A role that is stored in another role.
    assert!(
        house
            .ask(&token(json!({"roles": ["chief"]})), "read")
            .await
            .unwrap()
    );
    assert!(
        house
            .ask(&token(json!({"roles": "reader"})), "read")
            .await
            .unwrap()
    );
    for none in [json!([]), json!(["other"]), json!(null)] {
        assert!(
            !house
                .ask(&token(json!({ "roles": none })), "read")
                .await
                .unwrap()
        );
    }
    let finance = token(json!({"department": "finance"}));
    assert!(house.ask(&finance, "write").await.unwrap());
    // Cached answers depend on the claims, not only on the name.
    assert!(!house.ask(&key.token(&claims()), "write").await.unwrap());
    assert!(house.ask(&finance, "write").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_principal_is_joined_replaced_or_required() {
    let key = es256("k");
    let token = |sub: &str, department: &str| {
        key.token(&with(json!({"sub": sub, "department": department})))
    };
    let house = |stored: &str| {
        let mapping = MAPPING.replace(
            "type = \"User\"",
            &format!("type = \"User\"\nstored = \"{stored}\""),
        );
        let plan = Plan {
            mapping: &mapping,
            ..Plan::default()
        };
        House::planned(&[&key], &plan)
    };
    let join = house("join");
    assert!(
        join.ask(&token("stored", "x"), "paint").await.unwrap(),
        "the stored team"
    );
    assert!(
        join.ask(&token("stored", "x"), "read").await.unwrap(),
        "the token's role"
    );
    assert!(
        join.ask(&token("stored", "finance"), "write")
            .await
            .unwrap(),
        "the token's attribute"
    );
    assert!(
        !join
            .ask(&token("suspended", "finance"), "write")
            .await
            .unwrap(),
        "the stored attribute"
    );
    assert!(join.ask(&token("new", "finance"), "write").await.unwrap());

    let replace = house("replace");
    assert!(!replace.ask(&token("stored", "x"), "paint").await.unwrap());
    assert!(
        replace
            .ask(&token("suspended", "finance"), "write")
            .await
            .unwrap()
    );

    let require = house("require");
    assert!(require.ask(&token("stored", "x"), "paint").await.unwrap());
    let refused = require
        .ask(&token("new", "finance"), "write")
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "PRINCIPAL_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_entities_cannot_override_token_claims() {
    let key = es256("k");
    // The setting for request entities does not restrict issuers.
    let plan = Plan {
        arguments: &["--request-entity-types", "Doc,User,Role"],
        ..Plan::default()
    };
    let house = House::planned(&[&key], &plan);
    let mut client = house.client().await;
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
        let refused = ask(&mut client, sent(type_name, id, &[]))
            .await
            .unwrap_err();
        assert_eq!(field(&refused), "entities[0].uid");
    }
    // Nor can they redefine the stored parents of a role, which would add rights.
    let mut lifted = sent("Role", "reader", &[("Role", "other")]);
    let chief = key.token(&with(json!({"roles": ["chief"]})));
    lifted.identity = request(&chief, "write").identity;
    let refused = ask(&mut client, lifted).await.unwrap_err();
    assert_eq!(field(&refused), "entities[0].uid");
    assert!(!ask(&mut client, sent("Doc", "1", &[])).await.unwrap());
    // Nor can they create a cycle.
    let through = with(json!({"roles": ["a"]}));
    let mut circle = sent("Role", "b", &[("Role", "a")]);
    circle.identity = request(&key.token(&through), "write").identity;
    assert!(ask(&mut client, circle).await.is_ok());

    let house = House::planned(
        &[&key],
        &Plan {
            arguments: &["--request-entity-types", "Doc"],
            ..Plan::default()
        },
    );
    assert!(house.ask(&token, "read").await.unwrap());
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
    let house = House::planned(
        &[&key],
        &Plan {
            mapping,
            ..Plan::default()
        },
    );
    let unfit = |changes| {
        let token = key.token(&with(changes));
        let house = &house;
        async move { field(&house.ask(&token, "read").await.unwrap_err()) }
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
    let house = House::planned(
        &[&key],
        &Plan {
            mapping,
            ..Plan::default()
        },
    );
    let refused = house.ask(&key.token(&claims()), "read").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn authorize_command_sends_a_token() {
    let key = es256("k");
    let house = House::start(&[&key]);
    std::fs::write(house.path("token"), format!("{}\n", key.token(&claims()))).unwrap();
    let asked = |action: &str| {
        crate::support::command()
            .args(["authorize", "--connect", house.server.address(), "--token"])
            .arg(house.path("token"))
            .args(["--action", action, "--resource", "Doc::\"1\""])
            .output()
            .unwrap()
    };
    assert_eq!(asked("Action::\"read\"").status.code(), Some(0));
    assert_eq!(asked("Action::\"write\"").status.code(), Some(1));
    std::fs::write(house.path("token"), "x.y.z").unwrap();
    let refused = asked("Action::\"read\"");
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("token") && !said.contains("x.y.z"), "{said}");
}
