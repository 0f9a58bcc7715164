//! Judges whether a change looks like a mistake: content that was there and is gone.
//!
//! An empty directory is a good one by itself, and denies everything. But one that *becomes* empty
//! is more often a mount that failed or a file cut short than somebody's will.

use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::Sources;

const HELP: &str = "if that is meant, start with `--allow-empty`";

/// Why `new`, made of `sources`, should not replace `old`; empty when it may.
pub(super) fn suspicions(old: &Snapshot, new: &Snapshot, sources: &Sources) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let deciding = |snapshot: &Snapshot| snapshot.counts().policies + snapshot.counts().links;
    if deciding(old) > 0 && deciding(new) == 0 {
        let text = format!(
            "no policy and no link is left of {}, so that everything would be denied",
            deciding(old)
        );
        found.push(Diagnostic::error("", text).with_help(HELP));
    }
    if old.has_schema() && !new.has_schema() {
        let text = "no schema file is left, so that nothing would be validated";
        found.push(Diagnostic::error("", text).with_help(HELP));
    }
    let policies_in = |snapshot: &Snapshot, file: &str| {
        let count = snapshot.policies_per_file().get(file);
        count.copied().unwrap_or_default()
    };
    for file in sources.files() {
        let before = policies_in(old, &file.path);
        if before > 0 && policies_in(new, &file.path) == 0 {
            let text = format!("no policy is left of {before} in this file");
            found.push(Diagnostic::error(&file.path, text).with_help(HELP));
        }
    }
    found
}
