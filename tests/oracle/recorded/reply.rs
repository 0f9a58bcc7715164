//! Formats a reply as a line of text: answers byte for byte, errors without their messages.

use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use cedar_pdp_test_support::http2::{BATCH, Outcome, STREAM};

/// The number of `decision_id` in an `AuthorizeResponse`, which is new with each decision.
const DECISION_ID: u64 = 6;

/// Formats the reply to a call of `method`.
pub(super) fn text(method: &str, outcome: &Outcome) -> String {
    let mut text = format!("{} ", outcome.http);
    if let Some(broken) = &outcome.h2_error {
        text.push_str(&format!("broken {:?} ", broken.reason()));
    }
    match &outcome.status {
        None => text.push_str("no status;"),
        Some(status) => text.push_str(&error(status)),
    }
    let mut messages: Vec<String> = outcome
        .messages
        .iter()
        .map(|message| match method {
            BATCH => batch(message),
            STREAM => item(message, 2, 3),
            _ => answer(message),
        })
        .collect();
    // Stream answers come in any order; each begins with the number of its request.
    if method == STREAM {
        messages.sort();
    }
    for message in messages {
        text.push_str(" | ");
        text.push_str(&message);
    }
    text
}

/// Formats the code, field paths, reasons and details of a status, without messages.
fn error(status: &Status) -> String {
    let details = status.get_error_details();
    let mut text = format!("{:?}", status.code());
    if let Some(bad) = details.bad_request() {
        for violation in &bad.field_violations {
            text.push_str(&format!(" field={:?}", violation.field));
        }
    }
    if let Some(info) = details.error_info() {
        let mut metadata: Vec<_> = info.metadata.iter().collect();
        metadata.sort();
        text.push_str(&format!(
            " reason={} domain={} {metadata:?}",
            info.reason, info.domain
        ));
    }
    if let Some(retry) = details.retry_info() {
        text.push_str(&format!(" retry={:?}", retry.retry_delay));
    }
    // Also counts details of types that are not decoded here.
    let all = tonic_types::Status::decode(status.details()).unwrap_or_default();
    for detail in &all.details {
        text.push_str(&format!(" {}", detail.type_url));
    }
    text.push(';');
    text
}

/// Formats an answer without its decision id.
pub(super) fn answer(bytes: &[u8]) -> String {
    let mut bytes_without_id = Vec::new();
    for field in fields(bytes) {
        if field.number != DECISION_ID {
            bytes_without_id.extend_from_slice(field.whole);
        }
    }
    bytes_without_id.escape_ascii().to_string()
}

fn batch(bytes: &[u8]) -> String {
    let parts = fields(bytes).into_iter().map(|field| match field.number {
        1 => item(field.content, 1, 2),
        _ => field.whole.escape_ascii().to_string(),
    });
    parts.collect::<Vec<_>>().join(" | ")
}

/// Formats an item whose answer and error have these field numbers.
fn item(bytes: &[u8], answers: u64, errors: u64) -> String {
    let parts = fields(bytes).into_iter().map(|field| match field.number {
        number if number == answers => answer(field.content),
        number if number == errors => {
            let status = tonic_types::Status::decode(field.content).unwrap();
            let code = Code::from(status.code);
            error(&Status::with_details(
                code,
                status.message,
                field.content.to_vec().into(),
            ))
        }
        _ => field.whole.escape_ascii().to_string(),
    });
    parts.collect::<Vec<_>>().join(" ")
}

struct Field<'a> {
    number: u64,
    /// The field with its key and length.
    whole: &'a [u8],
    /// Empty for a number.
    content: &'a [u8],
}

/// Splits a message of the service into fields.
fn fields(bytes: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let begin = rest;
        let key = varint(&mut rest);
        let content: &[u8] = match key & 7 {
            0 => {
                varint(&mut rest);
                &[]
            }
            2 => {
                let length = varint(&mut rest) as usize;
                let (content, after) = rest.split_at(length);
                rest = after;
                content
            }
            other => panic!("no answer has a field of wire type {other}"),
        };
        fields.push(Field {
            number: key >> 3,
            whole: &begin[..begin.len() - rest.len()],
            content,
        });
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}
