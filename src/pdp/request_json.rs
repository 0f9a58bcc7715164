//! Parses contexts and entities in Cedar's JSON format to a query's plain values.
//!
//! This is the format that people write by hand, in tests and on the command line. With a schema
//! the types need not be spelled out. Requests on the wire have a typed format of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy::{Context, EntityUid, Schema};
use cedar_policy_core::ast::{self, ExprKind, Literal, PartialValue, RestrictedExpr, ValueKind};
use cedar_policy_core::entities::{EntityJsonParser, TCComputation};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::CoreSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use smol_str::SmolStr;

pub use super::compile::entities::stored_entities;
pub use super::compile::findings::json_error;
use super::diagnostic::Diagnostic;
use super::json_object::Object;
use super::query::{Query, Record, RequestEntity, Uid, Value};
use super::settings::Validation;
use super::snapshot::Snapshot;
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

/// A request as people and Cedar's tools write it: uids in Cedar syntax, the context in Cedar's JSON
/// format.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestJson<'a> {
    /// The principal, such as `User::"alice"`.
    pub principal: String,
    /// The action.
    pub action: String,
    /// The resource.
    pub resource: String,
    /// An object; no context is an empty one.
    #[serde(borrow, default)]
    pub context: Option<&'a RawValue>,
}

impl<'a> RequestJson<'a> {
    /// Parses the JSON `text` of the file at `path`.
    ///
    /// # Errors
    ///
    /// The diagnostic, with line and column.
    pub fn parse(path: &str, text: &'a Arc<str>) -> Result<Self, Diagnostic> {
        check_depth(text).map_err(|error| Diagnostic::error(path, error.to_string()))?;
        serde_json::from_str(text)
            .map(|Object(request)| request)
            .map_err(|error| json_error(path, text, text, &error))
    }

    /// Returns the query, without entities. A snapshot's schema gives the types of values that are
    /// written without them.
    ///
    /// # Errors
    ///
    /// The message, which names the field.
    pub fn query(&self, snapshot: Option<&Snapshot>) -> Result<Query, String> {
        let uid = |name: &str, text: &str| {
            text.parse::<Uid>()
                .map_err(|error| format!("{name}: {error}"))
        };
        let action = uid("action", &self.action)?;
        let context = match self.context {
            None => Record::default(),
            Some(raw) => context(raw.get(), &action, snapshot)
                .map_err(|error| format!("context: {error}"))?,
        };
        Ok(Query {
            principal: uid("principal", &self.principal)?,
            action,
            resource: uid("resource", &self.resource)?,
            context,
            entities: Vec::new(),
            claimed: None,
            explain: false,
        })
    }
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
    match parsed.as_ref() {
        ast::Context::Value(fields) => plain_record(fields.iter()),
        // It contains an unknown.
        ast::Context::RestrictedResidual(_) => Err(JsonError::NotSendable(parsed.to_string())),
    }
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

/// Converts attributes or tags to plain values.
fn plain_fields<'a>(
    fields: impl Iterator<Item = (&'a SmolStr, &'a PartialValue)>,
) -> Result<Record, JsonError> {
    let fields = fields.map(|(name, value)| match value {
        PartialValue::Value(value) => Ok((name, value)),
        PartialValue::Residual(residual) => Err(JsonError::NotSendable(residual.to_string())),
    });
    plain_record(fields.collect::<Result<Vec<_>, _>>()?.into_iter())
}

/// Converts the fields of a record to plain values.
fn plain_record<'a>(
    fields: impl Iterator<Item = (&'a SmolStr, &'a ast::Value)>,
) -> Result<Record, JsonError> {
    fields
        .map(|(name, value)| Ok((name.to_string(), plain_value(value)?)))
        .collect::<Result<BTreeMap<_, _>, _>>()
        .map(Record::from)
}

/// Converts a Cedar value to a plain value.
fn plain_value(value: &ast::Value) -> Result<Value, JsonError> {
    Ok(match &value.value {
        ValueKind::Lit(Literal::Bool(value)) => Value::Bool(*value),
        ValueKind::Lit(Literal::Long(value)) => Value::Long(*value),
        ValueKind::Lit(Literal::String(text)) => Value::String(text.to_string()),
        ValueKind::Lit(Literal::EntityUID(uid)) => Value::Entity(plain_uid(uid)),
        ValueKind::Set(members) => {
            Value::Set(members.iter().map(plain_value).collect::<Result<_, _>>()?)
        }
        ValueKind::Record(fields) => Value::Record(plain_record(fields.iter())?),
        ValueKind::ExtensionValue(extension) => {
            let call = RestrictedExpr::from(extension.as_ref().clone());
            let value = extension_value(call.as_ref());
            value.ok_or_else(|| JsonError::NotSendable(call.to_string()))?
        }
    })
}

/// Returns the value of an extension type that `call` constructs from a text.
fn extension_value(call: &ast::Expr) -> Option<Value> {
    let ExprKind::ExtensionFunctionApp { fn_name, args } = call.expr_kind() else {
        return None;
    };
    let [arg] = args.as_slice() else {
        return None;
    };
    let ExprKind::Lit(Literal::String(text)) = arg.expr_kind() else {
        return None;
    };
    let text = text.to_string();
    match fn_name.to_string().as_str() {
        "decimal" => Some(Value::Decimal(text)),
        "ip" => Some(Value::Ip(text)),
        "datetime" => Some(Value::Datetime(text)),
        "duration" => Some(Value::Duration(text)),
        _ => None,
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
