//! Startup time, and memory of a started service.
//!
//! Memory is read from the system 10 s after SERVING.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::dataset::Dataset;
use crate::support::processes::{Client, Memory, start_again_as};
use crate::support::running::{Server, request, shipped_policies};
use crate::support::statistics::{Spread, print_table};
use crate::support::targets::{self, thousands};
use crate::support::{Sizes, echo};

const STARTS: usize = 31;
const STARTS_AT_SCALE: usize = 3;
const SETTLING_TIME: Duration = Duration::from_secs(10);

pub(crate) fn measure(sizes: Sizes) -> anyhow::Result<()> {
    measure_example(sizes)?;
    measure_at_scale(sizes)
}

/// Measures the worked example beside an echo without data.
fn measure_example(sizes: Sizes) -> anyhow::Result<()> {
    let policies = shipped_policies();
    let mut echoes = Vec::new();
    let mut ours = Vec::new();
    for _ in 0..sizes.of(STARTS, 3) {
        echoes.push(first_answer(|| start_again_as(echo::ECHO, None))?);
        ours.push(first_answer(|| Ok(Server::start(&policies, &[])))?);
    }
    let ratio = Spread::of(ours.iter().zip(&echoes).map(|(ours, echo)| ours / echo));
    let (echo, ours) = (Spread::of(echoes), Spread::of(ours));

    let servers = [
        start_again_as(echo::ECHO, None)?,
        Server::start(&policies, &[]),
    ];
    sleep(sizes.of(SETTLING_TIME, Duration::from_secs(1)));
    let [echo_memory, our_memory] = servers.map(|server| Memory::of(server.pid()));
    let (echo_memory, our_memory) = (echo_memory?, our_memory?);

    let row = |name: &str, start: &Spread, ratio: String, memory: Memory| {
        [
            name.to_owned(),
            start.show(1),
            ratio,
            format!("{:.1}", memory.resident),
            format!("{:.1}", memory.peak),
        ]
    };
    print_table(
        "the worked example: from the start of the process to its first answer, and idle memory",
        ["", "ms", "x echo", "resident MiB", "peak MiB"],
        [
            row("echo", &echo, "1.00".to_owned(), echo_memory),
            row("cedar-pdp", &ours, ratio.show(2), our_memory),
        ],
    );
    targets::IDLE_MEMORY.measured(&format!(
        "{:.1} MiB, peak {:.1} (echo {:.1} MiB; {:.2} x)",
        our_memory.resident,
        our_memory.peak,
        echo_memory.resident,
        our_memory.resident / echo_memory.resident
    ));
    targets::FIRST_ANSWER.measured(&format!(
        "{:.1} ms (echo {:.1} ms; {:.2} x)",
        ours.median(),
        echo.median(),
        ratio.median()
    ));
    Ok(())
}

/// Measures the time from process start to the first answer, in ms.
fn first_answer(start: impl FnOnce() -> anyhow::Result<Server>) -> anyhow::Result<f64> {
    let started = Instant::now();
    let server = start()?;
    Client::of(&server)?.authorize(request(
        r#"Platform::User::"tobias.lindqvist""#,
        r#"Invoicing::Action::"approveInvoice""#,
        r#"Invoicing::Invoice::"INV-2042""#,
    ))?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// Measures the data set beside plain reading of its files.
fn measure_at_scale(sizes: Sizes) -> anyhow::Result<()> {
    let (policies, entities) = sizes.of((100_000, 1_000_000), (1_000, 10_000));
    let directory = tempfile::tempdir()?;
    Dataset::new(policies, entities)?.write(directory.path())?;
    // The files are in the page cache, whether the service reads them first or not.
    let bytes = read_all(directory.path())?;

    let mut reads = Vec::new();
    let mut starts = Vec::new();
    let mut memory = None;
    for _ in 0..sizes.of(STARTS_AT_SCALE, 1) {
        let started = Instant::now();
        read_all(directory.path())?;
        reads.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let server = Server::start(directory.path(), &[]);
        wait_until_serving(&server)?;
        starts.push(started.elapsed().as_secs_f64());
        sleep(sizes.of(SETTLING_TIME, Duration::from_secs(1)));
        memory = Some(Memory::of(server.pid())?);
    }
    let memory = memory.context("it was started")?;
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    let ratio = Spread::of(starts.iter().zip(&reads).map(|(start, read)| start / read));
    let (read, start) = (Spread::of(reads), Spread::of(starts));
    print_table(
        &format!(
            "{} policies and {} entities: from the start of the process to SERVING, and memory",
            thousands(policies),
            thousands(entities)
        ),
        ["", "s", "x reading", "resident MiB", "peak MiB"],
        [
            [
                format!("reading the files, {mebibytes:.0} MiB"),
                read.show(2),
                "1.00".to_owned(),
                String::new(),
                String::new(),
            ],
            [
                "cedar-pdp".to_owned(),
                start.show(2),
                ratio.show(1),
                format!("{:.0}", memory.resident),
                format!("{:.0}", memory.peak),
            ],
        ],
    );
    targets::MEMORY.measured(&format!(
        "{:.0} MiB, peak {:.0} ({:.2} x the {mebibytes:.0} MiB of the files)",
        memory.resident,
        memory.peak,
        memory.resident / mebibytes
    ));
    targets::START_AT_SCALE.measured(&format!(
        "{:.1} s (reading the files alone {:.2} s; {:.0} x)",
        start.median(),
        read.median(),
        ratio.median()
    ));
    Ok(())
}

fn read_all(directory: &Path) -> anyhow::Result<usize> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            read_all(&entry.path())?
        } else {
            fs::read(entry.path())?.len()
        };
    }
    Ok(bytes)
}

fn wait_until_serving(server: &Server) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut health = HealthClient::new(server.channel().await);
        let started = Instant::now();
        loop {
            let answer = health.check(HealthCheckRequest::default()).await?;
            if answer.into_inner().status() == ServingStatus::Serving {
                return Ok(());
            }
            ensure!(
                started.elapsed() < Duration::from_secs(600),
                "the service never becomes SERVING"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}
