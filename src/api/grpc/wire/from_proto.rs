//! Converts request messages to questions: checks every field, and names every fault by its path.

use std::collections::BTreeMap;

use crate::api::decision::question::{Credential, Operation, Question};
use crate::api::decision::rejection::Rejection;
use crate::api::grpc::pb;
use crate::config::api::RequestRules;
use crate::pdp::query::{InvalidQuery, Problem};
use crate::pdp::query_ref::{EntityRef, Fields, UidRef, ValueRef};

/// A converted field, or its fault.
type FieldResult<T> = Result<T, InvalidQuery>;

/// Converts a decoded request. Its faults are part of the question, because the caller's rights are
/// checked first.
pub(crate) fn question<'a>(
    request: &'a pb::AuthorizeRequest,
    rules: &RequestRules,
) -> Question<'a> {
    use pb::authorize_request::Identity;
    let pb::AuthorizeRequest {
        identity,
        action,
        resource,
        context,
        entities,
        explain,
    } = request;
    let operation = || {
        let action = required_uid(action.as_ref(), "action", Some("Action"))?;
        let resource = required_uid(resource.as_ref(), "resource", None)?;
        let context = fields(context, rules, 1).map_err(|error| error.within("context"))?;
        if entities.len() > rules.max_request_entities {
            return Err(Rejection::TooManyItems {
                items: "entities",
                limit: rules.max_request_entities,
            });
        }
        Ok(Operation {
            action,
            resource,
            context,
            entities: each(entities, "entities", |sent| entity(sent, rules))?,
        })
    };
    Question {
        credential: match identity {
            Some(Identity::Principal(principal)) => Credential::Principal(
                uid(principal, None).map_err(|error| error.within("principal")),
            ),
            Some(Identity::PrincipalToken(token)) => Credential::Token(token),
            None => Credential::Anonymous,
        },
        explain: *explain,
        operation: operation(),
    }
}

/// Converts the items of the field `name`.
fn each<'a, S, T>(
    sent: &'a [S],
    name: &str,
    convert: impl Fn(&'a S) -> FieldResult<T>,
) -> FieldResult<Vec<T>> {
    let items = sent.iter().enumerate();
    let items = items
        .map(|(index, item)| convert(item).map_err(|error| error.at_index(index).within(name)));
    items.collect()
}

fn required_uid<'a>(
    sent: Option<&'a pb::EntityUid>,
    name: &str,
    default_type: Option<&'a str>,
) -> FieldResult<UidRef<'a>> {
    let sent = sent.ok_or_else(|| InvalidQuery::field(name, Problem::Missing))?;
    uid(sent, default_type).map_err(|error| error.within(name))
}

fn uid<'a>(sent: &'a pb::EntityUid, default_type: Option<&'a str>) -> FieldResult<UidRef<'a>> {
    let pb::EntityUid { r#type, id } = sent;
    let type_name = match (r#type.as_str(), default_type) {
        ("", Some(default)) => default,
        ("", None) => return Err(InvalidQuery::field("type", Problem::EmptyType)),
        (sent, _) => sent,
    };
    let id = (id.as_deref()).ok_or_else(|| InvalidQuery::field("id", Problem::UnsetId))?;
    Ok(UidRef { type_name, id })
}

/// Converts fields whose values are nested `depth` levels deep.
fn fields<'a>(
    sent: &'a BTreeMap<String, pb::Value>,
    rules: &RequestRules,
    depth: usize,
) -> FieldResult<Fields<'a>> {
    let fields = sent.iter();
    let fields = fields.map(|(name, sent)| match value(sent, rules, depth) {
        Ok(value) => Ok((name.as_str(), value)),
        Err(error) => Err(error.at_key(name)),
    });
    Ok(fields.collect::<FieldResult<BTreeMap<_, _>>>()?.into())
}

/// Converts a value nested `depth` levels deep; the value of a context field, attribute or tag is at 1.
///
/// The rules bound the recursion, as does prost, which rejects a hundred nested messages.
fn value<'a>(sent: &'a pb::Value, rules: &RequestRules, depth: usize) -> FieldResult<ValueRef<'a>> {
    use pb::value::Kind;
    if depth > rules.max_value_depth {
        return Err(InvalidQuery::here(Problem::TooDeep(rules.max_value_depth)));
    }
    let kind = (sent.kind.as_ref()).ok_or_else(|| InvalidQuery::here(Problem::UnsetKind))?;
    Ok(match kind {
        Kind::Bool(value) => ValueRef::Bool(*value),
        Kind::Long(value) => ValueRef::Long(*value),
        Kind::String(text) => ValueRef::String(text),
        Kind::Entity(sent) => {
            ValueRef::Entity(uid(sent, None).map_err(|error| error.within("entity"))?)
        }
        Kind::Set(pb::ValueList { values }) => {
            ValueRef::Set(each(values, "set", |it| value(it, rules, depth + 1))?)
        }
        Kind::Record(record) => {
            let fields = fields(&record.fields, rules, depth + 1);
            ValueRef::Record(fields.map_err(|error| error.within("record"))?)
        }
        Kind::Decimal(text) => ValueRef::Decimal(text),
        Kind::Ip(text) => ValueRef::Ip(text),
        Kind::Datetime(text) => ValueRef::Datetime(text),
        Kind::Duration(text) => ValueRef::Duration(text),
    })
}

fn entity<'a>(sent: &'a pb::Entity, rules: &RequestRules) -> FieldResult<EntityRef<'a>> {
    let pb::Entity {
        uid: own,
        attributes,
        parents,
        tags,
    } = sent;
    Ok(EntityRef {
        uid: required_uid(own.as_ref(), "uid", None)?,
        attributes: fields(attributes, rules, 1).map_err(|error| error.within("attributes"))?,
        parents: each(parents, "parents", |parent| uid(parent, None))?,
        tags: fields(tags, rules, 1).map_err(|error| error.within("tags"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::NoAnswer;

    fn operation(request: &pb::AuthorizeRequest) -> Result<Operation<'_>, Rejection> {
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
        match operation(&request) {
            Err(Rejection::NoAnswer(NoAnswer::Invalid(error))) => {
                (error.field.as_str().to_owned(), error.problem)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn action_type_defaults_to_action() {
        let action = UidRef {
            type_name: "Action",
            id: "read",
        };
        assert_eq!(operation(&request()).unwrap().action, action);
    }

    #[test]
    fn empty_id_is_valid_and_unset_is_not() {
        let mut sent = request();
        sent.resource = Some(pb_uid("Doc", ""));
        assert_eq!(operation(&sent).unwrap().resource.id, "");
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
        let request = pb::AuthorizeRequest {
            entities,
            ..request()
        };
        assert!(matches!(
            operation(&request),
            Err(Rejection::TooManyItems {
                items: "entities",
                limit: 2
            })
        ));
    }
}
