//! Writes JSON text quickly, in lines that are safe to print on a terminal.
//!
//! serde is not used: a record is written for each decision, from text in the caller's bytes.

/// Writes `text` as a JSON string.
///
/// Escapes what JSON requires, and all characters that could mislead a reader: control characters,
/// line separators, and marks that change the direction of text.
pub(super) fn string(line: &mut Vec<u8>, text: &str) {
    line.push(b'"');
    let mut rest = text;
    while let Some(at) = first_suspect(rest.as_bytes()) {
        // INVARIANT: a suspect byte is the first byte of its character.
        let (plain, suspect) = rest.split_at_checked(at).unwrap_or_default();
        let character = suspect.chars().next().unwrap_or_default();
        line.extend_from_slice(plain.as_bytes());
        let (first, after) = suspect
            .split_at_checked(character.len_utf8())
            .unwrap_or_default();
        match character.is_ascii() || is_misleading(character) {
            true => escape(line, character),
            false => line.extend_from_slice(first.as_bytes()),
        }
        rest = after;
    }
    line.extend_from_slice(rest.as_bytes());
    line.push(b'"');
}

/// Returns the index of the first byte that may need escaping.
fn first_suspect(bytes: &[u8]) -> Option<usize> {
    let (words, _) = bytes.as_chunks();
    let skipped = words
        .iter()
        .position(|word| !are_plain_ascii(u64::from_le_bytes(*word)));
    let begin = 8 * skipped.unwrap_or(words.len());
    let rest = bytes.get(begin..).unwrap_or_default();
    let at = rest.iter().position(|byte| !is_plain(*byte))?;
    Some(begin + at)
}

/// Returns whether eight bytes are all plain ASCII. `false` means "not sure".
fn are_plain_ascii(word: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // A zero byte borrows, so that its high bit is set after the subtraction. The borrow may make
    // later bytes look like zero, too, which only costs a second check.
    let has_zero = |word: u64| word.wrapping_sub(LOW) & !word;
    let below_space = word.wrapping_sub(LOW * 0x20) & !word;
    let marked = below_space
        | has_zero(word ^ (LOW * 0x22))
        | has_zero(word ^ (LOW * 0x5c))
        | has_zero(word ^ (LOW * 0x7f))
        | word;
    marked & HIGH == 0
}

/// Returns whether a byte needs no further check. That holds for most of ASCII, and for all other
/// bytes except the first bytes of characters that may be misleading.
fn is_plain(byte: u8) -> bool {
    !matches!(
        byte,
        0..=0x1f | b'"' | b'\\' | 0x7f | 0xc2 | 0xd8 | 0xe2 | 0xef
    )
}

/// Returns whether a non-ASCII character is displayed as something other than itself.
fn is_misleading(character: char) -> bool {
    matches!(
        character,
        '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}'
    )
}

fn escape(line: &mut Vec<u8>, character: char) {
    match character {
        '"' => line.extend_from_slice(br#"\""#),
        '\\' => line.extend_from_slice(br"\\"),
        '\n' => line.extend_from_slice(br"\n"),
        '\r' => line.extend_from_slice(br"\r"),
        '\t' => line.extend_from_slice(br"\t"),
        // All other escaped characters have at most sixteen bits.
        other => {
            line.extend_from_slice(br"\u");
            let code = u32::from(other);
            for shift in [12, 8, 4, 0] {
                line.push(hex_digit(code >> shift));
            }
        }
    }
}

/// Returns the lowest four bits as a hex digit.
pub(super) fn hex_digit(bits: u32) -> u8 {
    let bits = (bits & 0xf) as u8;
    match bits {
        0..=9 => b'0' + bits,
        _ => b'a' + bits - 10,
    }
}

pub(super) fn number(line: &mut Vec<u8>, number: i64) {
    if number < 0 {
        line.push(b'-');
    }
    digits(line, number.unsigned_abs(), 1);
}

/// Writes `number` with at least `min_digits` digits.
pub(super) fn digits(line: &mut Vec<u8>, mut number: u64, min_digits: usize) {
    // A `u64` has at most 20 digits.
    let mut digits = [b'0'; 20];
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        if number == 0 && length >= min_digits {
            break;
        }
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        length += 1;
    }
    line.extend_from_slice(digits.get(digits.len() - length..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> String {
        let mut line = Vec::new();
        string(&mut line, text);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn string_round_trips() {
        let every: String = (0..=0x1_1000).filter_map(char::from_u32).collect();
        for text in ["", "plain", "\"\\\n\r\t\u{0}", "ä😀\u{2028}x", &every] {
            let json = written(text);
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn misleading_characters_are_escaped() {
        let every: String = (0..=0xffff).filter_map(char::from_u32).collect();
        let json = written(&every);
        let unescaped: Vec<char> = json
            .chars()
            .filter(|c| c.is_control() || is_misleading(*c))
            .collect();
        assert_eq!(unescaped, []);
        assert_eq!(written("a\u{7f}\u{1b}[31m"), r#""a\u007f\u001b[31m""#);
        assert_eq!(written("\u{202e}evil\u{85}"), r#""\u202eevil\u0085""#);
        assert_eq!(written("grün € 😀"), "\"grün € 😀\"");
    }

    #[test]
    fn suspects_are_found_at_every_position() {
        for suspect in [
            "\"", "\\", "\n", "\u{0}", "\u{1f}", "\u{7f}", "\u{85}", "\u{2028}",
        ] {
            for at in 0..40 {
                for fill in [' ', '!', '~', '[', ']', '#', 'ü', '😀'] {
                    let mut text: Vec<char> = std::iter::repeat_n(fill, 40).collect();
                    text.insert(at, suspect.chars().next().unwrap());
                    let text: String = text.into_iter().collect();
                    let json = written(&text);
                    assert!(
                        !json[1..json.len() - 1]
                            .replace("\\\\", "")
                            .replace("\\\"", "")
                            .contains(suspect)
                    );
                    assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
                }
            }
        }
        assert!(are_plain_ascii(u64::from_le_bytes(*b" !#az~[]")));
    }

    #[test]
    fn numbers_are_written_in_full() {
        for n in [0, 7, -1, 42, i64::MAX, i64::MIN] {
            let mut line = Vec::new();
            number(&mut line, n);
            assert_eq!(String::from_utf8(line).unwrap(), n.to_string());
        }
        let mut line = Vec::new();
        digits(&mut line, 42, 6);
        digits(&mut line, u64::MAX, 1);
        assert_eq!(line, b"00004218446744073709551615");
    }
}
