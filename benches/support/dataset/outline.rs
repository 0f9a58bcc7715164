//! Outlines of policies, from which requests for them can be made.

use super::entities::{EntityKind, LABELS, LEVELS};
use super::rng::Rng;
use super::{Dataset, UNSCOPED_POLICIES, rng};

/// Three actions for each type of document; the first reads, the others change.
pub const VERBS: [&str; 3] = ["read", "edit", "share"];

/// Permits that are not bound to a document require a smaller amount than their own, which is below
/// this. A request with this amount or more is not permitted.
pub const AMOUNTS: usize = 10_000;
/// Every permit allows amounts below this.
pub const LEAST_AMOUNT: usize = 1_000;

/// A policy or link, by its scope.
#[derive(Debug)]
pub struct Outline {
    pub is_permit: bool,
    pub scope: Scope,
    pub action: ActionScope,
    pub condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The `n`th policy without scope.
    Unscoped(usize),
    Document(usize),
    InFolder(usize),
    InGroup(usize),
    /// A link of a template.
    Link(Link),
    /// By the document's type or the action alone, mostly with a group in the condition.
    Type(usize, Option<usize>),
    Action(Option<usize>),
}

/// Principal and resource in the slots of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    UserInFolder(usize, usize),
    GroupOnDocument(usize, usize),
    GroupInFolder(usize, usize),
    UserOnDocument(usize, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionScope {
    Any,
    Viewing,
    Changing,
    /// This verb on documents of this type.
    Is(usize, usize),
}

/// With the amount from which it no longer applies, or, for a forbid, from which it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    LevelOfPrincipal {
        below: usize,
    },
    Label {
        label: usize,
        below: usize,
    },
    Mfa {
        most_level: usize,
        below: usize,
    },
    LevelOfOwner {
        least: usize,
        below: usize,
    },
    Outside,
    GreatWithoutMfa {
        above: usize,
    },
    /// The condition of the policy without scope.
    Own,
}

/// 60 % by resource, 25 % by group, 10 % links, 5 % by type or action, evenly mixed.
#[derive(Clone, Copy)]
enum Sort {
    Resource,
    Group,
    Link,
    Broad,
}

const SORTS: [Sort; 20] = {
    use Sort::{Broad as B, Group as G, Link as L, Resource as R};
    [R, G, R, R, L, R, G, R, R, B, G, R, R, G, R, L, R, G, R, R]
};

impl Outline {
    pub fn new(dataset: &Dataset, n: usize) -> Self {
        if n < UNSCOPED_POLICIES {
            return Self {
                is_permit: n < 5,
                scope: Scope::Unscoped(n),
                action: ActionScope::Any,
                condition: Condition::Own,
            };
        }
        let rng = &mut rng(12, n);
        let turn = n - UNSCOPED_POLICIES;
        let sort = SORTS.get(turn % SORTS.len()).copied();
        let documents = dataset.documents;
        let (folders, groups) = (dataset.folders.len(), dataset.groups.len());
        let scope = match sort.unwrap_or(Sort::Broad) {
            Sort::Resource if rng.below(2) == 0 => Scope::Document(rng.below(documents)),
            Sort::Resource => Scope::InFolder(rng.below(folders)),
            Sort::Group => Scope::InGroup(rng.below(groups)),
            Sort::Link => Scope::Link(Link::new(dataset, rng)),
            Sort::Broad => {
                let group = (rng.below(10) > 0).then(|| rng.below(groups));
                if rng.below(2) == 0 {
                    Scope::Type(rng.below(dataset.document_types), group)
                } else {
                    Scope::Action(group)
                }
            }
        };
        let types = dataset.document_types;
        let action = match (scope, rng.below(10)) {
            (Scope::Link(link), _) => link.action(),
            (Scope::Type(..), _) => ActionScope::Any,
            (Scope::Action(_), _) => ActionScope::Is(rng.below(VERBS.len()), rng.below(types)),
            (_, 0..3) => ActionScope::Any,
            (_, 3 | 4) => ActionScope::Viewing,
            (_, 5) => ActionScope::Changing,
            (Scope::Document(document), _) => {
                ActionScope::Is(rng.below(VERBS.len()), dataset.document_type(document))
            }
            (_, _) => ActionScope::Is(rng.below(VERBS.len()), rng.below(types)),
        };
        // A template has one effect and one condition for all its links.
        let is_permit = matches!(scope, Scope::Link(_)) || rng.below(10) > 0;
        let condition = match (scope, is_permit) {
            (Scope::Link(link), _) => link.condition(),
            (_, true) => Condition::of_permit(rng),
            (_, false) => Condition::of_forbid(rng),
        };
        Self {
            is_permit,
            scope,
            action,
            condition,
        }
    }
}

impl Link {
    fn new(dataset: &Dataset, rng: &mut Rng) -> Self {
        let template = rng.below(4);
        let (user, group) = (rng.below(dataset.users), rng.below(dataset.groups.len()));
        let (document, folder) = (
            rng.below(dataset.documents),
            rng.below(dataset.folders.len()),
        );
        match template {
            0 => Self::UserInFolder(user, folder),
            1 => Self::GroupOnDocument(group, document),
            2 => Self::GroupInFolder(group, folder),
            _ => Self::UserOnDocument(user, document),
        }
    }

    pub fn template(self) -> &'static str {
        match self {
            Self::UserInFolder(..) => "template-user-folder",
            Self::GroupOnDocument(..) => "template-group-document",
            Self::GroupInFolder(..) => "template-group-folder",
            Self::UserOnDocument(..) => "template-user-document",
        }
    }

    /// Returns the slots' values.
    pub fn slots(self) -> [(EntityKind, usize); 2] {
        let (principal, resource) = match self {
            Self::UserInFolder(user, folder) => {
                ((EntityKind::User, user), (EntityKind::Folder, folder))
            }
            Self::GroupOnDocument(group, document) => {
                ((EntityKind::Group, group), (EntityKind::Document, document))
            }
            Self::GroupInFolder(group, folder) => {
                ((EntityKind::Group, group), (EntityKind::Folder, folder))
            }
            Self::UserOnDocument(user, document) => {
                ((EntityKind::User, user), (EntityKind::Document, document))
            }
        };
        [principal, resource]
    }

    pub fn action(self) -> ActionScope {
        match self {
            Self::UserInFolder(..) => ActionScope::Viewing,
            Self::GroupInFolder(..) => ActionScope::Changing,
            Self::GroupOnDocument(..) | Self::UserOnDocument(..) => ActionScope::Any,
        }
    }

    pub fn condition(self) -> Condition {
        let below = 5_000;
        match self {
            Self::UserInFolder(..) | Self::GroupInFolder(..) => {
                Condition::LevelOfPrincipal { below }
            }
            Self::GroupOnDocument(..) | Self::UserOnDocument(..) => Condition::Mfa {
                most_level: 90,
                below,
            },
        }
    }
}

impl Condition {
    fn of_permit(rng: &mut Rng) -> Self {
        let below = rng.between(LEAST_AMOUNT, AMOUNTS);
        match rng.below(4) {
            0 => Self::LevelOfPrincipal { below },
            1 => Self::Label {
                label: rng.below(LABELS),
                below,
            },
            2 => Self::Mfa {
                most_level: rng.below(LEVELS),
                below,
            },
            _ => Self::LevelOfOwner {
                least: rng.below(LEVELS),
                below,
            },
        }
    }

    fn of_forbid(rng: &mut Rng) -> Self {
        match rng.below(2) {
            0 => Self::Outside,
            _ => Self::GreatWithoutMfa {
                above: rng.between(AMOUNTS, 10 * AMOUNTS),
            },
        }
    }
}
