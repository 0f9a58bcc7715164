//! The services under test: their policies, options and calls.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cedar_pdp::pdp::query::{Query, Record, RequestEntity, Uid, Value};
use cedar_pdp::pdp::settings::{OnPolicyError, Settings, Validation};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::calls::{self, Call};
use super::message::Request;
use crate::rng::Rng;
use crate::scenario::Scenario;
use cedar_pdp_test_support as support;

/// The number of services with a generated scenario, and of queries for each.
const SCENARIOS: usize = 24;
const QUERIES: usize = 220;

/// A service and its calls.
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) policies: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) calls: Vec<Call>,
    /// Directories that exist as long as the service.
    directories: Vec<TempDir>,
}

impl Service {
    fn new(name: &'static str, files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let policies = support::policy_directory(files);
        let mut service = Self {
            name,
            policies: policies.path().to_owned(),
            arguments: Vec::new(),
            calls: Vec::new(),
            directories: vec![policies],
        };
        // A busy machine must neither shed calls nor let them time out.
        service.add(&["--overload-delay", "0s", "--max-call-time", "0s"]);
        service.add(arguments);
        service
    }

    fn add(&mut self, arguments: &[&str]) {
        self.arguments
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    /// Writes files beside the policies. Returns their directory.
    fn lists(&mut self, files: &[(&str, &str)]) -> PathBuf {
        let lists = support::policy_directory(files);
        let path = lists.path().to_owned();
        self.directories.push(lists);
        path
    }
}

/// Creates all services with `count` calls in all.
pub(super) fn all(seed: u64, count: usize) -> Vec<Service> {
    let share = |thousandths: usize| count * thousandths / 1_000;
    let mut services: Vec<Service> = (0..SCENARIOS)
        .map(|number| {
            let mut rng = Rng::new(seed.wrapping_add(number as u64));
            scenario(&mut rng, number, share(30))
        })
        .collect();
    let mut rng = Rng::named(seed, "services");
    services.push(with_tokens(&mut rng, share(70)));
    services.push(with_callers(&mut rng, share(20)));
    services.push(with_limits(&mut rng, share(30)));
    services.push(with_few_candidates(&mut rng, share(5)));
    services.push(without_policies(&mut rng, share(5)));
    let made: usize = services.iter().map(|service| service.calls.len()).sum();
    services.push(shipped(&mut rng, count.saturating_sub(made)));
    services
}

/// Draws a policy directory with drawn settings.
fn scenario(rng: &mut Rng, number: usize, count: usize) -> Service {
    let settings = crate::settings(rng);
    let scenario = Scenario::draw(rng, settings.validation);
    let files = scenario.files();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    let mut service = Service::new("world", &files, &[]);
    let arguments = options(&settings);
    service.arguments.extend(arguments);
    match number % 4 {
        0 => service.add(&["--cache-bytes", "0"]),
        1 => {
            let logs = service.lists(&[]);
            let file = format!("file:{}", logs.join("decisions").display());
            service.add(&["--decision-log", &file]);
        }
        2 => service.add(&["--anonymous-principal", "User::\"a\""]),
        _ => {}
    }
    let queries = crate::requests::draw(rng, &scenario, QUERIES);
    service.calls = calls::draw(rng, &queries, count);
    service
}

/// Returns the options of a service with these settings.
fn options(settings: &Settings) -> Vec<String> {
    let validation = match settings.validation {
        Validation::Strict => "strict",
        Validation::Warn => "warn",
        Validation::Off => "off",
    };
    let on_policy_error = match settings.on_policy_error {
        OnPolicyError::Skip => "skip",
        OnPolicyError::Deny => "deny",
    };
    let mut options = vec![
        format!("--validation={validation}"),
        format!("--on-policy-error={on_policy_error}"),
    ];
    if let Some(types) = &settings.request_entity_types {
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        options.push(format!("--request-entity-types={}", types.join(",")));
    }
    // Not `require_known`: a binary of an earlier version does not know it.
    options
}

/// Creates a service with the policies of this repository; its requests come from their test cases.
fn shipped(rng: &mut Rng, count: usize) -> Service {
    let anonymous = ["--anonymous-principal", "Platform::Visitor::\"anonymous\""];
    let mut service = Service::new("shipped", &[], &anonymous);
    service.policies = support::shipped_policies();
    let cases = cases(&service.policies.join("tests"));
    let mut queries = cases.clone();
    for _ in 0..cases.len() * 4 {
        let mut query = rng.pick(&cases);
        let other = rng.pick(&cases);
        match rng.below(4) {
            0 => query.principal = other.principal,
            1 => query.resource = other.resource,
            2 => query.context = other.context,
            _ => {
                let kinds = [("Team", "Team"), ("Group", "Group"), ("Role", "Tenant")];
                let (kind, parent) = rng.pick(&kinds);
                query.entities.push(RequestEntity {
                    uid: Uid::new(format!("Platform::{kind}"), rng.pick(&["a", "b"])),
                    attributes: Record::default(),
                    parents: vec![Uid::new(format!("Platform::{parent}"), "c")],
                    tags: Record::default(),
                });
            }
        }
        queries.push(query);
    }
    service.calls = calls::draw(rng, &queries, count);
    service
}

/// Reads the requests of all test cases in a directory.
fn cases(directory: &Path) -> Vec<Query> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut queries = Vec::new();
    for file in files {
        let cases: Vec<Json> = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        for case in cases {
            let request = &case["request"];
            let uid = |name: &str| request[name].as_str().unwrap().parse().unwrap();
            let context = request["context"].as_object().unwrap();
            queries.push(Query {
                context: record(context),
                ..query(uid("principal"), uid("action"), uid("resource"))
            });
        }
    }
    queries
}

fn query(principal: Uid, action: Uid, resource: Uid) -> Query {
    Query {
        principal,
        action,
        resource,
        context: Record::default(),
        entities: Vec::new(),
        claimed: None,
        explain: false,
    }
}

fn record(members: &serde_json::Map<String, Json>) -> Record {
    let fields = members
        .iter()
        .map(|(name, json)| (name.clone(), value(json)));
    fields.collect::<BTreeMap<_, _>>().into()
}

/// Converts Cedar's JSON, as far as test cases use it.
fn value(json: &Json) -> Value {
    match json {
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => Value::Long(number.as_i64().unwrap()),
        Json::String(text) => Value::String(text.clone()),
        Json::Array(members) => Value::Set(members.iter().map(value).collect()),
        Json::Object(members) => {
            if let Some(call) = members.get("__extn") {
                let text = call["arg"].as_str().unwrap().to_owned();
                return match call["fn"].as_str().unwrap() {
                    "decimal" => Value::Decimal(text),
                    "ip" => Value::Ip(text),
                    "datetime" => Value::Datetime(text),
                    "duration" => Value::Duration(text),
                    other => panic!("no case calls {other}"),
                };
            }
            Value::Record(record(members))
        }
        Json::Null => panic!("no case has null"),
    }
}

/// Draws a request of the staff about a document.
fn staff_query(rng: &mut Rng) -> Query {
    let user = rng.pick(&["alice", "stored", "suspended"]);
    let action = rng.pick(&["read", "write", "paint"]);
    query(
        Uid::new("User", user),
        Uid::new("Action", action),
        Uid::new("Doc", rng.pick(&["1", "2"])),
    )
}

/// Fixed secrets of issuers, so that equal seeds make equal tokens.
const SECRET: &str = "a secret of tests that is long enough to sign with";
const OTHER_SECRET: &str = "another secret of tests that is long enough as well";

/// Signs a token with a secret.
fn token(header: &Json, claims: &Json, secret: &str) -> String {
    let signer = cedar_pdp_test_support::signer::Signer::secret(secret.as_bytes());
    signer.sign(&header.to_string(), &claims.to_string())
}

fn with_tokens(rng: &mut Rng, count: usize) -> Service {
    let mut service = Service::new("tokens", support::staff::FILES, &[]);
    let issuers = |name: &str, source: &str, algorithm: &str, stored: &str| {
        format!(
            r#"
[[issuer]]
issuer = "https://{name}.example"
audiences = ["pdp"]
algorithms = ["{algorithm}"]
max_age = "3600d"
{source}
[issuer.principal]
type = "User"
stored = "{stored}"
[issuer.principal.attributes]
department = "string"
level = {{ kind = "long", optional = true }}
scopes = {{ kind = "strings", optional = true }}
[[issuer.principal.parents]]
claim = "roles"
type = "Role"
optional = true
"#
        )
    };
    let tokens = [
        issuers("id", "secret_file = \"secret\"", "HS256", "join"),
        issuers("new", "secret_file = \"secret\"", "HS256", "replace"),
        issuers("known", "secret_file = \"secret\"", "HS256", "require"),
        issuers("keys", "keys_file = \"keys.json\"", "EdDSA", "join"),
        issuers(
            "down",
            "keys_url = \"http://127.0.0.1:9/\"\ninsecure_http = true\nkey_wait = \"1ms\"",
            "EdDSA",
            "join",
        ),
    ];
    // The public key of RFC 8037. Nothing here is signed with it.
    let keys = json!({"keys": [{
        "kty": "OKP", "crv": "Ed25519", "kid": "k", "use": "sig",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    }]});
    let lists = service.lists(&[
        ("issuers.toml", &tokens.concat()),
        ("secret", SECRET),
        ("keys.json", &keys.to_string()),
        (
            "revoked.toml",
            "[[revoked]]\njti = \"revoked\"\n[[revoked]]\nissuer = \"https://id.example\"\nsub = \"mallory\"\n",
        ),
    ]);
    let path = |name: &str| lists.join(name).display().to_string();
    service.add(&["--tokens", &path("issuers.toml")]);
    service.add(&["--revocations", &path("revoked.toml")]);
    service.calls = (0..count)
        .map(|_| {
            Call::drawn(rng, |rng| {
                let query = staff_query(rng);
                let explain = rng.chance(30);
                let token = match rng.chance(75) {
                    true => good_token(rng),
                    false => bad_token(rng),
                };
                Request::new(rng, &query, explain)
                    .with_token(&token)
                    .bytes()
            })
        })
        .collect();
    service
}

fn header() -> Json {
    json!({"alg": "HS256", "typ": "at+jwt"})
}

/// Returns claims that stay valid for years. The longest `max_age` ends ten years after `iat`.
fn claims(rng: &mut Rng) -> Json {
    json!({
        "iss": rng.pick(&["https://id.example", "https://new.example", "https://id.example"]),
        "aud": "pdp",
        "sub": rng.pick(&["alice", "stored", "suspended", "bob"]),
        "jti": "one",
        "iat": 1_750_000_000, "exp": 4_102_444_800_i64,
        "department": rng.pick(&["sales", "finance", "é\""]),
        "roles": rng.pick(&[&[] as &[&str], &["reader"], &["chief", "other"]]),
    })
}

fn good_token(rng: &mut Rng) -> String {
    let mut claims = claims(rng);
    match rng.below(4) {
        0 => claims["level"] = json!(rng.below(9)),
        1 => claims["scopes"] = json!(["a", "b"]),
        2 => {
            claims["iss"] = json!("https://known.example");
            claims["sub"] = json!("stored");
        }
        _ => {}
    }
    token(&header(), &claims, SECRET)
}

/// Draws a token that is rejected, for one of many reasons.
fn bad_token(rng: &mut Rng) -> String {
    let mut claims = claims(rng);
    claims["iss"] = json!("https://id.example");
    let (mut header, mut secret) = (header(), SECRET);
    match rng.below(19) {
        0 => claims["iss"] = json!("https://evil.example"),
        1 => claims["aud"] = json!("other"),
        2 => claims["exp"] = json!(1_750_000_100),
        3 => claims["nbf"] = json!(4_102_444_000_i64),
        4 => claims["exp"] = json!("soon"),
        5 => claims["iat"] = json!(1),
        6 => claims["jti"] = json!("revoked"),
        7 => claims["sub"] = json!("mallory"),
        8 => claims["department"] = json!(7),
        9 => {
            claims["iss"] = json!("https://known.example");
            claims["sub"] = json!("nobody");
        }
        10 => {
            claims["iss"] = json!("https://down.example");
            header["alg"] = json!("EdDSA");
            header["kid"] = json!("k");
        }
        11 | 12 => {
            claims["iss"] = json!("https://keys.example");
            header["alg"] = json!("EdDSA");
            header["kid"] = json!(rng.pick(&["k", "unknown"]));
        }
        13 => header["alg"] = json!(rng.pick(&["none", "HS512", "ES256"])),
        14 => header["typ"] = json!("logout+jwt"),
        15 => header["crit"] = json!(["exp"]),
        16 => secret = OTHER_SECRET,
        17 => claims["x"] = json!("x".repeat(100_000)),
        _ => return rng.pick(&["", "alice", "a.b.c", "..", "é.é.é"]).to_owned(),
    }
    token(&header, &claims, secret)
}

fn with_callers(rng: &mut Rng, count: usize) -> Service {
    let keys = ["full", "terse", "named", "unnamed", "operator"];
    let mut list = String::new();
    for (name, rights, identities) in [
        (
            keys[0],
            "'authorize', 'explain'",
            "'principal', 'token', 'anonymous'",
        ),
        (keys[1], "'authorize'", "'principal', 'token', 'anonymous'"),
        (keys[2], "'authorize', 'explain'", "'principal'"),
        (keys[3], "'authorize', 'explain'", "'anonymous', 'token'"),
        (keys[4], "'store'", "'principal'"),
    ] {
        list.push_str(&format!(
            "[[caller]]\nname = '{name}'\nbearer = ['{name}']\nrights = [{rights}]\nidentities = [{identities}]\n"
        ));
    }
    let key = |name: &str| format!("a-key-of-the-tests-{name}");
    let mut service = Service::new(
        "callers",
        support::staff::FILES,
        &["--anonymous-principal", "User::\"stored\""],
    );
    let texts: Vec<(&str, String)> = keys.iter().map(|name| (*name, key(name))).collect();
    let mut files: Vec<(&str, &str)> = texts
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    files.push(("callers.toml", &list));
    let lists = service.lists(&files);
    service.add(&[
        "--callers",
        &lists.join("callers.toml").display().to_string(),
    ]);
    service.calls = (0..count)
        .map(|_| {
            let call = Call::drawn(rng, |rng| {
                let mut query = staff_query(rng);
                if rng.chance(20) {
                    let own = rng.pick(&[("User", "stored"), ("Team", "red"), ("Team", "blue")]);
                    query.entities.push(RequestEntity {
                        uid: Uid::new(own.0, own.1),
                        attributes: Record::default(),
                        parents: Vec::new(),
                        tags: Record::default(),
                    });
                }
                let explain = rng.chance(30);
                let request = Request::new(rng, &query, explain);
                let request = match rng.below(6) {
                    0 | 1 => request.anonymous(),
                    2 => request.with_token("no token"),
                    _ => request,
                };
                request.bytes()
            });
            match rng.below(12) {
                0 => call,
                1 => call.with("authorization", "Bearer another-key-altogether"),
                _ => {
                    let shown = format!("Bearer {}", key(rng.pick(&keys)));
                    call.with("authorization", shown)
                }
            }
        })
        .collect();
    service
}

fn with_limits(rng: &mut Rng, count: usize) -> Service {
    let arguments = [
        "--explanations=off",
        "--max-batch-items=4",
        "--max-request-entities=3",
        "--max-request-values=12",
        "--max-value-depth=3",
        "--max-message-bytes=65536",
        "--request-entity-types=Group,User",
        "--validation=off",
    ];
    let files = [("p.cedar", "permit(principal, action, resource);")];
    let mut service = Service::new("limits", &files, &arguments);
    let queries: Vec<Query> = (0..20).map(|_| staff_query(rng)).collect();
    service.calls = calls::draw(rng, &queries, count);
    let long = vec![0; 100_000];
    service.calls.pop();
    service.calls.push(Call::unary(&long));
    service
}

fn with_few_candidates(rng: &mut Rng, count: usize) -> Service {
    let files = [(
        "p.cedar",
        "permit(principal, action, resource);\npermit(principal, action == Action::\"read\", resource);",
    )];
    let mut service = Service::new("candidates", &files, &["--max-candidates=1"]);
    let queries: Vec<Query> = (0..20).map(|_| staff_query(rng)).collect();
    service.calls = calls::draw(rng, &queries, count);
    service
}

fn without_policies(rng: &mut Rng, count: usize) -> Service {
    let files = [("p.cedar", "permit(")];
    let mut service = Service::new("nothing-loaded", &files, &["--start-unready"]);
    let queries: Vec<Query> = (0..20).map(|_| staff_query(rng)).collect();
    service.calls = calls::draw(rng, &queries, count);
    service
}
