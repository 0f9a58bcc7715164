//! What is answered, and how fast, when more is asked than can be: from half the capacity to ten
//! times of it.
//!
//! The load is open: calls come at their times, whether or not earlier ones are answered, from a
//! process of its own on a core of its own; the server has the other core. A call that HTTP/2 does
//! not let out, because as many are in flight on each connection as the server takes, waits at the
//! caller, and its time runs. What is answered after a second is late, and counts as nothing.
//! Capacity is what the server answers in the same minute when each connection keeps a few calls
//! in flight.
//!
//! `cargo bench --bench overload [-- --quick]`, on Linux with two cores and `taskset`.
//!
//! Not measured here: what a call costs.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use cedar_pdp::api::pb;
use h2::client::SendRequest;
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use support::Sizes;
use support::figures::{Spread, print_table};
use support::running::{self, Server};
use support::targets::thousands;

const CONNECTIONS: usize = 16;
const TIMES: [f64; 8] = [0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];
/// The argument that makes this program the generator.
const GENERATOR: &str = "generate";
/// An answer that comes after this is of no use.
const PATIENCE: Duration = Duration::from_secs(1);
const METHOD: &str = "/pdp.v1.AuthorizationService/Authorize";

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    match arguments.first().map(String::as_str) {
        Some(GENERATOR) => generate(arguments.get(1..).unwrap_or_default()),
        _ => measure(sizes),
    }
}

fn measure(sizes: Sizes) -> anyhow::Result<()> {
    let seconds = sizes.of(10, 1);
    for (what, policies) in [
        (
            "a decision that takes a while: 300 policies match each request, and none is remembered",
            300,
        ),
        ("a decision of 20 policies, and none is remembered", 20),
    ] {
        for (how, delay) in [
            ("as set by default", None),
            ("shedding nothing", Some("0s")),
        ] {
            let directory = running::policy_directory(&[("slow.cedar", &slow(policies))]);
            let server = start(directory.path(), delay)?;
            let address = server.address();
            let capacity = Answers::of(address, "closed", seconds)?.answered_per_second();
            let mut rows = Vec::new();
            for times in TIMES {
                let offered = capacity * times;
                let answers = Answers::of(address, &format!("{offered:.0}"), seconds)?;
                rows.push(answers.row(times, offered, capacity));
                // What waits is worked off before more is asked.
                std::thread::sleep(Duration::from_secs(1));
            }
            print_table(
                &format!("{what}; {how}: capacity {}/s", thousands(capacity as usize)),
                [
                    "offered",
                    "calls/s",
                    "answered/s",
                    "of capacity",
                    "shed/s",
                    "late/s",
                    "p50 ms",
                    "p99 ms",
                ],
                rows,
            );
        }
    }
    Ok(())
}

/// Policies of which all match and the last permits.
fn slow(count: usize) -> String {
    (1..count)
        .map(|n| format!("permit(principal, action, resource) when {{ context.n * {n} == -1 }};\n"))
        .chain(["permit(principal, action, resource);\n".to_owned()])
        .collect()
}

/// The server, on the first core.
fn start(policies: &std::path::Path, delay: Option<&str>) -> anyhow::Result<Server> {
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(running::binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--cache-bytes", "0"]);
    command
        .args(["--admin-listen", "off", "--policies"])
        .arg(policies);
    if let Some(delay) = delay {
        command.args(["--overload-delay", delay]);
    }
    ensure!(
        Command::new("taskset").arg("--version").output().is_ok(),
        "cannot run `taskset`, which this benchmark needs"
    );
    Ok(Server::spawn(running::without_settings(command), 1))
}

/// What became of the calls of one run.
struct Answers {
    seconds: f64,
    answered: usize,
    shed: usize,
    late: usize,
    milliseconds: Option<Spread>,
}

impl Answers {
    /// Runs the generator on the second core.
    fn of(address: &str, rate: &str, seconds: u64) -> anyhow::Result<Self> {
        let output = Command::new("taskset")
            .args(["-c", "1"])
            .arg(std::env::current_exe()?)
            .args([GENERATOR, address, rate, &seconds.to_string()])
            .output()
            .context("cannot start the generator")?;
        ensure!(
            output.status.success(),
            "the generator failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let said = String::from_utf8(output.stdout)?;
        let mut lines = said.lines();
        let mut counts = lines
            .next()
            .context("no counts")?
            .split(' ')
            .map(str::parse);
        let mut count = || {
            counts
                .next()
                .context("a count is missing")?
                .map_err(anyhow::Error::from)
        };
        let (shed, late) = (count()?, count()?);
        let latencies = lines.map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        Ok(Self {
            seconds: seconds as f64,
            answered: latencies.len(),
            shed,
            late,
            milliseconds: (!latencies.is_empty()).then(|| Spread::of(latencies)),
        })
    }

    fn answered_per_second(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    fn row(&self, times: f64, offered: f64, capacity: f64) -> [String; 8] {
        let per_second = |count: usize| thousands((count as f64 / self.seconds) as usize);
        let latency = |percent| {
            self.milliseconds.as_ref().map_or_else(
                || "-".to_owned(),
                |all| format!("{:.1}", all.percentile(percent)),
            )
        };
        [
            format!("{times} x"),
            thousands(offered as usize),
            per_second(self.answered),
            format!("{:.0} %", 100.0 * self.answered_per_second() / capacity),
            per_second(self.shed),
            per_second(self.late),
            latency(50),
            latency(99),
        ]
    }
}

/// The generator: takes an address, a rate a second or `closed`, and a number of seconds. Prints how
/// many calls were shed and given up, and of each that was answered how many milliseconds it took.
fn generate(arguments: &[String]) -> anyhow::Result<()> {
    let [address, rate, seconds] = arguments else {
        bail!("the generator needs an address, a rate and a number of seconds");
    };
    let duration = Duration::from_secs(seconds.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let counts = LocalSet::new().block_on(&runtime, async {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            // With room for the answers of all calls that may be in flight: what is not read at once
            // would look to this library like an attack.
            let mut builder = h2::client::Builder::new();
            builder.initial_connection_window_size(256 << 20);
            let (client, connection) = builder.handshake(stream).await?;
            tokio::task::spawn_local(connection);
            connections.push(client);
        }
        let run = Run {
            url: format!("http://{address}{METHOD}"),
            counts: Rc::default(),
            number: Rc::new(Cell::new(std::process::id() as i64 * 10_000_000)),
        };
        match rate.as_str() {
            "closed" => run.closed(&connections, duration).await,
            rate => run.open(&connections, rate.parse()?, duration).await,
        }
        Ok::<_, anyhow::Error>(run.counts)
    })?;
    let counts = counts.borrow();
    ensure!(
        counts.failed.is_empty(),
        "calls failed: {:?}",
        counts.failed
    );
    println!("{} {}", counts.shed, counts.late);
    for latency in &counts.answered {
        println!("{:.3}", latency.as_secs_f64() * 1e3);
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    answered: Vec<Duration>,
    shed: usize,
    late: usize,
    failed: Vec<String>,
}

#[derive(Clone)]
struct Run {
    url: String,
    counts: Rc<RefCell<Counts>>,
    number: Rc<Cell<i64>>,
}

impl Run {
    /// Four calls in flight on each connection, for as long.
    async fn closed(&self, connections: &[SendRequest<Bytes>], duration: Duration) {
        let begun = Instant::now();
        let mut callers = Vec::new();
        for client in connections
            .iter()
            .flat_map(|client| std::iter::repeat_n(client, 4))
        {
            let (run, client) = (self.clone(), client.clone());
            callers.push(tokio::task::spawn_local(async move {
                while begun.elapsed() < duration {
                    run.call(client.clone(), Instant::now()).await;
                }
            }));
        }
        for caller in callers {
            let _ = caller.await;
        }
    }

    /// Calls at their times, one connection after the other.
    async fn open(&self, connections: &[SendRequest<Bytes>], rate: f64, duration: Duration) {
        let begun = Instant::now();
        let mut under_way = VecDeque::new();
        let mut sent = 0_u32;
        while begun.elapsed() < duration {
            let due = (begun.elapsed().as_secs_f64() * rate) as u32;
            while sent < due {
                // Its time, and not that at which this program came to it.
                let at = begun + Duration::from_secs_f64(f64::from(sent) / rate);
                let client = connections.get(sent as usize % connections.len());
                if let Some(client) = client.cloned() {
                    let run = self.clone();
                    under_way.push_back(tokio::task::spawn_local(async move {
                        run.call(client, at).await;
                    }));
                }
                sent += 1;
            }
            while under_way
                .front()
                .is_some_and(tokio::task::JoinHandle::is_finished)
            {
                under_way.pop_front();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What is not answered by then is late.
        let waiting = async {
            for call in &mut under_way {
                let _ = call.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, waiting).await;
        self.counts.borrow_mut().late +=
            under_way.iter().filter(|call| !call.is_finished()).count();
    }

    async fn call(&self, client: SendRequest<Bytes>, at: Instant) {
        let ended = self.try_call(client).await;
        let mut counts = self.counts.borrow_mut();
        match ended.as_deref() {
            Ok("0") if at.elapsed() > PATIENCE => counts.late += 1,
            Ok("0") => counts.answered.push(at.elapsed()),
            Ok("8") => counts.shed += 1,
            Ok(other) => counts.failed.push(format!("status {other}")),
            Err(error) => counts.failed.push(error.to_string()),
        }
    }

    /// The gRPC status of a call that nobody has made before.
    async fn try_call(&self, client: SendRequest<Bytes>) -> anyhow::Result<String> {
        self.number.set(self.number.get() + 1);
        let mut asked = running::request(r#"User::"a""#, r#"Action::"read""#, r#"Doc::"1""#);
        let n = running::value(pb::value::Kind::Long(self.number.get()));
        asked.context.insert("n".to_owned(), n);
        let message = asked.encode_to_vec();
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        body.extend_from_slice(&message);

        let request = http::Request::post(&self.url)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut client = client.ready().await?;
        let (answer, mut sending) = client.send_request(request, false)?;
        sending.send_data(body.into(), true)?;
        let answer = answer.await?;
        let status = |headers: &http::HeaderMap| {
            let status = headers.get("grpc-status")?.to_str().ok()?;
            Some(status.to_owned())
        };
        if let Some(status) = status(answer.headers()) {
            return Ok(status);
        }
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        let trailers = body.trailers().await?.context("no trailers")?;
        status(&trailers).context("no status")
    }
}
