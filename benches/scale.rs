//! How deciding, loading and memory go with the number of policies and entities.

mod support;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use prost::Message as _;

use support::dataset::Dataset;

/// Requests that `--generate` writes beside the directory.
const GENERATED_REQUESTS: usize = 100_000;

fn main() -> anyhow::Result<()> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--generate", directory, policies, entities] => {
            generate(Path::new(directory), policies.parse()?, entities.parse()?)
        }
        _ => bail!("cargo bench --bench scale -- --generate DIR POLICIES ENTITIES"),
    }
}

fn generate(directory: &Path, policies: usize, entities: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    let dataset = Dataset::new(policies, entities)?;
    dataset.write(directory)?;
    println!(
        "{policies} policies and {entities} entities written: {:.1?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    let requests = dataset.requests(GENERATED_REQUESTS)?;
    let mut bodies = Vec::new();
    for ask in &requests {
        ask.message()
            .encode_length_delimited(&mut bodies)
            .context("memory grows")?;
    }
    let file = directory.with_extension("requests");
    std::fs::write(&file, bodies)?;
    println!(
        "{} requests, each an AuthorizeRequest behind its length as a varint, written to `{}`: {:.1?}",
        requests.len(),
        file.display(),
        begun.elapsed()
    );
    Ok(())
}
