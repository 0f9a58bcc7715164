//! Policies, schema, entities and settings, immutable and under one revision.

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

/// Numbers of policies, templates, links and entities in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Static policies.
    pub policies: usize,
    /// Templates.
    pub templates: usize,
    /// Template links.
    pub links: usize,
    /// Stored entities, without the actions that the schema declares.
    pub entities: usize,
}

/// Everything that decisions depend on except the request, immutable and under one revision.
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
    /// The rules by scope; each is numbered by its position in `rules`.
    pub(super) index: Index,
    pub(super) entities: EntityStore,
    pub(super) type_names: TypeNames,
    pub(super) conformance: Conformance,
    pub(super) context_reads: ContextReadIndex,
    pub(super) bytes: usize,
    /// Stack that evaluating the deepest condition can need, in bytes.
    pub(super) stack_bytes: usize,
}

/// A policy or link in a list of policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySummary<'a> {
    /// The id of the policy or link.
    pub id: &'a PolicyId,
    /// Its location in the policy directory.
    pub place: Place,
    /// The id of the template; `None` for a static policy.
    pub template: Option<&'a PolicyId>,
}

impl Snapshot {
    /// Returns the digest of the content.
    #[must_use]
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Returns the numbers of policies, templates, links and entities.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns the memory that policies and stored entities hold, in bytes.
    ///
    /// Counted for entities, estimated for policies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the warnings of the compilation.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Returns whether there is a schema.
    #[must_use]
    pub fn has_schema(&self) -> bool {
        self.schema.is_some()
    }

    /// Returns the number of policies and templates in each `.cedar` and `.cedar.json` file.
    #[must_use]
    pub fn policies_per_file(&self) -> &BTreeMap<String, usize> {
        &self.policies_per_file
    }

    /// Returns the context attributes that an answer for this action can depend on.
    #[must_use]
    pub fn context_reads(&self, action_type: &str, action_id: &str) -> &ContextReads {
        // Unvalidated requests may use any type as action. If it is not an action type, the request
        // may also send the entity with parents, so any policy may match.
        if action_type != "Action" && !action_type.ends_with("::Action") {
            return &ContextReads::All;
        }
        let action = self.entities.interner.find_named(action_type, action_id);
        self.context_reads.for_action(action)
    }

    /// Returns the static policies and links, sorted by id.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = PolicySummary<'_>> {
        self.rules.iter().map(|rule| PolicySummary {
            id: &rule.id,
            place: rule.place(),
            template: rule.template.as_ref(),
        })
    }
}
