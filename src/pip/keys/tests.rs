//! The keys that are used of a set, and their uses.

use super::*;

const EC: &str = r#""kty": "EC", "crv": "P-256",
    "x": "WKn-ZIGevcwGIyyrzFoZNBdaq9_TsqzGl96oc0CWuis",
    "y": "y77t-RvAHRKTsSGdIYUfweuOvwrvDD-Q3Hv5J0fSKbE""#;

const ALL: [Algorithm; 4] = [
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::RS256,
    Algorithm::EdDSA,
];

fn set(keys: &[String]) -> Result<KeySet, KeySetError> {
    let text = format!(r#"{{"keys": [{}]}}"#, keys.join(","));
    KeySet::from_jwks(text.as_bytes(), &ALL)
}

/// Returns the number of keys that would be tried.
fn candidates(
    set: &KeySet,
    kid: Option<&str>,
    algorithm: Algorithm,
) -> Result<usize, TooManyCandidates> {
    set.candidates(kid, algorithm).map(|keys| keys.len())
}

fn ec(more: &str) -> String {
    format!("{{{EC}, {more}}}")
}

#[test]
fn key_is_used_for_its_purpose_only() {
    for members in [
        r#""kid": "k""#,
        r#""kid": "k", "use": "sig""#,
        r#""kid": "k", "key_ops": ["verify"]"#,
        r#""kid": "k", "alg": "ES256""#,
    ] {
        let set = set(&[ec(members)]).unwrap();
        assert_eq!(
            candidates(&set, Some("k"), Algorithm::ES256),
            Ok(1),
            "{members}"
        );
        for other in [Algorithm::ES384, Algorithm::RS256, Algorithm::HS256] {
            assert_eq!(candidates(&set, Some("k"), other), Ok(0), "{members}");
        }
    }
    for members in [
        r#""use": "enc""#,
        r#""key_ops": ["encrypt", "wrapKey"]"#,
        r#""use": "sig", "key_ops": ["sign"]"#,
        r#""alg": "ES384""#,
        r#""alg": "ECDH-ES""#,
        r#""alg": "none""#,
    ] {
        assert_eq!(set(&[ec(members)]).unwrap().len(), 0, "{members}");
    }
}

#[test]
fn unusable_keys_are_skipped() {
    let keys = [
        r#"{"kty": "oct", "kid": "secret", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}"#
            .to_owned(),
        r#"{"kty": "new", "kid": "new"}"#.to_owned(),
        r#"{"kty": "RSA", "kid": "weak", "n": "AQAB", "e": "AQAB"}"#.to_owned(),
        r#"{"kty": "EC", "crv": "P-256", "kid": "short", "x": "AQAB", "y": "AQAB"}"#.to_owned(),
        r#"{"kty": 1}"#.to_owned(),
        "1".to_owned(),
        ec(r#""kid": "good""#),
    ];
    let set = set(&keys).unwrap();
    assert_eq!(set.len(), 1);
    assert_eq!(candidates(&set, Some("secret"), Algorithm::HS256), Ok(0));
}

#[test]
fn token_is_verified_by_the_key_it_names() {
    let set = set(&[ec(r#""kid": "a""#), ec(r#""use": "sig""#)]).unwrap();
    assert_eq!(candidates(&set, Some("a"), Algorithm::ES256), Ok(1));
    assert_eq!(candidates(&set, Some("b"), Algorithm::ES256), Ok(0));
    assert_eq!(candidates(&set, None, Algorithm::ES256), Ok(2));
}

#[test]
fn token_is_not_tried_on_many_keys() {
    let keys: Vec<String> = (0..5).map(|n| ec(&format!(r#""kid": "{n}""#))).collect();
    let named = set(&keys).unwrap();
    assert_eq!(
        candidates(&named, None, Algorithm::ES256),
        Err(TooManyCandidates)
    );
    assert_eq!(candidates(&named, Some("9"), Algorithm::ES256), Ok(0));
    let same: Vec<String> = (0..5).map(|_| ec(r#""kid": "one""#)).collect();
    let same = set(&same).unwrap();
    assert_eq!(
        candidates(&same, Some("one"), Algorithm::ES256),
        Err(TooManyCandidates)
    );
}

#[test]
fn empty_set_is_accepted_and_other_text_rejected() {
    let jwks = |text: &str| KeySet::from_jwks(text.as_bytes(), &ALL).map(|set| set.len());
    for text in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"keys": {}}"#,
        r#"{"keys": 1}"#,
    ] {
        assert_eq!(jwks(text), Err(KeySetError::NotJwks), "{text}");
    }
    // An issuer that has withdrawn all its keys.
    assert_eq!(jwks(r#"{"keys": []}"#), Ok(0));
    let many = vec!["1"; MAX_KEYS + 1].join(",");
    assert_eq!(
        jwks(&format!(r#"{{"keys": [{many}]}}"#)),
        Err(KeySetError::TooMany)
    );
}

#[test]
fn short_secret_is_rejected() {
    let secret = |length: usize, algorithm| {
        KeySet::from_secret(&vec![b'x'; length], &[algorithm]).map(|set| set.len())
    };
    assert_eq!(secret(32, Algorithm::HS256), Ok(1));
    assert_eq!(
        secret(31, Algorithm::HS256),
        Err(KeySetError::ShortSecret(32))
    );
    assert_eq!(
        secret(63, Algorithm::HS512),
        Err(KeySetError::ShortSecret(64))
    );
    let with_line_break = [&[b'x'; 31][..], b"\n"].concat();
    assert!(KeySet::from_secret(&with_line_break, &[Algorithm::HS256]).is_err());
}
