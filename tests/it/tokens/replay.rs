//! The log has all that is needed to repeat a decision with a token.

use serde_json::{Value, json};

use super::setup::{MAPPING, TokenOptions, TokenService, es256, is_allowed, request, with};
use crate::support::replay::Replay;
use crate::support::staff;

#[tokio::test(flavor = "multi_thread")]
async fn plain_cedar_repeats_token_decisions_from_log() {
    let key = es256("k");
    let replay = Replay::new(staff::POLICIES, staff::ENTITIES);
    for stored in ["join", "replace", "require"] {
        let logs = tempfile::tempdir().unwrap();
        let file = logs.path().join("decisions");
        let log = format!("file:{}", file.display());
        let mapping = format!("{MAPPING}\n").replacen(
            "type = \"User\"",
            &format!("type = \"User\"\nstored = \"{stored}\""),
            1,
        );
        let arguments = [
            "--decision-log",
            &log,
            "--decision-log-allow-sample",
            "1",
            "--decision-log-attributes",
            "*",
        ];
        let options = TokenOptions {
            mapping: &mapping,
            arguments: &arguments,
            ..TokenOptions::default()
        };
        let service = TokenService::start_with(&[&key], &options);
        let mut client = service.client().await;
        let mut answered = 0;
        for changes in [
            json!({}),
            json!({"roles": ["chief"], "department": "finance"}),
            json!({"sub": "stored", "roles": null}),
            json!({"sub": "stored", "department": "finance"}),
            json!({"sub": "suspended"}),
        ] {
            let token = key.token(&with(changes));
            for action in ["read", "write", "paint"] {
                // A principal that must be stored, but is not, is rejected.
                let asked = is_allowed(&mut client, request(&token, action)).await;
                answered += usize::from(asked.is_ok());
            }
        }
        assert_eq!(answered, if stored == "require" { 9 } else { 15 });
        drop(client);
        service.server.signal("TERM");
        let mut service = service;
        service.server.wait();
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let decided: Vec<_> = lines
            .iter()
            .filter(|line| line.get("refused").is_none())
            .collect();
        assert_eq!(decided.len(), answered);
        for line in &decided {
            assert_eq!(line["claimed"]["stored"], stored, "{line}");
            replay.check(line);
        }
        let allowed = decided.iter().filter(|line| line["decision"] == "ALLOW");
        assert!((1..answered).contains(&allowed.count()));
    }
}
