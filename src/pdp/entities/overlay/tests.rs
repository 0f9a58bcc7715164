//! The entities of a request on top of the stored ones.

use super::*;
use crate::pdp::entities::store::tests::{entity, store, uid};

/// Returns the request entity that equals this stored one.
fn bound(entity: &Entity) -> BoundEntity {
    BoundEntity {
        entity: Entity::with_uid(entity.uid().clone()),
        parents: entity.ancestors().cloned().collect(),
    }
}

/// Returns `store` overlaid with these request entities.
fn overlay<'a>(store: &'a EntityStore, sent: &[Entity]) -> Result<Overlay<'a>, OverlayError> {
    Overlay::with_entities(store, sent.iter().map(bound).collect())
}

fn ancestors(overlay: &mut Overlay<'_>, id: &str) -> Vec<String> {
    let uid = overlay.find_uid(&uid(id)).unwrap();
    let found = overlay.ancestors(uid).unwrap();
    let mut ids: Vec<String> = found
        .into_iter()
        .map(|uid| AsRef::<str>::as_ref(overlay.uid(uid).unwrap().eid()).to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn request_entity_replaces_stored_one_for_descendants() {
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
fn request_entity_can_supply_missing_parent() {
    let store = store(&[entity("a", &["missing"])]);
    let mut overlay = overlay(&store, &[entity("missing", &["top"])]).unwrap();
    assert_eq!(ancestors(&mut overlay, "a"), ["missing", "top"]);
}

#[test]
fn cycle_through_stored_entities_blames_request_entity() {
    let store = store(&[entity("a", &["b"]), entity("b", &["c"])]);
    let sent = vec![entity("x", &[]), entity("c", &["a"])];
    assert!(matches!(
        overlay(&store, &sent),
        Err(OverlayError::Entity(1, HierarchyError::Cycle(_)))
    ));
}

#[test]
fn expensive_hierarchies_are_rejected() {
    let ids: Vec<String> = (0..700).map(|n| n.to_string()).collect();
    let sent: Vec<Entity> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| {
            let parents: Vec<&str> = ids[n + 1..].iter().map(String::as_str).collect();
            entity(id, &parents)
        })
        .collect();
    let store = EntityStore::default();
    let error = overlay(&store, &sent).unwrap_err();
    assert_eq!(error, OverlayError::TooLarge);
}

#[test]
fn precomputed_ancestors_change_no_result() {
    // Nor do they with request entities in the overlay.
    let stored = || {
        store(&[
            entity("a", &["b", "c"]),
            entity("b", &["d"]),
            entity("c", &["d", "e"]),
            entity("d", &["top"]),
            entity("top", &[]),
        ])
    };
    let plain = stored();
    plain.check_hierarchy().unwrap();
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
            let found = [&plain, &closed].map(|store| {
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
        for store in [&plain, &closed] {
            let result = overlay(store, &cycle);
            assert!(
                matches!(
                    result,
                    Err(OverlayError::Entity(0, HierarchyError::Cycle(_)))
                ),
                "{result:?}"
            );
        }
    }
}
