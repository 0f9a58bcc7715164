//! Recognises texts that are definitely valid values of Cedar's extension types.
//!
//! INVARIANT: Cedar accepts every text for which a function here returns `true`. `false` means
//! "not sure", and costs a longer cache key.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Returns whether `text` is definitely a valid decimal, such as `-12.3450`.
///
/// Allows 14 digits before the point, while Cedar allows some numbers of 15.
pub(super) fn is_decimal(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    text.split_once('.')
        .is_some_and(|(whole, part)| are_digits(whole, 1..=14) && are_digits(part, 1..=4))
}

/// Returns whether `text` is a valid `ip`: `192.0.2.1`, `2001:db8::1`, with or without a prefix
/// length.
pub(super) fn is_ip(text: &str) -> bool {
    const LONGEST: &str = "0000:0000:0000:0000:0000:0000:0000:0000/000";
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let bits = if address.parse::<Ipv4Addr>().is_ok() {
        32
    } else if !address.contains('.') && address.parse::<Ipv6Addr>().is_ok() {
        128
    } else {
        return false;
    };
    let is_prefix = |prefix: &str| {
        are_digits(prefix, 1..=3)
            && (prefix == "0" || !prefix.starts_with('0'))
            && prefix.parse().is_ok_and(|length: u8| length <= bits)
    };
    text.len() <= LONGEST.len() && prefix.is_none_or(is_prefix)
}

/// Returns whether `text` is a valid `datetime`: `2026-01-31`, `2026-01-31T23:59:59Z`,
/// `2026-01-31T23:59:59.999Z`, and the last two with an offset such as `+0200` for `Z`.
pub(super) fn is_datetime(text: &str) -> bool {
    let Some((date, rest)) = text.split_at_checked("0000-00-00".len()) else {
        return false;
    };
    is_date(date) && (rest.is_empty() || is_time(rest))
}

fn is_date(text: &str) -> bool {
    has_shape(text, b"0000-00-00")
        && number(text, 0, 4)
            .zip(number(text, 5, 2))
            .zip(number(text, 8, 2))
            .is_some_and(|((year, month), day)| (1..=days_in_month(year, month)).contains(&day))
}

/// Returns the days of the month in the Gregorian calendar, 0 for an invalid month.
fn days_in_month(year: u16, month: u16) -> u16 {
    let divides = |years: u16| year.is_multiple_of(years);
    let is_leap = divides(4) && (!divides(100) || divides(400));
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => 0,
    }
}

/// Returns whether `text` is a time such as `T23:59:59`, with milliseconds or not, and a zone.
fn is_time(text: &str) -> bool {
    let Some((time, rest)) = text.split_at_checked("T00:00:00".len()) else {
        return false;
    };
    let zone = match rest.strip_prefix('.') {
        None => Some(rest),
        Some(rest) => rest
            .split_at_checked(3)
            .filter(|(milliseconds, _)| are_digits(milliseconds, 3..=3))
            .map(|(_, zone)| zone),
    };
    has_shape(time, b"T00:00:00")
        && is_below(time, 1, 24)
        && is_below(time, 4, 60)
        && is_below(time, 7, 60)
        && zone.is_some_and(|zone| zone == "Z" || is_offset(zone))
}

/// Returns whether `text` is an offset such as `+0200`.
fn is_offset(text: &str) -> bool {
    let hours_and_minutes = text.strip_prefix('+').or_else(|| text.strip_prefix('-'));
    hours_and_minutes.is_some_and(|text| {
        has_shape(text, b"0000") && is_below(text, 0, 24) && is_below(text, 2, 60)
    })
}

/// Returns whether `text` equals `shape`, where each `0` of the shape stands for any digit.
fn has_shape(text: &str, shape: &[u8]) -> bool {
    let matches = |(byte, shape): (u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        mark => byte == *mark,
    };
    text.len() == shape.len() && text.bytes().zip(shape).all(matches)
}

fn number(text: &str, at: usize, digits: usize) -> Option<u16> {
    text.get(at..at + digits)?.parse().ok()
}

/// Returns whether the two digits at this offset are less than `limit`.
fn is_below(text: &str, at: usize, limit: u16) -> bool {
    number(text, at, 2).is_some_and(|number| number < limit)
}

/// Returns whether `text` is definitely a valid duration, such as `90m` or `-1d12h`.
///
/// Units go from the longest to the shortest. Numbers have at most 9 digits, while Cedar allows
/// more.
pub(super) fn is_duration(text: &str) -> bool {
    const UNITS: [&str; 5] = ["d", "h", "m", "s", "ms"];
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    let mut units: &[&str] = &UNITS;
    let mut any = false;
    while !rest.is_empty() {
        let from_unit = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let after = from_unit.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let digits = rest.get(..rest.len() - from_unit.len()).unwrap_or_default();
        let unit = from_unit.strip_suffix(after).unwrap_or_default();
        let Some(at) = units.iter().position(|one| *one == unit) else {
            return false;
        };
        if !are_digits(digits, 1..=9) {
            return false;
        }
        units = units.get(at + 1..).unwrap_or_default();
        rest = after;
        any = true;
    }
    any
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

    /// Returns whether Cedar accepts `value` in a context.
    fn cedar_accepts(snapshot: &Snapshot, value: Value) -> bool {
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

    /// Checks that Cedar accepts the `good` texts, and each one edit away that is recognised.
    fn check(recognise: fn(&str) -> bool, value: fn(String) -> Value, good: &[&str]) {
        let snapshot = snapshot();
        assert!(!cedar_accepts(&snapshot, value("nonsense".to_owned())));
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
                    !recognise(&text) || cedar_accepts(&snapshot, value(text.clone())),
                    "Cedar rejects `{text}`"
                );
            }
        }
    }

    #[test]
    fn cedar_accepts_recognised_texts() {
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
            &[
                "0.0.0.0",
                "255.255.255.255",
                "192.0.2.1/31",
                "::",
                "2001:db8::ff/127",
                "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
            ],
        );
        check(
            is_datetime,
            Value::Datetime,
            &[
                "0000-01-01",
                "1900-01-31T00:00:00Z",
                "2024-02-29T12:30:00Z",
                "9999-12-31T23:59:59.999-2359",
                "2024-04-30T12:30:00+0130",
            ],
        );
        check(
            is_duration,
            Value::Duration,
            &[
                "0ms",
                "90m",
                "-999999999d",
                "12h",
                "7s",
                "1d2h3m4s5ms",
                "1m1ms",
            ],
        );
    }

    /// A generator of texts that are nearly valid, from a seed.
    struct Generator(u64);

    impl Generator {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.0 >> 33) % limit
        }

        fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
            of[usize::try_from(self.below(of.len() as u64)).unwrap()]
        }

        fn datetime(&mut self) -> String {
            let year = match self.below(3) {
                0 => self.below(10_000),
                1 => 100 * self.below(100),
                _ => 4 * self.below(2_500),
            };
            let (month, day) = (self.below(14), self.below(33));
            let date = format!("{year:04}-{month:02}-{day:02}");
            if self.below(4) == 0 {
                return date;
            }
            let time = [self.below(25), self.below(62), self.below(62)];
            let time = time.map(|number| format!("{number:02}")).join(":");
            let part = self.pick(&["", "", ".000", ".999", ".99", "."]);
            let zone = match self.below(2) {
                0 => self.pick(&["Z", "Z", "z", ""]).to_owned(),
                _ => {
                    let sign = self.pick(&["+", "-", "-", " "]);
                    format!("{sign}{:02}{:02}", self.below(26), self.below(62))
                }
            };
            format!("{date}T{time}{part}{zone}")
        }

        fn ip(&mut self) -> String {
            let address = match self.below(2) {
                0 => [(); 4].map(|()| self.below(280).to_string()).join("."),
                _ => {
                    let parts = 1 + self.below(9);
                    let part = |_| match self.below(4) {
                        0 => String::new(),
                        _ => format!("{:x}", self.below(0x1_1000)),
                    };
                    (0..parts).map(part).collect::<Vec<_>>().join(":")
                }
            };
            match self.below(2) {
                0 => address,
                _ => format!("{address}/{}", self.below(140)),
            }
        }

        fn duration(&mut self) -> String {
            let mut text = self.pick(&["", "", "-", "+"]).to_owned();
            for unit in ["d", "h", "m", "s", "ms", "s"] {
                if self.below(3) == 0 {
                    let digits = self.below(12);
                    text.extend((0..digits).map(|_| self.pick(&["0", "5", "9"])));
                    text.push_str(unit);
                }
            }
            text
        }

        fn decimal(&mut self) -> String {
            let mut digits = |most: u64| -> String {
                let count = self.below(most);
                (0..count).map(|_| self.pick(&["0", "5", "9"])).collect()
            };
            let (whole, part) = (digits(18), digits(7));
            format!("{}{whole}.{part}", self.pick(&["", "", "-", "+"]))
        }
    }

    #[test]
    fn cedar_accepts_recognised_random_texts() {
        // For `datetime` and `ip` the reverse holds, too: all that Cedar accepts is recognised.
        type Kind = (
            fn(&mut Generator) -> String,
            fn(&str) -> bool,
            fn(String) -> Value,
            bool,
        );
        let snapshot = snapshot();
        let kinds: [Kind; 4] = [
            (Generator::datetime, is_datetime, Value::Datetime, true),
            (Generator::ip, is_ip, Value::Ip, true),
            (Generator::duration, is_duration, Value::Duration, false),
            (Generator::decimal, is_decimal, Value::Decimal, false),
        ];
        for (draw, recognise, value, is_exact) in kinds {
            let mut generator = Generator(0xced4);
            let mut count = 0;
            for _ in 0..10_000 {
                let text = draw(&mut generator);
                let (recognised, is_valid) = (
                    recognise(&text),
                    cedar_accepts(&snapshot, value(text.clone())),
                );
                assert!(!recognised || is_valid, "Cedar rejects `{text}`");
                assert!(
                    recognised || !is_valid || !is_exact,
                    "Cedar accepts `{text}`"
                );
                count += usize::from(recognised);
            }
            assert!(count > 500, "{count}");
        }
    }

    #[test]
    fn doubtful_texts_are_not_recognised() {
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
            "::ffff:192.0.2.1",
            "fe80::1%1",
            "1::2::3",
            "10.0.0.0/",
            "10.0.0.0/08",
            "10.0.0.0/33",
            "::/129",
            "::/0/0",
        ] {
            assert!(!is_ip(text), "{text}");
        }
        for text in [
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29",
            "2024-04-31",
            "2024-01-00",
            "2024-00-01T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.1Z",
            "2024-01-01T00:00:00.0000Z",
            "2024-01-01T00:00:00+2400",
            "2024-01-01T00:00:00+0060",
            "2024-01-01T00:00:00+000",
            "2024-01-01T00:00:00ZZ",
            "2024-01-01Z",
            "12024-01-01",
            "2024-01-01T00:00:0ä",
        ] {
            assert!(!is_datetime(text), "{text}");
        }
        for text in [
            "",
            "-",
            "d",
            "1",
            "+1h",
            "--1h",
            "1x",
            "1dd",
            "1h1h",
            "1m1h",
            "1h1",
            "1ms1s",
            "1234567890s",
        ] {
            assert!(!is_duration(text), "{text}");
        }
    }
}
