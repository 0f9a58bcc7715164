//! Invalid connections: another protocol, no data, or too much data.

use crate::support::eventually;
use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use prost::Message as _;

use super::requests::{WITHOUT_SCHEMA, good};
use super::target::Target;
use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, call_headers, client_preface, frame, frames_in, send_bytes,
};
use crate::support::http2::{AUTHORIZE, post};
use crate::support::protobuf;

const SHORT_WAIT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_another_protocol_end_the_connection_alone() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let tls = [
        &[
            0x16, 0x03, 0x01, 0x00, 0x80, 0x01, 0x00, 0x00, 0x7c, 0x03, 0x03,
        ][..],
        &[0x42; 32],
        &[0x00, 0x00, 0x02, 0x13, 0x01, 0x01, 0x00],
        &[0; 80],
    ]
    .concat();
    let seed: Vec<u8> = (0..100_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let long_line = [&b"GET /"[..], &vec![b'a'; 1 << 20]].concat();
    for (case, bytes) in [
        ("HTTP/1.1", &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]),
        ("an upgrade", b"POST / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"),
        ("a long line", &long_line),
        ("a TLS hello", &tls),
        ("noise", &seed),
        ("zeros", &[0; 10_000]),
        ("half a preface", &PREFACE[..12]),
        ("a preface and noise", &[PREFACE, &seed].concat()),
        ("a preface and HTTP/1.1", &[PREFACE, b"GET / HTTP/1.1\r\n\r\n"].concat()),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
    ] {
        let (_, closed) = send_bytes(target.server.address(), bytes, true, SHORT_WAIT);
        println!("{case}: closed {closed}");
        if case != "half a preface" {
            assert!(closed, "{case}: the connection stays open");
        }
        target.assert_alive(case).await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_errors_end_only_their_connection() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let call = frame(HEADERS, END_HEADERS, 1, &call_headers());
    for (case, frames) in [
        ("DATA of no stream", frame(DATA, 0, 1, b"x")),
        ("DATA of stream 0", frame(DATA, 0, 0, b"x")),
        (
            "an even stream",
            frame(HEADERS, END_HEADERS, 2, &call_headers()),
        ),
        (
            "headers that do not decode",
            frame(HEADERS, END_HEADERS, 1, &[0xff; 50]),
        ),
        (
            "an index of no header",
            frame(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ),
        (
            "headers without their end",
            frame(HEADERS, 0, 1, &call_headers()),
        ),
        ("an unknown frame", frame(0xee, 0xff, 1, b"x")),
        (
            "a window of 2^31",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        ),
        ("a window of 0", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 0])),
        ("a PING of 7 bytes", frame(PING, 0, 0, &[0; 7])),
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        (
            "a frame of 16 MiB",
            [
                vec![0xff, 0xff, 0xff, DATA, 0],
                vec![0, 0, 0, 1],
                vec![0; 1000],
            ]
            .concat(),
        ),
        (
            "DATA beyond the window",
            [call.clone(), frame(DATA, 0, 1, &[0; 16_384]).repeat(200)].concat(),
        ),
        (
            "padding beyond the frame",
            [call.clone(), frame(DATA, 8, 1, &[0xff, 0])].concat(),
        ),
        (
            "RST of an idle stream",
            frame(RST_STREAM, 0, 99, &[0, 0, 0, 8]),
        ),
        ("GOAWAY", frame(GOAWAY, 0, 0, &[0; 8])),
        (
            "headers after the end",
            [
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &call_headers()),
                call.clone(),
            ]
            .concat(),
        ),
    ] {
        let (_, closed) = send_bytes(
            target.server.address(),
            &[client_preface(), frames].concat(),
            true,
            SHORT_WAIT,
        );
        println!("{case}: closed {closed}");
        target.assert_alive(case).await;
    }
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_small_frames_cost_no_memory() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    target.assert_alive("nothing").await;
    let before = target.server.resident_kib();
    let call = frame(HEADERS, END_HEADERS, 1, &call_headers());
    let resets: Vec<u8> = (0..2_000_u32)
        .flat_map(|n| {
            [
                frame(HEADERS, END_HEADERS, 2 * n + 1, &call_headers()),
                frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]),
            ]
            .concat()
        })
        .collect();
    let opened: Vec<u8> = (0..2_000_u32)
        .flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &call_headers()))
        .collect();
    let continued = [
        frame(HEADERS, 0, 1, &call_headers()),
        frame(CONTINUATION, 0, 1, b"").repeat(100_000),
    ]
    .concat();
    let long: Vec<u8> = {
        let header = [&[0x00, 0x01, b'x', 0x7e][..], &[b'y'; 126]].concat();
        [
            frame(HEADERS, 0, 1, &call_headers()),
            frame(CONTINUATION, 0, 1, &header.repeat(100)).repeat(500),
        ]
        .concat()
    };
    // One header is entered into the table once and referenced many thousand times.
    let bomb = {
        let entry = [&[0x40, 0x01, b'x', 0x7f, 0x81, 0x1e][..], &[b'y'; 4_000]].concat();
        let block = [call_headers(), entry, vec![0xbe; 10_000]].concat();
        frame(HEADERS, END_HEADERS, 1, &block)
    };
    for (case, flood) in [
        ("2,000 calls reset at once", resets),
        ("2,000 calls opened at once", opened),
        (
            "100,000 empty DATA frames",
            [call.clone(), frame(DATA, 0, 1, b"").repeat(100_000)].concat(),
        ),
        (
            "100,000 padded DATA frames",
            [
                call.clone(),
                frame(DATA, 8, 1, &[3, 0, 0, 0]).repeat(100_000),
            ]
            .concat(),
        ),
        ("100,000 empty CONTINUATIONs", continued),
        ("6 MiB of headers", long),
        ("a header bomb", bomb),
        ("100,000 PINGs", frame(PING, 0, 0, &[0; 8]).repeat(100_000)),
        (
            "100,000 SETTINGS",
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(100_000),
        ),
        (
            "100,000 WINDOW_UPDATEs",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(100_000),
        ),
    ] {
        for reading in [true, false] {
            let bytes = [client_preface(), flood.clone()].concat();
            let (answer, closed) = send_bytes(target.server.address(), &bytes, reading, SHORT_WAIT);
            let frames = frames_in(&answer);
            let count = |kind: u8| frames.iter().filter(|(k, _)| *k == kind).count();
            println!(
                "{case}, read {reading}: closed {closed}, {} RST_STREAM, {} GOAWAY, {} KiB",
                count(RST_STREAM),
                count(GOAWAY),
                target.server.resident_kib()
            );
            if reading && case.starts_with("2,000 calls") {
                assert!(
                    count(RST_STREAM) + count(GOAWAY) > 0,
                    "all of {case} are accepted"
                );
            }
            target.assert_alive(case).await;
        }
    }
    eventually("the memory's return", async || {
        target.server.resident_kib() < before + (48 << 10)
    })
    .await;
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_resets_leave_others_alone() {
    let mut target = Target::open(WITHOUT_SCHEMA, &[]).await;
    let body = prost::bytes::Bytes::from(protobuf::framed(&good().encode_to_vec()));
    let mut resets = 0;
    for _ in 0..10 {
        let client = target.connect().await;
        for _ in 0..200 {
            // The server may send GOAWAY.
            let Ok(mut call) = client.open(post(AUTHORIZE).body(()).unwrap()).await else {
                break;
            };
            let _ = call.body.send_data(body.clone(), false);
            call.reset();
            resets += 1;
        }
        target.assert_alive("resets").await;
    }
    println!("{resets} resets");
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_streams_are_bounded_by_the_setting() {
    let mut target = Target::open(WITHOUT_SCHEMA, &["--max-concurrent-streams", "8"]).await;
    let opened: Vec<u8> = (0..100_u32)
        .flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &call_headers()))
        .collect();
    let (answer, _) = send_bytes(
        target.server.address(),
        &[client_preface(), opened].concat(),
        true,
        SHORT_WAIT,
    );
    let rejected = frames_in(&answer)
        .iter()
        .filter(|(kind, _)| *kind == RST_STREAM || *kind == GOAWAY)
        .count();
    assert!(rejected > 0, "all of 100 concurrent calls are accepted");
    // A client that respects the setting gets all its answers.
    let client = std::sync::Arc::new(target.connect().await);
    // The first answer arrives after the server's settings.
    super::target::allowed(&client, "a connection's begin").await;
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = std::sync::Arc::clone(&client);
            tokio::spawn(
                async move { client.call(AUTHORIZE, &good().encode_to_vec()).await.code() },
            )
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), tonic::Code::Ok);
    }
    target.assert_alive("many calls at a time").await;
    target.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_closed() {
    // They do not affect other clients.
    let mut target = Target::open(
        WITHOUT_SCHEMA,
        &[
            "--keepalive-interval",
            "200ms",
            "--keepalive-timeout",
            "200ms",
            "--handshake-timeout",
            "200ms",
        ],
    )
    .await;
    let pid = target.server.pid();
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let before = descriptors();
    let memory = target.server.resident_kib();
    let mut open = Vec::new();
    for n in 0..200 {
        let mut socket = TcpStream::connect(target.server.address()).unwrap();
        match n % 4 {
            0 => {}
            1 => socket.write_all(&PREFACE[..10]).unwrap(),
            2 => socket.write_all(&client_preface()).unwrap(),
            _ => socket
                .write_all(
                    &[
                        client_preface(),
                        frame(HEADERS, END_HEADERS, 1, &call_headers()),
                    ]
                    .concat(),
                )
                .unwrap(),
        }
        open.push(socket);
    }
    target.assert_accepting("200 half-open connections").await;
    println!(
        "200 half-open connections: {} KiB",
        target.server.resident_kib().saturating_sub(memory)
    );
    let started = std::time::Instant::now();
    while descriptors() > before + 10 && started.elapsed() < Duration::from_secs(8) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = descriptors().saturating_sub(before);
    println!("{left} left after {:?}", started.elapsed());
    assert!(
        left <= 10,
        "{left} of 200 half-open connections are never closed"
    );
    drop(open);
    target.close().await;
}
