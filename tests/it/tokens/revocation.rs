//! Revoked tokens are rejected at once, even with a cached token and answer.

use serde_json::json;

use super::setup::{ISSUER, TokenOptions, TokenService, claims, es256, now, with};
use crate::support::{eventually, replace};

fn start_service(key: &crate::support::signer::Signer, list: &str) -> TokenService {
    let options = TokenOptions {
        revocations: Some(list),
        ..TokenOptions::default()
    };
    TokenService::start_with(&[key], &options)
}

#[tokio::test(flavor = "multi_thread")]
async fn edited_revocations_affect_cached_answers() {
    let key = es256("k");
    let service = start_service(&key, "");
    let token = key.token(&claims());
    let other = key.token(&with(json!({"sub": "bob", "jti": "two"})));
    let file = service.path("revoked.toml");
    let before = now() + 1;
    for list in [
        "[[revoked]]\njti = \"one\"\n".to_owned(),
        format!("[[revoked]]\nissuer = \"{ISSUER}\"\nsub = \"alice\"\n"),
        format!("[[revoked]]\nissuer = \"{ISSUER}\"\nsub = \"alice\"\nnot_before = {before}\n"),
    ] {
        for _ in 0..3 {
            assert!(service.is_allowed(&token, "read").await.unwrap());
        }
        replace(&file, &list);
        let (service, token) = (&service, &token);
        eventually("the token is revoked", async || {
            service.is_allowed(token, "read").await.is_err()
        })
        .await;
        assert_eq!(
            service.rejection_reason(token).await,
            "TOKEN_REVOKED",
            "{list}"
        );
        assert!(
            service.is_allowed(&other, "read").await.unwrap(),
            "another's token: {list}"
        );
        replace(&file, "revoked = []\n");
        eventually("the list is empty again", async || {
            service.is_allowed(token, "read").await.is_ok()
        })
        .await;
    }
    // A token issued after the revocation.
    let list = format!(
        "[[revoked]]\nissuer = \"{ISSUER}\"\nsub = \"alice\"\nnot_before = {}\n",
        now() - 30
    );
    let old = key.token(&with(json!({"iat": now() - 60, "nbf": now() - 60})));
    replace(&file, &list);
    let (service, old) = (&service, &old);
    eventually("the old one is revoked", async || {
        service.is_allowed(old, "read").await.is_err()
    })
    .await;
    assert!(service.is_allowed(&token, "read").await.unwrap());

    replace(&file, "[[revoked]]\nkid = \"k\"\n");
    let other = &other;
    eventually("the key is revoked", async || {
        service.is_allowed(other, "read").await.is_err()
    })
    .await;
    assert_eq!(service.rejection_reason(&token).await, "TOKEN_REVOKED");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_revocations_keep_the_last_valid_list() {
    // The log reports the error.
    let key = es256("k");
    let service = start_service(&key, "[[revoked]]\njti = \"one\"\n");
    let (revoked, good) = (
        key.token(&claims()),
        key.token(&with(json!({"jti": "two"}))),
    );
    for bad in [
        // A file is empty for a moment while it is rewritten.
        "",
        "revoked = 1",
        "[[revoked]]\njit = \"two\"",
        "[[revoked]]\n",
        "\u{0}",
    ] {
        let before = service
            .server
            .log()
            .matches("changed file rejected")
            .count();
        replace(&service.path("revoked.toml"), bad);
        let service = &service;
        eventually("the invalid list is logged", async || {
            service
                .server
                .log()
                .matches("changed file rejected")
                .count()
                > before
        })
        .await;
        assert_eq!(
            service.rejection_reason(&revoked).await,
            "TOKEN_REVOKED",
            "{bad}"
        );
        assert!(service.is_allowed(&good, "read").await.unwrap(), "{bad}");
    }
    std::fs::remove_file(service.path("revoked.toml")).unwrap();
    service.server.wait_for_log("No such file");
    assert_eq!(service.rejection_reason(&revoked).await, "TOKEN_REVOKED");
}

#[test]
fn missing_or_invalid_files_fail_the_start() {
    let key = es256("k");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("jwks.json"), crate::support::signer::jwks(&[&key])).unwrap();
    let issuers = |more: &str| {
        format!(
            "[[issuer]]\nissuer = \"{ISSUER}\"\naudiences = [\"pdp\"]\nalgorithms = [\"ES256\"]\n{more}\n[issuer.principal]\ntype = \"User\"\n"
        )
    };
    let policies =
        crate::support::policy_directory(&[("a.cedar", "permit(principal, action, resource);")]);
    let fails = |tokens: &str, revocations: Option<&str>, says: &str| {
        std::fs::write(at("issuers.toml"), tokens).unwrap();
        let mut command = crate::support::serve_command(policies.path(), &[]);
        command.arg("--tokens").arg(at("issuers.toml"));
        if let Some(text) = revocations {
            std::fs::write(at("revoked.toml"), text).unwrap();
            command.arg("--revocations").arg(at("revoked.toml"));
        } else {
            command.arg("--revocations").arg(at("missing.toml"));
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    };
    let good = issuers("keys_file = \"jwks.json\"");
    fails(&good, None, "missing.toml");
    fails(&good, Some("revoked = 1"), "revoked.toml");
    fails("", Some(""), "no issuer is defined");
    fails("x", Some(""), "line 1");
    fails(
        &issuers("keys_file = \"missing.json\""),
        Some(""),
        "missing.json",
    );
    fails(
        &issuers("keys_file = \"issuers.toml\""),
        Some(""),
        "not a JWKS",
    );
    fails(
        &issuers("keys_url = \"http://id.example/jwks\""),
        Some(""),
        "without TLS",
    );
    let ca = "keys_url = \"https://id.example/jwks\"\nca_file = \"jwks.json\"";
    fails(&issuers(ca), Some(""), "no certificate");
    fails(&good.replace("ES256", "HS256"), Some(""), "secret_file");
    fails(&good.replace("ES256", "none"), Some(""), "none");

    let mut command = crate::support::command();
    command.args(["serve", "--revocations", "x"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tokens"));
}
