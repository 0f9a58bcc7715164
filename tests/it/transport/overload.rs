//! More calls than can be answered.

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

use crate::support::http2::{AUTHORIZE, Caller, post};
use crate::support::protobuf::framed;
use crate::support::{Server, eventually, get, policy_directory, request};

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
    /// Its time was over before it could be sent.
    Unsent,
}

/// How long an answer is of use: the deadline of each call.
const USE: Duration = Duration::from_secs(1);
const USE_AS_TEXT: &str = "1S";

/// A connection, and the room on it: as HTTP/2 has it, further calls wait at the caller.
struct Asker {
    caller: Caller,
    room: Semaphore,
}

impl Asker {
    async fn connect(server: &Server) -> Arc<Self> {
        Arc::new(Self {
            caller: Caller::connect(server.address()).await,
            // Somewhat less than the service takes.
            room: Semaphore::new(200),
        })
    }
}

/// One call, due at `due`; fails when it is lost or refused in another way.
async fn call(asker: Arc<Asker>, n: i64, due: Instant) -> End {
    let room = asker.room.acquire();
    let Ok(_place) = tokio::time::timeout_at((due + USE).into(), room).await else {
        return End::Unsent;
    };
    let head = post(AUTHORIZE).header("grpc-timeout", USE_AS_TEXT);
    let body = framed(&ask(n).encode_to_vec());
    let outcome = asker.caller.send(head.body(()).unwrap(), body).await;
    let code = outcome.code();
    let end = if code == Code::Ok {
        let answer: pb::AuthorizeResponse = outcome.message();
        assert_eq!(answer.decision(), pb::Decision::Allow);
        End::Decided
    } else if code == Code::DeadlineExceeded {
        End::Late
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
        End::Shed
    };
    match due.elapsed() <= USE {
        true => end,
        false => End::Late,
    }
}

/// What calls ended with, and how often.
#[derive(Debug, Default)]
struct Ends {
    decided: u64,
    shed: u64,
    late: u64,
    unsent: u64,
}

impl Ends {
    fn count(&mut self, end: End) {
        match end {
            End::Decided => self.decided += 1,
            End::Shed => self.shed += 1,
            End::Late => self.late += 1,
            End::Unsent => self.unsent += 1,
        }
    }

    /// How many the service has had to do with.
    fn sent(&self) -> u64 {
        self.decided + self.shed + self.late
    }
}

/// What is decided while each connection has one call under way.
#[derive(Debug)]
struct Capacity {
    decided: u64,
    per_second: f64,
}

async fn capacity(askers: &[Arc<Asker>]) -> Capacity {
    let begun = Instant::now();
    let duration = Duration::from_secs(3);
    let mut asking = JoinSet::new();
    for (asker, first) in askers.iter().cloned().zip(1 << 40..) {
        asking.spawn(async move {
            let mut ends = Ends::default();
            for n in (first..).step_by(1_000) {
                if begun.elapsed() >= duration {
                    break;
                }
                ends.count(call(Arc::clone(&asker), n, Instant::now()).await);
            }
            ends.decided
        });
    }
    let decided = asking.join_all().await.into_iter().sum();
    let per_second = decided as f64 / duration.as_secs_f64();
    Capacity {
        decided,
        per_second,
    }
}

/// Makes so many calls a second, whatever becomes of earlier ones.
async fn offer(askers: &[Arc<Asker>], per_second: f64, duration: Duration) -> Ends {
    let begun = Instant::now();
    let mut ends = Ends::default();
    let mut under_way = JoinSet::new();
    let mut made = 0;
    while begun.elapsed() < duration {
        let due = (begun.elapsed().as_secs_f64() * per_second) as i64;
        for n in made..due {
            // Its time, and not that at which this program came to it.
            let at = begun + Duration::from_secs_f64(n as f64 / per_second);
            let asker = &askers[n as usize % askers.len()];
            under_way.spawn(call(Arc::clone(asker), n, at));
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
async fn queued_call_past_its_deadline_is_undecided() {
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
async fn overload_is_shed_with_a_retry_hint() {
    // The rest is answered.
    const TIMES: f64 = 10.0;
    // So many that to decide costs much more than to refuse, and than to ask.
    const POLICIES: usize = 3_000;
    let policies = policy_directory(&[("slow.cedar", &slow_policies(POLICIES))]);
    let options = ["--cache-bytes", "0", "--admin-listen", "127.0.0.1:0"];
    let server = Server::start(policies.path(), &options);
    let admin = server.admin();
    let overload = || {
        let page = get(&admin, "/status");
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        page["overload"].clone()
    };
    assert_eq!(overload()["shed"], 0);
    let mut askers = Vec::new();
    for _ in 0..16 {
        askers.push(Asker::connect(&server).await);
    }
    let idle = server.processor_ticks();
    let capacity = capacity(&askers).await;
    let busy = server.processor_ticks();
    let each = (busy - idle) as f64 / capacity.decided as f64;

    // Another, on a connection of its own, who asks now and then; in the midst of it health is told.
    let other = Asker::connect(&server).await;
    let mut health = HealthClient::new(server.channel().await);
    let beside = tokio::spawn(async move {
        let mut ends = Ends::default();
        let begun = Instant::now();
        for n in 1 << 41.. {
            if begun.elapsed() >= duration() {
                break;
            }
            ends.count(call(Arc::clone(&other), n, Instant::now()).await);
            let asked = health.check(HealthCheckRequest::default());
            assert_eq!(asked.await.unwrap().into_inner().status, 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ends
    });
    // The state is read in the midst of it.
    let during = async {
        tokio::time::sleep(duration() * 3 / 4).await;
        (overload(), get(&admin, "/metrics"))
    };
    let offered = offer(&askers, capacity.per_second * TIMES, duration());
    let (ends, (during, page)) = tokio::join!(offered, during);
    let beside = beside.await.expect("a call's assertions hold");
    // By the processors that the service had, since others, the callers first of all, take their part.
    let could_be = (server.processor_ticks() - busy) as f64 / each;
    println!("{capacity:?}; of {could_be:.0}: {ends:?}; beside: {beside:?}");
    assert!(
        ends.sent() as f64 >= could_be * TIMES / 2.0,
        "too little is asked"
    );
    assert!(ends.decided as f64 >= could_be / 8.0, "too few are decided");
    assert!(ends.shed > 0, "none is refused");
    assert!(beside.decided * 2 >= beside.sent(), "{beside:?}");
    assert!(during["shedding_since"].is_string(), "{during}");
    assert!(during["shed"].as_u64() > Some(0), "{during}");
    let delay = page
        .lines()
        .find_map(|line| line.strip_prefix("cedar_pdp_queue_delay_seconds "));
    assert!(delay.unwrap().parse::<f64>().unwrap() > 0.0, "{delay:?}");
    server.wait_for_log("overload started");
    // Logged though no further call arrives.
    server.wait_for_log("overload ended");
    assert!(overload()["shedding_since"].is_null());

    // Once it is over, everything is answered.
    let mut n = 1 << 42;
    eventually("the overload is over", async || {
        n += 1;
        call(Arc::clone(&askers[0]), n, Instant::now()).await == End::Decided
    })
    .await;
}
