//! Runs policy test cases: requests with the decision that their author expects.
//!
//! The format is the one that Cedar's own `cedar run-tests` reads. A case without entities uses the
//! stored ones; a case with entities uses these alone, and the schema's actions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::report;
use crate::pdp::answer::{Answer, Decision};
use crate::pdp::diagnostic::Position;
use crate::pdp::json_object::Object;
use crate::pdp::query::Query;
use crate::pdp::request_json::RequestJson;
use crate::pdp::sources::{FileKind, SourceFile};
use crate::pdp::{Snapshot, authorize, authorize_with_entities, request_json};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseJson<'a> {
    #[serde(default)]
    name: String,
    #[serde(borrow)]
    request: Object<RequestJson<'a>>,
    /// An array, or the name of a file that contains one.
    #[serde(borrow, default)]
    entities: Option<&'a RawValue>,
    #[serde(with = "DecisionJson")]
    decision: Decision,
    #[serde(default)]
    reason: Option<Vec<String>>,
    #[serde(default)]
    num_errors: Option<usize>,
}

#[derive(Deserialize)]
#[serde(remote = "Decision", rename_all = "lowercase")]
enum DecisionJson {
    Allow,
    Deny,
}

/// The comparison of a case's reasons with the determining policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Reasons {
    /// The determining policies are exactly the reasons.
    #[default]
    Exact,
    /// The determining policies contain the reasons.
    Contains,
}

/// The result of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// The test file.
    pub file: String,
    /// Line of the case in the file, from 1.
    pub line: u32,
    /// The case's name.
    pub name: String,
    /// Time that the case took.
    pub duration: Duration,
    /// Lines for people that say what is wrong; `None` if the case passed.
    pub failure: Option<String>,
}

/// A run of test cases against one snapshot.
pub struct CaseRun<'a> {
    /// The snapshot under test.
    pub snapshot: &'a Snapshot,
    /// Text that the names of the cases to run contain; `None` runs all.
    pub filter: Option<&'a str>,
    /// The comparison of reasons.
    pub reasons: Reasons,
    /// Reads an entities file: from the test file's path and the name in the case, its text or a
    /// message.
    pub read_entities: &'a dyn Fn(&str, &str) -> Result<String, String>,
}

impl CaseRun<'_> {
    /// Runs the cases of a test file. A file that cannot be parsed is one failed case.
    #[must_use]
    pub fn run_file(&self, file: &SourceFile) -> Vec<CaseResult> {
        let unreadable = |line: u32, message: String| {
            vec![CaseResult {
                file: file.path.clone(),
                line,
                name: "(the file)".to_owned(),
                duration: Duration::ZERO,
                failure: Some(message),
            }]
        };
        let text = match file.text() {
            Ok(text) => text,
            Err(changed) => return unreadable(1, changed.to_string()),
        };
        if let Err(error) = request_json::check_depth(&text) {
            return unreadable(1, error.to_string());
        }
        match serde_json::from_str::<Vec<&RawValue>>(&text) {
            Ok(cases) => cases
                .into_iter()
                .filter_map(|raw| self.run_case(raw, &text, file))
                .collect(),
            Err(error) => {
                let found = request_json::json_error(&file.path, &text, &text, &error);
                let line = found.position.map_or(1, |position| position.line);
                unreadable(line, found.render(false))
            }
        }
    }

    /// Runs the case `raw`, a part of `text`. Returns `None` if the filter excludes it.
    fn run_case(&self, raw: &RawValue, text: &Arc<str>, file: &SourceFile) -> Option<CaseResult> {
        let start = Instant::now();
        let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let (name, failure) = match serde_json::from_str::<Object<CaseJson<'_>>>(raw.get()) {
            Err(error) => {
                let found = request_json::json_error(&file.path, text, raw.get(), &error);
                ("(unreadable)".to_owned(), Some(found.render(false)))
            }
            Ok(Object(case)) if self.filter.is_some_and(|it| !case.name.contains(it)) => {
                return None;
            }
            Ok(Object(case)) => {
                let failure = self.check(&case, file).err();
                (case.name, failure)
            }
        };
        Some(CaseResult {
            file: file.path.clone(),
            line: Position::of(text, offset).line,
            name,
            duration: start.elapsed(),
            failure,
        })
    }

    /// Decides the request of a case and compares the answer; the error is a message for people.
    fn check(&self, case: &CaseJson<'_>, file: &SourceFile) -> Result<(), String> {
        let query = Query {
            explain: true,
            ..case.request.0.query(Some(self.snapshot))?
        };
        let answer = match case.entities {
            None => authorize(self.snapshot, &query),
            Some(raw) => {
                let entities = self.entities(raw, file)?;
                let entities = request_json::stored_entities(&entities, self.snapshot);
                let entities = entities.map_err(|found| {
                    format!("entities:\n{}", report::diagnostics_text(&found, false))
                })?;
                authorize_with_entities(self.snapshot, &entities, &query)
            }
        }
        .map_err(|error| format!("the request is not valid: {error}"))?;
        self.compare(case, &answer)
    }

    /// Returns the ids of policies that `reasons` name.
    ///
    /// Cedar calls the policies of a file without `@id` `policy0`, `policy1`, …, and they are
    /// `<path>#0`, `<path>#1`, … here. In a directory with several such files that is ambiguous.
    fn own_ids<'a>(&'a self, reasons: &'a [String]) -> Result<BTreeSet<&'a str>, String> {
        let own_id = |reason: &'a String| {
            let ids = || self.snapshot.policies().map(|policy| policy.id.as_str());
            let Some(number) = reason.strip_prefix("policy") else {
                return Ok(reason.as_str());
            };
            let mut numbered = ids().filter(|id| is_numbered(id, number));
            match (
                ids().any(|id| id == reason),
                numbered.next(),
                numbered.next(),
            ) {
                (false, Some(one), None) => Ok(one),
                (false, Some(one), Some(other)) => Err(format!(
                    "the reason `{reason}` may be `{one}` or `{other}`: name one of them"
                )),
                (true, ..) | (false, None, _) => Ok(reason.as_str()),
            }
        };
        reasons.iter().map(own_id).collect()
    }

    /// Returns the entities of a case, which are written in it or in another file.
    fn entities(&self, raw: &RawValue, test_file: &SourceFile) -> Result<SourceFile, String> {
        let source = |path: String, text: &str| {
            SourceFile::in_memory(path, FileKind::Entities, Arc::from(text))
        };
        match serde_json::from_str::<String>(raw.get()) {
            Err(_) => Ok(source(
                format!("{} (entities of a test)", test_file.path),
                raw.get(),
            )),
            Ok(name) => match (self.read_entities)(&test_file.path, &name) {
                Ok(text) => Ok(source(name, &text)),
                Err(error) => Err(format!("cannot read the entities file `{name}`: {error}")),
            },
        }
    }

    /// Compares an answer with the expected one; the error shows the request, both, and reasons.
    fn compare(&self, case: &CaseJson<'_>, answer: &Answer) -> Result<(), String> {
        let determining = &answer.diagnostics.determining;
        let determining: BTreeSet<&str> = determining.iter().map(|id| id.as_str()).collect();
        let reasons = case.reason.as_ref().map(|reasons| self.own_ids(reasons));
        let reasons = reasons.transpose()?;
        let contains = reasons
            .as_ref()
            .is_none_or(|expected| determining.is_superset(expected));
        let has_reasons = match self.reasons {
            Reasons::Exact => reasons.as_ref().is_none_or(|it| *it == determining),
            Reasons::Contains => contains,
        };
        let errors = answer.diagnostics.errors.len();
        let has_errors = case.num_errors.is_none_or(|expected| expected == errors);
        if answer.decision == case.decision && has_reasons && has_errors {
            return Ok(());
        }
        let expected_reasons = reasons.map(|ids| ids.into_iter().collect());
        // Cedar's own tool accepts a part of the reasons.
        let hint = match answer.decision == case.decision && has_errors && contains {
            true => "\nhint:     `--reasons contains` accepts a part of the determining policies",
            false => "",
        };
        Err(format!(
            "request:  principal {}\n          action {}\n          resource {}\n          context {}\n\
             expected: {}\ngot:      {}\n{}{hint}",
            case.request.0.principal,
            case.request.0.action,
            case.request.0.resource,
            case.request.0.context.map_or("{}", RawValue::get),
            outcome(case.decision, expected_reasons, case.num_errors),
            outcome(
                answer.decision,
                Some(determining.into_iter().collect()),
                Some(errors)
            ),
            report::text(answer).trim_end(),
        ))
    }
}

/// Returns whether `id` names policy `number` of some file, counted from 0.
fn is_numbered(id: &str, number: &str) -> bool {
    id.rsplit_once('#')
        .is_some_and(|(_, found)| found == number)
}

/// Returns one line for a decision, its reasons and its errors; `None` is any.
fn outcome(decision: Decision, reasons: Option<Vec<&str>>, errors: Option<usize>) -> String {
    let reasons = reasons.map_or("any reason".to_owned(), |ids| {
        format!("[{}]", ids.join(", "))
    });
    let errors = errors.map_or("any errors".to_owned(), |count| format!("{count} errors"));
    format!("{decision} by {reasons} with {errors}")
}
