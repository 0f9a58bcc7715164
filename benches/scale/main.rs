//! Decisions, startup and memory by the number of policies and entities.
//!
//! `cargo bench --bench scale [-- [--quick] [decide | carry | start | curve [--svg FILE]]]`; without
//! a name, all four. `-- --generate DIR POLICIES ENTITIES` writes the data set of that size, and
//! `-- stage NAME COUNT …` repeats one stage for an instruction counter to look at.

#[path = "../support/mod.rs"]
mod support;

mod carry;
mod curve;
mod decide;
mod loaded;
mod plain;
mod stage;
mod start;
mod svg;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use prost::Message as _;

use support::dataset::Dataset;
use support::statistics::Spread;
use support::{echo, targets};

/// Requests that `--generate` writes beside the directory.
const GENERATED_REQUESTS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    let (sizes, arguments) = support::arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [echo::ECHO] => return echo::serve(&[]),
        ["--generate", directory, policies, entities] => {
            return generate(Path::new(directory), policies.parse()?, entities.parse()?);
        }
        ["stage", name, count, size @ ..] => return stage::repeat(name, count.parse()?, size),
        ["decide"] => decide::measure(sizes)?,
        ["carry"] => carry::measure(sizes)?,
        ["start"] => start::measure(sizes)?,
        ["curve"] => curve::measure(sizes, None)?,
        ["curve", "--svg", file] => curve::measure(sizes, Some(Path::new(file)))?,
        [] => {
            decide::measure(sizes)?;
            carry::measure(sizes)?;
            start::measure(sizes)?;
            curve::measure(sizes, None)?;
        }
        unknown => bail!(
            "{unknown:?} is none of: decide, carry, start, curve [--svg FILE], --generate DIR POLICIES ENTITIES, \
             stage NAME COUNT [POLICIES ENTITIES]"
        ),
    }
    targets::print_rows(sizes);
    Ok(())
}

fn generate(directory: &Path, policies: usize, entities: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let dataset = Dataset::new(policies, entities)?;
    dataset.write(directory)?;
    println!(
        "{policies} policies and {entities} entities written: {:.1?}",
        started.elapsed()
    );
    let ancestors = Spread::of(dataset.ancestors().into_iter().map(|n| n as f64));
    println!(
        "ancestors of a user or document: p50 {:.0}, p99 {:.0}, most {:.0}",
        ancestors.median(),
        ancestors.percentile(99),
        ancestors.most()
    );
    let started = Instant::now();
    let requests = dataset.requests(GENERATED_REQUESTS)?;
    let mut bodies = Vec::new();
    for drawn in &requests {
        drawn
            .message()
            .encode_length_delimited(&mut bodies)
            .context("a message does not fit")?;
    }
    let file = directory.with_extension("requests");
    std::fs::write(&file, bodies)?;
    println!(
        "{} requests, each an AuthorizeRequest behind its length as a varint, written to `{}`: {:.1?}",
        requests.len(),
        file.display(),
        started.elapsed()
    );
    Ok(())
}
