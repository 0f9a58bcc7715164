//! A small policy directory and requests that it allows, to measure the cost of observability.
//!
//! Every request is allowed by one policy, and ids of one kind have the same length. So every log
//! record costs the same, whichever ALLOWs are sampled.

use std::collections::BTreeMap;
use std::fs;

use cedar_pdp::api::grpc::pb;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::running::{uid, value};

const TEAMS: usize = 10;
const USERS: usize = 490;
const DOCUMENTS: usize = 490;

/// The number of users; each reads documents of the team's folder.
const PAIRS: usize = USERS * DOCUMENTS / TEAMS;
/// The number of pairs of user and document, times the sums below a thousand.
pub const DISTINCT_REQUESTS: usize = PAIRS * 750;

const SCHEMA: &str = r#"
entity Team;
entity Folder;
entity User in [Team] = { name: String, level: Long, manager: User };
entity Document in [Folder] = { title: String, level: Long, owner: User };
action read appliesTo {
  principal: User,
  resource: Document,
  context: { channel: String, mfa: Bool, sum: Long },
};
"#;

const FORBIDS: &str = r#"
@id("no-outsiders")
forbid (principal, action, resource)
when { context.channel == "outside" };

@id("no-great-sums-without-mfa")
forbid (principal, action, resource)
when { context.sum > 1000000 }
unless { context.mfa };
"#;

/// Writes the directory, which passes strict validation.
pub fn policy_directory() -> anyhow::Result<TempDir> {
    let directory = tempfile::tempdir()?;
    let write = |name: &str, text: String| fs::write(directory.path().join(name), text);
    write("world.cedarschema", SCHEMA.to_owned())?;
    let permits: String = (0..TEAMS).map(permit).collect();
    write("world.cedar", permits + FORBIDS)?;
    write("world.entities.json", Value::from(entities()).to_string())?;
    Ok(directory)
}

fn permit(team: usize) -> String {
    format!(
        r#"
@id("{}")
permit (principal in Team::"{}", action == Action::"read", resource in Folder::"{}")
when {{ principal.level >= resource.level && context.sum < 1000 }};
"#,
        permit_id(team),
        id("team", team),
        id("folder", team),
    )
}

fn permit_id(team: usize) -> String {
    format!("team-{team:02}-reads")
}

/// Returns an id of about 24 bytes, as on a real platform.
fn id(kind: &str, n: usize) -> String {
    format!("{kind}-{n:018}")
}

fn entities() -> Vec<Value> {
    let reference = |entity_type: &str, id: String| json!({ "type": entity_type, "id": id });
    let plain = |entity_type: &str, kind: &str, n| json!({ "uid": reference(entity_type, id(kind, n)), "attrs": {}, "parents": [] });
    let user = |n: usize| {
        json!({
            "uid": reference("User", id("user", n)),
            "attrs": {
                "name": format!("User number {n}"),
                "level": 3 + n % 5,
                "manager": reference("User", id("user", n / 10)),
            },
            "parents": [reference("Team", id("team", n % TEAMS))],
        })
    };
    let document = |n: usize| {
        json!({
            "uid": reference("Document", id("document", n)),
            "attrs": {
                "title": format!("Document number {n}"),
                "level": n % 3,
                "owner": reference("User", id("user", n % USERS)),
            },
            "parents": [reference("Folder", id("folder", n % TEAMS))],
        })
    };
    (0..TEAMS)
        .flat_map(|n| [plain("Team", "team", n), plain("Folder", "folder", n)])
        .chain((0..USERS).map(user))
        .chain((0..DOCUMENTS).map(document))
        .collect()
}

/// Returns request `n`; the first [`DISTINCT_REQUESTS`] differ from each other.
pub fn request(n: usize) -> pb::AuthorizeRequest {
    use pb::value::Kind;
    let user = n % USERS;
    // In the folder of the user's team, since `TEAMS` divides `DOCUMENTS`; another one in each
    // round.
    let document = (user + TEAMS * (n / USERS)) % DOCUMENTS;
    // Another sum when all pairs are used: as many bytes, and equal for every policy.
    let sum = 250 + (n / PAIRS) as i64;
    pb::AuthorizeRequest {
        identity: Some(pb::authorize_request::Identity::Principal(uid(
            "User",
            &id("user", user),
        ))),
        action: Some(uid("Action", "read")),
        resource: Some(uid("Document", &id("document", document))),
        context: BTreeMap::from([
            (
                "channel".to_owned(),
                value(Kind::String("mobile".to_owned())),
            ),
            ("mfa".to_owned(), value(Kind::Bool(true))),
            ("sum".to_owned(), value(Kind::Long(sum))),
        ]),
        ..pb::AuthorizeRequest::default()
    }
}

/// Returns an answer of the size of every answer here, except for optional fields.
pub fn answer() -> pb::AuthorizeResponse {
    pb::AuthorizeResponse {
        decision: pb::Decision::Allow.into(),
        determining_policies: vec![permit_id(0)],
        revision: "0".repeat(64),
        ..pb::AuthorizeResponse::default()
    }
}
