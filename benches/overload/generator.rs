//! Calls at fixed times, independent of earlier answers: handwritten HTTP/2 from one thread that
//! never sleeps.
//!
//! A client library needs more time per call than the service needs to shed it, and would be
//! overloaded first. This client implements only a minimum of HTTP/2. A request is two frames, of
//! which the first is constant after the first call of a connection. An answer with a message was
//! decided, one without was shed. The client respects the limits on concurrent streams and flow
//! control.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use prost::bytes::Buf as _;

use crate::support::running;

/// The deadline of each call. A call that cannot be sent by then is not sent.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(1);
/// The time limit for answers to the last calls.
const ANSWER_TIME_LIMIT: Duration = Duration::from_secs(30);
pub(crate) const CONNECTIONS: usize = 16;
/// Calls in flight per connection, at the rate `AsAnswered`.
pub(crate) const IN_FLIGHT: usize = 4;

const METHOD: &str = "/pdp.v1.AuthorizationService/Authorize";

/// The rate of calls.
#[derive(Clone, Copy)]
pub(crate) enum Rate {
    /// As fast as they are answered: each connection keeps a few calls in flight.
    AsAnswered,
    /// Calls per second.
    PerSecond(f64),
}

/// The results of all calls that ended during the run.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The latency of each call that was decided in time.
    pub(crate) decided: Vec<Duration>,
    /// The latency of each call that was shed in time.
    pub(crate) shed: Vec<Duration>,
    /// Calls not answered in time.
    pub(crate) late: usize,
    /// Late calls that were never sent.
    pub(crate) unsent: usize,
    /// Shed calls, in time or late.
    pub(crate) shed_ever: usize,
    /// The longest time between two iterations over the connections.
    pub(crate) longest_pause: Duration,
}

/// Makes calls to `address` for this duration. Waits for the answers to calls in flight, uncounted.
pub(crate) fn run(address: &str, rate: Rate, duration: Duration) -> anyhow::Result<Outcome> {
    let mut connections = (0..CONNECTIONS)
        .map(|_| Connection::open(address))
        .collect::<Result<Vec<_>, _>>()?;
    let mut outcome = Outcome::default();
    let started = Instant::now();
    if let Rate::AsAnswered = rate {
        for connection in &mut connections {
            connection.waiting.extend([started; IN_FLIGHT]);
        }
    }
    let mut messages = Messages::new();
    let mut due = 0_u32;
    let mut now = started;
    loop {
        let before = std::mem::replace(&mut now, Instant::now());
        outcome.longest_pause = outcome.longest_pause.max(now - before);
        let is_over = now - started > duration;
        if let Rate::PerSecond(rate) = rate
            && !is_over
        {
            let by_now = ((now - started).as_secs_f64() * rate) as u32;
            for call in due..by_now {
                // The scheduled time, not the time at which this loop reaches the call.
                let at = started + Duration::from_secs_f64(f64::from(call) / rate);
                let turn = call as usize % CONNECTIONS;
                if let Some(connection) = connections.get_mut(turn) {
                    connection.waiting.push_back(at);
                }
            }
            due = by_now;
        }
        for connection in &mut connections {
            connection.drop_expired(now, &mut outcome);
            connection.send(&mut messages)?;
            let answered = connection.receive(&mut outcome, is_over)?;
            if let Rate::AsAnswered = rate
                && !is_over
            {
                connection
                    .waiting
                    .extend(std::iter::repeat_n(Instant::now(), answered));
            }
        }
        if is_over {
            for connection in &mut connections {
                connection.waiting.clear();
            }
            if connections
                .iter()
                .all(|connection| connection.in_flight == 0)
            {
                return Ok(outcome);
            }
            ensure!(
                now - started < duration + ANSWER_TIME_LIMIT,
                "calls are not answered"
            );
        }
    }
}

// RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const DEFAULT_WINDOW: i64 = 65_535;
const FRAME_HEAD: usize = 9;

struct Connection {
    stream: TcpStream,
    /// The times of the calls that could not be sent yet.
    waiting: VecDeque<Instant>,
    /// The calls of the streams from `first` on; `None` for ended ones.
    calls: VecDeque<Option<SentCall>>,
    /// The stream of the first of `calls`.
    first: u32,
    in_flight: usize,
    most_in_flight: usize,
    /// The flow-control window for messages, in bytes.
    window: i64,
    /// The headers of the next call.
    headers: Vec<u8>,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

#[derive(Clone, Copy)]
struct SentCall {
    at: Instant,
    has_message: bool,
}

impl Connection {
    fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut outgoing = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame(&mut outgoing, SETTINGS, 0, 0, &[]);
        // The largest window, for all answers of a run.
        let increment = (u32::MAX >> 1) - DEFAULT_WINDOW as u32;
        frame(&mut outgoing, WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
        Ok(Self {
            stream,
            waiting: VecDeque::new(),
            calls: VecDeque::new(),
            first: 1,
            in_flight: 0,
            most_in_flight: 100,
            window: DEFAULT_WINDOW,
            headers: first_headers(address),
            outgoing,
            incoming: Vec::new(),
        })
    }

    /// Counts and drops waiting calls whose deadline has passed.
    fn drop_expired(&mut self, now: Instant, outcome: &mut Outcome) {
        while self
            .waiting
            .pop_front_if(|at| now - *at > CALL_DEADLINE)
            .is_some()
        {
            outcome.late += 1;
            outcome.unsent += 1;
        }
    }

    /// Sends waiting calls, as far as the limits allow.
    fn send(&mut self, messages: &mut Messages) -> anyhow::Result<()> {
        while self.in_flight < self.most_in_flight
            && self.window > 1_000
            && let Some(at) = self.waiting.pop_front()
        {
            let stream = self.first + 2 * u32::try_from(self.calls.len())?;
            frame(
                &mut self.outgoing,
                HEADERS,
                END_HEADERS,
                stream,
                &self.headers,
            );
            self.headers = NEXT_HEADERS.to_vec();
            let body = messages.next()?;
            self.window -= i64::try_from(body.len())?;
            frame(&mut self.outgoing, DATA, END_STREAM, stream, &body);
            self.calls.push_back(Some(SentCall {
                at,
                has_message: false,
            }));
            self.in_flight += 1;
        }
        while !self.outgoing.is_empty() {
            match ready(self.stream.write(&self.outgoing))? {
                Some(written) => drop(self.outgoing.drain(..written)),
                None => break,
            }
        }
        Ok(())
    }

    /// Reads and handles frames. Returns the number of calls that they end.
    fn receive(&mut self, outcome: &mut Outcome, is_over: bool) -> anyhow::Result<usize> {
        let mut buffer = [0; 64 << 10];
        let Some(length) = ready(self.stream.read(&mut buffer))? else {
            return Ok(0);
        };
        ensure!(length > 0, "the server closed a connection");
        self.incoming
            .extend_from_slice(buffer.get(..length).unwrap_or_default());
        let incoming = std::mem::take(&mut self.incoming);
        let mut rest = incoming.as_slice();
        let before = self.in_flight;
        while let Some(mut head) = rest.get(..FRAME_HEAD) {
            let length = usize::try_from(head.get_uint(3))?;
            let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
            let Some(payload) = rest.get(FRAME_HEAD..FRAME_HEAD + length) else {
                break;
            };
            rest = rest.get(FRAME_HEAD + length..).unwrap_or_default();
            let Some(sent) = self.handle_frame(kind, flags, stream, payload)? else {
                continue;
            };
            outcome.count(sent, is_over);
        }
        self.incoming = rest.to_vec();
        Ok(before - self.in_flight)
    }

    /// Handles one frame. Returns the call that it ends.
    fn handle_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        mut payload: &[u8],
    ) -> anyhow::Result<Option<SentCall>> {
        match kind {
            DATA | HEADERS => {
                let place = usize::try_from(stream.saturating_sub(self.first) / 2)?;
                let call = self.calls.get_mut(place).context("a stream of no call")?;
                let sent = call.as_mut().context("a stream whose call is over")?;
                sent.has_message |= kind == DATA;
                if flags & END_STREAM == 0 {
                    return Ok(None);
                }
                let count = call.take();
                self.in_flight -= 1;
                while let Some(None) = self.calls.front() {
                    self.calls.pop_front();
                    self.first += 2;
                }
                return Ok(count);
            }
            SETTINGS if flags & ACK == 0 => {
                while payload.remaining() >= 6 {
                    let (setting, value) = (payload.get_u16(), payload.get_u32());
                    if setting == MAX_CONCURRENT_STREAMS {
                        self.most_in_flight = usize::try_from(value)?;
                    }
                }
                frame(&mut self.outgoing, SETTINGS, ACK, 0, &[]);
            }
            PING if flags & ACK == 0 => frame(&mut self.outgoing, PING, ACK, 0, payload),
            WINDOW_UPDATE if stream == 0 => self.window += i64::from(payload.get_u32()),
            SETTINGS | PING | WINDOW_UPDATE => {}
            other => bail!("a frame of type {other} on stream {stream}"),
        }
        Ok(None)
    }
}

impl Outcome {
    /// Counts an answered call.
    fn count(&mut self, call: SentCall, is_over: bool) {
        let took = call.at.elapsed();
        if !call.has_message {
            self.shed_ever += 1;
        }
        match call.has_message {
            _ if is_over => {}
            _ if took > CALL_DEADLINE => self.late += 1,
            true => self.decided.push(took),
            false => self.shed.push(took),
        }
    }
}

/// Converts `WouldBlock` to `None`.
fn ready(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}

/// Appends a frame to `out`.
fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(length.to_be_bytes().get(1..).unwrap_or_default());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Encodes the headers of a connection's first call, which enter the HPACK table (RFC 7541).
fn first_headers(address: &str) -> Vec<u8> {
    // Static table: `:method: POST`, `:scheme: http`.
    let mut block = vec![0x83, 0x86];
    let mut literal = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        block.extend_from_slice(value.as_bytes());
    };
    // Literals for the dynamic table, with a name from the static table or in full.
    literal(&[0x44], METHOD);
    literal(&[0x41], address);
    literal(&[0x5f], "application/grpc");
    literal(b"\x40\x02te", "trailers");
    literal(b"\x40\x0cgrpc-timeout", "1S");
    block
}

/// The same headers in later calls: the five in the dynamic table, the last of which is number 62.
const NEXT_HEADERS: [u8; 7] = [
    0x83,
    0x86,
    0x80 | 66,
    0x80 | 65,
    0x80 | 64,
    0x80 | 63,
    0x80 | 62,
];

/// The messages of calls, all different.
struct Messages {
    request: pb::AuthorizeRequest,
    number: i64,
}

impl Messages {
    fn new() -> Self {
        Self {
            request: running::request(r#"User::"a""#, r#"Action::"read""#, r#"Doc::"1""#),
            number: i64::from(std::process::id()) * 100_000_000,
        }
    }

    /// Returns the next message, with gRPC's prefix.
    fn next(&mut self) -> anyhow::Result<Vec<u8>> {
        self.number += 1;
        let n = running::value(pb::value::Kind::Long(self.number));
        self.request.context.insert("n".to_owned(), n);
        let length = u32::try_from(self.request.encoded_len())?;
        let mut body = vec![0];
        body.extend_from_slice(&length.to_be_bytes());
        self.request.encode(&mut body)?;
        Ok(body)
    }
}
