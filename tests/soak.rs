//! Thousands of reloads under constant calls: no call fails, every answer is explained, memory does
//! not leak.
//!
//! Long run: `CEDAR_PDP_SOAK_RELOADS=10000 cargo test --test soak -- --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where; a soak prints its figures"
)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cedar_pdp::api::grpc::pb;
use cedar_pdp_test_support::{BackgroundClients, Server, TIME_LIMIT, request, revision};
use tonic::Streaming;

const FILE: &str = "turns.cedar";

/// The default number of reloads.
const RELOADS: u64 = 300;

/// Returns the policies of one turn: some that stay, and one that names the turn and permits every
/// second one.
fn policies(turn: u64) -> String {
    let effect = if turn.is_multiple_of(2) {
        "permit"
    } else {
        "forbid"
    };
    let mut text = format!("@id(\"turn-{turn}\")\n{effect} (principal, action, resource);\n");
    for number in 0..20 {
        text.push_str(&format!(
            "@id(\"stays-{number}\")\npermit (principal == User::\"{number}\", action, resource) when {{ context.n == {number} }};\n"
        ));
    }
    text
}

/// Replaces the served file atomically, and returns the new revision.
fn write(directory: &Path, turn: u64) -> String {
    let text = policies(turn);
    let temporary = directory.join(".next");
    fs::write(&temporary, &text).unwrap();
    fs::rename(temporary, directory.join(FILE)).unwrap();
    revision(&[(FILE, &text)])
}

async fn wait_for_revision(
    watch: &mut Streaming<pb::WatchStatusResponse>,
    wanted: &str,
    server: &Server,
) {
    let waiting = async {
        loop {
            let response = watch
                .message()
                .await
                .unwrap()
                .expect("the watch stays open");
            let status = response.status.unwrap();
            assert!(status.refused.is_none(), "{status:?}");
            if status.revision == wanted {
                return;
            }
        }
    };
    if tokio::time::timeout(TIME_LIMIT, waiting).await.is_err() {
        panic!("revision {wanted} never came:\n{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_fail_no_call() {
    // Reloads do not leak memory either.
    let reloads: u64 = match std::env::var("CEDAR_PDP_SOAK_RELOADS") {
        Ok(text) => text.parse().expect("CEDAR_PDP_SOAK_RELOADS is a number"),
        Err(_) => RELOADS,
    };
    let directory = tempfile::tempdir().unwrap();
    let mut turns = HashMap::from([(write(directory.path(), 0), 0)]);
    // The log would grow with every reload, in the memory of the test.
    let arguments = [
        "--quiet-period",
        "1ms",
        "--poll-interval",
        "1h",
        "--log",
        "warn",
    ];
    let server = Server::start(directory.path(), &arguments);
    let request = request(r#"User::"alice""#, r#"Action::"read""#, r#"Doc::"1""#);
    let clients = BackgroundClients::start(&server, &request, Duration::ZERO).await;
    let mut store = server.policy_store().await;
    let mut watch = store
        .watch_status(pb::WatchStatusRequest {})
        .await
        .unwrap()
        .into_inner();

    let started = Instant::now();
    let tenth = (reloads / 10).max(1);
    let mut after_first_tenth = None;
    for turn in 1..=reloads {
        let wanted = write(directory.path(), turn);
        turns.insert(wanted.clone(), turn);
        wait_for_revision(&mut watch, &wanted, &server).await;
        if turn == tenth {
            after_first_tenth = Some(server.resident_kib());
        }
        if turn % tenth == 0 {
            println!("{turn} reloads: {} KiB resident", server.resident_kib());
        }
    }
    let took = started.elapsed();
    let first = after_first_tenth.expect("there is a first tenth");
    let last = server.resident_kib();
    let answers = clients.finish().await;
    let response = store.get_status(pb::GetStatusRequest {}).await.unwrap();
    let counts = response.into_inner().reloads.unwrap();

    for answer in answers.keys() {
        let turn = turns
            .get(&answer.revision)
            .unwrap_or_else(|| panic!("no written version explains {answer:?}"));
        assert_eq!(answer.is_allow, turn.is_multiple_of(2), "{answer:?}");
        assert_eq!(answer.determining, [format!("turn-{turn}")]);
    }
    println!(
        "{reloads} reloads in {took:.1?}, {} answers on {} revisions, none failed; \
         resident {first} KiB after the first tenth, {last} KiB after the last",
        answers.values().sum::<u64>(),
        answers.len(),
    );
    assert_eq!(counts.reloaded, reloads + 1);
    assert_eq!(counts.refused, 0);
    let most = first + first / 10 + 8 * 1024;
    assert!(last <= most, "{last} KiB is more than {most} KiB");
}
