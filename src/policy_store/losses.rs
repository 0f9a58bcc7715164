//! Rejects content that looks like a mistake: policies or a schema that are suddenly gone.
//!
//! An empty directory is valid, and denies everything. But one that *becomes* empty is more often
//! a failed mount or a truncated file than intended, and so are patterns of `.cedarignore` that
//! leave out all there is.

use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::snapshot::Snapshot;
use crate::pdp::sources::Sources;

const HELP: &str = "if this is intended, start with `--allow-empty`";

fn loss(file: &str, message: String) -> Diagnostic {
    Diagnostic::error(file, message).with_help(HELP)
}

fn policies_and_links(snapshot: &Snapshot) -> usize {
    snapshot.counts().policies + snapshot.counts().links
}

/// Returns the reasons why `new`, compiled from `sources`, must not replace `old`.
pub(super) fn since(old: &Snapshot, new: &Snapshot, sources: &Sources) -> Vec<Diagnostic> {
    let mut losses = Vec::new();
    let before = policies_and_links(old);
    if before > 0 && policies_and_links(new) == 0 {
        let text = "all policies and links were removed: every request would be denied";
        losses.push(loss(
            "",
            format!("{text} (policies and links before: {before})"),
        ));
    }
    if old.has_schema() && !new.has_schema() {
        let text = "all schema files were removed: nothing would be validated";
        losses.push(loss("", text.to_owned()));
    }
    let policies_in = |snapshot: &Snapshot, file: &str| {
        let count = snapshot.policies_per_file().get(file);
        count.copied().unwrap_or_default()
    };
    for file in sources.files() {
        let before = policies_in(old, &file.path);
        if before > 0 && policies_in(new, &file.path) == 0 {
            let text = format!("all policies of this file ({before}) were removed");
            losses.push(loss(&file.path, text));
        }
    }
    losses
}

/// Returns the reasons why `new`, compiled from `sources`, must not be loaded: patterns of
/// `.cedarignore` leave out all of its policies or all of its schema.
pub(crate) fn by_patterns(new: &Snapshot, sources: &Sources) -> Vec<Diagnostic> {
    let left_out = sources.unused().left_out;
    let mut losses = Vec::new();
    if left_out.policies > 0 && policies_and_links(new) == 0 {
        let text = "leaves out all policies: every request would be denied";
        losses.push(loss(".cedarignore", text.to_owned()));
    }
    if left_out.schemas > 0 && !new.has_schema() {
        let text = "leaves out all schema files: nothing would be validated";
        losses.push(loss(".cedarignore", text.to_owned()));
    }
    losses
}
