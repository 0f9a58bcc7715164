//! Bounds the nesting of a text before any parser recurses over it, and finds a policy's clauses.
//!
//! Cedar's and JSON's parsers recurse: some hundred nested parentheses overflow the stack of an
//! ordinary thread, and an overflow ends the process. This is a scan, not a parse: it walks over
//! the tokens once with a counter, so no text can harm it. Its count errs on the high side.

use std::ops::Range;

use crate::pdp::explanation::ClauseKind;

/// The maximum nesting of brackets in a policy or schema text.
pub const MAX_BRACKETS: usize = 128;

/// The maximum depth of a chain of `&&`, `||` and other operators in a policy.
///
/// The tree of `a && b && c …` is as deep as the chain is long.
pub const MAX_CHAIN: usize = 4_000;

/// The maximum nesting of arrays and objects in a JSON file.
pub const MAX_JSON_BRACKETS: usize = 100;

/// The error for a text that is nested too deeply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nested deeper than {limit} levels")]
pub(in crate::pdp) struct TooDeep {
    /// The exceeded limit, in levels.
    pub(in crate::pdp) limit: usize,
    /// The byte offset at which it is exceeded.
    pub(in crate::pdp) offset: usize,
}

/// The language of a text, which decides the tokens that count as brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum Language {
    /// Cedar policies.
    Policies,
    /// Cedar schema: `Set<…>` nests.
    Schema,
    /// JSON.
    Json,
}

/// The depth of the tree between a bracket and the next separator in it.
///
/// The tree of `a && b || c` is as deep as it has `&&` and `||`, with the operands as leaves. So the
/// depth is at most their number plus the size of the largest operand. `if … then … else if …`
/// nests in any case, so its keywords count as `&&` does.
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

/// Checks that the parsers can bear the nesting of `text`.
pub(in crate::pdp) fn check(text: &str, language: Language) -> Result<(), TooDeep> {
    let limit = match language {
        Language::Policies | Language::Schema => MAX_BRACKETS,
        Language::Json => MAX_JSON_BRACKETS,
    };
    let mut nesting = BracketStack::default();
    for token in Tokens::new(text, language) {
        let too_deep = |limit| {
            Err(TooDeep {
                limit,
                offset: token.span.start,
            })
        };
        match token.kind {
            TokenKind::Open => {
                nesting.open();
                if nesting.outer.len() > limit {
                    return too_deep(limit);
                }
                continue;
            }
            TokenKind::Close => nesting.close(),
            TokenKind::Separator => nesting.innermost.next_element(),
            TokenKind::Logical => nesting.innermost.current.next_operand(),
            TokenKind::Word => match text.get(token.span.clone()) {
                Some("if" | "then" | "else" | "when" | "unless") => {
                    nesting.innermost.current.next_operand();
                }
                Some(_) | None => nesting.innermost.current.operand += 1,
            },
            TokenKind::Operator => nesting.innermost.current.operand += 1,
        }
        let depth = nesting.innermost.current.depth();
        if language == Language::Policies && depth > MAX_CHAIN {
            return too_deep(MAX_CHAIN);
        }
    }
    Ok(())
}

/// The content of one bracket so far.
#[derive(Clone, Copy, Default)]
struct Bracket {
    /// Depth of the deepest element before the current one.
    deepest: usize,
    current: NestingDepth,
}

impl Bracket {
    fn next_element(&mut self) {
        self.deepest = self.deepest.max(self.current.depth());
        self.current = NestingDepth::default();
    }
}

/// The open brackets at a position of a text.
#[derive(Default)]
struct BracketStack {
    /// The innermost open bracket, or the text as a whole.
    innermost: Bracket,
    /// The brackets around it, the text as a whole first.
    outer: Vec<Bracket>,
}

impl BracketStack {
    fn open(&mut self) {
        self.outer.push(std::mem::take(&mut self.innermost));
    }

    /// Closes the innermost bracket; the parser rejects a bracket that closes nothing.
    fn close(&mut self) {
        if let Some(outer) = self.outer.pop() {
            let closed = std::mem::replace(&mut self.innermost, outer);
            self.innermost.current.operand += 1 + closed.deepest.max(closed.current.depth());
        }
    }
}

/// Returns the `when` and `unless` clauses of one policy's text.
///
/// The bytes of each include keyword and braces.
pub(in crate::pdp) fn clauses(policy: &str) -> Vec<(ClauseKind, Range<usize>)> {
    let mut clauses = Vec::new();
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
                    clauses.push((kind, start..token.span.end));
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
    clauses
}

/// Returns the end of the last code of `text` before `offset`, without the white space and comments
/// that follow it.
pub(in crate::pdp) fn code_end(text: &str, offset: usize, language: Language) -> usize {
    let tokens = Tokens::new(text, language);
    let (mut position, mut end) = (0, 0);
    while position < offset
        && let Some(byte) = tokens.byte(position)
    {
        let (kind, next) = tokens.token(position, byte);
        let is_comment = kind.is_none() && byte == b'/';
        if !is_comment && !byte.is_ascii_whitespace() {
            end = next.min(offset);
        }
        position = next;
    }
    end
}

/// Returns whether the word at `offset` is the name of an annotation.
pub(in crate::pdp) fn is_annotation(text: &str, offset: usize) -> bool {
    let before = text.get(..offset).unwrap_or_default();
    before.trim_end().ends_with('@')
}

/// Returns the first word of `text` after all annotations: `permit` in a policy, for example.
pub(in crate::pdp) fn first_word(text: &str, language: Language) -> Option<Range<usize>> {
    let mut depth = 0_usize;
    for token in Tokens::new(text, language) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.saturating_sub(1),
            TokenKind::Word if depth == 0 && !is_annotation(text, token.span.start) => {
                return Some(token.span);
            }
            TokenKind::Word | TokenKind::Separator | TokenKind::Logical | TokenKind::Operator => {}
        }
    }
    None
}

/// Returns the offsets after the `;` of each policy in a text.
pub(in crate::pdp) fn statement_ends(text: &str) -> Vec<usize> {
    let mut depth = 0_usize;
    let mut ends = Vec::new();
    for token in Tokens::new(text, Language::Policies) {
        match token.kind {
            TokenKind::Open => depth += 1,
            TokenKind::Close => depth = depth.saturating_sub(1),
            TokenKind::Separator if depth == 0 => ends.push(token.span.end),
            TokenKind::Separator | TokenKind::Word | TokenKind::Logical | TokenKind::Operator => {}
        }
    }
    ends
}

/// Returns the comments of a text of policies, each from its `//` to the end of the line.
pub(in crate::pdp) fn comments(text: &str) -> impl Iterator<Item = &str> {
    let tokens = Tokens::new(text, Language::Policies);
    let mut position = 0;
    std::iter::from_fn(move || {
        loop {
            let (start, byte) = (position, tokens.byte(position)?);
            let (kind, end) = tokens.token(start, byte);
            position = end;
            if kind.is_none() && byte == b'/' {
                return text.get(start..end);
            }
        }
    })
}

/// A word, string or sign of a schema, with its byte offset.
pub(in crate::pdp) struct Lexeme<'a> {
    pub(in crate::pdp) text: &'a str,
    pub(in crate::pdp) offset: usize,
}

/// Returns the words, strings and single signs of a schema in Cedar's syntax, without comments.
pub(in crate::pdp) fn lexemes(text: &str) -> impl Iterator<Item = Lexeme<'_>> {
    let tokens = Tokens::new(text, Language::Schema);
    let mut position = 0;
    std::iter::from_fn(move || {
        loop {
            let (start, byte) = (position, tokens.byte(position)?);
            let (kind, end) = tokens.token(start, byte);
            position = end;
            if kind.is_some() || byte == b'"' {
                let text = text.get(start..end)?;
                return Some(Lexeme {
                    text,
                    offset: start,
                });
            }
        }
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    Open,
    Close,
    /// `,` or `;`: the next element adds no depth to the one before.
    Separator,
    /// A name or keyword.
    Word,
    /// `&&` or `||`.
    Logical,
    /// Any other operator or punctuation.
    Operator,
}

/// A token and its bytes.
struct Token {
    kind: TokenKind,
    span: Range<usize>,
}

/// The tokens of a text, without strings, comments, numbers and white space.
struct Tokens<'a> {
    bytes: &'a [u8],
    position: usize,
    language: Language,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str, language: Language) -> Self {
        Self {
            bytes: text.as_bytes(),
            position: 0,
            language,
        }
    }

    fn byte(&self, offset: usize) -> Option<u8> {
        self.bytes.get(offset).copied()
    }

    /// Returns the offset after the string that begins at `start`.
    fn string_end(&self, start: usize) -> usize {
        let mut offset = start + 1;
        while let Some(byte) = self.byte(offset) {
            match byte {
                b'\\' => offset += 2,
                b'"' => return offset + 1,
                _ => offset += 1,
            }
        }
        self.bytes.len()
    }

    /// Returns the offset of the first byte from `start` on that is not `included`.
    fn skip_while(&self, start: usize, included: impl Fn(u8) -> bool) -> usize {
        let rest = self.bytes.get(start..).unwrap_or_default();
        let length = rest.iter().position(|byte| !included(*byte));
        start + length.unwrap_or(rest.len())
    }

    /// Returns the kind and the end of the token at `start`; `None` for what is not a token.
    fn token(&self, start: usize, byte: u8) -> (Option<TokenKind>, usize) {
        let is_schema = self.language == Language::Schema;
        let is_doubled = self.byte(start + 1) == Some(byte);
        let kind = match byte {
            b'"' => return (None, self.string_end(start)),
            // Cedar ends a comment at a carriage return too.
            b'/' if self.language != Language::Json && is_doubled => {
                return (None, self.skip_while(start, |b| b != b'\n' && b != b'\r'));
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let end = self.skip_while(start, |b| b == b'_' || b.is_ascii_alphanumeric());
                return (Some(TokenKind::Word), end);
            }
            b'&' | b'|' if is_doubled => return (Some(TokenKind::Logical), start + 2),
            b'(' | b'[' | b'{' => TokenKind::Open,
            b')' | b']' | b'}' => TokenKind::Close,
            b'<' if is_schema => TokenKind::Open,
            b'>' if is_schema => TokenKind::Close,
            b',' | b';' => TokenKind::Separator,
            b'!' | b'&' | b'|' | b'=' | b'<' | b'>' | b'+' | b'-' | b'*' | b'.' | b':' | b'?'
            | b'%' | b'/' => TokenKind::Operator,
            _ => return (None, start + 1),
        };
        (Some(kind), start + 1)
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let start = self.position;
            let byte = self.byte(start)?;
            let (kind, end) = self.token(start, byte);
            self.position = end;
            if let Some(kind) = kind {
                let span = start..end;
                return Some(Token { kind, span });
            }
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
    fn ordinary_policies_are_accepted() {
        assert_eq!(
            check(
                &policy("principal in Group::\"a\" && [1, 2].contains(context.x)"),
                Language::Policies
            ),
            Ok(())
        );
    }

    #[test]
    fn nested_parentheses_are_bounded() {
        let text = policy(&format!("{}true{}", "(".repeat(300), ")".repeat(300)));
        let TooDeep { limit, offset } = check(&text, Language::Policies).unwrap_err();
        assert_eq!((limit, text.as_bytes()[offset]), (MAX_BRACKETS, b'('));
    }

    #[test]
    fn brackets_in_strings_and_comments_are_ignored() {
        let brackets = "(".repeat(1_000);
        let text = format!(
            "// {brackets}\n{}",
            policy(&format!("context.x == \"\\\"{brackets}\""))
        );
        assert_eq!(check(&text, Language::Policies), Ok(()));
    }

    #[test]
    fn carriage_return_ends_a_comment() {
        let after_comment = policy(&format!("//\r{}true{}", "(".repeat(300), ")".repeat(300)));
        assert!(check(&after_comment, Language::Policies).is_err());
        assert!(check(&format!("//\r{}", "Set<".repeat(300)), Language::Schema).is_err());
    }

    #[test]
    fn operator_chains_are_bounded_per_policy() {
        // Many short policies in one text are accepted.
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
    fn code_ends_before_blanks_and_comments() {
        let text = "permit (\"// a\") // none;\n\n  // \"b\"\n@id(\"x\")";
        let at = text.find('@').unwrap();
        let end = code_end(text, at, Language::Policies);
        assert_eq!(&text[..end], "permit (\"// a\")");
        assert_eq!(code_end(text, text.len(), Language::Policies), text.len());
        assert_eq!(code_end("// a\n", 5, Language::Schema), 0);
        assert_eq!(first_word("// a\n\"b\"", Language::Policies), None);
    }

    #[test]
    fn scope_follows_annotations() {
        for (text, scope) in [
            ("permit (principal);", "permit (principal);"),
            (
                "@id(\"forbid\")\n// permit\n@ permit\nforbid ();",
                "forbid ();",
            ),
        ] {
            let start = first_word(text, Language::Policies).unwrap().start;
            assert_eq!(&text[start..], scope);
        }
    }

    #[test]
    fn clauses_include_keyword_and_braces() {
        let text = r#"@when("unless {") permit(principal, action, resource)
when { {a: 1}.a == 1 } // when { no }
unless { context.x == "}" };"#;
        let clauses: Vec<_> = clauses(text)
            .into_iter()
            .map(|(kind, span)| (kind, &text[span]))
            .collect();
        assert_eq!(
            clauses,
            [
                (ClauseKind::When, "when { {a: 1}.a == 1 }"),
                (ClauseKind::Unless, "unless { context.x == \"}\" }")
            ],
        );
    }
}
