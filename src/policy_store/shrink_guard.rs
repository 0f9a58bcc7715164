//! Detects changes that look like a mistake: policies or a schema that are suddenly gone.
//!
//! An empty directory is valid, and denies everything. But one that *becomes* empty is more often
//! a failed mount or a truncated file than intended.

use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::Sources;

const HELP: &str = "if this is intended, start with `--allow-empty`";

/// Returns the reasons why `new`, compiled from `sources`, must not replace `old`.
pub(super) fn unexpected_losses(
    old: &Snapshot,
    new: &Snapshot,
    sources: &Sources,
) -> Vec<Diagnostic> {
    let mut losses = Vec::new();
    let policies_and_links =
        |snapshot: &Snapshot| snapshot.counts().policies + snapshot.counts().links;
    let before = policies_and_links(old);
    if before > 0 && policies_and_links(new) == 0 {
        let text =
            format!("no policy and no link is left of {before}: all requests would be denied");
        losses.push(Diagnostic::error("", text).with_help(HELP));
    }
    if old.has_schema() && !new.has_schema() {
        let text = "no schema file is left: nothing would be validated";
        losses.push(Diagnostic::error("", text).with_help(HELP));
    }
    let policies_in = |snapshot: &Snapshot, file: &str| {
        let count = snapshot.policies_per_file().get(file);
        count.copied().unwrap_or_default()
    };
    for file in sources.files() {
        let before = policies_in(old, &file.path);
        if before > 0 && policies_in(new, &file.path) == 0 {
            let text = format!("no policy is left of {before} in this file");
            losses.push(Diagnostic::error(&file.path, text).with_help(HELP));
        }
    }
    losses
}
