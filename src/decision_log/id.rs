//! The id of a decision, which its caller and the log share, and the sampler.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::str;
use std::time::Duration;

use super::json::hex_digit;
use crate::config::decision_log::Share;

/// The id of one decision: a version 7 UUID, so that ids sort by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionId([u8; Self::LENGTH]);

impl DecisionId {
    /// The length in bytes.
    pub const LENGTH: usize = 36;

    /// Creates an id from a time since 1970 and a random number, which makes it unique.
    pub(super) fn new(time: Duration, random: u64) -> Self {
        // RFC 9562, section 5.7, with method 3 of section 6.2: 48 bits of milliseconds, the
        // version, 12 bits of the fraction of a millisecond, two bits of the variant, and 62
        // random bits.
        let milliseconds = time.as_millis() as u64;
        let fraction = u64::from(time.subsec_nanos() % 1_000_000) * 4_096 / 1_000_000;
        let high = milliseconds << 16 | 0x7000 | fraction;
        let low = random >> 2 | 1 << 63;
        let mut text = [b'-'; Self::LENGTH];
        let mut shift = 128;
        for (index, digit) in text.iter_mut().enumerate() {
            if !matches!(index, 8 | 13 | 18 | 23) {
                shift -= 4;
                let half = if shift >= 64 { high } else { low };
                *digit = hex_digit((half >> (shift % 64)) as u32);
            }
        }
        Self(text)
    }

    /// Returns the 36 ASCII characters.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// Returns the 36 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // INVARIANT: all bytes are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A random sampler for one thread. Its numbers are keyed hashes of a counter; the keys come from
/// the system.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    keys: RandomState,
    counter: Cell<u64>,
}

impl Sampler {
    pub(super) fn next_random(&self) -> u64 {
        let n = self.counter.get();
        self.counter.set(n.wrapping_add(1));
        self.keys.hash_one(n)
    }

    /// Returns `true` for a random `share` of the calls.
    pub(super) fn is_sampled(&self, share: Share) -> bool {
        match share {
            Share::ALL => true,
            // The product fits into 84 bits; its upper part is uniform over 0 to 999,999.
            share => {
                let uniform = (u128::from(self.next_random()) * 1_000_000) >> 64;
                uniform < u128::from(share.millionths())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_a_version_7_uuid() {
        // The example of RFC 9562, appendix A.6, whose random part is 0xcc3 and 0x18c4dc0c0c07398f.
        let time = Duration::from_millis(0x017F_22E2_79B0);
        let id = DecisionId::new(time, 0x18c4_dc0c_0c07_398f << 2);
        assert_eq!(id.as_str(), "017f22e2-79b0-7000-98c4-dc0c0c07398f");
        let later = DecisionId::new(time + Duration::from_nanos(999_999), 0);
        assert_eq!(later.as_str(), "017f22e2-79b0-7fff-8000-000000000000");
        assert!(later > id);
    }

    #[test]
    fn ids_are_unique() {
        let one = Sampler::default();
        let other = Sampler::default();
        let ids: std::collections::BTreeSet<_> = (0..1_000)
            .flat_map(|_| [one.next_random(), other.next_random()])
            .map(|random| DecisionId::new(Duration::from_secs(1), random))
            .collect();
        assert_eq!(ids.len(), 2_000);
    }

    #[test]
    fn share_of_calls_is_sampled() {
        let sampler = Sampler::default();
        let sampled = |share: &str| {
            let share = Share::parse(share).unwrap();
            (0..100_000).filter(|_| sampler.is_sampled(share)).count()
        };
        assert_eq!(sampled("0"), 0);
        assert_eq!(sampled("1"), 100_000);
        // Within twelve standard deviations.
        let tenth = sampled("0.1");
        assert!((8_800..11_200).contains(&tenth), "{tenth}");
    }
}
