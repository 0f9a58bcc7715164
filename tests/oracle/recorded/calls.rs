//! Draws calls: alone, in batches and on streams, well-formed and malformed.

use cedar_pdp::pdp::query::Query;

use super::message::{Request, flag};
use crate::rng::Rng;
use cedar_pdp_test_support::http2::{AUTHORIZE, BATCH, STREAM};
use cedar_pdp_test_support::protobuf::{field, framed, framed_as};

/// The method that lists the policies in force.
const LIST: &str = "/pdp.v1.PolicyStoreService/ListPolicies";

/// One call.
pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    /// The messages with their gRPC prefixes.
    pub(super) body: Vec<u8>,
}

impl Call {
    fn new(method: &'static str, body: Vec<u8>) -> Self {
        Self {
            method,
            headers: Vec::new(),
            body,
        }
    }

    pub(super) fn unary(request: &[u8]) -> Self {
        Self::new(AUTHORIZE, framed(request))
    }

    pub(super) fn batch(requests: &[Vec<u8>]) -> Self {
        let requests: Vec<_> = requests.iter().map(|request| field(1, request)).collect();
        Self::new(BATCH, framed(&requests.concat()))
    }

    pub(super) fn stream(requests: &[Vec<u8>]) -> Self {
        let items = requests
            .iter()
            .zip(1..)
            .map(|(request, number)| framed(&[flag(1, number), field(2, request)].concat()));
        Self::new(STREAM, items.collect::<Vec<_>>().concat())
    }

    /// Sends the same requests in one of the three ways, mostly the first.
    pub(super) fn drawn(rng: &mut Rng, mut requests: impl FnMut(&mut Rng) -> Vec<u8>) -> Self {
        let mode = rng.below(10);
        let count = if mode < 8 { 1 } else { rng.between(0, 8) };
        let requests: Vec<_> = (0..count).map(|_| requests(rng)).collect();
        match mode {
            8 => Self::batch(&requests),
            9 => Self::stream(&requests),
            _ => Self::unary(&requests.concat()),
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn head(&self) -> http::Request<()> {
        let mut head = cedar_pdp_test_support::http2::post(self.method);
        for (name, value) in &self.headers {
            head = head.header(*name, value);
        }
        head.body(()).unwrap()
    }
}

/// Draws `count` calls of these queries, some of them faulty.
pub(super) fn draw(rng: &mut Rng, queries: &[Query], count: usize) -> Vec<Call> {
    let mut calls = unusual(rng, &queries[0]);
    calls.truncate(count);
    // Each query is sent at least once if `count` allows it, and some again.
    let mut once = queries.iter();
    while calls.len() < count {
        let mut first = once.next().cloned();
        calls.push(Call::drawn(rng, |rng| {
            let query = first.take().unwrap_or_else(|| rng.pick(queries));
            let explain = rng.chance(30);
            let request = Request::new(rng, &query, explain);
            match rng.chance(8) {
                true => request.faulty(rng),
                false => request.bytes(),
            }
        }));
    }
    calls
}

/// Draws calls with unusual paths, headers or bodies.
fn unusual(rng: &mut Rng, query: &Query) -> Vec<Call> {
    let request = Request::new(rng, query, false).bytes();
    let unset = framed(&flag(1, 7));
    vec![
        Call::new(LIST, framed(b"")),
        Call::new(LIST, framed(&flag(1, 2))),
        Call::new(LIST, framed(&field(2, b"no token of a page"))),
        Call::unary(&request).with("grpc-timeout", "1n"),
        Call::unary(&request).with("grpc-encoding", "gzip"),
        Call::new("/pdp.v1.AuthorizationService/Nothing", framed(&request)),
        Call::new(AUTHORIZE, Vec::new()),
        Call::new(AUTHORIZE, framed(b"")),
        Call::new(AUTHORIZE, framed_as(1, request.len() as u32, &request)),
        Call::new(AUTHORIZE, [framed(&request), framed(&request)].concat()),
        Call::new(STREAM, [unset, framed(b""), framed(&[0xff])].concat()),
        Call::batch(&[]),
    ]
}
