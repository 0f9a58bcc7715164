//! Selects the attributes that the log shows. All others are masked.

use std::collections::{HashMap, HashSet};

use foldhash::quality::RandomState;

use crate::config::decision_log::{AttributePath, Name};

/// The operator's allow-list of values to log unmasked.
#[derive(Clone, Debug, Default)]
pub(super) struct Redaction {
    shows_everything: bool,
    shows_error_messages: bool,
    context: VisibleNames,
    entities: HashMap<String, VisibleNames, RandomState>,
}

/// The visible attribute names of the context or of one entity type.
#[derive(Clone, Debug, Default)]
pub(super) struct VisibleNames {
    all: bool,
    listed: HashSet<String, RandomState>,
}

impl VisibleNames {
    fn add(&mut self, name: &Name) {
        match name {
            Name::Any => self.all = true,
            Name::One(name) => {
                self.listed.insert(name.clone());
            }
        }
    }

    pub(super) fn is_visible(&self, name: &str) -> bool {
        self.all || self.listed.contains(name)
    }
}

impl Redaction {
    pub(super) fn new(paths: &[AttributePath]) -> Self {
        let mut redaction = Self::default();
        for path in paths {
            match path {
                AttributePath::All => {
                    redaction.shows_everything = true;
                    redaction.shows_error_messages = true;
                    redaction.context.all = true;
                }
                AttributePath::ErrorMessages => redaction.shows_error_messages = true,
                AttributePath::Context(name) => redaction.context.add(name),
                AttributePath::Entity(type_name, name) => redaction
                    .entities
                    .entry(type_name.clone())
                    .or_default()
                    .add(name),
            }
        }
        redaction
    }

    /// Returns whether Cedar's messages about failed policies are logged. They may quote any value.
    pub(super) fn shows_error_messages(&self) -> bool {
        self.shows_error_messages
    }

    pub(super) fn context(&self) -> &VisibleNames {
        &self.context
    }

    /// Returns the visible attributes and tags of a type's entities, or `None` if there are none.
    pub(super) fn entity(&self, type_name: &str) -> Option<&VisibleNames> {
        if self.shows_everything {
            // All are visible, as in the context.
            return Some(&self.context);
        }
        self.entities.get(type_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redaction(paths: &[&str]) -> Redaction {
        let paths: Vec<_> = paths
            .iter()
            .map(|path| AttributePath::parse(path).unwrap())
            .collect();
        Redaction::new(&paths)
    }

    fn is_visible(redaction: &Redaction, type_name: &str, name: &str) -> bool {
        let names = redaction.entity(type_name);
        names.is_some_and(|names| names.is_visible(name))
    }

    #[test]
    fn everything_is_masked_by_default() {
        let none = redaction(&[]);
        assert!(!none.context().is_visible("amount"));
        assert!(!is_visible(&none, "User", "name"));
        assert!(!none.shows_error_messages());
    }

    #[test]
    fn path_shows_only_its_attribute() {
        let some = redaction(&["context.amount", "User.name", "Order.*"]);
        assert!(some.context().is_visible("amount"));
        assert!(!some.context().is_visible("name"));
        assert!(is_visible(&some, "User", "name"));
        assert!(!is_visible(&some, "User", "amount"));
        assert!(!is_visible(&some, "Shop::User", "name"));
        assert!(is_visible(&some, "Order", "anything"));
        assert!(!some.shows_error_messages());
        assert!(redaction(&["errors.message"]).shows_error_messages());
        let all = redaction(&["*"]);
        assert!(all.context().is_visible("x") && is_visible(&all, "T", "x"));
        assert!(all.shows_error_messages());
    }
}
