//! What a policy directory may hold and how its faults are told, read as a specification.

use std::sync::Arc;

use super::*;
use crate::pdp::answer::Decision;
use crate::pdp::authorize;
use crate::pdp::diagnostic::Position;
use crate::pdp::query::{Query, Record, Uid};
use crate::pdp::sources::{FileKind, SourceFile};

fn compile_files(files: &[(&str, &str)], validation: Validation) -> Result<Snapshot, CompileError> {
    let files = files
        .iter()
        .map(|(path, text)| {
            let kind = FileKind::of(path).expect("a name that matches");
            SourceFile::held((*path).to_owned(), kind, Arc::from(*text))
        })
        .collect();
    let settings = Settings {
        validation,
        ..Settings::default()
    };
    compile(&Sources::new(files, vec![], vec![]), &settings)
}

fn good(files: &[(&str, &str)]) -> Snapshot {
    compile_files(files, Validation::Strict).unwrap_or_else(|error| panic!("{error:#?}"))
}

/// A finding's file, line and column, and text.
type UidSet = (String, Option<(u32, u32)>, String);

/// All errors.
fn bad(files: &[(&str, &str)]) -> Vec<UidSet> {
    let error = compile_files(files, Validation::Strict).expect_err("sources that do not compile");
    error
        .errors
        .into_iter()
        .map(|finding| {
            let place = finding
                .position
                .map(|Position { line, column }| (line, column));
            (finding.file, place, finding.message)
        })
        .collect()
}

fn ids(snapshot: &Snapshot) -> Vec<&str> {
    snapshot
        .policies()
        .map(|policy| policy.id.as_str())
        .collect()
}

const PERMIT: &str = "permit(principal, action, resource);";

#[test]
fn every_error_of_every_file_is_told_in_one_run() {
    let errors = bad(&[
        (
            "a.cedar",
            "permit(principal, action, resource);\npermit(principl, action, resource);",
        ),
        ("b.cedar", "permit(principal, action resource);"),
        ("c.links.json", "[{]"),
        ("entities.json", "{"),
        ("s.cedarschema", "entity User {"),
    ]);
    let files: Vec<&str> = errors.iter().map(|(file, _, _)| file.as_str()).collect();
    for file in [
        "a.cedar",
        "b.cedar",
        "c.links.json",
        "entities.json",
        "s.cedarschema",
    ] {
        assert!(files.contains(&file), "{errors:?}");
    }
    assert_eq!(errors[0].1, Some((2, 8)), "{errors:?}");
}

#[test]
fn a_policy_that_the_schema_rejects_refuses_the_load_or_is_warned_of_or_neither() {
    let files = [
        (
            "s.cedarschema",
            "entity User { level: Long }; entity Doc; action read appliesTo { principal: User, resource: Doc };",
        ),
        (
            "a.cedar",
            "permit(principal, action, resource) when {\n  principal.levle > 3 };",
        ),
    ];
    let [(file, place, message)] = bad(&files).try_into().unwrap();
    assert_eq!(
        (file.as_str(), place),
        ("a.cedar", Some((2, 3))),
        "{message}"
    );
    let warned = compile_files(&files, Validation::Warn).unwrap();
    assert_eq!(warned.warnings().len(), 1, "{:?}", warned.warnings());
    let off = compile_files(&files, Validation::Off).unwrap();
    assert_eq!(off.warnings(), []);
}

#[test]
fn an_id_stands_once_among_policies_templates_and_links() {
    let templates = r#"@id("t") permit(principal == ?principal, action, resource);"#;
    let link = r#"[{"template_id": "t", "link_id": "t", "args": {"?principal": "User::\"a\""}}]"#;
    let [(file, _, message)] = bad(&[("a.cedar", templates), ("b.links.json", link)])
        .try_into()
        .unwrap();
    assert_eq!(file, "b.links.json");
    assert!(
        message.contains("`t`") && message.contains("a.cedar:1:1"),
        "{message}"
    );

    let json = r#"{"staticPolicies": {}, "templates": {}, "templateLinks": []}"#;
    assert!(
        compile_files(
            &[("a.cedar.json", json), ("b.cedar", PERMIT)],
            Validation::Strict
        )
        .is_ok()
    );
}

const JSON_POLICY: &str = r#"{"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"}, "resource": {"op": "All"}, "conditions": []}"#;

#[test]
fn in_json_the_key_is_the_id_and_a_key_that_stands_twice_is_an_error() {
    let annotated = JSON_POLICY.replacen('{', r#"{"annotations": {"id": "other"}, "#, 1);
    let one = format!(r#"{{"staticPolicies": {{"a": {annotated}}}}}"#);
    assert_eq!(ids(&good(&[("p.cedar.json", &one)])), ["a"]);
    let twice = format!(
        r#"{{"staticPolicies": {{"a": {JSON_POLICY},
 "a": {JSON_POLICY}}}}}"#
    );
    let [(_, place, message)] = bad(&[("p.cedar.json", &twice)]).try_into().unwrap();
    assert_eq!(place.map(|(line, _)| line), Some(2), "{message}");
    assert!(message.contains("defined twice"), "{message}");
}

#[test]
fn a_template_may_stand_in_another_file_than_its_link() {
    let snapshot = good(&[
        (
            "a.links.json",
            r#"[{"template_id": "t", "link_id": "l1", "args": {"?principal": "User::\"it's\""}}]"#,
        ),
        (
            "b.cedar.json",
            r#"{"templateLinks": [{"templateId": "t", "newId": "l2", "values": {"?principal": {"type": "User", "id": "b"}}}]}"#,
        ),
        (
            "z.cedar",
            r#"@id("t") permit(principal == ?principal, action, resource);"#,
        ),
    ]);
    assert_eq!(ids(&snapshot), ["l1", "l2"]);
    let counts = snapshot.counts();
    assert_eq!((counts.policies, counts.templates, counts.links), (0, 1, 2));
}

#[test]
fn a_link_that_does_not_fit_is_told_at_its_place() {
    let template = r#"@id("t") permit(principal == ?principal, action, resource);"#;
    for link in [
        r#"{"template_id": "none", "link_id": "l", "args": {}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {"?principal": "User::\"a\"", "?resource": "Doc::\"a\""}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {"?owner": "User::\"a\""}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {"?principal": "alice"}}"#,
        r#"{"template_id": "t", "link": "l", "args": {}}"#,
    ] {
        let errors = bad(&[
            ("a.cedar", template),
            ("l.links.json", &format!("[\n  {link}\n]")),
        ]);
        let [(file, place, _)] = errors.as_slice() else {
            panic!("{errors:?}")
        };
        assert_eq!(
            (file.as_str(), *place),
            ("l.links.json", Some((2, 3))),
            "{errors:?}"
        );
    }
}

#[test]
fn several_schema_files_make_one_and_may_share_a_namespace() {
    let users = "namespace Shop { entity Group; entity User in [Group]; type Name = String; }";
    let orders = "namespace Shop { entity Order { owner: User, name: Name }; action read appliesTo { principal: User, resource: Order }; }";
    let more = r#"{"Other": {"entityTypes": {"Thing": {}}, "actions": {}}}"#;
    let files = [
        ("a.cedarschema", users),
        ("b.cedarschema", orders),
        ("c.cedarschema.json", more),
    ];
    let policy = (
        "p.cedar",
        "permit(principal, action == Shop::Action::\"read\", resource) when { resource.owner == principal };",
    );
    assert!(good(&[&files[..], &[policy]].concat()).has_schema());

    let again = ("d.cedarschema", "namespace Shop { entity User; }");
    let errors = bad(&[&files[..], &[again]].concat());
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].2.contains("Shop::User"), "{errors:?}");
}

#[test]
fn an_entity_stands_once_and_fits_the_schema() {
    let alice = r#"{"uid": {"type": "User", "id": "a"}, "attrs": {}, "parents": []}"#;
    let errors = bad(&[
        ("entities.json", &format!("[{alice}]")),
        ("x.entities.json", &format!("[\n{alice}]")),
    ]);
    let [(file, place, message)] = errors.as_slice() else {
        panic!("{errors:?}")
    };
    assert_eq!((file.as_str(), *place), ("x.entities.json", Some((2, 1))));
    assert!(message.contains("entities.json:1:2"), "{message}");

    let schema = ("s.cedarschema", "entity User { name: String };");
    assert_eq!(
        bad(&[schema, ("entities.json", &format!("[{alice}]"))]).len(),
        1
    );
}

#[test]
fn hierarchies_with_cycles_are_refused() {
    let cycle = r#"[{"uid": {"type": "G", "id": "a"}, "attrs": {}, "parents": [{"type": "G", "id": "b"}]},
{"uid": {"type": "G", "id": "b"}, "attrs": {}, "parents": [{"type": "G", "id": "a"}]}]"#;
    let errors = bad(&[("entities.json", cycle)]);
    assert!(errors[0].2.contains("its own ancestor"), "{errors:?}");
}

#[test]
fn texts_that_would_overflow_a_parser_are_refused_at_their_place() {
    let parens = format!(
        "permit(principal, action, resource) when {{ {}true{} }};",
        "(".repeat(400),
        ")".repeat(400)
    );
    let deep_json = "[".repeat(100_000);
    let errors = bad(&[
        ("a.cedar", &parens),
        ("entities.json", &deep_json),
        ("s.cedarschema", &"entity A { x: Set<".repeat(50_000)),
    ]);
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(
        errors
            .iter()
            .all(|(_, place, message)| place.is_some() && message.contains("nested deeper")),
        "{errors:?}"
    );
}

#[test]
fn policies_as_deep_as_the_bounds_allow_are_loaded() {
    let parens = crate::pdp::MAX_BRACKETS - 2;
    let nested = format!(
        "permit(principal, action, resource) when {{ {}true{} }};",
        "(".repeat(parens),
        ")".repeat(parens)
    );
    let chained = format!(
        "permit(principal, action, resource) when {{ {} }};",
        vec!["true"; crate::pdp::MAX_CHAIN - 20].join(" && ")
    );
    let schema = "entity User, Doc; action read appliesTo { principal: User, resource: Doc };";
    let files = [
        ("a.cedar", nested.as_str()),
        ("b.cedar", &chained),
        ("s.cedarschema", schema),
    ];
    assert_eq!(good(&files).counts().policies, 2);
}

#[test]
fn an_empty_directory_loads_and_says_that_it_denies_everything() {
    let snapshot = good(&[]);
    assert!(
        snapshot
            .warnings()
            .iter()
            .any(|warning| warning.message.contains("every request is denied"))
    );
}

#[test]
fn without_a_schema_it_is_said_that_nothing_is_validated() {
    let snapshot = good(&[("a.cedar", PERMIT)]);
    assert!(
        snapshot
            .warnings()
            .iter()
            .any(|warning| warning.message.contains("no schema"))
    );
}

#[test]
fn actions_may_be_stored_with_their_direct_parents_as_the_schema_has_them() {
    let schema = "entity User, Doc; action all; action view in [all]; action read in [view] appliesTo { principal: User, resource: Doc };";
    let action = |id: &str, parent: &str| {
        format!(
            r#"{{"uid": {{"type": "Action", "id": "{id}"}}, "attrs": {{}}, "parents": [{{"type": "Action", "id": "{parent}"}}]}}"#
        )
    };
    let all = r#"{"uid": {"type": "Action", "id": "all"}, "attrs": {}, "parents": []}"#;
    let stored = |read_in: &str| {
        format!(
            "[{}, {}, {all}]",
            action("read", read_in),
            action("view", "all")
        )
    };
    assert_eq!(
        good(&[
            ("s.cedarschema", schema),
            ("entities.json", &stored("view"))
        ])
        .counts()
        .entities,
        0
    );
    let other = stored("other");
    assert_eq!(
        bad(&[("s.cedarschema", schema), ("entities.json", &other)]).len(),
        1
    );
}

#[test]
fn ids_in_json_are_taken_as_they_are() {
    let template = JSON_POLICY.replace(
        r#""principal": {"op": "All"}"#,
        r#""principal": {"op": "==", "slot": "?principal"}"#,
    );
    let json = format!(
        r#"{{"templates": {{"a \"t\"\n": {template}}}, "templateLinks": [{{"templateId": "a \"t\"\n", "newId": "l\"", "values": {{"?principal": {{"type": "User", "id": "b"}}}}}}]}}"#
    );
    assert_eq!(ids(&good(&[("p.cedar.json", &json)])), ["l\""]);
}

#[test]
fn common_types_that_grow_on_one_another_are_bounded() {
    let chain = |fields: &[&str], length: usize| {
        let mut schema = String::from("entity User { a?: A0 };\n");
        for n in 0..length {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{field}?: A{}", n + 1))
                .collect();
            schema.push_str(&format!("type A{n} = {{ {} }};\n", fields.join(", ")));
        }
        schema + &format!("type A{length} = Long;\n")
    };
    assert!(good(&[("s.cedarschema", &chain(&["x"], 60))]).has_schema());
    assert!(
        bad(&[("s.cedarschema", &chain(&["x"], 1_000))])[0]
            .2
            .contains("deeper")
    );
    assert!(
        bad(&[("s.cedarschema", &chain(&["x", "y"], 18))])[0]
            .2
            .contains("parts")
    );
}

#[test]
fn numbers_of_what_policies_alone_name_go_on() {
    let policies: String = (0..300)
        .map(|policy| {
            let named: Vec<String> = (0..50).map(|n| format!("User::\"{policy}-{n}\"")).collect();
            let named = named.join(", ");
            format!("permit(principal, action, resource) when {{ principal in [{named}] }};\n")
        })
        .collect();
    let compile_from = |previous: Option<&Compiled>, entities: &str| {
        let files = [("p.cedar", policies.as_str()), ("entities.json", entities)];
        let files = files.map(|(path, text)| {
            let kind = FileKind::of(path).expect("a name that matches");
            SourceFile::held(path.to_owned(), kind, Arc::from(text))
        });
        let sources = Sources::new(files.to_vec(), vec![], vec![]);
        let settings = Settings::default();
        compile_from(previous, &sources, &settings, &Workers::default()).unwrap()
    };
    let before = compile_from(None, "[]");
    let entities = r#"[{"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": []}]"#;
    let after = compile_from(Some(&before), entities);
    assert!(
        before
            .snapshot
            .entities
            .interner
            .is_ancestor_of(&after.snapshot.entities.interner)
    );
}

#[test]
fn numbers_that_stand_for_nothing_any_more_are_cleared_and_answers_stay_the_same() {
    let stable = r#"[{"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]}]"#;
    let policies = r#"permit(principal in Group::"staff", action == Action::"read", resource);
permit(principal == User::"guest", action, resource) when { resource.open };"#;
    let passing = |step: usize| {
        let entities: Vec<String> = (0..6_000)
            .map(|n| {
                format!(
                    r#"{{"uid": {{"type": "Doc", "id": "{step}-{n}"}}, "attrs": {{"open": true}}, "parents": []}}"#
                )
            })
            .collect();
        format!("[{}]", entities.join(","))
    };
    let mut before: Option<Compiled> = None;
    let mut cleared = 0;
    for step in 0..8 {
        let passing = passing(step);
        let files = [
            ("a.entities.json", stable),
            ("b.entities.json", passing.as_str()),
            ("p.cedar", policies),
        ];
        let files = files.map(|(path, text)| {
            let kind = FileKind::of(path).expect("a name that matches");
            SourceFile::held(path.to_owned(), kind, Arc::from(text))
        });
        let sources = Sources::new(files.to_vec(), vec![], vec![]);
        let settings = Settings::default();
        let compiled =
            compile_from(before.as_ref(), &sources, &settings, &Workers::default()).unwrap();
        let snapshot = Arc::clone(&compiled.snapshot);
        let numbers = |snapshot: &Snapshot| snapshot.entities.interner.len();
        cleared += usize::from(
            before
                .as_ref()
                .is_some_and(|b| numbers(&b.snapshot) > numbers(&snapshot)),
        );
        assert!(numbers(&snapshot) < 30_000);
        let is_allowed = |principal: &str, resource: String| {
            let query = Query {
                principal: Uid::new("User", principal),
                action: Uid::new("Action", "read"),
                resource: Uid::new("Doc", resource),
                context: Record::default(),
                entities: Vec::new(),
                claimed: None,
                explain: false,
            };
            let answer = authorize(&snapshot, &query).unwrap();
            answer.decision == Decision::Allow
        };
        assert!(is_allowed("ann", format!("{step}-5999")));
        assert!(is_allowed("guest", format!("{step}-0")));
        assert!(!is_allowed("bob", format!("{step}-0")));
        if let Some(gone) = step.checked_sub(1) {
            assert!(
                !is_allowed("guest", format!("{gone}-0")),
                "of the step before"
            );
        }
        before = Some(compiled);
    }
    assert!(cleared > 0, "never");
}
