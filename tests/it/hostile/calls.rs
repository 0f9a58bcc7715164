//! Invalid calls: undecodable messages, wrong frames, paths, headers, deadlines.

use crate::support::eventually;
use std::time::{Duration, Instant};

use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use prost::bytes::Bytes;
use tonic::Code;

use super::requests::{WITH_SCHEMA, WITHOUT_SCHEMA, good};
use super::target::Target;
use crate::support::http2::{AUTHORIZE, BATCH, STREAM, post, violated_fields};
use crate::support::protobuf;

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_message_is_invalid_argument_without_field() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let uid = |content: &[u8]| protobuf::field(1, content);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("text", b"{\"principal\": \"alice\"}".to_vec()),
        ("ones", vec![0xff; 100]),
        ("a cut varint", vec![0x80]),
        (
            "a varint of eleven bytes",
            vec![
                0x38, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
            ],
        ),
        ("field 0", vec![0x00, 0x01]),
        ("wire type 6", vec![0x0e, 0x01]),
        ("wire type 7", vec![0x0f, 0x01]),
        ("a string as varint", vec![0x08, 0x01]),
        ("a length beyond the end", vec![0x0a, 0x7f, 0x0a]),
        (
            "a length of 2^64",
            [vec![0x0a], protobuf::varint(u64::MAX)].concat(),
        ),
        (
            "a length of 2^63",
            [vec![0x0a], protobuf::varint(1 << 63)].concat(),
        ),
        ("an end of no group", vec![0x9c, 0x06]),
        (
            "a type that is no UTF-8",
            uid(&protobuf::field(1, b"User\xff")),
        ),
        (
            "an id that is no UTF-8",
            uid(&protobuf::field(2, &[0xc3, 0x28])),
        ),
        (
            "an id with a surrogate",
            uid(&protobuf::field(2, &[0xed, 0xa0, 0x80])),
        ),
        ("an overlong NUL", uid(&protobuf::field(2, &[0xc0, 0x80]))),
        ("a token that is no UTF-8", protobuf::field(2, &[0xfe])),
        (
            "a key that is no UTF-8",
            protobuf::field(5, &protobuf::field(1, &[0xfe])),
        ),
        (
            "a value that is no UTF-8",
            protobuf::field(5, &protobuf::field(2, &protobuf::field(3, &[0xfe]))),
        ),
        (
            "a decimal that is no UTF-8",
            protobuf::field(5, &protobuf::field(2, &protobuf::field(7, &[0xfe]))),
        ),
    ];
    for (case, bytes) in cases {
        target
            .assert_rejected_bytes(case, Code::InvalidArgument, &bytes)
            .await;
        target
            .assert_rejected_bytes(
                case,
                Code::InvalidArgument,
                &[good().encode_to_vec(), bytes].concat(),
            )
            .await;
    }
    // Earlier items are answered; later ones are not read.
    let item = |request: &[u8]| {
        protobuf::framed(&[vec![0x08, 0x07], protobuf::field(2, request)].concat())
    };
    let body = [
        item(&good().encode_to_vec()),
        item(&[0xff]),
        item(&good().encode_to_vec()),
    ]
    .concat();
    let outcome = target
        .client
        .send(post(STREAM).body(()).unwrap(), body)
        .await;
    assert_eq!(outcome.code(), Code::InvalidArgument, "{outcome:?}");
    assert_eq!(outcome.messages.len(), 1, "{outcome:?}");
    target.assert_alive("a stream that ended").await;
    // Unknown fields are skipped.
    let unknown = [good().encode_to_vec(), protobuf::field(1_000, b"x")].concat();
    assert_eq!(
        target.client.call(AUTHORIZE, &unknown).await.code(),
        Code::Ok
    );
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_items_and_batches_are_answered() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let item: pb::StreamAuthorizeResponse =
        target.client.call(STREAM, &[0x08, 0x07]).await.message();
    assert_eq!(item.correlation_id, 7);
    assert!(
        matches!(item.result, Some(pb::stream_authorize_response::Result::Error(e)) if e.code == 3)
    );
    let batch: pb::BatchAuthorizeResponse = target.client.call(BATCH, &[]).await.message();
    assert!(
        batch.results.is_empty() && batch.revision.len() == 64,
        "{batch:?}"
    );
    let nothing = target
        .client
        .send(post(STREAM).body(()).unwrap(), vec![])
        .await;
    assert_eq!((nothing.code(), nothing.messages.len()), (Code::Ok, 0));
    target.assert_alive("empty calls").await;
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_items_and_bytes_exhaust_a_resource() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let batch = |n: usize| {
        pb::BatchAuthorizeRequest {
            requests: vec![good(); n],
        }
        .encode_to_vec()
    };
    let full: pb::BatchAuthorizeResponse = target.client.call(BATCH, &batch(1_000)).await.message();
    assert_eq!(full.results.len(), 1_000);
    for n in [1_001, 50_000] {
        assert_eq!(
            target.client.call(BATCH, &batch(n)).await.code(),
            Code::ResourceExhausted
        );
        target.assert_alive("too many items").await;
    }
    // Builds a message of exactly `bytes`, padded with an unknown field.
    let sized = |bytes: usize| {
        let mut message = protobuf::field(2, &good().encode_to_vec());
        let filler = vec![0; bytes - message.len() - 6];
        message.extend(protobuf::field(99, &filler));
        message.resize(bytes, 0);
        message
    };
    let whole = 4 << 20;
    for path in [AUTHORIZE, BATCH, STREAM] {
        for (bytes, announced) in [
            (whole + 1, whole + 1),
            (whole + 100_000, whole + 100_000),
            (10, whole + 1),
            (10, u32::MAX as usize),
        ] {
            let message = vec![0x0a; bytes];
            let body = protobuf::framed_as(0, u32::try_from(announced).unwrap(), &message);
            let outcome = target.client.send(post(path).body(()).unwrap(), body).await;
            assert_eq!(
                outcome.code(),
                Code::ResourceExhausted,
                "{path}, {bytes} of {announced} bytes: {outcome:?}"
            );
            assert_eq!(
                violated_fields(outcome.status.as_ref().unwrap()),
                Vec::<String>::new()
            );
            target.assert_accepting("too many bytes").await;
        }
    }
    let message = sized(whole);
    assert_eq!(message.len(), whole);
    assert_eq!(target.client.call(STREAM, &message).await.code(), Code::Ok);
    // Items before the large one are answered.
    let good = protobuf::framed(
        &[
            vec![0x08, 0x07],
            protobuf::field(2, &good().encode_to_vec()),
        ]
        .concat(),
    );
    let body = [good.clone(), good, protobuf::framed(&sized(whole + 1))].concat();
    let outcome = target
        .client
        .send(post(STREAM).body(()).unwrap(), body)
        .await;
    assert_eq!(
        (outcome.code(), outcome.messages.len()),
        (Code::ResourceExhausted, 2),
        "{outcome:?}"
    );
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn false_message_lengths_get_an_error_status() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let good = good().encode_to_vec();
    let length = u32::try_from(good.len()).unwrap();
    for path in [AUTHORIZE, BATCH, STREAM] {
        let message = match path {
            AUTHORIZE => good.clone(),
            BATCH => protobuf::field(1, &good),
            _ => protobuf::field(2, &good),
        };
        for (case, body) in [
            (
                "half a message",
                protobuf::framed_as(0, 2 * length, &message),
            ),
            ("half a head", vec![0, 0, 0]),
            (
                "compressed, with no encoding",
                protobuf::framed_as(1, u32::try_from(message.len()).unwrap(), &message),
            ),
            (
                "compressed in an unknown way",
                protobuf::framed_as(7, u32::try_from(message.len()).unwrap(), &message),
            ),
        ] {
            let outcome = target.client.send(post(path).body(()).unwrap(), body).await;
            // gRPC libraries answer INTERNAL here; the contract covers only messages.
            let code = outcome.code();
            assert!(
                matches!(
                    code,
                    Code::Internal | Code::InvalidArgument | Code::Unimplemented
                ),
                "{case}, {path}: {outcome:?}"
            );
            assert!(outcome.messages.is_empty(), "{case}, {path}: {outcome:?}");
            target.assert_alive(case).await;
        }
    }
    for path in [AUTHORIZE, BATCH] {
        let outcome = target
            .client
            .send(post(path).body(()).unwrap(), vec![])
            .await;
        assert!(
            matches!(
                outcome.code(),
                Code::Internal | Code::InvalidArgument | Code::Unimplemented
            ),
            "{outcome:?}"
        );
        target.assert_alive("no message").await;
    }
    for encoding in ["gzip", "identity, gzip", "snappy", "x"] {
        let request = post(AUTHORIZE)
            .header("grpc-encoding", encoding)
            .body(())
            .unwrap();
        let outcome = target
            .client
            .send(request, protobuf::framed_as(1, length, &good))
            .await;
        assert_eq!(
            outcome.code(),
            Code::Unimplemented,
            "{encoding}: {outcome:?}"
        );
        target.assert_alive("an unknown encoding").await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_are_unimplemented() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let long = format!("/{}/x", "a".repeat(4_000));
    for path in [
        "/pdp.v1.AuthorizationService/Nothing",
        "/pdp.v1.AuthorizationService/",
        "/pdp.v1.AuthorizationService/Authorize/",
        "/pdp.v1.AuthorizationService/authorize",
        "/pdp.v1.AuthorizationService/Authorize%00",
        "/pdp.v1.AuthorizationService",
        "/pdp.v1.PolicyStoreService/Nothing",
        "/pdp.v2.AuthorizationService/Authorize",
        "/grpc.health.v1.Health/Nothing",
        "/",
        "//",
        "/../../etc/passwd",
        "/%ff%fe",
        &long,
    ] {
        let outcome = target.client.call(path, &good().encode_to_vec()).await;
        assert_eq!(outcome.code(), Code::Unimplemented, "{path}: {outcome:?}");
        target.assert_alive(path).await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_another_kind_never_allow() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let body = || protobuf::framed(&good().encode_to_vec());
    for content_type in [
        "",
        "text/html",
        "application/json",
        "application/grpc-web",
        "application/grpc+json",
        "\u{1}",
    ] {
        let Ok(content_type) = http::HeaderValue::from_bytes(content_type.as_bytes()) else {
            continue;
        };
        let mut request = post(AUTHORIZE).body(()).unwrap();
        request.headers_mut().insert("content-type", content_type);
        let outcome = target.client.send(request, body()).await;
        assert!(
            outcome.http == 415 || outcome.status.is_some(),
            "{outcome:?}"
        );
        target.assert_alive("another content type").await;
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let mut request = post(AUTHORIZE).body(()).unwrap();
        *request.method_mut() = method.parse().unwrap();
        let outcome = target.client.send(request, body()).await;
        assert!(
            outcome.http >= 400 || outcome.status.is_some(),
            "{method}: {outcome:?}"
        );
        target.assert_alive("another method").await;
    }
    for (name, content) in [
        ("grpc-encoding", "identity"),
        ("grpc-accept-encoding", "x,,;"),
        ("te", "nothing"),
        ("x-bin", "!!!"),
        ("cookie", "a"),
    ] {
        let mut request = post(AUTHORIZE).body(()).unwrap();
        request.headers_mut().insert(name, content.parse().unwrap());
        let outcome = target.client.send(request, body()).await;
        assert!(
            outcome.status.is_some() || outcome.h2_error.is_some(),
            "{name}: {outcome:?}"
        );
        target.assert_accepting("another header").await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_headers_are_rejected() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    for (count, bytes) in [(1, 15_000), (1, 60_000), (500, 100), (10, 100_000)] {
        let mut request = post(AUTHORIZE);
        for n in 0..count {
            request = request.header(format!("x-{n}"), "h".repeat(bytes));
        }
        let client = target.connect().await;
        let outcome = client
            .send(
                request.body(()).unwrap(),
                protobuf::framed(&good().encode_to_vec()),
            )
            .await;
        println!(
            "{count} headers of {bytes}: {} {:?} {:?}",
            outcome.http, outcome.status, outcome.h2_error
        );
        if count * bytes > 16_384 {
            assert!(
                outcome.messages.is_empty(),
                "{count} headers of {bytes}: {outcome:?}"
            );
        }
        target.assert_accepting("large headers").await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_are_kept_and_malformed_ones_ignored() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let with = |path: &str, timeout: &[u8]| {
        let timeout = http::HeaderValue::from_bytes(timeout).unwrap();
        post(path).header("grpc-timeout", timeout).body(()).unwrap()
    };
    let bodies = || {
        let good = good().encode_to_vec();
        [
            (AUTHORIZE, protobuf::framed(&good)),
            (BATCH, protobuf::framed(&protobuf::field(1, &good))),
            (STREAM, protobuf::framed(&protobuf::field(2, &good))),
        ]
    };
    for timeout in ["0n", "1n", "0H", "00000000S"] {
        for (path, body) in bodies() {
            let outcome = target
                .client
                .send(with(path, timeout.as_bytes()), body)
                .await;
            assert_eq!(
                outcome.code(),
                Code::DeadlineExceeded,
                "{timeout}, {path}: {outcome:?}"
            );
            target.assert_alive("a deadline that passed").await;
        }
    }
    for timeout in [
        &b""[..],
        b"x",
        b"1",
        b"-1m",
        b"123456789m",
        b"1.5S",
        b"1 S",
        b"m\xff",
        b"\xc3\xa4m",
        b"99999999H",
        b"1s",
        b"1S1S",
    ] {
        for (path, body) in bodies() {
            let outcome = target.client.send(with(path, timeout), body).await;
            assert_eq!(outcome.code(), Code::Ok, "{timeout:?}, {path}: {outcome:?}");
            target.assert_alive("a deadline that is none").await;
        }
    }
    // The deadline passes before the body is complete: nothing, a part, or all but its end was
    // sent.
    for (path, body) in bodies() {
        for part in [0, 3, body.len() - 1, body.len()] {
            let started = Instant::now();
            let mut call = target.client.open(with(path, b"100m")).await.unwrap();
            if part > 0 {
                call.body
                    .send_data(Bytes::copy_from_slice(&body[..part]), false)
                    .unwrap();
            }
            let outcome = call.outcome().await;
            assert_eq!(
                outcome.code(),
                Code::DeadlineExceeded,
                "{path}, {part} bytes: {outcome:?}"
            );
            assert!(
                started.elapsed() >= Duration::from_millis(90),
                "{path}, {part} bytes"
            );
            target.assert_alive("a body that never came").await;
        }
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_clients_leave_no_descriptors() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let descriptors = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let pid = target.server.pid();
    let before = descriptors(pid);
    let good = good().encode_to_vec();
    for round in 0..60 {
        let client = target.connect().await;
        let path = [AUTHORIZE, BATCH, STREAM][round % 3];
        let mut call = client.open(post(path).body(()).unwrap()).await.unwrap();
        let message = match path {
            AUTHORIZE => protobuf::framed(&good),
            BATCH => protobuf::framed(&protobuf::field(1, &good).repeat(1_000)),
            _ => protobuf::framed(&protobuf::field(2, &good)).repeat(1_000),
        };
        // Cancelled before the body, within it, and after it.
        let sent = match round % 4 {
            0 => 0,
            1 => 7,
            2 => message.len() / 2,
            _ => message.len(),
        };
        call.body
            .send_data(Bytes::copy_from_slice(&message[..sent]), round % 4 == 3)
            .unwrap();
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        if round % 5 == 0 {
            call.reset();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(client);
    }
    eventually(
        "the connections of disconnected clients are closed",
        async || descriptors(pid) <= before + 2,
    )
    .await;
    target.assert_alive("callers that went away").await;
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_stream_is_bounded_by_its_window() {
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let good = good().encode_to_vec();
    let items = Bytes::from(protobuf::framed(&protobuf::field(2, &good)).repeat(20_000));
    target.assert_alive("nothing").await;
    let before = target.server.resident_kib();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = target.connect().await;
        let mut calls = Vec::new();
        for _ in 0..8 {
            let mut call = client.open(post(STREAM).body(()).unwrap()).await.unwrap();
            call.body.send_data(items.clone(), false).unwrap();
            calls.push(call);
        }
        clients.push((client, calls));
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let grown = target.server.resident_kib().saturating_sub(before);
    println!("32 streams unread: {grown} KiB");
    assert!(grown < 64 << 10, "32 unread streams hold {grown} KiB");
    target.assert_alive("an unread stream").await;
    drop(clients);
    target.close().await;
}
