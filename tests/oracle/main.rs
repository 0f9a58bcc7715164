//! Compares decisions with Cedar's plain authorizer: generated scenarios, and hand-written cases.
//!
//! `CEDAR_PDP_ORACLE_CASES` sets the number of cases, `CEDAR_PDP_ORACLE_SEED` the first seed. A
//! failure prints its seed, the files and the request.
//!
//! The same scenarios serve to compare the answers of two binaries: see `recorded`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and should say where"
)]

mod cases;
mod checked_engine;
mod conditions;
mod formatting;
mod plain;
mod policies;
mod recorded;
mod requests;
mod rng;
mod scenario;
mod shape;
mod values;

use std::fmt;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cedar_pdp::pdp::query::Query;
use cedar_pdp::pdp::settings::{KnownTypes, OnPolicyError, Settings, Validation};
use cedar_pdp::pdp::snapshot::Snapshot;

use checked_engine::EngineUnderTest;
use plain::{Counts, Expected, Plain};
use rng::Rng;
use scenario::{Files, Scenario};

/// The results, counted in distinct pairs of content and request.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    cases: u64,
    allow: u64,
    deny: u64,
    /// Cases with a policy whose evaluation failed.
    failing: u64,
    rejected: u64,
    loads: u64,
}

impl Tally {
    fn count(&mut self, expected: &Expected) {
        self.cases += 1;
        match expected {
            Expected::Rejected(_) => self.rejected += 1,
            Expected::Answered { allow, errors, .. } => {
                if *allow {
                    self.allow += 1;
                } else {
                    self.deny += 1;
                }
                self.failing += u64::from(!errors.is_empty());
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.allow += other.allow;
        self.deny += other.deny;
        self.failing += other.failing;
        self.rejected += other.rejected;
        self.loads += other.loads;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cases,
            allow,
            deny,
            failing,
            rejected,
            loads,
        } = self;
        write!(
            f,
            "{cases} cases: {allow} ALLOW, {deny} DENY ({failing} of both failing), {rejected} rejected; \
             {loads} loads"
        )
    }
}

/// Cedar recurses, and an unoptimised build has large stack frames.
const STACK_BYTES: usize = 64 << 20;

#[test]
fn answers_equal_those_of_plain_cedar() {
    let wanted = number("CEDAR_PDP_ORACLE_CASES", 4_000);
    let first = number("CEDAR_PDP_ORACLE_SEED", 0xced4);
    let next = AtomicU64::new(first);
    let total = Mutex::new(Tally::default());
    let failures: Mutex<Vec<String>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let scenarios = || {
                while total.lock().unwrap().cases < wanted && failures.lock().unwrap().is_empty() {
                    // Every scenario has its own seed, so that it can be repeated alone.
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    match catch_unwind(AssertUnwindSafe(|| check_seed(seed))) {
                        Ok(Ok(tally)) => total.lock().unwrap().add(tally),
                        Ok(Err(failure)) => failures.lock().unwrap().push(failure),
                        Err(_) => {
                            let failure = format!("panicked, see above; seed {seed}");
                            failures.lock().unwrap().push(failure);
                        }
                    }
                }
            };
            std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, scenarios)
                .unwrap();
        }
    });
    if let Some(failure) = failures.into_inner().unwrap().first() {
        panic!(
            "{failure}\nmake it again with CEDAR_PDP_ORACLE_SEED=<seed> CEDAR_PDP_ORACLE_CASES=1"
        );
    }
    let total = total.into_inner().unwrap();
    // Written past the test harness, because every run should show the counts.
    writeln!(std::io::stdout(), "{total}; first seed {first}").unwrap();
    // A single scenario need not be balanced.
    if wanted >= 1_000 {
        for (name, share) in [
            ("ALLOW", total.allow),
            ("DENY", total.deny),
            ("failing", total.failing),
        ] {
            assert!(
                share * 5 >= total.cases,
                "too few cases are {name}: {total}"
            );
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}

fn settings(rng: &mut Rng) -> Settings {
    let validation = rng.pick(&[
        Validation::Strict,
        Validation::Strict,
        Validation::Strict,
        Validation::Warn,
        Validation::Off,
        Validation::Off,
    ]);
    let on_policy_error = match rng.chance(15) {
        true => OnPolicyError::Deny,
        false => OnPolicyError::Skip,
    };
    let request_entity_types = rng.chance(8).then(|| {
        ["User", "Group", "Doc", "Folder", "Org"]
            .map(str::to_owned)
            .into()
    });
    // From another generator: this one draws the cases by which mutations are detected.
    let mut own = Rng::named(rng.clone().seed(), "known");
    let require_known = match own.below(40) {
        0 => Some(KnownTypes::All),
        1 => Some(KnownTypes::Named(["User", "Doc"].map(str::to_owned).into())),
        _ => None,
    };
    Settings {
        validation,
        on_policy_error,
        request_entity_types,
        require_known,
        ..Settings::default()
    }
}

/// One revision of the files, and Cedar's answers on it.
struct Revision {
    files: Files,
    counts: Counts,
    answers: Vec<(Query, Expected)>,
}

impl Revision {
    fn of(scenario: &Scenario, settings: &Settings, queries: &[Query]) -> Result<Self, String> {
        let files = scenario.files();
        let plain = Plain::load(&files, settings)
            .map_err(|error| format!("{}Cedar does not take them: {error}", listing(&files)))?;
        let answers = queries
            .iter()
            .map(|query| (query.clone(), plain.authorize(query)))
            .collect();
        Ok(Self {
            counts: plain.counts(),
            answers,
            files,
        })
    }

    /// Loads the revision and checks all requests, in random order.
    fn load_and_check(
        &self,
        engine: &mut EngineUnderTest,
        rng: &mut Rng,
    ) -> Result<Arc<Snapshot>, String> {
        let snapshot = engine
            .load(&self.files)
            .map_err(|why| format!("{}{why}", listing(&self.files)))?;
        let counts = checked_engine::counts(&snapshot);
        if counts != self.counts {
            let wanted = self.counts;
            let files = listing(&self.files);
            return Err(format!("{files}holds {counts:?}, expected {wanted:?}"));
        }
        let mut order: Vec<&(Query, Expected)> = self.answers.iter().collect();
        rng.shuffle(&mut order);
        self.check(engine, &snapshot, order)?;
        Ok(snapshot)
    }

    /// Checks `cases` on the revision's snapshot, which may be replaced by now.
    fn check<'a>(
        &self,
        engine: &EngineUnderTest,
        snapshot: &Snapshot,
        cases: impl IntoIterator<Item = &'a (Query, Expected)>,
    ) -> Result<(), String> {
        for (query, expected) in cases {
            engine.check(snapshot, query, expected).map_err(|why| {
                let files = listing(&self.files);
                format!("{files}{why}\nexpected {expected:#?}\nrequest {query:#?}")
            })?;
        }
        Ok(())
    }
}

fn listing(files: &Files) -> String {
    let files: String = files
        .iter()
        .map(|(path, text)| format!("--- {path}\n{text}\n"))
        .collect();
    format!("{files}---\n")
}

/// Checks all requests on some revisions of one directory, some of them more than once.
fn check_seed(seed: u64) -> Result<Tally, String> {
    let mut rng = Rng::new(seed);
    let settings = settings(&mut rng);
    let about = |what: String| format!("{what}\n{settings:?}, seed {seed}");

    let mut scenarios = vec![Scenario::draw(&mut rng, settings.validation)];
    for _ in 0..2 {
        let from = rng.below(scenarios.len());
        scenarios.push(scenarios[from].changed(&mut rng));
    }
    let mut queries = requests::draw(&mut rng, &scenarios[0], 20);
    queries.extend(requests::draw(&mut rng, &scenarios[2], 6));
    let revisions = scenarios
        .iter()
        .map(|scenario| Revision::of(scenario, &settings, &queries))
        .collect::<Result<Vec<_>, _>>()
        .map_err(about)?;
    let mut visits = vec![0, 1, 2];
    visits.extend((0..rng.below(3)).map(|_| rng.below(revisions.len())));

    let mut tally = Tally::default();
    for (_, expected) in revisions.iter().flat_map(|revision| &revision.answers) {
        tally.count(expected);
    }
    // A small cache evicts.
    let mut engine = EngineUnderTest::new(settings.clone(), rng.pick(&[1 << 22, 1 << 22, 1 << 13]));
    let mut before: Option<(&Revision, Arc<Snapshot>)> = None;
    for at in visits {
        let revision = &revisions[at];
        let snapshot = revision
            .load_and_check(&mut engine, &mut rng)
            .map_err(about)?;
        tally.loads += 1;
        // A request that holds the earlier snapshot is decided by that one.
        if let Some((revision, snapshot)) = &before {
            let some = revision.answers.iter().take(4);
            revision.check(&engine, snapshot, some).map_err(about)?;
        }
        if rng.chance(20) {
            engine.clear_cache();
        }
        before = Some((revision, snapshot));
    }
    Ok(tally)
}
