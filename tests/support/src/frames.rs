//! Handwritten HTTP/2 frames, and raw bytes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::http2::AUTHORIZE;

/// The first bytes of every HTTP/2 connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Encodes the headers of an Authorize call, each as a literal.
pub fn call_headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let text = |block: &mut Vec<u8>, text: &str| {
        block.push(u8::try_from(text.len()).unwrap());
        block.extend_from_slice(text.as_bytes());
    };
    block.push(0x04);
    text(&mut block, AUTHORIZE);
    block.push(0x01);
    text(&mut block, "pdp.test");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.push(0x00);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// Returns the preface and an empty SETTINGS frame.
pub fn client_preface() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Sends bytes over a new connection, and reads the response if `reading`. Stops when the server
/// closes or `time_limit` ends. Returns the bytes read, and whether the server closed.
pub fn send_bytes(
    address: &str,
    bytes: &[u8],
    reading: bool,
    time_limit: Duration,
) -> (Vec<u8>, bool) {
    let mut socket = TcpStream::connect(address).expect("the server accepts");
    let mut reader = socket.try_clone().unwrap();
    socket.set_write_timeout(Some(time_limit)).unwrap();
    reader
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let read = scope.spawn(move || {
            let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
            while started.elapsed() < time_limit {
                if !reading {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                match reader.read(&mut buffer) {
                    Ok(0) => return (all, true),
                    Ok(n) => all.extend_from_slice(&buffer[..n]),
                    Err(e)
                        if matches!(
                            e.kind(),
                            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                        ) => {}
                    Err(_) => return (all, true),
                }
            }
            (all, false)
        });
        let _ = socket.write_all(bytes);
        let read = read.join().unwrap();
        let _ = socket.shutdown(Shutdown::Both);
        read
    })
}

/// Returns the kind and stream of each frame in `bytes`.
pub fn frames_in(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        frames.push((
            bytes[3],
            u32::from_be_bytes(bytes[5..9].try_into().unwrap()),
        ));
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    frames
}
