//! Converts response messages back to answers, for the command line's client.

use crate::api::grpc::pb;
use crate::pdp::answer::{Answer, Decision, Diagnostics, PolicyError};
use crate::pdp::diagnostic::Position;
use crate::pdp::explanation::{
    Clause, ClauseKind, ClauseOutcome, Effect, ExplainedPolicy, Explanation, NearestPermit,
    OperandValue, Place, ScopeMismatch, UnsatisfiedPermit,
};
use crate::pdp::id::{PolicyId, Revision};

/// Converts `response` to an answer.
pub(crate) fn answer(response: pb::AuthorizeResponse) -> Result<Answer, &'static str> {
    let decision = match response.decision() {
        pb::Decision::Allow => Decision::Allow,
        pb::Decision::Deny => Decision::Deny,
        pb::Decision::Unspecified => return Err("no decision"),
    };
    let determining = response.determining_policies.iter();
    let errors = response.errors.into_iter().map(|error| PolicyError {
        policy: PolicyId::new(&error.policy_id),
        effect: effect(error.effect()),
        message: error.message,
    });
    Ok(Answer {
        decision,
        diagnostics: Diagnostics {
            determining: determining.map(|id| PolicyId::new(id)).collect(),
            errors: errors.collect(),
        },
        revision: Revision::from_text(&response.revision).ok_or("the revision is not a digest")?,
        explanation: (response.explanation).map(|sent| Box::new(explanation(sent))),
    })
}

fn explanation(sent: pb::Explanation) -> Explanation {
    let unsatisfied = sent.unsatisfied.into_iter();
    Explanation {
        determining: sent.determining.into_iter().map(explained_policy).collect(),
        unsatisfied: unsatisfied.map(unsatisfied_permit).collect(),
        unsatisfied_total: usize::try_from(sent.unsatisfied_total).unwrap_or(usize::MAX),
        nearest: sent.nearest.map(nearest_permit),
    }
}

fn nearest_permit(sent: pb::NearestPermit) -> NearestPermit {
    let mismatches = sent.mismatches.into_iter();
    NearestPermit {
        policy: explained_policy(sent.policy.unwrap_or_default()),
        mismatches: mismatches
            .map(|pb::ScopeMismatch { constraint, actual }| ScopeMismatch { constraint, actual })
            .collect(),
    }
}

fn effect(sent: pb::Effect) -> Effect {
    match sent {
        pb::Effect::Forbid => Effect::Forbid,
        pb::Effect::Permit | pb::Effect::Unspecified => Effect::Permit,
    }
}

fn explained_policy(sent: pb::ExplainedPolicy) -> ExplainedPolicy {
    ExplainedPolicy {
        policy: PolicyId::new(&sent.policy_id),
        template: (!sent.template_id.is_empty()).then(|| PolicyId::new(&sent.template_id)),
        effect: effect(sent.effect()),
        annotations: sent.annotations.into_iter().collect(),
        place: place(sent.position.unwrap_or_default()),
    }
}

fn unsatisfied_permit(sent: pb::UnsatisfiedPermit) -> UnsatisfiedPermit {
    let clause = sent.clause.unwrap_or_default();
    let values = clause.values.iter();
    let values = values.map(|value| OperandValue {
        expression: value.expression.clone(),
        value: value.value.clone(),
    });
    UnsatisfiedPermit {
        policy: explained_policy(sent.policy.unwrap_or_default()),
        clause: Clause {
            kind: match clause.kind() {
                pb::condition_clause::Kind::Unless => ClauseKind::Unless,
                pb::condition_clause::Kind::When | pb::condition_clause::Kind::Unspecified => {
                    ClauseKind::When
                }
            },
            values: values.collect(),
            text: clause.text,
            operand: clause.operand,
            place: place(clause.position.unwrap_or_default()),
        },
        outcome: match sent.error {
            error if error.is_empty() => ClauseOutcome::NotSatisfied,
            error => ClauseOutcome::Failed(error),
        },
    }
}

fn place(sent: pb::SourcePosition) -> Place {
    let pb::SourcePosition { file, line, column } = sent;
    Place {
        file,
        position: (line > 0).then_some(Position { line, column }),
    }
}
