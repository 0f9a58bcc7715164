//! Draws policies and templates: effect, scope, and clauses.

use cedar_pdp::pdp::query::Uid;

use crate::conditions::Conditions;
use crate::rng::Rng;
use crate::shape::Shape;
use crate::values::{PRINCIPALS, RESOURCES, uid, uid_text};

/// A policy or template, without annotations.
#[derive(Clone, Debug)]
pub(crate) struct DrawnPolicy {
    pub(crate) text: String,
    /// The slots that it has: `?principal`, `?resource`.
    pub(crate) slots: (bool, bool),
}

impl DrawnPolicy {
    pub(crate) fn is_template(&self) -> bool {
        self.slots.0 || self.slots.1
    }
}

pub(crate) fn draw(rng: &mut Rng, shape: &Shape, untyped: bool) -> DrawnPolicy {
    let slots = match rng.chance(28) {
        false => (false, false),
        true => rng.pick(&[(true, false), (false, true), (true, true)]),
    };
    let effect = if rng.chance(20) { "forbid" } else { "permit" };
    let principal = constraint(rng, "principal", PRINCIPALS, slots.0, untyped);
    let action = action_constraint(rng, shape);
    let resource = constraint(rng, "resource", RESOURCES, slots.1, untyped);
    let mut clauses = Conditions {
        rng,
        shape,
        untyped,
    }
    .clauses();
    if effect == "forbid" && clauses.is_empty() {
        // A forbid without conditions would leave few requests to allow.
        clauses = Conditions {
            rng,
            shape,
            untyped,
        }
        .clauses();
    }
    DrawnPolicy {
        text: format!("{effect}({principal}, {action}, {resource}){clauses};"),
        slots,
    }
}

fn constraint(
    rng: &mut Rng,
    variable: &str,
    types: &[&'static str],
    slot: bool,
    untyped: bool,
) -> String {
    let own = match untyped && rng.chance(4) {
        true => "Ghost",
        false => rng.pick(types),
    };
    let parent_ids = rng.pick(match own {
        "User" => &["Group", "Group", "Org"] as &[&'static str],
        "Group" => &["Group", "Org"],
        _ => &["Folder"],
    });
    let same_or_above = if rng.chance(20) { own } else { parent_ids };
    let target = |rng: &mut Rng, type_name: &str| match slot {
        true => format!("?{variable}"),
        false => uid_text(&uid(rng, type_name)),
    };
    match rng.below(16) {
        0 | 1 => format!("{variable} == {}", target(rng, own)),
        2..=4 => format!("{variable} in {}", target(rng, same_or_above)),
        5 | 6 => format!("{variable} is {own} in {}", target(rng, parent_ids)),
        _ if slot => format!("{variable} in ?{variable}"),
        7 => format!("{variable} is {own}"),
        _ => variable.to_owned(),
    }
}

fn action_constraint(rng: &mut Rng, shape: &Shape) -> String {
    let action = |rng: &mut Rng| uid_text(&rng.pick(&shape.actions).uid());
    match rng.below(10) {
        0 => format!("action == {}", action(rng)),
        1 | 2 => format!("action in {}", action(rng)),
        3 => format!("action in [{}, {}]", action(rng), action(rng)),
        _ => "action".to_owned(),
    }
}

/// Returns the values of a link for `?principal` and `?resource`.
pub(crate) fn arguments(rng: &mut Rng, slots: (bool, bool)) -> (Option<Uid>, Option<Uid>) {
    let principal = rng.pick(&["User", "Group", "Group", "Org"]);
    let resource = rng.pick(&["Doc", "Folder", "Folder", "Shop::Order"]);
    (
        slots.0.then(|| uid(rng, principal)),
        slots.1.then(|| uid(rng, resource)),
    )
}
