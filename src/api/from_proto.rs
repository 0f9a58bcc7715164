//! Wire messages to queries: every field checked, every fault named by its path.
//! And, for our own commands, answers read back.

use std::collections::BTreeMap;

use super::callers::IdentityKind;
use super::identity::Asker;
use super::pb;
use super::status::Rejection;
use crate::config::api::RequestRules;
use crate::pdp::answer::{Answer, Decision, Diagnostics, PolicyError};
use crate::pdp::diagnostic::Position;
use crate::pdp::explanation::{
    Clause, ClauseKind, ClauseOutcome, Effect, ExplainedPolicy, Explanation, Place,
    UnsatisfiedPermit,
};
use crate::pdp::id::{PolicyId, Revision};
use crate::pdp::query::{InvalidQuery, Problem, Query, Record, RequestEntity, Uid, Value};

type Checked<T> = Result<T, InvalidQuery>;

/// In which way `request` says on whose behalf it asks.
pub(super) fn identity_kind(request: &pb::AuthorizeRequest) -> IdentityKind {
    use pb::authorize_request::Identity;
    match &request.identity {
        Some(Identity::Principal(_)) => IdentityKind::Principal,
        Some(Identity::PrincipalToken(_)) => IdentityKind::Token,
        None => IdentityKind::Anonymous,
    }
}

/// The query that `asker` asks by `request`.
pub(super) fn query(
    request: pb::AuthorizeRequest,
    asker: Asker,
    rules: &RequestRules,
) -> Result<Query, Rejection> {
    let pb::AuthorizeRequest {
        identity: _,
        action,
        resource,
        context,
        entities,
        explain,
    } = request;
    let Asker { principal, claimed } = asker;
    let action = required_uid(action, "action", Some("Action"))?;
    let resource = required_uid(resource, "resource", None)?;
    let context = fields(context, rules).map_err(|error| error.within("context"))?;
    if entities.len() > rules.max_request_entities {
        return Err(Rejection::TooMany {
            what: "entities",
            most: rules.max_request_entities,
        });
    }
    let entities = entities
        .into_iter()
        .enumerate()
        .map(|(index, sent)| {
            entity(sent, rules).map_err(|error| error.at_index(index).within("entities"))
        })
        .collect::<Checked<Vec<_>>>()?;
    Ok(Query {
        principal,
        action,
        resource,
        context,
        entities,
        claimed,
        explain,
    })
}

fn required_uid(
    sent: Option<pb::EntityUid>,
    name: &str,
    default_type: Option<&str>,
) -> Checked<Uid> {
    let sent = sent.ok_or_else(|| InvalidQuery::field(name, Problem::Missing))?;
    uid(sent, default_type).map_err(|error| error.within(name))
}

pub(super) fn uid(sent: pb::EntityUid, default_type: Option<&str>) -> Checked<Uid> {
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

fn fields(sent: BTreeMap<String, pb::Value>, rules: &RequestRules) -> Checked<Record> {
    let fields = sent
        .into_iter()
        .map(|(name, sent)| match value(sent, rules, 1) {
            Ok(value) => Ok((name, value)),
            Err(error) => Err(error.at_key(&name)),
        })
        .collect::<Checked<BTreeMap<_, _>>>()?;
    Ok(fields.into())
}

/// `depth` counts this value: 1 for one that stands in a context, attribute or tag by itself.
///
/// The recursion is bounded by the rules, and before them by the decoder, which gives up at a
/// hundred nested messages.
fn value(sent: pb::Value, rules: &RequestRules, depth: usize) -> Checked<Value> {
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
                    .collect::<Checked<Vec<_>>>()?,
            ),
            Kind::Record(pb::ValueRecord { fields }) => {
                let fields = fields
                    .into_iter()
                    .map(|(name, field)| match value(field, rules, depth + 1) {
                        Ok(value) => Ok((name, value)),
                        Err(error) => Err(error.at_key(&name).within("record")),
                    })
                    .collect::<Checked<BTreeMap<_, _>>>()?;
                Value::Record(fields.into())
            }
            Kind::Decimal(text) => Value::Decimal(text),
            Kind::Ip(text) => Value::Ip(text),
            Kind::Datetime(text) => Value::Datetime(text),
            Kind::Duration(text) => Value::Duration(text),
        },
    )
}

fn entity(sent: pb::Entity, rules: &RequestRules) -> Checked<RequestEntity> {
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
            .collect::<Checked<Vec<_>>>()?,
        tags: fields(tags, rules).map_err(|error| error.within("tags"))?,
    })
}

/// The answer that `response` gives to one of our own commands.
pub(super) fn answer(response: pb::AuthorizeResponse) -> Result<Answer, &'static str> {
    let decision = match response.decision() {
        pb::Decision::Allow => Decision::Allow,
        pb::Decision::Deny => Decision::Deny,
        pb::Decision::Unspecified => return Err("it holds no decision"),
    };
    Ok(Answer {
        decision,
        diagnostics: Diagnostics {
            determining: response
                .determining_policies
                .iter()
                .map(|id| PolicyId::new(id))
                .collect(),
            errors: response
                .errors
                .into_iter()
                .map(|error| PolicyError {
                    policy: PolicyId::new(&error.policy_id),
                    message: error.message,
                })
                .collect(),
        },
        revision: Revision::from_text(&response.revision).ok_or("its revision is no digest")?,
        explanation: response
            .explanation
            .map(|explanation| Box::new(self::explanation(explanation))),
    })
}

fn explanation(sent: pb::Explanation) -> Explanation {
    Explanation {
        determining: sent.determining.into_iter().map(explained_policy).collect(),
        unsatisfied: sent
            .unsatisfied
            .into_iter()
            .map(unsatisfied_permit)
            .collect(),
        unsatisfied_total: usize::try_from(sent.unsatisfied_total).unwrap_or(usize::MAX),
    }
}

fn explained_policy(sent: pb::ExplainedPolicy) -> ExplainedPolicy {
    ExplainedPolicy {
        policy: PolicyId::new(&sent.policy_id),
        template: (!sent.template_id.is_empty()).then(|| PolicyId::new(&sent.template_id)),
        effect: match sent.effect() {
            pb::Effect::Forbid => Effect::Forbid,
            pb::Effect::Permit | pb::Effect::Unspecified => Effect::Permit,
        },
        annotations: sent.annotations.into_iter().collect(),
        place: place(sent.position.unwrap_or_default()),
    }
}

fn unsatisfied_permit(sent: pb::UnsatisfiedPermit) -> UnsatisfiedPermit {
    let clause = sent.clause.unwrap_or_default();
    UnsatisfiedPermit {
        policy: explained_policy(sent.policy.unwrap_or_default()),
        clause: Clause {
            kind: match clause.kind() {
                pb::condition_clause::Kind::Unless => ClauseKind::Unless,
                pb::condition_clause::Kind::When | pb::condition_clause::Kind::Unspecified => {
                    ClauseKind::When
                }
            },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::identity::{Identified, identify};
    use crate::pip::Patience;

    /// The query that `request` asks, where there are no tokens.
    fn query(mut request: pb::AuthorizeRequest, rules: &RequestRules) -> Result<Query, Rejection> {
        match identify(&mut request, rules, None, Patience::Spent)? {
            Identified::Asker(asker) => super::query(request, asker, rules),
            Identified::Wait(_) => panic!("without tokens there is nothing to wait for"),
        }
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

    /// The field and the problem that `request` is refused with.
    fn refused(request: pb::AuthorizeRequest) -> (String, Problem) {
        match query(request, &rules()) {
            Err(Rejection::Invalid(error)) => (error.field.as_str().to_owned(), error.problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_action_without_type_is_an_action() {
        assert_eq!(
            query(request(), &rules()).unwrap().action,
            Uid::new("Action", "read")
        );
    }

    #[test]
    fn an_empty_id_is_an_id_and_an_unset_one_is_not() {
        let mut sent = request();
        sent.resource = Some(pb_uid("Doc", ""));
        assert_eq!(
            query(sent.clone(), &rules()).unwrap().resource,
            Uid::new("Doc", "")
        );
        sent.resource = Some(pb::EntityUid {
            r#type: "Doc".to_owned(),
            id: None,
        });
        assert_eq!(refused(sent), ("resource.id".to_owned(), Problem::UnsetId));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(
            refused(pb::AuthorizeRequest {
                identity: None,
                ..request()
            }),
            ("principal".to_owned(), Problem::NoIdentity)
        );
        assert_eq!(
            refused(pb::AuthorizeRequest {
                action: None,
                ..request()
            }),
            ("action".to_owned(), Problem::Missing)
        );
        assert_eq!(
            refused(pb::AuthorizeRequest {
                resource: Some(pb_uid("", "1")),
                ..request()
            }),
            ("resource.type".to_owned(), Problem::EmptyType)
        );
        let context = BTreeMap::from([("amount".to_owned(), pb::Value { kind: None })]);
        assert_eq!(
            refused(pb::AuthorizeRequest {
                context,
                ..request()
            }),
            (r#"context["amount"]"#.to_owned(), Problem::UnsetKind)
        );
    }

    #[test]
    fn a_fault_deep_in_an_entity_is_named_by_its_whole_path() {
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
        let (field, problem) = refused(pb::AuthorizeRequest {
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
    fn more_entities_than_the_limit_are_refused() {
        let entities = vec![pb::Entity::default(); 3];
        let refused = query(
            pb::AuthorizeRequest {
                entities,
                ..request()
            },
            &rules(),
        );
        assert!(matches!(
            refused,
            Err(Rejection::TooMany {
                what: "entities",
                most: 2
            })
        ));
    }
}
