//! Converts answers, statuses, diagnostics and the command line's queries to messages.

use std::collections::BTreeMap;

use crate::api::grpc::pb;
use crate::engine::cache::CacheMetrics;
use crate::pdp::answer::{Answer, Decision, PolicyError};
use crate::pdp::diagnostic::{Diagnostic, Position};
use crate::pdp::explanation::{
    ClauseKind, ClauseOutcome, Effect, ExplainedPolicy, Explanation, NearestPermit, OperandValue,
    Place, ScopeMismatch, UnsatisfiedPermit,
};
use crate::pdp::query::{Query, Record, RequestEntity, Uid, Value};
use crate::pdp::snapshot::PolicySummary;
use crate::policy_store::{ReloadCounts, StoreStatus};

pub(crate) fn answer(answer: &Answer) -> pb::AuthorizeResponse {
    let Answer {
        decision,
        diagnostics,
        revision,
        explanation,
    } = answer;
    pb::AuthorizeResponse {
        decision: match decision {
            Decision::Allow => pb::Decision::Allow,
            Decision::Deny => pb::Decision::Deny,
        }
        .into(),
        determining_policies: diagnostics
            .determining
            .iter()
            .map(ToString::to_string)
            .collect(),
        errors: diagnostics.errors.iter().map(policy_error).collect(),
        revision: revision.to_string(),
        explanation: explanation.as_deref().map(self::explanation),
        // This message is cached. Each decision's id is appended when it is sent.
        decision_id: String::new(),
    }
}

fn policy_error(error: &PolicyError) -> pb::PolicyError {
    let PolicyError {
        policy,
        effect,
        message,
    } = error;
    pb::PolicyError {
        policy_id: policy.to_string(),
        message: message.clone(),
        effect: self::effect(*effect).into(),
    }
}

fn effect(effect: Effect) -> pb::Effect {
    match effect {
        Effect::Permit => pb::Effect::Permit,
        Effect::Forbid => pb::Effect::Forbid,
    }
}

fn explanation(explanation: &Explanation) -> pb::Explanation {
    let unsatisfied = explanation.unsatisfied.iter();
    pb::Explanation {
        determining: (explanation.determining.iter().map(explained_policy)).collect(),
        unsatisfied: unsatisfied.map(unsatisfied_permit).collect(),
        unsatisfied_total: explanation.unsatisfied_total as u64,
        nearest: explanation.nearest.as_ref().map(nearest_permit),
    }
}

fn nearest_permit(nearest: &NearestPermit) -> pb::NearestPermit {
    let mismatches = nearest.mismatches.iter();
    let mismatches = mismatches.map(|ScopeMismatch { constraint, actual }| pb::ScopeMismatch {
        constraint: constraint.clone(),
        actual: actual.clone(),
    });
    pb::NearestPermit {
        policy: Some(explained_policy(&nearest.policy)),
        mismatches: mismatches.collect(),
    }
}

fn explained_policy(policy: &ExplainedPolicy) -> pb::ExplainedPolicy {
    let template_id = policy.template.as_ref().map(ToString::to_string);
    pb::ExplainedPolicy {
        policy_id: policy.policy.to_string(),
        effect: effect(policy.effect).into(),
        annotations: policy.annotations.iter().cloned().collect(),
        position: Some(source_position(&policy.place)),
        template_id: template_id.unwrap_or_default(),
    }
}

fn unsatisfied_permit(permit: &UnsatisfiedPermit) -> pb::UnsatisfiedPermit {
    let clause = &permit.clause;
    pb::UnsatisfiedPermit {
        policy: Some(explained_policy(&permit.policy)),
        clause: Some(pb::ConditionClause {
            kind: match clause.kind {
                ClauseKind::When => pb::condition_clause::Kind::When,
                ClauseKind::Unless => pb::condition_clause::Kind::Unless,
            }
            .into(),
            text: clause.text.clone(),
            operand: clause.operand.clone(),
            position: Some(source_position(&clause.place)),
            values: clause.values.iter().map(operand_value).collect(),
        }),
        error: match &permit.outcome {
            ClauseOutcome::NotSatisfied => String::new(),
            ClauseOutcome::Failed(message) => message.clone(),
        },
    }
}

fn operand_value(OperandValue { expression, value }: &OperandValue) -> pb::OperandValue {
    pb::OperandValue {
        expression: expression.clone(),
        value: value.clone(),
    }
}

fn source_position(place: &Place) -> pb::SourcePosition {
    let (line, column) = line_and_column(place.position);
    pb::SourcePosition {
        file: place.file.clone(),
        line,
        column,
    }
}

/// Returns line and column; 0 if they are unknown.
fn line_and_column(position: Option<Position>) -> (u32, u32) {
    position.map_or((0, 0), |Position { line, column }| (line, column))
}

pub(crate) fn diagnostic(diagnostic: &Diagnostic) -> pb::Diagnostic {
    let (line, column) = line_and_column(diagnostic.position);
    let message = match &diagnostic.help {
        Some(help) => format!("{} (help: {help})", diagnostic.message),
        None => diagnostic.message.clone(),
    };
    pb::Diagnostic {
        file: diagnostic.file.clone(),
        line,
        column,
        message,
    }
}

pub(crate) fn policy_summary(summary: PolicySummary<'_>) -> pb::PolicySummary {
    let template_id = summary.template.map(ToString::to_string);
    pb::PolicySummary {
        id: summary.id.to_string(),
        file: summary.place.file.clone(),
        line: line_and_column(summary.place.position).0,
        template_id: template_id.unwrap_or_default(),
    }
}

pub(crate) fn store_status(status: &StoreStatus) -> pb::StoreStatus {
    let StoreStatus {
        loaded,
        rejected,
        warnings,
        left_out,
        reloads: _,
    } = status;
    let loaded = loaded.as_ref();
    let counts = loaded.map(|loaded| loaded.counts).unwrap_or_default();
    let revision = loaded.map(|loaded| loaded.revision.to_string());
    pb::StoreStatus {
        revision: revision.unwrap_or_default(),
        loaded_at: loaded.map(|loaded| loaded.at.into()),
        policies: counts.policies as u64,
        templates: counts.templates as u64,
        links: counts.links as u64,
        entities: counts.entities as u64,
        refused: rejected.as_ref().map(|rejected| pb::RefusedReload {
            at: Some(rejected.at.into()),
            diagnostics: rejected.diagnostics.iter().map(diagnostic).collect(),
            total: rejected.total as u64,
        }),
        warnings: warnings.iter().map(diagnostic).collect(),
        left_out: (!left_out.is_empty()).then_some(pb::LeftOutFiles {
            policies: left_out.policies as u64,
            schemas: left_out.schemas as u64,
            entities: left_out.entities as u64,
            links: left_out.links as u64,
            tests: left_out.tests as u64,
        }),
    }
}

pub(crate) fn reload_counts(counts: ReloadCounts) -> pb::ReloadCounts {
    pb::ReloadCounts {
        reloaded: counts.reloaded,
        unchanged: counts.unchanged,
        refused: counts.rejected,
        held_back: counts.held_back,
    }
}

/// Converts the cache's metrics; all are zero if the cache is off.
pub(crate) fn cache_metrics(metrics: Option<CacheMetrics>) -> pb::CacheFigures {
    let metrics = metrics.unwrap_or_default();
    pb::CacheFigures {
        hits: metrics.hits,
        misses: metrics.misses,
        evictions: metrics.evictions,
        entries: metrics.entries,
        bytes: metrics.bytes,
        capacity_bytes: metrics.capacity_bytes,
    }
}

/// Converts `query` to a request.
pub(crate) fn request(query: &Query) -> pb::AuthorizeRequest {
    let Query {
        principal,
        action,
        resource,
        context,
        entities,
        // Claims are not sent; the caller of this function adds the token.
        claimed: _,
        explain,
    } = query;
    pb::AuthorizeRequest {
        identity: Some(pb::authorize_request::Identity::Principal(uid(principal))),
        action: Some(uid(action)),
        resource: Some(uid(resource)),
        context: fields(context),
        entities: entities.iter().map(entity).collect(),
        explain: *explain,
    }
}

fn entity(entity: &RequestEntity) -> pb::Entity {
    pb::Entity {
        uid: Some(uid(&entity.uid)),
        attributes: fields(&entity.attributes),
        parents: entity.parents.iter().map(uid).collect(),
        tags: fields(&entity.tags),
    }
}

fn uid(uid: &Uid) -> pb::EntityUid {
    pb::EntityUid {
        r#type: uid.type_name.clone(),
        id: Some(uid.id.clone()),
    }
}

fn fields(record: &Record) -> BTreeMap<String, pb::Value> {
    record
        .iter()
        .map(|(name, field)| (name.to_owned(), value(field)))
        .collect()
}

fn value(value: &Value) -> pb::Value {
    use pb::value::Kind;
    let kind = match value {
        Value::Bool(value) => Kind::Bool(*value),
        Value::Long(value) => Kind::Long(*value),
        Value::String(text) => Kind::String(text.clone()),
        Value::Entity(entity) => Kind::Entity(uid(entity)),
        Value::Set(members) => Kind::Set(pb::ValueList {
            values: members.iter().map(self::value).collect(),
        }),
        Value::Record(record) => Kind::Record(pb::ValueRecord {
            fields: fields(record),
        }),
        Value::Decimal(text) => Kind::Decimal(text.clone()),
        Value::Ip(text) => Kind::Ip(text.clone()),
        Value::Datetime(text) => Kind::Datetime(text.clone()),
        Value::Duration(text) => Kind::Duration(text.clone()),
    };
    pb::Value { kind: Some(kind) }
}
