//! What is revoked is refused at once, though token and answer were remembered.

use serde_json::json;

use super::setup::{House, ISSUER, Plan, claims, es256, now, with};
use crate::support::{eventually, replace};

fn house(key: &crate::support::signer::Signer, list: &str) -> House {
    let plan = Plan {
        revocations: Some(list),
        ..Plan::default()
    };
    House::planned(&[key], &plan)
}

#[tokio::test(flavor = "multi_thread")]
async fn edited_revocations_affect_cached_answers() {
    let key = es256("k");
    let house = house(&key, "");
    let token = key.token(&claims());
    let other = key.token(&with(json!({"sub": "bob", "jti": "two"})));
    let file = house.path("revoked.toml");
    let before = now() + 1;
    for list in [
        "[[revoked]]\njti = \"one\"\n".to_owned(),
        format!("[[revoked]]\nissuer = \"{ISSUER}\"\nsub = \"alice\"\n"),
        format!("[[revoked]]\nissuer = \"{ISSUER}\"\nsub = \"alice\"\nnot_before = {before}\n"),
    ] {
        for _ in 0..3 {
            assert!(house.ask(&token, "read").await.unwrap());
        }
        replace(&file, &list);
        let (house, token) = (&house, &token);
        eventually("the token is revoked", async || {
            house.ask(token, "read").await.is_err()
        })
        .await;
        assert_eq!(house.refused(token).await, "TOKEN_REVOKED", "{list}");
        assert!(
            house.ask(&other, "read").await.unwrap(),
            "another's token: {list}"
        );
        replace(&file, "revoked = []\n");
        eventually("the list is empty again", async || {
            house.ask(token, "read").await.is_ok()
        })
        .await;
    }
    // A token that was issued since.
    let list = format!(
        "[[revoked]]\nissuer = \"{ISSUER}\"\nsub = \"alice\"\nnot_before = {}\n",
        now() - 30
    );
    let old = key.token(&with(json!({"iat": now() - 60, "nbf": now() - 60})));
    replace(&file, &list);
    let (house, old) = (&house, &old);
    eventually("the old one is revoked", async || {
        house.ask(old, "read").await.is_err()
    })
    .await;
    assert!(house.ask(&token, "read").await.unwrap());

    replace(&file, "[[revoked]]\nkid = \"k\"\n");
    let other = &other;
    eventually("the key is revoked", async || {
        house.ask(other, "read").await.is_err()
    })
    .await;
    assert_eq!(house.refused(&token).await, "TOKEN_REVOKED");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_revocations_keep_the_last_valid_list() {
    // The log reports the error.
    let key = es256("k");
    let house = house(&key, "[[revoked]]\njti = \"one\"\n");
    let (revoked, good) = (
        key.token(&claims()),
        key.token(&with(json!({"jti": "two"}))),
    );
    for bad in [
        // As a file is for a moment that is being written anew.
        "",
        "revoked = 1",
        "[[revoked]]\njit = \"two\"",
        "[[revoked]]\n",
        "\u{0}",
    ] {
        let told = house.server.log().matches("changed file rejected").count();
        replace(&house.path("revoked.toml"), bad);
        let house = &house;
        eventually("the bad list is told of", async || {
            house.server.log().matches("changed file rejected").count() > told
        })
        .await;
        assert_eq!(house.refused(&revoked).await, "TOKEN_REVOKED", "{bad}");
        assert!(house.ask(&good, "read").await.unwrap(), "{bad}");
    }
    std::fs::remove_file(house.path("revoked.toml")).unwrap();
    house.server.wait_for_log("No such file");
    assert_eq!(house.refused(&revoked).await, "TOKEN_REVOKED");
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
        let mut command = crate::support::serving(policies.path(), &[]);
        command.arg("--tokens").arg(at("issuers.toml"));
        if let Some(text) = revocations {
            std::fs::write(at("revoked.toml"), text).unwrap();
            command.arg("--revocations").arg(at("revoked.toml"));
        } else {
            command.arg("--revocations").arg(at("missing.toml"));
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(says), "{said}");
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
