//! What a line of the log says, version 1 of it.
//!
//! A line must hold what deciding anew needs, exactly: values are in Cedar's JSON format, in which
//! nothing loses its type. Where something is missing or masked the line says so.

use std::time::Duration;

use super::Origin;
use super::id::DecisionId;
use super::json::{digits, number, string};
use super::shown::{Names, Shown};
use crate::engine::query_ref::{EntityRef, QueryRef, UidRef, ValueRef, fields};
use crate::pdp::answer::Decision;
use crate::pdp::id::Revision;
use crate::pdp::query::{Claimed, StoredPrincipal};
use crate::pdp::settings::OnPolicyError;

/// Which form of line this is; another one when what a field means changes, or one goes.
const VERSION: &str = r#"{"v":1,"time":""#;

/// The longest line, in bytes. A longer one would hold what a caller wrote to fill the disk.
const LONGEST_LINE: usize = 256 << 10;
/// What a line that would be longer holds of its lists, and of each text in it.
const LONGEST_LIST: usize = 32 << 10;
const LONGEST_TEXT: usize = 1 << 10;

/// When and as what a decision was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    /// Since 1970.
    pub(super) at: Duration,
    pub(super) id: DecisionId,
}

/// How the cache was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// The answer was remembered.
    Hit,
    /// The answer was not there, and was decided.
    Miss,
    /// There is no cache.
    Off,
}

/// A decision as it is told, `A` being the answer as it is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a, A> {
    /// What was asked.
    pub query: &'a QueryRef<'a>,
    /// What was answered.
    pub answer: &'a A,
    /// Of the snapshot that decided.
    pub revision: &'a Revision,
    /// How the cache was used.
    pub cache: CacheUse,
    /// How long it took.
    pub took: Duration,
}

/// What a line says of an answer.
pub trait Answers {
    /// Allow or deny.
    fn decision(&self) -> Decision;

    /// The determining policies.
    fn determining(&self) -> impl Iterator<Item = &str>;

    /// The policies that failed, and what Cedar says of it.
    fn errors(&self) -> impl Iterator<Item = (&str, &str)>;
}

/// Writes lines.
#[derive(Clone, Debug)]
pub(super) struct Format {
    pub(super) shown: Shown,
    pub(super) on_policy_error: OnPolicyError,
}

impl Format {
    /// Writes the line of a decision into `line`, which is empty.
    pub(super) fn decided(
        &self,
        line: &mut Vec<u8>,
        stamp: &Stamp,
        origin: &Origin<'_>,
        told: &Told<'_, impl Answers>,
    ) {
        let is_whole = self.write(line, stamp, origin, told, usize::MAX);
        if !is_whole || line.len() > LONGEST_LINE {
            line.clear();
            line.shrink_to(LONGEST_LINE);
            self.write(line, stamp, origin, told, LONGEST_TEXT);
        }
    }

    /// Writes the line, in which no text has more than `longest` bytes; whether nothing is missing.
    fn write(
        &self,
        line: &mut Vec<u8>,
        stamp: &Stamp,
        origin: &Origin<'_>,
        told: &Told<'_, impl Answers>,
        longest: usize,
    ) -> bool {
        let Told {
            query,
            answer,
            revision,
            cache,
            took,
        } = told;
        let QueryRef {
            principal,
            action,
            resource,
            context,
            entities,
            claimed,
            explain,
        } = query;
        let is_cut = longest < usize::MAX;
        let mut pen = Pen {
            line,
            longest,
            masked: false,
        };
        pen.head(stamp, origin);
        pen.raw(r#","principal":"#);
        pen.uid(*principal);
        pen.raw(r#","action":"#);
        pen.uid(*action);
        pen.raw(r#","resource":"#);
        pen.uid(*resource);
        if !is_cut {
            pen.raw(r#","context":"#);
            pen.fields(context, Some(self.shown.context()));
            if !entities.is_empty() {
                pen.raw(r#","entities":"#);
                pen.list(entities, |pen, entity| pen.entity(entity, &self.shown));
            }
            if let Some(claimed) = claimed {
                pen.raw(r#","claimed":"#);
                pen.claimed(claimed, self.shown.entity(principal.type_name));
            }
            if pen.line.len() > LONGEST_LINE {
                return false;
            }
        }
        pen.raw(match answer.decision() {
            Decision::Allow => r#","decision":"ALLOW","determining_policies":"#,
            Decision::Deny => r#","decision":"DENY","determining_policies":"#,
        });
        pen.list(answer.determining(), |pen, id| pen.text(id));
        let mut errors = answer.errors().peekable();
        if errors.peek().is_some() {
            pen.raw(r#","errors":"#);
            pen.list(errors, |pen, (policy, message)| {
                pen.raw(r#"{"policy":"#);
                pen.text(policy);
                pen.raw(r#","message":"#);
                match self.shown.error_messages() {
                    true => pen.text(message),
                    false => pen.raw(MASKED),
                }
                pen.raw("}");
            });
        }
        pen.raw(r#","revision":""#);
        pen.raw(revision.as_str());
        pen.raw(match cache {
            CacheUse::Hit => r#"","cache":"hit","duration_us":"#,
            CacheUse::Miss => r#"","cache":"miss","duration_us":"#,
            CacheUse::Off => r#"","cache":"off","duration_us":"#,
        });
        pen.microseconds(*took);
        if *explain {
            pen.raw(r#","explain":true"#);
        }
        match self.on_policy_error {
            OnPolicyError::Skip => {}
            OnPolicyError::Deny => pen.raw(r#","on_policy_error":"deny""#),
        }
        if is_cut {
            pen.raw(r#","cut":true"#);
        }
        let is_replayable = !is_cut && !pen.masked;
        pen.raw(match is_replayable {
            true => ",\"replayable\":true}\n",
            false => ",\"replayable\":false}\n",
        });
        true
    }

    /// Writes the line of a request that was refused. What it asked is not told: whatever is
    /// wrong with it may be that it is not what it should be.
    pub(super) fn refused(
        &self,
        line: &mut Vec<u8>,
        stamp: &Stamp,
        origin: &Origin<'_>,
        reason: &str,
    ) {
        let mut pen = Pen {
            line,
            longest: LONGEST_TEXT,
            masked: false,
        };
        pen.head(stamp, origin);
        pen.raw(r#","refused":"#);
        pen.text(reason);
        pen.raw(",\"replayable\":false}\n");
    }
}

/// Stands for a value that does not leave the process. No value of Cedar's has this form: a record
/// with such a name is masked itself.
const MASKED: &str = r#"{"__masked":true}"#;

/// Names that mean something in Cedar's JSON format, or in ours: a record that has a field of such a
/// name cannot be written as it is.
const RESERVED: [&str; 4] = ["__entity", "__extn", "__expr", "__masked"];

/// Writes at the end of a line.
struct Pen<'a> {
    line: &'a mut Vec<u8>,
    /// The longest text that is not cut off, in bytes.
    longest: usize,
    /// Whether any value was.
    masked: bool,
}

impl Pen<'_> {
    // Inlined, so that what is known when compiling is written in a few moves.
    #[inline(always)]
    fn raw(&mut self, text: &str) {
        self.line.extend_from_slice(text.as_bytes());
    }

    fn text(&mut self, text: &str) {
        if text.len() <= self.longest {
            return string(self.line, text);
        }
        let end = text.floor_char_boundary(self.longest);
        string(self.line, text.get(..end).unwrap_or_default());
    }

    fn head(&mut self, stamp: &Stamp, origin: &Origin<'_>) {
        self.raw(VERSION);
        time(self.line, stamp.at);
        self.raw(r#"","id":""#);
        self.line.extend_from_slice(stamp.id.as_bytes());
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

    /// At most as much of a list as fits, when texts are cut.
    fn list<T>(&mut self, items: impl IntoIterator<Item = T>, mut item: impl FnMut(&mut Self, T)) {
        let begin = self.line.len();
        self.raw("[");
        for (n, it) in items.into_iter().enumerate() {
            if self.longest < usize::MAX && self.line.len() - begin > LONGEST_LIST {
                break;
            }
            if n > 0 {
                self.raw(",");
            }
            item(self, it);
        }
        self.raw("]");
    }

    fn uid(&mut self, uid: UidRef<'_>) {
        let UidRef { type_name, id } = uid;
        self.raw(r#"{"type":"#);
        self.text(type_name);
        self.raw(r#","id":"#);
        self.text(id);
        self.raw("}");
    }

    /// An entity, as Cedar's JSON format has it.
    fn entity(&mut self, entity: &EntityRef<'_>, shown: &Shown) {
        let EntityRef {
            uid,
            attributes,
            parents,
            tags,
        } = entity;
        let names = shown.entity(uid.type_name);
        self.raw(r#"{"uid":"#);
        self.uid(*uid);
        self.raw(r#","attrs":"#);
        self.fields(attributes, names);
        self.raw(r#","parents":"#);
        self.list(parents, |pen, parent| pen.uid(*parent));
        if !tags.is_empty() {
            self.raw(r#","tags":"#);
            self.fields(tags, names);
        }
        self.raw("}");
    }

    /// What a token says of the principal: an entity but for its uid, and what becomes of the
    /// stored one.
    fn claimed(&mut self, claimed: &Claimed, names: Option<&Names>) {
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
        self.fields(&fields(attributes), names);
        self.raw(r#","parents":"#);
        self.list(parents, |pen, parent| pen.uid(parent.into()));
        self.raw("}");
    }

    /// Attributes, of which those that `names` do not show are masked.
    fn fields(&mut self, fields: &[(&str, ValueRef<'_>)], names: Option<&Names>) {
        self.members(fields, |pen, name, value| {
            let is_shown = names.is_some_and(|names| names.shows(name));
            match is_shown && !RESERVED.contains(&name) {
                true => pen.value(value),
                false => pen.mask(),
            }
        });
    }

    /// An object with these members.
    fn members(
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
        self.masked = true;
        self.raw(MASKED);
    }

    /// A value, as Cedar's JSON format has it.
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
            ValueRef::Set(members) => self.list(members, |pen, member| pen.value(member)),
            ValueRef::Record(fields) => {
                if fields.iter().any(|(name, _)| RESERVED.contains(name)) {
                    return self.mask();
                }
                self.members(fields, |pen, _, value| pen.value(value));
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

    /// Microseconds, to the nanosecond.
    fn microseconds(&mut self, took: Duration) {
        let nanoseconds = took.as_nanos() as u64;
        digits(self.line, nanoseconds / 1_000, 1);
        self.raw(".");
        digits(self.line, nanoseconds % 1_000, 3);
    }
}

/// Writes a time as RFC 3339 has it, in UTC and to the microsecond.
fn time(line: &mut Vec<u8>, since_1970: Duration) {
    let seconds = since_1970.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let of_day = seconds % 86_400;
    digits(line, year, 4);
    for (mark, part) in [
        (b'-', month),
        (b'-', day),
        (b'T', of_day / 3_600),
        (b':', of_day / 60 % 60),
        (b':', of_day % 60),
    ] {
        line.push(mark);
        digits(line, part, 2);
    }
    line.push(b'.');
    digits(line, u64::from(since_1970.subsec_micros()), 6);
    line.push(b'Z');
}

/// Year, month and day of the day that is `days` after 1970-01-01.
///
/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>: years begin in March, so
/// that the day that not every year has is the last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
