//! Repeats logged decisions with Cedar's own authorizer.

use std::collections::BTreeMap;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision, Entities, EntityUid, PolicyId, PolicySet,
    Request,
};
use serde_json::{Map, Value as Json, json};

/// The policies and entities in force when a line was written.
pub struct Replay {
    policies: PolicySet,
    /// Stored entities in Cedar's JSON format, by uid.
    stored: BTreeMap<String, Json>,
}

impl Replay {
    /// Parses `policies`, each of which has an `@id`, and a list of `entities`.
    pub fn new(policies: &str, entities: &str) -> Self {
        let mut named = PolicySet::new();
        for policy in policies.parse::<PolicySet>().unwrap().policies() {
            let id = PolicyId::new(policy.annotation("id").unwrap());
            named.add(policy.new_id(id)).unwrap();
        }
        let entities: Vec<Json> = serde_json::from_str(entities).unwrap();
        let stored = entities.into_iter().map(by_uid).collect();
        Self {
            policies: named,
            stored,
        }
    }

    /// Asserts that the logged decision follows from the logged request.
    pub fn check(&self, line: &Json) {
        assert_eq!(line["replayable"], true, "{line}");
        let uid = |name: &str| EntityUid::from_json(line[name].clone()).unwrap();
        let request = Request::new(
            uid("principal"),
            uid("action"),
            uid("resource"),
            Context::from_json_value(line["context"].clone(), None).unwrap(),
            None,
        );
        let mut entities = self.stored.clone();
        if let Some(claimed) = line.get("claimed") {
            let key = line["principal"].to_string();
            let stored = entities
                .get(&key)
                .filter(|_| claimed["stored"] != "replace");
            let principal = merge_principal(&line["principal"], stored, claimed);
            entities.insert(key, principal);
        }
        let request_entities = line.get("entities").and_then(Json::as_array);
        entities.extend(request_entities.into_iter().flatten().cloned().map(by_uid));
        let entities = Entities::from_json_value(entities.into_values().collect(), None).unwrap();
        let answer = Authorizer::new().is_authorized(&request.unwrap(), &self.policies, &entities);
        let decision = match answer.decision() {
            Decision::Allow => "ALLOW",
            Decision::Deny => "DENY",
        };
        let mut determining: Vec<_> = answer
            .diagnostics()
            .reason()
            .map(ToString::to_string)
            .collect();
        determining.sort();
        let mut erring: Vec<_> = answer
            .diagnostics()
            .errors()
            .map(|error| match error {
                AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
            })
            .collect();
        erring.sort();
        let ids_in = |list: &Json, field: Option<&str>| -> Vec<String> {
            let items = list.as_array().into_iter().flatten();
            let ids = items.map(|item| field.map_or(item, |field| &item[field]));
            let mut ids: Vec<_> = ids.map(|id| id.as_str().unwrap().to_owned()).collect();
            ids.sort();
            ids
        };
        assert_eq!(line["decision"], decision, "{line}");
        assert_eq!(
            ids_in(&line["determining_policies"], None),
            determining,
            "{line}"
        );
        assert_eq!(ids_in(&line["errors"], Some("policy")), erring, "{line}");
    }
}

fn by_uid(entity: Json) -> (String, Json) {
    (entity["uid"].to_string(), entity)
}

/// Merges the principal of a token: its stored entity, if any is used, and the token's claims.
fn merge_principal(uid: &Json, stored: Option<&Json>, claimed: &Json) -> Json {
    let map = |entity: &Json, field: &str| -> Map<String, Json> {
        entity[field].as_object().cloned().unwrap_or_default()
    };
    let list = |entity: &Json| entity["parents"].as_array().cloned().unwrap_or_default();
    let none = json!({});
    let stored = stored.unwrap_or(&none);
    let mut attributes = map(stored, "attrs");
    attributes.extend(map(claimed, "attrs"));
    let mut parents = list(stored);
    parents.extend(list(claimed));
    json!({ "uid": uid, "attrs": attributes, "parents": parents, "tags": map(stored, "tags") })
}
