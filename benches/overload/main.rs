//! Throughput and latency under overload: from half the capacity to ten times the capacity.
//!
//! The load is open: calls begin at fixed times, independent of earlier answers, from a process on
//! a core of its own. The server has the other core. Each call has a deadline of one second. A call
//! beyond the server's limit of concurrent streams waits in the client, and its time runs. The
//! capacity is the rate of answers when each connection keeps a few calls in flight.
//!
//! `cargo bench --bench overload [-- --quick]`, on Linux with two cores and `taskset`.
//!
//! Not measured here: the cost of a call, and how several threads share the load (on one core the
//! service has one).

mod generator;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use generator::{Outcome, Rate};
use support::Sizes;
use support::running::{self, Server};
use support::statistics::{Spread, print_table};
use support::targets::thousands;

const TIMES: [f64; 8] = [0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];
/// The argument that makes this program the generator.
const GENERATOR: &str = "generate";
/// The argument in place of a rate: as fast as calls are answered.
const AS_ANSWERED: &str = "as-answered";
/// The words before a call's time in the generator's output.
const DECIDED: &str = "decided";
const SHED: &str = "shed";
/// A generator that pauses longer has not sent its calls on time.
const MAX_PAUSE_MS: f64 = 100.0;

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
            "An expensive decision (300 policies match each request), no cache",
            300,
        ),
        ("A cheap decision (20 policies match), no cache", 20),
    ] {
        for (how, delay) in [
            ("default settings", None),
            ("shedding disabled", Some("0s")),
        ] {
            let directory = running::policy_directory(&[("slow.cedar", &slow(policies))]);
            let target = Target::start(directory.path(), delay)?;
            let capacity = target.answers(AS_ANSWERED, seconds)?.decided_per_second();
            let mut rows = Vec::new();
            for times in TIMES {
                let offered = capacity * times;
                let answers = target.answers(&format!("{offered:.0}"), seconds)?;
                rows.push(answers.row(times, offered, capacity));
                // The server finishes waiting calls before the next run.
                std::thread::sleep(Duration::from_secs(1));
            }
            print_table(
                &format!("{what}; {how}: capacity {}/s", thousands(capacity as usize)),
                [
                    "offered",
                    "calls/s",
                    "decided/s",
                    "of capacity",
                    "p50 ms",
                    "p99 ms",
                    "shed/s",
                    "p99 ms",
                    "late/s",
                    "unsent/s",
                ],
                rows,
            );
        }
    }
    Ok(())
}

/// Returns policies that all match, of which only the last permits.
fn slow(count: usize) -> String {
    (1..count)
        .map(|n| format!("permit(principal, action, resource) when {{ context.n * {n} == -1 }};\n"))
        .chain(["permit(principal, action, resource);\n".to_owned()])
        .collect()
}

/// The server, on the first core.
struct Target {
    server: Server,
    admin: String,
}

impl Target {
    fn start(policies: &Path, delay: Option<&str>) -> anyhow::Result<Self> {
        ensure!(
            Command::new("taskset").arg("--version").output().is_ok(),
            "cannot run `taskset`, which this benchmark needs"
        );
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(running::binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--cache-bytes", "0"]);
        command.args(["--admin-listen", "127.0.0.1:0", "--policies"]);
        command.arg(policies);
        if let Some(delay) = delay {
            command.args(["--overload-delay", delay]);
        }
        let server = Server::spawn(running::without_settings(command), 1);
        let admin = server.admin();
        Ok(Self { server, admin })
    }

    /// Runs the generator on the second core.
    fn answers(&self, rate: &str, seconds: u64) -> anyhow::Result<Answers> {
        let before = self.shed()?;
        let output = Command::new("taskset")
            .args(["-c", "1"])
            .arg(std::env::current_exe()?)
            .args([GENERATOR, self.server.address(), rate, &seconds.to_string()])
            .output()
            .context("cannot start the generator")?;
        ensure!(
            output.status.success(),
            "the generator failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let answers = Answers::parse(&String::from_utf8(output.stdout)?, seconds)?;
        // The counts of server and generator must agree: no call failed otherwise.
        let counted = self.shed()? - before;
        ensure!(
            counted == answers.shed_ever,
            "the server shed {counted} calls, and the generator saw {}",
            answers.shed_ever
        );
        Ok(answers)
    }

    /// Returns the number of calls that the server has shed so far.
    fn shed(&self) -> anyhow::Result<usize> {
        let metrics = running::get(&self.admin, "/metrics");
        let shed = metrics
            .lines()
            .find_map(|line| {
                line.strip_prefix("cedar_pdp_requests_refused_total{reason=\"overloaded\"} ")
            })
            .context("no count of shed calls")?;
        Ok(shed.parse()?)
    }
}

/// The results of one run.
struct Answers {
    seconds: f64,
    decided_ms: Vec<f64>,
    shed: Vec<f64>,
    late: usize,
    unsent: usize,
    shed_ever: usize,
}

impl Answers {
    fn parse(output: &str, seconds: u64) -> anyhow::Result<Self> {
        let mut lines = output.lines();
        let mut head = lines.next().context("no counts")?.split(' ');
        let mut count = || head.next().context("a count is missing");
        let (late, unsent) = (count()?.parse()?, count()?.parse()?);
        let shed_ever = count()?.parse()?;
        let longest_pause_ms: f64 = count()?.parse()?;
        ensure!(
            longest_pause_ms < MAX_PAUSE_MS,
            "the generator was away for {longest_pause_ms} ms: this machine is not quiet"
        );
        let (mut decided_ms, mut shed) = (Vec::new(), Vec::new());
        for line in lines {
            let (what, ms) = line.split_once(' ').context("a call without a time")?;
            match what {
                DECIDED => decided_ms.push(ms.parse()?),
                _ => shed.push(ms.parse()?),
            }
        }
        Ok(Self {
            seconds: seconds as f64,
            decided_ms,
            shed,
            late,
            unsent,
            shed_ever,
        })
    }

    fn decided_per_second(&self) -> f64 {
        self.decided_ms.len() as f64 / self.seconds
    }

    fn row(&self, times: f64, offered: f64, capacity: f64) -> [String; 10] {
        let per_second = |count: usize| thousands((count as f64 / self.seconds) as usize);
        let milliseconds = |all: &Vec<f64>, percent| match all.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.1}", Spread::of(all.iter().copied()).percentile(percent)),
        };
        [
            format!("{times} x"),
            thousands(offered as usize),
            per_second(self.decided_ms.len()),
            format!("{:.0} %", 100.0 * self.decided_per_second() / capacity),
            milliseconds(&self.decided_ms, 50),
            milliseconds(&self.decided_ms, 99),
            per_second(self.shed.len()),
            milliseconds(&self.shed, 99),
            per_second(self.late),
            per_second(self.unsent),
        ]
    }
}

/// Runs the generator. Its arguments are an address, a rate per second or `as-answered`, and a
/// number of seconds. Prints the numbers of late, unsent and shed calls, and the longest pause in
/// ms. Then prints the outcome and latency in ms of each call that was answered in time.
fn generate(arguments: &[String]) -> anyhow::Result<()> {
    let [address, rate, seconds] = arguments else {
        bail!("the generator needs an address, a rate and a number of seconds");
    };
    let rate = match rate.as_str() {
        AS_ANSWERED => Rate::AsAnswered,
        rate => Rate::PerSecond(rate.parse()?),
    };
    let Outcome {
        decided,
        shed,
        late,
        unsent,
        shed_ever,
        longest_pause,
    } = generator::run(address, rate, Duration::from_secs(seconds.parse()?))?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    writeln!(out, "{late} {unsent} {shed_ever} {:.3}", ms(longest_pause))?;
    for (what, times) in [(DECIDED, decided), (SHED, shed)] {
        for time in times {
            writeln!(out, "{what} {:.3}", ms(time))?;
        }
    }
    out.flush()?;
    Ok(())
}
