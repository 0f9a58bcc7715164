//! Reads first words of doc comments, identifiers and test names.

use std::collections::BTreeSet;

use crate::source::{below, is_at, is_word, production, sources};

/// First words of a doc comment that does not begin with a verb or noun.
const FIRST_WORDS: &[&str] = &[
    "What", "Who", "Whose", "Whoever", "How", "Whether", "Where", "Why", "Of", "Has", "So",
];
/// The maximum percentage of doc comments that begin with one of them.
const PERCENT: usize = 3;

/// Metaphors that no identifier may contain as a word.
const METAPHORS: &[&str] = &[
    "house", "houses", "door", "doors", "room", "rooms", "bell", "bells", "seat", "seats", "desk",
    "desks", "pen", "pens", "ear", "ears",
];

/// The maximum number of words in a test's name.
const TEST_NAME: usize = 8;

/// Returns the number of doc comments, and a line for each that begins with a word of the list.
fn docs() -> (usize, Vec<String>) {
    let mut count = 0;
    let mut found = Vec::new();
    for source in production() {
        for doc in &source.code().docs {
            count += 1;
            let first = doc.first.split(|c: char| !c.is_alphanumeric()).next();
            if first.is_some_and(|first| FIRST_WORDS.contains(&first)) {
                found.push(format!("{}:{}: {}", source.path, doc.line, doc.first));
            }
        }
    }
    (count, found)
}

/// Returns a line for each identifier of a file with a word of [`METAPHORS`].
fn metaphors() -> Vec<String> {
    let mut found = Vec::new();
    for source in production() {
        let tokens = &source.code().tokens;
        let words: BTreeSet<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        for word in words.into_iter().filter(|word| is_word(word)) {
            if words_of(word)
                .iter()
                .any(|word| METAPHORS.contains(&word.as_str()))
            {
                found.push(format!("{}: {word}", source.path));
            }
        }
    }
    found
}

/// Splits an identifier in snake or camel case into words in lower case.
fn words_of(identifier: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in identifier.chars() {
        if c == '_' || c.is_uppercase() && !words.last().unwrap().ends_with(char::is_uppercase) {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().unwrap().push(c);
        }
    }
    words.iter().map(|word| word.to_lowercase()).collect()
}

/// Returns the number of tests, and a line for each with a long name.
fn test_names() -> (usize, Vec<String>) {
    let mut count = 0;
    let mut found = Vec::new();
    let tests = below("tests");
    for source in sources().iter().chain(&tests) {
        let tokens = source.all_tokens();
        let mut is_test = false;
        for at in 0..tokens.len() {
            is_test |= is_at(&tokens, at, &["#", "[", "test", "]"])
                || is_at(&tokens, at, &["#", "[", "tokio", "::", "test"]);
            if is_test && tokens[at].text == "fn" {
                is_test = false;
                count += 1;
                let name = &tokens[at + 1].text;
                let words = name.split('_').count();
                if words > TEST_NAME {
                    found.push(format!("{}: {name}: {words} words", source.path));
                }
            }
        }
    }
    (count, found)
}

/// Describes all figures of this module, in some lines.
pub(crate) fn summary() -> String {
    let (docs, wrong) = docs();
    let share = 100.0 * wrong.len() as f64 / docs as f64;
    let (tests, long) = test_names();
    format!(
        "doc comments {docs}, of them {} ({share:.1} %) begin with {}\n\
         identifiers that are metaphors {}\n\
         test names {tests}, of them {} longer than {TEST_NAME} words",
        wrong.len(),
        FIRST_WORDS.join("/"),
        metaphors().len(),
        long.len()
    )
}

#[test]
fn doc_comments_begin_with_verb_or_noun() {
    let (count, found) = docs();
    let is_few = found.len() * 100 <= count * PERCENT;
    assert!(is_few, "{} of {count}:\n{}", found.len(), found.join("\n"));
}

#[test]
fn identifiers_are_no_metaphors() {
    let found = metaphors();
    assert!(found.is_empty(), "{}:\n{}", found.len(), found.join("\n"));
}

#[test]
fn test_names_have_few_words() {
    let (count, found) = test_names();
    assert!(
        found.is_empty(),
        "{} of {count}:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn identifiers_are_split_into_words() {
    assert_eq!(
        words_of("has_roomForHTTPDoor2"),
        ["has", "room", "for", "httpdoor2"]
    );
}
