//! The performance targets of the service, and the rows of `docs/benchmarks.md` with their results.

use std::sync::Mutex;

/// A row of the table of targets.
#[derive(Clone, Copy)]
pub struct Target {
    pub figure: &'static str,
    pub must: &'static str,
    pub command: &'static str,
}

const CALLS: &str = "cargo bench --bench calls";
const OBSERVED: &str = "cargo bench --bench observed";
const DECIDE: &str = "cargo bench --bench scale -- decide";
const START: &str = "cargo bench --bench scale -- start";
const RELOAD: &str = "cargo bench --bench reload";

pub const CACHED_HOT: Target = Target {
    figure: "cached unary call, 1,000 hot requests: server CPU against echo",
    must: "<= 1.12 x",
    command: CALLS,
};
pub const CACHED_MANY: Target = Target {
    figure: "the same with 100,000 distinct requests in the cache",
    must: "<= 1.25 x",
    command: CALLS,
};
pub const CACHED_DEFAULT_ECHO: Target = Target {
    figure: "the same, 1,000 hot requests, against the default echo",
    must: "<= 0.80 x",
    command: CALLS,
};
pub const CACHED_MANY_DEFAULT_ECHO: Target = Target {
    figure: "the same, 100,000 distinct requests, against the default echo",
    must: "<= 0.80 x",
    command: CALLS,
};
pub const UNCACHED: Target = Target {
    figure: "uncached unary call (distinct requests, 12 policies, 1,000 entities, 3 plain context attributes) against echo",
    must: "<= 2.2 x",
    command: CALLS,
};
pub const METRICS: Target = Target {
    figure: "cached unary call with metrics, 1,000 hot requests: server CPU against without",
    must: "<= 1.05 x",
    command: OBSERVED,
};
pub const DECISION_LOG_SAMPLED: Target = Target {
    figure: "the same with the decision log to a file, the default sample",
    must: "<= 1.10 x",
    command: OBSERVED,
};
pub const DECISION_LOG: Target = Target {
    figure: "the same with the decision log to a file, every decision",
    must: "<= 1.25 x",
    command: OBSERVED,
};
pub const DECIDE_AT_SCALE: Target = Target {
    figure: "in-process uncached decision, 100,000 policies and 1,000,000 entities, against 12 policies and 1,000 entities",
    must: "<= 3 x, and p50 <= 20 us",
    command: DECIDE,
};
pub const MEMORY: Target = Target {
    figure: "memory with 100,000 policies and 1,000,000 entities loaded",
    must: "<= 800 MiB",
    command: START,
};
pub const START_AT_SCALE: Target = Target {
    figure: "start to SERVING with those, two cores",
    must: "<= 20 s",
    command: START,
};
pub const RELOAD_POLICIES: Target = Target {
    figure: "one policy file of 1,000 changed, 100,000 policies in all: last write to first new answer",
    must: "<= 1 s",
    command: RELOAD,
};
pub const RELOAD_ENTITIES: Target = Target {
    figure: "one entity file of 1,000 changed, 1,000,000 entities in all: likewise",
    must: "<= 1 s",
    command: RELOAD,
};
pub const RELOAD_PARENTS: Target = Target {
    figure: "the same, a changed parent of a group with many descendants",
    must: "<= 1 s",
    command: RELOAD,
};
pub const RELOAD_EXAMPLE: Target = Target {
    figure: "the worked example: likewise",
    must: "<= 150 ms",
    command: RELOAD,
};
pub const LATENCY_IN_RELOAD: Target = Target {
    figure: "call latency p99 while the big reload runs, against p99 without it",
    must: "<= 2 x",
    command: RELOAD,
};
pub const BATCHES: Target = Target {
    figure: "cached decisions in batches of 100, 100,000 distinct requests, per core",
    must: ">= 1,000,000/s",
    command: "cargo bench --bench batch",
};
pub const REQUEST_ENTITIES: Target = Target {
    figure: "a request with 5 entities: cost at 1,000,000 stored against 1,000 stored",
    must: "<= 1.3 x",
    command: DECIDE,
};
pub const IDLE_MEMORY: Target = Target {
    figure: "idle memory of the service on the worked example",
    must: "<= 20 MiB",
    command: START,
};
pub const FIRST_ANSWER: Target = Target {
    figure: "start to first answer on the worked example",
    must: "<= 60 ms",
    command: START,
};

static MEASURED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Target {
    /// Keeps what was `measured` for [`print_rows`].
    pub fn measured(self, measured: &str) {
        let Self {
            figure,
            must,
            command,
        } = self;
        let row = format!("| {figure} | {must} | {measured} | `{command}` |");
        match MEASURED.lock() {
            Ok(mut rows) => rows.push(row),
            // No thread panics while holding it, and the row is not worth a failure.
            Err(_) => println!("{row}"),
        }
    }
}

/// Prints the measured rows in the format of `docs/benchmarks.md`. Smaller sizes than those of the
/// targets make no row.
pub fn print_rows(sizes: super::Sizes) {
    let Ok(rows) = MEASURED.lock() else {
        return;
    };
    if rows.is_empty() {
        return;
    }
    if sizes == super::Sizes::Quick {
        println!("\nRun with --quick: these are not the sizes of the figures.");
    } else {
        println!("\nFor docs/benchmarks.md:\n");
    }
    for row in rows.iter() {
        println!("{row}");
    }
}

/// Formats a number with a comma between thousands.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
