//! Results of one compilation that the next one can reuse, by file.

use std::collections::HashMap;
use std::sync::Arc;

use cedar_policy::Schema;

use super::combine::Links;
use super::policies::PolicyFile;
use crate::pdp::entities::segment::Segment;
use crate::pdp::policies::bytecode::BytecodeTable;
use crate::pdp::policies::scope::Scope;
use crate::pdp::sources::ContentDigest;

/// What a snapshot was made of, by file, for the next one to be made from.
#[derive(Debug, Default)]
pub(in crate::pdp) struct Reusable {
    pub(super) schema: Option<Arc<Schema>>,
    pub(super) schema_files: Vec<(String, ContentDigest)>,
    pub(super) policies: ByFile<InternedPolicies>,
    pub(super) links: Arc<Links>,
    pub(super) entities: ByFile<Segment>,
}

impl Reusable {
    /// How many uids policies and links name; one that several files name counts for each.
    pub(super) fn policy_uid_count(&self) -> usize {
        let files = self.policies.values();
        let by_files: usize = files.map(|(_, read)| read.file.rule_set.uid_count()).sum();
        by_files + self.links.rule_set.uid_count()
    }
}

/// By path: what was made of a file, and of which content.
pub(in crate::pdp) type ByFile<T> = HashMap<String, (ContentDigest, Arc<T>)>;

/// A file of policies, with the scopes of its rules.
#[derive(Debug)]
pub(in crate::pdp) struct InternedPolicies {
    pub(super) file: Arc<PolicyFile>,
    /// In the order of the file's rules; numbered in the snapshot's table of uids.
    pub(super) scopes: Vec<Scope>,
    /// What is left of their conditions, likewise.
    pub(super) conditions: BytecodeTable,
}
