//! `fmt` changes nothing but the layout, on generated policy files with comments in odd places.

use std::str::FromStr as _;

use cedar_pdp::pdp::analysis::format::{FormatError, format_policies};
use cedar_pdp::pdp::settings::Validation;
use cedar_policy::PolicySet;

use crate::STACK_BYTES;
use crate::rng::Rng;
use crate::scenario::Scenario;

const CASES: u64 = 60;

/// Returns `text` with other blanks and with comments between its tokens, and the comments.
fn disturbed(rng: &mut Rng, text: &str) -> (String, Vec<String>) {
    let (mut changed, mut comments) = (String::new(), Vec::new());
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            ' ' | '\n' if !in_string => {
                let blank = rng.pick(&[" ", "  ", "\n", "\n\n\n", "\t"]);
                changed.push_str(blank);
                if rng.chance(2) {
                    let comment = format!("// {} \"'", comments.len());
                    changed.push_str(&format!(" {comment}\n"));
                    comments.push(comment);
                }
            }
            c => changed.push(c),
        }
        in_string ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
    }
    (changed, comments)
}

fn policies(text: &str) -> serde_json::Value {
    PolicySet::from_str(text).unwrap().to_json().unwrap()
}

fn check(seed: u64) -> (usize, usize) {
    let mut rng = Rng::new(seed);
    let scenario = Scenario::draw(&mut rng, Validation::Off);
    let (mut formatted_files, mut left_alone) = (0, 0);
    for (path, text) in scenario.files() {
        let lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let text = lines.collect::<Vec<_>>().join("\n");
        // A string that looks like a comment would be counted as one here.
        if !path.ends_with(".cedar") || text.contains("//") {
            continue;
        }
        let (disturbed, comments) = disturbed(&mut rng, &text);
        match format_policies(&disturbed) {
            Ok(formatted) => {
                assert_eq!(
                    policies(&formatted),
                    policies(&text),
                    "seed {seed}: {disturbed}"
                );
                let kept: Vec<_> = formatted
                    .lines()
                    .filter_map(|line| line.split_once("// "))
                    .map(|(_, comment)| format!("// {comment}"))
                    .collect();
                assert_eq!(kept, comments, "seed {seed}: {disturbed}\nto\n{formatted}");
                assert_eq!(
                    format_policies(&formatted).unwrap(),
                    formatted,
                    "seed {seed}"
                );
                formatted_files += 1;
            }
            Err(FormatError::Lossy(_)) => left_alone += 1,
            Err(error) => panic!("seed {seed}: {error}\n{disturbed}"),
        }
    }
    (formatted_files, left_alone)
}

#[test]
fn formatting_keeps_policies_and_comments() {
    let run = || {
        (0..CASES)
            .map(check)
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let (formatted, left_alone) = thread.spawn(run).unwrap().join().unwrap();
    assert!(
        formatted > 3 * left_alone && formatted > 50,
        "{formatted}, {left_alone}"
    );
}
