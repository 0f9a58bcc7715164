//! Code that the benchmarks share.
//!
//! A benchmark that cannot measure correctly must end with an error, never with a figure.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each benchmark is a program of its own, and uses a part of this"
)]

pub mod dataset;
pub mod echo;
pub mod fixture;
pub mod load;
pub mod processes;
pub mod statistics;
pub mod steady_load;
pub mod targets;
pub mod workload;

/// The servers and clients of the tests.
pub use cedar_pdp_test_support as running;

/// The service's allocator, for decisions in this process and for the echoes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The size of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// The size that the targets apply to.
    Full,
    /// A hundredth with few repetitions, to check that the benchmarks work.
    Quick,
}

impl Sizes {
    /// Returns `full` or `quick`.
    pub fn of<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// Returns the size and the other arguments, without those of cargo.
pub fn arguments() -> (Sizes, Vec<String>) {
    let (options, others): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        // Cargo adds it.
        .filter(|argument| argument != "--bench")
        .partition(|argument| argument == "--quick");
    let sizes = if options.is_empty() {
        Sizes::Full
    } else {
        Sizes::Quick
    };
    (sizes, others)
}
