//! The time from saving a file to the first answer by it, and its effect on other clients.
//!
//! Uses default settings, and writes as editors and `sed -i` do: a temporary file is renamed over
//! the old one. A client calls once per millisecond, so a figure may be too high by that and the
//! time of a call. The baseline is the quiet period, which is part of every figure and its minimum.
//!
//! `cargo bench --bench reload [-- --quick]`

mod support;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::Decision;
use cedar_pdp::config::Config;

use support::dataset::{Dataset, EntityKind, policy_file};
use support::processes::Client;
use support::running::{Server, request, shipped_policies};
use support::statistics::{Spread, print_table};
use support::steady_load::{Call, Pressure};
use support::targets::{self, Target, thousands};
use support::{Sizes, running};

const SAMPLES: usize = 20;
const PROBE_INTERVAL: Duration = Duration::from_millis(1);
/// The pause between samples, so that the service is idle at each write.
const IDLE_PAUSE: Duration = Duration::from_millis(150);
/// The time limit for an edit to take effect.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// The interval of the other clients' calls.
const CALL_INTERVAL: Duration = Duration::from_millis(1);
/// The number of different requests of the other clients.
const DISTINCT_CALLS: usize = 10_000;
/// The pause before each sample while the other clients call.
const IDLE_PAUSE_UNDER_LOAD: Duration = Duration::from_millis(700);

fn main() -> anyhow::Result<()> {
    let (sizes, _) = support::arguments();
    measure_example(sizes)?;
    measure_at_scale(sizes)?;
    targets::print_rows(sizes);
    Ok(())
}

/// A file with two alternative texts, a request, and its decision under each text.
struct Edit {
    file: PathBuf,
    texts: [(String, Decision); 2],
    request: pb::AuthorizeRequest,
    /// The index of the text in force.
    current: usize,
}

impl Edit {
    /// Creates an edit of a file that has the first text now.
    fn new(
        file: PathBuf,
        texts: [(String, Decision); 2],
        request: pb::AuthorizeRequest,
        client: &mut Client,
    ) -> anyhow::Result<Self> {
        let [(_, expected), _] = &texts;
        let answer = client.authorize(request.clone())?;
        ensure!(
            answer.decision() == *expected,
            "before any edit of `{}` the answer is {answer:?}",
            file.display()
        );
        Ok(Self {
            file,
            texts,
            request,
            current: 0,
        })
    }

    /// Replaces the file by the other text. Returns the time of the write, and of the first call
    /// answered by it.
    fn apply(&mut self, client: &mut Client) -> anyhow::Result<(Instant, Instant)> {
        self.current = 1 - self.current;
        let (text, expected) = self.texts.get(self.current).context("one of two")?;
        // The policy store ignores names that begin with a dot.
        let temporary = self.file.with_file_name(".saving");
        fs::write(&temporary, text)?;
        let started = Instant::now();
        fs::rename(&temporary, &self.file)?;
        while client.authorize(self.request.clone())?.decision() != *expected {
            ensure!(
                started.elapsed() < TIME_LIMIT,
                "an edit of `{}` was never served",
                self.file.display()
            );
            sleep(PROBE_INTERVAL);
        }
        Ok((started, Instant::now()))
    }

    /// Repeats the call for `duration`, at the rate used while waiting for an edit. The server
    /// stays awake, so that the idle calls are not slower.
    fn keep_calling(&self, client: &mut Client, duration: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < duration {
            client.authorize(self.request.clone())?;
            sleep(PROBE_INTERVAL);
        }
        Ok(())
    }

    /// Measures `samples` edits in ms, each after a pause, and discards a first one.
    fn samples(&mut self, client: &mut Client, samples: usize) -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..=samples {
            sleep(IDLE_PAUSE);
            let (started, answered) = self.apply(client)?;
            times.push((answered - started).as_secs_f64() * 1e3);
        }
        times.remove(0);
        Ok(times)
    }
}

fn quiet_ms() -> f64 {
    Config::default().store.quiet_period.as_secs_f64() * 1e3
}

fn print_reloads(title: &str, target: Target, samples: &[f64]) {
    let quiet = quiet_ms();
    let row = |name: &str, spread: &Spread, decimals| {
        [
            name.to_owned(),
            format!("{:.decimals$}", spread.least()),
            format!("{:.decimals$}", spread.median()),
            format!("{:.decimals$}", spread.percentile(90)),
        ]
    };
    let ms = Spread::of(samples.iter().copied());
    let ratio = Spread::of(samples.iter().map(|ms| ms / quiet));
    print_table(
        title,
        ["", "least", "median", "p90"],
        [row("ms", &ms, 1), row("x quiet period", &ratio, 2)],
    );
    target.measured(&format!(
        "{:.0} ms, p90 {:.0} ms ({:.1} x the quiet period of {quiet} ms)",
        ms.median(),
        ms.percentile(90),
        ratio.median()
    ));
}

fn measure_example(sizes: Sizes) -> anyhow::Result<()> {
    const CONDITION: &str = "when { resource.published }";
    const OPPOSITE: &str = "when { !resource.published }";
    let directory = tempfile::tempdir()?;
    copy(&shipped_policies(), directory.path())?;
    let file = directory.path().join("public.cedar");
    let permitting = fs::read_to_string(&file)?;
    ensure!(
        permitting.contains(CONDITION),
        "`public.cedar` no longer contains `{CONDITION}`"
    );
    let denying = permitting.replace(CONDITION, OPPOSITE);
    let server = Server::start(directory.path(), &[]);
    let mut client = Client::of(&server)?;
    let mut edit = Edit::new(
        file,
        [(permitting, Decision::Allow), (denying, Decision::Deny)],
        request(
            r#"Platform::Visitor::"anonymous""#,
            r#"Invoicing::Action::"readPriceList""#,
            r#"Invoicing::PriceList::"2026-standard""#,
        ),
        &mut client,
    )?;
    println!(
        "From the rename of a file to the first answer by it, default settings. {} samples.\n\
         Baseline: the quiet period of {} ms, which is part of each figure.",
        sizes.of(SAMPLES, 3),
        quiet_ms()
    );
    let samples = edit.samples(&mut client, sizes.of(SAMPLES, 3))?;
    print_reloads("the worked example", targets::RELOAD_EXAMPLE, &samples);
    Ok(())
}

fn measure_at_scale(sizes: Sizes) -> anyhow::Result<()> {
    let (policies, entities) = sizes.of((100_000, 1_000_000), (1_000, 10_000));
    let samples = sizes.of(SAMPLES, 3);
    let directory = tempfile::tempdir()?;
    let dataset = Dataset::new(policies, entities)?;
    dataset.write(directory.path())?;
    let probes = Probes::write(&dataset, directory.path())?;
    let server = Server::start(directory.path(), &[]);
    let mut client = Client::of(&server)?;
    let mut of_policies = probes.of_policies(&mut client)?;
    let mut of_entities = probes.of_entities(&mut client)?;
    let mut of_parents = probes.of_parents(&mut client)?;

    let size = format!(
        "{} policies and {} entities",
        thousands(policies),
        thousands(entities)
    );
    let times = of_policies.samples(&mut client, samples)?;
    print_reloads(
        &format!("one policy file of 1,000 changed; {size}"),
        targets::RELOAD_POLICIES,
        &times,
    );
    let times = of_entities.samples(&mut client, samples)?;
    print_reloads(
        &format!("one entity file of 1,000 changed; {size}"),
        targets::RELOAD_ENTITIES,
        &times,
    );
    let times = of_parents.samples(&mut client, samples)?;
    print_reloads(
        &format!("the same, a parent of a group of the highest level changed; {size}"),
        targets::RELOAD_PARENTS,
        &times,
    );

    let requests = dataset.requests(DISTINCT_CALLS)?;
    let requests: Vec<_> = requests.iter().map(|drawn| drawn.message()).collect();
    let mut measured = Vec::new();
    let mut rows = Vec::new();
    for (name, edit) in [
        ("a policy file", &mut of_policies),
        ("an entity file", &mut of_entities),
        ("a group's parents", &mut of_parents),
    ] {
        let steady_load = Pressure::start(server.address(), requests.clone(), CALL_INTERVAL);
        let mut reloads = Vec::new();
        edit.keep_calling(&mut client, IDLE_PAUSE_UNDER_LOAD)?;
        for _ in 0..samples {
            edit.keep_calling(&mut client, IDLE_PAUSE_UNDER_LOAD)?;
            reloads.push(edit.apply(&mut client)?);
        }
        let calls = steady_load.finish()?;
        let latencies = Latencies::of(&calls, &reloads)?;
        let over_rest = |spread: &Spread| spread.percentile(99) / latencies.at_rest.percentile(99);
        let duration = ("at rest", &latencies.at_rest);
        let moments = [
            ("during reloads", &latencies.during),
            ("just after", &latencies.after),
        ];
        for (when, spread) in std::iter::once(duration).chain(moments) {
            rows.push(Latencies::row(name, when, spread, over_rest(spread)));
        }
        for (when, spread) in moments {
            measured.push((
                over_rest(spread),
                format!(
                    "{:.2} ms / {:.2} ms; {name}, {when}, the worst of all",
                    spread.percentile(99),
                    latencies.at_rest.percentile(99)
                ),
            ));
        }
    }
    print_table(
        &format!(
            "calls in ms, one begun each {CALL_INTERVAL:?}, at rest, while reloads run and after; {size}"
        ),
        ["", "calls", "p50", "p99", "most", "p99 x at rest"],
        rows,
    );
    let worst = measured
        .iter()
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    let (ratio, of_what) = worst.context("there are kinds of reloads")?;
    targets::LATENCY_IN_RELOAD.measured(&format!("{ratio:.2} x ({of_what})"));
    Ok(())
}

/// Latencies in ms, by the time of the call: well before a write; from the write to the first
/// answer by it (compiling begins in the quiet period already); and later.
struct Latencies {
    at_rest: Spread,
    during: Spread,
    after: Spread,
}

impl Latencies {
    fn of(calls: &[Call], reloads: &[(Instant, Instant)]) -> anyhow::Result<Self> {
        let half = IDLE_PAUSE_UNDER_LOAD / 2;
        let among = |span: &dyn Fn(Instant, Instant) -> Range<Instant>| {
            let begun_then = |call: &&Call| {
                reloads
                    .iter()
                    .any(|(started, answered)| span(*started, *answered).contains(&call.started))
            };
            let calls: Vec<f64> = calls
                .iter()
                .filter(begun_then)
                .map(|call| call.took.as_secs_f64() * 1e3)
                .collect();
            ensure!(!calls.is_empty(), "no call began in one of the spans");
            Ok(Spread::of(calls))
        };
        Ok(Self {
            // The other half of the pause is left to the effects of the reload.
            at_rest: among(&|started, _| started.checked_sub(half).unwrap_or(started)..started)?,
            during: among(&|started, answered| started..answered)?,
            // Filling the cache and freeing the old snapshot take time.
            after: among(&|_, answered| answered..answered + half)?,
        })
    }

    fn row(name: &str, when: &str, spread: &Spread, ratio: f64) -> [String; 6] {
        [
            format!("{name}, {when}"),
            spread.len().to_string(),
            format!("{:.3}", spread.median()),
            format!("{:.3}", spread.percentile(99)),
            format!("{:.3}", spread.most()),
            format!("{ratio:.2}"),
        ]
    }
}

/// Three requests whose answers show which text of a file is in force. The first depends on a
/// policy that only one text contains, the second on an attribute of user 0, the third on a group
/// that contains user 0 indirectly or not.
struct Probes {
    policy_file: PathBuf,
    entity_file: PathBuf,
    group_file: PathBuf,
    group: String,
    by_policy: pb::AuthorizeRequest,
    by_entity: pb::AuthorizeRequest,
    by_parent: pb::AuthorizeRequest,
    probe: String,
}

/// A higher level than any in the data set.
const LEVEL: usize = 1_000;

impl Probes {
    /// Adds the probes' policies and entities to `directory`.
    fn write(dataset: &Dataset, directory: &Path) -> anyhow::Result<Self> {
        let user = dataset.name(EntityKind::User, 0);
        // Document type 0, whose actions end with 00.
        let document = dataset.name(EntityKind::Document, 0);
        let head = format!("permit (principal == {user}, action, resource == {document})");
        fs::write(
            directory.join("probe.cedar"),
            format!(
                "@id(\"probe-level\")\n{head}\nwhen {{ context.channel == \"probe-level\" && principal.level >= {LEVEL} }};\n\
                 @id(\"probe-parent\")\npermit (principal in Group::\"probe\", action, resource == {document})\n\
                 when {{ context.channel == \"probe-parent\" }};\n"
            ),
        )?;
        let by = |channel: &str| {
            let mut request = request(
                &user.to_string(),
                "Action::\"read00\"",
                &document.to_string(),
            );
            let value = |kind| running::value(kind);
            request.context.extend([
                (
                    "channel".to_owned(),
                    value(pb::value::Kind::String(channel.to_owned())),
                ),
                ("mfa".to_owned(), value(pb::value::Kind::Bool(true))),
                // More than any other permit allows.
                ("amount".to_owned(), value(pb::value::Kind::Long(1_000_000))),
            ]);
            request
        };
        let entities = directory.join("entities");
        let group = dataset.highest_group_of(0);
        let group = group.context("every user is in groups")?;
        Ok(Self {
            policy_file: directory.join("policies").join(policy_file(0)),
            entity_file: entities.join(dataset.file_of(EntityKind::User, 0)),
            group_file: entities.join(dataset.file_of(EntityKind::Group, group)),
            group: dataset.name(EntityKind::Group, group).id,
            by_policy: by("probe"),
            by_entity: by("probe-level"),
            by_parent: by("probe-parent"),
            probe: format!("\n@id(\"probe\")\n{head}\nwhen {{ context.channel == \"probe\" }};\n"),
        })
    }

    fn of_policies(&self, client: &mut Client) -> anyhow::Result<Edit> {
        let without = fs::read_to_string(&self.policy_file)?;
        let with = format!("{without}{}", self.probe);
        Edit::new(
            self.policy_file.clone(),
            [(without, Decision::Deny), (with, Decision::Allow)],
            self.by_policy.clone(),
            client,
        )
    }

    fn of_entities(&self, client: &mut Client) -> anyhow::Result<Edit> {
        let low = fs::read_to_string(&self.entity_file)?;
        let (before, after) = low
            .split_once("\"level\":")
            .context("user 0, the first, has a level")?;
        let duration = after.trim_start_matches(|c: char| c.is_ascii_digit());
        let high = format!("{before}\"level\":{LEVEL}{duration}");
        Edit::new(
            self.entity_file.clone(),
            [(low, Decision::Deny), (high, Decision::Allow)],
            self.by_entity.clone(),
            client,
        )
    }

    fn of_parents(&self, client: &mut Client) -> anyhow::Result<Edit> {
        let outside = fs::read_to_string(&self.group_file)?;
        let uid = format!(r#"{{"uid":{{"type":"Group","id":"{}"}}"#, self.group);
        let (before, entity) = outside
            .split_once(&uid)
            .context("the file contains the group")?;
        let (attributes, parents) = entity
            .split_once(r#""parents":["#)
            .context("an entity has parents")?;
        // Groups of the highest level have no parents.
        let inside = format!(
            r#"{before}{uid}{attributes}"parents":[{{"type":"Group","id":"probe"}}{parents}"#
        );
        Edit::new(
            self.group_file.clone(),
            [(outside, Decision::Deny), (inside, Decision::Allow)],
            self.by_parent.clone(),
            client,
        )
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
