//! Specifies the valid contents of a policy directory, and the errors about invalid ones.

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
            let kind = FileKind::from_name(path).expect("a valid file name");
            SourceFile::in_memory((*path).to_owned(), kind, Arc::from(*text))
        })
        .collect();
    let settings = Settings {
        validation,
        ..Settings::default()
    };
    compile(&Sources::new(files, vec![], vec![]), &settings)
}

fn compile_valid(files: &[(&str, &str)]) -> Snapshot {
    compile_files(files, Validation::Strict).unwrap_or_else(|error| panic!("{error:#?}"))
}

/// File, line and column, and text of an error.
type ErrorAt = (String, Option<(u32, u32)>, String);

/// Returns all errors of files that do not compile.
fn compile_errors(files: &[(&str, &str)]) -> Vec<ErrorAt> {
    let error = compile_files(files, Validation::Strict).expect_err("invalid sources");
    error
        .errors
        .into_iter()
        .map(|error| {
            let position = error
                .position
                .map(|Position { line, column }| (line, column));
            (error.file, position, error.message)
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
fn errors_of_all_files_are_reported_together() {
    let errors = compile_errors(&[
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
fn invalid_policies_follow_validation_setting() {
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
    let [(file, position, message)] = compile_errors(&files).try_into().unwrap();
    assert_eq!(
        (file.as_str(), position),
        ("a.cedar", Some((2, 3))),
        "{message}"
    );
    let warned = compile_files(&files, Validation::Warn).unwrap();
    assert_eq!(warned.warnings().len(), 1, "{:?}", warned.warnings());
    let off = compile_files(&files, Validation::Off).unwrap();
    assert_eq!(off.warnings(), []);
}

#[test]
fn ids_are_unique_across_policies_templates_and_links() {
    let templates = r#"@id("t") permit(principal == ?principal, action, resource);"#;
    let link = r#"[{"template_id": "t", "link_id": "t", "args": {"?principal": "User::\"a\""}}]"#;
    let [(file, _, message)] = compile_errors(&[("a.cedar", templates), ("b.links.json", link)])
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
fn json_keys_are_unique_ids() {
    let annotated = JSON_POLICY.replacen('{', r#"{"annotations": {"id": "other"}, "#, 1);
    let one = format!(r#"{{"staticPolicies": {{"a": {annotated}}}}}"#);
    assert_eq!(ids(&compile_valid(&[("p.cedar.json", &one)])), ["a"]);
    let duplicate = format!(
        r#"{{"staticPolicies": {{"a": {JSON_POLICY},
 "a": {JSON_POLICY}}}}}"#
    );
    let [(_, position, message)] = compile_errors(&[("p.cedar.json", &duplicate)])
        .try_into()
        .unwrap();
    assert_eq!(position.map(|(line, _)| line), Some(2), "{message}");
    assert!(message.contains("defined twice"), "{message}");
}

#[test]
fn links_may_use_templates_of_other_files() {
    let snapshot = compile_valid(&[
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
fn invalid_links_are_reported_at_their_position() {
    let template = r#"@id("t") permit(principal == ?principal, action, resource);"#;
    for (link, column) in [
        r#"{"template_id": "none", "link_id": "l", "args": {}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {"?principal": "User::\"a\"", "?resource": "Doc::\"a\""}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {"?owner": "User::\"a\""}}"#,
        r#"{"template_id": "t", "link_id": "l", "args": {"?principal": "alice"}}"#,
    ]
    .map(|link| (link, 3))
    .into_iter()
    // What is wrong inside of a link has a place of its own.
    .chain([
        (r#"{"template_id": "t", "link": "l", "args": {}}"#, 29),
        (r#"["t", "l", {}]"#, 3),
    ]) {
        let errors = compile_errors(&[
            ("a.cedar", template),
            ("l.links.json", &format!("[\n  {link}\n]")),
        ]);
        let [(file, position, _)] = errors.as_slice() else {
            panic!("{errors:?}")
        };
        assert_eq!(
            (file.as_str(), *position),
            ("l.links.json", Some((2, column))),
            "{errors:?}"
        );
    }
}

#[test]
fn schema_files_are_combined_and_may_share_namespaces() {
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
    assert!(compile_valid(&[&files[..], &[policy]].concat()).has_schema());

    let again = ("d.cedarschema", "namespace Shop { entity User; }");
    let errors = compile_errors(&[&files[..], &[again]].concat());
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].2.contains("Shop::User"), "{errors:?}");
}

#[test]
fn entities_are_unique_and_conform_to_schema() {
    let alice = r#"{"uid": {"type": "User", "id": "a"}, "attrs": {}, "parents": []}"#;
    let errors = compile_errors(&[
        ("entities.json", &format!("[{alice}]")),
        ("x.entities.json", &format!("[\n{alice}]")),
    ]);
    let [(file, position, message)] = errors.as_slice() else {
        panic!("{errors:?}")
    };
    assert_eq!(
        (file.as_str(), *position),
        ("x.entities.json", Some((2, 1)))
    );
    assert!(message.contains("entities.json:1:2"), "{message}");

    let schema = ("s.cedarschema", "entity User { name: String };");
    assert_eq!(
        compile_errors(&[schema, ("entities.json", &format!("[{alice}]"))]).len(),
        1
    );
}

#[test]
fn cyclic_hierarchies_are_rejected() {
    let cycle = r#"[{"uid": {"type": "G", "id": "a"}, "attrs": {}, "parents": [{"type": "G", "id": "b"}]},
{"uid": {"type": "G", "id": "b"}, "attrs": {}, "parents": [{"type": "G", "id": "a"}]}]"#;
    let errors = compile_errors(&[("entities.json", cycle)]);
    assert!(errors[0].2.contains("form a cycle"), "{errors:?}");
}

#[test]
fn deeply_nested_texts_are_rejected_at_their_position() {
    let parentheses = format!(
        "permit(principal, action, resource) when {{ {}true{} }};",
        "(".repeat(400),
        ")".repeat(400)
    );
    let deep_json = "[".repeat(100_000);
    let errors = compile_errors(&[
        ("a.cedar", &parentheses),
        ("entities.json", &deep_json),
        ("s.cedarschema", &"entity A { x: Set<".repeat(50_000)),
    ]);
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(
        errors
            .iter()
            .all(|(_, position, message)| position.is_some() && message.contains("nested deeper")),
        "{errors:?}"
    );
}

#[test]
fn policies_at_nesting_limits_compile() {
    let parentheses = crate::pdp::MAX_BRACKETS - 2;
    let nested = format!(
        "permit(principal, action, resource) when {{ {}true{} }};",
        "(".repeat(parentheses),
        ")".repeat(parentheses)
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
    assert_eq!(compile_valid(&files).counts().policies, 2);
}

#[test]
fn empty_directory_compiles_with_a_warning() {
    let snapshot = compile_valid(&[]);
    assert!(
        snapshot
            .warnings()
            .iter()
            .any(|warning| warning.message.contains("every request is denied"))
    );
}

#[test]
fn missing_schema_is_a_warning() {
    let snapshot = compile_valid(&[("a.cedar", PERMIT)]);
    assert!(
        snapshot
            .warnings()
            .iter()
            .any(|warning| warning.message.contains("no schema"))
    );
}

#[test]
fn stored_actions_must_match_schema() {
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
        compile_valid(&[
            ("s.cedarschema", schema),
            ("entities.json", &stored("view"))
        ])
        .counts()
        .entities,
        0
    );
    let other = stored("other");
    assert_eq!(
        compile_errors(&[("s.cedarschema", schema), ("entities.json", &other)]).len(),
        1
    );
}

#[test]
fn json_ids_are_used_verbatim() {
    let template = JSON_POLICY.replace(
        r#""principal": {"op": "All"}"#,
        r#""principal": {"op": "==", "slot": "?principal"}"#,
    );
    let json = format!(
        r#"{{"templates": {{"a \"t\"\n": {template}}}, "templateLinks": [{{"templateId": "a \"t\"\n", "newId": "l\"", "values": {{"?principal": {{"type": "User", "id": "b"}}}}}}]}}"#
    );
    assert_eq!(ids(&compile_valid(&[("p.cedar.json", &json)])), ["l\""]);
}

#[test]
fn nested_common_types_are_bounded() {
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
    assert!(compile_valid(&[("s.cedarschema", &chain(&["x"], 60))]).has_schema());
    assert!(
        compile_errors(&[("s.cedarschema", &chain(&["x"], 1_000))])[0]
            .2
            .contains("deeper")
    );
    assert!(
        compile_errors(&[("s.cedarschema", &chain(&["x", "y"], 18))])[0]
            .2
            .contains("parts")
    );
}

#[test]
fn uids_in_policies_alone_keep_their_ids() {
    let policies: String = (0..300)
        .map(|policy| {
            let uids: Vec<String> = (0..50).map(|n| format!("User::\"{policy}-{n}\"")).collect();
            let uids = uids.join(", ");
            format!("permit(principal, action, resource) when {{ principal in [{uids}] }};\n")
        })
        .collect();
    let compile_from = |previous: Option<&Compiled>, entities: &str| {
        let files = [("p.cedar", policies.as_str()), ("entities.json", entities)];
        let files = files.map(|(path, text)| {
            let kind = FileKind::from_name(path).expect("a valid file name");
            SourceFile::in_memory(path.to_owned(), kind, Arc::from(text))
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
fn compaction_keeps_answers() {
    let stable = r#"[{"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]}]"#;
    let policies = r#"permit(principal in Group::"staff", action == Action::"read", resource);
permit(principal == User::"guest", action, resource) when { resource.open };"#;
    let short_lived = |step: usize| {
        let entities: Vec<String> = (0..6_000)
            .map(|n| {
                format!(
                    r#"{{"uid": {{"type": "Doc", "id": "{step}-{n}"}}, "attrs": {{"open": true}}, "parents": []}}"#
                )
            })
            .collect();
        format!("[{}]", entities.join(","))
    };
    let mut previous: Option<Compiled> = None;
    let mut compactions = 0;
    for step in 0..8 {
        let short_lived = short_lived(step);
        let files = [
            ("a.entities.json", stable),
            ("b.entities.json", short_lived.as_str()),
            ("p.cedar", policies),
        ];
        let files = files.map(|(path, text)| {
            let kind = FileKind::from_name(path).expect("a valid file name");
            SourceFile::in_memory(path.to_owned(), kind, Arc::from(text))
        });
        let sources = Sources::new(files.to_vec(), vec![], vec![]);
        let settings = Settings::default();
        let compiled =
            compile_from(previous.as_ref(), &sources, &settings, &Workers::default()).unwrap();
        let snapshot = Arc::clone(&compiled.snapshot);
        let uid_count = |snapshot: &Snapshot| snapshot.entities.interner.len();
        compactions += usize::from(
            previous
                .as_ref()
                .is_some_and(|b| uid_count(&b.snapshot) > uid_count(&snapshot)),
        );
        assert!(uid_count(&snapshot) < 30_000);
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
        if let Some(removed) = step.checked_sub(1) {
            assert!(
                !is_allowed("guest", format!("{removed}-0")),
                "an entity of the previous step is allowed"
            );
        }
        previous = Some(compiled);
    }
    assert!(compactions > 0, "ids were never compacted");
}
