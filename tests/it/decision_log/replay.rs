//! A log line is sufficient to repeat its decision: Cedar's authorizer decides the same from the
//! line and the policies of its revision.

use cedar_pdp::api::grpc::pb;
use pb::value::Kind;

use super::setup::LoggedService;
use crate::support::replay::Replay;
use crate::support::{parse_uid, policy_directory, request, value};

/// Policies that read every type of value.
const POLICIES: &str = r#"
@id("owner") permit(principal, action, resource)
when { resource has owner && resource.owner == principal };
@id("group") permit(principal in Group::"staff", action, resource in Folder::"open");
@id("tagged") permit(principal, action, resource)
when { resource.hasTag("for") && resource.getTag("for") == context.purpose };
@id("typed") permit(principal, action, resource)
when {
    context.amount.lessThan(decimal("10.5")) && context.from.isInRange(ip("10.0.0.0/8")) &&
    context.at < datetime("2026-11-25") && context.lasting == duration("1h") &&
    context.list.containsAll([1, {deep: User::"é\"\n"}])
};
@id("failing") forbid(principal, action, resource) when { context.purpose like "*!" };
"#;

const ENTITIES: &str = r#"[
{"uid": {"type": "Folder", "id": "inner"}, "attrs": {}, "parents": [{"type": "Folder", "id": "open"}]},
{"uid": {"type": "Doc", "id": "kept"}, "attrs": {"owner": {"__entity": {"type": "User", "id": "bob"}}}, "parents": []}
]"#;

fn text(text: &str) -> pb::Value {
    value(Kind::String(text.to_owned()))
}

/// An entity of the request, used as the resource.
fn doc(change: impl FnOnce(&mut pb::Entity)) -> pb::Entity {
    let mut entity = pb::Entity {
        uid: Some(parse_uid(r#"Doc::"1""#)),
        ..pb::Entity::default()
    };
    change(&mut entity);
    entity
}

fn typed(amount: &str) -> Vec<(&'static str, pb::Value)> {
    let deep = value(Kind::Entity(parse_uid(r#"User::"é\"\n""#)));
    let record = pb::ValueRecord {
        fields: [("deep".to_owned(), deep)].into(),
    };
    let values = vec![
        value(Kind::Long(i64::MIN)),
        value(Kind::Record(record)),
        value(Kind::Long(1)),
    ];
    vec![
        ("amount", value(Kind::Decimal(amount.to_owned()))),
        ("from", value(Kind::Ip("10.1.2.3".to_owned()))),
        (
            "at",
            value(Kind::Datetime("2026-11-24T23:59:59Z".to_owned())),
        ),
        ("lasting", value(Kind::Duration("60m".to_owned()))),
        ("list", value(Kind::Set(pb::ValueList { values }))),
        ("purpose", text("a purpose")),
    ]
}

#[tokio::test]
async fn plain_cedar_repeats_logged_decisions() {
    let policies = policy_directory(&[("policies.cedar", POLICIES), ("entities.json", ENTITIES)]);
    let service = LoggedService::start_on(
        policies,
        tempfile::tempdir().unwrap(),
        &["--decision-log-attributes", "*"],
    );
    let owner = || value(Kind::Entity(parse_uid(r#"User::"alice""#)));
    let owned = |entity: &mut pb::Entity| {
        entity.attributes.insert("owner".to_owned(), owner());
    };
    let shadowing = pb::Entity {
        uid: Some(parse_uid(r#"Doc::"kept""#)),
        ..doc(owned)
    };
    let staff = pb::Entity {
        uid: Some(parse_uid(r#"User::"alice""#)),
        parents: vec![parse_uid(r#"Group::"staff""#)],
        ..pb::Entity::default()
    };
    let within = doc(|doc| doc.parents.push(parse_uid(r#"Folder::"inner""#)));
    let tagged = doc(|doc| {
        doc.tags.insert("for".to_owned(), text("a purpose"));
    });
    let purpose = || vec![("purpose", text("a purpose"))];
    let cases = [
        (r#"Doc::"1""#, vec![], vec![], "DENY"),
        (r#"Doc::"1""#, purpose(), vec![], "DENY"),
        (r#"Doc::"1""#, purpose(), vec![doc(owned)], "ALLOW"),
        (
            r#"Doc::"1""#,
            vec![("purpose", text("no!"))],
            vec![doc(owned)],
            "DENY",
        ),
        (r#"Doc::"kept""#, purpose(), vec![], "DENY"),
        (r#"Doc::"kept""#, purpose(), vec![shadowing], "ALLOW"),
        (r#"Doc::"1""#, purpose(), vec![within.clone()], "DENY"),
        (r#"Doc::"1""#, purpose(), vec![within, staff], "ALLOW"),
        (r#"Doc::"1""#, purpose(), vec![tagged], "ALLOW"),
        (r#"Doc::"1""#, typed("10.4999"), vec![], "ALLOW"),
        (r#"Doc::"1""#, typed("10.5"), vec![], "DENY"),
    ];
    let mut client = service.server.authorization().await;
    let mut expected = Vec::new();
    for (resource, context, entities, decision) in cases {
        let context = context
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        let request = pb::AuthorizeRequest {
            context: context.collect(),
            entities,
            ..request(r#"User::"alice""#, r#"Action::"read""#, resource)
        };
        client.authorize(request).await.unwrap();
        expected.push(decision);
    }
    let lines = service.lines(expected.len());
    let replay = Replay::new(POLICIES, ENTITIES);
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line["decision"], expected, "{line}");
        replay.check(line);
    }
}
