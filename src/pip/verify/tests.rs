//! The rules that a token must meet, one by one, at a fixed time.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::*;
use crate::pdp::query::Value as CedarValue;
use crate::pip::issuers::Issuers;
use crate::pip::keys::KeySet;
use cedar_pdp_test_support::signer::{Signer, encoded, jwks};

/// The time of verification, in seconds.
const NOW: i64 = 1_800_000_000;

const ISSUERS: &str = r#"
[[issuer]]
issuer = "https://id.example"
audiences = ["pdp", "pdp-old"]
algorithms = ["ES256", "RS256", "EdDSA"]
keys_file = "unused"
leeway = "30s"
max_age = "1h"
max_bytes = 4096
[issuer.principal]
type = "User"
[issuer.principal.attributes]
department = "string"
[[issuer.principal.parents]]
claim = "realm_access.roles"
type = "Role"
optional = true
"#;

struct Keys {
    es256: Signer,
    rs256: Signer,
    eddsa: Signer,
    stranger: Signer,
}

/// Created once, since RSA keys take long.
static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    es256: Signer::new("es", Algorithm::ES256),
    rs256: Signer::new("rs", Algorithm::RS256),
    eddsa: Signer::new("ed", Algorithm::EdDSA),
    stranger: Signer::new("es", Algorithm::ES256),
});

struct Fixture {
    tokens: Tokens,
    keys: Arc<Versioned<Option<KeySet>>>,
    revocations: Arc<Versioned<Revocations>>,
}

fn fixture_with(issuers: &str, cache_bytes: Option<u64>) -> Fixture {
    let rules = Issuers::parse(issuers, Path::new("")).unwrap().0.remove(0);
    let all = jwks(&[&KEYS.es256, &KEYS.rs256, &KEYS.eddsa]);
    let set = KeySet::from_jwks(all.as_bytes(), &rules.algorithms).unwrap();
    let keys = Arc::new(Versioned::new(Some(set)));
    let revocations = Arc::<Versioned<Revocations>>::default();
    let tokens = Tokens {
        max_bytes: rules.max_bytes,
        issuers: vec![Issuer {
            name: rules.name.as_str().into(),
            rules,
            keys: Arc::clone(&keys),
            fetches: None,
            counters: Arc::default(),
        }],
        revocations: Arc::clone(&revocations),
        cache: cache_bytes
            .and_then(NonZeroU64::new)
            .map(|bytes| TokenCache::new(bytes, VerifiedToken::heap_size)),
        counters: Arc::default(),
    };
    Fixture {
        tokens,
        keys,
        revocations,
    }
}

fn fixture() -> Fixture {
    fixture_with(ISSUERS, Some(1 << 20))
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example", "aud": "pdp", "sub": "alice", "jti": "1",
        "iat": NOW - 60, "nbf": NOW - 60, "exp": NOW + 600, "department": "finance",
    })
}

/// Returns the usual claims with `name` set to `value`, or removed if it is null.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().unwrap();
    match value.is_null() {
        true => members.remove(name),
        false => members.insert(name.to_owned(), value),
    };
    claims
}

impl Fixture {
    fn verify_at(&self, token: &str, seconds: i64) -> Result<Arc<TokenIdentity>, RejectionReason> {
        let now = NumericDate::from_seconds(seconds).unwrap();
        match self.tokens.verify(token, now, KeyMiss::Wait) {
            Ok(identity) => Ok(identity),
            Err(VerifyError::Rejected(rejection)) => {
                let signature = token.rsplit('.').next().unwrap();
                assert!(
                    signature.len() < 8 || !rejection.to_string().contains(signature),
                    "{rejection}"
                );
                Err(rejection.reason)
            }
            Err(VerifyError::WaitForKey(_)) => panic!("no fetch to wait for"),
        }
    }

    fn verify(&self, token: &str) -> Result<Arc<TokenIdentity>, RejectionReason> {
        self.verify_at(token, NOW)
    }

    /// Checks that a token with these claims is rejected each time.
    #[track_caller]
    fn check_rejected(&self, claims: &Value, reason: RejectionReason) {
        let token = KEYS.es256.token(claims);
        for _ in 0..2 {
            assert_eq!(self.verify(&token), Err(reason), "{claims}");
        }
    }

    #[track_caller]
    fn check_accepted(&self, claims: &Value) {
        let verified = self.verify(&KEYS.es256.token(claims));
        assert!(verified.is_ok(), "{claims}: {verified:?}");
    }
}

#[test]
fn valid_token_names_its_principal() {
    let fixture = fixture();
    let claims = with("realm_access", json!({"roles": ["approver"]}));
    for signer in [&KEYS.es256, &KEYS.rs256, &KEYS.eddsa] {
        let identity = fixture.verify(&signer.token(&claims)).unwrap();
        assert_eq!(identity.principal, Uid::new("User", "alice"));
        assert_eq!(identity.claimed.parents, [Uid::new("Role", "approver")]);
        let department = CedarValue::String("finance".to_owned());
        assert_eq!(
            identity.claimed.attributes.iter().collect::<Vec<_>>(),
            [("department", &department)]
        );
    }
}

#[test]
fn unsigned_token_is_rejected() {
    let fixture = fixture();
    for alg in ["none", "None", "nOnE"] {
        let header = json!({"alg": alg, "typ": "JWT"}).to_string();
        let body = claims().to_string();
        let unsigned = format!(
            "{}.{}.",
            encoded(header.as_bytes()),
            encoded(body.as_bytes())
        );
        assert_eq!(fixture.verify(&unsigned), Err(RejectionReason::Algorithm));
    }
    let token = KEYS.es256.token(&claims());
    let (signed, _) = token.rsplit_once('.').unwrap();
    assert_eq!(
        fixture.verify(&format!("{signed}.")),
        Err(RejectionReason::Signature)
    );
}

#[test]
fn public_key_is_not_accepted_as_secret() {
    let fixture = fixture();
    let key = &KEYS.rs256;
    let header = json!({"alg": "HS256", "kid": key.kid, "typ": "JWT"}).to_string();
    for secret in [
        key.jwk().to_string(),
        key.jwk()["n"].as_str().unwrap().to_owned(),
        jwks(&[key]),
    ] {
        let forged = Signer::secret(secret.as_bytes()).sign(&header, &claims().to_string());
        assert_eq!(fixture.verify(&forged), Err(RejectionReason::Algorithm));
    }
}

#[test]
fn key_verifies_its_own_algorithm_only() {
    let fixture = fixture();
    // The id of one key with the algorithm of another.
    let header = json!({"alg": "ES256", "kid": "rs"}).to_string();
    let forged = KEYS.es256.sign(&header, &claims().to_string());
    assert_eq!(fixture.verify(&forged), Err(RejectionReason::KeyUnknown));
    // The key supports the algorithm, but the issuer may not use it.
    let header = json!({"alg": "PS256", "kid": "rs"}).to_string();
    let forged = KEYS.rs256.sign(&header, &claims().to_string());
    assert_eq!(fixture.verify(&forged), Err(RejectionReason::Algorithm));
}

#[test]
fn signature_must_match_key_and_text() {
    let fixture = fixture();
    assert_eq!(
        fixture.verify(&KEYS.stranger.token(&claims())),
        Err(RejectionReason::Signature)
    );
    let token = KEYS.es256.token(&claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let other = with("sub", json!("root")).to_string();
    let forged = format!("{header}.{}.{signature}", encoded(other.as_bytes()));
    assert_eq!(fixture.verify(&forged), Err(RejectionReason::Signature));
}

#[test]
fn kid_is_only_looked_up_in_the_set() {
    let fixture = fixture();
    for kid in [
        "../../../../dev/null",
        "' OR 1=1 --",
        "https://evil.example/jwks",
        "es\u{0}",
        "ES",
        "",
        &"k".repeat(1_000),
    ] {
        let header = json!({"alg": "ES256", "kid": kid}).to_string();
        let token = KEYS.es256.sign(&header, &claims().to_string());
        assert_eq!(
            fixture.verify(&token),
            Err(RejectionReason::KeyUnknown),
            "{kid}"
        );
    }
}

#[test]
fn keys_inside_a_token_are_ignored() {
    let fixture = fixture();
    let own = KEYS.stranger.jwk();
    let mut header = KEYS.stranger.header();
    header["jwk"] = own.clone();
    header["jku"] = json!("https://evil.example/jwks");
    header["x5u"] = json!("https://evil.example/chain");
    header["x5c"] = json!(["MIIB"]);
    let forged = KEYS
        .stranger
        .sign(&header.to_string(), &claims().to_string());
    assert_eq!(fixture.verify(&forged), Err(RejectionReason::Signature));
    header["crit"] = json!(["jwk"]);
    let forged = KEYS.es256.sign(&header.to_string(), &claims().to_string());
    assert_eq!(fixture.verify(&forged), Err(RejectionReason::Malformed));
}

#[test]
fn issuer_and_audience_must_match() {
    let fixture = fixture();
    for issuer in [
        json!("https://evil.example"),
        json!("https://id.example/"),
        json!(7),
        Value::Null,
    ] {
        fixture.check_rejected(&with("iss", issuer), RejectionReason::Issuer);
    }
    for audience in [
        json!("other"),
        json!("PDP"),
        json!(["other"]),
        json!([]),
        json!({"pdp": 1}),
        Value::Null,
    ] {
        fixture.check_rejected(&with("aud", audience), RejectionReason::Audience);
    }
    fixture.check_accepted(&with("aud", json!(["other", "pdp-old"])));
}

#[test]
fn time_is_checked_with_leeway() {
    let fixture = fixture();
    fixture.check_accepted(&with("exp", json!(NOW - 29)));
    fixture.check_rejected(&with("exp", json!(NOW - 30)), RejectionReason::Expired);
    fixture.check_rejected(&with("exp", json!(0)), RejectionReason::Expired);
    fixture.check_accepted(&with("nbf", json!(NOW + 30)));
    fixture.check_rejected(&with("nbf", json!(NOW + 31)), RejectionReason::NotYetValid);
    fixture.check_accepted(&with("iat", json!(NOW + 30)));
    fixture.check_rejected(&with("iat", json!(NOW + 31)), RejectionReason::NotYetValid);
    fixture.check_accepted(&with("iat", json!(NOW - 3_600 - 29)));
    fixture.check_rejected(
        &with("iat", json!(NOW - 3_600 - 30)),
        RejectionReason::TooOld,
    );
    for claim in ["exp", "iat", "nbf"] {
        for value in [
            json!("1800000000"),
            json!(-1),
            json!(1e300),
            json!([]),
            json!(true),
        ] {
            fixture.check_rejected(&with(claim, value), RejectionReason::Claims);
        }
    }
    fixture.check_rejected(&with("exp", Value::Null), RejectionReason::Claims);
    fixture.check_rejected(&with("iat", Value::Null), RejectionReason::Claims);
    fixture.check_accepted(&with("nbf", Value::Null));
}

#[test]
fn cached_token_expires() {
    let fixture = fixture();
    let token = KEYS.es256.token(&claims());
    assert!(fixture.verify(&token).is_ok());
    assert_eq!(fixture.verify_at(&token, NOW + 629).map(|_| ()), Ok(()));
    assert_eq!(
        fixture.verify_at(&token, NOW + 630),
        Err(RejectionReason::Expired)
    );
    assert_eq!(
        fixture.verify_at(&token, NOW - 91),
        Err(RejectionReason::NotYetValid)
    );
    assert_eq!(fixture.tokens.metrics().verified, 1);
    assert_eq!(fixture.tokens.metrics().cached, 1);
}

#[test]
fn cached_token_needs_its_key() {
    let fixture = fixture();
    let token = KEYS.es256.token(&claims());
    assert!(fixture.verify(&token).is_ok());
    let others = jwks(&[&KEYS.rs256]);
    let others = KeySet::from_jwks(others.as_bytes(), &[Algorithm::RS256]).unwrap();
    fixture.keys.replace(Some(others));
    assert_eq!(fixture.verify(&token), Err(RejectionReason::KeyUnknown));
}

#[test]
fn cached_token_can_be_revoked() {
    for revoked in [
        r#"{"jti": "1"}"#,
        r#"{"kid": "es"}"#,
        r#"{"sub": "alice", "issuer": "https://id.example"}"#,
    ] {
        let fixture = fixture();
        let token = KEYS.es256.token(&claims());
        assert!(fixture.verify(&token).is_ok());
        let list = format!(r#"{{"revoked": [{revoked}]}}"#);
        fixture
            .revocations
            .replace(Revocations::parse(list.as_bytes()).unwrap());
        assert_eq!(
            fixture.verify(&token),
            Err(RejectionReason::Revoked),
            "{revoked}"
        );
        fixture.revocations.replace(Revocations::default());
        assert!(fixture.verify(&token).is_ok(), "{revoked}");
    }
}

#[test]
fn revoked_key_covers_tokens_without_kid() {
    let fixture = fixture();
    let header = json!({"alg": "ES256"}).to_string();
    let token = KEYS.es256.sign(&header, &claims().to_string());
    assert!(fixture.verify(&token).is_ok());
    let list = br#"{"revoked": [{"kid": "es"}]}"#;
    fixture
        .revocations
        .replace(Revocations::parse(list).unwrap());
    assert_eq!(fixture.verify(&token), Err(RejectionReason::Revoked));
}

#[test]
fn secret_is_revoked_by_its_tokens_kid() {
    let issuers = ISSUERS
        .replace(r#"["ES256", "RS256", "EdDSA"]"#, r#"["HS256"]"#)
        .replace("keys_file", "secret_file");
    let fixture = fixture_with(&issuers, None);
    let secret = [7_u8; 32];
    let set = KeySet::from_secret(&secret, &[Algorithm::HS256]).unwrap();
    fixture.keys.replace(Some(set));
    let header = json!({"alg": "HS256", "kid": "shared"}).to_string();
    let token = Signer::secret(&secret).sign(&header, &claims().to_string());
    assert!(fixture.verify(&token).is_ok());
    let list = br#"{"revoked": [{"kid": "shared"}]}"#;
    fixture
        .revocations
        .replace(Revocations::parse(list).unwrap());
    assert_eq!(fixture.verify(&token), Err(RejectionReason::Revoked));
}

#[test]
fn subject_is_revoked_by_sub_or_principal_id() {
    let issuers = ISSUERS.replace(
        "type = \"User\"",
        "type = \"User\"\nid = \"email\"\nid_prefix = \"x:\"",
    );
    let fixture = fixture_with(&issuers, Some(1 << 20));
    let token = KEYS.es256.token(&with("email", json!("alice@example.com")));
    for (sub, is_revoked) in [
        ("alice@example.com", true),
        ("alice", true),
        ("x:alice@example.com", false),
        ("bob", false),
    ] {
        let list =
            format!(r#"{{"revoked": [{{"sub": "{sub}", "issuer": "https://id.example"}}]}}"#);
        fixture
            .revocations
            .replace(Revocations::parse(list.as_bytes()).unwrap());
        let rejected = fixture.verify(&token).map(|_| ()).err();
        assert_eq!(
            rejected == Some(RejectionReason::Revoked),
            is_revoked,
            "{sub}"
        );
    }
}

#[test]
fn wrong_signature_requests_fetch_without_waiting() {
    use crate::pip::issuers::UrlSource;
    use crate::pip::keys::refresh::KeyRefresher;
    let mut fixture = fixture();
    let source = UrlSource {
        url: "http://127.0.0.1:0/jwks".to_owned(),
        ca_file: None,
        refresh_min: Duration::from_secs(60),
        refresh_max: Duration::from_secs(60),
        refetch_interval: Duration::from_secs(10),
        fetch_timeout: Duration::from_secs(1),
        key_wait: Duration::from_secs(1),
        max_stale: None,
    };
    let (_refresher, fetches) =
        KeyRefresher::new("i".into(), source, vec![], Arc::default(), Arc::default());
    fixture.tokens.issuers[0].fetches = Some(fetches);
    // `verify` panics if the token would wait for the fetch.
    let stranger = KEYS.stranger.token(&claims());
    assert_eq!(fixture.verify(&stranger), Err(RejectionReason::Signature));
    let fetches = fixture.tokens.issuers[0].fetches.as_ref().unwrap();
    assert!(fetches.is_requested(), "no fetch was requested");
}

#[test]
fn token_with_many_candidate_keys_is_rejected() {
    let mut fixture = fixture();
    let signers: Vec<Signer> = (0..5)
        .map(|n| Signer::new(&n.to_string(), Algorithm::ES256))
        .collect();
    let many = jwks(&signers.iter().collect::<Vec<_>>());
    let set = KeySet::from_jwks(many.as_bytes(), &[Algorithm::ES256]).unwrap();
    fixture.keys.replace(Some(set));
    fixture.tokens.issuers[0].fetches = None;
    let header = json!({"alg": "ES256"}).to_string();
    let token = signers[0].sign(&header, &claims().to_string());
    assert_eq!(fixture.verify(&token), Err(RejectionReason::KeyUnknown));
    assert!(fixture.verify(&signers[0].token(&claims())).is_ok());
}

#[test]
fn token_type_must_be_accepted() {
    let typed = |fixture: &Fixture, typ: Value| {
        let mut header = KEYS.es256.header();
        header["typ"] = typ;
        if header["typ"].is_null() {
            header.as_object_mut().unwrap().remove("typ");
        }
        let token = KEYS.es256.sign(&header.to_string(), &claims().to_string());
        fixture.verify(&token).map(|_| ())
    };
    let default = fixture();
    for typ in [
        json!("JWT"),
        json!("at+jwt"),
        json!("application/at+JWT"),
        Value::Null,
    ] {
        assert_eq!(typed(&default, typ.clone()), Ok(()), "{typ}");
    }
    for typ in [
        json!("logout+jwt"),
        json!("secevent+jwt"),
        json!("dpop+jwt"),
        json!(""),
    ] {
        assert_eq!(
            typed(&default, typ.clone()),
            Err(RejectionReason::Type),
            "{typ}"
        );
    }
    let strict = ISSUERS.replace("leeway", "types = [\"at+jwt\"]\nleeway");
    let strict = fixture_with(&strict, None);
    assert_eq!(typed(&strict, json!("AT+JWT")), Ok(()));
    for typ in [json!("JWT"), Value::Null] {
        assert_eq!(
            typed(&strict, typ.clone()),
            Err(RejectionReason::Type),
            "{typ}"
        );
    }
}

#[test]
fn large_or_malformed_token_is_rejected_first() {
    let fixture = fixture();
    fixture.check_rejected(
        &with("x", json!("x".repeat(4_096))),
        RejectionReason::TooLarge,
    );
    assert_eq!(
        fixture.verify(&"x".repeat(10 << 20)),
        Err(RejectionReason::TooLarge)
    );
    let deep = (0..20).fold(json!(1), |inner, _| json!([inner]));
    fixture.check_rejected(&with("x", deep), RejectionReason::Malformed);
    let twice = claims()
        .to_string()
        .replace(r#""sub":"#, r#""sub":"root","sub":"#);
    let token = KEYS.es256.sign(&KEYS.es256.header().to_string(), &twice);
    assert_eq!(fixture.verify(&token), Err(RejectionReason::Malformed));
    for text in ["", ".", "..", "a.b.c", "Bearer a.b.c"] {
        assert_eq!(
            fixture.verify(text),
            Err(RejectionReason::Malformed),
            "{text}"
        );
    }
}

#[test]
fn claims_of_the_mapping_are_required() {
    let fixture = fixture();
    fixture.check_rejected(&with("department", Value::Null), RejectionReason::Claims);
    fixture.check_rejected(&with("department", json!(7)), RejectionReason::Claims);
    fixture.check_rejected(&with("sub", Value::Null), RejectionReason::Claims);
    fixture.check_rejected(&with("sub", json!(["alice"])), RejectionReason::Claims);
    fixture.check_rejected(&with("jti", json!(1)), RejectionReason::Claims);
}

#[test]
fn rejections_are_counted_by_reason() {
    let fixture = fixture();
    fixture.check_rejected(&with("aud", json!("other")), RejectionReason::Audience);
    let count = |reason: RejectionReason| {
        let rejected = fixture.tokens.metrics().rejected;
        rejected
            .iter()
            .find(|(counted, _)| *counted == reason)
            .unwrap()
            .1
    };
    assert_eq!(count(RejectionReason::Audience), 2);
    assert_eq!(count(RejectionReason::Expired), 0);
}
