//! More calls than the service can answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cedar_pdp::api::grpc::pb;
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::support::http2::{AUTHORIZE, Http2Client, post};
use crate::support::protobuf::framed;
use crate::support::{Server, eventually, get, policy_directory, request};

/// Returns the duration of the overload: short by default, a minute with
/// `CEDAR_PDP_OVERLOAD_SECONDS=60`.
fn duration() -> Duration {
    let seconds = std::env::var("CEDAR_PDP_OVERLOAD_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(5))
}

/// Returns policies that are slow to evaluate: all match, and the index excludes none.
pub(crate) fn slow_policies(count: usize) -> String {
    (1..count)
        .map(|n| format!("permit(principal, action, resource) when {{ context.n * {n} == -1 }};\n"))
        .chain(["permit(principal, action, resource);\n".to_owned()])
        .collect()
}

/// Returns whether the service may be an optimised build, which decides much faster than the clients
/// here can call.
fn is_optimised() -> bool {
    std::env::var_os("CEDAR_PDP_TEST_BINARY").is_some()
}

/// Returns a new request, which is not cached.
pub(crate) fn numbered_request(n: i64) -> pb::AuthorizeRequest {
    let mut request = request(r#"User::"a""#, r#"Action::"read""#, r#"Doc::"1""#);
    let n = crate::support::value(pb::value::Kind::Long(n));
    request.context.insert("n".to_owned(), n);
    request
}

/// The outcome of a call. No other outcome is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallOutcome {
    Decided,
    Shed,
    /// The deadline passed in the service or before the answer arrived.
    Late,
    /// The deadline passed before the call could be sent.
    Unsent,
}

/// The deadline of each call.
const CALL_DEADLINE: Duration = Duration::from_secs(1);
const CALL_DEADLINE_TEXT: &str = "1S";

/// A connection with a limit of concurrent calls. As in HTTP/2, further calls wait in the client.
struct LoadClient {
    client: Http2Client,
    slots: Semaphore,
}

impl LoadClient {
    async fn connect(server: &Server) -> Arc<Self> {
        Arc::new(Self {
            client: Http2Client::connect(server.address()).await,
            // Somewhat less than the server's limit.
            slots: Semaphore::new(200),
        })
    }
}

/// Makes one call that is due at `due`. Panics if it is lost or rejected for another reason.
async fn call(load_client: Arc<LoadClient>, n: i64, due: Instant) -> CallOutcome {
    let slots = load_client.slots.acquire();
    let Ok(_slot) = tokio::time::timeout_at((due + CALL_DEADLINE).into(), slots).await else {
        return CallOutcome::Unsent;
    };
    let head = post(AUTHORIZE).header("grpc-timeout", CALL_DEADLINE_TEXT);
    let body = framed(&numbered_request(n).encode_to_vec());
    let outcome = load_client.client.send(head.body(()).unwrap(), body).await;
    let code = outcome.code();
    let outcome = if code == Code::Ok {
        let answer: pb::AuthorizeResponse = outcome.message();
        assert_eq!(answer.decision(), pb::Decision::Allow);
        CallOutcome::Decided
    } else if code == Code::DeadlineExceeded {
        CallOutcome::Late
    } else {
        let status = outcome.status.unwrap();
        assert_eq!(code, Code::ResourceExhausted, "{status:?}");
        let details = status.get_error_details();
        let info = details.error_info().expect("a reason");
        assert_eq!(info.reason, "OVERLOADED", "{status:?}");
        let retry = details.retry_info().and_then(|retry| retry.retry_delay);
        assert!(retry.is_some(), "{status:?}");
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        assert!(pushback.is_some(), "{status:?}");
        CallOutcome::Shed
    };
    match due.elapsed() <= CALL_DEADLINE {
        true => outcome,
        false => CallOutcome::Late,
    }
}

/// The number of calls by outcome.
#[derive(Debug, Default)]
struct Outcomes {
    decided: u64,
    shed: u64,
    late: u64,
    unsent: u64,
}

impl Outcomes {
    fn count(&mut self, outcome: CallOutcome) {
        match outcome {
            CallOutcome::Decided => self.decided += 1,
            CallOutcome::Shed => self.shed += 1,
            CallOutcome::Late => self.late += 1,
            CallOutcome::Unsent => self.unsent += 1,
        }
    }

    /// Returns the number of calls that reached the service.
    fn sent(&self) -> u64 {
        self.decided + self.shed + self.late
    }
}

/// The decisions with one call in flight on each connection.
#[derive(Debug)]
struct Capacity {
    decided: u64,
    per_second: f64,
}

async fn capacity(clients: &[Arc<LoadClient>]) -> Capacity {
    let started = Instant::now();
    let duration = Duration::from_secs(3);
    let mut calls = JoinSet::new();
    for (load_client, first) in clients.iter().cloned().zip(1 << 40..) {
        calls.spawn(async move {
            let mut outcomes = Outcomes::default();
            for n in (first..).step_by(1_000) {
                if started.elapsed() >= duration {
                    break;
                }
                outcomes.count(call(Arc::clone(&load_client), n, Instant::now()).await);
            }
            outcomes.decided
        });
    }
    let decided = calls.join_all().await.into_iter().sum();
    let per_second = decided as f64 / duration.as_secs_f64();
    Capacity {
        decided,
        per_second,
    }
}

/// Makes calls at this rate, independent of earlier answers.
async fn send_at_rate(
    clients: &[Arc<LoadClient>],
    per_second: f64,
    duration: Duration,
) -> Outcomes {
    let started = Instant::now();
    let mut outcomes = Outcomes::default();
    let mut in_flight = JoinSet::new();
    let mut made = 0;
    while started.elapsed() < duration {
        let due = (started.elapsed().as_secs_f64() * per_second) as i64;
        for n in made..due {
            // Scheduled time, not the time at which this loop reaches the call.
            let at = started + Duration::from_secs_f64(n as f64 / per_second);
            let load_client = &clients[n as usize % clients.len()];
            in_flight.spawn(call(Arc::clone(load_client), n, at));
        }
        made = due;
        while let Some(outcome) = in_flight.try_join_next() {
            outcomes.count(outcome.expect("a call's assertions hold"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Calls in flight also end, uncounted, because the load has stopped.
    for _ in in_flight.join_all().await {}
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_call_past_its_deadline_is_undecided() {
    // Deciding must take longer than sending the calls.
    let policies = match is_optimised() {
        true => 4_000,
        false => 400,
    };
    let policies = policy_directory(&[("slow.cedar", &slow_policies(policies))]);
    let server = Server::start(policies.path(), &["--overload-delay", "0s"]);
    let client = Http2Client::connect(server.address()).await;
    let mut calls = Vec::new();
    for n in 0..250 {
        let request = match n {
            249 => post(AUTHORIZE).header("grpc-timeout", "1m"),
            _ => post(AUTHORIZE),
        };
        let mut call = client.open(request.body(()).unwrap()).await.unwrap();
        let body = framed(&numbered_request(n).encode_to_vec());
        // Fails if the service has answered already, as it may once the deadline has passed.
        let _ = call.body.send_data(body.into(), true);
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
async fn overload_is_shed_with_a_retry_hint() {
    // The other calls are answered.
    const TIMES: f64 = 6.0;
    // Deciding must cost much more than shedding, and than calling.
    let policies = match is_optimised() {
        true => 9_000,
        false => 3_000,
    };
    let policies = policy_directory(&[("slow.cedar", &slow_policies(policies))]);
    let options = ["--cache-bytes", "0", "--admin-listen", "127.0.0.1:0"];
    let server = Server::start(policies.path(), &options);
    let admin = server.admin();
    let overload = || {
        let page = get(&admin, "/status");
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        page["overload"].clone()
    };
    assert_eq!(overload()["shed"], 0);
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(LoadClient::connect(&server).await);
    }
    let idle = server.processor_ticks();
    let capacity = capacity(&clients).await;
    let busy = server.processor_ticks();
    let each = (busy - idle) as f64 / capacity.decided as f64;

    // Another client, on its own connection, calls now and then and checks the health.
    let other = LoadClient::connect(&server).await;
    let mut health = HealthClient::new(server.channel().await);
    let other_client = tokio::spawn(async move {
        let mut outcomes = Outcomes::default();
        let started = Instant::now();
        for n in 1 << 41.. {
            if started.elapsed() >= duration() {
                break;
            }
            outcomes.count(call(Arc::clone(&other), n, Instant::now()).await);
            let health_call = health.check(HealthCheckRequest::default());
            assert_eq!(health_call.await.unwrap().into_inner().status, 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        outcomes
    });
    // Reads the state during the overload.
    let during = async {
        tokio::time::sleep(duration() * 3 / 4).await;
        (overload(), get(&admin, "/metrics"))
    };
    let offered = send_at_rate(&clients, capacity.per_second * TIMES, duration());
    let (outcomes, (during, page)) = tokio::join!(offered, during);
    let other_client = other_client.await.expect("a call's assertions hold");
    // Computed from the CPU time that the service had, because clients use the rest.
    let possible = (server.processor_ticks() - busy) as f64 / each;
    println!("{capacity:?}; of {possible:.0}: {outcomes:?}; other client: {other_client:?}");
    assert!(
        outcomes.sent() as f64 >= possible * TIMES / 2.0,
        "too few calls are sent"
    );
    assert!(
        outcomes.decided as f64 >= possible / 8.0,
        "too few are decided"
    );
    assert!(outcomes.shed > 0, "no call is shed");
    // Without fairness between connections it would be one call in six.
    assert!(
        other_client.decided * 4 >= other_client.sent(),
        "{other_client:?}"
    );
    assert!(during["shedding_since"].is_string(), "{during}");
    assert!(during["shed"].as_u64() > Some(0), "{during}");
    let delay = page
        .lines()
        .find_map(|line| line.strip_prefix("cedar_pdp_queue_delay_seconds "));
    assert!(delay.unwrap().parse::<f64>().unwrap() > 0.0, "{delay:?}");
    server.wait_for_log("overload started");
    // Logged although no further call arrives.
    server.wait_for_log("overload ended");
    // It may have ended and begun before.
    eventually("shedding stops", async || {
        overload()["shedding_since"].is_null()
    })
    .await;

    // After the overload, everything is answered.
    let mut n = 1 << 42;
    eventually("the overload is over", async || {
        n += 1;
        call(Arc::clone(&clients[0]), n, Instant::now()).await == CallOutcome::Decided
    })
    .await;
}
