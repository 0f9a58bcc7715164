//! The types of a scenario's entities, actions and contexts, and its schema.
//!
//! A scenario without a schema has a shape too, which most of its entities follow.

use std::collections::BTreeMap;

use crate::rng::Rng;
use crate::values::{
    ATTRIBUTES, CONTEXT, PLAIN, PRINCIPALS, RECORD, RESOURCES, TYPES, Ty, tag_type,
};
use cedar_pdp::pdp::query::Uid;

/// Attribute names, each with whether it is required.
pub(crate) type Attributes = BTreeMap<&'static str, bool>;

#[derive(Clone, Debug)]
pub(crate) struct EntityShape {
    pub(crate) attributes: Attributes,
    pub(crate) tags: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ActionShape {
    pub(crate) type_name: &'static str,
    pub(crate) id: &'static str,
    /// Ids of action groups of the same type.
    pub(crate) groups: Vec<&'static str>,
    /// `None` for a group.
    pub(crate) applies: Option<Applies>,
}

#[derive(Clone, Debug)]
pub(crate) struct Applies {
    pub(crate) principals: Vec<&'static str>,
    pub(crate) resources: Vec<&'static str>,
    pub(crate) context: Attributes,
}

impl ActionShape {
    pub(crate) fn uid(&self) -> Uid {
        Uid::new(self.type_name, self.id)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) entities: BTreeMap<&'static str, EntityShape>,
    pub(crate) actions: Vec<ActionShape>,
}

/// Type, id and possible groups.
const ACTIONS: &[(&str, &str, bool, &[&str])] = &[
    ("Action", "read", false, &["all", "view"]),
    ("Action", "write", false, &["edit", "all"]),
    ("Action", "delete", false, &["edit"]),
    ("Action", "share", false, &["view"]),
    ("Action", "view", true, &["all"]),
    ("Action", "edit", true, &["all"]),
    ("Action", "all", true, &[]),
    ("Shop::Action", "ship", false, &["handle"]),
    ("Shop::Action", "handle", true, &[]),
];

impl Shape {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let entities = TYPES
            .iter()
            .map(|(type_name, _)| {
                let shape = EntityShape {
                    attributes: attributes(rng, ATTRIBUTES, 45),
                    tags: rng.chance(80),
                };
                (*type_name, shape)
            })
            .collect();
        let actions = ACTIONS
            .iter()
            .map(|(type_name, id, is_group, groups)| ActionShape {
                type_name,
                id,
                groups: rng.some(groups, 75),
                applies: (!is_group).then(|| Applies {
                    principals: distinct(rng, PRINCIPALS),
                    resources: distinct(rng, RESOURCES),
                    context: context(rng),
                }),
            })
            .collect();
        Self { entities, actions }
    }

    /// Changes the actions' groups and resource types, or the optional attributes. Entities that
    /// conform continue to do so.
    pub(crate) fn change(&mut self, rng: &mut Rng) {
        match rng.below(3) {
            0 => {
                for action in &mut self.actions {
                    if let Some((_, _, _, groups)) = ACTIONS
                        .iter()
                        .find(|(ty, id, _, _)| (*ty, *id) == (action.type_name, action.id))
                    {
                        action.groups = rng.some(groups, 60);
                    }
                }
            }
            1 => {
                for applies in self.actions.iter_mut().filter_map(|a| a.applies.as_mut()) {
                    if rng.chance(50) {
                        applies.context = context(rng);
                    }
                    if rng.chance(30) {
                        applies.principals = distinct(rng, PRINCIPALS);
                    }
                }
            }
            _ => {
                for shape in self.entities.values_mut() {
                    for (name, _) in rng.some(ATTRIBUTES, 15) {
                        shape.attributes.entry(name).or_insert(false);
                    }
                }
            }
        }
    }

    /// Returns the attributes of an entity type; none for types without a shape.
    pub(crate) fn attributes(&self, type_name: &str) -> Attributes {
        self.entities
            .get(type_name)
            .map(|shape| shape.attributes.clone())
            .unwrap_or_default()
    }

    pub(crate) fn has_tags(&self, type_name: &str) -> bool {
        self.entities.get(type_name).is_some_and(|shape| shape.tags)
    }

    /// Returns the actions of requests.
    pub(crate) fn leaves(&self) -> Vec<(&ActionShape, &Applies)> {
        self.actions
            .iter()
            .filter_map(|action| Some((action, action.applies.as_ref()?)))
            .collect()
    }

    /// Writes the schema for two files: the types, and the actions with the namespace `Shop`.
    pub(crate) fn schema(&self) -> [String; 2] {
        let mut types = String::from("entity Tier enum [\"gold\", \"silver\"];\n");
        let mut rest = String::new();
        let mut shop = String::new();
        for (type_name, parents) in TYPES {
            let Some(shape) = self.entities.get(type_name) else {
                continue;
            };
            let (out, name) = match type_name.strip_prefix("Shop::") {
                Some(name) => (&mut shop, name),
                None => (&mut types, *type_name),
            };
            let parents = match parents {
                [] => String::new(),
                parents => format!(" in [{}]", parents.join(", ")),
            };
            let tags = match shape.tags {
                true => format!(" tags {}", type_text(tag_type(type_name))),
                false => String::new(),
            };
            let attributes = attributes_text(&shape.attributes, ATTRIBUTES);
            out.push_str(&format!("entity {name}{parents} {attributes}{tags};\n"));
        }
        for action in &self.actions {
            let out = match action.type_name {
                "Action" => &mut rest,
                _ => &mut shop,
            };
            let groups: Vec<String> = action.groups.iter().map(|id| format!("{id:?}")).collect();
            let groups = match groups.as_slice() {
                [] => String::new(),
                groups => format!(" in [{}]", groups.join(", ")),
            };
            let applies = action.applies.as_ref().map_or(String::new(), |applies| {
                format!(
                    " appliesTo {{ principal: [{}], resource: [{}], context: {} }}",
                    applies.principals.join(", "),
                    applies.resources.join(", "),
                    attributes_text(&applies.context, CONTEXT),
                )
            });
            out.push_str(&format!("action {:?}{groups}{applies};\n", action.id));
        }
        rest.push_str(&format!("namespace Shop {{\n{shop}}}\n"));
        [types, rest]
    }
}

fn distinct(rng: &mut Rng, from: &[&'static str]) -> Vec<&'static str> {
    let mut chosen = rng.some(from, 60);
    chosen.push(rng.pick(from));
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn attributes(rng: &mut Rng, from: &[(&'static str, Ty)], percent: usize) -> Attributes {
    rng.some(from, percent)
        .into_iter()
        .map(|(name, _)| (name, rng.chance(60)))
        .collect()
}

fn context(rng: &mut Rng) -> Attributes {
    // Some have a few plain attributes and no others.
    match rng.chance(40) {
        true => attributes(rng, &CONTEXT[..PLAIN], 60),
        false => attributes(rng, CONTEXT, 50),
    }
}

fn attributes_text(attributes: &Attributes, types: &[(&str, Ty)]) -> String {
    let fields: Vec<String> = types
        .iter()
        .filter_map(|(name, ty)| {
            let required = attributes.get(name)?;
            Some(field_text(name, *ty, *required))
        })
        .collect();
    format!("{{ {} }}", fields.join(", "))
}

fn field_text(name: &str, ty: Ty, required: bool) -> String {
    let mark = if required { "" } else { "?" };
    format!("{name:?}{mark}: {}", type_text(ty))
}

fn type_text(ty: Ty) -> String {
    match ty {
        Ty::Bool => "Bool".to_owned(),
        Ty::Long => "Long".to_owned(),
        Ty::String => "String".to_owned(),
        Ty::Entity(type_name) => type_name.to_owned(),
        Ty::Set(member) => format!("Set<{}>", type_text(*member)),
        Ty::Record => {
            let fields: Vec<String> = RECORD
                .iter()
                .map(|(name, ty, required)| field_text(name, *ty, *required))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Ty::Decimal => "decimal".to_owned(),
        Ty::Ip => "ipaddr".to_owned(),
        Ty::Datetime => "datetime".to_owned(),
        Ty::Duration => "duration".to_owned(),
    }
}
