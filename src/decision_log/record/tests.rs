//! The content of log lines.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::line_writer::RESERVED;
use super::*;
use crate::config::decision_log::AttributePath;
use crate::decision_log::Method;
use crate::pdp::query::{Claimed, StoredPrincipal, Uid, Value};
use crate::pdp::query_ref::{EntityRef, Fields, UidRef, ValueRef};
use serde_json::{Value as Json, json};

struct TestAnswer {
    decision: Decision,
    determining: Vec<String>,
    errors: Vec<(String, String)>,
}

impl LoggableAnswer for TestAnswer {
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
    Fields::from_entries(entries).expect("names are unique")
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

fn allow() -> TestAnswer {
    TestAnswer {
        decision: Decision::Allow,
        determining: vec!["docs.cedar#0".to_owned()],
        errors: Vec::new(),
    }
}

fn text(visible: &[&str], query: &QueryRef<'_>, answer: &TestAnswer) -> String {
    let paths: Vec<_> = visible
        .iter()
        .map(|path| AttributePath::parse(path).unwrap())
        .collect();
    let format = RecordFormat {
        redaction: Redaction::new(&paths),
        on_policy_error: OnPolicyError::Skip,
    };
    let id = RecordId {
        time: Duration::new(1_790_000_000, 1_234_567),
        id: DecisionId::new(Duration::from_secs(1), 2),
    };
    let origin = Origin {
        method: Method::BatchAuthorize,
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
        caller: Some("spiffe://x/y"),
    };
    let entry = LogEntry {
        query,
        answer,
        revision: &Revision::from_digest(&[1; 32]),
        cache: CacheStatus::Hit,
        took: Duration::from_nanos(12_034),
    };
    let mut line = Vec::new();
    format.write_decision(&mut line, &id, &origin, &entry);
    String::from_utf8(line).unwrap()
}

fn line(visible: &[&str], query: &QueryRef<'_>, answer: &TestAnswer) -> Json {
    let text = text(visible, query, answer);
    assert_eq!(text.find('\n'), Some(text.len() - 1), "one line: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn line_holds_query_and_answer() {
    let mut answer = allow();
    answer.errors = vec![("broken".to_owned(), "it says 42".to_owned())];
    assert_eq!(
        line(&[], &query(Vec::new(), Vec::new()), &answer),
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
    let unmasked = line(&["errors.message"], &query(Vec::new(), Vec::new()), &answer);
    assert_eq!(unmasked["errors"][0]["message"], "it says 42");
}

#[test]
fn token_claims_are_masked_like_entities() {
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

fn values_of_all_types<'a>() -> Vec<(&'a str, ValueRef<'a>)> {
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
fn visible_values_are_in_cedars_format() {
    let entity = EntityRef {
        uid: USER,
        attributes: fields(vec![("age", ValueRef::Long(7))]),
        parents: vec![DOC],
        tags: fields(vec![("t", ValueRef::Bool(false))]),
    };
    let line = line(
        &["*"],
        &query(values_of_all_types(), vec![entity]),
        &allow(),
    );
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
    // Cedar parses them.
    let entities = cedar_policy::Entities::from_json_value(line["entities"].clone(), None);
    assert_eq!(entities.unwrap().iter().count(), 1);
    let context = cedar_policy::Context::from_json_value(line["context"].clone(), None).unwrap();
    let decimal = context.get("decimal").unwrap();
    assert!(decimal.to_string().contains("1.50"), "{decimal}");
}

#[test]
fn unlisted_values_are_masked_and_not_replayable() {
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
fn records_with_reserved_names_are_masked() {
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
fn line_length_is_bounded() {
    let long = "\u{1}".repeat(MAX_LINE_BYTES);
    let mut answer = allow();
    answer.determining = vec![long.clone(); 100];
    answer.errors = vec![(long.clone(), long.clone()); 100];
    let mut query = query(vec![("x", ValueRef::String(&long))], Vec::new());
    query.resource.id = &long;
    let written = text(&["*"], &query, &answer);
    assert!(written.len() < MAX_LINE_BYTES, "{}", written.len());
    let line: Json = serde_json::from_str(&written).unwrap();
    assert_eq!(line["cut"], true);
    assert_eq!(line["replayable"], false);
    assert_eq!(line["decision"], "ALLOW");
    assert_eq!(line.get("context"), None);
    assert_eq!(
        line["resource"]["id"].as_str().map(str::len),
        Some(MAX_CUT_TEXT_BYTES)
    );
}
