//! The issuers file: defaults, bounds, rejected values.

use std::time::Duration;

use super::*;
use crate::pdp::query::StoredPrincipal;
use crate::pip::mapping::{ClaimKind, ClaimPath};

const MINIMAL: &str = r#"
[[issuer]]
issuer = "https://id.example"
audiences = ["pdp"]
algorithms = ["ES256"]
keys_file = "jwks.json"
[issuer.principal]
type = "User"
"#;

fn parse(text: &str) -> Result<Issuers, IssuersError> {
    Issuers::parse(text, Path::new("/etc/pdp"))
}

/// Parses the minimal file with `from` replaced by `to`.
fn parse_with(from: &str, to: &str) -> Result<Issuers, IssuersError> {
    assert!(MINIMAL.contains(from));
    parse(&MINIMAL.replace(from, to))
}

#[track_caller]
fn check_invalid(from: &str, to: &str, key: &str) {
    match parse_with(from, to) {
        Err(IssuersError::Value(_, found, _)) => assert_eq!(found, key, "{to}"),
        other => panic!("{to}: {other:?}"),
    }
}

#[test]
fn omitted_settings_have_defaults() {
    let issuers = parse(MINIMAL).unwrap();
    let rules = &issuers.0[0];
    assert_eq!(rules.keys, KeySource::File("/etc/pdp/jwks.json".into()));
    assert_eq!(rules.leeway, Duration::from_secs(30));
    assert_eq!(rules.mapping.id, ClaimPath(vec!["sub".to_owned()]));
    assert_eq!(rules.mapping.stored, StoredPrincipal::Join);
}

#[test]
fn algorithms_must_match_the_kind_of_key() {
    for (from, to) in [
        (r#"["ES256"]"#, r#"[]"#),
        (r#"["ES256"]"#, r#"["none"]"#),
        (r#"["ES256"]"#, r#"["HS256"]"#),
        (r#"["ES256"]"#, r#"["ES256", "HS256"]"#),
        ("keys_file", "secret_file"),
    ] {
        check_invalid(from, to, "algorithms");
    }
    let secret = MINIMAL
        .replace("ES256", "HS256")
        .replace("keys_file", "secret_file");
    assert!(parse(&secret).is_ok());
}

#[test]
fn issuer_needs_audiences_and_one_key_source() {
    check_invalid(r#"["pdp"]"#, "[]", "audiences");
    check_invalid(r#"["pdp"]"#, r#"[""]"#, "audiences");
    check_invalid("keys_file = \"jwks.json\"", "", "keys_url");
    let both = "keys_file = \"x\"\nkeys_url = \"https://x\"";
    check_invalid("keys_file = \"jwks.json\"", both, "keys_url");
    check_invalid("keys_file", "ca_file = \"x\"\nkeys_file", "ca_file");
}

#[test]
fn keys_come_over_tls_or_from_loopback() {
    let url = |url: &str| {
        parse_with(
            "keys_file = \"jwks.json\"",
            &format!("keys_url = \"{url}\""),
        )
        .map(|_| ())
    };
    for good in [
        "https://id.example/jwks",
        "http://127.0.0.1:8080/jwks",
        "http://[::1]/jwks",
        "http://localhost/jwks",
    ] {
        assert_eq!(url(good), Ok(()), "{good}");
    }
    let allowed = "keys_url = \"http://id.example/jwks\"\ninsecure_http = true";
    assert!(parse_with("keys_file = \"jwks.json\"", allowed).is_ok());
    for bad in [
        "http://id.example/jwks",
        "http://127.0.0.1.evil.example/jwks",
        "http://localhost.evil.example/jwks",
        "http://127.0.0.1@evil.example/jwks",
        "https://",
        "ftp://id.example",
        "file:///etc/passwd",
        "id.example/jwks",
        "https://id.example/a b",
    ] {
        assert!(url(bad).is_err(), "{bad}");
    }
}

#[test]
fn claim_name_with_dots_is_a_list() {
    let id = |id: &str| {
        parse_with("type = \"User\"", &format!("type = \"User\"\nid = {id}"))
            .map(|issuers| issuers.0[0].mapping.id.0.clone())
    };
    assert_eq!(id(r#""a.b""#).unwrap(), ["a", "b"]);
    assert_eq!(id(r#"["a.b"]"#).unwrap(), ["a.b"]);
    assert_eq!(
        id(r#"["https://x.example/id"]"#).unwrap(),
        ["https://x.example/id"]
    );
    for bad in [r#""""#, r#""a..b""#, r#""https://x.example/id""#, "[]"] {
        assert!(id(bad).is_err(), "{bad}");
    }
}

#[test]
fn attributes_and_parents_have_kinds_and_types() {
    let more = r#"type = "User"
[issuer.principal.attributes]
department = "string"
level = { kind = "long", claim = "acr.level", optional = true }
org = { kind = "entity", entity_type = "Org" }
[[issuer.principal.parents]]
claim = "realm_access.roles"
type = "Role"
"#;
    let issuers = parse_with("type = \"User\"", more).unwrap();
    let mapping = &issuers.0[0].mapping;
    assert_eq!(mapping.attributes["department"].kind, ClaimKind::String);
    assert!(mapping.attributes["level"].claim.optional);
    assert_eq!(mapping.parents[0].type_name, "Role");
    for (bad, key) in [
        ("a = \"text\"", "principal.attributes.a"),
        ("a = \"entity\"", "principal.attributes.a"),
        (
            "a = { kind = \"string\", entity_type = \"T\" }",
            "principal.attributes.a",
        ),
        (
            "a = { kind = \"entity\", entity_type = \"Action\" }",
            "principal.attributes.a",
        ),
    ] {
        check_invalid(
            "type = \"User\"",
            &format!("type = \"User\"\n[issuer.principal.attributes]\n{bad}"),
            key,
        );
    }
    for bad in [
        "type = \"User\"\ntypo = 1",
        "type = \"User\"\n[issuer.principal.attributes]\na = { kid = 1 }",
    ] {
        assert!(matches!(
            parse_with("type = \"User\"", bad),
            Err(IssuersError::Syntax(..))
        ));
    }
    check_invalid(
        "type = \"User\"",
        "type = \"Shop::Action\"",
        "principal.type",
    );
    check_invalid("type = \"User\"", "type = \"if\"", "principal.type");
}

#[test]
fn duplicate_issuers_and_shared_principals_are_found() {
    assert_eq!(
        parse(&MINIMAL.repeat(2)),
        Err(IssuersError::Duplicate("https://id.example".to_owned()))
    );
    assert_eq!(parse(""), Err(IssuersError::Empty));
    let other = MINIMAL.replace("id.example", "other.example");
    let both = parse(&format!("{MINIMAL}{other}")).unwrap();
    assert_eq!(
        both.pairs_sharing_principals(),
        [("https://id.example", "https://other.example")]
    );
    // The id `b:1` of one issuer may be `1` with the prefix of the other.
    for (one, two, is_shared) in [
        ("", "b:", true),
        ("b:", "", true),
        ("b", "b:", true),
        ("a:", "b:", false),
    ] {
        let prefixed = |text: &str, prefix| {
            text.replace("type =", &format!("id_prefix = \"{prefix}\"\ntype ="))
        };
        let both = format!("{}{}", prefixed(MINIMAL, one), prefixed(&other, two));
        let pairs = parse(&both).unwrap().pairs_sharing_principals().len();
        assert_eq!(pairs == 1, is_shared, "{one} {two}");
    }
}

#[test]
fn claims_with_shared_parents_are_found() {
    let parents = |issuer: &str, prefixes: &[&str]| {
        let mut text = issuer.to_owned();
        for (at, prefix) in prefixes.iter().enumerate() {
            text.push_str(&format!(
                "[[issuer.principal.parents]]\nclaim = \"c{at}\"\ntype = \"Role\"\nprefix = \"{prefix}\"\n"
            ));
        }
        text
    };
    let other = MINIMAL.replace("id.example", "other.example");
    for (of_one, of_other, pairs) in [
        (&["a:"][..], &["b:"][..], 0),
        (&["a:", "b:"], &[], 0),
        (&["", "b:"], &[], 1),
        (&["b:", "b:"], &[], 1),
        (&["a:"], &["a:"], 1),
        (&["a:", "b:"], &["b:x:"], 1),
    ] {
        let text = format!("{}{}", parents(MINIMAL, of_one), parents(&other, of_other));
        let issuers = parse(&text).unwrap();
        assert_eq!(
            issuers.pairs_sharing_parents().len(),
            pairs,
            "{of_one:?} {of_other:?}"
        );
    }
}

#[test]
fn durations_and_sizes_have_bounds() {
    for (line, key) in [
        ("leeway = \"1h\"", "leeway"),
        ("leeway = \"x\"", "leeway"),
        ("max_age = \"0s\"", "max_age"),
        ("max_bytes = 1", "max_bytes"),
        ("types = []", "types"),
        ("max_stale = \"1h\"", "max_stale"),
    ] {
        check_invalid("keys_file", &format!("{line}\nkeys_file"), key);
    }
}
