//! Counters and histograms that many threads update at once and that are read rarely.
//!
//! Nothing here knows what is counted. Each thread adds to its own shard, so an update costs a few
//! nanoseconds under any contention; a read sums the shards. Values read together may be of
//! slightly different moments, but no update is lost and no value ever decreases.

pub mod page;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Number of shards. If there are more threads, some share a shard, which only costs time.
const SHARDS: usize = 16;

fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    OWN.with(|own| *own)
}

/// `N` counters that only go up, each with an index.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    shards: Box<[Shard<N>]>,
}

/// One shard. Aligned to two cache lines, because processors fetch lines in pairs.
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
    /// Adds one to the counter at `index`. Does nothing if `index` is out of range.
    pub fn add_one(&self, index: usize) {
        self.add(index, 1);
    }

    /// Adds `n` to the counter at `index`. Does nothing if `index` is out of range.
    pub fn add(&self, index: usize, n: u64) {
        let shard = self.shards.get(own_shard());
        if let Some(counter) = shard.and_then(|Shard(counters)| counters.get(index)) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Returns the value of the counter at `index`, or 0 if it is out of range.
    #[must_use]
    pub fn sum(&self, index: usize) -> u64 {
        let shards = self.shards.iter().filter_map(|Shard(all)| all.get(index));
        shards.fold(0, |sum, counter| {
            sum.wrapping_add(counter.load(Ordering::Relaxed))
        })
    }
}

/// Most bounds of a histogram.
pub const MAX_BOUNDS: usize = 17;

/// Counters of a histogram: one per bound, one for larger values, and the sum.
const CELLS: usize = MAX_BOUNDS + 2;
const SUM: usize = MAX_BOUNDS + 1;

/// A histogram: the number of values in each bucket, and their sum.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    cells: Counters<CELLS>,
}

/// The contents of a histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Values per bucket: above the previous bound and at most this one. The last bucket holds the
    /// values above all bounds.
    pub buckets: Vec<u64>,
    /// The sum of all values.
    pub sum: u64,
}

impl Histogram {
    /// Creates an empty histogram. A value is counted in the bucket of the first of the ascending
    /// `bounds` that is not below it. Bounds after the first [`MAX_BOUNDS`] are ignored.
    #[must_use]
    pub fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds: bounds.get(..MAX_BOUNDS).unwrap_or(bounds),
            cells: Counters::default(),
        }
    }

    /// Counts one value.
    pub fn observe(&self, value: u64) {
        // Searched from below, because most values are small.
        let above = |bound: &&u64| value > **bound;
        self.cells
            .add_one(self.bounds.iter().take_while(above).count());
        self.cells.add(SUM, value);
    }

    /// Returns the values counted so far.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        Distribution {
            buckets: (0..=self.bounds.len())
                .map(|bucket| self.cells.sum(bucket))
                .collect(),
            sum: self.cells.sum(SUM),
        }
    }
}

impl Distribution {
    /// Returns the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_updates_are_not_lost() {
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
    fn index_out_of_range_counts_nothing() {
        let counters = Counters::<1>::default();
        counters.add_one(1);
        assert_eq!((counters.sum(0), counters.sum(1)), (0, 0));
    }

    #[test]
    fn value_equal_to_a_bound_is_below_it() {
        let histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, 1_000] {
            histogram.observe(value);
        }
        let seen = histogram.distribution();
        assert_eq!((&seen.buckets[..], seen.sum), (&[2, 2, 2][..], 1_062));
        assert_eq!(seen.count(), 6);
    }
}
