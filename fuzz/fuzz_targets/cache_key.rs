//! Checks that two requests have the same cache key exactly if they are equal, in any order of map
//! entries.
//!
//! The input is read as choices: a request, the context attributes that policies read, the order of
//! a message's map entries, and a second request. The second is mostly made by small changes of the
//! first, some of which change nothing relevant. Equality is implemented here anew, from the
//! promises of `engine::key` and without its code.
//!
//! With libFuzzer, on a stable toolchain and without sanitizers (there is no unsafe code to check):
//!
//! ```sh
//! cargo install cargo-fuzz
//! cargo fuzz run --sanitizer none cache_key -- -runs=10000000 -max_len=512
//! ```
//!
//! Compiling cedar-pdp with coverage takes long. Without coverage, the same requests are drawn from
//! a seed, here 1, this many times:
//!
//! ```sh
//! cargo run --release --manifest-path fuzz/Cargo.toml -- 1 10000000
//! ```

#![cfg_attr(fuzzing, no_main)]

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_pdp::engine::key::encode;
use cedar_pdp::pdp::query_ref::{EntityRef, Fields, QueryRef, ValueRef};
use cedar_pdp::pdp::query::{Claimed, Query, Record, RequestEntity, StoredPrincipal, Uid, Value};
use cedar_pdp::pdp::ContextReads;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

#[cfg(not(fuzzing))]
fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let (Some(Ok(seed)), Some(Ok(count))) = (numbers.next(), numbers.next()) else {
        eprintln!("usage: cache_key SEED COUNT");
        std::process::exit(2);
    };
    let mut state = seed;
    let mut input = Vec::new();
    let mut equal = 0;
    for _ in 0..count {
        input.clear();
        // Small bytes choose from lists, large ones make texts.
        let mask = [u64::MAX, 0x1f1f_1f1f_1f1f_1f1f][(number(&mut state) % 2) as usize];
        for _ in 0..4 + number(&mut state) % 28 {
            input.extend_from_slice(&(number(&mut state) & mask).to_le_bytes());
        }
        equal += u64::from(check(&input));
    }
    println!("{count} pairs of requests, {equal} of them equal: each as its keys say");
}

/// A SplitMix64 generator.
#[cfg(not(fuzzing))]
fn number(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Compares the two requests that `input` makes. Returns whether they are equal.
fn check(input: &[u8]) -> bool {
    let mut choices = Choices { input };
    let reads = choices.reads();
    let order = Order(usize::from(choices.byte()));
    let one = choices.query();
    let other = choices.like(&one);
    let have_one_key = key(&reads, QueryRef::from(&one)) == key(&reads, order.of_query(&other));
    assert_eq!(
        have_one_key,
        equal(&reads, &one, &other),
        "{reads:?}\n{one:#?}\n{other:#?}"
    );
    have_one_key
}

fn key(reads: &ContextReads, query: QueryRef<'_>) -> Vec<u8> {
    // A key is appended to a buffer, and does not depend on its content.
    let behind = usize::from(query.explain);
    let mut out = vec![7; behind];
    encode(&mut out, reads, &query);
    out.split_off(behind)
}

/// The order of map entries in a message. A [`Query`] sorts them by name.
#[derive(Clone, Copy)]
struct Order(usize);

impl Order {
    /// Reads `query` from a message in this order.
    fn of_query(self, query: &Query) -> QueryRef<'_> {
        let mut query = QueryRef::from(query);
        query.context = self.of_fields(&query.context);
        for EntityRef {
            attributes, tags, ..
        } in &mut query.entities
        {
            *attributes = self.of_fields(attributes);
            *tags = self.of_fields(tags);
        }
        query
    }

    fn of_fields<'a>(self, fields: &Fields<'a>) -> Fields<'a> {
        let mut entries = fields.to_vec();
        for (_, value) in &mut entries {
            self.settle(value);
        }
        if !entries.is_empty() {
            let first = self.0 % entries.len();
            entries.rotate_left(first);
        }
        if self.0 >= 128 {
            entries.reverse();
        }
        Fields::from_entries(entries).expect("names are unique")
    }

    fn settle(self, value: &mut ValueRef<'_>) {
        match value {
            ValueRef::Record(fields) => *fields = self.of_fields(fields),
            ValueRef::Set(members) => members.iter_mut().for_each(|member| self.settle(member)),
            _ => {}
        }
    }
}

// The equality.

fn equal(reads: &ContextReads, one: &Query, other: &Query) -> bool {
    let is_read = |name: &str| match reads {
        ContextReads::All => true,
        ContextReads::Named(names) => names.iter().any(|read| read == name),
    };
    one.explain == other.explain
        && one.principal == other.principal
        && one.action == other.action
        && one.resource == other.resource
        && equal_fields(&one.context, &other.context, |name, a, b| {
            equal_values(a, b) || !one.explain && !is_read(name) && equally_valid(a, b)
        })
        && one.entities.len() == other.entities.len()
        && one.entities.iter().zip(&other.entities).all(|(a, b)| {
            a.uid == b.uid
                && a.parents == b.parents
                && equal_fields(&a.attributes, &b.attributes, |_, a, b| equal_values(a, b))
                && equal_fields(&a.tags, &b.tags, |_, a, b| equal_values(a, b))
        })
        && match (&one.claimed, &other.claimed) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.stored == b.stored
                    && a.parents == b.parents
                    && equal_fields(&a.attributes, &b.attributes, |_, a, b| equal_values(a, b))
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
}

fn equal_fields(
    one: &Record,
    other: &Record,
    equal: impl Fn(&str, &Value, &Value) -> bool,
) -> bool {
    let other = other.iter().map(|(name, value)| (name.as_str(), value));
    let other: BTreeMap<&str, &Value> = other.collect();
    one.len() == other.len()
        && one.iter().all(|(name, value)| {
            other
                .get(name.as_str())
                .is_some_and(|other| equal(name, value, other))
        })
}

fn equal_values(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Set(a), Value::Set(b)) => {
            if holds_extension(one) || holds_extension(other) {
                // Cedar keeps the first of two equal values that are written differently.
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_values(a, b))
            } else {
                let within = |a: &[Value], b: &[Value]| {
                    a.iter().all(|a| b.iter().any(|b| equal_values(a, b)))
                };
                within(a, b) && within(b, a)
            }
        }
        (Value::Record(a), Value::Record(b)) => equal_fields(a, b, |_, a, b| equal_values(a, b)),
        _ => one == other,
    }
}

fn holds_extension(value: &Value) -> bool {
    match value {
        Value::Set(members) => members.iter().any(holds_extension),
        Value::Record(fields) => fields.iter().any(|(_, field)| holds_extension(field)),
        Value::Bool(_) | Value::Long(_) | Value::String(_) | Value::Entity(_) => false,
        Value::Decimal(_) | Value::Ip(_) | Value::Datetime(_) | Value::Duration(_) => true,
    }
}

/// Returns whether two values that no policy reads are valid under the same schemas, as far as
/// their kinds and texts show.
fn equally_valid(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Bool(_), Value::Bool(_))
        | (Value::Long(_), Value::Long(_))
        | (Value::String(_), Value::String(_)) => true,
        (Value::Decimal(a), Value::Decimal(b)) => [a, b].iter().all(|text| is_decimal(text)),
        (Value::Ip(a), Value::Ip(b)) => [a, b].iter().all(|text| is_ip(text)),
        (Value::Datetime(a), Value::Datetime(b)) => [a, b].iter().all(|text| is_datetime(text)),
        (Value::Duration(a), Value::Duration(b)) => [a, b].iter().all(|text| is_duration(text)),
        _ => false,
    }
}

/// Returns each character's class: `9` for a digit, `a` for a small letter, itself for others.
fn classes(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '0'..='9' => '9',
            'a'..='z' => 'a',
            other => other,
        })
        .collect()
}

fn is_decimal(text: &str) -> bool {
    let classes = classes(text);
    (1..=14).any(|whole| {
        (1..=4).any(|part| {
            let plain = format!("{}.{}", "9".repeat(whole), "9".repeat(part));
            classes == plain || classes == format!("-{plain}")
        })
    })
}

fn is_ip(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "0"));
    let address: Result<std::net::IpAddr, _> = address.parse();
    let most = match address {
        Ok(std::net::IpAddr::V4(_)) => 32,
        // Cedar does not accept an embedded IPv4 address.
        Ok(std::net::IpAddr::V6(_)) if !text.contains('.') => 128,
        Ok(std::net::IpAddr::V6(_)) | Err(_) => return false,
    };
    // Cedar rejects more than eight groups and a prefix.
    text.len() <= 43 && (0..=most).any(|bits: u8| bits.to_string() == prefix)
}

fn is_datetime(text: &str) -> bool {
    let classes = classes(text);
    let date = "9999-99-99";
    let mut shapes = vec![date.to_owned()];
    for seconds in ["T99:99:99", "T99:99:99.999"] {
        for zone in ["Z", "+9999", "-9999"] {
            shapes.push(format!("{date}{seconds}{zone}"));
        }
    }
    if !shapes.contains(&classes) {
        return false;
    }
    let number = |part: std::ops::Range<usize>| text[part].parse::<usize>().expect("digits");
    let year = number(0..4);
    let february = match (year % 4, year % 100, year % 400) {
        (0, 1.., _) | (_, _, 0) => 29,
        _ => 28,
    };
    let days = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let of_month = number(5..7)
        .checked_sub(1)
        .and_then(|month| days.get(month));
    let is_day = of_month.is_some_and(|days| (1..=*days).contains(&number(8..10)));
    let is_time =
        text.len() == 10 || number(11..13) < 24 && number(14..16) < 60 && number(17..19) < 60;
    let end = text.len();
    let is_zone = text.len() == 10
        || text.ends_with('Z')
        || number(end - 4..end - 2) < 24 && number(end - 2..end) < 60;
    is_day && is_time && is_zone
}

fn is_duration(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    // Pairs of a number and a unit, with the units in order and each at most once.
    let mut left = text;
    for unit in ["d", "h", "m", "s", "ms"] {
        let digits = left.bytes().take_while(u8::is_ascii_digit).count();
        let letters = left[digits..]
            .bytes()
            .take_while(u8::is_ascii_lowercase)
            .count();
        if (1..=9).contains(&digits) && &left[digits..digits + letters] == unit {
            left = &left[digits + letters..];
        }
    }
    !text.is_empty() && left.is_empty()
}

// The requests.

/// The input as a sequence of choices. At its end every choice is the first option.
struct Choices<'a> {
    input: &'a [u8],
}

/// Texts that could be confused: concatenations, other kinds, or nearly valid values.
const TEXTS: &[&str] = &[
    "",
    "a",
    "b",
    "ab",
    "ba",
    "aa",
    "n",
    "1",
    "10",
    "\0",
    "\u{1}",
    "é",
    "true",
    "1.0",
    "1.00",
    "-1.5",
    "1.",
    ".5",
    "12345678901234.1234",
    "123456789012345.1",
    "1.23456",
    "+1.0",
    "10.0.0.1",
    "10.0.0.2",
    "010.0.0.1",
    "10.0.0.1/8",
    "::1",
    "2001:db8::1/32",
    "10.0.0.1/08",
    "10.0.0.1/33",
    "1.2.3",
    "256.1.1.1",
    "2024-10-15T11:35:00Z",
    "2026-01-01T00:00:00.000Z",
    "2024-02-30T00:00:00Z",
    "2024-10-15",
    "2024-10-15T24:00:00Z",
    "2023-10-31",
    "2023-02-29",
    "2024-10-15T11:35:00.000+0200",
    "2024-10-15T11:35:00-2400",
    "2124-10-15T11:35:00Z",
    "1h",
    "2h",
    "60m",
    "5ms",
    "1234567890s",
    "1d2h",
    "2h1d",
    "1h5ms",
    "-1d",
    "h",
    "1x",
];

const NAMES: &[&str] = &["a", "b", "ab", "", "c", "n", "a\0"];

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        match self.input.split_first() {
            Some((first, rest)) => {
                self.input = rest;
                *first
            }
            None => 0,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    fn bool(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn text(&mut self) -> String {
        let choice = usize::from(self.byte());
        if let Some(text) = TEXTS.get(choice) {
            return (*text).to_owned();
        }
        // Arbitrary bytes, sometimes longer than a one-byte length.
        let length = match choice {
            250.. => 120 + self.below(20),
            _ => choice % 6,
        };
        (0..length).map(|_| char::from(self.byte())).collect()
    }

    fn uid(&mut self) -> Uid {
        Uid::new(self.text(), self.text())
    }

    fn reads(&mut self) -> ContextReads {
        match self.byte() {
            0..64 => ContextReads::All,
            mask => {
                let mut names: Vec<String> = NAMES
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| mask >> at & 1 == 1)
                    .map(|(_, name)| (*name).to_owned())
                    .collect();
                names.sort();
                ContextReads::Named(names)
            }
        }
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 8 } else { 12 }) {
            0 => Value::Bool(self.bool()),
            1 => Value::Long(match self.byte() {
                0..200 => i64::from(self.byte().cast_signed()),
                _ => i64::from_le_bytes(std::array::from_fn(|_| self.byte())),
            }),
            2 => Value::String(self.text()),
            3 => Value::Entity(self.uid()),
            4 => Value::Decimal(self.text()),
            5 => Value::Ip(self.text()),
            6 => Value::Datetime(self.text()),
            7 => Value::Duration(self.text()),
            8..=10 => Value::Set((0..self.below(5)).map(|_| self.value(depth - 1)).collect()),
            _ => Value::Record(self.record(depth - 1)),
        }
    }

    fn name(&mut self) -> String {
        match self.below(NAMES.len() + 1) {
            0 => self.text(),
            at => NAMES[at - 1].to_owned(),
        }
    }

    fn record(&mut self, depth: usize) -> Record {
        let fields: BTreeMap<String, Value> = (0..self.below(5))
            .map(|_| (self.name(), self.value(depth)))
            .collect();
        fields.into()
    }

    fn entity(&mut self) -> RequestEntity {
        RequestEntity {
            uid: self.uid(),
            attributes: self.record(2),
            parents: (0..self.below(3)).map(|_| self.uid()).collect(),
            tags: self.record(1),
        }
    }

    fn claimed(&mut self) -> Claimed {
        use StoredPrincipal::{Join, Replace, Require};
        Claimed {
            attributes: self.record(2),
            parents: (0..self.below(3)).map(|_| self.uid()).collect(),
            stored: [Join, Replace, Require][self.below(3)],
        }
    }

    fn query(&mut self) -> Query {
        Query {
            principal: self.uid(),
            action: self.uid(),
            resource: self.uid(),
            context: self.record(3),
            entities: (0..self.below(4)).map(|_| self.entity()).collect(),
            claimed: (self.below(3) == 2).then(|| Arc::new(self.claimed())),
            explain: self.below(4) == 3,
        }
    }

    /// Draws a variant of `one`, or a different request.
    fn like(&mut self, one: &Query) -> Query {
        if self.below(16) == 15 {
            return self.query();
        }
        let mut other = one.clone();
        for _ in 0..self.below(4) {
            self.change(&mut other);
        }
        other
    }

    fn change(&mut self, query: &mut Query) {
        let entities = query.entities.len();
        match self.below(14) {
            0..=4 => query.context = self.changed_record(&query.context),
            5 => self.change_uid(&mut query.principal),
            6 => {
                // From one text to the next.
                let moved = query.principal.id.pop();
                query.action.type_name.extend(moved);
            }
            7 => std::mem::swap(&mut query.principal, &mut query.resource),
            8 => query.explain = !query.explain,
            9 if entities > 0 => {
                let at = self.below(entities);
                let entity = &mut query.entities[at];
                entity.attributes = self.changed_record(&entity.attributes);
            }
            10 if entities > 0 => {
                let at = self.below(entities);
                let entity = &mut query.entities[at];
                match self.below(4) {
                    0 => entity.tags = self.changed_record(&entity.tags),
                    1 => std::mem::swap(&mut entity.tags, &mut entity.attributes),
                    2 => entity.parents.reverse(),
                    _ => entity.parents.push(Uid::new("a", "b")),
                }
            }
            11 if entities > 1 => query.entities.reverse(),
            12 => match &query.claimed {
                None => query.claimed = Some(Arc::new(self.claimed())),
                Some(_) => query.claimed = None,
            },
            13 if query.claimed.is_some() => {
                let mut claimed = query.claimed.as_deref().cloned().unwrap();
                match self.below(4) {
                    0 => claimed.attributes = self.changed_record(&claimed.attributes),
                    1 => claimed.parents.reverse(),
                    2 => claimed.parents.push(Uid::new("a", "b")),
                    _ => claimed.stored = self.claimed().stored,
                }
                query.claimed = Some(Arc::new(claimed));
            }
            _ => {
                if query.entities.pop().is_none() {
                    let entity = self.entity();
                    query.entities.push(entity);
                }
            }
        }
    }

    fn change_uid(&mut self, uid: &mut Uid) {
        match self.below(3) {
            0 => uid.id = self.text(),
            1 => std::mem::swap(&mut uid.id, &mut uid.type_name),
            _ => uid.type_name.extend(uid.id.pop()),
        }
    }

    /// Adds, removes, renames or changes a field; or inserts fields in another order.
    fn changed_record(&mut self, record: &Record) -> Record {
        let mut fields: Vec<(String, Value)> = record
            .iter()
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect();
        fields.reverse();
        let count = fields.len();
        match self.below(8) {
            0 => fields.push((self.name(), self.value(1))),
            1 if count > 0 => {
                fields.remove(self.below(count));
            }
            2 if count > 0 => {
                let at = self.below(count);
                fields[at].0 = self.name();
            }
            3 if count > 1 => {
                let (at, other) = (self.below(count), self.below(count));
                let value = fields[at].1.clone();
                fields[at].1 = std::mem::replace(&mut fields[other].1, value);
            }
            _ if count > 0 => {
                let at = self.below(count);
                self.change_value(&mut fields[at].1);
            }
            _ => {}
        }
        fields.into_iter().collect::<BTreeMap<_, _>>().into()
    }

    fn change_value(&mut self, value: &mut Value) {
        match value {
            Value::Set(members) => match (self.below(6), members.len()) {
                (0, 1..) => members.reverse(),
                (1, 1..) => members.rotate_left(1),
                (2, count @ 1..) => {
                    let again = members[self.below(count)].clone();
                    members.push(again);
                }
                (3, count @ 1..) => {
                    let at = self.below(count);
                    self.change_value(&mut members[at]);
                }
                (4, count @ 1..) => {
                    // One level deeper, or one less.
                    let at = self.below(count);
                    members[at] = Value::Set(vec![members[at].clone()]);
                }
                _ => members.push(self.value(1)),
            },
            Value::Record(fields) => *fields = self.changed_record(fields),
            Value::Bool(value) => *value = !*value,
            Value::Long(value) => *value = value.wrapping_add(i64::from(self.byte())),
            Value::Entity(uid) => self.change_uid(uid),
            Value::String(text)
            | Value::Decimal(text)
            | Value::Ip(text)
            | Value::Datetime(text)
            | Value::Duration(text) => {
                let text = match self.bool() {
                    true => self.text(),
                    false => text.clone(),
                };
                // The same text as another kind is another value.
                *value = match self.below(8) {
                    0 => Value::String(text),
                    1 => Value::Decimal(text),
                    2 => Value::Ip(text),
                    3 => Value::Datetime(text),
                    4 => Value::Duration(text),
                    _ => match value {
                        Value::Decimal(_) => Value::Decimal(text),
                        Value::Ip(_) => Value::Ip(text),
                        Value::Datetime(_) => Value::Datetime(text),
                        Value::Duration(_) => Value::Duration(text),
                        _ => Value::String(text),
                    },
                };
            }
        }
    }
}
