//! Bounds how deep a text nests before anything recurses over it, and finds a policy's clauses.
//!
//! The parsers below us recurse: some hundred nested parentheses overflow the stack of an
//! ordinary thread, and an overflow ends the process. This is a scan, not a parse: it walks the
//! tokens once with a counter, so no text can hurt it. It counts too much rather than too little.

use std::ops::Range;

use crate::pdp::explanation::ClauseKind;

/// The most brackets within brackets in a policy or schema text.
pub const MAX_BRACKETS: usize = 128;

/// The most `&&`, `||` and other operators that can pile up on one another in a policy:
/// `a && b && c …` builds a tree as deep as it is long.
pub const MAX_CHAIN: usize = 4_000;

/// The most arrays and objects within one another in a JSON file.
pub const MAX_JSON_BRACKETS: usize = 100;

/// A text that nests too deep, and where it begins to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nested deeper than {limit} levels")]
pub(in crate::pdp) struct TooDeep {
    /// The limit that was passed.
    pub(in crate::pdp) limit: usize,
    /// The byte at which it was passed.
    pub(in crate::pdp) offset: usize,
}

/// Which language a text is in; they differ in what counts as a bracket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum Language {
    /// Cedar policies.
    Policies,
    /// Cedar schema: `Set<…>` nests.
    Schema,
    /// JSON.
    Json,
}

/// What has piled up between a bracket and the next separator in it.
///
/// `a && b || c` builds a tree as deep as it has `&&` and `||`, with the operands as leaves; so the
/// depth is at most their number and the size of the largest operand. `if … then … else if …`
/// nests however it is broken up, so its words count as `&&` does.
#[derive(Clone, Copy, Default)]
struct NestingDepth {
    logical: usize,
    largest_operand: usize,
    operand: usize,
}

impl NestingDepth {
    fn depth(self) -> usize {
        self.logical + self.largest_operand.max(self.operand)
    }

    fn next_operand(&mut self) {
        self.logical += 1;
        self.largest_operand = self.largest_operand.max(self.operand);
        self.operand = 0;
    }
}

/// Checks that `text` nests no deeper than the parsers can bear.
pub(in crate::pdp) fn check(text: &str, language: Language) -> Result<(), TooDeep> {
    let limit = match language {
        Language::Policies | Language::Schema => MAX_BRACKETS,
        Language::Json => MAX_JSON_BRACKETS,
    };
    // For each open bracket, what stands in it so far: the deepest element, and the present one.
    let mut open: Vec<(usize, NestingDepth)> = vec![(0, NestingDepth::default())];
    for token in Tokens::new(text, language) {
        let too_deep = |limit| {
            Err(TooDeep {
                limit,
                offset: token.span.start,
            })
        };
        match token.kind {
            TokenKind::Open => {
                open.push((0, NestingDepth::default()));
                if open.len() > limit + 1 {
                    return too_deep(limit);
                }
                continue;
            }
            TokenKind::Close => {
                // A bracket that closes nothing is the parser's to refuse.
                if open.len() > 1
                    && let Some((deepest, nesting)) = open.pop()
                    && let Some((_, outer)) = open.last_mut()
                {
                    outer.operand += 1 + deepest.max(nesting.depth());
                }
            }
            TokenKind::Separator => {
                if let Some((deepest, nesting)) = open.last_mut() {
                    *deepest = (*deepest).max(nesting.depth());
                    *nesting = NestingDepth::default();
                }
            }
            TokenKind::Logical => {
                if let Some((_, nesting)) = open.last_mut() {
                    nesting.next_operand();
                }
            }
            TokenKind::Word => {
                if let Some((_, nesting)) = open.last_mut() {
                    match text.get(token.span.clone()) {
                        Some("if" | "then" | "else" | "when" | "unless") => nesting.next_operand(),
                        Some(_) | None => nesting.operand += 1,
                    }
                }
            }
            TokenKind::Operator => {
                if let Some((_, nesting)) = open.last_mut() {
                    nesting.operand += 1;
                }
            }
        }
        let piled = open.last().map_or(0, |(_, nesting)| nesting.depth());
        if language == Language::Policies && piled > MAX_CHAIN {
            return too_deep(MAX_CHAIN);
        }
    }
    Ok(())
}

/// The `when` and `unless` clauses of one policy's text, each with its bytes, keyword and braces
/// included.
pub(in crate::pdp) fn clauses(policy: &str) -> Vec<(ClauseKind, Range<usize>)> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    let mut open: Option<(ClauseKind, usize)> = None;
    for token in Tokens::new(policy, Language::Policies) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => {
                depth = depth.saturating_sub(1);
                if depth == 0
                    && policy.get(token.span.clone()) == Some("}")
                    && let Some((kind, start)) = open.take()
                {
                    found.push((kind, start..token.span.end));
                }
            }
            TokenKind::Word if depth == 0 => match policy.get(token.span.clone()) {
                Some("when") => open = Some((ClauseKind::When, token.span.start)),
                Some("unless") => open = Some((ClauseKind::Unless, token.span.start)),
                Some(_) | None => {}
            },
            TokenKind::Word | TokenKind::Separator | TokenKind::Logical | TokenKind::Operator => {}
        }
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Open,
    Close,
    /// `,` or `;`: what follows does not pile up on what went before.
    Separator,
    /// A name or keyword.
    Word,
    /// `&&` or `||`.
    Logical,
    /// Any other sign.
    Operator,
}

struct Token {
    kind: TokenKind,
    span: Range<usize>,
}

/// The tokens of a text, without strings, comments, numbers and white space.
struct Tokens<'a> {
    bytes: &'a [u8],
    at: usize,
    language: Language,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str, language: Language) -> Self {
        Self {
            bytes: text.as_bytes(),
            at: 0,
            language,
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    /// The end of a string that begins at `at`.
    fn after_string(&self, mut at: usize) -> usize {
        at += 1;
        while let Some(byte) = self.byte(at) {
            match byte {
                b'\\' => at += 2,
                b'"' => return at + 1,
                _ => at += 1,
            }
        }
        self.bytes.len()
    }

    fn after_while(&self, mut at: usize, holds: impl Fn(u8) -> bool) -> usize {
        while self.byte(at).is_some_and(&holds) {
            at += 1;
        }
        at
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let start = self.at;
            let byte = self.byte(start)?;
            let json = self.language == Language::Json;
            let kind = match byte {
                b'"' => {
                    self.at = self.after_string(start);
                    continue;
                }
                b'/' if !json && self.byte(start + 1) == Some(b'/') => {
                    // Cedar ends a comment at a carriage return too.
                    self.at = self.after_while(start, |b| b != b'\n' && b != b'\r');
                    continue;
                }
                b'(' | b'[' | b'{' => TokenKind::Open,
                b')' | b']' | b'}' => TokenKind::Close,
                b'<' if self.language == Language::Schema => TokenKind::Open,
                b'>' if self.language == Language::Schema => TokenKind::Close,
                b',' | b';' => TokenKind::Separator,
                b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                    self.at = self.after_while(start, |b| b == b'_' || b.is_ascii_alphanumeric());
                    return Some(Token {
                        kind: TokenKind::Word,
                        span: start..self.at,
                    });
                }
                b'&' | b'|' if self.byte(start + 1) == Some(byte) => {
                    self.at = start + 2;
                    return Some(Token {
                        kind: TokenKind::Logical,
                        span: start..self.at,
                    });
                }
                b'!' | b'&' | b'|' | b'=' | b'<' | b'>' | b'+' | b'-' | b'*' | b'.' | b':'
                | b'?' | b'%' | b'/' => TokenKind::Operator,
                _ => {
                    self.at = start + 1;
                    continue;
                }
            };
            self.at = start + 1;
            return Some(Token {
                kind,
                span: start..self.at,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(condition: &str) -> String {
        format!("permit(principal, action, resource) when {{ {condition} }};")
    }

    #[test]
    fn ordinary_policies_pass() {
        assert_eq!(
            check(
                &policy("principal in Group::\"a\" && [1, 2].contains(context.x)"),
                Language::Policies
            ),
            Ok(())
        );
    }

    #[test]
    fn parentheses_are_bounded() {
        let text = policy(&format!("{}true{}", "(".repeat(300), ")".repeat(300)));
        let TooDeep { limit, offset } = check(&text, Language::Policies).unwrap_err();
        assert_eq!((limit, text.as_bytes()[offset]), (MAX_BRACKETS, b'('));
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        let brackets = "(".repeat(1_000);
        let text = format!(
            "// {brackets}\n{}",
            policy(&format!("context.x == \"\\\"{brackets}\""))
        );
        assert_eq!(check(&text, Language::Policies), Ok(()));
    }

    #[test]
    fn a_carriage_return_ends_a_comment() {
        let hidden = policy(&format!("//\r{}true{}", "(".repeat(300), ")".repeat(300)));
        assert!(check(&hidden, Language::Policies).is_err());
        assert!(check(&format!("//\r{}", "Set<".repeat(300)), Language::Schema).is_err());
    }

    #[test]
    fn a_long_chain_of_operators_is_bounded_and_many_short_policies_are_not() {
        for link in [
            "true && ",
            "context.x || ",
            "if a then b && c else ",
            "1 + ",
            "a.b.c.",
            "if ",
        ] {
            assert!(
                check(&policy(&link.repeat(MAX_CHAIN)), Language::Policies).is_err(),
                "{link}"
            );
        }
        let long = vec!["context.x == 1"; MAX_CHAIN - 20].join(" || ");
        assert_eq!(check(&policy(&long), Language::Policies), Ok(()));
        let many = policy("true && true").repeat(10_000);
        assert_eq!(check(&many, Language::Policies), Ok(()));
    }

    #[test]
    fn json_and_schema_types_are_bounded() {
        assert!(check(&"[".repeat(100_000), Language::Json).is_err());
        assert!(check(&"Set<".repeat(100_000), Language::Schema).is_err());
        assert_eq!(check(&"[]".repeat(100_000), Language::Json), Ok(()));
    }

    #[test]
    fn clauses_are_found_with_their_keyword_and_braces() {
        let text = r#"@when("unless {") permit(principal, action, resource)
when { {a: 1}.a == 1 } // when { no }
unless { context.x == "}" };"#;
        let found: Vec<_> = clauses(text)
            .into_iter()
            .map(|(kind, span)| (kind, &text[span]))
            .collect();
        assert_eq!(
            found,
            [
                (ClauseKind::When, "when { {a: 1}.a == 1 }"),
                (ClauseKind::Unless, "unless { context.x == \"}\" }")
            ],
        );
    }
}
