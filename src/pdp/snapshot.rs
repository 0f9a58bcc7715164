//! Everything a decision is made of, immutable and under one revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy_core::validator::ValidatorSchema;

use super::diagnostic::Diagnostic;
use super::entities::store::EntityStore;
use super::explanation::Place;
use super::id::{PolicyId, Revision};
use super::policies::context_reads::{ContextReadIndex, ContextReads};
use super::policies::index::Index;
use super::policies::policy::Rule;
use super::schema::conformance::Conformance;
use super::settings::Settings;
use super::values::TypeNames;

/// How many things a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
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
    pub(super) conformance: Conformance,
    pub(super) projections: ContextReadIndex,
    /// The memory that policies and entities hold, in bytes: counted or estimated.
    pub(super) bytes: usize,
    /// The stack that evaluating the deepest condition can need.
    pub(super) stack_bytes: usize,
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
        let action = self.entities.interner.find_named(action_type, action_id);
        self.projections.for_action(action)
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
