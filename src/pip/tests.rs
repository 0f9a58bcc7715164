//! A revocation list that changes while tokens are verified.

use std::time::Duration;

use super::*;
use crate::watch::Mode;

const ISSUERS: &str = r#"
[[issuer]]
issuer = "https://id.example"
audiences = ["pdp"]
algorithms = ["ES256"]
keys_file = "jwks.json"
[issuer.principal]
type = "User"
"#;

#[tokio::test]
async fn revocation_list_is_emptied_only_explicitly() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("issuers.toml"), ISSUERS).unwrap();
    std::fs::write(at("jwks.json"), r#"{"keys": []}"#).unwrap();
    // An empty file is accepted at startup.
    std::fs::write(at("revoked.toml"), "").unwrap();
    let (tokens, refresh) = open(&TokenSettings {
        issuers: at("issuers.toml"),
        revocations: Some(at("revoked.toml")),
        cache_bytes: None,
        following: crate::watch::WatchSettings {
            mode: Mode::Poll,
            poll: Duration::from_millis(10),
        },
    })
    .unwrap();
    let refresh = tokio::spawn(refresh.run());
    let two = "[[revoked]]\njti = \"a\"\n[[revoked]]\njti = \"b\"\n";
    let one = "[[revoked]]\njti = \"a\"\n";
    for (text, entries, rejected, shrunk) in [
        (two, 2, 0, 0),
        (one, 1, 0, 1),
        ("", 1, 1, 1),
        ("# being written\n", 1, 2, 1),
        ("revoked = []\n", 0, 2, 2),
        ("", 0, 2, 2),
        (two, 2, 2, 2),
    ] {
        std::fs::write(at("new"), text).unwrap();
        std::fs::rename(at("new"), at("revoked.toml")).unwrap();
        let counts = || {
            let metrics = tokens.metrics();
            (
                metrics.revocations,
                metrics.revocations_rejected,
                metrics.revocations_shrunk,
            )
        };
        while counts() != (entries, rejected, shrunk) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    refresh.abort();
}
