//! Parses contexts and entities in Cedar's JSON format to a query's plain values.
//!
//! This is the format that people write by hand, in tests and on the command line. With a schema
//! the types need not be spelled out. Requests on the wire have a typed format of their own.

use std::collections::BTreeMap;

use cedar_policy::{Context, EntityUid, Schema};
use cedar_policy_core::ast::{self, ExprKind, Literal, PartialValue, RestrictedExpr, ValueKind};
use cedar_policy_core::entities::{EntityJsonParser, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::CoreSchema;
use serde_json::value::RawValue;

use super::compile;
use super::compile::stored_entities::StoredEntities;
use super::diagnostic::Diagnostic;
use super::query::{Record, RequestEntity, Uid, Value};
use super::settings::Validation;
use super::snapshot::Snapshot;
use super::sources::SourceFile;
use super::sources::scanner::{self, Language};
use super::values::{TypeNames, plain_uid, with_causes};

/// The error for invalid JSON of a context or of entities.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Arrays and objects are nested too deeply.
    #[error("the JSON is {0}")]
    TooDeep(String),
    /// The text is not JSON, not in Cedar's format, or does not conform to the schema.
    #[error("{0}")]
    Malformed(String),
    /// The value exists in Cedar, but a request cannot contain it.
    #[error("`{0}` cannot be part of a request")]
    NotSendable(String),
}

/// Checks that `json` is not nested too deeply to be parsed.
///
/// # Errors
///
/// [`JsonError::TooDeep`].
pub fn check_depth(json: &str) -> Result<(), JsonError> {
    scanner::check(json, Language::Json).map_err(|error| JsonError::TooDeep(error.to_string()))
}

/// Parses the context of a request for `action`.
///
/// # Errors
///
/// [`JsonError`], also when a `snapshot` validates requests and the context does not conform to its
/// schema.
pub fn context(json: &str, action: &Uid, snapshot: Option<&Snapshot>) -> Result<Record, JsonError> {
    check_depth(json)?;
    let schema = snapshot
        .filter(|snapshot| snapshot.settings.validation != Validation::Off)
        .and_then(|snapshot| snapshot.schema.as_ref())
        .map(|schema| Schema::from(schema.clone()));
    let action = TypeNames::default()
        .uid(action)
        .map(EntityUid::from)
        .map_err(|error| JsonError::Malformed(format!("action: {error}")))?;
    let parsed = Context::from_json_str(json, schema.as_ref().map(|schema| (schema, &action)))
        .map_err(|error| JsonError::Malformed(with_causes(&error)))?;
    let fields = parsed
        .into_iter()
        .map(|(name, expr)| Ok((name, expr_value(expr.as_ref().as_ref())?)));
    Ok(fields
        .collect::<Result<BTreeMap<_, _>, JsonError>>()?
        .into())
}

/// Parses the entities of a request: an array in Cedar's JSON entity format.
///
/// # Errors
///
/// [`JsonError`].
pub fn request_entities(
    json: &str,
    snapshot: Option<&Snapshot>,
) -> Result<Vec<RequestEntity>, JsonError> {
    check_depth(json)?;
    let list: Vec<&RawValue> =
        serde_json::from_str(json).map_err(|error| JsonError::Malformed(error.to_string()))?;
    let schema = snapshot
        .and_then(|snapshot| snapshot.schema.as_ref())
        .map(CoreSchema::new);
    let parser = EntityJsonParser::new(
        schema.as_ref(),
        Extensions::all_available(),
        TCComputation::AssumeAlreadyComputed,
    );
    list.into_iter()
        .map(|raw| {
            let entity = parser
                .single_from_json_str(raw.get())
                .map_err(|error| JsonError::Malformed(with_causes(&error)))?;
            let mut parents: Vec<Uid> = entity.parents().map(plain_uid).collect();
            parents.sort();
            Ok(RequestEntity {
                uid: plain_uid(entity.uid()),
                attributes: plain_fields(entity.attrs())?,
                parents,
                tags: plain_fields(entity.tags())?,
            })
        })
        .collect()
}

/// Reads entities that replace a snapshot's stored ones, in Cedar's JSON entity format.
///
/// # Errors
///
/// All diagnostics about `file`.
pub fn stored_entities(
    file: &SourceFile,
    snapshot: &Snapshot,
) -> Result<StoredEntities, Vec<Diagnostic>> {
    compile::stored_entities::stored_entities(file, snapshot)
}

/// Converts attributes or tags to plain values.
fn plain_fields<'a>(
    fields: impl Iterator<Item = (&'a smol_str::SmolStr, &'a PartialValue)>,
) -> Result<Record, JsonError> {
    fields
        .map(|(name, value)| match value {
            PartialValue::Value(value) => Ok((name.to_string(), plain_value(value)?)),
            PartialValue::Residual(residual) => Err(JsonError::NotSendable(residual.to_string())),
        })
        .collect::<Result<BTreeMap<_, _>, _>>()
        .map(Record::from)
}

/// Converts a Cedar value to a plain value.
fn plain_value(value: &ast::Value) -> Result<Value, JsonError> {
    Ok(match &value.value {
        ValueKind::Lit(literal) => plain_literal(literal),
        ValueKind::Set(members) => {
            Value::Set(members.iter().map(plain_value).collect::<Result<_, _>>()?)
        }
        ValueKind::Record(fields) => {
            let fields = fields
                .iter()
                .map(|(name, field)| Ok((name.to_string(), plain_value(field)?)));
            Value::Record(
                fields
                    .collect::<Result<BTreeMap<_, _>, JsonError>>()?
                    .into(),
            )
        }
        ValueKind::ExtensionValue(extension) => {
            expr_value(RestrictedExpr::from(extension.as_ref().clone()).as_ref())?
        }
    })
}

/// Converts a Cedar literal to a plain value.
fn plain_literal(literal: &Literal) -> Value {
    match literal {
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Long(value) => Value::Long(*value),
        Literal::String(text) => Value::String(text.to_string()),
        Literal::EntityUID(uid) => Value::Entity(plain_uid(uid)),
    }
}

/// Converts a restricted expression to a plain value.
fn expr_value(expr: &ast::Expr) -> Result<Value, JsonError> {
    let not_sendable = || Err(JsonError::NotSendable(expr.to_string()));
    match expr.expr_kind() {
        ExprKind::Lit(literal) => Ok(plain_literal(literal)),
        ExprKind::Set(members) => Ok(Value::Set(
            members.iter().map(expr_value).collect::<Result<_, _>>()?,
        )),
        ExprKind::Record(fields) => {
            let fields = fields
                .iter()
                .map(|(name, field)| Ok((name.to_string(), expr_value(field)?)));
            Ok(Value::Record(
                fields
                    .collect::<Result<BTreeMap<_, _>, JsonError>>()?
                    .into(),
            ))
        }
        ExprKind::ExtensionFunctionApp { fn_name, args } => {
            let [arg] = args.as_slice() else {
                return not_sendable();
            };
            let ExprKind::Lit(Literal::String(text)) = arg.expr_kind() else {
                return not_sendable();
            };
            let text = text.to_string();
            match fn_name.to_string().as_str() {
                "decimal" => Ok(Value::Decimal(text)),
                "ip" => Ok(Value::Ip(text)),
                "datetime" => Ok(Value::Datetime(text)),
                "duration" => Ok(Value::Duration(text)),
                _ => not_sendable(),
            }
        }
        ExprKind::Var(_)
        | ExprKind::Slot(_)
        | ExprKind::Unknown(_)
        | ExprKind::If { .. }
        | ExprKind::And { .. }
        | ExprKind::Or { .. }
        | ExprKind::UnaryApp { .. }
        | ExprKind::BinaryApp { .. }
        | ExprKind::GetAttr { .. }
        | ExprKind::HasAttr { .. }
        | ExprKind::ExtHasAttr { .. }
        | ExprKind::Like { .. }
        | ExprKind::Is { .. } => not_sendable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_may_contain_extension_values_and_entities() {
        let json = r#"{
            "amount": {"__extn": {"fn": "decimal", "arg": "12.50"}},
            "team": {"__entity": {"type": "Team", "id": "a"}},
            "tags": ["x", 1, {"y": true}]
        }"#;
        let context = context(json, &Uid::new("Action", "read"), None).unwrap();
        let fields: BTreeMap<String, Value> = context.iter().cloned().collect();
        assert_eq!(fields["amount"], Value::Decimal("12.50".to_owned()));
        assert_eq!(fields["team"], Value::Entity(Uid::new("Team", "a")));
        assert!(matches!(&fields["tags"], Value::Set(members) if members.len() == 3));
    }

    #[test]
    fn deep_json_is_rejected_without_overflow() {
        let json = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(matches!(
            context(&json, &Uid::new("Action", "read"), None),
            Err(JsonError::TooDeep(_))
        ));
        assert!(matches!(
            request_entities(&"[".repeat(100_000), None),
            Err(JsonError::TooDeep(_))
        ));
    }
}
