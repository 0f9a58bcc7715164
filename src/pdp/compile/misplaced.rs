//! Recognises content in a file of the wrong kind, such as a schema in a `.cedar` file.
//!
//! Parsers would report an unexpected token at the start, which hides the real mistake.

use std::sync::Arc;

use cedar_policy::{PolicySet, SchemaFragment};

use crate::pdp::diagnostic::Diagnostic;
use crate::pdp::sources::scanner::{self, Language};

/// Returns the error for a file of policies that holds something else, if that is recognised.
pub(super) fn in_policy_file(path: &str, text: &Arc<str>) -> Option<Diagnostic> {
    if let Some(found) = json(path, text, "policies in JSON are `*.cedar.json` files") {
        return Some(found);
    }
    let keyword = keyword(text, Language::Policies);
    let begins_schema = matches!(keyword, Some("entity" | "action" | "namespace" | "type"));
    let is_schema = begins_schema
        || scanner::check(text, Language::Schema).is_ok()
            && SchemaFragment::from_cedarschema_str(text).is_ok();
    let help = "schema files are called `*.cedarschema`";
    is_schema.then(|| Diagnostic::error(path, "holds a schema, not policies").with_help(help))
}

/// Returns the error for a schema file that holds something else, if that is recognised.
pub(super) fn in_schema_file(path: &str, text: &Arc<str>) -> Option<Diagnostic> {
    if let Some(found) = json(path, text, "schemas in JSON are `*.cedarschema.json` files") {
        return Some(found);
    }
    let keyword = keyword(text, Language::Schema);
    let is_policies = matches!(keyword, Some("permit" | "forbid"))
        || scanner::check(text, Language::Policies).is_ok() && text.parse::<PolicySet>().is_ok();
    let help = "policy files are called `*.cedar`";
    is_policies.then(|| Diagnostic::error(path, "holds policies, not a schema").with_help(help))
}

fn keyword(text: &str, language: Language) -> Option<&str> {
    text.get(scanner::first_word(text, language)?)
}

/// Returns the error for a text that begins as JSON does, and neither policies nor schemas do.
fn json(path: &str, text: &Arc<str>, help: &str) -> Option<Diagnostic> {
    let start = text.len() - text.trim_start().len();
    let is_json = matches!(text.as_bytes().get(start), Some(b'{' | b'['));
    is_json.then(|| {
        Diagnostic::error(path, "holds JSON, not Cedar syntax")
            .at(text, start..start + 1)
            .with_help(help)
    })
}
