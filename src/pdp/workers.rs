//! Threads for compiling policies.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of policies that justify a thread; compiling them takes some ten milliseconds.
const BYTES_PER_THREAD: u64 = 64 << 10;

/// The threads that a compilation may use.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// The maximum number of threads, the calling thread included.
    pub threads: NonZeroUsize,
    /// Called first on each additional thread, for example to lower its priority.
    pub begin: fn(),
    /// Called on each thread within each millisecond, to yield to threads that serve requests.
    pub pause: fn(),
}

impl Default for Workers {
    /// One thread, which never yields.
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::MIN,
            begin: || {},
            pause: || {},
        }
    }
}

impl Workers {
    /// Reduces the threads to those that `bytes` of files in total justify.
    ///
    /// The allocator keeps some memory for each thread: for few files, more than the files take.
    #[must_use]
    pub fn scaled_to(self, bytes: u64) -> Self {
        self.one_per(BYTES_PER_THREAD, bytes)
    }

    /// Reduces the threads to one, and another for each `bytes_per_thread` in `bytes`.
    pub(crate) fn one_per(self, bytes_per_thread: u64, bytes: u64) -> Self {
        let additional = usize::try_from(bytes / bytes_per_thread).unwrap_or(usize::MAX);
        Self {
            threads: self
                .threads
                .min(NonZeroUsize::MIN.saturating_add(additional)),
            ..self
        }
    }

    /// Returns the items, calling `pause` after each `interval` of them.
    pub(in crate::pdp) fn pausing<I: Iterator>(
        self,
        items: I,
        interval: usize,
    ) -> impl Iterator<Item = I::Item> {
        let mut left = interval;
        items.inspect(move |_| {
            left -= 1;
            if left == 0 {
                left = interval;
                (self.pause)();
            }
        })
    }

    /// Returns the result of `work` for each item, in the order of the items.
    ///
    /// Uses this thread, and additional ones with a stack of `stack_bytes`. Each thread passes its
    /// own value of `init` to `work`.
    pub(crate) fn map_with<T: Sync, W, R: Send>(
        &self,
        items: &[T],
        stack_bytes: usize,
        init: impl Fn() -> W + Sync,
        work: impl Fn(&mut W, &T) -> R + Sync,
    ) -> Vec<R> {
        let threads = self.threads.get().min(items.len());
        let next = AtomicUsize::new(0);
        let run = || {
            let (mut results, mut value) = (Vec::new(), init());
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else {
                    return results;
                };
                results.push((index, work(&mut value, item)));
                (self.pause)();
            }
        };
        let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
            let additional: Vec<_> = (1..threads)
                .map_while(|_| {
                    // If the system gives no more threads, the others do the work.
                    std::thread::Builder::new()
                        .name("load".to_owned())
                        .stack_size(stack_bytes)
                        .spawn_scoped(scope, || {
                            (self.begin)();
                            run()
                        })
                        .ok()
                })
                .collect();
            let mut results = run();
            for thread in additional {
                match thread.join() {
                    Ok(more) => results.extend(more),
                    Err(panic) => resume_unwind(panic),
                }
            }
            results
        });
        results.sort_unstable_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_scale_with_bytes() {
        let workers = Workers {
            threads: NonZeroUsize::MIN.saturating_add(7),
            ..Workers::default()
        };
        let threads = |bytes| workers.scaled_to(bytes).threads.get();
        assert_eq!(
            [0, BYTES_PER_THREAD - 1, BYTES_PER_THREAD].map(threads),
            [1, 1, 2]
        );
        assert_eq!([100 << 20, u64::MAX].map(threads), [8, 8]);
    }

    #[test]
    fn pausing_iterator_yields_all_items() {
        use std::cell::Cell;

        thread_local! {
            static PAUSES: Cell<usize> = const { Cell::new(0) };
        }
        let workers = Workers {
            pause: || PAUSES.set(PAUSES.get() + 1),
            ..Workers::default()
        };
        let mut seen = Vec::new();
        for item in workers.pausing(0..10, 3) {
            seen.push((item, PAUSES.get()));
        }
        let paused = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3];
        assert!(seen.into_iter().eq((0..10).zip(paused)));
    }

    #[test]
    fn results_keep_item_order_on_any_threads() {
        let items: Vec<usize> = (0..1_000).collect();
        for threads in [1, 2, 7] {
            let workers = Workers {
                threads: NonZeroUsize::new(threads).unwrap(),
                ..Workers::default()
            };
            let doubled = workers.map_with(&items, 1 << 20, || (), |(), item| item * 2);
            assert!(doubled.into_iter().eq(items.iter().map(|item| item * 2)));
        }
    }
}
