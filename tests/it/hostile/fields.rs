//! Requests that decode but have invalid content.

use cedar_pdp::api::grpc::pb;
use pb::value::Kind;
use tonic::Code;

use super::requests::{
    WITH_SCHEMA, WITHOUT_SCHEMA, attribute, changed, context, entities, entity, principal, record,
    set, tag, text, without_id, without_kind,
};
use super::target::Target;
use crate::support::{uid, value};

/// A field, and a request that is rejected because of it.
type Case = (&'static str, pb::AuthorizeRequest);

async fn assert_all_rejected(cases: Vec<Case>) {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    for (number, (field, request)) in cases.into_iter().enumerate() {
        let case = format!("case {number}, `{field}`");
        target
            .assert_rejected(&case, Code::InvalidArgument, field, &request)
            .await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_fields_are_named() {
    let bob = || uid("User", "bob");
    let who = |uid: pb::EntityUid| context("who", Kind::Entity(uid));
    let mut nothing = good_record("x", without_kind());
    nothing
        .context
        .insert("amount".to_owned(), value(Kind::Long(1)));
    let with_value = |name: &str, sent: pb::Value| {
        let mut entity = entity(bob(), vec![]);
        entity.attributes.insert(name.to_owned(), sent);
        entities(vec![entity])
    };
    let mut tagged = entity(bob(), vec![]);
    tagged.tags.insert("t".to_owned(), without_kind());
    assert_all_rejected(vec![
        ("principal", changed(|r| r.identity = None)),
        ("action", changed(|r| r.action = None)),
        ("resource", changed(|r| r.resource = None)),
        ("principal", pb::AuthorizeRequest::default()),
        ("principal.id", principal(without_id("User"))),
        (
            "action.id",
            changed(|r| r.action = Some(without_id("Action"))),
        ),
        (
            "resource.id",
            changed(|r| r.resource = Some(without_id("Doc"))),
        ),
        ("entities[0].uid", entities(vec![pb::Entity::default()])),
        (
            "entities[0].uid.id",
            entities(vec![entity(without_id("User"), vec![])]),
        ),
        (
            "entities[0].parents[1].id",
            entities(vec![entity(
                bob(),
                vec![uid("Team", "a"), without_id("Team")],
            )]),
        ),
        (r#"context["who"].entity.id"#, who(without_id("User"))),
        ("principal.type", principal(uid("", "alice"))),
        ("principal.type", principal(pb::EntityUid::default())),
        (
            "resource.type",
            changed(|r| r.resource = Some(uid("", "1"))),
        ),
        (
            "entities[0].uid.type",
            entities(vec![entity(uid("", "bob"), vec![])]),
        ),
        (
            "entities[0].parents[0].type",
            entities(vec![entity(bob(), vec![uid("", "a")])]),
        ),
        (r#"context["who"].entity.type"#, who(uid("", "bob"))),
        (
            r#"context["amount"]"#,
            changed(|r| drop(r.context.insert("amount".to_owned(), without_kind()))),
        ),
        (
            r#"context["names"].set[1]"#,
            context("names", set(vec![text("a"), without_kind()])),
        ),
        (r#"context["place"].record["x"]"#, nothing),
        (
            r#"context["names"].set[0].record["x\"\n"].set[0]"#,
            context(
                "names",
                set(vec![value(record(
                    "x\"\n",
                    value(set(vec![without_kind()])),
                ))]),
            ),
        ),
        (
            r#"entities[0].attributes["age"]"#,
            with_value("age", without_kind()),
        ),
        (
            r#"entities[0].attributes["home"].record["street"]"#,
            attribute("home", record("street", without_kind())),
        ),
        (r#"entities[0].tags["t"]"#, entities(vec![tagged])),
    ])
    .await;
}

fn good_record(name: &str, field: pb::Value) -> pb::AuthorizeRequest {
    context("place", record(name, field))
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_type_names_are_named() {
    let long = "x".repeat(1_000_000);
    let nested_value = "a::".repeat(300_000);
    let parentheses = "(".repeat(100_000);
    let mut cases: Vec<Case> = Vec::new();
    for name in [
        "a b",
        "A::",
        "::",
        "::A",
        "A:B",
        "A:::B",
        "if",
        "A::in",
        "true",
        "Ä",
        "Nutzer::Straße",
        "User\u{202e}",
        "\"User\"",
        "User::\"alice\"",
        "User::\"alice\"::x",
        "a\0b",
        "\0",
        " User",
        "User ",
        "User\n",
        "9",
        "User//",
        "A/**/::B",
        "?principal",
        "-",
        "'",
        "*",
        "__cedar::x",
        "\u{feff}User",
        &long,
        &nested_value,
        &parentheses,
    ] {
        cases.push(("principal.type", principal(uid(name, "x"))));
        cases.push((
            "resource.type",
            changed(|r| r.resource = Some(uid(name, "x"))),
        ));
        cases.push((
            "entities[0].uid.type",
            entities(vec![entity(uid(name, "x"), vec![])]),
        ));
        cases.push((
            "entities[0].parents[0].type",
            entities(vec![entity(uid("User", "bob"), vec![uid(name, "x")])]),
        ));
        cases.push((
            r#"context["who"].entity.type"#,
            context("who", Kind::Entity(uid(name, "x"))),
        ));
        // A valid name that is no action type is an unknown action, which is another case.
        cases.push((
            "action.type",
            changed(|r| r.action = Some(uid(name, "read"))),
        ));
    }
    // `x` a million times exceeds the limit on parsed names.
    assert_all_rejected(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_types_and_attributes_are_named() {
    let with = |name: &str, kind: Kind| context(name, kind);
    let pay = |change: fn(&mut pb::AuthorizeRequest)| {
        changed(|r| {
            r.action = Some(uid("Action", "pay"));
            change(r);
        })
    };
    let doc = |attribute: Option<(&str, Kind)>| {
        let mut doc = entity(uid("Doc", "2"), vec![]);
        if let Some((name, kind)) = attribute {
            doc.attributes.insert(name.to_owned(), value(kind));
        }
        entities(vec![doc])
    };
    assert_all_rejected(vec![
        ("principal.type", principal(uid("Nobody", "x"))),
        ("principal.type", principal(uid("Robot", "x"))),
        (
            "resource.type",
            changed(|r| r.resource = Some(uid("Nothing", "x"))),
        ),
        (
            "resource.type",
            changed(|r| r.resource = Some(uid("User", "alice"))),
        ),
        (
            "entities[0].uid.type",
            entities(vec![entity(uid("Nobody", "x"), vec![])]),
        ),
        (
            "entities[0].parents[0]",
            entities(vec![entity(uid("User", "bob"), vec![uid("Nobody", "x")])]),
        ),
        (
            "entities[0].parents[1]",
            entities(vec![entity(
                uid("User", "bob"),
                vec![uid("Team", "a"), uid("Doc", "1")],
            )]),
        ),
        (
            "entities[1].parents[0]",
            entities(vec![
                entity(uid("User", "bob"), vec![]),
                entity(uid("Robot", "r"), vec![uid("Team", "a")]),
            ]),
        ),
        (
            "action",
            changed(|r| r.action = Some(uid("Action", "nothing"))),
        ),
        ("action", changed(|r| r.action = Some(uid("", "")))),
        (
            "action",
            changed(|r| r.action = Some(uid("", &"x".repeat(1_000_000)))),
        ),
        (r#"context["amount"]"#, pay(|_| {})),
        (
            r#"context["amount"]"#,
            pay(|r| drop(r.context.insert("amount".to_owned(), text("1")))),
        ),
        (r#"context["amount"]"#, with("amount", Kind::Bool(true))),
        (r#"context["amount"]"#, with("amount", set(vec![]))),
        (r#"context["nope"]"#, with("nope", Kind::Bool(true))),
        (
            r#"context["no\0pe\"é"]"#,
            with("no\0pe\"é", Kind::Bool(true)),
        ),
        (r#"context[""]"#, with("", Kind::Bool(true))),
        (
            r#"context["names"]"#,
            with("names", set(vec![text("a"), value(Kind::Long(1))])),
        ),
        (
            r#"context["place"]"#,
            with("place", record("y", value(Kind::Long(1)))),
        ),
        (
            r#"context["who"]"#,
            with("who", Kind::Entity(uid("Doc", "1"))),
        ),
        (
            r#"context["who"]"#,
            with("who", Kind::Entity(uid("Nobody", "1"))),
        ),
        (
            r#"context["color"]"#,
            with("color", Kind::Entity(uid("Color", "blue"))),
        ),
        (
            r#"context["limit"]"#,
            with("limit", Kind::String("1.0".to_owned())),
        ),
        (r#"entities[0].attributes["title"]"#, doc(None)),
        (
            r#"entities[0].attributes["title"]"#,
            doc(Some(("title", Kind::Long(1)))),
        ),
        (
            r#"entities[0].attributes["nope"]"#,
            attribute("nope", Kind::Long(1)),
        ),
        (
            r#"entities[0].attributes["age"]"#,
            attribute("age", Kind::Bool(true)),
        ),
        (
            r#"entities[0].attributes["friend"]"#,
            attribute("friend", Kind::Entity(uid("Team", "a"))),
        ),
        (
            r#"entities[0].attributes["friend"]"#,
            attribute("friend", Kind::Entity(uid("Nobody", "a"))),
        ),
        (
            r#"entities[0].attributes["home"]"#,
            attribute("home", record("city", text("x"))),
        ),
        (r#"entities[0].tags["t"]"#, tag("t", Kind::Long(1))),
        (
            "entities[0].uid",
            entities(vec![entity(uid("Color", "blue"), vec![])]),
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_extension_values_are_named() {
    let digits = "9".repeat(1_000_000);
    let mut cases: Vec<Case> = Vec::new();
    for bad in [
        "",
        "1",
        "1.",
        ".5",
        "1.23456",
        "abc",
        "1,5",
        "１.０",
        "1.0 ",
        "\0",
        "1e3",
        "922337203685477.5808",
        "NaN",
        "--1.0",
        &digits,
        &format!("{digits}.0"),
        &format!("0.{digits}"),
    ] {
        let kind = || Kind::Decimal(bad.to_owned());
        cases.push((r#"context["limit"]"#, context("limit", kind())));
        cases.push((
            r#"context["limits"].set[0]"#,
            context("limits", set(vec![value(kind())])),
        ));
        cases.push((
            r#"context["place"].record["limit"]"#,
            good_record("limit", value(kind())),
        ));
        cases.push((
            r#"entities[0].attributes["balance"]"#,
            attribute("balance", kind()),
        ));
        cases.push((r#"entities[0].tags["t"]"#, tag("t", kind())));
    }
    for bad in [
        "",
        "10.0.0",
        "10.0.0.256",
        "1.2.3.4/33",
        "::1/129",
        "1.2.3.4/",
        "1.2.3.4/-1",
        "::ffff:1.2.3.4",
        "fe80::1%eth0",
        "localhost",
        "1.2.3.4\0",
        " 1.2.3.4",
        "01.2.3.4",
        ":::",
        &digits,
    ] {
        let kind = || Kind::Ip(bad.to_owned());
        cases.push((r#"context["from"]"#, context("from", kind())));
        cases.push((r#"entities[0].attributes["net"]"#, attribute("net", kind())));
    }
    for bad in [
        "",
        "yesterday",
        "2024-13-01",
        "2024-02-30",
        "2024-10-15T25:00:00Z",
        "2024-10-15T11:35:00",
        "2024-10-15 11:35:00Z",
        "2024-10-15T11:35:00+99:99",
        "24-1-1",
        "2024-10-15T11:35:60Z",
        "2024-10-15T11:35:00.1Z",
        "-2024-10-15",
        "99999-01-01",
        "２０２４-10-15",
        &digits,
    ] {
        let kind = || Kind::Datetime(bad.to_owned());
        cases.push((r#"context["at"]"#, context("at", kind())));
        cases.push((
            r#"entities[0].attributes["since"]"#,
            attribute("since", kind()),
        ));
    }
    for bad in [
        "",
        "1 hour",
        "1",
        "h",
        "-",
        "1h1d",
        "1.5h",
        "9223372036854775808ms",
        "106751991168d",
        "1d1d",
        "1H",
        "+1h",
        "１h",
        &format!("{digits}ms"),
    ] {
        let kind = || Kind::Duration(bad.to_owned());
        cases.push((r#"context["span"]"#, context("span", kind())));
        cases.push((
            r#"entities[0].attributes["leave"]"#,
            attribute("leave", kind()),
        ));
    }
    assert_all_rejected(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_hierarchies_are_named() {
    let team = |id: &str, parents: &[&str]| {
        entity(
            uid("Team", id),
            parents.iter().map(|parent| uid("Team", parent)).collect(),
        )
    };
    let bob = || entity(uid("User", "bob"), vec![]);
    let chain: Vec<_> = (0..1000)
        .map(|n| team(&n.to_string(), &[&((n + 1) % 1000).to_string()]))
        .collect();
    assert_all_rejected(vec![
        ("entities[0].parents", entities(vec![team("x", &["x"])])),
        (
            "entities[1].parents",
            entities(vec![bob(), team("x", &["a", "x"])]),
        ),
        (
            "entities[0].parents",
            entities(vec![team("x", &["y"]), team("y", &["x"])]),
        ),
        ("entities[0].parents", entities(chain)),
        // Stored: a in b in top.
        ("entities[0].parents", entities(vec![team("b", &["a"])])),
        (
            "entities[1].parents",
            entities(vec![bob(), team("top", &["x", "a"])]),
        ),
        (
            "entities[1].parents",
            entities(vec![
                team("x", &["b"]),
                team("y", &["x"]),
                team("top", &["y"]),
            ])
            .swapped_first(),
        ),
        ("entities[1].uid", entities(vec![bob(), bob()])),
        (
            "entities[2].uid",
            entities(vec![team("x", &["a"]), bob(), team("x", &["b"])]),
        ),
        (
            "entities[0].uid.type",
            entities(vec![entity(uid("Action", "read"), vec![])]),
        ),
        (
            "entities[0].uid.type",
            entities(vec![entity(
                uid("Action", "new"),
                vec![uid("Action", "read")],
            )]),
        ),
        (
            "entities[0].uid.type",
            entities(vec![entity(uid("Shop::Action", "new"), vec![])]),
        ),
    ])
    .await;
}

trait Swapped {
    fn swapped_first(self) -> Self;
}

impl Swapped for pb::AuthorizeRequest {
    /// Moves an entity outside every cycle to the front.
    fn swapped_first(mut self) -> Self {
        self.entities
            .insert(0, entity(uid("User", "first"), vec![]));
        self
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_entities_and_tokens_are_rejected() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let users = |n: usize| {
        entities(
            (0..n)
                .map(|n| entity(uid("User", &n.to_string()), vec![]))
                .collect(),
        )
    };
    target
        .assert_answered("as many entities as the limit", &users(1_000))
        .await;
    target
        .assert_rejected(
            "one entity too many",
            Code::ResourceExhausted,
            "",
            &users(1_001),
        )
        .await;
    target
        .assert_rejected("many too many", Code::ResourceExhausted, "", &users(20_000))
        .await;
    for token in ["", "x.y.z", "\0"] {
        let token = Some(pb::authorize_request::Identity::PrincipalToken(
            token.to_owned(),
        ));
        target
            .assert_rejected(
                "a token",
                Code::Unauthenticated,
                "",
                &changed(|r| r.identity = token),
            )
            .await;
    }
    target.close().await;
    let mut target = Target::open(WITH_SCHEMA, &["--request-entity-types", "Team"]).await;
    let bob = entities(vec![entity(uid("User", "bob"), vec![])]);
    target
        .assert_rejected(
            "a type not listed",
            Code::InvalidArgument,
            "entities[0].uid.type",
            &bob,
        )
        .await;
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_but_legal_requests_are_answered() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let long = "x".repeat(1_000_000);
    let control: String = (0..32)
        .map(|n| char::from(n as u8))
        .chain(['\u{7f}', '\u{85}', '\u{2028}'])
        .collect();
    for id in [
        "",
        "\0",
        "a\0b",
        "é",
        "漢字",
        "\u{10ffff}",
        "\u{202e}",
        "\"",
        "\\",
        "it's",
        "*",
        &control,
        &long,
    ] {
        let case = format!("id {:?}", id.chars().take(8).collect::<String>());
        let answer = target
            .assert_answered(&case, &principal(uid("User", id)))
            .await;
        assert_eq!(answer.decision(), pb::Decision::Allow, "{case}");
        target
            .assert_answered(&case, &changed(|r| r.resource = Some(uid("Doc", id))))
            .await;
        target
            .assert_answered(&case, &context("who", Kind::Entity(uid("User", id))))
            .await;
        target
            .assert_answered(&case, &context("names", set(vec![text(id), text(id)])))
            .await;
        target
            .assert_answered(&case, &tag(id, Kind::String(id.to_owned())))
            .await;
        target
            .assert_answered(
                &case,
                &entities(vec![entity(uid("User", id), vec![uid("Team", id)])]),
            )
            .await;
    }
    for long in [i64::MIN, i64::MAX, 0, -1] {
        target
            .assert_answered("a long", &context("amount", Kind::Long(long)))
            .await;
        target
            .assert_answered("a long", &attribute("age", Kind::Long(long)))
            .await;
    }
    for (name, kind) in [
        ("limit", Kind::Decimal("-922337203685477.5808".to_owned())),
        ("from", Kind::Ip("::/0".to_owned())),
        ("at", Kind::Datetime("9999-12-31T23:59:59.999Z".to_owned())),
        ("at", Kind::Datetime("0000-01-01".to_owned())),
        ("span", Kind::Duration("-9223372036854775808ms".to_owned())),
    ] {
        target.assert_answered(name, &context(name, kind)).await;
    }
    target.close().await;

    let mut bare = Target::open(WITHOUT_SCHEMA, &[]).await;
    bare.assert_answered("any type", &principal(uid("Nobody::Knows", "x")))
        .await;
    bare.assert_answered("an odd key", &context("\0\u{10ffff}\"", Kind::Bool(true)))
        .await;
    bare.assert_answered(
        "mixed set",
        &context("x", set(vec![value(Kind::Bool(true)), value(set(vec![]))])),
    )
    .await;
    bare.close().await;
}

/// Clients accept header lists of 16 KiB by default; a status with a long text must fit.
#[tokio::test(flavor = "multi_thread")]
async fn errors_about_long_texts_are_short() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let long = "x\u{1}".repeat(400_000);
    let cases = [
        (
            "unknown action",
            changed(|r| r.action = Some(uid("", &long))),
        ),
        (
            "unknown type",
            principal(uid(&format!("T{}", "t".repeat(4_000)), "x")),
        ),
        ("key", context(&long, Kind::Bool(true))),
        (
            "key in a record",
            context("place", record(&long, without_kind())),
        ),
        (
            "duplicate",
            entities(vec![
                entity(uid("User", &long), vec![]),
                entity(uid("User", &long), vec![]),
            ]),
        ),
        (
            "self parent",
            entities(vec![entity(uid("Team", &long), vec![uid("Team", &long)])]),
        ),
        (
            "parent",
            entities(vec![entity(uid("User", "b"), vec![uid("Doc", &long)])]),
        ),
        ("attribute", attribute("age", Kind::String(long.clone()))),
        ("attribute of whom", {
            let mut user = entity(uid("User", &long), vec![]);
            user.attributes.insert("age".to_owned(), text("x"));
            entities(vec![user])
        }),
        ("undeclared attribute", attribute(&long, Kind::Bool(true))),
        ("tag", tag(&long, Kind::Bool(true))),
        ("enum", context("color", Kind::Entity(uid("Color", &long)))),
        ("context", context("amount", Kind::String(long.clone()))),
        (
            "context of another type",
            context("who", Kind::Entity(uid("Doc", &long))),
        ),
        ("decimal", context("limit", Kind::Decimal(long.clone()))),
        ("ip", context("from", Kind::Ip(long.clone()))),
        ("datetime", context("at", Kind::Datetime(long.clone()))),
        ("duration", context("span", Kind::Duration(long.clone()))),
    ];
    let mut too_long = Vec::new();
    for (case, request) in cases {
        use prost::Message as _;
        let outcome = target
            .client
            .call(crate::support::http2::AUTHORIZE, &request.encode_to_vec())
            .await;
        match &outcome.status {
            Some(status) if status.code() == Code::InvalidArgument => {
                let bytes = status.message().len() + status.details().len() * 4 / 3;
                if bytes > 8_000 {
                    too_long.push(format!("{case}: {bytes} bytes"));
                }
            }
            other => too_long.push(format!(
                "{case}: {:?}, {:?}",
                other.as_ref().map(|s| s.code()),
                outcome.h2_error
            )),
        }
        target.assert_accepting(case).await;
    }
    assert!(too_long.is_empty(), "{too_long:#?}");
    target.close().await;
}
