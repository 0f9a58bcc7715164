//! What the benchmarks share.
//!
//! A benchmark that cannot measure what it says must end with an error, never with a figure.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each benchmark is a program of its own, and uses a part of this"
)]

pub mod dataset;
pub mod echo;
pub mod exchange;
pub mod figures;
pub mod load;
pub mod pressure;
pub mod processes;
pub mod targets;
pub mod world;

/// Servers as the tests start and ask them.
pub use cedar_pdp_test_support as running;

/// What decides in this process, and the echoes, run on the allocator of the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// What the figures are about.
    Full,
    /// A hundredth of it and few repetitions: to see that the benchmarks work.
    Quick,
}

impl Sizes {
    /// `full` or `quick`.
    pub fn of<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// The arguments that are not cargo's, `--quick` apart.
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
