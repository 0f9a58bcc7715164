//! What a line says.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::decision_log::Method;
use crate::engine::query_ref::Fields;
use crate::pdp::query::{Uid, Value};
use serde_json::{Value as Json, json};

struct Said {
    decision: Decision,
    determining: Vec<String>,
    errors: Vec<(String, String)>,
}

impl Answers for Said {
    fn decision(&self) -> Decision {
        self.decision
    }

    fn determining(&self) -> impl Iterator<Item = &str> {
        self.determining.iter().map(String::as_str)
    }

    fn errors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.errors.iter().map(|(a, b)| (a.as_str(), b.as_str()))
    }
}

const USER: UidRef<'_> = UidRef {
    type_name: "User",
    id: "alice",
};
const ACTION: UidRef<'_> = UidRef {
    type_name: "Action",
    id: "read",
};
const DOC: UidRef<'_> = UidRef {
    type_name: "Shop::Doc",
    id: "a \"b\"\n",
};

fn fields<'a>(entries: Vec<(&'a str, ValueRef<'a>)>) -> Fields<'a> {
    Fields::of(entries).expect("each name stands once")
}

fn query<'a>(context: Vec<(&'a str, ValueRef<'a>)>, entities: Vec<EntityRef<'a>>) -> QueryRef<'a> {
    QueryRef {
        principal: USER,
        action: ACTION,
        resource: DOC,
        context: fields(context),
        entities,
        claimed: None,
        explain: false,
    }
}

fn allow() -> Said {
    Said {
        decision: Decision::Allow,
        determining: vec!["docs.cedar#0".to_owned()],
        errors: Vec::new(),
    }
}

fn text(shown: &[&str], query: &QueryRef<'_>, said: &Said) -> String {
    let paths: Vec<_> = shown.iter().map(|path| path.parse().unwrap()).collect();
    let format = Format {
        shown: Shown::new(&paths),
        on_policy_error: OnPolicyError::Skip,
    };
    let stamp = Stamp {
        at: Duration::new(1_790_000_000, 1_234_567),
        id: DecisionId::new(Duration::from_secs(1), 2),
    };
    let origin = Origin {
        method: Method::BatchAuthorize,
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        caller: Some("spiffe://x/y"),
    };
    let told = Told {
        query,
        answer: said,
        revision: &Revision::from_digest(&[1; 32]),
        cache: CacheUse::Hit,
        took: Duration::from_nanos(12_034),
    };
    let mut line = Vec::new();
    format.decided(&mut line, &stamp, &origin, &told);
    String::from_utf8(line).unwrap()
}

fn line(shown: &[&str], query: &QueryRef<'_>, said: &Said) -> Json {
    let text = text(shown, query, said);
    assert_eq!(text.find('\n'), Some(text.len() - 1), "one line: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_line_says_who_asked_what_and_what_was_answered() {
    let mut said = allow();
    said.errors = vec![("broken".to_owned(), "it says 42".to_owned())];
    assert_eq!(
        line(&[], &query(Vec::new(), Vec::new()), &said),
        json!({
            "v": 1,
            "time": "2026-09-21T14:13:20.001234Z",
            "id": "00000000-03e8-7000-8000-000000000000",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
            "caller": "spiffe://x/y",
            "method": "BatchAuthorize",
            "principal": { "type": "User", "id": "alice" },
            "action": { "type": "Action", "id": "read" },
            "resource": { "type": "Shop::Doc", "id": "a \"b\"\n" },
            "context": {},
            "decision": "ALLOW",
            "determining_policies": ["docs.cedar#0"],
            "errors": [{ "policy": "broken", "message": { "__masked": true } }],
            "revision": "01".repeat(32),
            "cache": "hit",
            "duration_us": 12.034,
            "replayable": true,
        })
    );
    let shown = line(&["errors.message"], &query(Vec::new(), Vec::new()), &said);
    assert_eq!(shown["errors"][0]["message"], "it says 42");
}

#[test]
fn what_a_token_says_is_told_and_masked_as_an_entity_of_its_type_is() {
    let attributes = [
        ("level", Value::Long(3)),
        ("name", Value::String("Al".to_owned())),
    ];
    let claimed = Arc::new(Claimed {
        attributes: BTreeMap::from(attributes.map(|(name, value)| (name.to_owned(), value))).into(),
        parents: vec![Uid::new("Role", "reader")],
        stored: StoredPrincipal::Join,
    });
    let query = QueryRef {
        claimed: Some(&claimed),
        ..query(Vec::new(), Vec::new())
    };
    let masked = line(&["User.level"], &query, &allow());
    assert_eq!(
        masked["claimed"],
        json!({
            "stored": "join",
            "attrs": { "level": 3, "name": { "__masked": true } },
            "parents": [{ "type": "Role", "id": "reader" }],
        })
    );
    assert_eq!(masked["replayable"], false);
    assert_eq!(line(&["*"], &query, &allow())["replayable"], true);
}

fn every_kind<'a>() -> Vec<(&'a str, ValueRef<'a>)> {
    vec![
        ("a bool", ValueRef::Bool(true)),
        ("datetime", ValueRef::Datetime("2024-10-15")),
        ("decimal", ValueRef::Decimal("1.50")),
        ("duration", ValueRef::Duration("1h")),
        ("entity", ValueRef::Entity(DOC)),
        ("ip", ValueRef::Ip("10.0.0.0/8")),
        ("long", ValueRef::Long(i64::MIN)),
        (
            "record",
            ValueRef::Record(fields(vec![("x", ValueRef::Set(vec![ValueRef::Long(1)]))])),
        ),
        ("string", ValueRef::String("\u{1b}[2J")),
    ]
}

#[test]
fn a_shown_value_is_as_cedar_writes_it() {
    let entity = EntityRef {
        uid: USER,
        attributes: fields(vec![("age", ValueRef::Long(7))]),
        parents: vec![DOC],
        tags: fields(vec![("t", ValueRef::Bool(false))]),
    };
    let line = line(&["*"], &query(every_kind(), vec![entity]), &allow());
    assert_eq!(
        line["context"],
        json!({
            "a bool": true,
            "datetime": { "__extn": { "fn": "datetime", "arg": "2024-10-15" } },
            "decimal": { "__extn": { "fn": "decimal", "arg": "1.50" } },
            "duration": { "__extn": { "fn": "duration", "arg": "1h" } },
            "entity": { "__entity": { "type": "Shop::Doc", "id": "a \"b\"\n" } },
            "ip": { "__extn": { "fn": "ip", "arg": "10.0.0.0/8" } },
            "long": i64::MIN,
            "record": { "x": [1] },
            "string": "\u{1b}[2J",
        })
    );
    assert_eq!(
        line["entities"],
        json!([{
            "uid": { "type": "User", "id": "alice" },
            "attrs": { "age": 7 },
            "parents": [{ "type": "Shop::Doc", "id": "a \"b\"\n" }],
            "tags": { "t": false },
        }])
    );
    assert_eq!(line["replayable"], true);
    // And Cedar reads it so.
    let entities = cedar_policy::Entities::from_json_value(line["entities"].clone(), None);
    assert_eq!(entities.unwrap().iter().count(), 1);
    let context = cedar_policy::Context::from_json_value(line["context"].clone(), None).unwrap();
    let decimal = context.get("decimal").unwrap();
    assert!(decimal.to_string().contains("1.50"), "{decimal}");
}

#[test]
fn what_is_not_listed_is_masked_and_the_line_says_that_it_cannot_be_replayed() {
    let entity = |type_name| EntityRef {
        uid: UidRef { type_name, id: "x" },
        attributes: fields(vec![
            ("name", ValueRef::String("secret")),
            ("role", ValueRef::String("admin")),
        ]),
        parents: Vec::new(),
        tags: fields(vec![("role", ValueRef::String("secret"))]),
    };
    let context = vec![
        ("amount", ValueRef::Long(1)),
        ("phone", ValueRef::String("secret")),
    ];
    let query = query(context, vec![entity("User"), entity("Other")]);
    let line = line(&["context.amount", "User.role"], &query, &allow());
    let masked = json!({ "__masked": true });
    assert_eq!(line["context"], json!({ "amount": 1, "phone": masked }));
    assert_eq!(
        line["entities"][0]["attrs"],
        json!({ "name": masked, "role": "admin" })
    );
    assert_eq!(
        line["entities"][1]["attrs"],
        json!({ "name": masked, "role": masked })
    );
    assert_eq!(line["replayable"], false);
    let all = text(&[], &query, &allow());
    assert!(!all.contains("secret") && !all.contains("admin"), "{all}");
}

#[test]
fn a_record_that_reads_like_something_else_is_masked() {
    for name in RESERVED {
        let record = || ValueRef::Record(fields(vec![(name, ValueRef::Bool(true))]));
        let within = ValueRef::Record(fields(vec![("x", ValueRef::Set(vec![record()]))]));
        let inside = line(&["*"], &query(vec![("r", within)], Vec::new()), &allow());
        assert_eq!(
            inside["context"],
            json!({ "r": { "x": [{ "__masked": true }] } })
        );
        assert_eq!(inside["replayable"], false);
        let context = vec![(name, ValueRef::Bool(true))];
        let top = line(&["*"], &query(context, Vec::new()), &allow());
        assert_eq!(top["context"], json!({ name: { "__masked": true } }));
        assert_eq!(top["replayable"], false);
    }
}

#[test]
fn a_line_has_a_bound_however_much_was_sent() {
    let long = "\u{1}".repeat(LONGEST_LINE);
    let mut said = allow();
    said.determining = vec![long.clone(); 100];
    said.errors = vec![(long.clone(), long.clone()); 100];
    let mut query = query(vec![("x", ValueRef::String(&long))], Vec::new());
    query.resource.id = &long;
    let written = text(&["*"], &query, &said);
    assert!(written.len() < LONGEST_LINE, "{}", written.len());
    let line: Json = serde_json::from_str(&written).unwrap();
    assert_eq!(line["cut"], true);
    assert_eq!(line["replayable"], false);
    assert_eq!(line["decision"], "ALLOW");
    assert_eq!(line.get("context"), None);
    assert_eq!(
        line["resource"]["id"].as_str().map(str::len),
        Some(LONGEST_TEXT)
    );
}

#[test]
fn days_are_those_of_the_calendar() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_399, "2000-02-28T23:59:59.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
    ] {
        let mut line = Vec::new();
        time(&mut line, Duration::from_secs(seconds));
        assert_eq!(String::from_utf8(line).unwrap(), text);
    }
}
