//! Hit rates and costs of the decision cache under pressure, beside moka alone and a plain LRU.
//!
//! Keys follow a Zipf distribution over far more keys than the cache holds. All figures come from
//! one process, so that their ratios hold on a noisy machine. Times are this thread's CPU time;
//! both caches encode the same keys.
//!
//! `cargo bench --bench hits [-- --quick]`

mod support;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZeroU64;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use cedar_pdp::engine::cache::{Cache, CacheSettings};
use cedar_pdp::engine::{CachedAnswer as _, Source, key};
use cedar_pdp::pdp::answer::{Answer, Decision, Diagnostics};
use cedar_pdp::pdp::query_ref::{Fields, QueryRef, UidRef};
use cedar_pdp::pdp::sources::Sources;
use cedar_pdp::pdp::{Settings, Snapshot, compile};
use foldhash::quality::RandomState;
use support::dataset::Rng;
use support::statistics::print_table;

const KEYS: usize = 300_000;
const EXPONENTS: [f64; 2] = [0.8, 1.0];
const CAPACITIES: [u64; 2] = [2 << 20, 8 << 20];
/// The number of keys of the lookups that all hit, in random order, and the capacity that holds
/// them all.
const HIT_KEYS: usize = 100_000;
const HIT_CAPACITY: u64 = 256 << 20;
/// Bytes of an entry in moka besides key and answer, as in the decision cache.
const MOKA_OVERHEAD_BYTES: usize = 256;

fn main() -> anyhow::Result<()> {
    let (sizes, _) = support::arguments();
    let draws = sizes.of(4_000_000, 200_000);
    let fixture = Fixture::new()?;
    let mut rows = Vec::new();
    for exponent in EXPONENTS {
        let zipf = Zipf::new(exponent);
        for capacity in CAPACITIES {
            rows.push(with_limited_capacity(
                &fixture, &zipf, exponent, capacity, draws,
            )?);
        }
    }
    print_table(
        "Hit rate in percent (and ns of CPU per request) under pressure",
        ["load", "answers", "ours", "moka alone", "plain LRU", "best"],
        rows,
    );
    let rounds = sizes.of(11, 3);
    print_table(
        "ns of CPU per hit, least of all rounds",
        ["keys", "ours", "moka alone"],
        [all_hits(&fixture, rounds)?],
    );
    Ok(())
}

/// Compares the caches over one sequence of keys, and counts its second half.
fn with_limited_capacity(
    fixture: &Fixture,
    zipf: &Zipf,
    exponent: f64,
    capacity: u64,
    draws: usize,
) -> anyhow::Result<[String; 6]> {
    let ours = fixture.ours(capacity)?;
    let moka = fixture.moka(capacity);
    let (our_rate, our_time) = run(zipf, draws, |key| fixture.get_ours(&ours, key))?;
    let (moka_rate, moka_time) = run(zipf, draws, |key| fixture.get_moka(&moka, key))?;
    let metrics = ours.metrics();
    ensure!(metrics.bytes <= capacity, "{metrics:?}");
    let answers = usize::try_from(metrics.entries)?;
    let mut lru = Lru::new(answers);
    let (lru_rate, _) = run(zipf, draws, |key| lru.get(key))?;
    Ok([
        format!("Zipf {exponent:.1}, {} MiB", capacity >> 20),
        answers.to_string(),
        format!("{our_rate:.1} ({our_time:.0})"),
        format!("{moka_rate:.1} ({moka_time:.0})"),
        format!("{lru_rate:.1}"),
        format!("{:.1}", 100.0 * zipf.share_of_first(answers)),
    ])
}

/// Draws keys and returns the hit rate of `get`, in percent, and ns of CPU per key.
fn run(
    zipf: &Zipf,
    draws: usize,
    mut get: impl FnMut(usize) -> bool,
) -> anyhow::Result<(f64, f64)> {
    let mut rng = Rng::new(7);
    for _ in 0..draws / 2 {
        get(zipf.draw(&mut rng));
    }
    let keys: Vec<usize> = (0..draws / 2).map(|_| zipf.draw(&mut rng)).collect();
    let start = cpu_nanoseconds()?;
    let hits = keys.iter().filter(|key| get(**key)).count();
    let took = cpu_nanoseconds()? - start;
    let count = keys.len() as f64;
    Ok((100.0 * hits as f64 / count, took / count))
}

/// Compares the cost of hits with capacity for all keys.
fn all_hits(fixture: &Fixture, rounds: usize) -> anyhow::Result<[String; 3]> {
    let ours = fixture.ours(HIT_CAPACITY)?;
    let moka = fixture.moka(HIT_CAPACITY);
    let mut rng = Rng::new(7);
    let keys: Vec<usize> = (0..4 * HIT_KEYS).map(|_| rng.below(HIT_KEYS)).collect();
    for key in 0..HIT_KEYS {
        fixture.get_ours(&ours, key);
        fixture.get_moka(&moka, key);
    }
    moka.run_pending_tasks();
    let (mut our_least, mut moka_least) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        our_least = our_least.min(hit_time(&keys, |key| fixture.get_ours(&ours, key))?);
        moka_least = moka_least.min(hit_time(&keys, |key| fixture.get_moka(&moka, key))?);
    }
    Ok([
        HIT_KEYS.to_string(),
        format!("{our_least:.0}"),
        format!("{moka_least:.0}"),
    ])
}

fn hit_time(keys: &[usize], get: impl Fn(usize) -> bool) -> anyhow::Result<f64> {
    let start = cpu_nanoseconds()?;
    let hits = keys.iter().filter(|key| black_box(get(**key))).count();
    let took = cpu_nanoseconds()? - start;
    ensure!(hits == keys.len(), "{hits} of {} were hits", keys.len());
    Ok(took / keys.len() as f64)
}

type Key = Box<[u8]>;
type Moka = moka::sync::Cache<Key, Arc<Answer>, RandomState>;

/// A snapshot with the queries and answers to cache.
struct Fixture {
    snapshot: Snapshot,
    principals: Vec<String>,
    answer: Arc<Answer>,
}

impl Fixture {
    fn new() -> anyhow::Result<Self> {
        let snapshot = compile(&Sources::default(), &Settings::default());
        let snapshot = snapshot.map_err(|_| anyhow::anyhow!("an empty directory must compile"))?;
        let answer = Arc::new(Answer {
            decision: Decision::Deny,
            diagnostics: Diagnostics::default(),
            revision: snapshot.revision().clone(),
            explanation: None,
        });
        Ok(Self {
            snapshot,
            principals: (0..KEYS).map(|n| format!("principal-{n:06}")).collect(),
            answer,
        })
    }

    fn ours(&self, capacity: u64) -> anyhow::Result<Cache<Arc<Answer>>> {
        let capacity_bytes = NonZeroU64::new(capacity);
        Cache::new(CacheSettings { capacity_bytes }).context("the cache is on")
    }

    fn moka(&self, capacity: u64) -> Moka {
        moka::sync::Cache::builder()
            .max_capacity(capacity)
            .weigher(|key: &Key, answer: &Arc<Answer>| {
                let weight = MOKA_OVERHEAD_BYTES + key.len() + answer.weight();
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .build_with_hasher(RandomState::default())
    }

    fn query(&self, key: usize) -> QueryRef<'_> {
        QueryRef {
            principal: UidRef {
                type_name: "User",
                id: self.principals.get(key).map_or("", String::as_str),
            },
            action: UidRef {
                type_name: "Action",
                id: "read",
            },
            resource: UidRef {
                type_name: "Document",
                id: "quarterly-report",
            },
            context: Fields::default(),
            entities: Vec::new(),
            claimed: None,
            explain: false,
        }
    }

    fn get_ours(&self, cache: &Cache<Arc<Answer>>, key: usize) -> bool {
        let decide = || Ok(Arc::new(Answer::clone(&self.answer)));
        let found = cache.get_or_decide(&self.snapshot, &self.query(key), decide);
        matches!(found, Ok((_, Source::Cache)))
    }

    fn get_moka(&self, cache: &Moka, key: usize) -> bool {
        let query = self.query(key);
        let reads = (self.snapshot).context_reads(query.action.type_name, query.action.id);
        let mut bytes = self.snapshot.revision().as_str().as_bytes().to_vec();
        key::encode(&mut bytes, reads, &query);
        let is_hit = cache.get(bytes.as_slice()).is_some();
        if !is_hit {
            cache.insert(bytes.into(), Arc::new(Answer::clone(&self.answer)));
        }
        is_hit
    }
}

/// A Zipf distribution over `KEYS` keys, as cumulative shares.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(exponent: f64) -> Self {
        let weights = (1..=KEYS).map(|rank| (rank as f64).powf(-exponent));
        let mut sum = 0.0;
        let sums: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        Self(sums.into_iter().map(|upto| upto / sum).collect())
    }

    fn draw(&self, rng: &mut Rng) -> usize {
        let at = rng.unit();
        self.0.partition_point(|upto| *upto < at).min(KEYS - 1)
    }

    /// Returns the share of requests for the `count` most frequent keys, which no cache exceeds.
    fn share_of_first(&self, count: usize) -> f64 {
        self.0.get(count.saturating_sub(1)).copied().unwrap_or(1.0)
    }
}

/// A plain LRU cache of keys.
struct Lru {
    capacity: usize,
    /// Keys by the time of their last use.
    by_time: BTreeMap<u64, usize>,
    /// The time of each key's last use; 0 is never.
    times: Vec<u64>,
    now: u64,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            by_time: BTreeMap::new(),
            times: vec![0; KEYS],
            now: 0,
        }
    }

    fn get(&mut self, key: usize) -> bool {
        self.now += 1;
        let Some(time) = self.times.get_mut(key) else {
            return false;
        };
        let is_hit = self.by_time.remove(time).is_some();
        *time = self.now;
        self.by_time.insert(self.now, key);
        if self.by_time.len() > self.capacity {
            self.by_time.pop_first();
        }
        is_hit
    }
}

/// Returns the CPU time of this thread so far, in nanoseconds.
fn cpu_nanoseconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split_whitespace().next().context("no CPU time")?;
    Ok(first.parse()?)
}
