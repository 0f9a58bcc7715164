//! Invalid or immense directories and requests: an error that names the place, or a bounded cost;
//! no crash and no wrong answer.

use std::fmt::Write as _;

use cedar_pdp::pdp::answer::Decision;
use cedar_pdp::pdp::query::{Query, Record, RequestEntity, Uid};
use cedar_pdp::pdp::settings::{Settings, Validation};
use cedar_pdp::pdp::snapshot::Snapshot;
use cedar_pdp::pdp::{NoAnswer, Workers, authorize, compile};
use cedar_pdp::policy_store::directory::{SourceLimits, scan};

const OFF: Settings = Settings {
    validation: Validation::Off,
    on_policy_error: cedar_pdp::pdp::settings::OnPolicyError::Skip,
    request_entity_types: None,
    require_known: None,
    max_candidates: 10_000,
    max_store_bytes: 1 << 30,
};

const ONE_MILLION: usize = 1_000_000;

/// Loads a directory of these files; returns the errors as lines of text.
fn load(settings: &Settings, files: &[(&str, &str)]) -> Result<Snapshot, String> {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        std::fs::write(directory.path().join(path), text).unwrap();
    }
    // A million entities exceed the default file limit.
    let limits = SourceLimits {
        file_bytes: 1 << 30,
        ..SourceLimits::default()
    };
    let reading = scan(directory.path(), &limits, None, &Workers::default());
    compile(&reading.sources, settings).map_err(|error| {
        let lines: Vec<String> = error.errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

fn load_error(settings: &Settings, files: &[(&str, &str)]) -> String {
    load(settings, files).expect_err("the directory is rejected")
}

/// Writes `Node` entities with their parents, all numbered.
fn nodes(nodes: impl Iterator<Item = (usize, Vec<usize>)>) -> String {
    let mut text = String::from("[");
    for (number, (node, parents)) in nodes.enumerate() {
        let comma = if number == 0 { "" } else { ",\n" };
        write!(
            text,
            r#"{comma}{{"uid": {{"type": "Node", "id": "{node}"}}, "attrs": {{}}, "parents": ["#
        )
        .unwrap();
        for (number, parent) in parents.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(text, r#"{comma}{{"type": "Node", "id": "{parent}"}}"#).unwrap();
        }
        text.push_str("]}");
    }
    text.push(']');
    text
}

fn query() -> Query {
    Query {
        principal: Uid::new("Node", "0"),
        action: Uid::new("Action", "read"),
        resource: Uid::new("Doc", "1"),
        context: Record::default(),
        entities: Vec::new(),
        claimed: None,
        explain: false,
    }
}

const OPEN: (&str, &str) = ("p.cedar", "permit(principal, action, resource);");

#[test]
fn parent_cycles_are_rejected_with_their_place() {
    for cycle in [
        nodes([(0, vec![0])].into_iter()),
        nodes((0..5).map(|n| (n, vec![(n + 1) % 5]))),
        nodes((0..ONE_MILLION).map(|n| (n, vec![(n + 1) % ONE_MILLION]))),
    ] {
        let load_error = load_error(&OFF, &[OPEN, ("entities.json", &cycle)]);
        assert!(
            load_error.contains("entities.json:") && load_error.contains("form a cycle"),
            "{load_error}"
        );
    }
}

#[test]
fn deep_and_wide_hierarchies_are_rejected() {
    // The error names the entity and its place.
    for entities in [
        nodes((0..ONE_MILLION).map(|n| (n, vec![n + 1]))),
        nodes([(0, (1..=ONE_MILLION).collect())].into_iter()),
    ] {
        let load_error = load_error(&OFF, &[OPEN, ("entities.json", &entities)]);
        assert!(
            load_error.contains("entities.json:") && load_error.contains("ancestors"),
            "{load_error}"
        );
    }
}

#[test]
fn too_many_matching_policies_warn_and_fail() {
    let policies = "permit(principal == Node::\"0\", action, resource);\n".repeat(100_000);
    let snapshot = load(&OFF, &[("p.cedar", &policies)]).unwrap();
    assert!(
        snapshot
            .warnings()
            .iter()
            .any(|warning| warning.to_string().contains("100000 policies")),
        "{:?}",
        snapshot.warnings()
    );
    let load_error = authorize(&snapshot, &query());
    assert_eq!(
        load_error.unwrap_err(),
        NoAnswer::TooManyPolicies { limit: 10_000 }
    );
    let other = Query {
        principal: Uid::new("Node", "1"),
        ..query()
    };
    assert_eq!(
        authorize(&snapshot, &other).unwrap().decision,
        Decision::Deny
    );
}

#[test]
fn unconstrained_policies_count_towards_the_warning() {
    let three = Settings {
        max_candidates: 3,
        ..OFF
    };
    for (of_zero, is_answered) in [(2, true), (3, false)] {
        let scoped = "permit(principal == Node::\"0\", action, resource);\n".repeat(of_zero);
        let snapshot = load(&three, &[OPEN, ("q.cedar", &scoped)]).unwrap();
        let warnings = snapshot.warnings().iter().map(ToString::to_string);
        let warned: Vec<String> = warnings
            .filter(|warning| warning.contains("one request may match"))
            .collect();
        assert_eq!(warned.is_empty(), is_answered, "{warned:?}");
        assert!(
            warned
                .iter()
                .all(|warning| warning.contains("4 policies, such as `q.cedar#0`")),
            "{warned:?}"
        );
        assert_eq!(authorize(&snapshot, &query()).is_ok(), is_answered);
    }
}

#[test]
fn request_may_have_ten_thousand_entities() {
    let policy = r#"permit(principal in Node::"top", action, resource);"#;
    let snapshot = load(&OFF, &[("p.cedar", policy)]).unwrap();
    let entity = |id: String, parent: &str| RequestEntity {
        uid: Uid::new("Node", id),
        attributes: Record::default(),
        parents: vec![Uid::new("Node", parent)],
        tags: Record::default(),
    };
    let mut entities: Vec<RequestEntity> =
        (1..10_000).map(|n| entity(n.to_string(), "top")).collect();
    entities.push(entity("0".to_owned(), "17"));
    let query = Query {
        entities,
        ..query()
    };
    assert_eq!(
        authorize(&snapshot, &query).unwrap().decision,
        Decision::Allow
    );
}

#[test]
fn attributes_may_refer_to_missing_entities() {
    let entities = r#"[{"uid": {"type": "Node", "id": "0"}, "parents": [],
        "attrs": {"next": {"__entity": {"type": "Node", "id": "nowhere"}}}}]"#;
    let policies = r#"permit(principal, action, resource) when { principal.next.level == 1 };
@id("ok") permit(principal, action, resource) when { !(principal.next has level) };"#;
    let snapshot = load(&OFF, &[("p.cedar", policies), ("entities.json", entities)]).unwrap();
    let answer = authorize(&snapshot, &query()).unwrap();
    assert_eq!(answer.decision, Decision::Allow);
    let [error] = &answer.diagnostics.errors[..] else {
        panic!("{answer:?}")
    };
    assert!(error.message.contains("does not exist"), "{error:?}");
}

#[test]
fn oversized_store_is_rejected() {
    let small = Settings {
        max_store_bytes: 100_000,
        ..OFF
    };
    let entities = nodes((0..20_000).map(|n| (n, Vec::new())));
    let load_error = load_error(&small, &[OPEN, ("entities.json", &entities)]);
    assert!(load_error.contains("100000 are allowed"), "{load_error}");
}
