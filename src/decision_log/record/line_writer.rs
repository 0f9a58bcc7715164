//! Appends the parts of a record to a line, as JSON.

use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::RecordId;
use crate::decision_log::Origin;
use crate::decision_log::json::{digits, number, string};
use crate::decision_log::redaction::{Redaction, VisibleNames};
use crate::pdp::query::{Claimed, StoredPrincipal};
use crate::pdp::query_ref::{EntityRef, Fields, UidRef, ValueRef};

/// The start of each line, with the version: it changes when a field is removed or redefined.
const VERSION: &str = r#"{"v":1,"time":""#;

/// Longest list in a line that is cut, in bytes.
const MAX_CUT_LIST_BYTES: usize = 32 << 10;

/// A placeholder for a masked value. No other value is written like this: a record with such a
/// name is masked itself.
const MASKED: &str = r#"{"__masked":true}"#;

/// Field names with a meaning in Cedar's JSON format or in ours. A record that has one cannot be
/// written as a plain record.
pub(super) const RESERVED: [&str; 4] = ["__entity", "__extn", "__expr", "__masked"];

pub(super) struct LineWriter<'a> {
    line: &'a mut Vec<u8>,
    /// Longest text, in bytes; longer ones are cut. `usize::MAX` cuts nothing.
    max_text: usize,
    has_masked: bool,
}

impl<'a> LineWriter<'a> {
    pub(super) fn new(line: &'a mut Vec<u8>, max_text: usize) -> Self {
        Self {
            line,
            max_text,
            has_masked: false,
        }
    }

    /// Returns the length of the line so far, in bytes.
    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    /// Returns whether long texts and lists are cut.
    pub(super) fn is_cut(&self) -> bool {
        self.max_text < usize::MAX
    }

    pub(super) fn has_masked(&self) -> bool {
        self.has_masked
    }

    // Inlined, so that constant text compiles to a few moves.
    #[inline(always)]
    pub(super) fn raw(&mut self, text: &str) {
        self.line.extend_from_slice(text.as_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        if text.len() <= self.max_text {
            return string(self.line, text);
        }
        let end = text.floor_char_boundary(self.max_text);
        string(self.line, text.get(..end).unwrap_or_default());
    }

    /// Writes the fields that all records have.
    pub(super) fn head(&mut self, record: &RecordId, origin: &Origin<'_>) {
        self.raw(VERSION);
        let time = humantime::format_rfc3339_micros(UNIX_EPOCH + record.time);
        // It fails only for a time after the year 9999.
        let _ = write!(self.line, "{time}");
        self.raw(r#"","id":""#);
        self.line.extend_from_slice(record.id.as_bytes());
        self.raw("\"");
        let Origin {
            method,
            trace_id,
            caller,
        } = origin;
        if let Some(trace_id) = trace_id {
            self.raw(r#","trace_id":"#);
            self.text(trace_id);
        }
        if let Some(caller) = caller {
            self.raw(r#","caller":"#);
            self.text(caller);
        }
        self.raw(r#","method":""#);
        self.raw(method.name());
        self.raw("\"");
    }

    /// Ends the record and the line.
    pub(super) fn end(&mut self, is_replayable: bool) {
        self.raw(match is_replayable {
            true => ",\"replayable\":true}\n",
            false => ",\"replayable\":false}\n",
        });
    }

    /// Writes a list; `item` writes each item. If texts are cut, so is the list.
    pub(super) fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut item: impl FnMut(&mut Self, T),
    ) {
        let start = self.line.len();
        self.raw("[");
        for (n, value) in items.into_iter().enumerate() {
            if self.is_cut() && self.line.len() - start > MAX_CUT_LIST_BYTES {
                break;
            }
            if n > 0 {
                self.raw(",");
            }
            item(self, value);
        }
        self.raw("]");
    }

    pub(super) fn uid(&mut self, uid: UidRef<'_>) {
        let UidRef { type_name, id } = uid;
        self.raw(r#"{"type":"#);
        self.text(type_name);
        self.raw(r#","id":"#);
        self.text(id);
        self.raw("}");
    }

    /// Writes the failure of a policy; `None` masks its message.
    pub(super) fn policy_error(&mut self, policy: &str, message: Option<&str>) {
        self.raw(r#"{"policy":"#);
        self.text(policy);
        self.raw(r#","message":"#);
        match message {
            Some(message) => self.text(message),
            // Not counted as masked: deciding again yields the message.
            None => self.raw(MASKED),
        }
        self.raw("}");
    }

    pub(super) fn entity(&mut self, entity: &EntityRef<'_>, redaction: &Redaction) {
        let EntityRef {
            uid,
            attributes,
            parents,
            tags,
        } = entity;
        let visible = redaction.entity(uid.type_name);
        self.raw(r#"{"uid":"#);
        self.uid(*uid);
        self.raw(r#","attrs":"#);
        self.fields(attributes, visible);
        self.raw(r#","parents":"#);
        self.list(parents, |out, parent| out.uid(*parent));
        if !tags.is_empty() {
            self.raw(r#","tags":"#);
            self.fields(tags, visible);
        }
        self.raw("}");
    }

    /// Writes a token's claims: an entity without uid, and how it combines with the stored one.
    pub(super) fn claimed(&mut self, claimed: &Claimed, visible: Option<&VisibleNames>) {
        let Claimed {
            attributes,
            parents,
            stored,
        } = claimed;
        self.raw(match stored {
            StoredPrincipal::Join => r#"{"stored":"join","attrs":"#,
            StoredPrincipal::Replace => r#"{"stored":"replace","attrs":"#,
            StoredPrincipal::Require => r#"{"stored":"require","attrs":"#,
        });
        self.fields(&Fields::from(attributes), visible);
        self.raw(r#","parents":"#);
        self.list(parents, |out, parent| out.uid(parent.into()));
        self.raw("}");
    }

    /// Writes attributes; those that are not `visible` are masked.
    pub(super) fn fields(
        &mut self,
        fields: &[(&str, ValueRef<'_>)],
        visible: Option<&VisibleNames>,
    ) {
        self.object(fields, |out, name, value| {
            let is_visible = visible.is_some_and(|names| names.is_visible(name));
            match is_visible && !RESERVED.contains(&name) {
                true => out.value(value),
                false => out.mask(),
            }
        });
    }

    /// Writes an object; `member` writes each value.
    fn object(
        &mut self,
        fields: &[(&str, ValueRef<'_>)],
        mut member: impl FnMut(&mut Self, &str, &ValueRef<'_>),
    ) {
        self.raw("{");
        for (n, (name, value)) in fields.iter().enumerate() {
            if n > 0 {
                self.raw(",");
            }
            self.text(name);
            self.raw(":");
            member(self, name, value);
        }
        self.raw("}");
    }

    fn mask(&mut self) {
        self.has_masked = true;
        self.raw(MASKED);
    }

    /// Writes a value in Cedar's JSON format.
    fn value(&mut self, value: &ValueRef<'_>) {
        match value {
            ValueRef::Bool(true) => self.raw("true"),
            ValueRef::Bool(false) => self.raw("false"),
            ValueRef::Long(value) => number(self.line, *value),
            ValueRef::String(text) => self.text(text),
            ValueRef::Entity(uid) => {
                self.raw(r#"{"__entity":"#);
                self.uid(*uid);
                self.raw("}");
            }
            ValueRef::Set(members) => self.list(members, |out, member| out.value(member)),
            ValueRef::Record(fields) => {
                if fields.iter().any(|(name, _)| RESERVED.contains(name)) {
                    return self.mask();
                }
                self.object(fields, |out, _, value| out.value(value));
            }
            ValueRef::Decimal(text) => self.extension("decimal", text),
            ValueRef::Ip(text) => self.extension("ip", text),
            ValueRef::Datetime(text) => self.extension("datetime", text),
            ValueRef::Duration(text) => self.extension("duration", text),
        }
    }

    fn extension(&mut self, function: &str, text: &str) {
        self.raw(r#"{"__extn":{"fn":""#);
        self.raw(function);
        self.raw(r#"","arg":"#);
        self.text(text);
        self.raw("}}");
    }

    /// Writes a duration in microseconds, with three decimals.
    pub(super) fn microseconds(&mut self, took: Duration) {
        let nanoseconds = took.as_nanos() as u64;
        digits(self.line, nanoseconds / 1_000, 1);
        self.raw(".");
        digits(self.line, nanoseconds % 1_000, 3);
    }
}
