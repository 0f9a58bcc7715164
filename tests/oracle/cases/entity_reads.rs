//! Entities that a condition reads beyond its scope: behind attributes, tags, records and branches.
//!
//! Each case has one policy that reads in one way, so that no other read loads the same entities.

use cedar_pdp::pdp::query::{Query, Record, RequestEntity, Value};

use super::{OFF, Outcome, allowed, ann_reads, check, denied, entity, fields, sending, user};

/// Stored entities: `Doc::"1"` is owned by bob, who is in the staff, and tagged with carl, who is
/// in the board.
const OWNED: &str = r#"[
    {"uid": {"type": "Doc", "id": "1"},
     "attrs": {"owner": {"__entity": {"type": "User", "id": "bob"}},
               "meta": {"author": {"__entity": {"type": "User", "id": "carl"}}}},
     "tags": {"reviewer": {"__entity": {"type": "User", "id": "carl"}}}, "parents": []},
    {"uid": {"type": "User", "id": "bob"},
     "attrs": {"team": {"__entity": {"type": "Team", "id": "red"}}},
     "parents": [{"type": "Group", "id": "team"}]},
    {"uid": {"type": "User", "id": "carl"}, "attrs": {"level": 3},
     "tags": {"buddy": {"__entity": {"type": "User", "id": "bob"}}},
     "parents": [{"type": "Group", "id": "board"}]},
    {"uid": {"type": "Team", "id": "red"}, "attrs": {"lead": {"__entity": {"type": "User", "id": "carl"}}}, "parents": []},
    {"uid": {"type": "Group", "id": "team"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]}
]"#;

/// Checks whether ann may read `Doc::"1"` under one policy with this condition.
fn check_condition(condition: &str, outcome: Outcome<'_>) {
    let policy = format!("permit(principal, action, resource) when {{ {condition} }};");
    let files = [("p.cedar", policy.as_str()), ("entities.json", OWNED)];
    check(OFF, &files, &[(ann_reads(), outcome)]);
}

#[test]
fn slices_hold_every_entity_a_condition_reads() {
    for condition in [
        r#"resource.owner in Group::"staff""#,
        r#"resource.owner in [Group::"x", Group::"staff"]"#,
        r#"true && resource.owner in [Group::"staff", principal]"#,
        r#"resource.owner is User in Group::"staff""#,
        r#"resource.meta.author in Group::"board""#,
        r#"resource["meta"]["author"].level == 3"#,
        "resource.owner.team.lead.level == 3",
        "resource has owner.team.lead.level",
        "resource has meta.author.level",
        r#"resource.getTag("reviewer").level == 3"#,
        r#"resource.getTag("reviewer").getTag("buddy").team.lead.level == 3"#,
        r#"resource.getTag("reviewer").getTag("buddy") in Group::"staff""#,
        r#"resource.getTag("reviewer").hasTag("buddy")"#,
        r#"(if principal == User::"ann" then resource.owner else principal) in Group::"staff""#,
        r#"(if principal == User::"bob" then principal else resource.owner) in Group::"staff""#,
        "(if principal in resource then principal else resource.owner).team.lead.level == 3",
        "{a: resource.owner}.a.team.lead.level == 3",
        "{a: {b: resource.owner, c: 1}}.a.b has team.lead",
        r#"(if principal == User::"ann" then {a: resource.owner} else {a: principal}).a has team"#,
        r#"User::"bob".team.lead.level == 3"#,
        r#"User::"bob" in [Group::"y", Group::"staff"]"#,
        r#"[resource.owner, principal].contains(User::"bob")"#,
        r#"!(resource.owner in [Group::"x", Group::"y"])"#,
    ] {
        check_condition(condition, allowed(&["p.cedar#0"]));
    }
}

/// The analysis visits an entity once per position in a path.
#[test]
fn slices_merge_several_access_paths() {
    let to = |names: &[&str]| {
        let tags = names.iter().map(|name| {
            let uid = format!(r#""{name}": {{"__entity": {{"type": "User", "id": "{name}"}}}}"#);
            format!(r#"{uid}, "to {name}": {{"__entity": {{"type": "User", "id": "{name}"}}}}"#)
        });
        tags.collect::<Vec<_>>().join(", ")
    };
    let entity = |ty: &str, id: &str, tags: &[&str], parent: &str| {
        format!(
            r#"{{"uid": {{"type": "{ty}", "id": "{id}"}}, "attrs": {{}}, "tags": {{{}}},
                 "parents": [{{"type": "Group", "id": "{parent}"}}]}}"#,
            to(tags)
        )
    };
    let entities = [
        entity("Doc", "1", &["ann", "bob"], "docs"),
        entity("User", "ann", &["ann", "bob", "carl"], "staff"),
        entity("User", "bob", &["ann", "carl"], "board"),
        entity("User", "carl", &["bob"], "guests"),
    ];
    let entities = format!("[{}]", entities.join(",\n"));
    for (condition, holds) in [
        (r#"resource.getTag("to bob") in Group::"board""#, true),
        (
            r#"resource.getTag("ann").getTag("to ann") in Group::"staff""#,
            true,
        ),
        (
            r#"resource.getTag("ann").getTag("bob").getTag("carl") in Group::"guests""#,
            true,
        ),
        (
            r#"resource.getTag("bob") in Group::"staff" || resource.getTag("bob").getTag("ann") in Group::"staff""#,
            true,
        ),
        (
            r#"resource.getTag("ann").getTag("carl").getTag("bob") in Group::"guests""#,
            false,
        ),
    ] {
        let policy = format!("permit(principal, action, resource) when {{ {condition} }};");
        let files = [("p.cedar", policy.as_str()), ("entities.json", &entities)];
        let outcome: Outcome<'_> = match holds {
            true => allowed(&["p.cedar#0"]),
            false => denied(&[]),
        };
        check(OFF, &files, &[(ann_reads(), outcome)]);
    }
}

#[test]
fn missing_entities_have_the_errors_of_cedar() {
    for condition in [
        "principal.level == 3",
        "resource.owner.level == 3",
        "resource has owner.team.lead.nothing",
        "resource has meta.author.level.more",
        r#"resource.getTag("approver").level == 3"#,
        r#"resource.owner.getTag("buddy").level == 3"#,
        "resource.owner.team.lead.team.lead",
        r#"User::"nobody".level == 3"#,
        r#"User::"nobody" in Group::"staff""#,
        r#"{a: resource.owner}.b.level == 3"#,
        r#"resource.meta in Group::"staff""#,
        "resource.owner",
        r#"resource.owner && principal == User::"bob""#,
    ] {
        check_condition(condition, denied(&[]));
    }
}

#[test]
fn equally_named_attributes_stay_apart() {
    const LEVELS: &str = r#"[
        {"uid": {"type": "User", "id": "ann"}, "attrs": {"level": 1, "name": "ann"}, "parents": []},
        {"uid": {"type": "Doc", "id": "1"},
         "attrs": {"level": 2, "name": "1", "owner": {"__entity": {"type": "User", "id": "bob"}}},
         "parents": []},
        {"uid": {"type": "User", "id": "bob"}, "attrs": {"level": 3}, "parents": []}
    ]"#;
    let policies = r#"
@id("all") permit(principal, action, resource)
when { true && principal.level == 1 && resource.level == 2 && resource.owner.level == 3 };
@id("other order") permit(principal, action, resource)
when { true && resource.owner.level < 4 && resource.level < 3 && principal.level < 2 };
@id("swapped") permit(principal, action, resource) when { true && principal.level == 2 };
@id("alike") forbid(principal, action, resource) when { true && principal.name == resource.name };
@id("has") permit(principal, action, resource)
when { true && resource has name && !(resource.owner has name) };
"#;
    let files = [("p.cedar", policies), ("entities.json", LEVELS)];
    let expected = allowed(&["all", "has", "other order"]);
    check(OFF, &files, &[(ann_reads(), expected)]);
}

#[test]
fn patterns_match_as_cedar_matches_them() {
    for (pattern, matches) in [
        ("ab*", true),
        ("*ca", true),
        ("*c*b*a", true),
        ("a*c*", true),
        ("*bc", false),
        ("ab", false),
        ("*ab", false),
        ("ab*abca", false),
        ("*a*a*a*", true),
        ("*a*a*a*a*", false),
        ("*", true),
        ("", false),
    ] {
        let policy = format!(
            "permit(principal, action, resource) when {{ true && context.text like \"{pattern}\" }};"
        );
        let query = Query {
            context: fields([("text", Value::String("abcba ca".to_owned()))]),
            ..ann_reads()
        };
        let outcome: Outcome<'_> = match matches {
            true => allowed(&["p.cedar#0"]),
            false => denied(&[]),
        };
        check(OFF, &[("p.cedar", policy.as_str())], &[(query, outcome)]);
    }
}

#[test]
fn leading_operands_count_only_without_prior_errors() {
    for (condition, outcome) in [
        (
            r#"principal == User::"ann" && resource is Doc"#,
            allowed(&["p.cedar#0"]) as Outcome<'_>,
        ),
        (
            r#"User::"ann" == principal && resource in [Doc::"1"]"#,
            allowed(&["p.cedar#0"]),
        ),
        (
            r#"principal == User::"bob" && resource.nothing"#,
            denied(&[]),
        ),
        (
            r#"resource.nothing && principal == User::"bob""#,
            denied(&[]),
        ),
        (
            r#"(principal is User && resource.nothing) && principal == User::"bob""#,
            denied(&[]),
        ),
        (
            r#"principal == User::"bob" || resource is Doc"#,
            allowed(&["p.cedar#0"]),
        ),
        (
            r#"(principal == User::"bob" && true) || true"#,
            allowed(&["p.cedar#0"]),
        ),
        (
            r#"principal != User::"bob" && true"#,
            allowed(&["p.cedar#0"]),
        ),
        (r#"principal is User && 1"#, denied(&[])),
        (r#"principal in [] && 1"#, denied(&[])),
        (r#"principal in [User::"bob", resource] && 1"#, denied(&[])),
        (r#"principal in [User::"ann", 1]"#, denied(&[])),
        (r#"context == principal || true"#, allowed(&["p.cedar#0"])),
    ] {
        check_condition(condition, outcome);
    }
}

#[test]
fn sent_entities_replace_every_stored_attribute() {
    let stored = r#"[{"uid": {"type": "User", "id": "ann"}, "attrs": {"level": 3, "team": {"lead": "x"}}, "parents": []}]"#;
    let sent = |attributes: Record| {
        sending([RequestEntity {
            attributes,
            ..entity(user("ann"), [])
        }])
    };
    let policies = r#"permit(principal, action, resource) when { principal has level };
permit(principal, action, resource) when { !(principal has level) };
permit(principal, action, resource) when { principal.level == 3 };
permit(principal, action, resource) when { principal.team.lead == "x" };
permit(principal, action, resource) when { principal.level == 4 || principal.team.lead == "x" };"#;
    check(
        OFF,
        &[("p.cedar", policies), ("entities.json", stored)],
        &[
            (
                ann_reads(),
                allowed(&["p.cedar#0", "p.cedar#2", "p.cedar#3", "p.cedar#4"]),
            ),
            (sent(Record::default()), allowed(&["p.cedar#1"])),
            (
                sent(fields([("level", Value::Long(4))])),
                allowed(&["p.cedar#0", "p.cedar#4"]),
            ),
            (
                Query {
                    principal: user("nobody"),
                    ..ann_reads()
                },
                allowed(&["p.cedar#1"]),
            ),
        ],
    );
}

#[test]
fn value_comparison_equals_that_of_cedar() {
    let stored = r#"[{"uid": {"type": "Doc", "id": "1"}, "parents": [], "attrs": {
        "labels": ["a", "b"], "nested": [["b", "a"], {"x": 1}], "record": {"x": 1}, "empty": [],
        "prices": [{"__extn": {"fn": "decimal", "arg": "1.0"}}, "1.0"],
        "price": {"__extn": {"fn": "decimal", "arg": "1.00"}},
        "owner": {"__entity": {"type": "User", "id": "ann"}}, "n": 1, "t": "1", "y": true}}]"#;
    for (condition, holds) in [
        ("resource.nested.contains(resource.labels)", true),
        ("resource.nested.contains(resource.record)", true),
        ("resource.labels.contains(resource.labels)", false),
        ("resource.prices.contains(resource.price)", true),
        ("resource.prices.contains(\"1.0\")", true),
        ("resource.prices.contains(1)", false),
        ("resource.labels.contains(\"a\")", true),
        ("resource.labels.contains(resource)", false),
        ("resource.empty.contains(resource.empty)", false),
        ("resource.labels == [\"b\", \"a\", \"b\"]", true),
        ("resource.record == {x: 1}", true),
        ("resource.n == resource.t", false),
        ("resource.n == resource.y || resource.y", true),
        ("resource.n.contains(1)", false),
        ("resource.t < resource.n", false),
        (
            "resource.n <= 1 && resource.n < 2 && !(resource.n < 1)",
            true,
        ),
        (
            "resource.owner == principal && principal == resource.owner",
            true,
        ),
        (
            "resource.owner in principal && resource.owner in [principal, resource]",
            true,
        ),
        ("resource.owner in [principal, resource.n]", false),
        ("resource.t like \"1\" && !(resource.t like \"\\*\")", true),
        ("resource.n like \"1\"", false),
        ("resource.record has x && !(resource.record has y)", true),
        ("resource.record.y == 1 || true", false),
        ("resource.y && resource.n", false),
        ("!resource.n", false),
        ("false && resource.nothing", false),
        ("true || resource.nothing", true),
        ("context.missing == 1 || true", false),
    ] {
        let policy = format!("permit(principal, action, resource) when {{ {condition} }};");
        let files = [("p.cedar", policy.as_str()), ("entities.json", stored)];
        let outcome = match holds {
            true => allowed(&["p.cedar#0"]),
            false => denied(&[]),
        };
        check(OFF, &files, &[(ann_reads(), outcome)]);
    }
}
