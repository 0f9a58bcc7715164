//! Validates policies against the schema.

use cedar_policy::{PolicySet, Schema, ValidationMode, Validator};

use super::findings::DiagnosticSink;
use super::open_forbids::OpenForbidCheck;
use crate::pdp::diagnostic::{Diagnostic, Severity};
use crate::pdp::settings::{Settings, Validation};

/// The schema that policies are validated against, and the effect of an invalid policy.
#[derive(Clone, Copy)]
pub(in crate::pdp) struct PolicyValidator<'a> {
    pub(super) schema: Option<&'a Schema>,
    pub(super) settings: &'a Settings,
}

impl<'a> PolicyValidator<'a> {
    /// Returns the check for forbids that do not forbid where an entity is unknown.
    pub(super) fn open_forbid_check(self) -> OpenForbidCheck<'a> {
        OpenForbidCheck {
            // Without validation, requests need not conform to the schema.
            schema: self
                .schema
                .filter(|_| self.compares_types())
                .map(AsRef::as_ref),
            settings: self.settings,
        }
    }

    /// Returns whether Cedar compares the types of operands, because there is a schema.
    pub(super) fn compares_types(self) -> bool {
        self.schema.is_some() && self.settings.validation != Validation::Off
    }

    /// Validates `policies`, and adds a diagnostic for each error and warning.
    ///
    /// `locate` builds the diagnostic for a policy id, or returns `None` to leave it out.
    pub(super) fn validate(
        self,
        policies: &PolicySet,
        locate: impl Fn(&cedar_policy::PolicyId, &dyn miette::Diagnostic) -> Option<Diagnostic>,
        diagnostics: &mut DiagnosticSink,
    ) {
        let error_severity = match self.settings.validation {
            Validation::Strict => Severity::Error,
            Validation::Warn => Severity::Warning,
            Validation::Off => return,
        };
        let Some(schema) = self.schema else {
            return;
        };
        let result = Validator::new(schema.clone()).validate(policies, ValidationMode::Strict);
        let mut add = |severity, diagnostic: Option<Diagnostic>| {
            if let Some(diagnostic) = diagnostic {
                diagnostics.add(Diagnostic {
                    severity,
                    ..diagnostic
                });
            }
        };
        for error in result.validation_errors() {
            add(error_severity, locate(error.policy_id(), error));
        }
        for warning in result.validation_warnings() {
            add(Severity::Warning, locate(warning.policy_id(), warning));
        }
    }
}
