//! CPU time that each fast path saves: the service with the path switched off, beside all on.
//!
//! Switches exist only in a build with the cargo feature `switches`. Built without it, this
//! program starts cargo again with it, so that a build that is shipped holds no switch.
//!
//! `cargo bench --bench worth [-- --quick]`

mod support;

use std::process::Command;

use anyhow::{Context as _, ensure};
use cedar_pdp::api::grpc::pb;
use tempfile::TempDir;

use support::load::{self, CONNECTIONS, IN_FLIGHT, Load};
use support::processes::Client;
use support::running::{Server, serve_command, uid, value};
use support::statistics::{Rounds, print_table};
use support::{Sizes, fixture, targets};

/// Rounds; each round takes all servers in turn.
const ROUNDS: usize = 21;
const CALLS_PER_RUN: usize = 10_000;
const CACHED_REQUESTS: usize = 1_000;
const UNCACHED_REQUESTS: usize = 50_000;

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    match arguments.split_first() {
        Some((role, rest)) if role == load::GENERATOR => load::generate(rest),
        _ if cfg!(feature = "switches") => measure(sizes),
        _ => start_with_switches(sizes),
    }
}

/// Runs this benchmark again in a build with switches.
fn start_with_switches(sizes: Sizes) -> anyhow::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["bench", "--features", "switches", "--bench", "worth"]);
    if sizes == Sizes::Quick {
        cargo.args(["--", "--quick"]);
    }
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "the benchmark with switches failed");
    Ok(())
}

/// A kind of call that fast paths are measured by.
struct CallKind {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Fast paths on the way of such a call.
    fast_paths: &'static [&'static str],
    load: Load,
}

fn measure(sizes: Sizes) -> anyhow::Result<()> {
    let rounds = sizes.of(ROUNDS, 3);
    let policies = fixture::policy_directory()?;
    let files = tempfile::tempdir()?;
    println!(
        "Server CPU, user and system, of one unary Authorize call, with one fast path off.\n\
         {CONNECTIONS} TCP connections with {IN_FLIGHT} calls in flight on each; {} calls a run; \
         median of {rounds} interleaved rounds (least to most).\n\
         `all on, again` is a second process like the first: differences of that size are noise.",
        targets::thousands(CALLS_PER_RUN),
    );
    for kind in call_kinds(&files)? {
        kind.measure(&policies, rounds)?;
    }
    Ok(())
}

fn call_kinds(files: &TempDir) -> anyhow::Result<[CallKind; 3]> {
    let load = |name: &str, requests: Vec<pb::AuthorizeRequest>| {
        Load::own(files.path().join(name), &requests)
    };
    let distinct = || (0..UNCACHED_REQUESTS).map(fixture::request);
    let uncached = &["--cache-bytes", "0"];
    Ok([
        CallKind {
            name: "cached",
            arguments: &[],
            fast_paths: &["borrowed_parsing", "sharded_table"],
            load: load("cached", distinct().take(CACHED_REQUESTS).collect())?,
        },
        CallKind {
            name: "uncached",
            arguments: uncached,
            fast_paths: &["borrowed_parsing", "interpreter", "conformance"],
            load: load("uncached", distinct().collect())?,
        },
        CallKind {
            name: "uncached, with the resource sent along",
            arguments: uncached,
            fast_paths: &["borrowed_parsing", "interpreter", "conformance"],
            load: load("entity", distinct().map(with_resource).collect())?,
        },
    ])
}

/// Returns `request` with its resource among its entities.
fn with_resource(request: pb::AuthorizeRequest) -> pb::AuthorizeRequest {
    use pb::value::Kind;
    let resource = request.resource.clone();
    let folder = resource.as_ref().map(|resource| {
        let number: String = resource.id().chars().next_back().into_iter().collect();
        uid("Folder", &format!("folder-{number:0>18}"))
    });
    let attributes = [
        (
            "title",
            Kind::String("A document of the request".to_owned()),
        ),
        ("level", Kind::Long(1)),
        (
            "owner",
            Kind::Entity(uid("User", "user-000000000000000001")),
        ),
    ];
    let entity = pb::Entity {
        uid: resource,
        attributes: attributes
            .map(|(name, kind)| (name.to_owned(), value(kind)))
            .into(),
        parents: folder.into_iter().collect(),
        ..pb::Entity::default()
    };
    pb::AuthorizeRequest {
        entities: vec![entity],
        ..request
    }
}

impl CallKind {
    fn measure(&self, policies: &TempDir, rounds: usize) -> anyhow::Result<()> {
        let names = ["all on", "all on, again"];
        let off = self
            .fast_paths
            .iter()
            .map(|name| (format!("without {name}"), Some(*name)));
        let servers: Vec<(String, Server)> = names
            .map(|name| (name.to_owned(), None))
            .into_iter()
            .chain(off)
            .map(|(row, off)| (row, self.start(policies, off)))
            .collect();
        for (_, server) in &servers {
            ensure_allowed(server)?;
            self.load.run(server.address(), CALLS_PER_RUN)?;
        }
        let measured = Rounds::measure(rounds, &servers, |(_, server)| {
            self.load.microseconds_per_call(server, CALLS_PER_RUN)
        })?;
        let all_on = 0;
        let rows = servers.iter().enumerate().map(|(at, (row, _))| {
            [
                row.clone(),
                measured.of(at).show(2),
                measured.over(at, all_on).show(3),
            ]
        });
        print_table(self.name, ["", "us a call", "x all on"], rows);
        Ok(())
    }

    /// Starts the service with the fast path `off` switched off.
    fn start(&self, policies: &TempDir, off: Option<&str>) -> Server {
        let mut command = serve_command(policies.path(), self.arguments);
        // What is measured is the cost of every call; none may be shed.
        command.args(["--overload-delay", "0s"]);
        command.envs(off.map(|name| ("FAST_PATH_OFF", name)));
        Server::spawn(command, 1)
    }
}

/// Fails unless `server` allows the first request, as it must whatever is switched off.
fn ensure_allowed(server: &Server) -> anyhow::Result<()> {
    let request = fixture::request(0);
    for request in [with_resource(request.clone()), request] {
        let answer = Client::of(server)?.authorize(request)?;
        let is_allowed = answer.decision() == pb::Decision::Allow;
        ensure!(is_allowed, "not allowed: {answer:?}");
    }
    Ok(())
}
