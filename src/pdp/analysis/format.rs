//! Formats the text of a policy file by Cedar's formatter, and changes nothing but the layout.

use std::str::FromStr as _;

use cedar_policy::PolicySet;
use cedar_policy_formatter::{Config, policies_str_to_pretty};

use crate::pdp::sources::scanner::{self, Language};
use crate::pdp::values::with_causes;

/// Policies that are formatted at once: the time of Cedar's formatter grows with their square.
const POLICIES_PER_PIECE: usize = 16;

/// Most times that a text is formatted until its layout no longer changes.
const MAX_PASSES: usize = 4;

/// The first line of a file that is not formatted, as in Cedar's editor extension.
const FORMATTER_OFF: &str = "// @formatter:off";

/// The reason why a text cannot be formatted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The text is no valid policy file.
    #[error("{0}")]
    Invalid(String),
    /// The formatter would change more than the layout, or finds no final layout.
    #[error("Cedar's formatter cannot keep {0} of this file, so the file stays as before")]
    Lossy(&'static str),
}

/// Returns `text` with the layout of Cedar's formatter.
///
/// Formatting the result changes nothing. A text that begins with `// @formatter:off` stays as it
/// is. Takes the stack that Cedar's parser needs.
///
/// # Errors
///
/// [`FormatError`]; the text is then to be left as it is.
pub fn format_policies(text: &str) -> Result<String, FormatError> {
    let invalid = |error: &dyn std::error::Error| FormatError::Invalid(with_causes(error));
    scanner::check(text, Language::Policies).map_err(|error| invalid(&error))?;
    if text.trim_start().starts_with(FORMATTER_OFF) {
        return Ok(text.to_owned());
    }
    let before = content(text)?;
    let mut formatted = format_once(text)?;
    for _ in 1..MAX_PASSES {
        let again = format_once(&formatted)?;
        if again == formatted {
            let after = content(&formatted)?;
            return match (
                after.policies == before.policies,
                after.comments == before.comments,
            ) {
                (true, true) => Ok(formatted),
                (false, _) => Err(FormatError::Lossy("the policies")),
                (true, false) => Err(FormatError::Lossy("the comments")),
            };
        }
        formatted = again;
    }
    Err(FormatError::Lossy("the layout"))
}

/// All that a layout must keep.
struct Content {
    /// The policies and templates with their ids and annotations.
    policies: serde_json::Value,
    comments: Vec<String>,
}

fn content(text: &str) -> Result<Content, FormatError> {
    let invalid = |error: &dyn std::error::Error| FormatError::Invalid(with_causes(error));
    let policies = PolicySet::from_str(text).map_err(|error| invalid(&error))?;
    let comments = scanner::comments(text).map(|comment| comment.trim_end().to_owned());
    Ok(Content {
        policies: policies.to_json().map_err(|error| invalid(&error))?,
        comments: comments.collect(),
    })
}

fn format_once(text: &str) -> Result<String, FormatError> {
    let config = Config::default();
    let mut formatted: Vec<String> = Vec::new();
    for piece in pieces(text) {
        let pretty = policies_str_to_pretty(piece, &config);
        let pretty = pretty.map_err(|error| FormatError::Invalid(error.to_string()))?;
        let pretty = pretty.trim();
        if !pretty.is_empty() {
            formatted.push(pretty.to_owned());
        }
    }
    let mut text = formatted.join("\n\n");
    if !text.is_empty() {
        text.push('\n');
    }
    Ok(text)
}

/// Splits `text` after every few policies, and after the comment on the line of the last one.
fn pieces(text: &str) -> Vec<&str> {
    let ends = scanner::statement_ends(text);
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in ends
        .into_iter()
        .skip(POLICIES_PER_PIECE - 1)
        .step_by(POLICIES_PER_PIECE)
    {
        let rest = text.get(end..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let is_comment = line.trim_start().starts_with("//");
        let end = if is_comment { end + line.len() } else { end };
        pieces.extend(text.get(start..end));
        start = end;
    }
    pieces.extend(text.get(start..));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_changes_and_content_stays() {
        let text = "@id(\"a\")permit(principal,action,resource)when{context.n==1};// first\n\n\n\
                    // second\nforbid(principal,action,resource)unless{principal in Group::\"g\"};\n// end\n";
        let formatted = format_policies(text).unwrap();
        assert!(
            formatted.contains("permit (principal, action, resource)"),
            "{formatted}"
        );
        for comment in ["// first", "// second", "// end"] {
            assert!(formatted.contains(comment), "{comment} in\n{formatted}");
        }
        assert_eq!(format_policies(&formatted).unwrap(), formatted);
    }

    #[test]
    fn many_policies_are_formatted_in_pieces() {
        let policy = |number: usize| {
            format!("@id(\"p{number}\") permit(principal,action,resource); // {number}\n")
        };
        let text: String = (0..100).map(policy).collect();
        let formatted = format_policies(&text).unwrap();
        assert_eq!(
            formatted
                .matches("\npermit (principal, action, resource);")
                .count(),
            100
        );
        assert_eq!(content(&formatted).unwrap().comments.len(), 100);
        assert_eq!(format_policies(&formatted).unwrap(), formatted);
    }

    #[test]
    fn some_texts_stay_as_they_are() {
        let off = "// @formatter:off\npermit(principal,action,resource);";
        assert_eq!(format_policies(off).unwrap(), off);
        assert_eq!(format_policies("").unwrap(), "");
        let error = format_policies("permit (principal").unwrap_err();
        assert!(matches!(error, FormatError::Invalid(_)), "{error}");
    }
}
