//! Converts request messages to questions: checks every field, and names every fault by its path.

use std::collections::BTreeMap;

use crate::api::decision::question::{OwnedCredential, OwnedOperation, OwnedQuestion};
use crate::api::decision::rejection::Rejection;
use crate::api::grpc::pb;
use crate::config::api::RequestRules;
use crate::pdp::query::{InvalidQuery, Problem, Record, RequestEntity, Uid, Value};

/// A converted field, or its fault.
type FieldResult<T> = Result<T, InvalidQuery>;

/// Converts a decoded request. Its faults are part of the question, because the caller's rights are
/// checked first.
pub(crate) fn question(request: pb::AuthorizeRequest, rules: &RequestRules) -> OwnedQuestion {
    use pb::authorize_request::Identity;
    let pb::AuthorizeRequest {
        identity,
        action,
        resource,
        context,
        entities,
        explain,
    } = request;
    OwnedQuestion {
        credential: match identity {
            Some(Identity::Principal(principal)) => OwnedCredential::Principal(
                uid(principal, None).map_err(|error| error.within("principal")),
            ),
            Some(Identity::PrincipalToken(token)) => OwnedCredential::Token(token),
            None => OwnedCredential::Anonymous,
        },
        explain,
        operation: operation((action, resource), context, entities, rules),
    }
}

fn operation(
    (action, resource): (Option<pb::EntityUid>, Option<pb::EntityUid>),
    context: BTreeMap<String, pb::Value>,
    entities: Vec<pb::Entity>,
    rules: &RequestRules,
) -> Result<OwnedOperation, Rejection> {
    let action = required_uid(action, "action", Some("Action"))?;
    let resource = required_uid(resource, "resource", None)?;
    let context = fields(context, rules).map_err(|error| error.within("context"))?;
    if entities.len() > rules.max_request_entities {
        return Err(Rejection::TooManyItems {
            items: "entities",
            limit: rules.max_request_entities,
        });
    }
    let entities = entities
        .into_iter()
        .enumerate()
        .map(|(index, sent)| {
            entity(sent, rules).map_err(|error| error.at_index(index).within("entities"))
        })
        .collect::<FieldResult<Vec<_>>>()?;
    Ok(OwnedOperation {
        action,
        resource,
        context,
        entities,
    })
}

fn required_uid(
    sent: Option<pb::EntityUid>,
    name: &str,
    default_type: Option<&str>,
) -> FieldResult<Uid> {
    let sent = sent.ok_or_else(|| InvalidQuery::field(name, Problem::Missing))?;
    uid(sent, default_type).map_err(|error| error.within(name))
}

pub(crate) fn uid(sent: pb::EntityUid, default_type: Option<&str>) -> FieldResult<Uid> {
    let pb::EntityUid {
        r#type: mut type_name,
        id,
    } = sent;
    if type_name.is_empty() {
        match default_type {
            Some(default) => default.clone_into(&mut type_name),
            None => return Err(InvalidQuery::field("type", Problem::EmptyType)),
        }
    }
    let id = id.ok_or_else(|| InvalidQuery::field("id", Problem::UnsetId))?;
    Ok(Uid { type_name, id })
}

fn fields(sent: BTreeMap<String, pb::Value>, rules: &RequestRules) -> FieldResult<Record> {
    let fields = sent
        .into_iter()
        .map(|(name, sent)| match value(sent, rules, 1) {
            Ok(value) => Ok((name, value)),
            Err(error) => Err(error.at_key(&name)),
        })
        .collect::<FieldResult<BTreeMap<_, _>>>()?;
    Ok(fields.into())
}

/// Converts a value nested `depth` levels deep; the value of a context field, attribute or tag is at 1.
///
/// The rules bound the recursion, as does prost, which rejects a hundred nested messages.
fn value(sent: pb::Value, rules: &RequestRules, depth: usize) -> FieldResult<Value> {
    use pb::value::Kind;
    if depth > rules.max_value_depth {
        return Err(InvalidQuery::here(Problem::TooDeep {
            limit: rules.max_value_depth,
        }));
    }
    Ok(
        match sent
            .kind
            .ok_or_else(|| InvalidQuery::here(Problem::UnsetKind))?
        {
            Kind::Bool(value) => Value::Bool(value),
            Kind::Long(value) => Value::Long(value),
            Kind::String(text) => Value::String(text),
            Kind::Entity(sent) => {
                Value::Entity(uid(sent, None).map_err(|error| error.within("entity"))?)
            }
            Kind::Set(pb::ValueList { values }) => Value::Set(
                values
                    .into_iter()
                    .enumerate()
                    .map(|(index, member)| {
                        value(member, rules, depth + 1)
                            .map_err(|error| error.at_index(index).within("set"))
                    })
                    .collect::<FieldResult<Vec<_>>>()?,
            ),
            Kind::Record(pb::ValueRecord { fields }) => {
                let fields = fields
                    .into_iter()
                    .map(|(name, field)| match value(field, rules, depth + 1) {
                        Ok(value) => Ok((name, value)),
                        Err(error) => Err(error.at_key(&name).within("record")),
                    })
                    .collect::<FieldResult<BTreeMap<_, _>>>()?;
                Value::Record(fields.into())
            }
            Kind::Decimal(text) => Value::Decimal(text),
            Kind::Ip(text) => Value::Ip(text),
            Kind::Datetime(text) => Value::Datetime(text),
            Kind::Duration(text) => Value::Duration(text),
        },
    )
}

fn entity(sent: pb::Entity, rules: &RequestRules) -> FieldResult<RequestEntity> {
    let pb::Entity {
        uid: own,
        attributes,
        parents,
        tags,
    } = sent;
    Ok(RequestEntity {
        uid: required_uid(own, "uid", None)?,
        attributes: fields(attributes, rules).map_err(|error| error.within("attributes"))?,
        parents: parents
            .into_iter()
            .enumerate()
            .map(|(index, parent)| {
                uid(parent, None).map_err(|error| error.at_index(index).within("parents"))
            })
            .collect::<FieldResult<Vec<_>>>()?,
        tags: fields(tags, rules).map_err(|error| error.within("tags"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(request: pb::AuthorizeRequest) -> Result<OwnedOperation, Rejection> {
        question(request, &rules()).operation
    }

    fn rules() -> RequestRules {
        RequestRules {
            anonymous_principal: None,
            max_request_entities: 2,
            max_values: 100_000,
            max_value_depth: 32,
        }
    }

    fn pb_uid(type_name: &str, id: &str) -> pb::EntityUid {
        pb::EntityUid {
            r#type: type_name.to_owned(),
            id: Some(id.to_owned()),
        }
    }

    fn request() -> pb::AuthorizeRequest {
        pb::AuthorizeRequest {
            identity: Some(pb::authorize_request::Identity::Principal(pb_uid(
                "User", "alice",
            ))),
            action: Some(pb_uid("", "read")),
            resource: Some(pb_uid("Doc", "1")),
            ..pb::AuthorizeRequest::default()
        }
    }

    fn kind(kind: pb::value::Kind) -> pb::Value {
        pb::Value { kind: Some(kind) }
    }

    /// Returns the field and the problem of a faulty `request`.
    fn fault(request: pb::AuthorizeRequest) -> (String, Problem) {
        match operation(request) {
            Err(Rejection::Invalid(error)) => (error.field.as_str().to_owned(), error.problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn action_type_defaults_to_action() {
        assert_eq!(
            operation(request()).unwrap().action,
            Uid::new("Action", "read")
        );
    }

    #[test]
    fn empty_id_is_valid_and_unset_is_not() {
        let mut sent = request();
        sent.resource = Some(pb_uid("Doc", ""));
        assert_eq!(
            operation(sent.clone()).unwrap().resource,
            Uid::new("Doc", "")
        );
        sent.resource = Some(pb::EntityUid {
            r#type: "Doc".to_owned(),
            id: None,
        });
        assert_eq!(fault(sent), ("resource.id".to_owned(), Problem::UnsetId));
    }

    #[test]
    fn missing_field_is_named() {
        assert_eq!(
            fault(pb::AuthorizeRequest {
                action: None,
                ..request()
            }),
            ("action".to_owned(), Problem::Missing)
        );
        assert_eq!(
            fault(pb::AuthorizeRequest {
                resource: Some(pb_uid("", "1")),
                ..request()
            }),
            ("resource.type".to_owned(), Problem::EmptyType)
        );
        let context = BTreeMap::from([("amount".to_owned(), pb::Value { kind: None })]);
        assert_eq!(
            fault(pb::AuthorizeRequest {
                context,
                ..request()
            }),
            (r#"context["amount"]"#.to_owned(), Problem::UnsetKind)
        );
    }

    #[test]
    fn nested_fault_is_named_by_its_path() {
        let set = kind(pb::value::Kind::Set(pb::ValueList {
            values: vec![kind(pb::value::Kind::Bool(true)), pb::Value { kind: None }],
        }));
        let record = kind(pb::value::Kind::Record(pb::ValueRecord {
            fields: BTreeMap::from([("x".to_owned(), set)]),
        }));
        let entity = pb::Entity {
            uid: Some(pb_uid("Doc", "1")),
            attributes: BTreeMap::from([("owner".to_owned(), record)]),
            ..pb::Entity::default()
        };
        let (field, problem) = fault(pb::AuthorizeRequest {
            entities: vec![entity],
            ..request()
        });
        assert_eq!(
            field,
            r#"entities[0].attributes["owner"].record["x"].set[1]"#
        );
        assert_eq!(problem, Problem::UnsetKind);
    }

    #[test]
    fn more_entities_than_the_limit_are_rejected() {
        let entities = vec![pb::Entity::default(); 3];
        let rejected = operation(pb::AuthorizeRequest {
            entities,
            ..request()
        });
        assert!(matches!(
            rejected,
            Err(Rejection::TooManyItems {
                items: "entities",
                limit: 2
            })
        ));
    }
}
