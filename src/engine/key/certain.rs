//! Recognises texts that are certainly good values of Cedar's extension types.
//!
//! Each knows less than Cedar does: `false` says nothing, and costs no more than a longer key.

/// `-12.3450`: at most 14 digits before the point, where Cedar has room for 15.
pub(super) fn is_decimal(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    text.split_once('.')
        .is_some_and(|(whole, part)| are_digits(whole, 1..=14) && are_digits(part, 1..=4))
}

/// `192.0.2.1`, without a prefix length.
pub(super) fn is_ip(text: &str) -> bool {
    let is_part = |part: &str| {
        are_digits(part, 1..=3)
            && (part == "0" || !part.starts_with('0'))
            && part.parse::<u8>().is_ok()
    };
    text.split('.').count() == 4 && text.split('.').all(is_part)
}

/// `2026-01-31T23:59:59Z` and `2026-01-31T23:59:59.999Z`, on days that every month has.
pub(super) fn is_datetime(text: &str) -> bool {
    // Digits stand for themselves, in a range of two at a time; 0 for any.
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let Some((seconds, rest)) = text.split_at_checked(SHAPE.len()) else {
        return false;
    };
    let has_shape = seconds
        .bytes()
        .zip(SHAPE)
        .all(|(byte, &shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            mark => byte == mark,
        });
    let within = |at: usize, least: u8, most: u8| {
        seconds
            .get(at..at + 2)
            .and_then(|digits| digits.parse().ok())
            .is_some_and(|number: u8| (least..=most).contains(&number))
    };
    let is_milliseconds = |rest: &str| {
        rest.strip_prefix('.')
            .and_then(|rest| rest.strip_suffix('Z'))
            .is_some_and(|digits| are_digits(digits, 3..=3))
    };
    has_shape
        && within(0, 19, 20)
        && within(5, 1, 12)
        && within(8, 1, 28)
        && within(11, 0, 23)
        && within(14, 0, 59)
        && within(17, 0, 59)
        && (rest == "Z" || is_milliseconds(rest))
}

/// `90m`: one number and its unit.
pub(super) fn is_duration(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let unit = text.get(digits.len()..).unwrap_or_default();
    are_digits(digits, 1..=9) && matches!(unit, "d" | "h" | "m" | "s" | "ms")
}

fn are_digits(text: &str, count: std::ops::RangeInclusive<usize>) -> bool {
    count.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdp::query::{Query, Record, Uid, Value};
    use crate::pdp::sources::Sources;
    use crate::pdp::{Settings, Snapshot, authorize, compile};
    use std::collections::BTreeMap;

    fn snapshot() -> Snapshot {
        compile(&Sources::default(), &Settings::default()).unwrap()
    }

    /// Whether Cedar takes `value` in a context.
    fn is_good(snapshot: &Snapshot, value: Value) -> bool {
        let context: Record = BTreeMap::from([("value".to_owned(), value)]).into();
        let query = Query {
            principal: Uid::new("User", "alice"),
            action: Uid::new("Action", "read"),
            resource: Uid::new("Doc", "1"),
            context,
            entities: Vec::new(),
            claimed: None,
            explain: false,
        };
        authorize(snapshot, &query).is_ok()
    }

    /// Every text of up to this many edits from good ones that the recogniser takes, Cedar takes.
    fn check(recognise: fn(&str) -> bool, value: fn(String) -> Value, good: &[&str]) {
        let snapshot = snapshot();
        assert!(!is_good(&snapshot, value("nonsense".to_owned())));
        for &text in good {
            assert!(recognise(text), "{text}");
            let mut near = vec![text.to_owned()];
            for at in 0..=text.len() {
                for other in "0123456789-.:TZhmsd+/ ".chars() {
                    let (before, after) = text.split_at(at);
                    near.push(format!("{before}{other}{after}"));
                    if let Some(after) = after.get(1..) {
                        near.push(format!("{before}{other}{after}"));
                        near.push(format!("{before}{after}"));
                    }
                }
            }
            for text in near {
                assert!(
                    !recognise(&text) || is_good(&snapshot, value(text.clone())),
                    "`{text}` is not certain"
                );
            }
        }
    }

    #[test]
    fn what_is_recognised_is_good_to_cedar() {
        check(
            is_decimal,
            Value::Decimal,
            &[
                "0.0",
                "-12.3450",
                "99999999999999.9999",
                "-99999999999999.9999",
            ],
        );
        check(
            is_ip,
            Value::Ip,
            &["0.0.0.0", "255.255.255.255", "192.0.2.1"],
        );
        check(
            is_datetime,
            Value::Datetime,
            &[
                "1900-01-01T00:00:00Z",
                "2099-12-28T23:59:59.999Z",
                "2024-02-28T12:30:00Z",
            ],
        );
        check(
            is_duration,
            Value::Duration,
            &["0ms", "90m", "999999999d", "12h", "7s"],
        );
    }

    #[test]
    fn what_is_less_than_certain_is_not_recognised() {
        for text in [
            "",
            ".",
            "1",
            "1.",
            ".1",
            "1.00000",
            "999999999999999.0",
            "+1.0",
            "1.0x",
        ] {
            assert!(!is_decimal(text), "{text}");
        }
        for text in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "256.0.0.1",
            "::1",
            "10.0.0.0/8",
        ] {
            assert!(!is_ip(text), "{text}");
        }
        for text in [
            "2024-02-30T00:00:00Z",
            "2024-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.1Z",
            "2024-01-01T00:00:00+0000",
            "2024-01-01",
            "2024-01-01T00:00:0ä",
        ] {
            assert!(!is_datetime(text), "{text}");
        }
        for text in ["", "d", "1", "1h30m", "-1h", "1x", "1dd"] {
            assert!(!is_duration(text), "{text}");
        }
    }
}
