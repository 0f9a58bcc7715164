//! Answers and diagnostics as text for people and as JSON.

use std::fmt::{self, Write as _};

use crate::pdp::answer::{Answer, Diagnostics};
use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::explanation::{
    ClauseKind, ClauseOutcome, Effect, ExplainedPolicy, Explanation, NearestPermit, OperandValue,
    Place, ScopeMismatch, UnsatisfiedPermit,
};

/// Returns an answer as text: decision, determining policies, errors, revision, explanation.
#[must_use]
pub fn text(answer: &Answer) -> String {
    let mut out = String::new();
    // INVARIANT: writing to a `String` cannot fail.
    let _ = write_text(&mut out, answer);
    out
}

fn write_text(out: &mut String, answer: &Answer) -> fmt::Result {
    writeln!(out, "{}", answer.decision)?;
    match answer.diagnostics.determining.as_slice() {
        [] => writeln!(out, "determining policies: none")?,
        policies => {
            writeln!(out, "determining policies:")?;
            for policy in policies {
                writeln!(out, "  {policy}")?;
            }
        }
    }
    if !answer.diagnostics.errors.is_empty() {
        writeln!(out, "errors (evaluation of these policies failed):")?;
        for error in &answer.diagnostics.errors {
            let (effect, policy) = (effect(error.effect), &error.policy);
            writeln!(out, "  {effect} {policy}: {}", error.message)?;
        }
    }
    writeln!(out, "revision: {}", answer.revision)?;
    match &answer.explanation {
        Some(explanation) => write_explanation(out, explanation),
        None => Ok(()),
    }
}

fn write_explanation(out: &mut String, explanation: &Explanation) -> fmt::Result {
    let (determining, unsatisfied) = (&explanation.determining, &explanation.unsatisfied);
    for policy in determining {
        write!(out, "because {} ", effect(policy.effect))?;
        write_policy(out, policy)?;
    }
    if !determining.is_empty() {
        return Ok(());
    }
    match explanation.unsatisfied_total {
        0 => write_nearest(out, explanation.nearest.as_ref())?,
        1 => writeln!(
            out,
            "because the one permit whose scope matches is not satisfied:"
        )?,
        total => writeln!(
            out,
            "because of {total} permits whose scope matches, none is satisfied:"
        )?,
    }
    for permit in unsatisfied {
        write_unsatisfied(out, permit)?;
    }
    match explanation.unsatisfied_total.checked_sub(unsatisfied.len()) {
        Some(more @ 1..) => writeln!(out, "  and {more} more"),
        Some(0) | None => Ok(()),
    }
}

fn write_nearest(out: &mut String, nearest: Option<&NearestPermit>) -> fmt::Result {
    let Some(nearest) = nearest else {
        return writeln!(
            out,
            "because no permit has a scope that matches the request"
        );
    };
    writeln!(
        out,
        "because no permit has a scope that matches the request; the nearest:"
    )?;
    write!(out, "  ")?;
    write_policy(out, &nearest.policy)?;
    for ScopeMismatch { constraint, actual } in &nearest.mismatches {
        writeln!(
            out,
            "    its scope has `{constraint}`, the request {actual}"
        )?;
    }
    Ok(())
}

fn write_unsatisfied(out: &mut String, permit: &UnsatisfiedPermit) -> fmt::Result {
    let clause = &permit.clause;
    write!(out, "  ")?;
    write_policy(out, &permit.policy)?;
    let (kind, place) = (clause_kind(clause.kind), at(&clause.place));
    let operand = &clause.operand;
    match &permit.outcome {
        ClauseOutcome::NotSatisfied => writeln!(
            out,
            "    its `{kind}` is not satisfied at {place}: {operand}"
        )?,
        ClauseOutcome::Failed(message) => writeln!(
            out,
            "    its `{kind}` fails at {place}: {operand}: {message}"
        )?,
    }
    for OperandValue { expression, value } in &clause.values {
        writeln!(out, "      {expression} = {value}")?;
    }
    Ok(())
}

fn write_policy(out: &mut String, policy: &ExplainedPolicy) -> fmt::Result {
    write!(out, "`{}` ({}", policy.policy, at(&policy.place))?;
    if let Some(template) = &policy.template {
        write!(out, ", linked from `{template}`")?;
    }
    writeln!(out, ")")?;
    for (name, value) in policy.annotations.iter().filter(|(name, _)| name != "id") {
        writeln!(out, "    @{name}: {value}")?;
    }
    Ok(())
}

/// Returns a place as `file:line:column`, or the file alone.
pub(crate) fn at(place: &Place) -> String {
    match place.position {
        Some(position) => format!("{}:{}:{}", place.file, position.line, position.column),
        None => place.file.clone(),
    }
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Permit => "permit",
        Effect::Forbid => "forbid",
    }
}

fn clause_kind(kind: ClauseKind) -> &'static str {
    match kind {
        ClauseKind::When => "when",
        ClauseKind::Unless => "unless",
    }
}

/// Returns an answer as JSON, with the field names of the wire.
#[must_use]
pub fn json(answer: &Answer) -> serde_json::Value {
    let Diagnostics {
        determining,
        errors,
    } = &answer.diagnostics;
    let determining: Vec<&str> = determining.iter().map(|id| id.as_str()).collect();
    let errors = errors.iter().map(|error| {
        serde_json::json!({
            "policy_id": error.policy.as_str(),
            "effect": effect(error.effect),
            "message": error.message,
        })
    });
    let mut report = serde_json::json!({
        "decision": answer.decision.to_string(),
        "determining_policies": determining,
        "errors": errors.collect::<Vec<_>>(),
        "revision": answer.revision.as_str(),
    });
    if let (Some(explanation), Some(report)) = (&answer.explanation, report.as_object_mut()) {
        report.insert("explanation".to_owned(), explanation_json(explanation));
    }
    report
}

fn explanation_json(explanation: &Explanation) -> serde_json::Value {
    serde_json::json!({
        "determining": explanation.determining.iter().map(policy_json).collect::<Vec<_>>(),
        "unsatisfied": explanation.unsatisfied.iter().map(unsatisfied_json).collect::<Vec<_>>(),
        "unsatisfied_total": explanation.unsatisfied_total,
        "nearest": explanation.nearest.as_ref().map(nearest_json),
    })
}

fn nearest_json(nearest: &NearestPermit) -> serde_json::Value {
    let mismatches = nearest.mismatches.iter();
    let mismatches = mismatches.map(|ScopeMismatch { constraint, actual }| {
        serde_json::json!({ "constraint": constraint, "actual": actual })
    });
    serde_json::json!({
        "policy": policy_json(&nearest.policy),
        "mismatches": mismatches.collect::<Vec<_>>(),
    })
}

fn unsatisfied_json(permit: &UnsatisfiedPermit) -> serde_json::Value {
    let clause = &permit.clause;
    let values = clause.values.iter();
    let values = values.map(|OperandValue { expression, value }| {
        serde_json::json!({ "expression": expression, "value": value })
    });
    serde_json::json!({
        "policy": policy_json(&permit.policy),
        "clause": {
            "kind": clause_kind(clause.kind),
            "text": clause.text,
            "operand": clause.operand,
            "position": position_json(&clause.place),
            "values": values.collect::<Vec<_>>(),
        },
        "error": match &permit.outcome {
            ClauseOutcome::NotSatisfied => None,
            ClauseOutcome::Failed(message) => Some(message),
        },
    })
}

fn policy_json(policy: &ExplainedPolicy) -> serde_json::Value {
    let annotations = policy.annotations.iter();
    let annotations: serde_json::Value = annotations
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    serde_json::json!({
        "policy_id": policy.policy.as_str(),
        "template_id": policy.template.as_ref().map(|id| id.as_str()),
        "effect": effect(policy.effect),
        "annotations": annotations,
        "position": position_json(&policy.place),
    })
}

fn position_json(place: &Place) -> serde_json::Value {
    serde_json::json!({
        "file": place.file,
        "line": place.position.map(|position| position.line),
        "column": place.position.map(|position| position.column),
    })
}

/// Returns diagnostics as text, with a blank line between them.
#[must_use]
pub fn diagnostics_text(diagnostics: &[Diagnostic], color: bool) -> String {
    let rendered = diagnostics.iter().map(|found| found.render(color));
    rendered.collect::<Vec<_>>().join("\n\n")
}

/// Returns a diagnostic as JSON; line and column are null if unknown.
#[must_use]
pub fn diagnostic_json(diagnostic: &Diagnostic) -> serde_json::Value {
    serde_json::json!({
        "severity": diagnostic.severity.to_string(),
        "file": diagnostic.file,
        "line": diagnostic.position.map(|position| position.line),
        "column": diagnostic.position.map(|position| position.column),
        "message": diagnostic.message,
        "help": diagnostic.help,
    })
}
