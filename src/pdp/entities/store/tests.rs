//! The stored entities, their hierarchy, and what a request changes in it.

use super::*;
use crate::pdp::entities::overlay::{BoundEntity, Overlay, OverlayError};
use crate::pdp::entities::segment::Draft;

fn uid(id: &str) -> EntityUID {
    EntityUID::with_eid_and_type("Node", id).unwrap()
}

fn entity(id: &str, parents: &[&str]) -> Entity {
    Entity::new_with_attr_partial_value(
        uid(id),
        [],
        HashSet::new(),
        parents.iter().map(|parent| uid(parent)).collect(),
        [],
    )
}

/// What a request brings that is like this stored one.
fn bound(entity: &Entity) -> BoundEntity {
    BoundEntity {
        entity: Entity::with_uid(entity.uid().clone()),
        parents: entity.ancestors().cloned().collect(),
    }
}

/// These entities of a request before those of `store`.
fn overlay<'a>(store: &'a EntityStore, sent: &[Entity]) -> Result<Overlay<'a>, OverlayError> {
    Overlay::with_entities(store, sent.iter().map(bound).collect())
}

fn store(entities: &[Entity]) -> EntityStore {
    let mut uids = Arc::default();
    // Two segments: the hierarchy does not end where a file does.
    let (one, other) = entities.split_at(entities.len() / 2);
    let segments = [one, other].map(|entities| {
        let mut draft = Draft::default();
        for entity in entities {
            draft.add(entity, 0).unwrap();
        }
        Arc::new(draft.finish(&mut uids).unwrap())
    });
    let (store, twice) = EntityStore::new(uids, segments.to_vec(), None, || {});
    assert!(twice.is_empty(), "{twice:?}");
    store
}

fn ancestors(overlay: &mut Overlay<'_>, id: &str) -> Vec<String> {
    let number = overlay.find_uid(&uid(id)).unwrap();
    let found = overlay.ancestors(number).unwrap();
    let mut ids: Vec<String> = found
        .into_iter()
        .map(|number| AsRef::<str>::as_ref(overlay.uid(number).unwrap().eid()).to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn every_entity_has_all_its_ancestors_those_that_exist_nowhere_too() {
    let store = store(&[
        entity("a", &["b", "c"]),
        entity("b", &["d"]),
        entity("c", &["d"]),
        entity("d", &["nowhere"]),
    ]);
    store.check_hierarchy().unwrap();
    let mut overlay = Overlay::of(&store);
    assert_eq!(ancestors(&mut overlay, "a"), ["b", "c", "d", "nowhere"]);
    assert_eq!(ancestors(&mut overlay, "d"), ["nowhere"]);
    assert_eq!(store.len(), 4);
}

#[test]
fn cycles_and_self_parents_are_refused() {
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
fn a_long_chain_is_an_error_and_no_overflow() {
    let chain: Vec<Entity> = (0..50_000)
        .map(|n| entity(&n.to_string(), &[&(n + 1).to_string()]))
        .collect();
    assert!(matches!(
        store(&chain).check_hierarchy(),
        Err(HierarchyError::TooManyAncestors(_))
    ));
}

#[test]
fn ancestors_that_are_reached_many_ways_are_counted_once() {
    // Each of 200 levels has two entities, and both are in both of the next level: 2²⁰⁰ ways.
    let levels: Vec<Entity> = (0..200)
        .flat_map(|level| {
            ["x", "y"].map(|side| {
                let above = ["x", "y"].map(|side| format!("{side}{}", level + 1));
                entity(
                    &format!("{side}{level}"),
                    &above.each_ref().map(String::as_str),
                )
            })
        })
        .collect();
    let store = store(&levels);
    store.check_hierarchy().unwrap();
    assert_eq!(ancestors(&mut Overlay::of(&store), "x0").len(), 400);
}

#[test]
fn a_uid_in_two_places_is_told_with_both() {
    let mut uids = Arc::default();
    let segments = [7, 9].map(|origin| {
        let mut draft = Draft::default();
        draft.add(&entity("a", &[]), origin).unwrap();
        Arc::new(draft.finish(&mut uids).unwrap())
    });
    let (store, twice) = EntityStore::new(uids, segments.to_vec(), None, || {});
    let [DuplicateUid { first, second }] = twice[..] else {
        panic!("{twice:?}")
    };
    assert_eq!((store.origin(first), store.origin(second)), (7, 9));
    assert_eq!((first.segment, second.segment), (0, 1));
}

#[test]
fn a_sent_entity_replaces_the_stored_one_for_its_descendants_too() {
    let store = store(&[
        entity("a", &["b"]),
        entity("b", &["old"]),
        entity("other", &["x"]),
    ]);
    let mut overlay = overlay(&store, &[entity("b", &["new"])]).unwrap();
    assert_eq!(ancestors(&mut overlay, "a"), ["b", "new"]);
    assert_eq!(ancestors(&mut overlay, "b"), ["new"]);
    assert_eq!(ancestors(&mut overlay, "other"), ["x"]);
}

#[test]
fn a_sent_entity_can_supply_a_parent_that_the_store_only_names() {
    let store = store(&[entity("a", &["missing"])]);
    let mut overlay = overlay(&store, &[entity("missing", &["top"])]).unwrap();
    assert_eq!(ancestors(&mut overlay, "a"), ["missing", "top"]);
}

#[test]
fn a_cycle_through_stored_entities_is_refused_at_the_sent_one() {
    let store = store(&[entity("a", &["b"]), entity("b", &["c"])]);
    let sent = vec![entity("x", &[]), entity("c", &["a"])];
    assert!(matches!(
        overlay(&store, &sent),
        Err(OverlayError::Entity(1, HierarchyError::Cycle(_)))
    ));
}

#[test]
fn a_hierarchy_whose_closure_costs_too_much_is_refused() {
    let ids: Vec<String> = (0..700).map(|n| n.to_string()).collect();
    let sent: Vec<Entity> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| {
            let above: Vec<&str> = ids[n + 1..].iter().map(String::as_str).collect();
            entity(id, &above)
        })
        .collect();
    let store = EntityStore::default();
    let refused = overlay(&store, &sent);
    assert_eq!(refused.unwrap_err(), OverlayError::TooLarge);
}

#[test]
fn closed_or_not_a_hierarchy_says_the_same_and_so_with_what_is_sent() {
    let stored = || {
        store(&[
            entity("a", &["b", "c"]),
            entity("b", &["d"]),
            entity("c", &["d", "e"]),
            entity("d", &["top"]),
            entity("top", &[]),
        ])
    };
    let open = stored();
    open.check_hierarchy().unwrap();
    let mut closed = stored();
    closed.close_hierarchy();
    for sent in [
        vec![],
        vec![entity("d", &["other"])],
        vec![entity("top", &["new"]), entity("new", &["e"])],
        vec![entity("b", &[]), entity("e", &["d"])],
        vec![entity("z", &["a"])],
    ] {
        for id in ["a", "b", "c", "d", "top", "e"] {
            let found = [&open, &closed].map(|store| {
                let mut overlay = overlay(store, &sent).unwrap();
                ancestors(&mut overlay, id)
            });
            assert_eq!(found[0], found[1], "{id} with {sent:?}");
        }
    }
    for cycle in [
        vec![entity("top", &["a"])],
        vec![entity("e", &["c"])],
        vec![entity("d", &["x"]), entity("x", &["b"])],
    ] {
        for store in [&open, &closed] {
            let refused = overlay(store, &cycle);
            assert!(
                matches!(
                    refused,
                    Err(OverlayError::Entity(0, HierarchyError::Cycle(_)))
                ),
                "{refused:?}"
            );
        }
    }
}
