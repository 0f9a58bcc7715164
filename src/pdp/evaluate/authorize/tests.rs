//! Decisions as a specification. The property test in `tests/oracle` compares all other cases with
//! Cedar's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::pdp::compile;
use crate::pdp::explanation::{ClauseOutcome, Explanation};
use crate::pdp::query::{Claimed, Problem, Record, RequestEntity, StoredPrincipal, Uid, Value};
use crate::pdp::settings::{Settings, Validation};
use crate::pdp::sources::{FileKind, SourceFile, Sources};

fn snapshot(files: &[(&str, &str)], settings: Settings) -> Snapshot {
    let files = files
        .iter()
        .map(|(path, text)| {
            let kind = FileKind::from_name(path).expect("a name that matches");
            SourceFile::in_memory((*path).to_owned(), kind, Arc::from(*text))
        })
        .collect();
    compile(&Sources::new(files, vec![], vec![]), &settings).expect("sources that compile")
}

fn policies(text: &str) -> Snapshot {
    snapshot(&[("policies.cedar", text)], Settings::default())
}

fn query(principal: &str, action: &str, resource: &str) -> Query {
    Query {
        principal: principal.parse().unwrap(),
        action: action.parse().unwrap(),
        resource: resource.parse().unwrap(),
        context: Record::default(),
        entities: vec![],
        claimed: None,
        explain: false,
    }
}

fn read() -> Query {
    query(r#"User::"alice""#, r#"Action::"read""#, r#"Doc::"1""#)
}

fn record(fields: &[(&str, Value)]) -> Record {
    let fields: BTreeMap<String, Value> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    fields.into()
}

fn determining(answer: &Answer) -> Vec<&str> {
    answer
        .diagnostics
        .determining
        .iter()
        .map(PolicyId::as_str)
        .collect()
}

#[track_caller]
fn check(snapshot: &Snapshot, query: &Query, decision: Decision, ids: &[&str]) {
    let answer = authorize(snapshot, query).expect("a valid query");
    assert_eq!(
        (answer.decision, determining(&answer)),
        (decision, ids.to_vec())
    );
}

#[track_caller]
fn invalid(snapshot: &Snapshot, query: &Query) -> (String, Problem) {
    match authorize(snapshot, query).expect_err("an invalid query") {
        NoAnswer::Invalid(error) => (error.field.as_str().to_owned(), error.problem),
        other @ (NoAnswer::UnknownPrincipal
        | NoAnswer::TooManyPolicies { .. }
        | NoAnswer::TooManyEntities { .. }) => panic!("{other:?}"),
    }
}

#[test]
fn no_satisfied_permit_means_deny() {
    check(
        &policies(r#"permit(principal == User::"bob", action, resource);"#),
        &read(),
        Decision::Deny,
        &[],
    );
}

#[test]
fn one_forbid_outweighs_every_permit() {
    let snapshot = policies(
        r#"
permit(principal, action, resource);
forbid(principal == User::"alice", action, resource);
"#,
    );
    check(&snapshot, &read(), Decision::Deny, &["policies.cedar#1"]);
}

#[test]
fn policy_ids_come_from_annotation_or_position() {
    let snapshot = policies(
        r#"
permit(principal, action, resource);
@id("b") permit(principal, action, resource);
permit(principal == ?principal, action, resource);
permit(principal, action, resource);
"#,
    );
    check(
        &snapshot,
        &read(),
        Decision::Allow,
        &["b", "policies.cedar#0", "policies.cedar#3"],
    );
}

#[test]
fn failing_policies_are_skipped_and_named() {
    let snapshot = policies(
        r#"
@id("fails") forbid(principal, action, resource) when { context.nothing == 1 };
@id("holds") permit(principal, action, resource);
"#,
    );
    let answer = authorize(&snapshot, &read()).unwrap();
    assert_eq!(
        (answer.decision, determining(&answer)),
        (Decision::Allow, vec!["holds"])
    );
    let [error] = answer.diagnostics.errors.as_slice() else {
        panic!("{answer:?}")
    };
    assert_eq!(error.policy.as_str(), "fails");
    assert!(
        error
            .message
            .starts_with("error while evaluating policy `fails`: "),
        "{}",
        error.message
    );
}

#[test]
fn failing_forbid_denies_if_configured() {
    let text = r#"
@id("fails") forbid(principal, action, resource) when { context.nothing == 1 };
@id("holds") permit(principal, action, resource);
@id("permit-fails") permit(principal, action, resource) when { context.nothing == 1 };
"#;
    let settings = Settings {
        on_policy_error: OnPolicyError::Deny,
        ..Settings::default()
    };
    let answer = authorize(&snapshot(&[("p.cedar", text)], settings), &read()).unwrap();
    assert_eq!(
        (answer.decision, determining(&answer)),
        (Decision::Deny, vec!["fails"])
    );
    assert_eq!(answer.diagnostics.errors.len(), 2);
}

#[test]
fn schema_supplies_action_hierarchy_in_every_mode() {
    let files = [
        (
            "s.cedarschema",
            r#"
entity User, Doc;
action any;
action read in [any] appliesTo { principal: User, resource: Doc };
"#,
        ),
        (
            "p.cedar",
            r#"@id("group") permit(principal, action in Action::"any", resource);"#,
        ),
    ];
    for validation in [Validation::Strict, Validation::Warn, Validation::Off] {
        let snapshot = snapshot(
            &files,
            Settings {
                validation,
                ..Settings::default()
            },
        );
        check(&snapshot, &read(), Decision::Allow, &["group"]);
    }
}

/// A schema that a request or an entity can violate in every way.
const SCHEMA: &str = r#"
entity Group;
entity User in [Group] { name: String, nick?: String };
entity Doc { owner?: User } tags Long;
entity Color enum ["red"];
action read appliesTo { principal: User, resource: Doc, context: { amount: decimal, deep?: { x: Set<Long> } } };
action paint appliesTo { principal: User, resource: Color, context: {} };
"#;

fn with_schema(validation: Validation) -> Snapshot {
    let policy = "permit(principal, action, resource);";
    snapshot(
        &[("s.cedarschema", SCHEMA), ("p.cedar", policy)],
        Settings {
            validation,
            ..Settings::default()
        },
    )
}

fn amount() -> (&'static str, Value) {
    ("amount", Value::Decimal("1.0".to_owned()))
}

#[test]
fn nonconforming_requests_name_the_field() {
    let snapshot = with_schema(Validation::Strict);
    let good = Query {
        context: record(&[amount()]),
        ..read()
    };
    check(&snapshot, &good, Decision::Allow, &["p.cedar#0"]);
    let with = |context: &[(&str, Value)]| Query {
        context: record(context),
        ..good.clone()
    };
    let uid = |type_name: &str| Uid::new(type_name, "x");
    for (query, field) in [
        (
            Query {
                principal: uid("Nobody"),
                ..good.clone()
            },
            "principal.type",
        ),
        (
            Query {
                resource: uid("Nothing"),
                ..good.clone()
            },
            "resource.type",
        ),
        (
            Query {
                principal: uid("Doc"),
                ..good.clone()
            },
            "principal.type",
        ),
        (
            Query {
                resource: uid("User"),
                ..good.clone()
            },
            "resource.type",
        ),
        (
            Query {
                action: Uid::new("Action", "write"),
                ..good.clone()
            },
            "action",
        ),
        (
            Query {
                action: Uid::new("Action", "paint"),
                resource: uid("Color"),
                ..with(&[])
            },
            "resource.id",
        ),
        (with(&[]), r#"context["amount"]"#),
        (with(&[("amount", Value::Long(1))]), r#"context["amount"]"#),
        (
            with(&[amount(), ("more", Value::Long(1))]),
            r#"context["more"]"#,
        ),
        (
            with(&[amount(), ("deep", record(&[]).into_value())]),
            r#"context["deep"]"#,
        ),
        (
            with(&[("amount", Value::Decimal("x".to_owned()))]),
            r#"context["amount"]"#,
        ),
    ] {
        assert_eq!(invalid(&snapshot, &query).0, field, "{query:?}");
    }
}

trait IntoValue {
    fn into_value(self) -> Value;
}

impl IntoValue for Record {
    fn into_value(self) -> Value {
        Value::Record(self)
    }
}

#[test]
fn request_entities_must_conform_without_validation() {
    let snapshot = with_schema(Validation::Off);
    check(&snapshot, &read(), Decision::Allow, &["p.cedar#0"]);
    let query = Query {
        entities: vec![entity(r#"User::"alice""#, &[], &[])],
        ..read()
    };
    assert_eq!(
        invalid(&snapshot, &query).0,
        r#"entities[0].attributes["name"]"#
    );
}

fn entity(uid: &str, attributes: &[(&str, Value)], parents: &[&str]) -> RequestEntity {
    RequestEntity {
        uid: uid.parse().unwrap(),
        attributes: record(attributes),
        parents: parents
            .iter()
            .map(|parent| parent.parse().unwrap())
            .collect(),
        tags: Record::default(),
    }
}

#[test]
fn nonconforming_request_entities_name_the_field() {
    let snapshot = with_schema(Validation::Strict);
    let name = ("name", Value::String("Alice".to_owned()));
    let user = |attributes: &[(&str, Value)], parents: &[&str]| {
        entity(r#"User::"alice""#, attributes, parents)
    };
    let tagged = RequestEntity {
        tags: record(&[("t", Value::Bool(true))]),
        ..entity(r#"Doc::"1""#, &[], &[])
    };
    for (entities, field) in [
        (
            vec![user(&[("name", Value::Long(1))], &[])],
            r#"entities[0].attributes["name"]"#,
        ),
        (
            vec![user(&[name.clone(), ("more", Value::Long(1))], &[])],
            r#"entities[0].attributes["more"]"#,
        ),
        (
            vec![user(
                std::slice::from_ref(&name),
                &[r#"Group::"g""#, r#"Doc::"1""#],
            )],
            "entities[0].parents[1]",
        ),
        (vec![tagged], r#"entities[0].tags["t"]"#),
        (
            vec![entity(r#"Nothing::"1""#, &[], &[])],
            "entities[0].uid.type",
        ),
        (
            vec![entity(r#"Action::"read""#, &[], &[])],
            "entities[0].uid.type",
        ),
        (
            vec![
                user(std::slice::from_ref(&name), &[]),
                user(std::slice::from_ref(&name), &[]),
            ],
            "entities[1].uid",
        ),
    ] {
        let query = Query {
            entities,
            context: record(&[amount()]),
            ..read()
        };
        assert_eq!(invalid(&snapshot, &query).0, field, "{query:?}");
    }
}

#[test]
fn cycles_through_stored_entities_are_rejected() {
    let stored = r#"[{"uid": {"type": "G", "id": "a"}, "attrs": {}, "parents": [{"type": "G", "id": "b"}]}]"#;
    let snapshot = snapshot(
        &[
            ("p.cedar", "permit(principal, action, resource);"),
            ("entities.json", stored),
        ],
        Settings::default(),
    );
    for entities in [
        vec![entity(r#"G::"x""#, &[], &[r#"G::"x""#])],
        vec![entity(r#"G::"b""#, &[], &[r#"G::"a""#])],
    ] {
        let (field, problem) = invalid(&snapshot, &Query { entities, ..read() });
        assert_eq!(field, "entities[0].parents");
        assert!(matches!(problem, Problem::Cycle { .. }));
    }
}

#[test]
fn unlisted_request_entity_types_are_rejected() {
    let settings = Settings {
        request_entity_types: Some(["Doc".to_owned()].into()),
        ..Settings::default()
    };
    let snapshot = snapshot(
        &[("p.cedar", "permit(principal, action, resource);")],
        settings,
    );
    let sent = |uid: &str| Query {
        entities: vec![entity(uid, &[], &[])],
        ..read()
    };
    check(
        &snapshot,
        &sent(r#"Doc::"1""#),
        Decision::Allow,
        &["p.cedar#0"],
    );
    assert_eq!(
        invalid(&snapshot, &sent(r#"User::"alice""#)).0,
        "entities[0].uid.type"
    );
}

#[test]
fn policies_read_through_request_and_stored_entities() {
    let stored = r#"[
        {"uid": {"type": "Team", "id": "t"}, "attrs": {"lead": {"__entity": {"type": "User", "id": "lead"}}}, "parents": []},
        {"uid": {"type": "User", "id": "lead"}, "attrs": {"level": 7}, "parents": []}
    ]"#;
    let text = r#"
@id("lead") permit(principal, action, resource) when { resource.team.lead.level == 7 };
@id("literal") permit(principal, action, resource) when { Team::"t".lead.level == 7 };
"#;
    let snapshot = snapshot(
        &[("p.cedar", text), ("entities.json", stored)],
        Settings::default(),
    );
    let doc = entity(
        r#"Doc::"1""#,
        &[("team", Value::Entity(Uid::new("Team", "t")))],
        &[],
    );
    check(
        &snapshot,
        &Query {
            entities: vec![doc],
            ..read()
        },
        Decision::Allow,
        &["lead", "literal"],
    );
}

#[test]
fn deepest_condition_is_evaluated_on_small_stack() {
    let chain = vec!["context.x == 1"; crate::pdp::MAX_CHAIN - 20].join(" && ");
    let snapshot = policies(&format!(
        "permit(principal, action, resource) when {{ {chain} }};"
    ));
    let query = Query {
        context: record(&[("x", Value::Long(1))]),
        ..read()
    };
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(move || check(&snapshot, &query, Decision::Allow, &["policies.cedar#0"]))
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn longest_path_is_followed_on_small_stack() {
    let path = ".boss".repeat(crate::pdp::MAX_CHAIN / 2 - 20);
    let policy = format!(
        "permit(principal, action, resource) when {{ principal{path} in Group::\"staff\" }};"
    );
    let alice = r#"{"type": "User", "id": "alice"}"#;
    let stored = format!(
        r#"[{{"uid": {alice}, "attrs": {{"boss": {{"__entity": {alice}}}}},
             "parents": [{{"type": "Group", "id": "staff"}}]}}]"#
    );
    let files = [
        ("p.cedar", policy.as_str()),
        ("entities.json", stored.as_str()),
    ];
    let snapshot = snapshot(&files, Settings::default());
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(move || check(&snapshot, &read(), Decision::Allow, &["p.cedar#0"]))
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn explanation_names_determining_policies_and_their_location() {
    let snapshot =
        policies("\n@id(\"why\") @reason(\"public\")\npermit(principal, action, resource);");
    let answer = authorize(
        &snapshot,
        &Query {
            explain: true,
            ..read()
        },
    )
    .unwrap();
    let explanation = answer.explanation.unwrap();
    let [policy] = explanation.determining.as_slice() else {
        panic!("{explanation:?}")
    };
    assert_eq!(policy.policy.as_str(), "why");
    assert!(
        policy
            .annotations
            .contains(&("reason".to_owned(), "public".to_owned()))
    );
    assert_eq!(policy.place.position.map(|position| position.line), Some(2));
}

#[test]
fn explanation_shows_the_values_that_an_operand_reads() {
    let entities = r#"[
        {"uid": {"type": "User", "id": "alice"}, "parents": [], "attrs": {
            "limit": {"__extn": {"fn": "decimal", "arg": "50000.00"}},
            "home": {"city": "Riga"},
            "teams": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
        }, "tags": {"unit": "north"}},
        {"uid": {"type": "Doc", "id": "1"}, "parents": [], "attrs": {
            "kind": "unit",
            "amount": {"__extn": {"fn": "decimal", "arg": "180000.00"}},
            "owner": {"__entity": {"type": "User", "id": "bob"}}
        }}
    ]"#;
    for (condition, values) in [
        (
            "resource.amount.lessThan(principal.limit)",
            &[
                r#"resource.amount = decimal("180000.00")"#,
                r#"principal.limit = decimal("50000.00")"#,
            ][..],
        ),
        (
            "resource.owner == principal",
            &[
                r#"resource.owner = User::"bob""#,
                r#"principal = User::"alice""#,
            ],
        ),
        // Only the operand that is not true, and a path as a whole.
        (
            r#"principal.home.city == "Riga" && principal.home.city == "Oslo""#,
            &[r#"principal.home.city = "Riga""#],
        ),
        (
            r#"principal.getTag("unit") == "south""#,
            &[r#"principal.getTag("unit") = "north""#],
        ),
        // Each expression once; a long set is cut.
        (
            r#"principal.teams.contains("x") || principal.teams.contains("y")"#,
            &[r#"principal.teams = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", … 2 more]"#],
        ),
        // What has no value is left out.
        (
            "principal.home.city == principal.home.street",
            &[r#"principal.home.city = "Riga""#],
        ),
        ("context has mfa", &["context = {}"]),
        (
            r#"principal.home == {"city": "Oslo"}"#,
            &[r#"principal.home = {"city": "Riga"}"#],
        ),
        (
            r#"User::"alice".home.city == "Oslo""#,
            &[r#"User::"alice".home.city = "Riga""#],
        ),
        (
            r#"principal.getTag(resource.kind) == "south""#,
            &[
                r#"resource.kind = "unit""#,
                r#"principal.getTag(resource.kind) = "north""#,
            ],
        ),
        // One read, however often it occurs.
        (
            &vec![r#"principal.home.city == "x""#; 70]
                .join(" || ")
                .replace("== \"x\"", "== \"x\" || resource.kind == \"x\""),
            &[
                r#"principal.home.city = "Riga""#,
                r#"resource.kind = "unit""#,
            ],
        ),
        // What is read from something computed has no short name.
        (
            r#"(if context has a then principal else principal).home.city == "Oslo""#,
            &["context = {}", r#"principal = User::"alice""#],
        ),
    ] {
        let policy = format!("permit(principal, action, resource) when {{ {condition} }};");
        let files = [("a.cedar", policy.as_str()), ("entities.json", entities)];
        let explanation = explained(&snapshot(&files, Settings::default()), &read());
        let [permit] = explanation.unsatisfied.as_slice() else {
            panic!("{condition}: {explanation:?}");
        };
        let shown = permit.clause.values.iter();
        let shown: Vec<String> = shown
            .map(|value| format!("{} = {}", value.expression, value.value))
            .collect();
        assert_eq!(shown, values, "{condition}");
    }
}

#[test]
fn explanation_names_the_nearest_permit() {
    let entities = r#"[{"uid": {"type": "User", "id": "alice"}, "attrs": {}, "parents": []}]"#;
    let nearest = |policies: &str| {
        let files = [("a.cedar", policies), ("entities.json", entities)];
        let explanation = explained(&snapshot(&files, Settings::default()), &read());
        assert_eq!(explanation.unsatisfied_total, 0);
        let nearest = explanation.nearest?;
        let mismatches = nearest.mismatches.iter();
        let mismatches = mismatches.map(|found| format!("{} / {}", found.constraint, found.actual));
        Some((
            nearest.policy.policy.to_string(),
            mismatches.collect::<Vec<_>>().join("; "),
        ))
    };
    let some = |policy: &str, mismatches: &str| Some((policy.to_owned(), mismatches.to_owned()));
    assert_eq!(nearest("forbid(principal, action, resource);"), None);
    // The one with the fewest differences, though it is not the first.
    assert_eq!(
        nearest(
            r#"@id("a") permit(principal == User::"bob", action == Action::"write", resource);
               @id("b") permit(principal is User in Group::"staff", action == Action::"read", resource);"#
        ),
        some("b", r#"principal in Group::"staff" / User::"alice""#)
    );
    // Of equal ones, one for the action.
    assert_eq!(
        nearest(
            r#"@id("a") permit(principal, action == Action::"write", resource == Doc::"1");
               @id("b") permit(principal is Robot, action == Action::"read", resource == Doc::"1");"#
        ),
        some("b", r#"principal is Robot / User::"alice""#)
    );
    assert_eq!(
        nearest(r#"@id("a") permit(principal, action in [], resource);"#),
        some("a", r#"action in [] / Action::"read""#)
    );
    // Every difference is listed.
    assert_eq!(
        nearest(
            r#"@id("a") permit(principal == User::"bob", action in [Action::"write", Action::"list"], resource in Doc::"2");"#
        ),
        some(
            "a",
            r#"principal == User::"bob" / User::"alice"; action in [Action::"write", Action::"list"] / Action::"read"; resource in Doc::"2" / Doc::"1""#
        )
    );
}

#[test]
fn explanation_names_the_first_unsatisfied_clause() {
    let snapshot = policies(
        r#"
@id("when") permit(principal, action, resource) when { true && 1 == 2 && false };
@id("unless") permit(principal, action, resource) when { true } unless { 1 == 1 } when { false };
@id("error") permit(principal, action, resource) when { context.nothing };
@id("other") permit(principal == User::"bob", action, resource) when { false };
"#,
    );
    let answer = authorize(
        &snapshot,
        &Query {
            explain: true,
            ..read()
        },
    )
    .unwrap();
    let explanation = answer.explanation.unwrap();
    let listed: Vec<_> = explanation
        .unsatisfied
        .iter()
        .map(|permit| {
            (
                permit.policy.policy.as_str(),
                permit.clause.text.as_str(),
                permit.clause.operand.as_str(),
            )
        })
        .collect();
    assert_eq!(
        listed,
        [
            ("error", "when { context.nothing }", "context.nothing"),
            ("unless", "unless { 1 == 1 }", "1 == 1"),
            ("when", "when { true && 1 == 2 && false }", "1 == 2"),
        ],
    );
    assert_eq!(explanation.unsatisfied_total, 3);
}

#[test]
fn explanation_changes_nothing_else() {
    let snapshot = policies("permit(principal, action, resource) when { context.nothing };");
    let plain = authorize(&snapshot, &read()).unwrap();
    let explained = authorize(
        &snapshot,
        &Query {
            explain: true,
            ..read()
        },
    )
    .unwrap();
    assert_eq!(
        plain,
        Answer {
            explanation: None,
            ..explained
        }
    );
}

/// Returns the explanation, and checks that it changes nothing else in the answer.
#[track_caller]
fn explained(snapshot: &Snapshot, query: &Query) -> Explanation {
    let plain = authorize(snapshot, query).expect("a valid query");
    let query = Query {
        explain: true,
        ..query.clone()
    };
    let mut answer = authorize(snapshot, &query).expect("the same answer with an explanation");
    let explanation = answer.explanation.take();
    assert_eq!(answer, plain);
    *explanation.expect("the requested explanation")
}

fn unsatisfied(explanation: &Explanation) -> Vec<&str> {
    let listed = explanation.unsatisfied.iter();
    listed.map(|permit| permit.policy.policy.as_str()).collect()
}

#[test]
fn explanation_ignores_the_limit_on_candidates() {
    let text: String = (0..30)
        .map(|n| {
            format!(
                "@id(\"{n:02}\") permit(principal, action, resource) \
                 when {{ principal in Group::\"{n}\" && context.nothing }};\n"
            )
        })
        .collect();
    let few = Settings {
        max_candidates: 3,
        ..Settings::default()
    };
    let explanation = explained(&snapshot(&[("p.cedar", &text)], few), &read());
    assert_eq!(explanation.unsatisfied_total, 30);
    let first: Vec<String> = (0..20).map(|n| format!("{n:02}")).collect();
    assert_eq!(unsatisfied(&explanation), first);
    for permit in &explanation.unsatisfied {
        assert_eq!(permit.outcome, ClauseOutcome::NotSatisfied);
        assert!(permit.clause.operand.starts_with("principal in"));
    }
}

#[test]
fn limits_hold_with_explanation_too() {
    let few = Settings {
        max_candidates: 1,
        ..Settings::default()
    };
    let text = "permit(principal, action, resource) when { false };".repeat(2);
    let snapshot = snapshot(&[("p.cedar", &text)], few);
    for explain in [false, true] {
        let query = Query { explain, ..read() };
        let result = authorize(&snapshot, &query).map(|answer| answer.decision);
        assert_eq!(result, Err(NoAnswer::TooManyPolicies { limit: 1 }));
    }
}

#[test]
fn permits_beyond_lookup_limit_are_only_counted() {
    // The decision does not evaluate the second operand.
    let snapshot = policies(
        r#"
permit(principal, action, resource)
when { principal in Group::"g" && resource.getTag("0") in Group::"h" };
"#,
    );
    let query = |count: usize| {
        let users = (0..count).map(|n| Uid::new("User", n.to_string()));
        let tags = users.clone().map(Value::Entity).enumerate();
        let tags = tags.map(|(n, user)| (n.to_string(), user));
        let mut entities: Vec<RequestEntity> = users
            .map(|uid| entity(&uid.to_string(), &[], &[]))
            .collect();
        entities.push(RequestEntity {
            tags: tags.collect::<BTreeMap<_, _>>().into(),
            ..entity(r#"Doc::"1""#, &[], &[])
        });
        Query { entities, ..read() }
    };
    let explanation = explained(&snapshot, &query(10));
    assert_eq!(unsatisfied(&explanation), ["policies.cedar#0"]);
    let explanation = explained(&snapshot, &query(crate::pdp::MAX_LOOKUPS + 1));
    assert_eq!(unsatisfied(&explanation), [""; 0]);
    assert_eq!(explanation.unsatisfied_total, 1);
}

#[test]
fn non_boolean_operand_is_explained_as_failure() {
    let snapshot = policies("permit(principal, action, resource) when { context.x };");
    let query = Query {
        context: record(&[("x", Value::String("s".to_owned()))]),
        explain: true,
        ..read()
    };
    let explanation = authorize(&snapshot, &query).unwrap().explanation.unwrap();
    assert!(
        matches!(&explanation.unsatisfied[0].outcome, ClauseOutcome::Failed(message) if message.contains("expected bool"))
    );
}

#[test]
fn long_error_messages_are_cut() {
    let snapshot = policies("permit(principal, action, resource) when { resource.owner == 1 };");
    let query = Query {
        resource: Uid::new("Doc", "x".repeat(1_000_000)),
        ..read()
    };
    let answer = authorize(&snapshot, &query).unwrap();
    let message = &answer.diagnostics.errors[0].message;
    assert!(
        message.len() < 3_000 && message.ends_with('…'),
        "{}",
        message.len()
    );
}

/// Returns a snapshot that stores `alice`, in a team and a department, and `carol`, suspended.
fn with_alice(types: Option<&str>) -> Snapshot {
    let settings = Settings {
        request_entity_types: types.map(|it| [it.to_owned()].into()),
        ..Settings::default()
    };
    let policies = r#"
@id("team") permit(principal in Team::"red", action, resource);
@id("role") permit(principal in Role::"reader", action, resource);
@id("finance") permit(principal, action, resource) when { principal.department == "finance" };
@id("tag") permit(principal, action, resource) when { principal.hasTag("t") };
@id("suspended") forbid(principal, action, resource) when { principal has suspended };
"#;
    let schema = r#"
entity Team;
entity Role in [Role];
entity User in [Team, Role] = { department: String, suspended?: Bool } tags String;
entity Doc;
action read appliesTo { principal: User, resource: Doc };
"#;
    let entities = r#"[
{"uid": {"type": "User", "id": "alice"}, "attrs": {"department": "sales"},
 "parents": [{"type": "Team", "id": "red"}], "tags": {"t": "x"}},
{"uid": {"type": "User", "id": "carol"}, "attrs": {"department": "sales", "suspended": true}, "parents": []},
{"uid": {"type": "Role", "id": "chief"}, "attrs": {}, "parents": [{"type": "Role", "id": "reader"}]}
]"#;
    snapshot(
        &[
            ("p.cedar", policies),
            ("s.cedarschema", schema),
            ("entities.json", entities),
        ],
        settings,
    )
}

/// Returns a query whose token describes the user `id`.
fn claimed_query(id: &str, department: &str, roles: &[&str], stored: StoredPrincipal) -> Query {
    Query {
        principal: Uid::new("User", id),
        claimed: Some(Arc::new(Claimed {
            attributes: record(&[("department", Value::String(department.to_owned()))]),
            parents: roles.iter().map(|id| Uid::new("Role", *id)).collect(),
            stored,
        })),
        ..read()
    }
}

#[test]
fn claims_join_or_replace_the_stored_principal() {
    use StoredPrincipal::{Join, Replace, Require};
    let snapshot = with_alice(None);
    for stored in [Join, Require] {
        let alice = claimed_query("alice", "finance", &["chief"], stored);
        let all = ["finance", "role", "tag", "team"];
        check(&snapshot, &alice, Decision::Allow, &all);
        let carol = claimed_query("carol", "finance", &[], stored);
        check(&snapshot, &carol, Decision::Deny, &["suspended"]);
    }
    let alice = claimed_query("alice", "finance", &["chief"], Replace);
    check(&snapshot, &alice, Decision::Allow, &["finance", "role"]);
    let carol = claimed_query("carol", "finance", &[], Replace);
    check(&snapshot, &carol, Decision::Allow, &["finance"]);
    // The claims affect that query only.
    let named = Query {
        principal: Uid::new("User", "alice"),
        ..read()
    };
    check(&snapshot, &named, Decision::Allow, &["tag", "team"]);

    for stored in [Join, Replace] {
        let stranger = claimed_query("dave", "finance", &["reader"], stored);
        check(&snapshot, &stranger, Decision::Allow, &["finance", "role"]);
    }
    let stranger = claimed_query("dave", "finance", &["reader"], Require);
    assert_eq!(
        authorize(&snapshot, &stranger),
        Err(NoAnswer::UnknownPrincipal)
    );
}

#[test]
fn request_entities_cannot_redefine_claims() {
    let query = |entities| Query {
        entities,
        ..claimed_query("alice", "sales", &["reader"], StoredPrincipal::Join)
    };
    let snapshot = with_alice(None);
    let department = ("department", Value::String("finance".to_owned()));
    let alice = entity(r#"User::"alice""#, &[department], &[]);
    let doc = entity(r#"Doc::"1""#, &[], &[]);
    for (sent, field) in [
        (vec![alice], "entities[0].uid"),
        (
            vec![doc.clone(), entity(r#"Role::"reader""#, &[], &[])],
            "entities[1].uid",
        ),
    ] {
        let (found, problem) = invalid(&snapshot, &query(sent));
        assert_eq!(found, field);
        assert!(matches!(problem, Problem::ClaimedEntity { .. }));
    }
    // A caller may describe entities that the claims do not name and that are no ancestors of
    // those named.
    let other = Query {
        entities: vec![
            entity(r#"Role::"other""#, &[], &[]),
            entity(r#"Team::"red""#, &[], &[]),
        ],
        ..claimed_query("alice", "sales", &["reader"], StoredPrincipal::Replace)
    };
    check(&snapshot, &other, Decision::Allow, &["role"]);
    // The accepted types of request entities do not limit the claims.
    let snapshot = with_alice(Some("Doc"));
    check(
        &snapshot,
        &query(vec![doc]),
        Decision::Allow,
        &["role", "tag", "team"],
    );
}

#[test]
fn request_entities_cannot_redefine_stored_ancestors() {
    // Otherwise a caller could lift the principal into any group.
    use StoredPrincipal::{Join, Replace, Require};
    let policies = r#"
@id("admins") permit(principal in Group::"admins", action, resource);
@id("manager") permit(principal, action, resource) when { principal has manager && principal.manager in Group::"admins" };
"#;
    let entities = r#"[
{"uid": {"type": "User", "id": "tobias"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]},
{"uid": {"type": "Group", "id": "staff"}, "attrs": {}, "parents": [{"type": "Group", "id": "everyone"}]},
{"uid": {"type": "Group", "id": "a"}, "attrs": {}, "parents": [{"type": "Group", "id": "b"}]}
]"#;
    let snapshot = snapshot(
        &[("p.cedar", policies), ("entities.json", entities)],
        Settings::default(),
    );
    let query = |id: &str, parents: &[&str], stored, group: &str| {
        let redefined = entity(&format!("Group::\"{group}\""), &[], &[r#"Group::"admins""#]);
        Query {
            principal: Uid::new("User", id),
            claimed: Some(Arc::new(Claimed {
                attributes: record(&[("manager", Value::Entity(Uid::new("Group", "m")))]),
                parents: parents.iter().map(|id| Uid::new("Group", *id)).collect(),
                stored,
            })),
            entities: vec![entity(r#"Doc::"1""#, &[], &[]), redefined],
            ..read()
        }
    };
    for (id, parents, stored, group) in [
        ("tobias", &[][..], Join, "staff"),
        ("tobias", &[], Join, "everyone"),
        ("tobias", &[], Require, "staff"),
        ("tobias", &["a"], Replace, "b"),
        ("nobody", &["a"], Join, "a"),
        ("nobody", &["a"], Join, "b"),
        ("nobody", &["new"], Join, "new"),
        ("nobody", &[], Join, "m"),
    ] {
        let (field, problem) = invalid(&snapshot, &query(id, parents, stored, group));
        assert_eq!(field, "entities[1].uid", "{id} {parents:?} {group}");
        assert!(matches!(problem, Problem::ClaimedEntity { .. }));
    }
    for (id, parents, stored, group) in [
        // A replaced principal has no stored ancestors.
        ("tobias", &[][..], Replace, "staff"),
        ("nobody", &["b"], Join, "a"),
    ] {
        check(
            &snapshot,
            &query(id, parents, stored, group),
            Decision::Deny,
            &[],
        );
    }
}

#[test]
fn claims_must_conform_to_the_schema() {
    let snapshot = with_alice(None);
    let with = |claimed: Claimed| Query {
        claimed: Some(Arc::new(claimed)),
        ..read()
    };
    let claimed = |attributes: &[(&str, Value)], parents: &[Uid]| Claimed {
        attributes: record(attributes),
        parents: parents.to_vec(),
        stored: StoredPrincipal::Replace,
    };
    let good = || ("department", Value::String("x".to_owned()));
    for (claimed, field) in [
        (
            claimed(&[], &[]),
            r#"principal_token.attributes["department"]"#,
        ),
        (
            claimed(&[("department", Value::Long(1))], &[]),
            r#"principal_token.attributes["department"]"#,
        ),
        (
            claimed(&[good(), ("more", Value::Long(1))], &[]),
            r#"principal_token.attributes["more"]"#,
        ),
        (
            claimed(&[good()], &[Uid::new("Role", "r"), Uid::new("Doc", "1")]),
            "principal_token.parents[1]",
        ),
    ] {
        assert_eq!(invalid(&snapshot, &with(claimed)).0, field);
    }
}

#[test]
fn claims_cannot_make_principal_its_own_parent() {
    let snapshot = policies("permit(principal, action, resource);");
    let alice = Uid::new("User", "alice");
    let query = Query {
        claimed: Some(Arc::new(Claimed {
            attributes: Record::default(),
            parents: vec![alice],
            stored: StoredPrincipal::Join,
        })),
        ..read()
    };
    let (field, problem) = invalid(&snapshot, &query);
    assert_eq!(field, "principal_token.parents");
    assert!(matches!(problem, Problem::Cycle { .. }));
}
