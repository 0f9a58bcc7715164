//! The stored entities and their hierarchy.

use super::*;
use crate::pdp::entities::segment::Draft;

pub(in crate::pdp::entities) fn uid(id: &str) -> EntityUID {
    EntityUID::with_eid_and_type("Node", id).unwrap()
}

pub(in crate::pdp::entities) fn entity(id: &str, parents: &[&str]) -> Entity {
    Entity::new_with_attr_partial_value(
        uid(id),
        [],
        HashSet::new(),
        parents.iter().map(|parent| uid(parent)).collect(),
        [],
    )
}

pub(in crate::pdp::entities) fn store(entities: &[Entity]) -> EntityStore {
    let mut uids = Arc::default();
    // Two segments, as a hierarchy may span files.
    let (one, other) = entities.split_at(entities.len() / 2);
    let segments = [one, other].map(|entities| {
        let mut draft = Draft::default();
        for entity in entities {
            draft.add(entity, 0).unwrap();
        }
        Arc::new(draft.finish(&mut uids).unwrap())
    });
    let (store, duplicates) = EntityStore::new(uids, segments.to_vec(), None, || {});
    assert!(duplicates.is_empty(), "{duplicates:?}");
    store
}

fn ancestors(store: &EntityStore, id: &str) -> Vec<String> {
    let ancestors = store.ancestors(store.interner.find_uid(&uid(id)).unwrap());
    let mut ids: Vec<String> = ancestors
        .into_iter()
        .map(|ancestor| store.interner.parts(ancestor).1.to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn ancestors_include_uids_without_entities() {
    let store = store(&[
        entity("a", &["b", "c"]),
        entity("b", &["d"]),
        entity("c", &["d"]),
        entity("d", &["nowhere"]),
    ]);
    store.check_hierarchy().unwrap();
    assert_eq!(ancestors(&store, "a"), ["b", "c", "d", "nowhere"]);
    assert_eq!(ancestors(&store, "d"), ["nowhere"]);
    assert_eq!(store.len(), 4);
}

#[test]
fn cycles_and_self_parents_are_rejected() {
    for entities in [
        vec![entity("a", &["a"])],
        vec![
            entity("a", &["b"]),
            entity("b", &["c"]),
            entity("c", &["a"]),
        ],
    ] {
        assert!(matches!(
            store(&entities).check_hierarchy(),
            Err(HierarchyError::Cycle(_))
        ));
    }
}

#[test]
fn long_chains_are_rejected_without_overflow() {
    let chain: Vec<Entity> = (0..50_000)
        .map(|n| entity(&n.to_string(), &[&(n + 1).to_string()]))
        .collect();
    assert!(matches!(
        store(&chain).check_hierarchy(),
        Err(HierarchyError::TooManyAncestors(_))
    ));
}

#[test]
fn ancestors_reached_many_ways_count_once() {
    // 200 levels of two entities, each in both entities of the next level: 2²⁰⁰ ways.
    let levels: Vec<Entity> = (0..200)
        .flat_map(|level| {
            ["x", "y"].map(|side| {
                let parents = ["x", "y"].map(|side| format!("{side}{}", level + 1));
                entity(
                    &format!("{side}{level}"),
                    &parents.each_ref().map(String::as_str),
                )
            })
        })
        .collect();
    let store = store(&levels);
    store.check_hierarchy().unwrap();
    assert_eq!(ancestors(&store, "x0").len(), 400);
}

#[test]
fn duplicate_uids_are_reported_with_both_locations() {
    let mut uids = Arc::default();
    let segments = [7, 9].map(|origin| {
        let mut draft = Draft::default();
        draft.add(&entity("a", &[]), origin).unwrap();
        Arc::new(draft.finish(&mut uids).unwrap())
    });
    let (store, duplicates) = EntityStore::new(uids, segments.to_vec(), None, || {});
    let [DuplicateUid { first, second }] = duplicates[..] else {
        panic!("{duplicates:?}")
    };
    assert_eq!((store.origin(first), store.origin(second)), (7, 9));
    assert_eq!((first.segment, second.segment), (0, 1));
}
