//! Data that a reload may reuse, and data that it must not.

use super::{OFF, ann_reads, group};
use crate::checked_engine::EngineUnderTest;
use crate::plain::Plain;
use crate::scenario::Files;

use cedar_pdp::pdp::query::{Query, Uid};

fn files(files: &[(&str, String)]) -> Files {
    let files = files.iter();
    files
        .map(|(path, text)| ((*path).to_owned(), text.clone()))
        .collect()
}

/// Loads one directory after the other, and checks `queries` on each.
fn check(directories: &[Files], queries: &[Query]) {
    let mut engine = EngineUnderTest::new(OFF, 1 << 20);
    for (number, files) in directories.iter().enumerate() {
        let plain = Plain::load(files, &OFF).unwrap();
        let snapshot = engine.load(files).unwrap();
        for query in queries {
            if let Err(why) = engine.check(&snapshot, query, &plain.authorize(query)) {
                panic!("in directory {number}: {why}\nasked {query:#?}");
            }
        }
    }
}

fn users(range: std::ops::Range<usize>) -> String {
    let users: Vec<String> = range
        .map(|n| {
            format!(
                r#"{{"uid": {{"type": "User", "id": "{n}"}}, "attrs": {{}}, "parents": [{{"type": "Group", "id": "{}"}}]}}"#,
                n % 7
            )
        })
        .collect();
    format!("[{}]", users.join(","))
}

#[test]
fn unused_interned_uids_are_cleared() {
    // After thousands of entities are removed, only unused data is cleared.
    let policy = r#"permit(principal in Group::"3", action, resource);
permit(principal, action, resource) when { principal is User && resource in Group::"staff" };"#;
    let few = r#"[{"uid": {"type": "Doc", "id": "1"}, "attrs": {}, "parents": [{"type": "Group", "id": "staff"}]},
        {"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Group", "id": "3"}]}]"#;
    let base = [
        ("p.cedar", policy.to_owned()),
        ("z.entities.json", few.to_owned()),
    ];
    let with = |more: &[(&str, String)]| files(&[&base[..], more].concat());
    let many = |range| ("a.entities.json", users(range));
    check(
        &[
            with(&[many(0..12_000)]),
            with(&[]),
            with(&[(
                "b.cedar",
                "forbid(principal == User::\"5\", action, resource);".to_owned(),
            )]),
            with(&[many(11_000..11_020)]),
            with(&[many(0..12_000)]),
            with(&[many(12_000..24_000)]),
            with(&[many(24_000..24_010)]),
            with(&[many(24_001..24_011)]),
        ],
        &[
            ann_reads(),
            Query {
                principal: Uid::new("User", "11010"),
                ..ann_reads()
            },
            Query {
                principal: Uid::new("User", "24003"),
                resource: group("nowhere"),
                ..ann_reads()
            },
            Query {
                principal: Uid::new("User", "5"),
                ..ann_reads()
            },
        ],
    );
}

#[test]
fn entity_moved_between_files_is_found() {
    let policy = (
        "p.cedar",
        r#"permit(principal in Group::"g", action, resource);"#.to_owned(),
    );
    let ann = r#"[{"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Group", "id": "t"}]}]"#;
    let team = r#"[{"uid": {"type": "Group", "id": "t"}, "attrs": {}, "parents": [{"type": "Group", "id": "g"}]}]"#;
    let at = |one: &'static str, text: &str| (one, text.to_owned());
    check(
        &[
            files(&[
                policy.clone(),
                at("a.entities.json", ann),
                at("b.entities.json", team),
            ]),
            files(&[
                policy.clone(),
                at("a.entities.json", team),
                at("b.entities.json", ann),
            ]),
            files(&[
                policy.clone(),
                at("c.entities.json", team),
                at("b.entities.json", ann),
            ]),
            files(&[policy.clone(), at("b.entities.json", ann)]),
            files(&[
                policy.clone(),
                at("b.entities.json", ann),
                at("a.entities.json", team),
            ]),
        ],
        &[ann_reads()],
    );
}
