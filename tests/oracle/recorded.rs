//! Records the service's answers to generated calls, to compare two binaries.
//!
//! ```text
//! CEDAR_PDP_RECORD=FILE cargo test --test oracle recorded -- --ignored
//! CEDAR_PDP_COMPARE=FILE cargo test --test oracle recorded -- --ignored
//! ```
//!
//! The first command writes a record; the second repeats the calls and prints each difference.
//! `CEDAR_PDP_TEST_BINARY` names the server binary, `CEDAR_PDP_RECORD_CALLS` the number of calls,
//! `CEDAR_PDP_ORACLE_SEED` the seed. A record has a digest of each call's bytes and its [reply],
//! byte for byte except for decision ids and error messages.

#[path = "recorded/calls.rs"]
mod calls;
#[path = "recorded/message.rs"]
mod message;
#[path = "recorded/reply.rs"]
mod reply;
#[path = "recorded/services.rs"]
mod services;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;

use sha2::{Digest as _, Sha256};

use calls::Call;
use cedar_pdp_test_support::Server;
use cedar_pdp_test_support::http2::Http2Client;
use services::Service;

/// Differences that are printed in full.
const PRINTED: usize = 20;

/// Texts that a record of the default size must contain, so that each kind of rejection is
/// compared.
const REQUIRED: &[&str] = &[
    "InvalidArgument field=",
    "InvalidArgument;",
    "DeadlineExceeded",
    "Unimplemented",
    "Unavailable",
    "ResourceExhausted",
    "TOKENS_NOT_CONFIGURED",
    "TOKEN_TOO_LARGE",
    "TOKEN_MALFORMED",
    "TOKEN_ISSUER",
    "TOKEN_TYPE",
    "TOKEN_ALGORITHM",
    "TOKEN_KEY_UNKNOWN",
    "KEYS_UNAVAILABLE",
    "TOKEN_SIGNATURE",
    "TOKEN_CLAIMS",
    "TOKEN_AUDIENCE",
    "TOKEN_EXPIRED",
    "TOKEN_NOT_YET_VALID",
    "TOKEN_TOO_OLD",
    "TOKEN_REVOKED",
    "PRINCIPAL_UNKNOWN",
    "CALLER_UNKNOWN",
    "KEY_UNKNOWN",
    "RIGHT_MISSING",
    "IDENTITY_NOT_ALLOWED",
    "EXPLAIN_OFF",
];

#[test]
#[ignore = "needs CEDAR_PDP_RECORD or CEDAR_PDP_COMPARE"]
fn answers_are_those_of_the_record() {
    let target = std::env::var_os("CEDAR_PDP_RECORD");
    let source = std::env::var_os("CEDAR_PDP_COMPARE");
    assert!(
        target.is_some() || source.is_some(),
        "CEDAR_PDP_RECORD or CEDAR_PDP_COMPARE must name a file"
    );
    let count = crate::number("CEDAR_PDP_RECORD_CALLS", 10_000) as usize;
    let seed = crate::number("CEDAR_PDP_ORACLE_SEED", 0x5ec0);
    // Cedar recurses while scenarios are drawn.
    let recording = std::thread::Builder::new()
        .stack_size(crate::STACK_BYTES)
        .spawn(move || record(seed, count))
        .unwrap();
    let lines = recording.join().unwrap();
    let ok = lines.iter().filter(|line| line.contains(" Ok;")).count();
    writeln!(
        std::io::stdout(),
        "{} calls, {ok} answered with OK; first seed {seed}",
        lines.len()
    )
    .unwrap();
    if count >= 10_000 {
        assert!(ok * 3 >= lines.len() * 2, "too few calls are answered");
        for text in REQUIRED {
            assert!(
                lines.iter().any(|line| line.contains(text)),
                "no call is answered with {text}"
            );
        }
    }
    if let Some(file) = target {
        fs::write(file, lines.join("\n") + "\n").unwrap();
    }
    if let Some(file) = source {
        let before = fs::read_to_string(file).unwrap();
        let before: Vec<&str> = before.lines().collect();
        let differences = differences(&before, &lines);
        let mut stdout = std::io::stdout();
        for difference in differences.iter().take(PRINTED) {
            writeln!(stdout, "{difference}").unwrap();
        }
        writeln!(stdout, "{} differences", differences.len()).unwrap();
        assert!(differences.is_empty(), "answers differ from the record");
    }
}

/// Makes `count` calls, spread over the services. Returns a line for each.
fn record(seed: u64, count: usize) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut lines = Vec::new();
    for (number, service) in services::all(seed, count).into_iter().enumerate() {
        runtime.block_on(record_service(number, service, &mut lines));
    }
    lines
}

async fn record_service(number: usize, service: Service, lines: &mut Vec<String>) {
    let arguments: Vec<&str> = service.arguments.iter().map(String::as_str).collect();
    let server = Server::start(&service.policies, &arguments);
    let mut client = Http2Client::connect(server.address()).await;
    for call in &service.calls {
        let outcome = client.send(call.head(), call.body.clone()).await;
        // The next call needs a connection that is still open.
        if outcome.h2_error.is_some() {
            client = Http2Client::connect(server.address()).await;
        }
        lines.push(format!(
            "{number}:{name} {digest} {method} {reply}",
            name = service.name,
            digest = digest(call),
            method = call.method,
            reply = reply::text(call.method, &outcome),
        ));
    }
}

/// Returns a digest of everything that a call sends.
fn digest(call: &Call) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{} {:?} ", call.method, call.headers));
    digest.update(&call.body);
    let mut text = String::new();
    for byte in digest.finalize().iter().take(8) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// Describes each line that differs between before and after.
fn differences(before: &[&str], after: &[String]) -> Vec<String> {
    let mut differences: Vec<String> = before
        .iter()
        .zip(after)
        .enumerate()
        .filter(|(_, (before, after))| *before != after)
        .map(|(number, (before, after))| format!("line {}:\n- {before}\n+ {after}", number + 1))
        .collect();
    if before.len() != after.len() {
        differences.push(format!(
            "{} calls are recorded, {} were made",
            before.len(),
            after.len()
        ));
    }
    differences
}

#[test]
fn one_changed_byte_is_a_difference() {
    let answer = |decision: u8, id: &[u8]| {
        let mut bytes = vec![0x08, decision];
        bytes.extend(cedar_pdp_test_support::protobuf::field(2, b"p.cedar#0"));
        bytes.extend(cedar_pdp_test_support::protobuf::field(6, id));
        reply::answer(&bytes)
    };
    let recorded = answer(1, b"one");
    let count = |after: String| differences(&[recorded.as_str()], &[after]).len();
    assert_eq!(count(answer(1, b"two")), 0);
    assert_eq!(count(answer(2, b"one")), 1);
    assert_eq!(differences(&[recorded.as_str()], &[]).len(), 1);
}
