//! A valid request and its variations, and the policies that decide it.

use std::collections::BTreeMap;

use cedar_pdp::api::grpc::pb;
use pb::value::Kind;

use crate::support::{uid, value};

/// Files with a schema of every type, stored entities, and three policies.
pub(crate) const WITH_SCHEMA: &[(&str, &str)] = &[
    (
        "shop.cedarschema",
        r#"
entity Team in [Team];
entity User in [Team] = { age?: Long, balance?: decimal, net?: ipaddr, since?: datetime, leave?: duration, friend?: User, home?: { street?: String } } tags String;
entity Doc in [Doc] = { title: String };
entity Color enum ["red", "green"];
entity Robot;
action read appliesTo {
  principal: User, resource: Doc,
  context: { amount?: Long, limit?: decimal, from?: ipaddr, at?: datetime, span?: duration, names?: Set<String>, limits?: Set<decimal>,
             who?: User, color?: Color, place?: { x?: Long, limit?: decimal } },
};
action pay appliesTo { principal: User, resource: Doc, context: { amount: Long } };
"#,
    ),
    (
        "shop.cedar",
        r#"
permit(principal, action == Action::"read", resource);
@id("team") permit(principal in Team::"top", action, resource) when { principal has age && principal.age > 3 };
@id("pay") forbid(principal, action == Action::"pay", resource) when { context.amount < 0 };
"#,
    ),
    (
        "shop.entities.json",
        r#"[
{"uid": {"type": "User", "id": "alice"}, "attrs": {"age": 40}, "parents": [{"type": "Team", "id": "a"}]},
{"uid": {"type": "Team", "id": "a"}, "attrs": {}, "parents": [{"type": "Team", "id": "b"}]},
{"uid": {"type": "Team", "id": "b"}, "attrs": {}, "parents": [{"type": "Team", "id": "top"}]},
{"uid": {"type": "Doc", "id": "1"}, "attrs": {"title": "One"}, "parents": []}
]"#,
    ),
];

/// Files without a schema: values have no declared types.
pub(crate) const WITHOUT_SCHEMA: &[(&str, &str)] = &[(
    "bare.cedar",
    "permit(principal, action, resource);\nforbid(principal in T::\"none\", action, resource);\n",
)];

/// Returns a request of alice to read document 1. Both sets of files allow it.
pub(crate) fn good() -> pb::AuthorizeRequest {
    pb::AuthorizeRequest {
        identity: Some(pb::authorize_request::Identity::Principal(uid(
            "User", "alice",
        ))),
        action: Some(uid("", "read")),
        resource: Some(uid("Doc", "1")),
        ..pb::AuthorizeRequest::default()
    }
}

/// Returns the valid request after a change.
pub(crate) fn changed(change: impl FnOnce(&mut pb::AuthorizeRequest)) -> pb::AuthorizeRequest {
    let mut request = good();
    change(&mut request);
    request
}

/// Returns the valid request with another principal.
pub(crate) fn principal(uid: pb::EntityUid) -> pb::AuthorizeRequest {
    changed(|r| r.identity = Some(pb::authorize_request::Identity::Principal(uid)))
}

/// Returns the valid request with a value in the context.
pub(crate) fn context(name: &str, kind: Kind) -> pb::AuthorizeRequest {
    changed(|r| {
        r.context.insert(name.to_owned(), value(kind));
    })
}

/// Returns the valid request with these entities.
pub(crate) fn entities(entities: Vec<pb::Entity>) -> pb::AuthorizeRequest {
    changed(|r| r.entities = entities)
}

/// Returns an entity with parents.
pub(crate) fn entity(own: pb::EntityUid, parents: Vec<pb::EntityUid>) -> pb::Entity {
    pb::Entity {
        uid: Some(own),
        parents,
        ..pb::Entity::default()
    }
}

/// Returns a request with the user bob, who has this attribute.
pub(crate) fn attribute(name: &str, kind: Kind) -> pb::AuthorizeRequest {
    let mut bob = entity(uid("User", "bob"), vec![]);
    bob.attributes.insert(name.to_owned(), value(kind));
    entities(vec![bob])
}

/// Returns a request with the user bob, who has this tag.
pub(crate) fn tag(name: &str, kind: Kind) -> pb::AuthorizeRequest {
    let mut bob = entity(uid("User", "bob"), vec![]);
    bob.tags.insert(name.to_owned(), value(kind));
    entities(vec![bob])
}

/// Returns a uid without id.
pub(crate) fn without_id(type_name: &str) -> pb::EntityUid {
    pb::EntityUid {
        r#type: type_name.to_owned(),
        id: None,
    }
}

/// Returns a value without kind.
pub(crate) fn without_kind() -> pb::Value {
    pb::Value { kind: None }
}

/// Returns a string value.
pub(crate) fn text(text: &str) -> pb::Value {
    value(Kind::String(text.to_owned()))
}

/// Returns a set.
pub(crate) fn set(values: Vec<pb::Value>) -> Kind {
    Kind::Set(pb::ValueList { values })
}

/// Returns a record of one field.
pub(crate) fn record(name: &str, field: pb::Value) -> Kind {
    Kind::Record(pb::ValueRecord {
        fields: BTreeMap::from([(name.to_owned(), field)]),
    })
}
