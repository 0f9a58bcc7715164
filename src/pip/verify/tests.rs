//! Every rule that a token must meet, one by one, at a moment that the test chooses.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::*;
use crate::pdp::query::Value as CedarValue;
use crate::pip::issuers::Issuers;
use crate::pip::slot;
use cedar_pdp_test_support::signer::{Signer, encoded, jwks};

/// When all this happens, in seconds.
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

/// Made once: RSA keys take long.
static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    es256: Signer::new("es", Algorithm::ES256),
    rs256: Signer::new("rs", Algorithm::RS256),
    eddsa: Signer::new("ed", Algorithm::EdDSA),
    stranger: Signer::new("es", Algorithm::ES256),
});

struct House {
    tokens: Tokens,
    keys: slot::Writer<KeySet>,
    revocations: slot::Writer<Revocations>,
}

fn house_with(issuers: &str, capacity: Option<u64>) -> House {
    let rules = Issuers::parse(issuers, Path::new("")).unwrap().0.remove(0);
    let all = jwks(&[&KEYS.es256, &KEYS.rs256, &KEYS.eddsa]);
    let set = KeySet::from_jwks(all.as_bytes(), &rules.algorithms).unwrap();
    let (keys, keys_reader) = slot::slot(Some(set));
    let (revocations, revocations_reader) = slot::slot(Some(Revocations::default()));
    let tokens = Tokens {
        max_bytes: rules.max_bytes,
        issuers: vec![Issuer {
            name: rules.name.as_str().into(),
            rules,
            keys: keys_reader,
            fetches: None,
            counters: Arc::default(),
        }],
        revocations: revocations_reader,
        remembered: remembered(capacity.and_then(NonZeroU64::new)),
        counters: Arc::default(),
    };
    House {
        tokens,
        keys,
        revocations,
    }
}

fn house() -> House {
    house_with(ISSUERS, Some(1 << 20))
}

fn claims() -> Value {
    json!({
        "iss": "https://id.example", "aud": "pdp", "sub": "alice", "jti": "1",
        "iat": NOW - 60, "nbf": NOW - 60, "exp": NOW + 600, "department": "finance",
    })
}

/// The usual claims with `name` set to `value`, or left out where it is null.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().unwrap();
    match value.is_null() {
        true => members.remove(name),
        false => members.insert(name.to_owned(), value),
    };
    claims
}

impl House {
    fn verify_at(&self, token: &str, seconds: i64) -> Result<Arc<Identified>, Reason> {
        let now = Moment::of_seconds(seconds).unwrap();
        match self.tokens.verify(token, now, Patience::Waits) {
            Verdict::Identified(identified) => Ok(identified),
            Verdict::Refused(refusal) => {
                let signature = token.rsplit('.').next().unwrap();
                assert!(
                    signature.len() < 8 || !refusal.to_string().contains(signature),
                    "{refusal}"
                );
                Err(refusal.reason)
            }
            Verdict::Wait(_) => panic!("there is nothing to wait for"),
        }
    }

    fn verify(&self, token: &str) -> Result<Arc<Identified>, Reason> {
        self.verify_at(token, NOW)
    }

    /// Checks that a token of these claims is refused for this reason, each time it comes.
    #[track_caller]
    fn refuses(&self, claims: &Value, reason: Reason) {
        let token = KEYS.es256.token(claims);
        for _ in 0..2 {
            assert_eq!(self.verify(&token), Err(reason), "{claims}");
        }
    }

    #[track_caller]
    fn takes(&self, claims: &Value) {
        let taken = self.verify(&KEYS.es256.token(claims));
        assert!(taken.is_ok(), "{claims}: {taken:?}");
    }
}

#[test]
fn a_good_token_names_its_principal_whatever_it_is_signed_by() {
    let house = house();
    let claims = with("realm_access", json!({"roles": ["approver"]}));
    for signer in [&KEYS.es256, &KEYS.rs256, &KEYS.eddsa] {
        let identified = house.verify(&signer.token(&claims)).unwrap();
        assert_eq!(identified.principal, Uid::new("User", "alice"));
        assert_eq!(identified.claimed.parents, [Uid::new("Role", "approver")]);
        let department = CedarValue::String("finance".to_owned());
        assert_eq!(
            identified.claimed.attributes.iter().collect::<Vec<_>>(),
            [("department", &department)]
        );
    }
}

#[test]
fn a_token_without_a_signature_is_refused() {
    let house = house();
    for alg in ["none", "None", "nOnE"] {
        let header = json!({"alg": alg, "typ": "JWT"}).to_string();
        let body = claims().to_string();
        let unsigned = format!(
            "{}.{}.",
            encoded(header.as_bytes()),
            encoded(body.as_bytes())
        );
        assert_eq!(house.verify(&unsigned), Err(Reason::Algorithm));
    }
    let token = KEYS.es256.token(&claims());
    let (signed, _) = token.rsplit_once('.').unwrap();
    assert_eq!(house.verify(&format!("{signed}.")), Err(Reason::Signature));
}

#[test]
fn a_public_key_is_no_secret() {
    let house = house();
    let key = &KEYS.rs256;
    let header = json!({"alg": "HS256", "kid": key.kid, "typ": "JWT"}).to_string();
    for secret in [
        key.jwk().to_string(),
        key.jwk()["n"].as_str().unwrap().to_owned(),
        jwks(&[key]),
    ] {
        let forged = Signer::secret(secret.as_bytes()).sign(&header, &claims().to_string());
        assert_eq!(house.verify(&forged), Err(Reason::Algorithm));
    }
}

#[test]
fn a_key_verifies_only_what_it_is_for() {
    let house = house();
    // The name of one key with the algorithm of another.
    let header = json!({"alg": "ES256", "kid": "rs"}).to_string();
    let forged = KEYS.es256.sign(&header, &claims().to_string());
    assert_eq!(house.verify(&forged), Err(Reason::KeyUnknown));
    // An algorithm that the key could do and the issuer may not use.
    let header = json!({"alg": "PS256", "kid": "rs"}).to_string();
    let forged = KEYS.rs256.sign(&header, &claims().to_string());
    assert_eq!(house.verify(&forged), Err(Reason::Algorithm));
}

#[test]
fn a_signature_of_another_key_or_over_another_text_is_refused() {
    let house = house();
    assert_eq!(
        house.verify(&KEYS.stranger.token(&claims())),
        Err(Reason::Signature)
    );
    let token = KEYS.es256.token(&claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let other = with("sub", json!("root")).to_string();
    let forged = format!("{header}.{}.{signature}", encoded(other.as_bytes()));
    assert_eq!(house.verify(&forged), Err(Reason::Signature));
}

#[test]
fn a_kid_leads_nowhere_but_into_the_set() {
    let house = house();
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
        assert_eq!(house.verify(&token), Err(Reason::KeyUnknown), "{kid}");
    }
}

#[test]
fn keys_that_a_token_brings_or_points_to_are_not_looked_at() {
    let house = house();
    let own = KEYS.stranger.jwk();
    let mut header = KEYS.stranger.header();
    header["jwk"] = own.clone();
    header["jku"] = json!("https://evil.example/jwks");
    header["x5u"] = json!("https://evil.example/chain");
    header["x5c"] = json!(["MIIB"]);
    let forged = KEYS
        .stranger
        .sign(&header.to_string(), &claims().to_string());
    assert_eq!(house.verify(&forged), Err(Reason::Signature));
    header["crit"] = json!(["jwk"]);
    let forged = KEYS.es256.sign(&header.to_string(), &claims().to_string());
    assert_eq!(house.verify(&forged), Err(Reason::Malformed));
}

#[test]
fn issuer_and_audience_must_be_the_ones_that_were_meant() {
    let house = house();
    for issuer in [
        json!("https://evil.example"),
        json!("https://id.example/"),
        json!(7),
        Value::Null,
    ] {
        house.refuses(&with("iss", issuer), Reason::Issuer);
    }
    for audience in [
        json!("other"),
        json!("PDP"),
        json!(["other"]),
        json!([]),
        json!({"pdp": 1}),
        Value::Null,
    ] {
        house.refuses(&with("aud", audience), Reason::Audience);
    }
    house.takes(&with("aud", json!(["other", "pdp-old"])));
}

#[test]
fn time_is_looked_at_with_leeway_and_no_further() {
    let house = house();
    house.takes(&with("exp", json!(NOW - 29)));
    house.refuses(&with("exp", json!(NOW - 30)), Reason::Expired);
    house.refuses(&with("exp", json!(0)), Reason::Expired);
    house.takes(&with("nbf", json!(NOW + 30)));
    house.refuses(&with("nbf", json!(NOW + 31)), Reason::NotYetValid);
    house.takes(&with("iat", json!(NOW + 30)));
    house.refuses(&with("iat", json!(NOW + 31)), Reason::NotYetValid);
    house.takes(&with("iat", json!(NOW - 3_600 - 29)));
    house.refuses(&with("iat", json!(NOW - 3_600 - 30)), Reason::TooOld);
    for claim in ["exp", "iat", "nbf"] {
        for value in [
            json!("1800000000"),
            json!(-1),
            json!(1e300),
            json!([]),
            json!(true),
        ] {
            house.refuses(&with(claim, value), Reason::Claims);
        }
    }
    house.refuses(&with("exp", Value::Null), Reason::Claims);
    house.refuses(&with("iat", Value::Null), Reason::Claims);
    house.takes(&with("nbf", Value::Null));
}

#[test]
fn a_token_that_is_remembered_expires_all_the_same() {
    let house = house();
    let token = KEYS.es256.token(&claims());
    assert!(house.verify(&token).is_ok());
    assert_eq!(house.verify_at(&token, NOW + 629).map(|_| ()), Ok(()));
    assert_eq!(house.verify_at(&token, NOW + 630), Err(Reason::Expired));
    assert_eq!(house.verify_at(&token, NOW - 91), Err(Reason::NotYetValid));
    assert_eq!(house.tokens.figures().verified, 1);
    assert_eq!(house.tokens.figures().remembered, 1);
}

#[test]
fn a_token_that_is_remembered_goes_with_its_key() {
    let house = house();
    let token = KEYS.es256.token(&claims());
    assert!(house.verify(&token).is_ok());
    let others = jwks(&[&KEYS.rs256]);
    house
        .keys
        .put(KeySet::from_jwks(others.as_bytes(), &[Algorithm::RS256]).unwrap());
    assert_eq!(house.verify(&token), Err(Reason::KeyUnknown));
}

#[test]
fn a_token_that_is_remembered_is_revoked_all_the_same() {
    for revoked in [
        r#"{"jti": "1"}"#,
        r#"{"kid": "es"}"#,
        r#"{"sub": "alice", "issuer": "https://id.example"}"#,
    ] {
        let house = house();
        let token = KEYS.es256.token(&claims());
        assert!(house.verify(&token).is_ok());
        let list = format!(r#"{{"revoked": [{revoked}]}}"#);
        house
            .revocations
            .put(Revocations::parse(list.as_bytes()).unwrap());
        assert_eq!(house.verify(&token), Err(Reason::Revoked), "{revoked}");
        house.revocations.put(Revocations::default());
        assert!(house.verify(&token).is_ok(), "{revoked}");
    }
}

#[test]
fn a_key_that_is_revoked_is_so_for_tokens_that_do_not_name_it() {
    let house = house();
    let header = json!({"alg": "ES256"}).to_string();
    let token = KEYS.es256.sign(&header, &claims().to_string());
    assert!(house.verify(&token).is_ok());
    let list = br#"{"revoked": [{"kid": "es"}]}"#;
    house.revocations.put(Revocations::parse(list).unwrap());
    assert_eq!(house.verify(&token), Err(Reason::Revoked));
}

#[test]
fn a_secret_is_revoked_by_the_name_that_its_tokens_give_it() {
    let issuers = ISSUERS
        .replace(r#"["ES256", "RS256", "EdDSA"]"#, r#"["HS256"]"#)
        .replace("keys_file", "secret_file");
    let house = house_with(&issuers, None);
    let secret = [7_u8; 32];
    let set = KeySet::from_secret(&secret, &[Algorithm::HS256]).unwrap();
    house.keys.put(set);
    let header = json!({"alg": "HS256", "kid": "shared"}).to_string();
    let token = Signer::secret(&secret).sign(&header, &claims().to_string());
    assert!(house.verify(&token).is_ok());
    let list = br#"{"revoked": [{"kid": "shared"}]}"#;
    house.revocations.put(Revocations::parse(list).unwrap());
    assert_eq!(house.verify(&token), Err(Reason::Revoked));
}

#[test]
fn a_subject_is_revoked_by_whichever_name_makes_it_the_principal() {
    let issuers = ISSUERS.replace(
        "type = \"User\"",
        "type = \"User\"\nid = \"email\"\nid_prefix = \"x:\"",
    );
    let house = house_with(&issuers, Some(1 << 20));
    let token = KEYS.es256.token(&with("email", json!("alice@example.com")));
    for (sub, is_revoked) in [
        ("alice@example.com", true),
        ("alice", true),
        ("x:alice@example.com", false),
        ("bob", false),
    ] {
        let list =
            format!(r#"{{"revoked": [{{"sub": "{sub}", "issuer": "https://id.example"}}]}}"#);
        house
            .revocations
            .put(Revocations::parse(list.as_bytes()).unwrap());
        let refused = house.verify(&token).map(|_| ()).err();
        assert_eq!(refused == Some(Reason::Revoked), is_revoked, "{sub}");
    }
}

#[test]
fn a_signature_that_does_not_fit_has_the_keys_fetched_and_does_not_wait() {
    use crate::pip::issuers::UrlSource;
    use crate::pip::keys::refresh;
    let mut house = house();
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
    let (writer, _) = slot::slot(None);
    let (_refresher, fetches) =
        refresh::refresher("i".into(), source, vec![], writer, Arc::default());
    house.tokens.issuers[0].fetches = Some(fetches);
    // `verify` fails where there is something to wait for.
    let stranger = KEYS.stranger.token(&claims());
    assert_eq!(house.verify(&stranger), Err(Reason::Signature));
    let fetches = house.tokens.issuers[0].fetches.as_ref().unwrap();
    assert!(fetches.is_asked(), "no fetch was asked for");
}

#[test]
fn a_token_that_too_many_keys_fit_is_refused_at_once() {
    let mut house = house();
    let signers: Vec<Signer> = (0..5)
        .map(|n| Signer::new(&n.to_string(), Algorithm::ES256))
        .collect();
    let many = jwks(&signers.iter().collect::<Vec<_>>());
    let set = KeySet::from_jwks(many.as_bytes(), &[Algorithm::ES256]).unwrap();
    house.keys.put(set);
    house.tokens.issuers[0].fetches = None;
    let header = json!({"alg": "ES256"}).to_string();
    let token = signers[0].sign(&header, &claims().to_string());
    assert_eq!(house.verify(&token), Err(Reason::KeyUnknown));
    assert!(house.verify(&signers[0].token(&claims())).is_ok());
}

#[test]
fn a_token_is_of_a_kind_that_is_taken() {
    let typed = |house: &House, typ: Value| {
        let mut header = KEYS.es256.header();
        header["typ"] = typ;
        if header["typ"].is_null() {
            header.as_object_mut().unwrap().remove("typ");
        }
        let token = KEYS.es256.sign(&header.to_string(), &claims().to_string());
        house.verify(&token).map(|_| ())
    };
    let any = house();
    for typ in [
        json!("JWT"),
        json!("at+jwt"),
        json!("application/at+JWT"),
        Value::Null,
    ] {
        assert_eq!(typed(&any, typ.clone()), Ok(()), "{typ}");
    }
    for typ in [
        json!("logout+jwt"),
        json!("secevent+jwt"),
        json!("dpop+jwt"),
        json!(""),
    ] {
        assert_eq!(typed(&any, typ.clone()), Err(Reason::Type), "{typ}");
    }
    let strict = ISSUERS.replace("leeway", "types = [\"at+jwt\"]\nleeway");
    let strict = house_with(&strict, None);
    assert_eq!(typed(&strict, json!("AT+JWT")), Ok(()));
    for typ in [json!("JWT"), Value::Null] {
        assert_eq!(typed(&strict, typ.clone()), Err(Reason::Type), "{typ}");
    }
}

#[test]
fn what_is_large_deep_or_said_twice_is_refused_before_anything_is_believed() {
    let house = house();
    house.refuses(&with("x", json!("x".repeat(4_096))), Reason::TooLarge);
    assert_eq!(house.verify(&"x".repeat(10 << 20)), Err(Reason::TooLarge));
    let deep = (0..20).fold(json!(1), |inner, _| json!([inner]));
    house.refuses(&with("x", deep), Reason::Malformed);
    let twice = claims()
        .to_string()
        .replace(r#""sub":"#, r#""sub":"root","sub":"#);
    let token = KEYS.es256.sign(&KEYS.es256.header().to_string(), &twice);
    assert_eq!(house.verify(&token), Err(Reason::Malformed));
    for text in ["", ".", "..", "a.b.c", "Bearer a.b.c"] {
        assert_eq!(house.verify(text), Err(Reason::Malformed), "{text}");
    }
}

#[test]
fn claims_that_the_mapping_needs_must_be_there() {
    let house = house();
    house.refuses(&with("department", Value::Null), Reason::Claims);
    house.refuses(&with("department", json!(7)), Reason::Claims);
    house.refuses(&with("sub", Value::Null), Reason::Claims);
    house.refuses(&with("sub", json!(["alice"])), Reason::Claims);
    house.refuses(&with("jti", json!(1)), Reason::Claims);
}

#[test]
fn refusals_are_counted_by_reason() {
    let house = house();
    house.refuses(&with("aud", json!("other")), Reason::Audience);
    let count = |reason: Reason| {
        let figures = house.tokens.figures().refused;
        figures.iter().find(|(of, _)| *of == reason).unwrap().1
    };
    assert_eq!(count(Reason::Audience), 2);
    assert_eq!(count(Reason::Expired), 0);
}
