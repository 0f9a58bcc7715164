//! Reads the source: files, tokens, doc comments, and which parts of a file are production code.
//!
//! Production code is everything except files called `tests.rs`, folders called `tests`, and items
//! under `#[cfg(test)]`. Nothing here judges the source.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, fs};

/// A source file: its path from the root of the crate, and its text.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    code: OnceLock<Code>,
}

/// A word, a `::`, a literal (as one `"`) or a single other character.
pub(crate) struct Token {
    pub(crate) text: String,
    /// Counted from 1.
    pub(crate) line: usize,
}

/// A block of doc comment lines without a gap.
pub(crate) struct Doc {
    /// The line that it begins on, counted from 1.
    pub(crate) line: usize,
    /// Its first line, without the slashes.
    pub(crate) first: String,
}

/// The production part of a file, or all of a test file.
pub(crate) struct Code {
    pub(crate) tokens: Vec<Token>,
    pub(crate) docs: Vec<Doc>,
    /// Number of lines, comments and blank lines included.
    pub(crate) lines: usize,
    /// Number of lines that hold a token.
    pub(crate) code_lines: usize,
}

/// Returns the root of the checkout to read: this one, or the parent of `CEDAR_PDP_SOURCES`.
///
/// The variable names the `src` folder of another checkout, so that both are counted alike.
pub(crate) fn root() -> PathBuf {
    match env::var_os("CEDAR_PDP_SOURCES") {
        Some(src) => {
            let src = fs::canonicalize(src).unwrap();
            assert!(src.ends_with("src"), "CEDAR_PDP_SOURCES is no `src` folder");
            src.parent().unwrap().to_owned()
        }
        None => Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(),
    }
}

/// Returns all files below `src`, tests included, sorted by path. They are read once.
pub(crate) fn sources() -> &'static [Source] {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    let found = SOURCES.get_or_init(|| below("src"));
    assert!(found.len() > 20, "the source is somewhere else");
    found
}

/// Returns the files below `src` that are part of the program, sorted by path.
pub(crate) fn production() -> impl Iterator<Item = &'static Source> {
    sources().iter().filter(|source| !source.is_test())
}

/// Returns all Rust files below `folder` of the checkout, sorted by path.
pub(crate) fn below(folder: &str) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut ahead = vec![root.join(folder)];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                ahead.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap();
                found.push(Source::new(path.to_str().unwrap(), text));
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

impl Source {
    pub(crate) fn new(path: &str, text: String) -> Self {
        Self {
            path: path.to_owned(),
            text,
            code: OnceLock::new(),
        }
    }

    /// Returns whether this is `place`, or lies below it.
    pub(crate) fn is_in(&self, place: &str) -> bool {
        self.path
            .strip_prefix(place)
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    /// Returns whether the whole file is test code.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Returns the module that this file is, from the root of the crate.
    pub(crate) fn module(&self) -> Vec<String> {
        let path = self.path.strip_prefix("src/").unwrap();
        let path = path.strip_suffix(".rs").unwrap();
        if matches!(path, "lib" | "main") {
            return Vec::new();
        }
        path.split('/').map(ToOwned::to_owned).collect()
    }

    /// Returns all tokens of the file, tests included.
    pub(crate) fn all_tokens(&self) -> Vec<Token> {
        let mut lexer = Lexer::new(&self.text);
        lexer.run();
        lexer.tokens
    }

    /// Returns the file's production code: without the items under `#[cfg(test)]`.
    pub(crate) fn code(&self) -> &Code {
        self.code.get_or_init(|| self.read_code())
    }

    fn read_code(&self) -> Code {
        let mut lexer = Lexer::new(&self.text);
        lexer.run();
        let mut tokens = lexer.tokens;
        let mut test_lines = BTreeSet::new();
        let mut at = 0;
        while at < tokens.len() {
            if let Some(end) = end_of_test_item(&tokens, at) {
                test_lines.extend(tokens[at].line..=tokens[end - 1].line);
                tokens.drain(at..end);
            } else {
                at += 1;
            }
        }
        lexer.docs.retain(|doc| !test_lines.contains(&doc.line));
        Code {
            tokens,
            docs: lexer.docs,
            lines: self.text.lines().count() - test_lines.len(),
            code_lines: lexer.code_lines.difference(&test_lines).count(),
        }
    }
}

/// Returns the index after the item at `at`, if that item begins with `#[cfg(test)]`.
fn end_of_test_item(tokens: &[Token], at: usize) -> Option<usize> {
    if !is_at(tokens, at, &["#", "[", "cfg", "(", "test", ")", "]"]) {
        return None;
    }
    let mut at = at + 7;
    while is_at(tokens, at, &["#", "["]) {
        at = end_of_group(tokens, at + 1);
    }
    let keywords = tokens[at..].iter().take_while(|token| is_word(&token.text));
    let keyword = keywords
        .map(|token| token.text.as_str())
        .find(|word| ["fn", "use", "impl", "mod", "struct", "const"].contains(word));
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            ";" => return Some(at + 1),
            "," if keyword.is_none() => return Some(at + 1),
            "{" if keyword.is_some_and(|keyword| keyword != "use") => {
                return Some(end_of_group(tokens, at));
            }
            "{" | "(" | "[" => at = end_of_group(tokens, at),
            "}" | ")" | "]" => return Some(at),
            _ => at += 1,
        }
    }
    Some(at)
}

/// Returns whether the tokens from `at` on are `expected`.
pub(crate) fn is_at(tokens: &[Token], at: usize, expected: &[&str]) -> bool {
    tokens.get(at..at + expected.len()).is_some_and(|found| {
        found
            .iter()
            .zip(expected)
            .all(|(token, text)| token.text == *text)
    })
}

/// Returns the index after the bracket that closes the one at `at`.
pub(crate) fn end_of_group(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth -= 1;
                if depth == 0 {
                    return index + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Returns whether `token` is an identifier, a keyword or a number.
pub(crate) fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphanumeric() || first == '_')
}

struct Lexer {
    text: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
    docs: Vec<Doc>,
    /// The last line of the last doc comment, which the next line may continue.
    last_doc: usize,
    code_lines: BTreeSet<usize>,
}

impl Lexer {
    fn new(text: &str) -> Self {
        Self {
            text: text.chars().collect(),
            at: 0,
            line: 1,
            tokens: Vec::new(),
            docs: Vec::new(),
            last_doc: 0,
            code_lines: BTreeSet::new(),
        }
    }

    fn run(&mut self) {
        while let Some(next) = self.peek(0) {
            if self.starts("//") {
                self.comment();
            } else if self.starts("/*") {
                while self.at < self.text.len() && !self.starts("*/") {
                    self.advance();
                }
                self.skip(2);
            } else if let Some(hashes) = self.raw_string() {
                self.literal(&format!("\"{}", "#".repeat(hashes)), hashes + 1, false);
            } else if next == '"' {
                self.literal("\"", 0, true);
            } else if self.starts("'\\") || self.peek(2) == Some('\'') && next == '\'' {
                self.literal("'", 0, true);
            } else if self.starts("::") {
                self.push("::");
                self.skip(2);
            } else if next.is_alphanumeric() || next == '_' {
                self.word();
            } else {
                if !next.is_whitespace() {
                    self.push(&next.to_string());
                }
                self.advance();
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn starts(&self, what: &str) -> bool {
        what.chars()
            .enumerate()
            .all(|(n, c)| self.peek(n) == Some(c))
    }

    fn advance(&mut self) {
        if self.peek(0) == Some('\n') {
            self.line += 1;
        }
        self.at += 1;
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.advance();
        }
    }

    fn push(&mut self, text: &str) {
        self.code_lines.insert(self.line);
        self.tokens.push(Token {
            text: text.to_owned(),
            line: self.line,
        });
    }

    fn word(&mut self) {
        let begin = self.at;
        while self
            .peek(0)
            .is_some_and(|c| c.is_alphanumeric() || c == '_')
        {
            self.advance();
        }
        let word: String = self.text[begin..self.at].iter().collect();
        self.push(&word);
    }

    fn comment(&mut self) {
        let begin = self.at;
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.advance();
        }
        let text: String = self.text[begin..self.at].iter().collect();
        let is_outer = text.starts_with("///") && !text.starts_with("////");
        if is_outer || text.starts_with("//!") {
            if self.last_doc == 0 || self.last_doc + 1 != self.line {
                self.docs.push(Doc {
                    line: self.line,
                    first: text[3..].trim().to_owned(),
                });
            }
            self.last_doc = self.line;
        }
    }

    /// Returns the number of `#` of the raw string that begins here.
    fn raw_string(&self) -> Option<usize> {
        if self.peek(0) != Some('r') {
            return None;
        }
        let hashes = self.text[self.at + 1..].iter();
        let hashes = hashes.take_while(|c| **c == '#').count();
        (self.peek(1 + hashes) == Some('"')).then_some(hashes)
    }

    /// Passes over a literal that begins `before` characters before its first quote.
    fn literal(&mut self, end: &str, before: usize, has_escapes: bool) {
        self.push("\"");
        self.skip(before + 1);
        while self.at < self.text.len() && !self.starts(end) {
            self.code_lines.insert(self.line);
            let is_escape = has_escapes && self.peek(0) == Some('\\');
            self.skip(if is_escape { 2 } else { 1 });
        }
        self.code_lines.insert(self.line);
        self.skip(end.len());
    }
}
