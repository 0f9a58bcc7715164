//! Which keys of a set are used, and for what.

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

fn set(keys: &[String]) -> Result<KeySet, BadKeys> {
    let text = format!(r#"{{"keys": [{}]}}"#, keys.join(","));
    KeySet::from_jwks(text.as_bytes(), &ALL)
}

/// How many keys would be tried.
fn fitting(set: &KeySet, kid: Option<&str>, algorithm: Algorithm) -> Result<usize, TooManyFit> {
    set.candidates(kid, algorithm).map(|keys| keys.len())
}

fn ec(more: &str) -> String {
    format!("{{{EC}, {more}}}")
}

#[test]
fn a_key_is_used_for_what_it_is_meant_for_alone() {
    for meant in [
        r#""kid": "k""#,
        r#""kid": "k", "use": "sig""#,
        r#""kid": "k", "key_ops": ["verify"]"#,
        r#""kid": "k", "alg": "ES256""#,
    ] {
        let set = set(&[ec(meant)]).unwrap();
        assert_eq!(fitting(&set, Some("k"), Algorithm::ES256), Ok(1), "{meant}");
        for other in [Algorithm::ES384, Algorithm::RS256, Algorithm::HS256] {
            assert_eq!(fitting(&set, Some("k"), other), Ok(0), "{meant}");
        }
    }
    for meant in [
        r#""use": "enc""#,
        r#""key_ops": ["encrypt", "wrapKey"]"#,
        r#""use": "sig", "key_ops": ["sign"]"#,
        r#""alg": "ES384""#,
        r#""alg": "ECDH-ES""#,
        r#""alg": "none""#,
    ] {
        assert_eq!(set(&[ec(meant)]).unwrap().len(), 0, "{meant}");
    }
}

#[test]
fn what_cannot_be_used_does_not_keep_the_others_from_being_used() {
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
    assert_eq!(fitting(&set, Some("secret"), Algorithm::HS256), Ok(0));
}

#[test]
fn a_token_that_names_a_key_is_not_verified_by_another() {
    let set = set(&[ec(r#""kid": "a""#), ec(r#""use": "sig""#)]).unwrap();
    assert_eq!(fitting(&set, Some("a"), Algorithm::ES256), Ok(1));
    assert_eq!(fitting(&set, Some("b"), Algorithm::ES256), Ok(0));
    assert_eq!(fitting(&set, None, Algorithm::ES256), Ok(2));
}

#[test]
fn a_token_that_names_no_key_is_not_tried_on_many() {
    let keys: Vec<String> = (0..5).map(|n| ec(&format!(r#""kid": "{n}""#))).collect();
    let named = set(&keys).unwrap();
    assert_eq!(fitting(&named, None, Algorithm::ES256), Err(TooManyFit));
    assert_eq!(fitting(&named, Some("9"), Algorithm::ES256), Ok(0));
    let same: Vec<String> = (0..5).map(|_| ec(r#""kid": "one""#)).collect();
    let same = set(&same).unwrap();
    assert_eq!(
        fitting(&same, Some("one"), Algorithm::ES256),
        Err(TooManyFit)
    );
}

#[test]
fn what_is_no_set_is_told_apart_from_one_without_use() {
    let jwks = |text: &str| KeySet::from_jwks(text.as_bytes(), &ALL).map(|set| set.len());
    for text in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"keys": {}}"#,
        r#"{"keys": 1}"#,
    ] {
        assert_eq!(jwks(text), Err(BadKeys::NoSet), "{text}");
    }
    // An issuer that has withdrawn its keys.
    assert_eq!(jwks(r#"{"keys": []}"#), Ok(0));
    let many = vec!["1"; MAX_KEYS + 1].join(",");
    assert_eq!(
        jwks(&format!(r#"{{"keys": [{many}]}}"#)),
        Err(BadKeys::TooMany)
    );
}

#[test]
fn a_secret_is_long_enough_for_its_algorithms() {
    let secret = |length: usize, algorithm| {
        KeySet::from_secret(&vec![b'x'; length], &[algorithm]).map(|set| set.len())
    };
    assert_eq!(secret(32, Algorithm::HS256), Ok(1));
    assert_eq!(
        secret(31, Algorithm::HS256),
        Err(BadKeys::ShortSecret { least: 32 })
    );
    assert_eq!(
        secret(63, Algorithm::HS512),
        Err(BadKeys::ShortSecret { least: 64 })
    );
    let with_line_end = [&[b'x'; 31][..], b"\n"].concat();
    assert!(KeySet::from_secret(&with_line_end, &[Algorithm::HS256]).is_err());
}
