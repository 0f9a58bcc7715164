//! Hand-written cases that are easy to get wrong, each described by its name; Cedar decides here
//! too.

mod entity_reads;
mod reloads;

use cedar_pdp::pdp::Settings;
use cedar_pdp::pdp::answer::Decision;
use cedar_pdp::pdp::query::{Query, Record, RequestEntity, Uid, Value};
use cedar_pdp::pdp::settings::{OnPolicyError, Validation};

use crate::checked_engine::EngineUnderTest;
use crate::plain::{Expected, Plain};

const OFF: Settings = Settings {
    validation: Validation::Off,
    on_policy_error: OnPolicyError::Skip,
    request_entity_types: None,
    require_known: None,
    max_candidates: 10_000,
    max_store_bytes: 1 << 30,
};

const STRICT: Settings = Settings {
    validation: Validation::Strict,
    ..OFF
};

fn user(id: &str) -> Uid {
    Uid::new("User", id)
}

fn group(id: &str) -> Uid {
    Uid::new("Group", id)
}

/// Returns the query whether `User::"ann"` reads `Doc::"1"`.
fn ann_reads() -> Query {
    Query {
        principal: user("ann"),
        action: Uid::new("Action", "read"),
        resource: Uid::new("Doc", "1"),
        context: Record::default(),
        entities: Vec::new(),
        claimed: None,
        explain: false,
    }
}

fn fields<const N: usize>(fields: [(&str, Value); N]) -> Record {
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    std::collections::BTreeMap::from(fields).into()
}

fn with_context<const N: usize>(values: [(&str, Value); N]) -> Query {
    Query {
        context: fields(values),
        ..ann_reads()
    }
}

fn sending<const N: usize>(entities: [RequestEntity; N]) -> Query {
    Query {
        entities: entities.into(),
        ..ann_reads()
    }
}

fn entity<const N: usize>(uid: Uid, parents: [Uid; N]) -> RequestEntity {
    RequestEntity {
        uid,
        attributes: Record::default(),
        parents: parents.into(),
        tags: Record::default(),
    }
}

/// The expected result: a decision and its determining policies, or `None` for a rejection.
type Outcome<'a> = Option<(Decision, &'a [&'a str])>;

const REJECTED: Outcome<'static> = None;

fn allowed<'a>(by: &'a [&'a str]) -> Outcome<'a> {
    Some((Decision::Allow, by))
}

fn denied<'a>(by: &'a [&'a str]) -> Outcome<'a> {
    Some((Decision::Deny, by))
}

/// Checks each of `queries` on a directory of `files`, all with one cache.
fn check(settings: Settings, files: &[(&str, &str)], queries: &[(Query, Outcome<'_>)]) {
    let files = files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
        .collect();
    let plain = Plain::load(&files, &settings).unwrap();
    let mut engine = EngineUnderTest::new(settings, 1 << 20);
    let snapshot = engine.load(&files).unwrap();
    for (query, outcome) in queries {
        let expected = plain.authorize(query);
        let is_as_expected = match (&expected, outcome) {
            (Expected::Rejected(_), None) => true,
            (
                Expected::Answered {
                    allow, determining, ..
                },
                Some((decision, by)),
            ) => *allow == (*decision == Decision::Allow) && determining == by,
            _ => false,
        };
        assert!(is_as_expected, "Cedar answers {expected:#?} to {query:#?}");
        if let Err(why) = engine.check(&snapshot, query, &expected) {
            panic!("{why}\nexpected {expected:#?}\nrequest {query:#?}");
        }
    }
}

const SCHEMA: &str = r#"
entity User in [Group] { level?: Long };
entity Group in [Group];
entity Doc;
action "all";
action "view" in ["all"];
action "read" in ["view"] appliesTo {
    principal: [User], resource: [Doc], context: { n?: Long, labels?: Set<String> }
};
"#;

#[test]
fn action_groups_come_from_the_schema() {
    let policies = r#"permit(principal, action in Action::"all", resource);"#;
    check(
        STRICT,
        &[("p.cedar", policies), ("s.cedarschema", SCHEMA)],
        &[(ann_reads(), allowed(&["p.cedar#0"]))],
    );
    check(
        OFF,
        &[("p.cedar", policies), ("s.cedarschema", SCHEMA)],
        &[(ann_reads(), allowed(&["p.cedar#0"]))],
    );
}

#[test]
fn actions_of_the_schema_may_be_stored_too() {
    let entities = r#"[
        {"uid": {"type": "Action", "id": "read"}, "attrs": {}, "parents": [{"type": "Action", "id": "view"}]},
        {"uid": {"type": "Action", "id": "view"}, "attrs": {}, "parents": [{"type": "Action", "id": "all"}]},
        {"uid": {"type": "Action", "id": "all"}, "attrs": {}, "parents": []}
    ]"#;
    check(
        STRICT,
        &[
            (
                "p.cedar",
                r#"permit(principal, action in Action::"all", resource);"#,
            ),
            ("s.cedarschema", SCHEMA),
            ("entities.json", entities),
        ],
        &[
            (ann_reads(), allowed(&["p.cedar#0"])),
            (sending([entity(user("ann"), [])]), allowed(&["p.cedar#0"])),
        ],
    );
}

#[test]
fn stored_entities_group_actions_without_schema() {
    let policies = r#"permit(principal, action in Action::"all", resource);"#;
    let entities = r#"[
        {"uid": {"type": "Action", "id": "read"}, "attrs": {}, "parents": [{"type": "Action", "id": "view"}]},
        {"uid": {"type": "Action", "id": "view"}, "attrs": {}, "parents": [{"type": "Action", "id": "all"}]}
    ]"#;
    check(OFF, &[("p.cedar", policies)], &[(ann_reads(), denied(&[]))]);
    check(
        OFF,
        &[("p.cedar", policies), ("entities.json", entities)],
        &[
            (ann_reads(), allowed(&["p.cedar#0"])),
            (sending([entity(user("ann"), [])]), allowed(&["p.cedar#0"])),
        ],
    );
}

#[test]
fn links_find_templates_in_other_files() {
    check(
        OFF,
        &[
            (
                "z.cedar",
                r#"permit(principal == ?principal, action, resource == ?resource);"#,
            ),
            (
                "a.links.json",
                r#"[{"template_id": "z.cedar#0", "link_id": "ann",
                     "args": {"?principal": "User::\"ann\"", "?resource": "Doc::\"1\""}}]"#,
            ),
            (
                "b.cedar.json",
                r#"{"staticPolicies": {}, "templates": {}, "templateLinks": [
                    {"templateId": "z.cedar#0", "newId": "other", "values": {
                        "?principal": {"__entity": {"type": "User", "id": "ann"}},
                        "?resource": {"__entity": {"type": "Doc", "id": "2"}}}}]}"#,
            ),
        ],
        &[
            (ann_reads(), allowed(&["ann"])),
            (
                Query {
                    resource: Uid::new("Doc", "2"),
                    ..ann_reads()
                },
                allowed(&["other"]),
            ),
        ],
    );
}

#[test]
fn json_link_ids_are_kept_verbatim() {
    check(
        OFF,
        &[(
            "p.cedar.json",
            r#"{"staticPolicies": {},
                "templates": {"the \"t\"": {"effect": "permit", "principal": {"op": "==", "slot": "?principal"},
                    "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []}},
                "templateLinks": [{"templateId": "the \"t\"", "newId": "a\n\"link\"",
                    "values": {"?principal": {"__entity": {"type": "User", "id": "ann"}}}}]}"#,
        )],
        &[(ann_reads(), allowed(&["a\n\"link\""]))],
    );
}

const STAFF: &str = r#"[
    {"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Group", "id": "team"}]},
    {"uid": {"type": "Group", "id": "team"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]}
]"#;

#[test]
fn replaced_group_changes_access_of_descendants() {
    check(
        STRICT,
        &[
            (
                "p.cedar",
                r#"permit(principal in Group::"staff", action, resource);
@id("guests") permit(principal in Group::"guests", action, resource);"#,
            ),
            ("s.cedarschema", SCHEMA),
            ("entities.json", STAFF),
        ],
        &[
            (ann_reads(), allowed(&["p.cedar#0"])),
            (sending([entity(group("team"), [])]), denied(&[])),
            (
                sending([entity(group("team"), [group("guests")])]),
                allowed(&["guests"]),
            ),
            (
                sending([entity(group("team"), [group("staff")])]),
                allowed(&["p.cedar#0"]),
            ),
            (sending([entity(user("ann"), [])]), denied(&[])),
            // `Group::"staff"` is a parent that is not stored.
            (
                sending([entity(group("staff"), [group("guests")])]),
                allowed(&["guests", "p.cedar#0"]),
            ),
            (
                sending([entity(group("other"), [group("guests")])]),
                allowed(&["p.cedar#0"]),
            ),
        ],
    );
}

#[test]
fn replaced_group_is_seen_through_attributes() {
    let owner = r#"[
        {"uid": {"type": "Doc", "id": "1"}, "attrs": {"owner": {"__entity": {"type": "User", "id": "ann"}}}, "parents": []},
        {"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Group", "id": "team"}],
         "tags": {"buddy": {"__entity": {"type": "User", "id": "bob"}}}},
        {"uid": {"type": "User", "id": "bob"}, "attrs": {}, "parents": [{"type": "Group", "id": "bobs"}]},
        {"uid": {"type": "User", "id": "cyn"}, "attrs": {}, "parents": [{"type": "Group", "id": "cyns"}]}
    ]"#;
    check(
        OFF,
        &[
            (
                "p.cedar",
                r#"permit(principal, action, resource) when { resource.owner in Group::"staff" };
permit(principal, action, resource) when { resource.owner.getTag("buddy") in Group::"staff" };
permit(principal, action, resource) when { User::"cyn" in Group::"staff" };"#,
            ),
            ("entities.json", owner),
        ],
        &[
            (ann_reads(), denied(&[])),
            (
                sending([entity(group("team"), [group("staff")])]),
                allowed(&["p.cedar#0"]),
            ),
            (
                sending([entity(user("bob"), [group("staff")])]),
                allowed(&["p.cedar#1"]),
            ),
            (
                sending([entity(group("bobs"), [group("staff")])]),
                allowed(&["p.cedar#1"]),
            ),
            (
                sending([entity(group("cyns"), [group("staff")])]),
                allowed(&["p.cedar#2"]),
            ),
            (
                sending([entity(user("cyn"), [group("staff")])]),
                allowed(&["p.cedar#2"]),
            ),
        ],
    );
}

#[test]
fn request_entities_are_checked() {
    // Cycles, duplicates and action entities are rejected.
    check(
        OFF,
        &[
            ("p.cedar", "permit(principal, action, resource);"),
            ("entities.json", STAFF),
        ],
        &[
            (sending([entity(group("staff"), [group("team")])]), REJECTED),
            (sending([entity(group("x"), [group("x")])]), REJECTED),
            (
                sending([entity(group("x"), []), entity(group("x"), [])]),
                REJECTED,
            ),
            (sending([entity(Uid::new("Action", "read"), [])]), REJECTED),
            (sending([entity(group("x"), [])]), allowed(&["p.cedar#0"])),
        ],
    );
}

#[test]
fn one_attribute_of_two_entities_is_two_values() {
    let schema = r#"
        entity User, Doc { level: Long, lead?: User };
        action "read" appliesTo { principal: User, resource: Doc };
    "#;
    let policies = r#"
        @id("both") permit(principal, action, resource)
        when { principal.level == 1 && resource.level == 2 };
        @id("other") permit(principal, action, resource)
        when { principal.level == 2 || resource.level == 1 };
        @id("lead") forbid(principal, action, resource)
        when { principal.level == 1 && principal has lead && principal.lead.level == 1 };
        @id("has") permit(principal, action, resource)
        when { principal has lead && resource has lead };
    "#;
    let entities = r#"[
        {"uid": {"type": "User", "id": "ann"}, "parents": [],
         "attrs": {"level": 1, "lead": {"__entity": {"type": "User", "id": "bob"}}}},
        {"uid": {"type": "User", "id": "bob"}, "parents": [], "attrs": {"level": 3}},
        {"uid": {"type": "Doc", "id": "1"}, "parents": [], "attrs": {"level": 2}}
    ]"#;
    let files = [
        ("p.cedar", policies),
        ("s.cedarschema", schema),
        ("e.entities.json", entities),
    ];
    check(STRICT, &files, &[(ann_reads(), allowed(&["both"]))]);
}

#[test]
fn scope_is_and_in_must_both_hold() {
    check(
        OFF,
        &[
            (
                "p.cedar",
                r#"permit(principal is User in Group::"staff", action, resource);
permit(principal is Group in Group::"staff", action, resource);
permit(principal is User in User::"ann", action, resource is Doc);
permit(principal in User::"ann", action in [Action::"write", Action::"read"], resource in Doc::"1");
permit(principal is User, action == Action::"read", resource is Folder);"#,
            ),
            ("entities.json", STAFF),
        ],
        &[
            (
                ann_reads(),
                allowed(&["p.cedar#0", "p.cedar#2", "p.cedar#3"]),
            ),
            (
                Query {
                    principal: group("team"),
                    ..ann_reads()
                },
                allowed(&["p.cedar#1"]),
            ),
            (
                Query {
                    principal: user("bob"),
                    ..ann_reads()
                },
                denied(&[]),
            ),
        ],
    );
}

#[test]
fn set_order_is_irrelevant_but_nesting_counts() {
    let set = |members: &[&str]| {
        Value::Set(
            members
                .iter()
                .map(|text| Value::String((*text).to_owned()))
                .collect(),
        )
    };
    let nothing = || Value::Record(Record::default());
    check(
        OFF,
        &[(
            "p.cedar",
            r#"permit(principal, action, resource) when { context.labels == ["a", "b"] };
permit(principal, action, resource) when { context.labels == [["a"], {}] };"#,
        )],
        &[
            (
                with_context([("labels", set(&["a", "b"]))]),
                allowed(&["p.cedar#0"]),
            ),
            (
                with_context([("labels", set(&["b", "a", "b"]))]),
                allowed(&["p.cedar#0"]),
            ),
            (with_context([("labels", set(&["a"]))]), denied(&[])),
            (
                with_context([("labels", Value::Set(vec![set(&["a", "b"])]))]),
                denied(&[]),
            ),
            (
                with_context([("labels", Value::Set(vec![set(&["a"]), nothing()]))]),
                allowed(&["p.cedar#1"]),
            ),
            (
                with_context([(
                    "labels",
                    Value::Set(vec![Value::Set(vec![
                        Value::String("a".to_owned()),
                        nothing(),
                    ])]),
                )]),
                denied(&[]),
            ),
        ],
    );
}

#[test]
fn value_under_another_name_changes_the_request() {
    let named = |name: &str| with_context([(name, Value::Bool(true))]);
    let policies = r#"permit(principal, action, resource) when { context has mfa };"#;
    check(
        OFF,
        &[("p.cedar", policies)],
        &[
            (named("mfa"), allowed(&["p.cedar#0"])),
            (named("vip"), denied(&[])),
        ],
    );
}

#[test]
fn requests_that_differ_in_a_tag_are_different() {
    let tagged = |level: i64| {
        sending([RequestEntity {
            tags: fields([("level", Value::Long(level))]),
            ..entity(user("ann"), [])
        }])
    };
    let policies =
        r#"permit(principal, action, resource) when { principal.getTag("level") == 1 };"#;
    check(
        OFF,
        &[("p.cedar", policies)],
        &[
            (tagged(1), allowed(&["p.cedar#0"])),
            (tagged(2), denied(&[])),
            (sending([entity(user("ann"), [])]), denied(&[])),
        ],
    );
}

#[test]
fn answers_quote_a_decimal_as_it_was_written() {
    let price = |text: &str| with_context([("price", Value::Decimal(text.to_owned()))]);
    check(
        OFF,
        &[(
            "p.cedar",
            r#"permit(principal, action, resource) when { context.price == decimal("1.0") };
forbid(principal, action, resource) when { context.price + 1 == 2 };"#,
        )],
        &[
            (price("1.0"), allowed(&["p.cedar#0"])),
            (price("1.00"), allowed(&["p.cedar#0"])),
            (price("one"), REJECTED),
        ],
    );
}

#[test]
fn failing_forbid_denies_only_when_configured() {
    let files = [(
        "p.cedar",
        r#"@id("open") permit(principal, action, resource);
@id("suspended") forbid(principal, action, resource) when { principal.suspended };
@id("odd") permit(principal, action, resource) when { context.missing };
@id("frozen") forbid(principal, action, resource) when { context has frozen };"#,
    )];
    let frozen = || with_context([("frozen", Value::Bool(true))]);
    let suspended = |is: bool| {
        sending([RequestEntity {
            attributes: fields([("suspended", Value::Bool(is))]),
            ..entity(user("ann"), [])
        }])
    };
    check(
        OFF,
        &files,
        &[
            (ann_reads(), allowed(&["open"])),
            (frozen(), denied(&["frozen"])),
            (suspended(true), denied(&["suspended"])),
        ],
    );
    let deny = Settings {
        on_policy_error: OnPolicyError::Deny,
        ..OFF
    };
    check(
        deny,
        &files,
        &[
            (ann_reads(), denied(&["suspended"])),
            (frozen(), denied(&["frozen", "suspended"])),
            (suspended(true), denied(&["suspended"])),
            // A failing permit denies nothing.
            (suspended(false), allowed(&["open"])),
        ],
    );
}

#[test]
fn entities_are_checked_with_validation_off() {
    // Requests are not.
    let files = [
        (
            "p.cedar",
            r#"permit(principal, action, resource) unless { context.n == 2 };"#,
        ),
        ("s.cedarschema", SCHEMA),
    ];
    let ill_typed = || with_context([("n", Value::String("one".to_owned()))]);
    let unknown_user = || Query {
        principal: Uid::new("Robot", "r"),
        ..with_context([("n", Value::Long(1))])
    };
    let level = |level: Value| {
        let mut query = with_context([("n", Value::Long(1))]);
        query.entities.push(RequestEntity {
            attributes: fields([("level", level)]),
            ..entity(user("ann"), [group("team")])
        });
        query
    };
    let child_of = |parent: Uid| {
        let mut query = with_context([("n", Value::Long(1))]);
        query.entities.push(RequestEntity {
            attributes: fields([("level", Value::Long(1))]),
            ..entity(user("ann"), [parent])
        });
        query
    };
    let robot = || {
        let mut query = unknown_user();
        query.entities.push(entity(query.principal.clone(), []));
        query
    };
    check(
        OFF,
        &files,
        &[
            (ill_typed(), allowed(&["p.cedar#0"])),
            (unknown_user(), allowed(&["p.cedar#0"])),
            (level(Value::Long(1)), allowed(&["p.cedar#0"])),
            (level(Value::Bool(true)), REJECTED),
            (child_of(group("team")), allowed(&["p.cedar#0"])),
            (child_of(user("bob")), REJECTED),
            (robot(), REJECTED),
        ],
    );
    let warn = Settings {
        validation: Validation::Warn,
        ..OFF
    };
    check(
        warn,
        &files,
        &[
            (ill_typed(), REJECTED),
            (unknown_user(), REJECTED),
            (level(Value::Long(1)), allowed(&["p.cedar#0"])),
            // The validator rejects the policy, which is loaded anyway and fails here.
            (ann_reads(), denied(&[])),
        ],
    );
}

#[test]
fn context_reads_depend_on_the_action() {
    // And on its groups.
    let schema = r#"
entity User, Doc;
action "all";
action "view" in ["all"];
action "read" in ["view"] appliesTo { principal: [User], resource: [Doc], context: { n: Long, on: Bool, text: String } };
action "send" appliesTo { principal: [User], resource: [Doc], context: { n: Long, on: Bool, text: String } };
"#;
    let policies = r#"permit(principal, action in Action::"all", resource) when { context.n == 1 };
permit(principal, action == Action::"read", resource) when { context.on };
permit(principal, action == Action::"send", resource) when { context has text && context.text == "x" };
permit(principal == User::"bob", action, resource) when { action == Action::"send" && context.on };"#;
    let asked = |action: &str, n: i64, on: bool, text: &str| Query {
        action: Uid::new("Action", action),
        ..with_context([
            ("n", Value::Long(n)),
            ("on", Value::Bool(on)),
            ("text", Value::String(text.to_owned())),
        ])
    };
    for settings in [STRICT, OFF] {
        check(
            settings,
            &[("p.cedar", policies), ("s.cedarschema", schema)],
            &[
                (asked("read", 1, false, "x"), allowed(&["p.cedar#0"])),
                (asked("read", 2, false, "x"), denied(&[])),
                (asked("read", 2, true, "y"), allowed(&["p.cedar#1"])),
                (asked("send", 1, true, "x"), allowed(&["p.cedar#2"])),
                (asked("send", 1, true, "y"), denied(&[])),
            ],
        );
    }
}

#[test]
fn actions_of_any_type_are_accepted() {
    let asked = |parents: &[Uid], urgent: bool| Query {
        action: user("act"),
        context: fields([("urgent", Value::Bool(urgent))]),
        entities: vec![RequestEntity {
            parents: parents.to_vec(),
            ..entity(user("act"), [])
        }],
        ..ann_reads()
    };
    check(
        OFF,
        &[(
            "p.cedar",
            r#"permit(principal, action, resource) when { action in Group::"acts" && context.urgent };"#,
        )],
        &[
            (asked(&[], true), denied(&[])),
            (asked(&[group("acts")], true), allowed(&["p.cedar#0"])),
            (asked(&[group("acts")], false), denied(&[])),
            (sending([entity(user("act"), [])]), denied(&[])),
        ],
    );
}
