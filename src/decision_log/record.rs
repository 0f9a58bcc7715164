//! The format of a log line, version 1.
//!
//! A line holds exactly what is needed to decide again: values are in Cedar's JSON format, which
//! keeps their types. A line in which something is missing or masked says so.

mod line_writer;

use std::time::Duration;

use super::Origin;
use super::id::DecisionId;
use super::redaction::Redaction;
use crate::pdp::answer::Decision;
use crate::pdp::id::Revision;
use crate::pdp::query_ref::QueryRef;
use crate::pdp::settings::OnPolicyError;
use line_writer::LineWriter;

/// Longest line, in bytes. Longer lines would let a caller fill the disk.
const MAX_LINE_BYTES: usize = 256 << 10;
/// Longest text in a line that had to be cut, in bytes.
const MAX_CUT_TEXT_BYTES: usize = 1 << 10;

#[derive(Clone, Copy, Debug)]
pub(super) struct RecordId {
    /// The time since 1970.
    pub(super) time: Duration,
    pub(super) id: DecisionId,
}

/// The result of the cache lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// The answer was cached.
    Hit,
    /// The answer was not cached, and was decided.
    Miss,
    /// The cache is off.
    Off,
}

/// A decision to log, with its query and answer.
#[derive(Clone, Copy, Debug)]
pub struct LogEntry<'a, A> {
    /// The query that was decided.
    pub query: &'a QueryRef<'a>,
    /// The answer, in the form that is cached.
    pub answer: &'a A,
    /// The revision of the snapshot that decided.
    pub revision: &'a Revision,
    /// The result of the cache lookup.
    pub cache: CacheStatus,
    /// The duration of lookup and evaluation.
    pub took: Duration,
}

/// An answer that can be logged.
pub trait LoggableAnswer {
    /// Returns the decision.
    fn decision(&self) -> Decision;

    /// Returns the ids of the determining policies.
    fn determining(&self) -> impl Iterator<Item = &str>;

    /// Returns the ids of the policies that failed, each with Cedar's error message.
    fn errors(&self) -> impl Iterator<Item = (&str, &str)>;
}

#[derive(Clone, Debug)]
pub(super) struct RecordFormat {
    pub(super) redaction: Redaction,
    pub(super) on_policy_error: OnPolicyError,
}

impl RecordFormat {
    /// Writes the line of a decision to `line`, which must be empty.
    pub(super) fn write_decision(
        &self,
        line: &mut Vec<u8>,
        id: &RecordId,
        origin: &Origin<'_>,
        entry: &LogEntry<'_, impl LoggableAnswer>,
    ) {
        let mut out = LineWriter::new(line, usize::MAX);
        out.head(id, origin);
        self.write_query(&mut out, entry.query);
        if out.len() <= MAX_LINE_BYTES {
            self.write_answer(&mut out, entry);
        }
        if out.len() > MAX_LINE_BYTES {
            line.clear();
            line.shrink_to(MAX_LINE_BYTES);
            let mut out = LineWriter::new(line, MAX_CUT_TEXT_BYTES);
            out.head(id, origin);
            self.write_query(&mut out, entry.query);
            self.write_answer(&mut out, entry);
        }
    }

    /// Writes the query. A line that is cut has only principal, action and resource.
    fn write_query(&self, out: &mut LineWriter<'_>, query: &QueryRef<'_>) {
        let QueryRef {
            principal,
            action,
            resource,
            context,
            entities,
            claimed,
            explain: _,
        } = query;
        out.raw(r#","principal":"#);
        out.uid(*principal);
        out.raw(r#","action":"#);
        out.uid(*action);
        out.raw(r#","resource":"#);
        out.uid(*resource);
        if out.is_cut() {
            return;
        }
        out.raw(r#","context":"#);
        out.fields(context, Some(self.redaction.context()));
        if !entities.is_empty() {
            out.raw(r#","entities":"#);
            out.list(entities, |out, entity| out.entity(entity, &self.redaction));
        }
        if let Some(claimed) = claimed {
            out.raw(r#","claimed":"#);
            out.claimed(claimed, self.redaction.entity(principal.type_name));
        }
    }

    /// Writes the answer, and the rest of the line.
    fn write_answer(&self, out: &mut LineWriter<'_>, entry: &LogEntry<'_, impl LoggableAnswer>) {
        let LogEntry {
            query,
            answer,
            revision,
            cache,
            took,
        } = entry;
        out.raw(match answer.decision() {
            Decision::Allow => r#","decision":"ALLOW","determining_policies":"#,
            Decision::Deny => r#","decision":"DENY","determining_policies":"#,
        });
        out.list(answer.determining(), |out, id| out.text(id));
        let mut errors = answer.errors().peekable();
        if errors.peek().is_some() {
            out.raw(r#","errors":"#);
            let shows_messages = self.redaction.shows_error_messages();
            out.list(errors, |out, (policy, message)| {
                out.policy_error(policy, shows_messages.then_some(message));
            });
        }
        out.raw(r#","revision":""#);
        out.raw(revision.as_str());
        out.raw(match cache {
            CacheStatus::Hit => r#"","cache":"hit","duration_us":"#,
            CacheStatus::Miss => r#"","cache":"miss","duration_us":"#,
            CacheStatus::Off => r#"","cache":"off","duration_us":"#,
        });
        out.microseconds(*took);
        if query.explain {
            out.raw(r#","explain":true"#);
        }
        match self.on_policy_error {
            OnPolicyError::Skip => {}
            OnPolicyError::Deny => out.raw(r#","on_policy_error":"deny""#),
        }
        if out.is_cut() {
            out.raw(r#","cut":true"#);
        }
        out.end(!out.is_cut() && !out.has_masked());
    }

    /// Writes the line of a rejected request. Leaves out the query, which may be malformed or too
    /// large.
    pub(super) fn write_rejection(
        &self,
        line: &mut Vec<u8>,
        id: &RecordId,
        origin: &Origin<'_>,
        reason: &str,
    ) {
        let mut out = LineWriter::new(line, MAX_CUT_TEXT_BYTES);
        out.head(id, origin);
        out.raw(r#","refused":"#);
        out.text(reason);
        out.end(false);
    }
}

#[cfg(test)]
mod tests;
