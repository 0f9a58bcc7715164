//! Requests over a data set: users and documents by frequency, half of them allowed.
//!
//! The decision is determined by construction. A request to allow is drawn until a permit covers
//! it, with a context that no forbid matches. A request to deny has an amount above every permit,
//! or comes from outside, which a forbid matches. Benchmarks report the actual share.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, ensure};
use cedar_pdp::api::grpc::pb;
use cedar_pdp::pdp::query::{Query, Record, Uid, Value};

use super::entities::{EntityKind, Name};
use super::outline::{AMOUNTS, ActionScope, Condition, LEAST_AMOUNT, Link, Outline, Scope, VERBS};
use super::policies::action_id;
use super::rng::Rng;
use super::{Dataset, rng};

/// Failed draws after which a data set counts as one without permits.
const MAX_DRAWS: usize = 100_000;

/// One request, as a message and as a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrawnRequest {
    /// The number of the user who is the principal.
    pub user: usize,
    /// The number of the document that is the resource.
    pub document: usize,
    pub principal: Name,
    pub action: String,
    pub resource: Name,
    pub channel: &'static str,
    pub mfa: bool,
    pub amount: i64,
    /// The decision by construction.
    pub is_allowed: bool,
}

impl DrawnRequest {
    /// The expected decision.
    pub fn decision(&self) -> pb::Decision {
        match self.is_allowed {
            true => pb::Decision::Allow,
            false => pb::Decision::Deny,
        }
    }

    pub fn message(&self) -> pb::AuthorizeRequest {
        use pb::value::Kind;
        let uid = |type_name: &str, id: &str| pb::EntityUid {
            r#type: type_name.to_owned(),
            id: Some(id.to_owned()),
        };
        let value = |kind| pb::Value { kind: Some(kind) };
        pb::AuthorizeRequest {
            identity: Some(pb::authorize_request::Identity::Principal(uid(
                &self.principal.type_name,
                &self.principal.id,
            ))),
            action: Some(uid("Action", &self.action)),
            resource: Some(uid(&self.resource.type_name, &self.resource.id)),
            context: BTreeMap::from([
                (
                    "channel".to_owned(),
                    value(Kind::String(self.channel.to_owned())),
                ),
                ("mfa".to_owned(), value(Kind::Bool(self.mfa))),
                ("amount".to_owned(), value(Kind::Long(self.amount))),
            ]),
            ..pb::AuthorizeRequest::default()
        }
    }

    pub fn query(&self) -> Query {
        let uid = |name: &Name| Uid::new(name.type_name.as_str(), name.id.as_str());
        Query {
            principal: uid(&self.principal),
            action: Uid::new("Action", self.action.as_str()),
            resource: uid(&self.resource),
            context: Record::from(BTreeMap::from([
                ("channel".to_owned(), Value::String(self.channel.to_owned())),
                ("mfa".to_owned(), Value::Bool(self.mfa)),
                ("amount".to_owned(), Value::Long(self.amount)),
            ])),
            entities: Vec::new(),
            claimed: None,
            explain: false,
        }
    }
}

impl Dataset {
    /// Adds five entities to `ask`: the principal, the resource and its owner, a group and a folder
    /// that contain them. They are equal to the stored ones, so the decision stays, but the service
    /// cannot know that.
    pub fn with_entities(&self, drawn: &DrawnRequest) -> Query {
        let owner = self.attributes(EntityKind::Document, drawn.document).owner;
        let first = |kind, n| self.parents(kind, n).first().copied().unwrap_or(0);
        let mut entities = vec![
            (EntityKind::User, drawn.user),
            (EntityKind::Document, drawn.document),
            (EntityKind::User, owner),
            (EntityKind::Group, first(EntityKind::User, drawn.user)),
            (
                EntityKind::Folder,
                first(EntityKind::Document, drawn.document),
            ),
        ];
        if owner == drawn.user {
            // No entity may occur twice.
            entities.remove(2);
            entities.push((EntityKind::User, (owner + 1) % self.users));
        }
        Query {
            entities: entities
                .into_iter()
                .map(|(kind, n)| self.request_entity(kind, n))
                .collect(),
            ..drawn.query()
        }
    }

    /// Draws `count` requests, alternately allowed and denied.
    pub fn requests(&self, count: usize) -> anyhow::Result<Vec<DrawnRequest>> {
        self.draws()?.take(count).collect()
    }

    /// Draws requests without end, alternately allowed and denied.
    pub fn draws(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<DrawnRequest>>> {
        ensure!(
            self.users > 0 && self.documents > 0,
            "the data set has no users"
        );
        let mut draw = Draw {
            rng: rng(13, 0),
            users: Zipf::new(self.users),
            documents: Zipf::new(self.documents),
        };
        let permits = Permits::of(self);
        Ok((0..).map(move |n| {
            if n % 2 == 0 {
                self.allowed(&mut draw, &permits)
            } else {
                Ok(self.denied(&mut draw))
            }
        }))
    }

    fn allowed(&self, draw: &mut Draw, permits: &Permits<'_>) -> anyhow::Result<DrawnRequest> {
        for _ in 0..MAX_DRAWS {
            let (user, document) = draw.pair();
            if let Some(verb) = permits.verb(user, document, &mut draw.rng) {
                return Ok(DrawnRequest {
                    channel: draw.common_channel(),
                    mfa: true,
                    amount: draw.rng.below(LEAST_AMOUNT) as i64,
                    is_allowed: true,
                    ..self.base_request(user, verb, document)
                });
            }
        }
        None.context("no permit covers any request")
    }

    fn denied(&self, draw: &mut Draw) -> DrawnRequest {
        let (user, document) = draw.pair();
        let verb = draw.rng.below(VERBS.len());
        let mfa = draw.rng.below(4) > 0;
        let (channel, amount) = if draw.rng.below(5) == 0 {
            ("outside", draw.rng.below(10 * AMOUNTS))
        } else {
            (
                draw.common_channel(),
                draw.rng.between(AMOUNTS, 10 * AMOUNTS),
            )
        };
        DrawnRequest {
            channel,
            mfa,
            amount: amount as i64,
            ..self.base_request(user, verb, document)
        }
    }

    fn base_request(&self, user: usize, verb: usize, document: usize) -> DrawnRequest {
        DrawnRequest {
            user,
            document,
            principal: self.name(EntityKind::User, user),
            action: action_id(verb, self.document_type(document)),
            resource: self.name(EntityKind::Document, document),
            channel: "",
            mfa: false,
            amount: 0,
            is_allowed: false,
        }
    }
}

/// Users and documents by frequency.
struct Draw {
    rng: Rng,
    users: Zipf,
    documents: Zipf,
}

impl Draw {
    fn pair(&mut self) -> (usize, usize) {
        (
            self.users.draw(&mut self.rng),
            self.documents.draw(&mut self.rng),
        )
    }

    fn common_channel(&mut self) -> &'static str {
        match self.rng.below(3) {
            0 => "mobile",
            1 => "web",
            _ => "branch",
        }
    }
}

/// A Zipf distribution with exponent 1: the item of rank k is drawn in proportion to 1/k.
struct Zipf {
    /// Cumulative weights by rank.
    sums: Vec<f64>,
}

impl Zipf {
    fn new(items: usize) -> Self {
        let mut sum = 0.0;
        let sums = (1..=items).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        Self {
            sums: sums.collect(),
        }
    }

    fn draw(&self, rng: &mut Rng) -> usize {
        let items = self.sums.len();
        let target = rng.unit() * self.sums.last().copied().unwrap_or(1.0);
        let rank = self
            .sums
            .partition_point(|sum| *sum <= target)
            .min(items - 1);
        // Maps ranks to numbers: a prime above their count reaches each number once.
        (rank * 2_654_435_761 + 97) % items
    }
}

/// The permits by principal, resource and type.
struct Permits<'a> {
    dataset: &'a Dataset,
    by_document: HashMap<usize, Vec<&'a Outline>>,
    by_folder: HashMap<usize, Vec<&'a Outline>>,
    by_group: HashMap<usize, Vec<&'a Outline>>,
    by_user: HashMap<usize, Vec<&'a Outline>>,
}

impl<'a> Permits<'a> {
    fn of(dataset: &'a Dataset) -> Self {
        let mut permits = Self {
            dataset,
            by_document: HashMap::new(),
            by_folder: HashMap::new(),
            by_group: HashMap::new(),
            by_user: HashMap::new(),
        };
        for outline in dataset.outlines.iter().filter(|outline| outline.is_permit) {
            let (by, n) = match outline.scope {
                Scope::Document(document) => (&mut permits.by_document, document),
                Scope::InFolder(folder) => (&mut permits.by_folder, folder),
                Scope::InGroup(group)
                | Scope::Type(_, Some(group))
                | Scope::Action(Some(group))
                | Scope::Link(Link::GroupOnDocument(group, _) | Link::GroupInFolder(group, _)) => {
                    (&mut permits.by_group, group)
                }
                Scope::Link(Link::UserInFolder(user, _) | Link::UserOnDocument(user, _)) => {
                    (&mut permits.by_user, user)
                }
                Scope::Unscoped(0) => (&mut permits.by_group, 0),
                Scope::Unscoped(2) => (&mut permits.by_group, dataset.groups.len() / 50),
                // The other permits are enough.
                Scope::Unscoped(_) | Scope::Type(_, None) | Scope::Action(None) => continue,
            };
            by.entry(n).or_default().push(outline);
        }
        permits
    }

    /// Returns what a permit allows `user` to do with `document`.
    fn verb(&self, user: usize, document: usize, rng: &mut Rng) -> Option<usize> {
        let dataset = self.dataset;
        let groups = dataset
            .groups
            .with_ancestors(dataset.parents(EntityKind::User, user));
        let folders = dataset
            .folders
            .with_ancestors(dataset.parents(EntityKind::Document, document));
        let of = |by: &HashMap<usize, Vec<&'a Outline>>, n: usize| {
            by.get(&n).cloned().unwrap_or_default()
        };
        let mut found: Vec<(&Outline, usize)> = of(&self.by_document, document)
            .into_iter()
            .chain(of(&self.by_user, user))
            .chain(
                folders
                    .iter()
                    .flat_map(|&folder| of(&self.by_folder, folder)),
            )
            .chain(groups.iter().flat_map(|&group| of(&self.by_group, group)))
            .filter_map(|outline| {
                let in_scope = match outline.scope {
                    Scope::Type(of, _) => of == dataset.document_type(document),
                    Scope::Link(Link::UserInFolder(_, folder) | Link::GroupInFolder(_, folder)) => {
                        folders.contains(&folder)
                    }
                    Scope::Link(Link::GroupOnDocument(_, on) | Link::UserOnDocument(_, on)) => {
                        on == document
                    }
                    Scope::Unscoped(2) => folders.contains(&(dataset.folders.len() / 50)),
                    Scope::Unscoped(_)
                    | Scope::Document(_)
                    | Scope::InFolder(_)
                    | Scope::InGroup(_)
                    | Scope::Action(_) => true,
                };
                let verb = match outline.action {
                    ActionScope::Any => rng.below(VERBS.len()),
                    ActionScope::Viewing => 0,
                    ActionScope::Changing => rng.between(1, VERBS.len() - 1),
                    ActionScope::Is(verb, of) if of == dataset.document_type(document) => verb,
                    ActionScope::Is(..) => return None,
                };
                (in_scope && self.holds(outline, user, document)).then_some((outline, verb))
            })
            .collect();
        // A random start, because policies of one sort follow each other.
        let chosen = rng.below(found.len().max(1));
        (chosen < found.len()).then(|| found.swap_remove(chosen).1)
    }

    /// Returns whether a permit holds for a small amount with a second factor.
    fn holds(&self, outline: &Outline, user: usize, document: usize) -> bool {
        let dataset = self.dataset;
        let of_user = |user| dataset.attributes(EntityKind::User, user);
        let of_document = dataset.attributes(EntityKind::Document, document);
        match (outline.condition, outline.scope) {
            (Condition::LevelOfPrincipal { .. }, _) => of_user(user).level >= of_document.level,
            (Condition::Label { label, .. }, _) => of_document
                .labels
                .is_some_and(|labels| labels.contains(&label)),
            (Condition::Mfa { most_level, .. }, _) => of_document.level <= most_level,
            (Condition::LevelOfOwner { least, .. }, _) => of_user(of_document.owner).level >= least,
            (Condition::Own, Scope::Unscoped(0)) => of_user(user).level >= 95,
            (Condition::Own, Scope::Unscoped(2)) => true,
            (Condition::Own | Condition::Outside | Condition::GreatWithoutMfa { .. }, _) => false,
        }
    }
}
