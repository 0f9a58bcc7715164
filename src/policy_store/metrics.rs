//! Metrics of the policy store.

use std::fmt;

use super::status::StatusReader;
use crate::counters::page::{Export, Page, metrics};

metrics! {
    RELOADS = Counter "cedar_pdp_reloads_total" ["result"]
        "Policy directory reads, by result (reloaded, unchanged, refused, held_back)";
    REJECTED = Gauge "cedar_pdp_store_refused" []
        "1 if the content of the policy directory is rejected, else 0";
    WARNINGS = Gauge "cedar_pdp_store_warnings" []
        "Warnings about the current policies, at most 100";
    LOADED_AT = Gauge "cedar_pdp_revision_loaded_timestamp_seconds" []
        "Time at which the current revision was loaded, in seconds since 1970";
    AGE = Gauge "cedar_pdp_revision_age_seconds" []
        "Time since the current revision was loaded, in seconds";
    POLICIES = Gauge "cedar_pdp_policies" []
        "Static policies loaded";
    TEMPLATES = Gauge "cedar_pdp_templates" []
        "Policy templates loaded";
    LINKS = Gauge "cedar_pdp_template_links" []
        "Template links loaded";
    ENTITIES = Gauge "cedar_pdp_stored_entities" []
        "Entities loaded from the policy directory";
}

impl Export for StatusReader {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = self.load();
        let (reloads, loaded) = (status.reloads, &status.loaded);
        let results = [
            (["reloaded"], reloads.reloaded),
            (["unchanged"], reloads.unchanged),
            (["refused"], reloads.rejected),
            (["held_back"], reloads.held_back),
        ];
        page.counter(&RELOADS, results)?;
        page.value(&REJECTED, f64::from(status.rejected.is_some()))?;
        page.value(&WARNINGS, status.warnings.len() as f64)?;
        // Both times are left out until a revision is loaded.
        let at = loaded.as_ref().map(|loaded| loaded.at);
        page.timestamp(&LOADED_AT, at)?;
        // A clock that was set back yields 0.
        let age = at.map(|at| at.elapsed().unwrap_or_default().as_secs_f64());
        page.value(&AGE, age)?;
        let counts = loaded.as_ref().map(|loaded| loaded.counts);
        let counts = counts.unwrap_or_default();
        page.value(&POLICIES, counts.policies as f64)?;
        page.value(&TEMPLATES, counts.templates as f64)?;
        page.value(&LINKS, counts.links as f64)?;
        page.value(&ENTITIES, counts.entities as f64)
    }
}
