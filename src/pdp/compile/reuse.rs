//! Results of one compilation that the next one can reuse, by file.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::Schema;

use super::combine::Links;
use super::policies::PolicyFile;
use crate::pdp::entities::segment::Segment;
use crate::pdp::policies::bytecode::BytecodeTable;
use crate::pdp::policies::scope::Scope;
use crate::pdp::sources::{ContentDigest, SourceFile};

/// Results of a compilation that the next one can reuse for unchanged files.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Reusable {
    pub(super) schema: Option<Arc<Schema>>,
    /// Path and digest of each schema file; another list makes all results useless.
    pub(super) schema_files: Vec<(String, ContentDigest)>,
    pub(super) policies: ByFile<InternedPolicies>,
    pub(super) links: Arc<Links>,
    pub(super) entities: ByFile<Segment>,
}

impl Reusable {
    /// Returns the policies of `file`, if its content is unchanged.
    pub(super) fn policies(&self, file: &SourceFile) -> Option<&Arc<InternedPolicies>> {
        let (digest, policies) = self.policies.get(&file.path)?;
        (*digest == file.digest).then_some(policies)
    }

    /// Returns the entities of `file`, if its content is unchanged.
    pub(super) fn segment(&self, file: &SourceFile) -> Option<&Arc<Segment>> {
        let (digest, segment) = self.entities.get(&file.path)?;
        (*digest == file.digest).then_some(segment)
    }

    /// Returns the number of uids in policies and links; a uid counts once for each file.
    pub(super) fn policy_uid_count(&self) -> usize {
        let files = self.policies.values();
        let rule_sets = files.map(|(_, policies)| &policies.file.rule_set);
        let rule_sets = rule_sets.chain([&self.links.rule_set]);
        rule_sets.map(|rules| rules.interner.len()).sum()
    }
}

/// Results by path, each with the digest of the file that it was computed from.
pub(in crate::pdp) type ByFile<T> = HashMap<String, (ContentDigest, Arc<T>)>;

/// A file of policies, with scopes and conditions that use the snapshot's uid ids.
#[derive(Debug)]
pub(in crate::pdp) struct InternedPolicies {
    pub(super) file: Arc<PolicyFile>,
    /// The scopes of the file's rules, in their order.
    pub(super) scopes: Vec<Scope>,
    /// The bytecode of the rules' remaining conditions, in the same order.
    pub(super) conditions: BytecodeTable,
}
