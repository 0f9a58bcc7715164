//! Which files of a directory are read, rejected or ignored, and how scans compare.

mod unused;

use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::file::TextOnDisk;
use super::fingerprint::Fingerprint;
use super::*;
use crate::pdp::Workers;
use crate::pdp::sources::{ContentDigest, SourceFile, Sources, TextChanged, TextSource as _};

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

fn scan_all(directory: &TempDir) -> DirectoryScan {
    scan_after(directory, None)
}

fn scan_after(directory: &TempDir, previous: Option<&DirectoryScan>) -> DirectoryScan {
    scan_at(directory.path(), &SourceLimits::default(), previous)
}

fn scan_at(
    directory: &Path,
    limits: &SourceLimits,
    previous: Option<&DirectoryScan>,
) -> DirectoryScan {
    let threads = NonZeroUsize::new(3).unwrap();
    let workers = Workers {
        threads,
        ..Workers::default()
    };
    scan(directory, limits, previous, &workers)
}

fn scan_within(directory: &TempDir, limits: SourceLimits) -> DirectoryScan {
    scan_at(directory.path(), &limits, None)
}

fn paths(scan: &DirectoryScan) -> Vec<&str> {
    let files = scan.sources.files().iter();
    files.map(|file| file.path.as_str()).collect()
}

fn held(scan: &DirectoryScan, file: usize) -> &str {
    scan.sources.files()[file].text_in_memory().unwrap()
}

/// Checks that the scan has one problem, in `file`, whose text contains `says`.
#[track_caller]
fn check_problem(scan: &DirectoryScan, file: &str, says: &str) {
    let [problem] = scan.sources.problems() else {
        panic!("one problem, not {:#?}", scan.sources.problems());
    };
    assert_eq!(problem.file, file);
    assert!(problem.message.contains(says), "{problem}");
    assert!(!scan.is_inconsistent());
}

#[test]
fn only_matching_names_are_read() {
    let directory = directory(&[
        ("b.cedar", "b"),
        ("a.cedarschema", "a"),
        ("deep/down/entities.json", "e"),
        ("README.md", "no"),
    ]);
    let scan = scan_all(&directory);
    assert_eq!(scan.sources.unused().ignored, ["README.md"]);
    assert_eq!(
        paths(&scan),
        ["a.cedarschema", "b.cedar", "deep/down/entities.json"]
    );
    assert_eq!(held(&scan, 1), "b");
    assert!(scan.sources.problems().is_empty());
    assert!(scan.sources.warnings().is_empty());
}

#[test]
fn dot_names_are_ignored() {
    let directory = directory(&[
        (".a.cedar", "no"),
        (".git/b.cedar", "no"),
        ("c.cedar", "yes"),
    ]);
    symlink("c.cedar", directory.path().join(".d.cedar")).unwrap();
    symlink("nowhere", directory.path().join(".#e.cedar")).unwrap();
    let scan = scan_all(&directory);
    assert_eq!(paths(&scan), ["c.cedar"]);
    assert!(scan.sources.problems().is_empty());
}

#[test]
fn config_maps_are_read_through_links() {
    let directory = directory(&[("..2024/a.cedar", "permit")]);
    symlink("..2024", directory.path().join("..data")).unwrap();
    symlink("..data/a.cedar", directory.path().join("a.cedar")).unwrap();
    let scan = scan_all(&directory);
    assert_eq!(paths(&scan), ["a.cedar"]);
    assert_eq!(held(&scan, 0), "permit");
}

#[test]
fn linked_directories_have_the_name_of_the_link() {
    let far = directory(&[("a.cedar", "permit")]);
    let directory = directory(&[]);
    symlink(far.path(), directory.path().join("team")).unwrap();
    assert_eq!(paths(&scan_all(&directory)), ["team/a.cedar"]);
}

#[test]
fn policy_directory_may_be_a_link() {
    let far = directory(&[("a.cedar", "permit")]);
    let outer = directory(&[]);
    let link = outer.path().join("policies");
    symlink(far.path(), &link).unwrap();
    let scan = scan_at(&link, &SourceLimits::default(), None);
    assert_eq!(paths(&scan), ["a.cedar"]);
}

#[test]
fn missing_policy_directory_is_a_problem() {
    let directory = directory(&[("a.cedar", "permit")]);
    for (name, says) in [
        ("nowhere", "does not exist"),
        ("a.cedar", "not a directory"),
    ] {
        let path = directory.path().join(name);
        check_problem(&scan_at(&path, &SourceLimits::default(), None), "", says);
    }
}

#[test]
fn fifos_are_rejected_without_blocking() {
    let directory = directory(&[]);
    let path = directory.path().join("a.cedar");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    check_problem(&scan_all(&directory), "a.cedar", "a FIFO");
}

#[test]
fn sockets_devices_and_directories_are_rejected() {
    for (says, make) in [
        (
            "a socket",
            (|path| drop(UnixListener::bind(path).unwrap())) as fn(&Path),
        ),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a device", |path| symlink("/dev/null", path).unwrap()),
    ] {
        let directory = directory(&[]);
        make(&directory.path().join("a.cedar"));
        check_problem(&scan_all(&directory), "a.cedar", says);
    }
}

#[test]
fn dangling_links_with_matching_names_are_problems() {
    let directory = directory(&[]);
    symlink("nowhere", directory.path().join("a.cedar")).unwrap();
    check_problem(&scan_all(&directory), "a.cedar", "dangling link");
}

#[test]
fn other_dangling_links_are_warnings() {
    let directory = directory(&[]);
    symlink("nowhere", directory.path().join("team")).unwrap();
    let scan = scan_all(&directory);
    assert!(scan.sources.problems().is_empty());
    assert_eq!(scan.sources.warnings()[0].file, "team");
}

#[test]
fn link_loops_are_problems() {
    let directory = directory(&[]);
    symlink("a.cedar", directory.path().join("a.cedar")).unwrap();
    check_problem(&scan_all(&directory), "a.cedar", "link loop");
}

#[test]
fn links_to_a_parent_directory_are_problems() {
    for target in [".", "..", "../sub"] {
        let directory = directory(&[("sub/a.cedar", "permit")]);
        symlink(target, directory.path().join("sub/again")).unwrap();
        let scan = scan_all(&directory);
        check_problem(&scan, "sub/again", "leads back to a parent");
        assert_eq!(paths(&scan), ["sub/a.cedar"]);
    }
}

#[test]
fn unreadable_directories_and_files_are_problems() {
    if rustix::process::geteuid().is_root() {
        // Root may read all files.
        return;
    }
    let directory = directory(&[("sub/a.cedar", "permit"), ("b.cedar", "permit")]);
    for name in ["sub", "b.cedar"] {
        let path = directory.path().join(name);
        let allowed = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        check_problem(&scan_all(&directory), name, "permission denied");
        fs::set_permissions(&path, allowed).unwrap();
    }
}

#[test]
fn invalid_utf8_is_a_problem_with_its_position() {
    let directory = directory(&[]);
    fs::write(
        directory.path().join("a.cedar"),
        b"one\nt\xc3\xbc \xff\nthree",
    )
    .unwrap();
    let scan = scan_all(&directory);
    check_problem(&scan, "a.cedar", "is not UTF-8");
    let position = scan.sources.problems()[0].position.unwrap();
    assert_eq!((position.line, position.column), (2, 4));
}

#[test]
fn matching_names_must_be_utf8() {
    let directory = directory(&[]);
    for name in [b"\xff.txt".as_slice(), b"\xff.cedar"] {
        fs::write(directory.path().join(OsStr::from_bytes(name)), "permit").unwrap();
    }
    check_problem(&scan_all(&directory), "\u{fffd}.cedar", "not UTF-8");
}

#[test]
fn similar_names_are_warnings() {
    let directory = directory(&[("schema.json", "{}"), ("notes.txt", "")]);
    let scan = scan_all(&directory);
    let [warning] = scan.sources.warnings() else {
        panic!("one warning");
    };
    assert_eq!(warning.file, "schema.json");
}

#[test]
fn directories_beyond_a_limit_are_rejected() {
    let directory = directory(&[("a/b/c/d.cedar", "permit"), ("e.cedar", "forbid")]);
    let limits = SourceLimits::default;
    for (limits, file, says) in [
        (
            SourceLimits {
                file_bytes: 5,
                ..limits()
            },
            "",
            "",
        ),
        (
            SourceLimits {
                total_bytes: 11,
                ..limits()
            },
            "",
            "more than 11 bytes in total",
        ),
        (
            SourceLimits {
                files: 5,
                ..limits()
            },
            "",
            "more than 5 files",
        ),
        (
            SourceLimits {
                depth: 2,
                ..limits()
            },
            "a/b/c",
            "deeper than 2",
        ),
    ] {
        let scan = scan_within(&directory, limits);
        if says.is_empty() {
            assert_eq!(scan.sources.problems().len(), 2, "both files are too large");
        } else {
            check_problem(&scan, file, says);
        }
    }
    let enough = SourceLimits {
        file_bytes: 6,
        total_bytes: 12,
        files: 6,
        depth: 3,
    };
    assert!(
        scan_within(&directory, enough)
            .sources
            .problems()
            .is_empty()
    );
}

#[test]
fn directories_multiplied_by_links_reach_the_limit() {
    let directory = directory(&[]);
    for n in 0..30 {
        let level = directory.path().join(format!(".{n}"));
        fs::create_dir(&level).unwrap();
        for name in ["left", "right"] {
            symlink(format!("../.{}", n + 1), level.join(name)).unwrap();
        }
    }
    fs::create_dir(directory.path().join(".30")).unwrap();
    symlink(".0", directory.path().join("in")).unwrap();
    let scan = scan_within(
        &directory,
        SourceLimits {
            files: 1000,
            ..SourceLimits::default()
        },
    );
    check_problem(&scan, "", "more than 1000 files and directories");
}

#[test]
fn scans_of_an_unchanged_directory_are_the_same() {
    let directory = directory(&[("a.cedar", "permit"), ("sub/b.cedar", "forbid")]);
    let one = scan_all(&directory);
    let two = scan_after(&directory, Some(&one));
    assert!(two.same_as(&one) && two.same_content_as(&one));
    assert!(two.changes_since(&one).is_empty());
}

#[test]
fn directory_is_settled_after_the_quiet_period() {
    let directory = directory(&[("sub/a.cedar", "permit"), ("README.md", "")]);
    let aged = |hours: u64| {
        let mut scan = scan_all(&directory);
        scan.started_at += Duration::from_secs(hours * 3600);
        scan
    };
    let quiet = Duration::from_millis(50);
    assert!(!aged(0).is_settled(quiet), "written a moment ago");
    assert!(!aged(0).is_settled(Duration::ZERO), "clocks may be coarse");
    assert!(aged(1).is_settled(quiet));
    assert!(!aged(1).is_settled(Duration::from_secs(2 * 3600)));

    let old = SystemTime::now() - Duration::from_secs(3600);
    let file = fs::File::open(directory.path().join("sub/a.cedar")).unwrap();
    file.set_modified(old).unwrap();
    assert!(
        !aged(0).is_settled(quiet),
        "it may have been moved into place"
    );
}

#[test]
fn rewritten_file_has_same_content_only() {
    let directory = directory(&[("a.cedar", "permit"), ("b.cedar", "forbid")]);
    let one = scan_all(&directory);
    fs::write(directory.path().join("new"), "permit").unwrap();
    fs::rename(
        directory.path().join("new"),
        directory.path().join("a.cedar"),
    )
    .unwrap();
    let two = scan_all(&directory);
    assert!(two.same_content_as(&one) && !two.same_as(&one));
    assert_eq!(Vec::from_iter(two.changes_since(&one)), ["a.cedar"]);
}

#[test]
fn links_swapped_back_are_not_the_same() {
    let directory = directory(&[("..v1/a.cedar", "permit"), ("..v2/a.cedar", "forbid")]);
    let data = directory.path().join("..data");
    symlink("..v1", &data).unwrap();
    symlink("..data/a.cedar", directory.path().join("a.cedar")).unwrap();
    let one = scan_all(&directory);
    for version in ["..v2", "..v1"] {
        let new = directory.path().join("..new");
        symlink(version, &new).unwrap();
        fs::rename(new, &data).unwrap();
    }
    let two = scan_all(&directory);
    assert!(two.same_content_as(&one) && !two.same_as(&one));
    assert_eq!(Vec::from_iter(two.changes_since(&one)), ["..data"]);
}

#[test]
fn policy_tests_do_not_count_as_content() {
    let directory = directory(&[("a.cedar", "permit"), ("a.test.json", "[]")]);
    let one = scan_all(&directory);
    fs::write(directory.path().join("a.test.json"), "[1]").unwrap();
    let two = scan_all(&directory);
    assert!(two.same_content_as(&one) && !two.same_as(&one));
}

#[test]
fn only_old_unchanged_files_are_reused() {
    let directory = directory(&[("a.cedar", "permit")]);
    let path = directory.path().join("a.cedar");
    let mut one = scan_all(&directory);

    // A write within the resolution of timestamps leaves the fingerprint as it was.
    fs::write(&path, "forbid").unwrap();
    let fingerprint = Fingerprint::of(&fs::metadata(&path).unwrap());
    one.fingerprints
        .files
        .get_mut("a.cedar")
        .unwrap()
        .fingerprint = fingerprint;
    assert_eq!(held(&scan_after(&directory, Some(&one)), 0), "forbid");

    one.started_at += Duration::from_secs(3600);
    assert_eq!(held(&scan_after(&directory, Some(&one)), 0), "permit");

    fs::write(&path, "forbid all").unwrap();
    assert_eq!(held(&scan_after(&directory, Some(&one)), 0), "forbid all");
}

#[test]
fn entity_texts_stay_on_disk() {
    let directory = directory(&[("entities.json", "[]")]);
    let scan = scan_all(&directory);
    let file = &scan.sources.files()[0];
    assert_eq!(file.text_in_memory(), None);
    assert_eq!(file.text().as_deref(), Ok("[]"));
    assert_eq!((file.digest, file.bytes()), (ContentDigest::of(b"[]"), 2));
    let held = SourceFile::in_memory(file.path.clone(), file.kind, "[]".into());
    let held = Sources::new(vec![held], vec![], vec![]);
    assert_eq!(scan.revision(), held.revision());
}

#[test]
fn changed_entity_texts_are_errors() {
    for change in [
        (|path| fs::write(path, "[1]").unwrap()) as fn(&Path),
        |path| fs::remove_file(path).unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ] {
        let directory = directory(&[("entities.json", "[]")]);
        let scan = scan_all(&directory);
        change(&directory.path().join("entities.json"));
        assert!(!scan.is_inconsistent(), "the text was not read yet");
        assert_eq!(scan.sources.files()[0].text(), Err(TextChanged));
        assert!(scan.is_inconsistent());
        assert_eq!(Vec::from_iter(scan.changes_since(&scan)), ["entities.json"]);
    }
}

#[test]
fn entity_texts_changed_within_timestamp_resolution_are_errors() {
    let directory = directory(&[("entities.json", "[1]")]);
    let path = directory.path().join("entities.json");
    fs::write(&path, "[2]").unwrap();
    let source = |text: &str| TextOnDisk {
        fingerprint: Fingerprint::of(&fs::metadata(&path).unwrap()),
        path: path.clone(),
        digest: Some(ContentDigest::of(text.as_bytes())),
    };
    assert_eq!(source("[1]").read(), Err(TextChanged));
    assert_eq!(source("[1]").stream(&mut |_| {}), Err(TextChanged));
    assert_eq!(source("[2]").stream(&mut |_| {}), Ok(()));
}

#[test]
fn files_with_a_changed_text_are_read_again() {
    let directory = directory(&[("entities.json", "[]")]);
    let path = directory.path().join("entities.json");
    let mut one = scan_all(&directory);
    one.started_at += Duration::from_secs(3600);
    // Unreadable for a moment, as when the process has no file descriptor left.
    fs::rename(&path, directory.path().join("away")).unwrap();
    assert!(one.sources.files()[0].text().is_err());
    fs::rename(directory.path().join("away"), &path).unwrap();
    let fingerprint = Fingerprint::of(&fs::metadata(&path).unwrap());
    one.fingerprints
        .files
        .get_mut("entities.json")
        .unwrap()
        .fingerprint = fingerprint;

    let two = scan_after(&directory, Some(&one));
    assert!(!two.is_inconsistent());
    assert_eq!(two.sources.files()[0].text().as_deref(), Ok("[]"));
}

#[test]
fn several_threads_read_many_files() {
    let directory = directory(&[]);
    for n in 0..40 {
        let text = format!("{n}").repeat(100_000);
        fs::write(directory.path().join(format!("{n:02}.cedar")), text).unwrap();
    }
    let scan = scan_all(&directory);
    for (n, file) in scan.sources.files().iter().enumerate() {
        assert_eq!(file.path, format!("{n:02}.cedar"));
        assert_eq!(held(&scan, n), format!("{n}").repeat(100_000));
        assert_eq!(file.digest, ContentDigest::of(held(&scan, n).as_bytes()));
    }
}

#[test]
fn consistent_scans_never_mix_versions() {
    let directory = directory(&[]);
    let names: Vec<String> = (0..60).map(|n| format!("{n:02}.cedar")).collect();
    for version in ["..v1", "..v2"] {
        fs::create_dir(directory.path().join(version)).unwrap();
        for name in &names {
            fs::write(directory.path().join(version).join(name), version).unwrap();
        }
    }
    let data = directory.path().join("..data");
    symlink("..v1", &data).unwrap();
    for name in &names {
        symlink(format!("..data/{name}"), directory.path().join(name)).unwrap();
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let new = directory.path().join("..new");
            for version in ["..v2", "..v1"].into_iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                symlink(version, &new).unwrap();
                fs::rename(&new, &data).unwrap();
                // Two swaps within the resolution of timestamps would look like none.
                thread::sleep(Duration::from_millis(10));
            }
        });
        let (mut consistent, mut inconsistent) = (0, 0);
        while consistent < 50 || inconsistent < 10 {
            let scan = scan_all(&directory);
            if scan.is_inconsistent() {
                inconsistent += 1;
                continue;
            }
            consistent += 1;
            let files = scan.sources.files();
            let is_mixed = files.iter().any(|file| file.digest != files[0].digest);
            if is_mixed {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(!is_mixed);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
