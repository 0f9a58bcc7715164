//! Counters and histograms that many threads add to at once and that somebody reads now and then.
//!
//! Nothing here knows what is counted. Each thread adds to a shard of its own, so that counting
//! costs a few nanoseconds whatever the others do; a reader adds the shards up. What it reads is
//! not one moment's state, but no addition is lost and no figure ever goes back.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// More threads than that share shards, which costs them time and nothing else.
const SHARDS: usize = 16;

/// Where the calling thread counts.
fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    OWN.with(|own| *own)
}

/// `N` counters that only go up, each known by its place.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    shards: Box<[Shard<N>]>,
}

/// Two cache lines apart from any other: processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Shard<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Shard([const { AtomicU64::new(0) }; N]));
        Self {
            shards: shards.collect(),
        }
    }
}

impl<const N: usize> Counters<N> {
    /// Counts one more at `place`; nothing when there is no such place.
    pub fn add_one(&self, place: usize) {
        self.add(place, 1);
    }

    /// Counts `n` more at `place`; nothing when there is no such place.
    pub fn add(&self, place: usize, n: u64) {
        let shard = self.shards.get(own_shard());
        if let Some(counter) = shard.and_then(|Shard(counters)| counters.get(place)) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The count at `place`.
    #[must_use]
    pub fn sum(&self, place: usize) -> u64 {
        let of_shards = self.shards.iter().filter_map(|Shard(all)| all.get(place));
        of_shards.fold(0, |sum, counter| {
            sum.wrapping_add(counter.load(Ordering::Relaxed))
        })
    }
}

/// The most bounds that a histogram has.
pub const MOST_BOUNDS: usize = 17;

/// A bucket for each bound, one beyond the last, and the sum.
const CELLS: usize = MOST_BOUNDS + 2;
const SUM: usize = MOST_BOUNDS + 1;

/// How often each size of something was seen.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    cells: Counters<CELLS>,
}

/// What a histogram has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many values fell under each bound and above the one before; the last one is what is
    /// above all bounds.
    pub buckets: Vec<u64>,
    /// All values together.
    pub sum: u64,
}

impl Histogram {
    /// An empty histogram. A value belongs to the first of the ascending `bounds` that it is not
    /// above; of those, no more than [`MOST_BOUNDS`] count.
    #[must_use]
    pub fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds: bounds.get(..MOST_BOUNDS).unwrap_or(bounds),
            cells: Counters::default(),
        }
    }

    /// Notes one value.
    pub fn observe(&self, value: u64) {
        // From below: most of what is measured here is small.
        let above = |bound: &&u64| value > **bound;
        self.cells
            .add_one(self.bounds.iter().take_while(above).count());
        self.cells.add(SUM, value);
    }

    /// What it has seen so far.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        Distribution {
            buckets: (0..=self.bounds.len())
                .map(|place| self.cells.sum(place))
                .collect(),
            sum: self.cells.sum(SUM),
        }
    }

    /// The bounds that it was made with.
    #[must_use]
    pub fn bounds(&self) -> &'static [u64] {
        self.bounds
    }
}

impl Distribution {
    /// How many values there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_addition_is_lost_however_many_threads_add() {
        let counters = Counters::<3>::default();
        std::thread::scope(|scope| {
            for _ in 0..SHARDS + 5 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        counters.add_one(1);
                        counters.add(2, 3);
                    }
                });
            }
        });
        let threads = SHARDS as u64 + 5;
        let sums = [0, 1, 2].map(|place| counters.sum(place));
        assert_eq!(sums, [0, threads * 1_000, threads * 3_000]);
    }

    #[test]
    fn a_place_that_does_not_exist_counts_nothing() {
        let counters = Counters::<1>::default();
        counters.add_one(1);
        assert_eq!((counters.sum(0), counters.sum(1)), (0, 0));
    }

    #[test]
    fn a_value_belongs_to_the_first_bound_that_it_is_not_above() {
        let histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, 1_000] {
            histogram.observe(value);
        }
        let seen = histogram.distribution();
        assert_eq!((&seen.buckets[..], seen.sum), (&[2, 2, 2][..], 1_062));
        assert_eq!(seen.count(), 6);
    }
}
