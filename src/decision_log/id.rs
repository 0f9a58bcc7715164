//! What a decision is called: the id that its caller and the log both have.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::str;
use std::time::Duration;

use super::json::hex_digit;
use crate::config::decision_log::Share;

/// The id of one decision: a UUID of version 7, so ids sort by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionId([u8; Self::LENGTH]);

impl DecisionId {
    /// In bytes.
    pub const LENGTH: usize = 36;

    /// An id for a decision at `at` since 1970; `random` makes it unlike any other.
    pub(super) fn new(at: Duration, random: u64) -> Self {
        // RFC 9562, section 5.7, with method 3 of section 6.2: 48 bits of milliseconds, the version, 12 bits of
        // what is left of the millisecond, two bits that say what kind of UUID this is, and 62
        // that are random.
        let milliseconds = at.as_millis() as u64;
        let left = u64::from(at.subsec_nanos() % 1_000_000) * 4_096 / 1_000_000;
        let high = milliseconds << 16 | 0x7000 | left;
        let low = random >> 2 | 1 << 63;
        let mut text = [b'-'; Self::LENGTH];
        let mut shift = 128;
        for (at, place) in text.iter_mut().enumerate() {
            if !matches!(at, 8 | 13 | 18 | 23) {
                shift -= 4;
                let half = if shift >= 64 { high } else { low };
                *place = hex_digit((half >> (shift % 64)) as u32);
            }
        }
        Self(text)
    }

    /// The 36 characters, which are ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// The 36 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // INVARIANT: they are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Random numbers, each thread's its own: a keyed hash of a counter. The keys come from the system.
#[derive(Debug, Default)]
pub(super) struct Dice {
    keys: RandomState,
    thrown: Cell<u64>,
}

impl Dice {
    pub(super) fn throw(&self) -> u64 {
        let n = self.thrown.get();
        self.thrown.set(n.wrapping_add(1));
        self.keys.hash_one(n)
    }

    /// Whether this one belongs to the share.
    pub(super) fn falls_within(&self, share: Share) -> bool {
        match share {
            Share::ALL => true,
            // The product of the two fits in 84 bits; its upper part is evenly from 0 to 999,999.
            share => {
                let evenly = (u128::from(self.throw()) * 1_000_000) >> 64;
                evenly < u128::from(share.millionths())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_uuid_of_version_7() {
        // The example of RFC 9562, appendix A.6, whose random part is 0xcc3 and 0x18c4dc0c0c07398f.
        let at = Duration::from_millis(0x017F_22E2_79B0);
        let id = DecisionId::new(at, 0x18c4_dc0c_0c07_398f << 2);
        assert_eq!(id.as_str(), "017f22e2-79b0-7000-98c4-dc0c0c07398f");
        let later = DecisionId::new(at + Duration::from_nanos(999_999), 0);
        assert_eq!(later.as_str(), "017f22e2-79b0-7fff-8000-000000000000");
        assert!(later > id);
    }

    #[test]
    fn no_two_ids_are_alike() {
        let dice = Dice::default();
        let other = Dice::default();
        let ids: std::collections::BTreeSet<_> = (0..1_000)
            .flat_map(|_| [dice.throw(), other.throw()])
            .map(|random| DecisionId::new(Duration::from_secs(1), random))
            .collect();
        assert_eq!(ids.len(), 2_000);
    }

    #[test]
    fn of_a_share_about_that_many_fall_within() {
        let dice = Dice::default();
        let within = |share: &str| {
            let share = share.parse().unwrap();
            (0..100_000).filter(|_| dice.falls_within(share)).count()
        };
        assert_eq!(within("0"), 0);
        assert_eq!(within("1"), 100_000);
        // Twelve standard deviations either way.
        let tenth = within("0.1");
        assert!((8_800..11_200).contains(&tenth), "{tenth}");
    }
}
