//! How long a saved policy takes to decide: from the last write to the first new answer.
//!
//! On the worked example, with default settings, the way editors and `sed -i` write: a temporary
//! file renamed over the old one. A caller asks once a millisecond, so a figure may be that much
//! and the time of a call too high. The baseline is the quiet period, which is in every figure
//! and is the least that it can be.

mod support;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cedar_pdp::api::pb::Decision;
use cedar_pdp::config::Config;

use support::figures::{Spread, print_table};
use support::processes::Caller;
use support::running::{PATIENCE, Server, request, shipped_policies};

const SAMPLES: usize = 20;
const ASKED_EVERY: Duration = Duration::from_millis(1);
/// Between samples, so that each write finds the service at rest.
const REST: Duration = Duration::from_millis(150);

const EDITED: &str = "public.cedar";
const CONDITION: &str = "when { resource.published }";
const OPPOSITE: &str = "when { !resource.published }";

fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    copy(&shipped_policies(), directory.path())?;
    let edited = directory.path().join(EDITED);
    let permitting = fs::read_to_string(&edited)?;
    ensure!(
        permitting.contains(CONDITION),
        "`{EDITED}` no longer says `{CONDITION}`"
    );
    let denying = permitting.replace(CONDITION, OPPOSITE);

    let server = Server::start(directory.path(), &[]);
    let mut caller = Caller::of(&server)?;
    ensure!(
        ask(&mut caller)? == Decision::Allow,
        "the unedited example does not allow"
    );
    let mut edits = [(&denying, Decision::Deny), (&permitting, Decision::Allow)]
        .into_iter()
        .cycle();
    let mut sample = || -> anyhow::Result<f64> {
        let (text, expected) = edits.next().context("edits go on for ever")?;
        sleep(REST);
        until_answered(&mut caller, &edited, text, expected)
    };
    sample().context("while warming up")?;
    let samples = (0..SAMPLES)
        .map(|_| sample())
        .collect::<anyhow::Result<Vec<_>>>()?;

    let quiet = Config::default().store.quiet_period.as_secs_f64() * 1e3;
    println!(
        "From the rename of one policy file to the first answer by it: the worked example, default settings.\n\
         Baseline: the quiet period of {quiet} ms, which is part of each figure. {SAMPLES} samples."
    );
    let row = |name: &str, spread: &Spread, decimals| {
        [
            name.to_owned(),
            format!("{:.decimals$}", spread.least()),
            format!("{:.decimals$}", spread.median()),
            format!("{:.decimals$}", spread.percentile(90)),
        ]
    };
    print_table(
        "reload",
        ["", "least", "median", "p90"],
        [
            row("ms", &Spread::of(samples.iter().copied()), 1),
            row(
                "x quiet period",
                &Spread::of(samples.iter().map(|ms| ms / quiet)),
                2,
            ),
        ],
    );
    Ok(())
}

/// Renames `text` over `file`, and gives the milliseconds until a call is answered by it.
fn until_answered(
    caller: &mut Caller,
    file: &Path,
    text: &str,
    expected: Decision,
) -> anyhow::Result<f64> {
    // A name that begins with a dot is no policy file.
    let temporary = file.with_file_name(".saving");
    fs::write(&temporary, text)?;
    let begun = Instant::now();
    fs::rename(&temporary, file)?;
    while ask(caller)? != expected {
        ensure!(begun.elapsed() < PATIENCE, "the edit was never served");
        sleep(ASKED_EVERY);
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Whether a visitor reads the price list, which `public.cedar` decides.
fn ask(caller: &mut Caller) -> anyhow::Result<Decision> {
    let answer = caller.authorize(request(
        r#"Platform::Visitor::"anonymous""#,
        r#"Invoicing::Action::"readPriceList""#,
        r#"Invoicing::PriceList::"2026-standard""#,
    ))?;
    Ok(answer.decision())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
