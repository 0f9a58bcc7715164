//! Random changes of a valid request: each result has a status.

use cedar_pdp::api::grpc::pb;
use pb::value::Kind;
use prost::Message as _;

use super::requests::{WITH_SCHEMA, changed, entity, record, set, text};
use super::target::Target;
use crate::support::http2::{AUTHORIZE, BATCH, STREAM};
use crate::support::protobuf;
use crate::support::{uid, value};

/// A SplitMix64 generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        // Bytes with a meaning in protobuf: keys, lengths, ends.
        const ODD: [u8; 12] = [
            0, 1, 2, 0x0a, 0x12, 0x1a, 0x2a, 0x32, 0x7f, 0x80, 0xfe, 0xff,
        ];
        if self.below(2) == 0 {
            ODD[self.below(ODD.len())]
        } else {
            self.next() as u8
        }
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(2) {
            if bytes.is_empty() {
                bytes.push(self.byte());
            }
            let at = self.below(bytes.len());
            let to = (at + 1 + self.below(16)).min(bytes.len());
            match self.below(7) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.byte(),
                2 => bytes.insert(at, self.byte()),
                3 => drop(bytes.drain(at..to)),
                4 => bytes.truncate(at),
                5 => {
                    let part = bytes[at..to].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, part);
                }
                _ => {
                    let part = bytes[at..to].repeat(1 + self.below(20));
                    bytes.splice(at..to, part);
                }
            }
        }
    }
}

fn rich() -> pb::AuthorizeRequest {
    changed(|r| {
        for (name, kind) in [
            ("amount", Kind::Long(-1)),
            ("limit", Kind::Decimal("12.5".to_owned())),
            ("from", Kind::Ip("10.0.0.0/8".to_owned())),
            ("at", Kind::Datetime("2024-10-15T11:35:00Z".to_owned())),
            ("span", Kind::Duration("1h30m".to_owned())),
            ("names", set(vec![text("a"), text("é")])),
            ("who", Kind::Entity(uid("User", "bob"))),
            ("place", record("x", value(Kind::Long(7)))),
        ] {
            r.context.insert(name.to_owned(), value(kind));
        }
        let mut bob = entity(
            uid("User", "bob"),
            vec![uid("Team", "x"), uid("Team", "nowhere")],
        );
        bob.attributes
            .insert("age".to_owned(), value(Kind::Long(3)));
        bob.tags.insert("t".to_owned(), text("v"));
        r.entities = vec![bob, entity(uid("Team", "x"), vec![uid("Team", "a")])];
        r.explain = true;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_random_changes_each_have_a_status() {
    let seed =
        std::env::var("CEDAR_PDP_HOSTILE_SEED").map_or(20_240_601, |seed| seed.parse().unwrap());
    let mut target = Target::open(WITH_SCHEMA, &[]).await;
    let rich = rich();
    target
        .assert_answered("the request before any change", &rich)
        .await;
    let rich = rich.encode_to_vec();
    let mut random = Random(seed);
    let mut codes = std::collections::BTreeMap::new();
    for round in 0..2_000 {
        let (path, mut message) = match round % 4 {
            0 | 1 => (AUTHORIZE, rich.clone()),
            2 => (BATCH, protobuf::field(1, &rich).repeat(2)),
            _ => (
                STREAM,
                [vec![0x08, 0x07], protobuf::field(2, &rich)].concat(),
            ),
        };
        random.mutate(&mut message);
        let outcome = target.client.call(path, &message).await;
        let Some(status) = &outcome.status else {
            panic!("seed {seed}, round {round}, {path}: {outcome:?}\n{message:02x?}");
        };
        let expected = matches!(status.code() as i32, 0 | 3 | 8 | 16);
        assert!(
            expected,
            "seed {seed}, round {round}, {path}: {status:?}\n{message:02x?}"
        );
        *codes.entry(status.code() as i32).or_insert(0_u32) += 1;
        if round % 50 == 0 {
            target
                .assert_alive(&format!("seed {seed}, round {round}"))
                .await;
        }
    }
    println!("{codes:?}");
    assert!(codes.len() >= 2, "{codes:?}");
    target.close().await;
}
