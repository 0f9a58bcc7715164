//! Everything a decision is made of, immutable and under one revision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use cedar_policy_core::ast::{self, SlotEnv};
use cedar_policy_core::parser::Loc;
use cedar_policy_core::validator::ValidatorSchema;
use smol_str::SmolStr;

use super::compile::Made;
use super::diagnostic::{Diagnostic, Position};
use super::entities::store::EntityStore;
use super::explanation::Place;
use super::id::{PolicyId, Revision};
use super::policies::context_reads::Projections;
use super::policies::index::Index;
use super::policies::read_set::Reads;
use super::schema::conformance::DeclaredTypes;
use super::schema::request_conformance::Fit;
use super::values::TypeNames;

/// What the operator decided about deciding; fixed for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether policies and requests are checked against the schema.
    pub validation: Validation,
    /// What a failing `forbid` does.
    pub on_policy_error: OnPolicyError,
    /// The entity types that a request may bring; `None` takes any.
    pub request_entity_types: Option<BTreeSet<String>>,
    /// The most policies that may match one request's principal, action and resource.
    pub max_candidates: usize,
    /// The most memory that policies and stored entities may take, in bytes.
    pub max_store_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            validation: Validation::default(),
            on_policy_error: OnPolicyError::default(),
            request_entity_types: None,
            max_candidates: 10_000,
            max_store_bytes: 4 << 30,
        }
    }
}

/// Whether policies and requests are checked against the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Validation {
    /// One rejected policy refuses the load; requests are checked.
    #[default]
    Strict,
    /// Rejected policies are reported and loaded; requests are checked.
    Warn,
    /// Neither is checked.
    Off,
}

/// What happens when a `forbid` cannot be evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnPolicyError {
    /// It is skipped, as Cedar has it.
    #[default]
    Skip,
    /// It denies, and is among the determining policies and the errors.
    Deny,
}

/// The attributes of the context that policies can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextReads {
    /// Any: a policy uses the context as a whole.
    All,
    /// These and no others, sorted.
    Named(Vec<String>),
}

impl ContextReads {
    /// Whether the attribute `name` can matter.
    #[must_use]
    pub fn reads(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.binary_search_by(|n| n.as_str().cmp(name)).is_ok(),
        }
    }
}

/// How many things a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Static policies.
    pub policies: usize,
    /// Templates.
    pub templates: usize,
    /// Template links.
    pub links: usize,
    /// Stored entities, without the actions that the schema supplies.
    pub entities: usize,
}

/// Everything a decision is made of: policies, schema, entities and settings, immutable and under
/// one revision.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) revision: Revision,
    pub(super) settings: Settings,
    pub(super) counts: Counts,
    pub(super) warnings: Vec<Diagnostic>,
    pub(super) policies_per_file: BTreeMap<String, usize>,
    pub(super) schema: Option<ValidatorSchema>,
    /// Static policies and links, sorted by id.
    pub(super) rules: Vec<Arc<Rule>>,
    /// The rules by what they demand of a request, each under its place among them.
    pub(super) index: Index,
    pub(super) entities: EntityStore,
    pub(super) type_names: TypeNames,
    pub(super) fit: Fit,
    pub(super) declared: DeclaredTypes,
    pub(super) projections: Projections,
    /// The memory that policies and entities hold, in bytes: counted or estimated.
    pub(super) bytes: usize,
    /// What the next snapshot can be made from.
    pub(super) made: Made,
    /// The stack that evaluating the deepest condition can need.
    pub(super) stack_bytes: usize,
}

/// A policy or link, ready to be evaluated: what is needed of it, since there can be very many.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: PolicyId,
    /// The template, for a link.
    pub(super) template: Option<PolicyId>,
    /// The file that the policy, or the link, is written in, and where.
    pub(super) file: Arc<str>,
    pub(super) position: Position,
    /// The file that holds the text: a link's template may stand in another file.
    pub(super) template_file: Arc<str>,
    /// Where in that text; a policy in JSON has none.
    pub(super) loc: Option<Loc>,
    pub(super) effect: ast::Effect,
    /// Sorted by name.
    pub(super) annotations: Box<[(SmolStr, SmolStr)]>,
    /// What a link puts in the slots.
    pub(super) slots: Option<Box<SlotEnv>>,
    pub(super) condition: Condition,
    /// What is left of the condition where the scope holds, as [`Index`] reads it.
    pub(super) rest: Condition,
}

/// What a policy asks besides its scope.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    /// `None` always holds.
    pub(super) expr: Option<Arc<ast::Expr>>,
    /// What evaluating it can read.
    pub(super) reads: Arc<Reads>,
}

impl Rule {
    /// What stands in the slots.
    pub(super) fn slots(&self) -> &SlotEnv {
        static NONE: LazyLock<SlotEnv> = LazyLock::new(SlotEnv::new);
        self.slots.as_deref().unwrap_or(&NONE)
    }

    /// Where the policy, or the link, is written.
    pub(super) fn place(&self) -> Place {
        Place {
            file: self.file.to_string(),
            position: Some(self.position),
        }
    }
}

/// A policy or link, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySummary<'a> {
    /// The policy's or the link's id.
    pub id: &'a PolicyId,
    /// Where it is written.
    pub place: Place,
    /// The template, for a link.
    pub template: Option<&'a PolicyId>,
}

impl Snapshot {
    /// The digest of the content that it was made of.
    #[must_use]
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// How many policies, templates, links and entities it holds.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The memory that policies and stored entities hold, in bytes: counted for entities,
    /// estimated for policies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the author should look at, though it is loaded.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Whether there is a schema.
    #[must_use]
    pub fn has_schema(&self) -> bool {
        self.schema.is_some()
    }

    /// How many policies, templates and links each `.cedar` and `.cedar.json` file holds.
    #[must_use]
    pub fn policies_per_file(&self) -> &BTreeMap<String, usize> {
        &self.policies_per_file
    }

    /// What of the context an answer to a request for this action can depend on.
    #[must_use]
    pub fn context_reads(&self, action_type: &str, action_id: &str) -> &ContextReads {
        // Where requests are not validated, an action may be of any type, and of a type that is no
        // action's a request may bring it along with parents: then any policy may come to match.
        if action_type != "Action" && !action_type.ends_with("::Action") {
            return &ContextReads::All;
        }
        let action = self.entities.uids.number_of(action_type, action_id);
        self.projections.of(action)
    }

    /// The static policies and links, sorted by id.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = PolicySummary<'_>> {
        self.rules.iter().map(|rule| PolicySummary {
            id: &rule.id,
            place: rule.place(),
            template: rule.template.as_ref(),
        })
    }
}
