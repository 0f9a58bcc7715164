//! The threads that compiling uses.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of so many bytes of policies reading and validating takes some ten milliseconds.
const WORTH_A_THREAD: u64 = 64 << 10;

/// The threads that compiling may use.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// How many, with the one that asks.
    pub threads: NonZeroUsize,
    /// What each other does first; where threads that serve share the machine, this is the place to give
    /// way to them.
    pub begin: fn(),
    /// What each does every so often: a fraction of a millisecond apart, so that a thread that
    /// serves need not wait for longer.
    pub pause: fn(),
}

impl Default for Workers {
    /// One, which gives way to nobody.
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::MIN,
            begin: || {},
            pause: || {},
        }
    }
}

impl Workers {
    /// As many of them as it is worth to have for files of `bytes` bytes in all. A thread keeps
    /// some memory of what it has made to itself: for few files that is more than they are.
    #[must_use]
    pub fn scaled_to(self, bytes: u64) -> Self {
        self.one_per(WORTH_A_THREAD, bytes)
    }

    /// One, and another for each so many of `bytes` bytes, of those there are.
    pub(crate) fn one_per(self, so_many: u64, bytes: u64) -> Self {
        let helpers = usize::try_from(bytes / so_many).unwrap_or(usize::MAX);
        Self {
            threads: self.threads.min(NonZeroUsize::MIN.saturating_add(helpers)),
            ..self
        }
    }

    /// The items, with a pause after each so many of them.
    pub(in crate::pdp) fn pausing<I: Iterator>(
        self,
        items: I,
        each: usize,
    ) -> impl Iterator<Item = I::Item> {
        let mut left = each;
        items.inspect(move |_| {
            left -= 1;
            if left == 0 {
                left = each;
                (self.pause)();
            }
        })
    }

    /// Returns the result of `work` for each item, in the order of the items.
    ///
    /// Uses this thread, and others with a stack of `stack_bytes`; each thread works with its own
    /// value from `with`.
    pub(crate) fn map_with<T: Sync, W, R: Send>(
        &self,
        items: &[T],
        stack_bytes: usize,
        with: impl Fn() -> W + Sync,
        work: impl Fn(&mut W, &T) -> R + Sync,
    ) -> Vec<R> {
        let threads = self.threads.get().min(items.len());
        let next = AtomicUsize::new(0);
        let turns = || {
            let (mut done, mut with) = (Vec::new(), with());
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else {
                    return done;
                };
                done.push((at, work(&mut with, item)));
                (self.pause)();
            }
        };
        let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads)
                .map_while(|_| {
                    // A system that gives no thread leaves the work to this one.
                    std::thread::Builder::new()
                        .name("load".to_owned())
                        .stack_size(stack_bytes)
                        .spawn_scoped(scope, || {
                            (self.begin)();
                            turns()
                        })
                        .ok()
                })
                .collect();
            let mut done = turns();
            for helper in helpers {
                match helper.join() {
                    Ok(some) => done.extend(some),
                    Err(panic) => resume_unwind(panic),
                }
            }
            done
        });
        done.sort_unstable_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_are_worth_one_thread_and_many_all() {
        let workers = Workers {
            threads: NonZeroUsize::MIN.saturating_add(7),
            ..Workers::default()
        };
        let threads = |bytes| workers.scaled_to(bytes).threads.get();
        assert_eq!(
            [0, WORTH_A_THREAD - 1, WORTH_A_THREAD].map(threads),
            [1, 1, 2]
        );
        assert_eq!([100 << 20, u64::MAX].map(threads), [8, 8]);
    }

    #[test]
    fn there_is_a_pause_after_each_so_many_items_and_none_is_lost() {
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
    fn results_come_in_the_order_of_the_items_however_many_threads_there_are() {
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
