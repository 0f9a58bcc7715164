//! `test`: runs the policy tests of a directory.
//!
//! The format is the one that Cedar's own `cedar run-tests` reads. A test without entities asks
//! the directory's own; one that brings entities has these alone, and the schema's actions.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::directory::{self, Directory};
use super::report;
use super::{Format, Outcome, Reasons, TestArgs};
use crate::config::Config;
use crate::pdp::answer::{Answer, Decision};
use crate::pdp::diagnostic::Position;
use crate::pdp::query::{Query, Record, Uid};
use crate::pdp::sources::{FileKind, SourceFile};
use crate::pdp::{Snapshot, authorize, authorize_with_entities, request_json};

/// A test as it is written.
#[derive(Debug, Deserialize)]
struct TestJson<'a> {
    #[serde(default)]
    name: String,
    request: RequestJson<'a>,
    /// An array, or the name of a file that holds one.
    #[serde(borrow, default)]
    entities: Option<&'a RawValue>,
    decision: DecisionJson,
    #[serde(default)]
    reason: Option<Vec<String>>,
    #[serde(default)]
    num_errors: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct RequestJson<'a> {
    principal: String,
    action: String,
    resource: String,
    #[serde(borrow, default)]
    context: Option<&'a RawValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DecisionJson {
    Allow,
    Deny,
}

/// What became of one test.
struct Tested {
    file: String,
    line: u32,
    name: String,
    took: Duration,
    /// What is wrong, in lines for people; `None` when it passed.
    failure: Option<String>,
}

/// Runs the tests of the directory that `config` names; [`Outcome::Good`] when all pass.
pub(super) fn run(args: &TestArgs, config: &Config) -> anyhow::Result<Outcome> {
    let Directory { sources, compiled } = directory::load(config)?;
    let mut stdout = io::stdout().lock();
    let snapshot = match compiled {
        Ok(snapshot) => snapshot,
        Err(error) => {
            writeln!(
                io::stderr(),
                "{}\n\n{error}",
                directory::render(&error.errors, false)
            )?;
            return Ok(Outcome::No);
        }
    };
    let mut results = Vec::new();
    for file in sources.of_kind(FileKind::Tests) {
        run_file(file, args, config, &snapshot, &mut results);
    }
    if results.is_empty() {
        match &args.filter {
            Some(filter) => bail!(
                "no test in `{}` has `{filter}` in its name",
                config.policies.display()
            ),
            None => bail!(
                "there is no test in `{}`; tests are `*.test.json` files",
                config.policies.display()
            ),
        }
    }
    let failed = results
        .iter()
        .filter(|tested| tested.failure.is_some())
        .count();
    match args.format {
        Format::Text => write_text(&mut stdout, &results, failed)?,
        Format::Json => write_json(&mut stdout, &results, failed)?,
    }
    if let Some(path) = &args.junit {
        let file =
            File::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
        junit(&results)
            .serialize(file)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(if failed == 0 {
        Outcome::Good
    } else {
        Outcome::No
    })
}

fn run_file(
    file: &SourceFile,
    args: &TestArgs,
    config: &Config,
    snapshot: &Snapshot,
    results: &mut Vec<Tested>,
) {
    let unreadable = |line: u32, message: String| Tested {
        file: file.path.clone(),
        line,
        name: "(the file)".to_owned(),
        took: Duration::ZERO,
        failure: Some(message),
    };
    let text = match file.text() {
        Ok(text) => text,
        Err(changed) => {
            results.push(unreadable(1, changed.to_string()));
            return;
        }
    };
    if let Err(error) = request_json::check_depth(&text) {
        results.push(unreadable(1, error.to_string()));
        return;
    }
    let tests: Vec<&RawValue> = match serde_json::from_str(&text) {
        Ok(tests) => tests,
        Err(error) => {
            results.push(unreadable(
                u32::try_from(error.line()).unwrap_or(0),
                error.to_string(),
            ));
            return;
        }
    };
    for raw in tests {
        let begun = Instant::now();
        let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let line = Position::of(&text, offset).line;
        let (name, failure) = match serde_json::from_str::<TestJson<'_>>(raw.get()) {
            Err(error) => ("(unreadable)".to_owned(), Some(error.to_string())),
            Ok(test) => {
                if args
                    .filter
                    .as_ref()
                    .is_some_and(|filter| !test.name.contains(filter.as_str()))
                {
                    continue;
                }
                (
                    test.name.clone(),
                    run_one(&test, file, args, config, snapshot).err(),
                )
            }
        };
        results.push(Tested {
            file: file.path.clone(),
            line,
            name,
            took: begun.elapsed(),
            failure,
        });
    }
}

/// Runs one test; the error is what to tell people.
fn run_one(
    test: &TestJson<'_>,
    file: &SourceFile,
    args: &TestArgs,
    config: &Config,
    snapshot: &Snapshot,
) -> Result<(), String> {
    let uid = |name: &str, text: &str| {
        text.parse::<Uid>()
            .map_err(|error| format!("{name}: {error}"))
    };
    let action = uid("action", &test.request.action)?;
    let context = match test.request.context {
        None => Record::default(),
        Some(raw) => request_json::context(raw.get(), &action, Some(snapshot))
            .map_err(|error| format!("context: {error}"))?,
    };
    let query = Query {
        principal: uid("principal", &test.request.principal)?,
        action,
        resource: uid("resource", &test.request.resource)?,
        context,
        entities: Vec::new(),
        claimed: None,
        explain: true,
    };
    let answer = match test.entities {
        None => authorize(snapshot, &query),
        Some(raw) => {
            let entities = entities(raw, file, config)?;
            let entities =
                request_json::stored_entities(&entities, snapshot).map_err(|findings| {
                    format!("entities:\n{}", directory::render(&findings, false))
                })?;
            authorize_with_entities(snapshot, &entities, &query)
        }
    }
    .map_err(|error| format!("the request is not valid: {error}"))?;
    compare(test, &answer, args.reasons)
}

/// The entities that a test brings, in place or in a file beside it.
fn entities(raw: &RawValue, test_file: &SourceFile, config: &Config) -> Result<SourceFile, String> {
    let source =
        |path: String, text: &str| SourceFile::in_memory(path, FileKind::Entities, Arc::from(text));
    let Ok(name) = serde_json::from_str::<String>(raw.get()) else {
        return Ok(source(
            format!("{} (entities of a test)", test_file.path),
            raw.get(),
        ));
    };
    let directory = config.policies.join(&test_file.path);
    let directory = directory.parent().unwrap_or(Path::new("."));
    let read = || -> anyhow::Result<String> {
        let path = directory.join(&name).canonicalize()?;
        if !path.starts_with(directory.canonicalize()?) {
            bail!("it is outside of the directory of the test");
        }
        let most = config.store.max_file_bytes;
        let mut text = String::new();
        File::open(path)?.take(most + 1).read_to_string(&mut text)?;
        if text.len() as u64 > most {
            bail!("it is larger than {most} bytes");
        }
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(source(name, &text)),
        Err(error) => Err(format!("cannot read the entities file `{name}`: {error}")),
    }
}

/// Compares an answer with what the test expects; the error shows request, both, and why.
fn compare(test: &TestJson<'_>, answer: &Answer, reasons: Reasons) -> Result<(), String> {
    let decision = match answer.decision {
        Decision::Allow => DecisionJson::Allow,
        Decision::Deny => DecisionJson::Deny,
    };
    let got: BTreeSet<&str> = answer
        .diagnostics
        .determining
        .iter()
        .map(|id| id.as_str())
        .collect();
    let reason_holds = test.reason.as_ref().is_none_or(|reason| {
        let expected: BTreeSet<&str> = reason.iter().map(String::as_str).collect();
        match reasons {
            Reasons::Exact => got == expected,
            Reasons::Contains => got.is_superset(&expected),
        }
    });
    let errors = answer.diagnostics.errors.len();
    let errors_hold = test.num_errors.is_none_or(|expected| expected == errors);
    if decision == test.decision && reason_holds && errors_hold {
        return Ok(());
    }
    let line = |decision: DecisionJson, reason: Option<Vec<&str>>, errors: Option<usize>| {
        let decision = match decision {
            DecisionJson::Allow => "ALLOW",
            DecisionJson::Deny => "DENY",
        };
        let reason = reason.map_or("any reason".to_owned(), |ids| {
            format!("[{}]", ids.join(", "))
        });
        let errors = errors.map_or("any errors".to_owned(), |n| format!("{n} errors"));
        format!("{decision} by {reason} with {errors}")
    };
    let expected_reason = test
        .reason
        .as_ref()
        .map(|ids| ids.iter().map(String::as_str).collect());
    Err(format!(
        "request:  principal {}\n          action {}\n          resource {}\n          context {}\n\
         expected: {}\ngot:      {}\n{}",
        test.request.principal,
        test.request.action,
        test.request.resource,
        test.request.context.map_or("{}", RawValue::get),
        line(test.decision, expected_reason, test.num_errors),
        line(decision, Some(got.into_iter().collect()), Some(errors)),
        report::text(answer).trim_end(),
    ))
}

fn write_text(out: &mut impl io::Write, results: &[Tested], failed: usize) -> io::Result<()> {
    for Tested {
        file,
        line,
        name,
        took: _,
        failure,
    } in results
    {
        match failure {
            None => writeln!(out, "ok    {name}")?,
            Some(failure) => {
                writeln!(out, "FAIL  {name}\n      {file}:{line}")?;
                for line in failure.lines() {
                    writeln!(out, "      {line}")?;
                }
            }
        }
    }
    writeln!(out, "{} passed, {failed} failed", results.len() - failed)
}

fn write_json(out: &mut impl io::Write, results: &[Tested], failed: usize) -> io::Result<()> {
    let tests: Vec<_> = results
        .iter()
        .map(
            |Tested {
                 file,
                 line,
                 name,
                 took: _,
                 failure,
             }| {
                serde_json::json!({
                    "name": name,
                    "file": file,
                    "line": line,
                    "passed": failure.is_none(),
                    "failure": failure,
                })
            },
        )
        .collect();
    let report =
        serde_json::json!({ "passed": results.len() - failed, "failed": failed, "tests": tests });
    writeln!(out, "{report:#}")
}

fn junit(results: &[Tested]) -> quick_junit::Report {
    use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
    let mut report = Report::new("cedar-pdp policy tests");
    let files: BTreeSet<&str> = results.iter().map(|tested| tested.file.as_str()).collect();
    for file in files {
        let mut suite = TestSuite::new(file);
        for tested in results.iter().filter(|tested| tested.file == file) {
            let status = match &tested.failure {
                None => TestCaseStatus::success(),
                Some(failure) => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(failure.lines().next().unwrap_or_default());
                    status.set_description(failure.as_str());
                    status
                }
            };
            let mut case = TestCase::new(tested.name.as_str(), status);
            case.set_classname(file).set_time(tested.took);
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    report
}
