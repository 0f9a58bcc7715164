//! What is brought together for a request, and at what cost: counted in steps, not in time.

use super::*;
use crate::pdp::answer::{Decision, NoAnswer};
use crate::pdp::entities::overlay::BoundEntity;
use crate::pdp::query::{Query, Record, RequestEntity, Uid, Value as Sent};
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

/// Policies with these conditions, none of which begins like a scope.
fn policies(conditions: &[String]) -> Snapshot {
    let text: String = conditions
        .iter()
        .map(|condition| format!("permit(principal, action, resource) when {{ {condition} }};\n"))
        .collect();
    snapshot(&[("p.cedar", &text)])
}

/// An entity with a tag for each of `tags` that holds it; the tags are called `0`, `1` and so on.
fn tagged(uid: &str, tags: impl IntoIterator<Item = String>, parents: &[&str]) -> RequestEntity {
    let tags = tags.into_iter().enumerate();
    let tags = tags.map(|(n, uid)| (n.to_string(), Sent::Entity(uid.parse().unwrap())));
    RequestEntity {
        uid: uid.parse().unwrap(),
        attributes: Record::default(),
        parents: parents.iter().map(|uid| uid.parse().unwrap()).collect(),
        tags: tags.collect::<BTreeMap<_, _>>().into(),
    }
}

fn bringing(entities: Vec<RequestEntity>) -> Query {
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

/// The steps that it takes to find what the policies look up, and how many entities that are.
fn cost(snapshot: &Snapshot, query: &Query) -> (usize, usize) {
    let uid = |uid: &Uid| snapshot.type_names.uid(uid).unwrap();
    let sent = query.entities.iter().map(|sent| {
        let tags = snapshot.type_names.fields(&sent.tags).unwrap();
        let tags = tags
            .into_iter()
            .map(|(name, value)| (name, PartialValue::from(value)));
        let (none, empty) = (HashSet::new(), std::iter::empty());
        BoundEntity {
            entity: Entity::new_with_attr_partial_value(
                uid(&sent.uid),
                empty,
                none.clone(),
                none,
                tags,
            ),
            parents: sent.parents.iter().map(uid).collect(),
        }
    });
    let mut overlay = Overlay::with_entities(&snapshot.entities, sent.collect()).unwrap();
    let bindings = Bindings {
        principal: &uid(&query.principal),
        action: &uid(&query.action),
        resource: &uid(&query.resource),
        context: &BTreeMap::new(),
        variables: &RequestVariables::default(),
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
fn an_entity_is_visited_once_however_many_ways_lead_to_it() {
    const TAGS: usize = 20_000;
    let all = |uid: &str| std::iter::repeat_n(uid.to_owned(), TAGS);
    let snapshot = policies(&[
        r#"resource.getTag("0").getTag("19999") in Group::"staff""#.to_owned(),
        r#"resource.getTag("0").getTag("19999") in Group::"board""#.to_owned(),
    ]);
    let query = bringing(vec![
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
fn ways_that_part_and_meet_again_are_not_multiplied() {
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
    let query = bringing(entities);
    let (steps, entities) = cost(&snapshot, &query);
    assert!(steps < 10 * 5 * WIDE * WIDE, "{steps}");
    assert_eq!(entities, 1 + 5 * WIDE);
    assert_eq!(
        authorize(&snapshot, &query).unwrap().decision,
        Decision::Allow
    );
}

const TOO_MANY: NoAnswer = NoAnswer::TooManyEntities { most: MAX_LOOKUPS };

#[test]
fn a_request_that_looks_up_more_entities_than_it_may_is_refused() {
    let snapshot = policies(&[r#"resource.getTag("0") in Group::"staff""#.to_owned()]);
    let users = |count: usize| (0..count).map(|n| format!("User::\"{n}\""));
    let query = |count: usize| {
        let mut entities = vec![tagged(r#"Doc::"1""#, users(count), &[])];
        entities.extend(users(count).map(|uid| tagged(&uid, [], &[r#"Group::"staff""#])));
        bringing(entities)
    };
    // The resource is one of them.
    let answer = authorize(&snapshot, &query(MAX_LOOKUPS - 1)).unwrap();
    assert_eq!(answer.decision, Decision::Allow);
    assert_eq!(authorize(&snapshot, &query(MAX_LOOKUPS)), Err(TOO_MANY));
}

#[test]
fn a_request_that_takes_more_steps_to_them_than_it_may_is_refused() {
    const TAGS: usize = 20_000;
    let conditions: Vec<String> = (0..MAX_LOOKUP_STEPS / TAGS)
        .map(|n| format!("resource.getTag(\"0\").a{n} in Group::\"staff\""))
        .collect();
    let entities = vec![tagged(
        r#"Doc::"1""#,
        std::iter::repeat_n(r#"Doc::"1""#.to_owned(), TAGS),
        &[],
    )];
    let query = bringing(entities);
    let few = conditions.get(..10).unwrap();
    assert!(authorize(&policies(few), &query).is_ok());
    assert_eq!(authorize(&policies(&conditions), &query), Err(TOO_MANY));
}

#[test]
fn links_that_ask_the_same_visit_an_entity_once() {
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
    let query = bringing(vec![tagged(r#"Doc::"1""#, all, &[])]);
    let (steps, _) = cost(&snapshot, &query);
    assert!(steps < 4 * TAGS, "{steps}");
}
