//! The threads that compiling uses.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::COMPILE_STACK_BYTES;

/// The threads that compiling may use.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// How many.
    pub threads: NonZeroUsize,
    /// What each does first; where threads that serve share the machine, this is the place to give
    /// way to them.
    pub begin: fn(),
}

impl Default for Workers {
    /// One, which gives way to nobody.
    fn default() -> Self {
        Self {
            threads: NonZeroUsize::MIN,
            begin: || {},
        }
    }
}

impl Workers {
    /// What `work` makes of each item, in the order of the items.
    ///
    /// On threads whose stack is large enough for Cedar's parser, or on this one, whose stack must
    /// then be.
    pub(super) fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> R + Sync,
    ) -> Vec<R> {
        let threads = self.threads.get().min(items.len());
        if threads <= 1 {
            return items.iter().map(work).collect();
        }
        let next = AtomicUsize::new(0);
        let turns = || {
            (self.begin)();
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else {
                    return done;
                };
                done.push((at, work(item)));
            }
        };
        let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads)
                .map_while(|_| {
                    std::thread::Builder::new()
                        .name("compile".to_owned())
                        .stack_size(COMPILE_STACK_BYTES)
                        .spawn_scoped(scope, turns)
                        .ok()
                })
                .collect();
            // A system that gives no thread leaves the work to this one.
            let mut done = if started.is_empty() {
                turns()
            } else {
                Vec::new()
            };
            for thread in started {
                match thread.join() {
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
    fn results_come_in_the_order_of_the_items_however_many_threads_there_are() {
        let items: Vec<usize> = (0..1_000).collect();
        for threads in [1, 2, 7] {
            let workers = Workers {
                threads: NonZeroUsize::new(threads).unwrap(),
                ..Workers::default()
            };
            let doubled = workers.each(&items, |item| item * 2);
            assert!(doubled.into_iter().eq(items.iter().map(|item| item * 2)));
        }
    }
}
