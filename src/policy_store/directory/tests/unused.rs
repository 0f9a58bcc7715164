//! Files that are not loaded: each is reported, or a pattern of `.cedarignore` leaves it out.

use std::collections::BTreeSet;

use super::*;
use crate::pdp::sources::LeftOutCounts;

fn ignored(scan: &DirectoryScan) -> Vec<&str> {
    let ignored = scan.sources.unused().ignored.iter();
    ignored.map(String::as_str).collect()
}

#[test]
fn ignored_files_make_one_warning() {
    let names: Vec<String> = (0..25)
        .map(|number| format!("notes-{number:02}.md"))
        .collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    let scan = scan_all(&directory(&files));
    assert_eq!(ignored(&scan), names);
    let warning = scan.sources.unused().warning().unwrap();
    assert!(
        warning.message.starts_with("25 files are ignored"),
        "{warning}"
    );
    assert!(
        warning.message.contains("`notes-19.md` and 5 more"),
        "{warning}"
    );
    assert!(!warning.message.contains("notes-20"), "{warning}");
    let one = scan_all(&directory(&[("a.txt", ""), ("b.cedar", "")]));
    let warning = one.sources.unused().warning().unwrap();
    assert!(
        warning.message.starts_with("1 file is ignored"),
        "{warning}"
    );
}

#[test]
fn patterns_leave_out_and_take_back() {
    let directory = directory(&[
        (
            ".cedarignore",
            "# kinds\n*.md\r\n/drafts/\n!drafts/b.cedar\nold/*\n!old/keep.cedar\n",
        ),
        ("a.cedar", ""),
        ("README.md", ""),
        ("drafts/b.cedar", ""),
        ("drafts/deep/c.cedarschema", ""),
        ("drafts/deep/d.test.json", ""),
        ("drafts/notes.txt", ""),
        ("old/keep.cedar", ""),
        ("old/e.entities.json", ""),
        ("other/drafts/f.links.json", ""),
    ]);
    let scan = scan_all(&directory);
    assert_eq!(
        paths(&scan),
        ["a.cedar", "old/keep.cedar", "other/drafts/f.links.json"]
    );
    assert_eq!(ignored(&scan), [""; 0]);
    let expected = LeftOutCounts {
        policies: 1,
        schemas: 1,
        entities: 1,
        links: 0,
        tests: 1,
    };
    assert_eq!(scan.sources.unused().left_out, expected);
}

#[test]
fn pattern_file_is_read_at_the_root_alone() {
    let directory = directory(&[
        ("..v1/patterns", "*.cedar\n"),
        ("a.cedar", ""),
        ("sub/.cedarignore", "*.json\n"),
        ("sub/entities.json", "[]"),
    ]);
    symlink("..v1/patterns", directory.path().join(".cedarignore")).unwrap();
    let scan = scan_all(&directory);
    assert_eq!(paths(&scan), ["sub/entities.json"]);
    // A change of the file is a change of the directory.
    fs::write(directory.path().join("..v1/patterns"), "*.json\n").unwrap();
    let next = scan_after(&directory, Some(&scan));
    assert_eq!(paths(&next), ["a.cedar"]);
    assert!(!next.same_as(&scan) && !next.same_content_as(&scan));
    assert!(next.changes_since(&scan).contains(".cedarignore"));
}

#[test]
fn bad_pattern_files_are_problems() {
    for (text, says) in [
        (&b"*.md\na[\n"[..], "`a[` is not a valid pattern"),
        (b"\xff\n", "is not UTF-8"),
        (b"\xef\xbb\xbf*.md\n", "byte order mark"),
    ] {
        let directory = directory(&[("a.cedar", "")]);
        fs::write(directory.path().join(".cedarignore"), text).unwrap();
        check_problem(&scan_all(&directory), ".cedarignore", says);
    }
    let directory = directory(&[("a.cedar", "")]);
    symlink("nowhere", directory.path().join(".cedarignore")).unwrap();
    check_problem(&scan_all(&directory), ".cedarignore", "dangling link");
    let scan = scan_all(&super::directory(&[(".cedarignore/a", "")]));
    check_problem(&scan, ".cedarignore", "is a directory, not a regular file");
}

#[test]
fn left_out_files_need_not_be_readable() {
    let directory = directory(&[(".cedarignore", "private/\nb.*\n"), ("private/c.cedar", "")]);
    symlink("nowhere", directory.path().join("b.cedar")).unwrap();
    let scan = scan_all(&directory);
    assert_eq!(scan.sources.problems(), []);
    assert_eq!(scan.sources.warnings(), []);
    assert_eq!(scan.sources.unused().left_out.policies, 2);
}

#[test]
fn directories_of_the_system_are_reported_only() {
    let directory = directory(&[("a.cedar", ""), ("deep/lost+found/b.cedar", "")]);
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    let locked = fs::Permissions::from_mode(0o0);
    fs::set_permissions(directory.path().join("lost+found"), locked).unwrap();
    let scan = scan_all(&directory);
    assert_eq!(scan.sources.problems(), []);
    assert_eq!(ignored(&scan), ["deep/lost+found/", "lost+found/"]);
}

#[test]
fn directories_may_have_names_without_ending() {
    let scan = scan_all(&directory(&[
        ("linked/a.cedar", ""),
        ("cedarschema/b.cedar", ""),
    ]));
    assert_eq!(scan.sources.problems(), []);
    assert_eq!(paths(&scan), ["cedarschema/b.cedar", "linked/a.cedar"]);
}

#[test]
fn utf16_is_named() {
    let directory = directory(&[]);
    fs::write(directory.path().join("a.cedar"), b"\xff\xfep\0e\0").unwrap();
    check_problem(&scan_all(&directory), "a.cedar", "is UTF-16");
}

/// Names of files in the documentation and samples of Cedar's command line, its editor extension,
/// Amazon Verified Permissions, cedar-agent and Cedarling.
const NAMES_OF_OTHER_TOOLS: &[(&str, bool)] = &[
    // Cedar's command line and its samples.
    ("policies.cedar", true),
    ("policies.txt", false),
    ("policy.cedar", true),
    ("policies.cedar.json", true),
    ("policies.json", false),
    ("schema.cedarschema", true),
    ("schema.cedarschema.json", true),
    ("schema.json", false),
    ("schema.cedar", true),
    ("entity.json", false),
    ("entities.json", true),
    ("linked", true),
    ("linked_policies", false),
    ("links.json", false),
    ("context.json", false),
    ("request.json", false),
    ("tests.json", false),
    ("tests-combined.json", false),
    ("policy_set.cedar.json", true),
    // The editor extension.
    ("cedarschema", true),
    ("cedarschema.json", true),
    ("app.cedarschema.json", true),
    ("cedarentities.json", true),
    ("app.cedarentities.json", true),
    ("app.cedartemplatelinks.json", true),
    ("cedartemplatelinks.json", false),
    ("cedarlinks.json", false),
    ("app.cedarlinks.json", false),
    ("avpentities.json", false),
    ("app.avpentities.json", false),
    ("cedarauth.json", false),
    ("app.cedarauth.json", false),
    ("cedarparc.json", false),
    ("app.cedarparc.json", false),
    // Amazon Verified Permissions.
    ("avp-policies.json", false),
    ("policy-template.cedar", true),
    ("v4.cedarschema.json", true),
    ("cedarschema.v2.json", false),
    // cedar-agent.
    ("data.json", false),
    ("allowed_authorization_query.json", false),
    // Cedarling.
    ("cedarling_store.json", false),
    ("manifest.json", false),
    ("policy-store.cjar", false),
    ("policy-store.json", false),
    ("policy_store.yaml", false),
    ("metadata.json", false),
    ("bootstrap.yaml", false),
    ("trusted-issuers/issuer.json", false),
    ("entities/users.json", false),
    ("templates/share.cedar", true),
];

#[test]
fn names_of_other_tools_are_loaded_or_reported() {
    for (name, is_loaded) in NAMES_OF_OTHER_TOOLS {
        let scan = scan_all(&directory(&[(name, "")]));
        assert_eq!(paths(&scan).contains(name), *is_loaded, "{name}");
        let named = scan
            .sources
            .warnings()
            .iter()
            .any(|found| found.file == *name);
        let is_reported = named || ignored(&scan).contains(name);
        assert_eq!(is_reported, !is_loaded, "{name}");
    }
}

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        from[usize::try_from(self.0 >> 33).unwrap() % from.len()]
    }
}

#[test]
fn each_file_is_loaded_reported_or_left_out() {
    let mut random = Random(7);
    let mut outcomes = [0; 3];
    for _ in 0..60 {
        let patterns = [
            "",
            "*.json\n",
            "b*\n!b.cedar\n",
            "/d/\n",
            "**/e/**\n",
            "*\n!*.cedar\n",
        ];
        let mut files = vec![(".cedarignore".to_owned(), random.pick(&patterns))];
        for _ in 0..20 {
            let directory = random.pick(&["", "", "d/", "e/", "d/e/", "lost+found/"]);
            let stem = random.pick(&["a", "b", "cedarschema", "entities", "links", "README", ""]);
            let endings = [
                ".cedar",
                ".cedar.json",
                ".cedarschema",
                ".json",
                ".entities.json",
                ".md",
                ".CEDAR",
                ".policy",
                ".test.json",
                "ü",
                "",
            ];
            let ending = random.pick(&endings);
            let name = format!("{stem}{ending}");
            if !name.is_empty() && !name.starts_with('.') {
                files.push((format!("{directory}{name}"), ""));
            }
        }
        let listed: Vec<_> = files
            .iter()
            .map(|(name, text)| (name.as_str(), *text))
            .collect();
        let scan = scan_all(&directory(&listed));
        assert_eq!(scan.sources.problems(), []);
        let names: BTreeSet<&str> = listed.iter().skip(1).map(|(name, _)| *name).collect();
        let loaded: BTreeSet<&str> = paths(&scan).into_iter().collect();
        let warned = scan
            .sources
            .warnings()
            .iter()
            .map(|found| found.file.as_str());
        let reported: BTreeSet<&str> = warned.chain(ignored(&scan)).collect();
        let mut matcher = ignore::gitignore::GitignoreBuilder::new(".");
        for line in files[0].1.lines() {
            matcher.add_line(None, line).unwrap();
        }
        let matcher = matcher.build().unwrap();
        for name in names {
            // As in git, nothing below a directory that is left out is taken back.
            let above = Path::new(name).ancestors();
            let mut above = above.filter(|path| *path != Path::new(""));
            let is_left_out = above.any(|path| {
                let is_directory = path != Path::new(name);
                matcher.matched(path, is_directory).is_ignore()
            });
            let in_system = name.starts_with("lost+found/") && reported.contains("lost+found/");
            let is_reported = reported.contains(name) || in_system && !is_left_out;
            let found = [loaded.contains(name), is_reported, is_left_out];
            let is_one = found.iter().filter(|found| **found).count() == 1;
            assert!(is_one, "{name}: {found:?} with {:?}", files[0].1);
            for (count, found) in outcomes.iter_mut().zip(found) {
                *count += usize::from(found);
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 50), "{outcomes:?}");
}
