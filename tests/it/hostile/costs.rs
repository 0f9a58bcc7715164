//! Requests within every limit that are meant to be expensive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::task::JoinSet;
use tonic::Code;

use super::requests::{WITHOUT_SCHEMA, good, principal};
use super::target::Target;
use crate::support::Server;
use crate::support::http2::{AUTHORIZE, BATCH, Call, Http2Client, STREAM, post};
use crate::support::protobuf;

/// The size of a message here: as large as the service accepts.
const MESSAGE_BYTES: usize = (4 << 20) - 16;

/// Returns the peak memory of the process, in KiB.
fn peak_kib(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn uid(type_name: &str, id: &str) -> Vec<u8> {
    [
        protobuf::field(1, type_name.as_bytes()),
        protobuf::field(2, id.as_bytes()),
    ]
    .concat()
}

fn with(field: u64, content: &[u8]) -> Vec<u8> {
    [good().encode_to_vec(), protobuf::field(field, content)].concat()
}

fn in_context(value: &[u8]) -> Vec<u8> {
    with(
        5,
        &[protobuf::field(1, b"v"), protobuf::field(2, value)].concat(),
    )
}

/// Encodes a set in the context that fills the message; `member` encodes member n.
fn huge_set(member: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let mut members = Vec::new();
    for n in 0.. {
        let next = protobuf::field(1, &member(n));
        if members.len() + next.len() > MESSAGE_BYTES - 1_000 {
            break;
        }
        members.extend(next);
    }
    in_context(&protobuf::field(5, &members))
}

/// Encodes entities each of whose parents are the next `width` entities.
fn lattice(entities: usize, width: usize) -> Vec<u8> {
    let id = |n: usize| format!("{n:03}");
    let mut message = good().encode_to_vec();
    for n in 0..entities {
        let mut entity = protobuf::field(1, &uid("T", &id(n)));
        for parent in (n + 1)..(n + 1 + width).min(entities) {
            entity.extend(protobuf::field(3, &uid("T", &id(parent))));
        }
        message.extend(protobuf::field(6, &entity));
    }
    message
}

/// Returns a short name for each number.
fn name(mut n: usize) -> String {
    let mut name = String::from("T");
    while n > 0 {
        name.push(char::from(b'a' + (n % 26) as u8));
        n /= 26;
    }
    name
}

/// Returns all cases: description, method and message.
fn cases() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let type_of = |n: usize| protobuf::field(4, &uid(&name(n), ""));
    let long_type =
        |n: usize| protobuf::field(4, &uid(&format!("{}{}", "a::".repeat(1_360), name(n)), ""));
    let mut keys = good().encode_to_vec();
    for n in 0..75_000 {
        keys.extend(protobuf::field(
            5,
            &[
                protobuf::field(1, name(n).as_bytes()),
                protobuf::field(2, &[0x08, 1]),
            ]
            .concat(),
        ));
    }
    let mut items = Vec::new();
    for n in 0..1_000 {
        let mut item = good().encode_to_vec();
        item.extend(protobuf::field(
            5,
            &[protobuf::field(1, b"v"), protobuf::field(2, &type_of(n))].concat(),
        ));
        let members: Vec<u8> = (0..60)
            .flat_map(|m| protobuf::field(1, &type_of(1_000 * n + m)))
            .collect();
        item.extend(protobuf::field(
            5,
            &[
                protobuf::field(1, b"w"),
                protobuf::field(2, &protobuf::field(5, &members)),
            ]
            .concat(),
        ));
        items.extend(protobuf::field(1, &item));
    }
    // Every item differs, to prevent cache hits.
    let numbered = |n: u64| {
        let number = [vec![0x10], protobuf::varint(n)].concat();
        protobuf::field(
            5,
            &[protobuf::field(1, b"n"), protobuf::field(2, &number)].concat(),
        )
    };
    let chain = lattice(600, 1);
    let chains = (0..75)
        .flat_map(|n| protobuf::field(1, &[chain.clone(), numbered(n)].concat()))
        .collect();
    vec![
        (
            "1,000 entities with 100 parents each",
            AUTHORIZE,
            lattice(1_000, 100),
        ),
        ("1,000 entities in a chain", AUTHORIZE, lattice(1_000, 1)),
        ("a batch of chains of 600 entities", BATCH, chains),
        (
            "a set of entities, each of another type",
            AUTHORIZE,
            huge_set(type_of),
        ),
        (
            "a set of entities with long types",
            AUTHORIZE,
            huge_set(long_type),
        ),
        (
            "a batch of items with entities of other types",
            BATCH,
            items,
        ),
        (
            "a set of longs",
            AUTHORIZE,
            huge_set(|n| [vec![0x10], protobuf::varint(n as u64)].concat()),
        ),
        (
            "a set of sets",
            AUTHORIZE,
            huge_set(|n| {
                protobuf::field(
                    5,
                    &protobuf::field(1, &[vec![0x10], protobuf::varint(n as u64)].concat()),
                )
            }),
        ),
        (
            "a set of equal strings",
            AUTHORIZE,
            huge_set(|_| protobuf::field(3, &[b'x'; 1_000])),
        ),
        (
            "a set of similar records",
            AUTHORIZE,
            huge_set(|n| {
                let field = |name: &str, n: usize| {
                    protobuf::field(
                        1,
                        &[
                            protobuf::field(1, name.as_bytes()),
                            protobuf::field(2, &[vec![0x10], protobuf::varint(n as u64)].concat()),
                        ]
                        .concat(),
                    )
                };
                protobuf::field(6, &[field("a", 1), field("b", 2), field("z", n)].concat())
            }),
        ),
        (
            "a set of decimals",
            AUTHORIZE,
            huge_set(|n| protobuf::field(7, format!("{n}.0").as_bytes())),
        ),
        (
            "a set of datetimes",
            AUTHORIZE,
            huge_set(|n| {
                protobuf::field(
                    9,
                    format!("2024-01-01T00:00:00.{:03}Z", n % 1_000).as_bytes(),
                )
            }),
        ),
        (
            "a set of values without a kind",
            AUTHORIZE,
            in_context(&protobuf::field(
                5,
                &[0x0a, 0].repeat(MESSAGE_BYTES / 2 - 1_000),
            )),
        ),
        (
            "entities that say nothing",
            AUTHORIZE,
            [
                good().encode_to_vec(),
                [0x32, 0].repeat(MESSAGE_BYTES / 2 - 1_000),
            ]
            .concat(),
        ),
        (
            "requests that say nothing",
            BATCH,
            [0x0a, 0].repeat(MESSAGE_BYTES / 2),
        ),
        ("context of many keys", AUTHORIZE, keys),
        (
            "parents that say nothing",
            AUTHORIZE,
            with(
                6,
                &[
                    protobuf::field(1, &uid("T", "")),
                    [0x1a, 0].repeat(MESSAGE_BYTES / 2 - 1_000),
                ]
                .concat(),
            ),
        ),
    ]
}

/// The maximum CPU time of a message of this size, in a debug build.
const MAX_CPU: Duration = Duration::from_secs(2);

/// The maximum memory in MiB of a message beyond the limits on values, entities or items: about
/// twice the part that was read.
const MAX_MIB_REJECTED: u64 = 32;

/// The maximum memory in MiB of any message.
const MAX_MIB: u64 = 160;

#[tokio::test(flavor = "multi_thread")]
async fn messages_cost_bounded_time_and_memory() {
    // Messages beyond the limits cost next to nothing.
    let mut over = Vec::new();
    for (case, path, message) in cases() {
        assert!(message.len() <= MESSAGE_BYTES, "{case}: {}", message.len());
        let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
        target.assert_alive("nothing").await;
        let (memory, cpu) = (peak_kib(&target.server), cpu(&target.server));
        let other = target.connect().await;
        let watched =
            tokio::spawn(async move { slowest(&other, Duration::from_millis(100)).await });
        let outcome = target.client.call(path, &message).await;
        let took = self::cpu(&target.server).saturating_sub(cpu);
        let grown = peak_kib(&target.server).saturating_sub(memory) >> 10;
        let slowest = watched.await.unwrap();
        let code = outcome.code();
        println!(
            "{case}: {} KiB, {took:?} of processor, {grown} MiB, another caller's slowest call {slowest:?}, {code:?}",
            message.len() >> 10,
        );
        let most = match code == Code::ResourceExhausted {
            true => MAX_MIB_REJECTED,
            false => MAX_MIB,
        };
        if took > MAX_CPU || grown > most {
            over.push(format!("{case}: {took:?}, {grown} MiB, {code:?}"));
        }
        target.assert_alive(case).await;
        target.close().await;
    }
    assert!(over.is_empty(), "{over:#?}");
}

/// Returns the CPU time that the process has used, in steps of 10 ms.
fn cpu(server: &Server) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let fields = text.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(10 * ticks)
}

/// Repeats valid calls for `duration`, at least once. Returns the slowest time.
async fn slowest(client: &Http2Client, long: Duration) -> Duration {
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    while started.elapsed() < long {
        let asked = Instant::now();
        super::target::allowed(client, "a good call beside").await;
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    slowest
}

/// A call that takes long to answer.
struct SlowCall {
    case: &'static str,
    path: &'static str,
    body: Vec<u8>,
    /// The number of concurrent calls.
    concurrent: usize,
}

/// The minimum of another client's calls answered before the last slow one. There is time for
/// hundreds; without yielding, fewer than ten succeed.
const MIN_OTHER_CALLS: usize = 24;

fn slow_calls() -> [SlowCall; 4] {
    // Just large enough for the large-request limit. A larger body takes longer to arrive, and
    // other calls are answered meanwhile.
    let large = lattice(1_000, 10);
    assert!(
        (64 << 10..1 << 20).contains(&large.len()),
        "{}",
        large.len()
    );
    let item = protobuf::framed(&protobuf::field(2, &large));
    [
        SlowCall {
            case: "large requests",
            path: AUTHORIZE,
            body: protobuf::framed(&large),
            concurrent: 16,
        },
        SlowCall {
            case: "batches of large requests",
            path: BATCH,
            body: protobuf::framed(&protobuf::field(1, &large).repeat(4)),
            concurrent: 4,
        },
        SlowCall {
            case: "streams of large requests",
            path: STREAM,
            body: item.repeat(4),
            concurrent: 4,
        },
        // None of these requests is large: the batch yields between time slices. Several batches
        // would each take a slice before other calls.
        SlowCall {
            case: "a batch of requests that many policies match",
            path: BATCH,
            body: protobuf::framed(
                &protobuf::field(1, &matching_request().encode_to_vec()).repeat(1_000),
            ),
            concurrent: 1,
        },
    ]
}

/// Returns a request that many policies match.
fn matching_request() -> pb::AuthorizeRequest {
    principal(crate::support::uid("User", "busy"))
}

/// Starts a server with one thread, since a second one could answer others by chance. It caches
/// nothing and sheds nothing.
async fn start_single_threaded() -> Target {
    let of_busy = "permit(principal == User::\"busy\", action, resource) when { context has n };\n";
    let of_busy = of_busy.repeat(4_000);
    let files = [WITHOUT_SCHEMA, &[("busy.cedar", &of_busy)]].concat();
    let environment = [("TOKIO_WORKER_THREADS", "1")];
    let arguments = [
        ["--cache-bytes", "0"],
        ["--overload-delay", "0s"],
        ["--max-call-time", "0s"],
    ];
    Target::open_in(&environment, &files, &arguments.concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn small_calls_are_answered_before_large_ones() {
    for SlowCall {
        case,
        path,
        body,
        concurrent,
    } in slow_calls()
    {
        let target = start_single_threaded().await;
        let other = target.connect().await;
        super::target::allowed(&other, "nothing").await;

        let answered = Arc::new(AtomicUsize::new(0));
        let mut slow = JoinSet::new();
        for _ in 0..concurrent {
            let head = post(path).body(()).unwrap();
            let mut call = target.client.open(head).await.unwrap();
            call.body.send_data(body.clone().into(), true).unwrap();
            let answered = Arc::clone(&answered);
            slow.spawn(async move {
                let outcome = call.outcome().await;
                answered.fetch_add(1, Ordering::Relaxed);
                outcome
            });
        }
        let mut before = 0;
        loop {
            super::target::allowed(&other, "a good call beside").await;
            if answered.load(Ordering::Relaxed) == concurrent {
                break;
            }
            before += 1;
        }
        for outcome in slow.join_all().await {
            assert_eq!(outcome.code(), Code::Ok, "{case}: {outcome:?}");
        }
        println!("{case}, {concurrent} at once: {before} other calls answered before the last");
        assert!(
            before >= MIN_OTHER_CALLS,
            "{case}: {before} of {MIN_OTHER_CALLS}"
        );
        target.close().await;
    }
}

/// Opens calls that never end: the message is complete or nearly so, the body is not.
async fn open_calls(client: &Http2Client, path: &str, body: &[u8], calls: usize) -> Vec<Call> {
    let body = Bytes::copy_from_slice(body);
    let mut open_calls = Vec::new();
    for _ in 0..calls {
        let mut call = client.open(post(path).body(()).unwrap()).await.unwrap();
        call.body.send_data(body.clone(), false).unwrap();
        open_calls.push(call);
    }
    open_calls
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_calls_hold_little_memory() {
    let quarter = MESSAGE_BYTES;
    let mut over = Vec::new();
    for (case, path, body) in [
        (
            "whole messages of requests that say nothing",
            BATCH,
            protobuf::framed(&[0x0a, 0].repeat(quarter / 2)),
        ),
        (
            "whole messages of entities that say nothing",
            AUTHORIZE,
            protobuf::framed(&[0x32, 0].repeat(quarter / 2)),
        ),
        (
            "cut messages",
            AUTHORIZE,
            protobuf::framed_as(0, quarter as u32, &vec![0; quarter - 1]),
        ),
        ("heads alone", STREAM, protobuf::framed_as(0, 4 << 20, &[])),
    ] {
        let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
        target.assert_alive("nothing").await;
        let before = target.server.resident_kib();
        let client = target.connect().await;
        let calls = open_calls(&client, path, &body, 4).await;
        let mut grown = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            grown = grown.max(target.server.resident_kib().saturating_sub(before) >> 10);
        }
        let sent = (4 * body.len()) >> 20;
        println!("4 calls, {case}: {sent} MiB sent, {grown} MiB held");
        if grown > 4 * sent as u64 + 16 {
            over.push(format!("{case}: {sent} MiB sent, {grown} MiB held"));
        }
        target.assert_accepting(case).await;
        drop((calls, client));
        target.close().await;
    }
    assert!(over.is_empty(), "{over:#?}");
}
