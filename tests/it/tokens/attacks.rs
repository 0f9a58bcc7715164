//! Invalid tokens of every kind: the running service rejects each for its own reason, alone, in a
//! batch and on a stream.

use cedar_pdp::api::grpc::pb;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio_stream::iter;

use super::setup::{TokenOptions, TokenService, claims, es256, now, reason, request, with};
use crate::support::item_status;
use crate::support::signer::{Signer, encoded};

/// Returns the attacks: name, token, and the reason for its rejection.
fn attacks(
    key: &Signer,
    rsa: &Signer,
    unlisted: &Signer,
) -> Vec<(&'static str, String, &'static str)> {
    let unsigned = |alg: &str| {
        let header = json!({"alg": alg, "typ": "JWT"}).to_string();
        let claims = claims().to_string();
        format!(
            "{}.{}.",
            encoded(header.as_bytes()),
            encoded(claims.as_bytes())
        )
    };
    let confused = {
        let header = json!({"alg": "HS256", "kid": rsa.kid}).to_string();
        let public = rsa.jwk().to_string();
        Signer::secret(public.as_bytes()).sign(&header, &claims().to_string())
    };
    let injected = |kid: &str| {
        let header = json!({"alg": "ES256", "kid": kid}).to_string();
        key.sign(&header, &claims().to_string())
    };
    let own_key = {
        let mut header = unlisted.header();
        header["jwk"] = unlisted.jwk();
        header["jku"] = json!("https://evil.example/jwks.json");
        unlisted.sign(&header.to_string(), &claims().to_string())
    };
    let header = key.header().to_string();
    let twice = claims()
        .to_string()
        .replace("\"sub\":", "\"sub\":\"root\",\"sub\":");
    let twice_in_header = header.replace("\"alg\":", "\"alg\":\"none\",\"alg\":");
    let deep = format!("{}1{}", "[".repeat(1_000), "]".repeat(1_000));
    let deep = claims()
        .to_string()
        .replace("\"alice\"", &format!("\"alice\",\"x\":{deep}"));
    let critical = json!({"alg": "ES256", "kid": key.kid, "crit": ["exp"]}).to_string();
    let logout = json!({"alg": "ES256", "kid": key.kid, "typ": "logout+jwt"}).to_string();
    let good = key.token(&claims());
    let mut other_claims = good.split('.').map(ToOwned::to_owned).collect::<Vec<_>>();
    other_claims[1] = encoded(with(json!({"sub": "root"})).to_string().as_bytes());
    let token = |changes: Value| key.token(&with(changes));
    vec![
        ("alg none", unsigned("none"), "TOKEN_ALGORITHM"),
        ("alg None", unsigned("None"), "TOKEN_ALGORITHM"),
        ("the public key as a secret", confused, "TOKEN_ALGORITHM"),
        (
            "another's key",
            unlisted.token(&claims()),
            "TOKEN_SIGNATURE",
        ),
        ("a key that the token brings", own_key, "TOKEN_SIGNATURE"),
        (
            "other claims under the signature",
            other_claims.join("."),
            "TOKEN_SIGNATURE",
        ),
        (
            "no signature",
            format!("{}.", good.rsplit_once('.').unwrap().0),
            "TOKEN_SIGNATURE",
        ),
        (
            "another audience",
            token(json!({"aud": "other"})),
            "TOKEN_AUDIENCE",
        ),
        ("no audience", token(json!({"aud": null})), "TOKEN_AUDIENCE"),
        (
            "another issuer",
            token(json!({"iss": "https://evil.example"})),
            "TOKEN_ISSUER",
        ),
        ("no issuer", token(json!({"iss": null})), "TOKEN_ISSUER"),
        (
            "expired",
            token(json!({"exp": now() - 60})),
            "TOKEN_EXPIRED",
        ),
        ("no exp", token(json!({"exp": null})), "TOKEN_CLAIMS"),
        (
            "exp as text",
            token(json!({"exp": "4102444800"})),
            "TOKEN_CLAIMS",
        ),
        (
            "not yet valid",
            token(json!({"nbf": now() + 60})),
            "TOKEN_NOT_YET_VALID",
        ),
        (
            "issued tomorrow",
            token(json!({"iat": now() + 86_400})),
            "TOKEN_NOT_YET_VALID",
        ),
        (
            "a kid that is a path",
            injected("../../../../dev/null"),
            "TOKEN_KEY_UNKNOWN",
        ),
        (
            "a kid that is SQL",
            injected("x' UNION SELECT 'key"),
            "TOKEN_KEY_UNKNOWN",
        ),
        (
            "a kid with a line's end",
            injected("k\nINFO all is well"),
            "TOKEN_KEY_UNKNOWN",
        ),
        (
            "a claim twice",
            key.sign(&header, &twice),
            "TOKEN_MALFORMED",
        ),
        (
            "a header twice",
            key.sign(&twice_in_header, &claims().to_string()),
            "TOKEN_MALFORMED",
        ),
        (
            "huge",
            token(json!({"x": "x".repeat(1_000_000)})),
            "TOKEN_TOO_LARGE",
        ),
        ("deep", key.sign(&header, &deep), "TOKEN_MALFORMED"),
        (
            "crit",
            key.sign(&critical, &claims().to_string()),
            "TOKEN_MALFORMED",
        ),
        (
            "another kind of token",
            key.sign(&logout, &claims().to_string()),
            "TOKEN_TYPE",
        ),
        (
            "a claim of the wrong kind",
            token(json!({"department": 7})),
            "TOKEN_CLAIMS",
        ),
        ("revoked", token(json!({"jti": "revoked"})), "TOKEN_REVOKED"),
        (
            "a revoked subject",
            token(json!({"sub": "mallory"})),
            "TOKEN_REVOKED",
        ),
        ("nothing", String::new(), "TOKEN_MALFORMED"),
        ("no token", "alice".to_owned(), "TOKEN_MALFORMED"),
    ]
}

fn start_service(key: &Signer, rsa: &Signer) -> TokenService {
    let list = format!(
        "[[revoked]]\njti = \"revoked\"\n[[revoked]]\nissuer = \"{}\"\nsub = \"mallory\"\n",
        super::setup::ISSUER
    );
    let options = TokenOptions {
        revocations: Some(&list),
        ..TokenOptions::default()
    };
    TokenService::start_with(&[key, rsa], &options)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_is_rejected_for_its_own_reason() {
    let (key, rsa) = (es256("k"), Signer::new("r", Algorithm::RS256));
    let service = start_service(&key, &rsa);
    for good in [key.token(&claims()), rsa.token(&claims())] {
        assert!(service.is_allowed(&good, "read").await.unwrap());
    }
    let attacks = attacks(&key, &rsa, &es256("k"));
    for (attack, token, wanted) in &attacks {
        assert_eq!(&service.rejection_reason(token).await, wanted, "{attack}");
    }
    // No attack was cached, and valid tokens are still accepted.
    assert!(
        service
            .is_allowed(&key.token(&claims()), "read")
            .await
            .unwrap()
    );
    let log = service.server.log();
    for (attack, token, _) in &attacks {
        let claims = token.split('.').nth(1).unwrap_or_default();
        assert!(
            claims.is_empty() || !log.contains(claims),
            "{attack} is in the log"
        );
    }
    assert!(!log.contains("all is well"));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_and_streams_reject_bad_tokens() {
    // Other items are answered.
    let (key, rsa) = (es256("k"), Signer::new("r", Algorithm::RS256));
    let service = start_service(&key, &rsa);
    let good = key.token(&claims());
    let attacks = attacks(&key, &rsa, &es256("k"));
    // A valid token before, between and after them.
    let tokens: Vec<&str> = attacks
        .iter()
        .flat_map(|(_, token, _)| [good.as_str(), token])
        .chain([good.as_str()])
        .collect();
    let wanted: Vec<Option<&str>> = attacks
        .iter()
        .flat_map(|(_, _, reason)| [None, Some(*reason)])
        .chain([None])
        .collect();
    let requests: Vec<_> = tokens.iter().map(|token| request(token, "read")).collect();
    let mut client = service.client().await;

    let batch = pb::BatchAuthorizeRequest {
        requests: requests.clone(),
    };
    let answered = client.batch_authorize(batch).await.unwrap().into_inner();
    let reasons: Vec<Option<String>> = answered
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            pb::batch_authorize_result::Result::Response(answer) => {
                assert_eq!(answer.decision(), pb::Decision::Allow);
                None
            }
            pb::batch_authorize_result::Result::Error(error) => Some(reason(&item_status(&error))),
        })
        .collect();
    assert_eq!(
        reasons.iter().map(Option::as_deref).collect::<Vec<_>>(),
        wanted
    );

    let items = (0..)
        .zip(requests)
        .map(|(correlation_id, request)| pb::StreamAuthorizeRequest {
            correlation_id,
            request: Some(request),
        });
    let items: Vec<_> = items.collect();
    let mut answers = client
        .stream_authorize(iter(items))
        .await
        .unwrap()
        .into_inner();
    let mut reasons = vec![None; wanted.len()];
    while let Some(answer) = answers.message().await.unwrap() {
        if let pb::stream_authorize_response::Result::Error(error) = answer.result.unwrap() {
            reasons[usize::try_from(answer.correlation_id).unwrap()] =
                Some(reason(&item_status(&error)));
        }
    }
    assert_eq!(
        reasons.iter().map(Option::as_deref).collect::<Vec<_>>(),
        wanted
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_rejected_without_issuers_file() {
    let policies =
        crate::support::policy_directory(&[("a.cedar", "permit(principal, action, resource);")]);
    let server = crate::support::Server::start(
        policies.path(),
        &["--anonymous-principal", "User::\"nobody\""],
    );
    let mut client = server.authorization().await;
    for token in ["", "x.y.z", &es256("k").token(&claims())] {
        let rejected = client.authorize(request(token, "read")).await.unwrap_err();
        assert_eq!(reason(&rejected), "TOKENS_NOT_CONFIGURED");
    }
}
