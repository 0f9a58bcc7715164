//! Validates policies against the schema.

use cedar_policy::{PolicySet, Schema, ValidationMode, Validator};

use super::findings::DiagnosticSink;
use crate::pdp::diagnostic::{Diagnostic, Severity};
use crate::pdp::settings::Validation;

/// What policies are judged by.
#[derive(Clone, Copy)]
pub(in crate::pdp) struct PolicyValidator<'a> {
    pub(super) schema: Option<&'a Schema>,
    pub(super) validation: Validation,
}

impl PolicyValidator<'_> {
    /// The validator, and how bad a rejection is; `None` when nothing is validated.
    pub(super) fn cedar_validator(self) -> Option<(Validator, Severity)> {
        let severity = match self.validation {
            Validation::Strict => Severity::Error,
            Validation::Warn => Severity::Warning,
            Validation::Off => return None,
        };
        Some((Validator::new(self.schema?.clone()), severity))
    }

    /// All that the validator finds, each with the id that it is found at.
    pub(super) fn findings(
        self,
        set: &PolicySet,
        find: impl Fn(&cedar_policy::PolicyId, &dyn miette::Diagnostic) -> Option<Diagnostic>,
        findings: &mut DiagnosticSink,
    ) {
        let Some((cedar_validator, severity)) = self.cedar_validator() else {
            return;
        };
        let result = cedar_validator.validate(set, ValidationMode::Strict);
        for error in result.validation_errors() {
            if let Some(finding) = find(error.policy_id(), error) {
                findings.add(Diagnostic {
                    severity,
                    ..finding
                });
            }
        }
        for warning in result.validation_warnings() {
            if let Some(finding) = find(warning.policy_id(), warning) {
                findings.add(Diagnostic {
                    severity: Severity::Warning,
                    ..finding
                });
            }
        }
    }
}
