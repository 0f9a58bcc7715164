//! Which attributes leave the process as they are. All others are masked.

use std::collections::{HashMap, HashSet};

use foldhash::quality::RandomState;

use crate::config::decision_log::{AttributePath, Name};

/// What the operator's allow-list lets out.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    everything: bool,
    error_messages: bool,
    context: Names,
    entities: HashMap<String, Names, RandomState>,
}

/// The names of one kind of attributes that are let out.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    all: bool,
    some: HashSet<String, RandomState>,
}

impl Names {
    fn add(&mut self, name: &Name) {
        match name {
            Name::Any => self.all = true,
            Name::One(name) => {
                self.some.insert(name.clone());
            }
        }
    }

    /// Whether the attribute of this name leaves as it is.
    pub(super) fn shows(&self, name: &str) -> bool {
        self.all || (!self.some.is_empty() && self.some.contains(name))
    }
}

impl Shown {
    pub(super) fn new(paths: &[AttributePath]) -> Self {
        let mut shown = Self::default();
        for path in paths {
            match path {
                AttributePath::All => shown.everything = true,
                AttributePath::ErrorMessages => shown.error_messages = true,
                AttributePath::Context(name) => shown.context.add(name),
                AttributePath::Entity { type_name, name } => shown
                    .entities
                    .entry(type_name.clone())
                    .or_default()
                    .add(name),
            }
        }
        if shown.everything {
            shown.error_messages = true;
            shown.context.all = true;
        }
        shown
    }

    /// Whether what Cedar says of a policy's failure is shown: it may quote any value.
    pub(super) fn error_messages(&self) -> bool {
        self.error_messages
    }

    /// The attributes of the context.
    pub(super) fn context(&self) -> &Names {
        &self.context
    }

    /// The attributes and tags of entities of a type, unless none is shown.
    pub(super) fn entity(&self, type_name: &str) -> Option<&Names> {
        if self.everything {
            // They are all shown, like those of the context.
            return Some(&self.context);
        }
        match self.entities.is_empty() {
            true => None,
            false => self.entities.get(type_name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(paths: &[&str]) -> Shown {
        let paths: Vec<_> = paths.iter().map(|path| path.parse().unwrap()).collect();
        Shown::new(&paths)
    }

    fn shows(shown: &Shown, type_name: &str, name: &str) -> bool {
        shown
            .entity(type_name)
            .is_some_and(|names| names.shows(name))
    }

    #[test]
    fn without_a_list_everything_is_masked() {
        let none = shown(&[]);
        assert!(!none.context().shows("amount"));
        assert!(!shows(&none, "User", "name"));
        assert!(!none.error_messages());
    }

    #[test]
    fn a_path_shows_what_it_names_and_nothing_else() {
        let some = shown(&["context.amount", "User.name", "Order.*"]);
        assert!(some.context().shows("amount"));
        assert!(!some.context().shows("name"));
        assert!(shows(&some, "User", "name"));
        assert!(!shows(&some, "User", "amount"));
        assert!(!shows(&some, "Shop::User", "name"));
        assert!(shows(&some, "Order", "anything"));
        assert!(!some.error_messages());
        assert!(shown(&["errors.message"]).error_messages());
        let all = shown(&["*"]);
        assert!(all.context().shows("x") && shows(&all, "T", "x") && all.error_messages());
    }
}
