//! `test`: runs the policy tests of a directory and reports the results.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use super::directory::{self, Directory};
use super::{Format, Outcome, config_of_directory};
use crate::authoring::cases::{CaseResult, CaseRun, Reasons};
use crate::authoring::report;
use crate::config::StoreSettings;
use crate::config::sources::ConfigArgs;
use crate::pdp::sources::FileKind;

/// Arguments of `test`.
#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Policy directory to test [default: that of the settings]
    #[arg(value_name = "DIR", conflicts_with = "policies")]
    pub(super) dir: Option<PathBuf>,
    /// Run only tests whose name contains this text
    #[arg(long, value_name = "TEXT")]
    pub(super) filter: Option<String>,
    /// Also write the results to this file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub(super) junit: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Comparison of a test's reasons with the determining policies
    #[arg(long, value_enum, default_value_t)]
    pub(super) reasons: Reasons,
    /// Settings that change how the directory decides.
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Runs the tests of a directory and prints the results; the outcome is good if all pass.
pub(super) fn run(args: TestArgs) -> anyhow::Result<Outcome> {
    let store = config_of_directory(args.config.clone(), args.dir.clone())?.store;
    directory::run(&store, &args.config, || run_tests(&store, &args))
}

fn run_tests(store: &StoreSettings, args: &TestArgs) -> anyhow::Result<Outcome> {
    let Directory { sources, compiled } = directory::load(store)?;
    let snapshot = match compiled {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let diagnostics = report::diagnostics_text(&error.errors, false);
            writeln!(io::stderr(), "{diagnostics}\n\n{error}")?;
            return Ok(Outcome::No);
        }
    };
    let cases = CaseRun {
        snapshot: &snapshot,
        filter: args.filter.as_deref(),
        reasons: args.reasons,
        read_entities: &|test_file, name| {
            read_entities(store, test_file, name).map_err(|error| error.to_string())
        },
    };
    let files = sources.of_kind(FileKind::Tests);
    let results: Vec<CaseResult> = files.flat_map(|file| cases.run_file(file)).collect();
    if results.is_empty() {
        let directory = store.directory.display();
        match &args.filter {
            Some(filter) => bail!("no test in `{directory}` has a name that contains `{filter}`"),
            None => bail!("there is no test in `{directory}`; tests are `*.test.json` files"),
        }
    }
    let failed = results.iter().filter(|case| case.failure.is_some());
    let failed = failed.count();
    let mut stdout = io::stdout().lock();
    match args.format {
        Format::Text => write_text(&mut stdout, &results, failed)?,
        Format::Json => write_json(&mut stdout, &results, failed)?,
    }
    if let Some(path) = &args.junit {
        let cannot_write = || format!("cannot write `{}`", path.display());
        let file = File::create(path).with_context(cannot_write)?;
        junit(&results).serialize(file).with_context(cannot_write)?;
    }
    Ok(Outcome::of(failed == 0))
}

/// Reads an entities file, which must be in the directory of the test file or below.
fn read_entities(store: &StoreSettings, test_file: &str, name: &str) -> anyhow::Result<String> {
    let test_file = store.directory.join(test_file);
    let directory = test_file.parent().unwrap_or(Path::new("."));
    let path = directory.join(name).canonicalize()?;
    if !path.starts_with(directory.canonicalize()?) {
        bail!("the file is outside of the directory of the test");
    }
    let max_bytes = store.limits.file_bytes;
    let mut text = String::new();
    File::open(path)?
        .take(max_bytes + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > max_bytes {
        bail!("the file is larger than {max_bytes} bytes");
    }
    Ok(text)
}

fn write_text(out: &mut impl io::Write, results: &[CaseResult], failed: usize) -> io::Result<()> {
    for case in results {
        match &case.failure {
            None => writeln!(out, "ok    {}", case.name)?,
            Some(failure) => {
                writeln!(out, "FAIL  {}", case.name)?;
                writeln!(out, "      {}:{}", case.file, case.line)?;
                for line in failure.lines() {
                    writeln!(out, "      {line}")?;
                }
            }
        }
    }
    writeln!(out, "{} passed, {failed} failed", results.len() - failed)
}

fn write_json(out: &mut impl io::Write, results: &[CaseResult], failed: usize) -> io::Result<()> {
    let tests = results.iter().map(|case| {
        serde_json::json!({
            "name": case.name,
            "file": case.file,
            "line": case.line,
            "passed": case.failure.is_none(),
            "failure": case.failure,
        })
    });
    let tests: Vec<_> = tests.collect();
    let report =
        serde_json::json!({ "passed": results.len() - failed, "failed": failed, "tests": tests });
    writeln!(out, "{report:#}")
}

fn junit(results: &[CaseResult]) -> quick_junit::Report {
    use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
    let mut report = Report::new("cedar-pdp policy tests");
    let files: BTreeSet<&str> = results.iter().map(|result| result.file.as_str()).collect();
    for file in files {
        let mut suite = TestSuite::new(file);
        for result in results.iter().filter(|result| result.file == file) {
            let status = match &result.failure {
                None => TestCaseStatus::success(),
                Some(failure) => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(failure.lines().next().unwrap_or_default());
                    status.set_description(failure.as_str());
                    status
                }
            };
            let mut case = TestCase::new(result.name.as_str(), status);
            case.set_classname(file).set_time(result.duration);
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    report
}
