//! Files that change while tokens are verified.

use std::sync::mpsc;
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
async fn a_list_of_revocations_is_emptied_only_by_one_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("issuers.toml"), ISSUERS).unwrap();
    std::fs::write(at("jwks.json"), r#"{"keys": []}"#).unwrap();
    // At the start a file may be empty.
    std::fs::write(at("revoked.toml"), "").unwrap();
    let Opened { tokens, upkeep } = open(&TokenSettings {
        issuers: at("issuers.toml"),
        revocations: Some(at("revoked.toml")),
        cache_bytes: None,
        following: WatchSettings {
            mode: Mode::Poll,
            poll: Duration::from_millis(10),
        },
    })
    .unwrap();
    let upkeep = tokio::spawn(upkeep.run());
    let two = "[[revoked]]\njti = \"a\"\n[[revoked]]\njti = \"b\"\n";
    let one = "[[revoked]]\njti = \"a\"\n";
    for (text, entries, refused, shrunk) in [
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
        let figures = || {
            let figures = tokens.figures();
            (
                figures.revocations,
                figures.revocations_refused,
                figures.revocations_shrunk,
            )
        };
        while figures() != (entries, refused, shrunk) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    upkeep.abort();
}

#[tokio::test]
async fn a_change_is_taken_on_a_thread_that_may_block() {
    let (changed, changes) = watch::channel(None);
    let (told, heard) = mpsc::channel();
    let taking = tokio::spawn(take_changes(changes, move |change: &u8| {
        told.send((*change, std::thread::current().id())).unwrap();
    }));
    changed.send_replace(Some(Arc::new(7)));
    drop(changed);
    taking.await.unwrap();
    let (change, thread) = heard.recv().unwrap();
    assert_eq!(change, 7);
    // Here a single thread runs all tasks.
    assert_ne!(thread, std::thread::current().id());
}
