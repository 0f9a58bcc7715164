//! A service with an issuer, and its clients.

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::Server;
use crate::support::signer::{Signer, jwks};
use crate::support::staff::FILES;

pub(crate) const ISSUER: &str = "https://id.example";

/// The default mapping of claims to the principal.
pub(crate) const MAPPING: &str = r#"
[issuer.principal]
type = "User"
[issuer.principal.attributes]
department = "string"
[[issuer.principal.parents]]
claim = "roles"
type = "Role"
optional = true
"#;

/// A service that accepts tokens, and the directory of its keys and lists.
pub(crate) struct TokenService {
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
    /// Directories that must exist while the service runs.
    directories: Vec<TempDir>,
}

/// The initial content of the files.
pub(crate) struct TokenOptions<'a> {
    /// Lines of `[[issuer]]`: the source of keys and further settings.
    pub(crate) issuer: &'a str,
    pub(crate) mapping: &'a str,
    pub(crate) revocations: Option<&'a str>,
    pub(crate) arguments: &'a [&'a str],
}

impl Default for TokenOptions<'_> {
    fn default() -> Self {
        Self {
            issuer: "keys_file = \"jwks.json\"",
            mapping: MAPPING,
            revocations: None,
            arguments: &[],
        }
    }
}

impl TokenService {
    /// Starts a service whose issuer has these keys in a file.
    pub(crate) fn start(signers: &[&Signer]) -> Self {
        Self::start_with(signers, &TokenOptions::default())
    }

    pub(crate) fn start_with(signers: &[&Signer], options: &TokenOptions<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("jwks.json"), jwks(signers)).unwrap();
        let issuers = format!(
            r#"
[[issuer]]
issuer = "{ISSUER}"
audiences = ["pdp"]
algorithms = ["ES256", "RS256", "EdDSA"]
{}
{}"#,
            options.issuer, options.mapping
        );
        let file = dir.path().join("issuers.toml");
        fs::write(&file, issuers).unwrap();
        let mut arguments = vec!["--tokens", file.to_str().unwrap()];
        let revocations = dir.path().join("revoked.toml");
        if let Some(text) = options.revocations {
            fs::write(&revocations, text).unwrap();
            arguments.extend(["--revocations", revocations.to_str().unwrap()]);
        }
        arguments.extend(options.arguments);
        let policies = crate::support::policy_directory(FILES);
        let server = Server::start(policies.path(), &arguments);
        Self {
            server,
            dir,
            directories: vec![policies],
        }
    }

    /// Keeps `dir` while the service runs.
    pub(crate) fn with_directory(mut self, dir: TempDir) -> Self {
        self.directories.push(dir);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn client(&self) -> AuthorizationServiceClient<Channel> {
        self.server.authorization().await
    }

    /// Returns whether the owner of `token` may do `action`.
    pub(crate) async fn is_allowed(&self, token: &str, action: &str) -> Result<bool, Status> {
        let mut client = self.client().await;
        is_allowed(&mut client, request(token, action)).await
    }

    /// Returns the reason why `token` is rejected.
    pub(crate) async fn rejection_reason(&self, token: &str) -> String {
        reason(&self.is_allowed(token, "read").await.unwrap_err())
    }
}

pub(crate) async fn is_allowed(
    client: &mut AuthorizationServiceClient<Channel>,
    request: pb::AuthorizeRequest,
) -> Result<bool, Status> {
    let answer = client.authorize(request).await?.into_inner();
    Ok(answer.decision() == pb::Decision::Allow)
}

/// Returns a request with `token`.
pub(crate) fn request(token: &str, action: &str) -> pb::AuthorizeRequest {
    let identity = pb::authorize_request::Identity::PrincipalToken(token.to_owned());
    pb::AuthorizeRequest {
        identity: Some(identity),
        action: Some(crate::support::uid("Action", action)),
        resource: Some(crate::support::uid("Doc", "1")),
        ..pb::AuthorizeRequest::default()
    }
}

/// Returns the reason in a status that rejects a token.
pub(crate) fn reason(status: &Status) -> String {
    let info = status
        .get_error_details()
        .error_info()
        .cloned()
        .unwrap_or_else(|| panic!("no reason: {status:?}"));
    assert_eq!(info.domain, "cedar-pdp");
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    info.reason
}

/// Returns the seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Returns the claims of a valid token.
pub(crate) fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "pdp", "sub": "alice", "jti": "one",
        "iat": now(), "nbf": now(), "exp": now() + 600,
        "department": "sales", "roles": ["reader"],
    })
}

/// Returns these claims with changes; null removes a claim.
pub(crate) fn with(changes: Value) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value.is_null() {
            true => members.remove(name),
            false => members.insert(name.clone(), value.clone()),
        };
    }
    claims
}

pub(crate) fn es256(kid: &str) -> Signer {
    Signer::new(kid, Algorithm::ES256)
}
