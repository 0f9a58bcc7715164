//! Compares this build with another binary of the service: CPU of calls, of startup and of
//! reloads, and idle memory.
//!
//! The other binary runs twice, as `other` and `other, again`: a difference between these two is
//! noise. Rounds take the three in turn.
//!
//! `cargo bench --bench against -- BINARY [--quick]`

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use support::load::{self, Load};
use support::processes::{Client, CpuMeter, Memory};
use support::running::{Server, binary, serve_command_of, shipped_policies};
use support::statistics::{Rounds, print_table};
use support::workload::Workload;
use support::{Sizes, fixture};

const ROUNDS: usize = 21;
const CALLS_PER_RUN: usize = 10_000;
const CACHED_REQUESTS: usize = 1_000;
const UNCACHED_REQUESTS: usize = 50_000;
const BATCH: usize = 100;
/// Reloads of one round.
const RELOADS: usize = 5;
/// Time after startup at which memory counts as idle.
const IDLE: Duration = Duration::from_secs(1);
const RELOAD_TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    match arguments.split_first() {
        Some((role, rest)) if role == load::GENERATOR => load::generate(rest),
        Some((other, [])) => Comparison::new(other.into(), sizes).run(),
        _ => anyhow::bail!("usage: cargo bench --bench against -- BINARY [--quick]"),
    }
}

/// Two binaries, and the rows of their comparison.
struct Comparison {
    /// The other, the other again, and this.
    binaries: [PathBuf; 3],
    rounds: usize,
    rows: Vec<[String; 5]>,
}

impl Comparison {
    fn new(other: PathBuf, sizes: Sizes) -> Self {
        Self {
            binaries: [other.clone(), other, binary()],
            rounds: sizes.of(ROUNDS, 3),
            rows: Vec::new(),
        }
    }

    fn run(mut self) -> anyhow::Result<()> {
        let files = tempfile::tempdir()?;
        self.calls(&files)?;
        self.startup()?;
        self.reloads()?;
        print_table(
            &format!("Median of {} rounds (least to most)", self.rounds),
            ["", "other", "this", "this / other", "again / other"],
            self.rows,
        );
        Ok(())
    }

    /// Measures server CPU of cached calls, uncached calls and batches, in microseconds.
    fn calls(&mut self, files: &TempDir) -> anyhow::Result<()> {
        let workload = Workload::new(UNCACHED_REQUESTS)?;
        let requests = workload.requests();
        let hot = requests.get(..CACHED_REQUESTS).unwrap_or_default();
        let cached = Load::own(files.path().join("cached"), hot)?;
        let uncached = Load::own(files.path().join("uncached"), &requests)?;
        let batches = Load::own_batches(files.path().join("batches"), hot, BATCH)?;
        let on: &[&str] = &["--overload-delay", "0s"];
        let off: &[&str] = &["--overload-delay", "0s", "--cache-bytes", "0"];
        let kinds = [
            ("cached call, us of CPU", on, &cached, CALLS_PER_RUN),
            ("uncached call, us of CPU", off, &uncached, CALLS_PER_RUN),
            (
                "cached batch of 100, us of CPU",
                on,
                &batches,
                CALLS_PER_RUN / 10,
            ),
        ];
        for (name, arguments, load, calls) in kinds {
            let servers = self.start_all(workload.policies(), arguments);
            for server in &servers {
                load.run(server.address(), calls)?;
            }
            self.measure(name, &servers, |server| {
                load.microseconds_per_call(server, calls)
            })?;
        }
        Ok(())
    }

    /// Measures startup on the worked example, in milliseconds of CPU, and idle memory after it.
    fn startup(&mut self) -> anyhow::Result<()> {
        let binaries = self.binaries.clone();
        self.measure(
            "startup, ms of CPU of lasting threads",
            &binaries,
            |binary| {
                let server = start(binary, &shipped_policies(), &[]);
                Ok(CpuMeter::since_spawn(server.pid()).used()?.as_secs_f64() * 1e3)
            },
        )?;
        self.measure("idle memory, MiB", &binaries, |binary| {
            let server = start(binary, &shipped_policies(), &[]);
            std::thread::sleep(IDLE);
            Ok(Memory::of(server.pid())?.resident)
        })
    }

    /// Measures the time from a saved policy file to the new revision, in milliseconds.
    fn reloads(&mut self) -> anyhow::Result<()> {
        let mut servers = Vec::new();
        for binary in &self.binaries {
            let directory = fixture::policy_directory()?;
            servers.push((start(binary, directory.path(), &[]), directory));
        }
        let mut saved = 0;
        self.measure(
            "saved file to new answer, ms",
            &servers,
            |(server, directory)| {
                let mut client = Client::of(server)?;
                let file = directory.path().join("more.cedar");
                let mut took = Duration::ZERO;
                for _ in 0..RELOADS {
                    saved += 1;
                    took += reload(&mut client, &file, saved)?;
                }
                Ok(took.as_secs_f64() * 1e3 / RELOADS as f64)
            },
        )
    }

    fn start_all(&self, policies: &Path, arguments: &[&str]) -> Vec<Server> {
        let binaries = self.binaries.iter();
        binaries
            .map(|binary| start(binary, policies, arguments))
            .collect()
    }

    /// Takes `measurement` of the processes in turn, and adds the row `name`.
    fn measure<T>(
        &mut self,
        name: &str,
        processes: &[T],
        measurement: impl FnMut(&T) -> anyhow::Result<f64>,
    ) -> anyhow::Result<()> {
        let measured = Rounds::measure(self.rounds, processes, measurement)?;
        let [other, again, this] = [0, 1, 2];
        self.rows.push([
            name.to_owned(),
            measured.of(other).show(2),
            measured.of(this).show(2),
            measured.over(this, other).show(3),
            measured.over(again, other).show(3),
        ]);
        Ok(())
    }
}

fn start(binary: &Path, policies: &Path, arguments: &[&str]) -> Server {
    Server::spawn(serve_command_of(binary, policies, arguments), 1)
}

/// Saves `file` with a policy that differs each time, and waits for an answer of another revision.
fn reload(client: &mut Client, file: &Path, number: usize) -> anyhow::Result<Duration> {
    let before = client.authorize(fixture::request(0))?.revision;
    let text = format!(
        "@id(\"more\")\nforbid (principal, action, resource) when {{ context.sum == {number}000000 }};\n"
    );
    let temporary = file.with_extension("new");
    fs::write(&temporary, text)?;
    let begun = Instant::now();
    fs::rename(&temporary, file).context("cannot replace the file")?;
    while client.authorize(fixture::request(0))?.revision == before {
        ensure!(begun.elapsed() < RELOAD_TIMEOUT, "the file was not loaded");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(begun.elapsed())
}
