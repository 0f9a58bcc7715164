//! The entities of a slice, and the cost of finding them, counted in steps.

use std::collections::HashSet;

use super::*;
use crate::pdp::answer::{Decision, NoAnswer};
use crate::pdp::entities::overlay::BoundEntity;
use crate::pdp::query::{Query, Record, RequestEntity, Uid, Value as QueryValue};
use crate::pdp::sources::{FileKind, SourceFile, Sources};
use crate::pdp::{Settings, Snapshot, authorize, compile};

fn snapshot(files: &[(&str, &str)]) -> Snapshot {
    let files = files.iter().map(|(path, text)| {
        let kind = FileKind::from_name(path).expect("a name that matches");
        SourceFile::in_memory((*path).to_owned(), kind, Arc::from(*text))
    });
    let sources = Sources::new(files.collect(), vec![], vec![]);
    compile(&sources, &Settings::default()).unwrap()
}

/// Compiles policies with these conditions, of which the scope absorbs none.
fn policies(conditions: &[String]) -> Snapshot {
    let text: String = conditions
        .iter()
        .map(|condition| format!("permit(principal, action, resource) when {{ {condition} }};\n"))
        .collect();
    snapshot(&[("p.cedar", &text)])
}

/// Returns an entity whose tags `0`, `1` and so on have these values.
fn tagged(uid: &str, tags: impl IntoIterator<Item = String>, parents: &[&str]) -> RequestEntity {
    let tags = tags.into_iter().enumerate();
    let tags = tags.map(|(n, uid)| (n.to_string(), QueryValue::Entity(uid.parse().unwrap())));
    RequestEntity {
        uid: uid.parse().unwrap(),
        attributes: Record::default(),
        parents: parents.iter().map(|uid| uid.parse().unwrap()).collect(),
        tags: tags.collect::<BTreeMap<_, _>>().into(),
    }
}

fn query_with(entities: Vec<RequestEntity>) -> Query {
    Query {
        principal: Uid::new("User", "ann"),
        action: Uid::new("Action", "read"),
        resource: Uid::new("Doc", "1"),
        context: Record::default(),
        entities,
        claimed: None,
        explain: false,
    }
}

/// Returns the steps to find the slice, and its number of entities.
fn cost(snapshot: &Snapshot, query: &Query) -> (usize, usize) {
    let uid = |uid: &Uid| snapshot.type_names.uid(uid).unwrap();
    let request = query.entities.iter().map(|request| {
        let tags = snapshot.type_names.fields(&request.tags).unwrap();
        let tags = tags
            .into_iter()
            .map(|(name, value)| (name, PartialValue::from(value)));
        let (none, empty) = (HashSet::new(), std::iter::empty());
        BoundEntity {
            entity: Entity::new_with_attr_partial_value(
                uid(&request.uid),
                empty,
                none.clone(),
                none,
                tags,
            ),
            parents: request.parents.iter().map(uid).collect(),
        }
    });
    let mut overlay = Overlay::with_entities(&snapshot.entities, request.collect()).unwrap();
    let bindings = Bindings {
        principal: uid(&query.principal),
        action: uid(&query.action),
        resource: uid(&query.resource),
        context: Arc::default(),
        variables: RequestVariables::default(),
    };
    let mut slicer = Slicer::new(&mut overlay);
    for rule in &snapshot.rules {
        slicer
            .add(&rule.remainder.read_set, rule.slots(), &bindings)
            .unwrap();
    }
    let steps = MAX_LOOKUP_STEPS - slicer.steps_left;
    (steps, slicer.found.len())
}

#[test]
fn entities_are_visited_once() {
    const TAGS: usize = 20_000;
    let all = |uid: &str| std::iter::repeat_n(uid.to_owned(), TAGS);
    let snapshot = policies(&[
        r#"resource.getTag("0").getTag("19999") in Group::"staff""#.to_owned(),
        r#"resource.getTag("0").getTag("19999") in Group::"board""#.to_owned(),
    ]);
    let query = query_with(vec![
        tagged(r#"Doc::"1""#, all(r#"User::"e""#), &[]),
        tagged(r#"User::"e""#, all(r#"User::"f""#), &[]),
        tagged(r#"User::"f""#, [], &[r#"Group::"staff""#]),
    ]);
    let (steps, entities) = cost(&snapshot, &query);
    assert!(steps < 10 * TAGS, "{steps}");
    assert_eq!(entities, 3);

    let answer = authorize(&snapshot, &query).unwrap();
    assert_eq!(answer.decision, Decision::Allow);
    let [determining] = answer.diagnostics.determining.as_slice() else {
        panic!("{answer:?}")
    };
    assert_eq!(determining.as_str(), "p.cedar#0");
}

#[test]
fn diamond_paths_do_not_multiply() {
    const WIDE: usize = 60;
    let level = |at: usize| (0..WIDE).map(move |n| format!("User::\"{at}-{n}\""));
    let snapshot = policies(&[format!(
        "resource{} in Group::\"staff\"",
        r#".getTag("7")"#.repeat(5)
    )]);
    let mut entities = vec![tagged(r#"Doc::"1""#, level(1), &[])];
    for at in 1..5 {
        entities.extend(level(at).map(|uid| tagged(&uid, level(at + 1), &[])));
    }
    entities.extend(level(5).map(|uid| {
        let parents: &[&str] = match uid == r#"User::"5-7""# {
            true => &[r#"Group::"staff""#],
            false => &[],
        };
        tagged(&uid, [], parents)
    }));
    let query = query_with(entities);
    let (steps, entities) = cost(&snapshot, &query);
    assert!(steps < 10 * 5 * WIDE * WIDE, "{steps}");
    assert_eq!(entities, 1 + 5 * WIDE);
    assert_eq!(
        authorize(&snapshot, &query).unwrap().decision,
        Decision::Allow
    );
}

const TOO_MANY: NoAnswer = NoAnswer::TooManyEntities { limit: MAX_LOOKUPS };

#[test]
fn too_many_lookups_are_rejected() {
    let snapshot = policies(&[r#"resource.getTag("0") in Group::"staff""#.to_owned()]);
    let users = |count: usize| (0..count).map(|n| format!("User::\"{n}\""));
    let query = |count: usize| {
        let mut entities = vec![tagged(r#"Doc::"1""#, users(count), &[])];
        entities.extend(users(count).map(|uid| tagged(&uid, [], &[r#"Group::"staff""#])));
        query_with(entities)
    };
    // The resource counts too.
    let answer = authorize(&snapshot, &query(MAX_LOOKUPS - 1)).unwrap();
    assert_eq!(answer.decision, Decision::Allow);
    assert_eq!(authorize(&snapshot, &query(MAX_LOOKUPS)), Err(TOO_MANY));
}

#[test]
fn too_many_lookup_steps_are_rejected() {
    const TAGS: usize = 20_000;
    let conditions: Vec<String> = (0..MAX_LOOKUP_STEPS / TAGS)
        .map(|n| format!("resource.getTag(\"0\").a{n} in Group::\"staff\""))
        .collect();
    let entities = vec![tagged(
        r#"Doc::"1""#,
        std::iter::repeat_n(r#"Doc::"1""#.to_owned(), TAGS),
        &[],
    )];
    let query = query_with(entities);
    let few = conditions.get(..10).unwrap();
    assert!(authorize(&policies(few), &query).is_ok());
    assert_eq!(authorize(&policies(&conditions), &query), Err(TOO_MANY));
}

#[test]
fn links_with_the_same_reads_share_visits() {
    const TAGS: usize = 1_000;
    let template = r#"@id("t") permit(principal in ?principal, action, resource)
when { resource.getTag("0") in Group::"staff" };"#;
    let links: Vec<String> = (0..20)
        .map(|n| {
            let args = format!(r#"{{"?principal": "Group::\"{n}\""}}"#);
            format!(r#"{{"template_id": "t", "link_id": "{n}", "args": {args}}}"#)
        })
        .collect();
    let links = format!("[{}]", links.join(","));
    let snapshot = snapshot(&[("t.cedar", template), ("t.links.json", &links)]);
    let all = std::iter::repeat_n(r#"User::"e""#.to_owned(), TAGS);
    let query = query_with(vec![tagged(r#"Doc::"1""#, all, &[])]);
    let (steps, _) = cost(&snapshot, &query);
    assert!(steps < 4 * TAGS, "{steps}");
}
