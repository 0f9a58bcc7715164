//! More calls than can be answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cedar_pdp::api::pb;
use cedar_pdp::api::pb::authorization_service_client::AuthorizationServiceClient;
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::raw::{AUTHORIZE, Caller, post};
use crate::support::{PATIENCE, Server, policy_directory, request};
use crate::wire::framed;

/// How long it is asked too much: long enough here to see it, and a minute with
/// `CEDAR_PDP_OVERLOAD_SECONDS=60`.
fn duration() -> Duration {
    let seconds = std::env::var("CEDAR_PDP_OVERLOAD_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(5))
}

/// Policies that take a while: all of them match, and none is told by its scope.
pub(crate) fn slow_policies(count: usize) -> String {
    (1..count)
        .map(|n| format!("permit(principal, action, resource) when {{ context.n * {n} == -1 }};\n"))
        .chain(["permit(principal, action, resource);\n".to_owned()])
        .collect()
}

/// A request that nobody has asked before, so that it has to be decided.
pub(crate) fn ask(n: i64) -> pb::AuthorizeRequest {
    let mut request = request(r#"User::"a""#, r#"Action::"read""#, r#"Doc::"1""#);
    let n = crate::support::value(pb::value::Kind::Long(n));
    request.context.insert("n".to_owned(), n);
    request
}

/// What a call ended with. There is nothing else that it may end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Decided,
    Shed,
    /// Its time was over, at the service or when the answer came.
    Late,
}

/// How long an answer is of use: the deadline of each call.
const USE: Duration = Duration::from_secs(1);
const USE_AS_TEXT: &str = "1S";

/// How a call ended that should have been made at `due`.
fn end_of(due: Instant, answered: Result<pb::AuthorizeResponse, Status>) -> End {
    match answered {
        Ok(answer) => {
            assert_eq!(answer.decision(), pb::Decision::Allow);
            match due.elapsed() <= USE {
                true => End::Decided,
                false => End::Late,
            }
        }
        Err(status) if status.code() == Code::DeadlineExceeded => End::Late,
        Err(status) => {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            let details = status.get_error_details();
            let info = details.error_info().expect("a reason");
            assert_eq!(info.reason, "OVERLOADED", "{status:?}");
            let retry = details.retry_info().and_then(|retry| retry.retry_delay);
            assert!(retry.is_some(), "{status:?}");
            let pushback = status.metadata().get("grpc-retry-pushback-ms");
            assert!(pushback.is_some(), "{status:?}");
            match due.elapsed() <= USE {
                true => End::Shed,
                false => End::Late,
            }
        }
    }
}

/// One call on this connection, due at `due`; fails when it is lost.
async fn call(caller: Arc<Caller>, n: i64, due: Instant) -> End {
    let head = post(AUTHORIZE).header("grpc-timeout", USE_AS_TEXT);
    let body = framed(&ask(n).encode_to_vec());
    let outcome = caller.send(head.body(()).unwrap(), body).await;
    match outcome.code() == Code::Ok {
        true => end_of(due, Ok(outcome.message())),
        false => end_of(due, Err(outcome.status.unwrap())),
    }
}

/// What calls ended with, and how often.
#[derive(Debug, Default)]
struct Ends {
    decided: u64,
    shed: u64,
    late: u64,
}

impl Ends {
    fn count(&mut self, end: End) {
        match end {
            End::Decided => self.decided += 1,
            End::Shed => self.shed += 1,
            End::Late => self.late += 1,
        }
    }

    fn all(&self) -> u64 {
        self.decided + self.shed + self.late
    }
}

/// How many calls are decided while each connection has one under way.
async fn capacity(callers: &[Arc<Caller>], duration: Duration) -> u64 {
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    for (number, caller) in callers.iter().enumerate() {
        let caller = Arc::clone(caller);
        asking.spawn(async move {
            let mut ends = Ends::default();
            let mut n = -1 - number as i64;
            while begun.elapsed() < duration {
                ends.count(call(Arc::clone(&caller), n, Instant::now()).await);
                n -= 1_000;
            }
            ends.decided
        });
    }
    asking.join_all().await.into_iter().sum()
}

/// Makes so many calls a second, whatever becomes of earlier ones.
async fn offer(callers: &[Arc<Caller>], per_second: f64, duration: Duration) -> Ends {
    let begun = Instant::now();
    let mut ends = Ends::default();
    let mut under_way = JoinSet::new();
    let mut made = 0;
    while begun.elapsed() < duration {
        let due = (begun.elapsed().as_secs_f64() * per_second) as i64;
        for n in made..due {
            // Its time, and not that at which this program came to it.
            let at = begun + Duration::from_secs_f64(n as f64 / per_second);
            let caller = &callers[n as usize % callers.len()];
            under_way.spawn(call(Arc::clone(caller), n, at));
        }
        made = due;
        while let Some(end) = under_way.try_join_next() {
            ends.count(end.expect("a call's assertions hold"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // What is still under way ends, too, and is not counted: nobody asks any more.
    for _ in under_way.join_all().await {}
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_behind_others_for_longer_than_its_deadline_is_not_decided() {
    let policies = policy_directory(&[("slow.cedar", &slow_policies(400))]);
    let server = Server::start(policies.path(), &["--overload-delay", "0s"]);
    let caller = Caller::connect(server.address()).await;
    let mut calls = Vec::new();
    for n in 0..250 {
        let request = match n {
            249 => post(AUTHORIZE).header("grpc-timeout", "1m"),
            _ => post(AUTHORIZE),
        };
        let mut call = caller.open(request.body(()).unwrap()).await.unwrap();
        let body = framed(&ask(n).encode_to_vec());
        call.body.send_data(body.into(), true).unwrap();
        calls.push(call);
    }
    let last = calls.pop().unwrap().outcome().await;
    let code = last.status.map(|status| status.code());
    assert_eq!(code, Some(Code::DeadlineExceeded));
    for call in calls {
        let code = call.outcome().await.status.map(|status| status.code());
        assert_eq!(code, Some(Code::Ok));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_shed_with_a_hint_and_the_rest_is_answered() {
    const TIMES: f64 = 10.0;
    // So many that to decide costs much more than to refuse, and than to ask.
    const POLICIES: usize = 3_000;
    let policies = policy_directory(&[("slow.cedar", &slow_policies(POLICIES))]);
    let server = Server::start(policies.path(), &["--cache-bytes", "0"]);
    let mut callers = Vec::new();
    for _ in 0..16 {
        callers.push(Arc::new(Caller::connect(server.address()).await));
    }
    let measured = Duration::from_secs(3);
    let capacity = capacity(&callers, measured).await as f64 / measured.as_secs_f64();

    // Others, with connections of their own, who ask now and then; in the midst of it health is told.
    let (mut client, mut health) = (
        AuthorizationServiceClient::new(server.channel().await),
        HealthClient::new(server.channel().await),
    );
    let beside = tokio::spawn(async move {
        let mut ends = Ends::default();
        let begun = Instant::now();
        for n in 0.. {
            if begun.elapsed() >= duration() {
                break;
            }
            let mut request = Request::new(ask(i64::MAX / 2 - n));
            request.set_timeout(USE);
            let due = Instant::now();
            let answered = client.authorize(request).await;
            ends.count(end_of(due, answered.map(tonic::Response::into_inner)));
            let asked = health.check(HealthCheckRequest::default());
            assert_eq!(asked.await.unwrap().into_inner().status, 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ends
    });
    let ends = offer(&callers, capacity * TIMES, duration()).await;
    let beside = beside.await.expect("a call's assertions hold");
    let could_be = capacity * duration().as_secs_f64();
    println!("of {could_be:.0} that could be decided: {ends:?}; beside: {beside:?}");
    let ended = ends.all() as f64;
    assert!(ended >= could_be * TIMES / 2.0, "it was not asked too much");
    assert!(ends.decided as f64 >= could_be / 8.0, "too few are decided");
    assert!(ends.shed > 0 && ends.late * 4 <= ends.all(), "{ends:?}");
    assert!(beside.decided * 2 >= beside.all(), "{beside:?}");

    // Once it is over, everything is answered.
    let begun = Instant::now();
    while call(Arc::clone(&callers[0]), i64::MAX, Instant::now()).await != End::Decided {
        assert!(begun.elapsed() < PATIENCE, "it is never over");
    }
}
