//! Server CPU of a cached unary call with one feature on, compared with all features off.
//!
//! Each figure is a ratio to the same service with its defaults, under the same load and in the
//! same round. The servers take turns within a round, as in `calls`.
//!
//! `cargo bench --bench observed [-- --quick]`

mod support;

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::ensure;
use prost::Message as _;
use tempfile::TempDir;

use support::load::{self, CONNECTIONS, IN_FLIGHT, Load};
use support::processes::{Client, CpuMeter};
use support::running::Server;
use support::statistics::{Rounds, print_table};
use support::targets::{self, Target, thousands};
use support::{Sizes, fixture};

const ROUNDS: usize = 31;
const CALLS_PER_RUN: usize = 10_000;
const HOT_REQUESTS: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    match arguments.first().map(String::as_str) {
        Some(load::GENERATOR) => load::generate(arguments.get(1..).unwrap_or_default()),
        _ => measure(sizes),
    }
}

/// Options of the service, and the name of their row.
struct Variant {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Writes decisions to a file.
    logs: bool,
    /// The share of traced calls; `None` turns tracing off.
    traces: Option<&'static str>,
    /// Uses TLS.
    encrypted: bool,
    target: Option<Target>,
}

const VARIANTS: &[Variant] = &[
    Variant {
        name: "nothing",
        arguments: &[],
        logs: false,
        traces: None,
        encrypted: false,
        target: None,
    },
    Variant {
        name: "metrics",
        arguments: &["--admin-listen", "127.0.0.1:0"],
        logs: false,
        traces: None,
        encrypted: false,
        target: Some(targets::METRICS),
    },
    Variant {
        name: "traces, 1 % of calls",
        arguments: &[],
        logs: false,
        traces: Some("0.01"),
        encrypted: false,
        target: None,
    },
    Variant {
        name: "traces, every call",
        arguments: &[],
        logs: false,
        traces: Some("1"),
        encrypted: false,
        target: None,
    },
    Variant {
        name: "metrics, traces of 1 %, decision log",
        arguments: &["--admin-listen", "127.0.0.1:0"],
        logs: true,
        traces: Some("0.01"),
        encrypted: false,
        target: None,
    },
    Variant {
        name: "decision log, the default sample",
        arguments: &[],
        logs: true,
        traces: None,
        encrypted: false,
        target: Some(targets::DECISION_LOG_SAMPLED),
    },
    Variant {
        name: "decision log, every decision",
        arguments: &["--decision-log-allow-sample", "1"],
        logs: true,
        traces: None,
        encrypted: false,
        target: Some(targets::DECISION_LOG),
    },
    Variant {
        name: "the same, nothing masked",
        arguments: &[
            "--decision-log-allow-sample",
            "1",
            "--decision-log-attributes",
            "*",
        ],
        logs: true,
        traces: None,
        encrypted: false,
        target: None,
    },
    Variant {
        name: "TLS",
        arguments: &[],
        logs: false,
        traces: None,
        encrypted: true,
        target: None,
    },
    Variant {
        name: "TLS, metrics, traces of 1 %, decision log",
        arguments: &["--admin-listen", "127.0.0.1:0"],
        logs: true,
        traces: Some("0.01"),
        encrypted: true,
        target: None,
    },
];

/// The row of the baseline.
const BASELINE: usize = 0;

struct Subject {
    variant: &'static Variant,
    server: Server,
    /// The authority of the server's certificate.
    authority: Option<PathBuf>,
    _files: TempDir,
}

impl Subject {
    fn start(
        variant: &'static Variant,
        policies: &TempDir,
        collector: &str,
    ) -> anyhow::Result<Self> {
        let files = tempfile::tempdir()?;
        let destination = format!("file:{}", files.path().join("decisions").display());
        let mut command = support::running::serve_command(policies.path(), variant.arguments);
        if variant.logs {
            command.args(["--decision-log", &destination]);
        }
        let authority = match variant.encrypted {
            true => Some(serve_with_tls(&mut command, files.path())?),
            false => None,
        };
        if let Some(share) = variant.traces {
            command
                .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
                .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
                .env("OTEL_TRACES_SAMPLER_ARG", share)
                // A queue for all spans: dropped spans would cost less.
                .env("OTEL_BSP_MAX_QUEUE_SIZE", "100000");
        }
        Ok(Self {
            variant,
            server: Server::spawn(command, 1),
            authority,
            _files: files,
        })
    }

    fn microseconds_per_call(&self, load: &Load) -> anyhow::Result<f64> {
        let meter = CpuMeter::start(self.server.pid())?;
        load.run_over(
            self.server.address(),
            self.authority.as_deref(),
            CALLS_PER_RUN,
        )?;
        // Waits for queued records, because their cost belongs to the calls.
        sleep(Duration::from_millis(100));
        let used = meter.used()?.as_secs_f64() * 1e6 / CALLS_PER_RUN as f64;
        // Dropped records would cost nothing.
        ensure!(
            !self.server.log().contains("decision log"),
            "the decision log did not keep up:\n{}",
            self.server.log()
        );
        Ok(used)
    }
}

/// Configures a self-signed certificate. Returns its file.
fn serve_with_tls(command: &mut Command, files: &Path) -> anyhow::Result<PathBuf> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (certificate, key) = (files.join("tls.crt"), files.join("tls.key"));
    fs::write(&certificate, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    command.arg("--tls-cert").arg(&certificate);
    command.arg("--tls-key").arg(&key);
    Ok(certificate)
}

fn measure(sizes: Sizes) -> anyhow::Result<()> {
    load::find_h2load()?;
    let policies = fixture::policy_directory()?;
    let requests: Vec<_> = (0..HOT_REQUESTS).map(fixture::request).collect();
    let bodies = tempfile::tempdir()?;
    let one = Load::h2load(
        bodies.path().join("one"),
        requests.get(..1).unwrap_or_default(),
    )?;
    let hot = Load::own(bodies.path().join("hot"), &requests)?;
    let collector = start_collector()?;
    let subjects: Vec<_> = VARIANTS
        .iter()
        .map(|variant| Subject::start(variant, &policies, &collector))
        .collect::<anyhow::Result<_>>()?;
    // The generator checks the answers of the encrypted services, which are the same.
    let unencrypted = subjects.iter().filter(|it| !it.variant.encrypted);
    for Subject {
        variant, server, ..
    } in unencrypted
    {
        let mut client = Client::of(server)?;
        for request in &requests {
            let answer = client.authorize(request.clone())?;
            ensure!(
                answer.decision() == fixture::answer().decision()
                    && answer.encoded_len() >= fixture::answer().encoded_len(),
                "`{}` says {answer:?}",
                variant.name
            );
        }
    }
    let rounds = sizes.of(ROUNDS, 3);
    println!(
        "Server CPU, user and system, of one cached unary Authorize call.\n\
         {CONNECTIONS} TCP connections with {IN_FLIGHT} calls in flight on each; {CALLS_PER_RUN} calls a run; \
         median of {rounds} interleaved rounds (least to most)."
    );
    let title = "one request again and again, from h2load";
    rows(title, &subjects, &one, rounds)?;
    let title = format!(
        "{} different requests in turn, from our own generator",
        thousands(HOT_REQUESTS)
    );
    let hot = rows(&title, &subjects, &hot, rounds)?;
    for (at, variant) in VARIANTS.iter().enumerate() {
        if let Some(target) = variant.target {
            target.measured(&format!(
                "{:.2} x ({:.2} us / {:.2} us)",
                hot.over(at, BASELINE).median(),
                hot.of(at).median(),
                hot.of(BASELINE).median()
            ));
        }
    }
    targets::print_rows(sizes);
    Ok(())
}

/// Starts an HTTP server that accepts all spans; returns its address.
fn start_collector() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer_requests(stream));
        }
    });
    Ok(address)
}

/// Answers requests with 200 until the connection ends.
fn answer_requests(stream: TcpStream) -> io::Result<()> {
    let mut requests = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if let Some(bytes) = line.to_lowercase().strip_prefix("content-length:") {
                length = bytes.trim().parse().unwrap_or(0);
            }
        }
        io::copy(&mut requests.by_ref().take(length), &mut io::sink())?;
        requests
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}

/// Measures the microseconds per call of each subject, and prints its row.
fn rows(title: &str, subjects: &[Subject], load: &Load, rounds: usize) -> anyhow::Result<Rounds> {
    for subject in subjects {
        subject.microseconds_per_call(load)?;
    }
    let measured = Rounds::measure(rounds, subjects, |it| it.microseconds_per_call(load))?;
    let rows = subjects.iter().enumerate().map(|(at, subject)| {
        [
            subject.variant.name.to_owned(),
            measured.of(at).show(2),
            measured.over(at, BASELINE).show(2),
        ]
    });
    print_table(title, ["on", "us a call", "x nothing on"], rows);
    Ok(measured)
}
