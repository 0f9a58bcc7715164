//! What is read of a directory, what is refused in it, and what is passed over.

use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::pdp::sources::{ContentDigest, TextSource as _};

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

fn read_all(directory: &TempDir) -> Reading {
    read_after(directory, None)
}

fn read_after(directory: &TempDir, previous: Option<&Reading>) -> Reading {
    read_at(directory.path(), &SourceLimits::default(), previous)
}

fn read_at(directory: &Path, limits: &SourceLimits, previous: Option<&Reading>) -> Reading {
    let threads = NonZeroUsize::new(3).unwrap();
    let workers = Workers {
        threads,
        ..Workers::default()
    };
    read(directory, limits, previous, &workers)
}

fn read_within(directory: &TempDir, limits: SourceLimits) -> Reading {
    read_at(directory.path(), &limits, None)
}

fn paths(reading: &Reading) -> Vec<&str> {
    let files = reading.sources().files().iter();
    files.map(|file| file.path.as_str()).collect()
}

fn held(reading: &Reading, file: usize) -> &str {
    reading.sources().files()[file].text_in_memory().unwrap()
}

/// The directory has this one problem and no other, in this file, in such words.
#[track_caller]
fn check_problem(reading: &Reading, file: &str, says: &str) {
    let [problem] = reading.sources().problems() else {
        panic!("one problem, not {:#?}", reading.sources().problems());
    };
    assert_eq!(problem.file, file);
    assert!(problem.message.contains(says), "{problem}");
    assert!(!reading.is_torn());
}

#[test]
fn names_that_match_are_read_and_others_passed_over() {
    let directory = directory(&[
        ("b.cedar", "b"),
        ("a.cedarschema", "a"),
        ("deep/down/entities.json", "e"),
        ("README.md", "no"),
    ]);
    let reading = read_all(&directory);
    assert_eq!(
        paths(&reading),
        ["a.cedarschema", "b.cedar", "deep/down/entities.json"]
    );
    assert_eq!(held(&reading, 1), "b");
    assert!(reading.sources().problems().is_empty());
    assert!(reading.sources().warnings().is_empty());
}

#[test]
fn names_that_begin_with_a_dot_are_passed_over_link_or_not() {
    let directory = directory(&[
        (".a.cedar", "no"),
        (".git/b.cedar", "no"),
        ("c.cedar", "yes"),
    ]);
    symlink("c.cedar", directory.path().join(".d.cedar")).unwrap();
    symlink("nowhere", directory.path().join(".#e.cedar")).unwrap();
    let reading = read_all(&directory);
    assert_eq!(paths(&reading), ["c.cedar"]);
    assert!(reading.sources().problems().is_empty());
}

#[test]
fn a_config_map_is_read_through_its_links() {
    let directory = directory(&[("..2024/a.cedar", "permit")]);
    symlink("..2024", directory.path().join("..data")).unwrap();
    symlink("..data/a.cedar", directory.path().join("a.cedar")).unwrap();
    let reading = read_all(&directory);
    assert_eq!(paths(&reading), ["a.cedar"]);
    assert_eq!(held(&reading, 0), "permit");
}

#[test]
fn linked_directories_are_read_under_the_name_of_the_link() {
    let far = directory(&[("a.cedar", "permit")]);
    let directory = directory(&[]);
    symlink(far.path(), directory.path().join("team")).unwrap();
    assert_eq!(paths(&read_all(&directory)), ["team/a.cedar"]);
}

#[test]
fn a_link_may_stand_for_the_directory_itself() {
    let far = directory(&[("a.cedar", "permit")]);
    let outer = directory(&[]);
    let link = outer.path().join("policies");
    symlink(far.path(), &link).unwrap();
    let reading = read_at(&link, &SourceLimits::default(), None);
    assert_eq!(paths(&reading), ["a.cedar"]);
}

#[test]
fn a_directory_that_is_missing_or_none_is_a_problem() {
    let directory = directory(&[("a.cedar", "permit")]);
    for (name, says) in [
        ("nowhere", "does not exist"),
        ("a.cedar", "not a directory"),
    ] {
        let path = directory.path().join(name);
        check_problem(&read_at(&path, &SourceLimits::default(), None), "", says);
    }
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let directory = directory(&[]);
    let path = directory.path().join("a.cedar");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    check_problem(&read_all(&directory), "a.cedar", "a FIFO");
}

#[test]
fn sockets_devices_and_directories_are_no_policy_files() {
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
        check_problem(&read_all(&directory), "a.cedar", says);
    }
}

#[test]
fn a_link_that_leads_nowhere_is_a_problem_where_the_name_matches() {
    let directory = directory(&[]);
    symlink("nowhere", directory.path().join("a.cedar")).unwrap();
    check_problem(&read_all(&directory), "a.cedar", "leads nowhere");
}

#[test]
fn a_link_that_leads_nowhere_is_warned_of_where_the_name_does_not_match() {
    let directory = directory(&[]);
    symlink("nowhere", directory.path().join("team")).unwrap();
    let reading = read_all(&directory);
    assert!(reading.sources().problems().is_empty());
    assert_eq!(reading.sources().warnings()[0].file, "team");
}

#[test]
fn links_that_loop_are_problems() {
    let directory = directory(&[]);
    symlink("a.cedar", directory.path().join("a.cedar")).unwrap();
    check_problem(&read_all(&directory), "a.cedar", "loops");
}

#[test]
fn a_link_back_to_a_directory_around_it_is_a_problem() {
    for target in [".", "..", "../sub"] {
        let directory = directory(&[("sub/a.cedar", "permit")]);
        symlink(target, directory.path().join("sub/again")).unwrap();
        let reading = read_all(&directory);
        check_problem(&reading, "sub/again", "leads back");
        assert_eq!(paths(&reading), ["sub/a.cedar"]);
    }
}

#[test]
fn a_directory_that_may_not_be_read_is_a_problem() {
    if rustix::process::geteuid().is_root() {
        // Root may read everything.
        return;
    }
    let directory = directory(&[("sub/a.cedar", "permit"), ("b.cedar", "permit")]);
    for name in ["sub", "b.cedar"] {
        let path = directory.path().join(name);
        let allowed = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        check_problem(&read_all(&directory), name, "permission denied");
        fs::set_permissions(&path, allowed).unwrap();
    }
}

#[test]
fn text_that_is_not_utf8_is_a_problem_with_its_place() {
    let directory = directory(&[]);
    fs::write(
        directory.path().join("a.cedar"),
        b"one\nt\xc3\xbc \xff\nthree",
    )
    .unwrap();
    let reading = read_all(&directory);
    check_problem(&reading, "a.cedar", "is not UTF-8");
    let position = reading.sources().problems()[0].position.unwrap();
    assert_eq!((position.line, position.column), (2, 4));
}

#[test]
fn names_that_are_not_utf8_are_problems_where_they_match() {
    let directory = directory(&[]);
    for name in [b"\xff.txt".as_slice(), b"\xff.cedar"] {
        fs::write(directory.path().join(OsStr::from_bytes(name)), "permit").unwrap();
    }
    check_problem(&read_all(&directory), "\u{fffd}.cedar", "not UTF-8");
}

#[test]
fn near_misses_are_warned_of() {
    let directory = directory(&[("schema.json", "{}"), ("notes.txt", "")]);
    let reading = read_all(&directory);
    let [warning] = reading.sources().warnings() else {
        panic!("one warning");
    };
    assert_eq!(warning.file, "schema.json");
}

#[test]
fn a_directory_beyond_a_limit_is_refused() {
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
            "11 bytes allowed together",
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
        let reading = read_within(&directory, limits);
        if says.is_empty() {
            assert_eq!(
                reading.sources().problems().len(),
                2,
                "both files are too large"
            );
        } else {
            check_problem(&reading, file, says);
        }
    }
    let enough = SourceLimits {
        file_bytes: 6,
        total_bytes: 12,
        files: 6,
        depth: 3,
    };
    assert!(
        read_within(&directory, enough)
            .sources()
            .problems()
            .is_empty()
    );
}

#[test]
fn directories_that_multiply_through_links_end_at_the_limit() {
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
    let reading = read_within(
        &directory,
        SourceLimits {
            files: 1000,
            ..SourceLimits::default()
        },
    );
    check_problem(&reading, "", "more than 1000 files and directories");
}

#[test]
fn two_readings_of_an_untouched_directory_confirm_each_other() {
    let directory = directory(&[("a.cedar", "permit"), ("sub/b.cedar", "forbid")]);
    let one = read_all(&directory);
    let two = read_after(&directory, Some(&one));
    assert!(two.confirms(&one) && two.loads_like(&one));
    assert!(two.changes_since(&one).is_empty());
}

#[test]
fn a_directory_is_at_rest_when_nothing_in_it_is_younger_than_the_quiet_period() {
    let directory = directory(&[("sub/a.cedar", "permit"), ("README.md", "")]);
    let aged = |hours: u64| {
        let mut reading = read_all(&directory);
        reading.began += Duration::from_secs(hours * 3600);
        reading
    };
    let quiet = Duration::from_millis(50);
    assert!(!aged(0).is_at_rest(quiet), "written a moment ago");
    assert!(!aged(0).is_at_rest(Duration::ZERO), "clocks may be coarse");
    assert!(aged(1).is_at_rest(quiet));
    assert!(!aged(1).is_at_rest(Duration::from_secs(2 * 3600)));

    let old = SystemTime::now() - Duration::from_secs(3600);
    let file = fs::File::open(directory.path().join("sub/a.cedar")).unwrap();
    file.set_modified(old).unwrap();
    assert!(!aged(0).is_at_rest(quiet), "it may have been moved there");
}

#[test]
fn a_file_written_anew_with_the_same_content_loads_alike_but_does_not_confirm() {
    let directory = directory(&[("a.cedar", "permit"), ("b.cedar", "forbid")]);
    let one = read_all(&directory);
    fs::write(directory.path().join("new"), "permit").unwrap();
    fs::rename(
        directory.path().join("new"),
        directory.path().join("a.cedar"),
    )
    .unwrap();
    let two = read_all(&directory);
    assert!(two.loads_like(&one) && !two.confirms(&one));
    assert_eq!(Vec::from_iter(two.changes_since(&one)), ["a.cedar"]);
}

#[test]
fn a_link_swapped_there_and_back_does_not_confirm() {
    let directory = directory(&[("..v1/a.cedar", "permit"), ("..v2/a.cedar", "forbid")]);
    let data = directory.path().join("..data");
    symlink("..v1", &data).unwrap();
    symlink("..data/a.cedar", directory.path().join("a.cedar")).unwrap();
    let one = read_all(&directory);
    for version in ["..v2", "..v1"] {
        let new = directory.path().join("..new");
        symlink(version, &new).unwrap();
        fs::rename(new, &data).unwrap();
    }
    let two = read_all(&directory);
    assert!(two.loads_like(&one) && !two.confirms(&one));
    assert_eq!(Vec::from_iter(two.changes_since(&one)), ["..data"]);
}

#[test]
fn policy_tests_do_not_make_content_differ() {
    let directory = directory(&[("a.cedar", "permit"), ("a.test.json", "[]")]);
    let one = read_all(&directory);
    fs::write(directory.path().join("a.test.json"), "[1]").unwrap();
    let two = read_all(&directory);
    assert!(two.loads_like(&one) && !two.confirms(&one));
}

#[test]
fn a_file_that_was_old_when_it_was_read_is_taken_over_and_a_fresh_one_read_again() {
    let directory = directory(&[("a.cedar", "permit")]);
    let path = directory.path().join("a.cedar");
    let mut one = read_all(&directory);

    // Written again in the moment in which it was read, so that nothing tells of it.
    fs::write(&path, "forbid").unwrap();
    let print = Fingerprint::of(&fs::metadata(&path).unwrap());
    one.prints.files.get_mut("a.cedar").unwrap().print = print;
    assert_eq!(held(&read_after(&directory, Some(&one)), 0), "forbid");

    one.began += Duration::from_secs(3600);
    assert_eq!(held(&read_after(&directory, Some(&one)), 0), "permit");

    fs::write(&path, "forbid all").unwrap();
    assert_eq!(held(&read_after(&directory, Some(&one)), 0), "forbid all");
}

#[test]
fn the_text_of_stored_entities_is_left_in_its_file_and_fetched_from_there() {
    let directory = directory(&[("entities.json", "[]")]);
    let reading = read_all(&directory);
    let file = &reading.sources().files()[0];
    assert_eq!(file.text_in_memory(), None);
    assert_eq!(file.text().as_deref(), Ok("[]"));
    assert_eq!((file.digest, file.bytes()), (ContentDigest::of(b"[]"), 2));
    let held = SourceFile::in_memory(file.path.clone(), file.kind, "[]".into());
    let held = Sources::new(vec![held], vec![], vec![]);
    assert_eq!(reading.revision(), held.revision());
}

#[test]
fn a_text_that_changed_after_it_was_seen_is_not_taken_for_what_it_was() {
    for change in [
        (|path| fs::write(path, "[1]").unwrap()) as fn(&Path),
        |path| fs::remove_file(path).unwrap(),
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ] {
        let directory = directory(&[("entities.json", "[]")]);
        let reading = read_all(&directory);
        change(&directory.path().join("entities.json"));
        assert!(!reading.is_torn(), "nobody has asked yet");
        assert_eq!(reading.sources().files()[0].text(), Err(TextChanged));
        assert!(reading.is_torn());
        assert_eq!(
            Vec::from_iter(reading.changes_since(&reading)),
            ["entities.json"]
        );
    }
}

#[test]
fn a_text_that_changed_within_one_tick_of_the_clock_is_noticed_too() {
    let directory = directory(&[("entities.json", "[1]")]);
    let path = directory.path().join("entities.json");
    fs::write(&path, "[2]").unwrap();
    let source = |text: &str| file::FileText {
        print: Fingerprint::of(&fs::metadata(&path).unwrap()),
        at: path.clone(),
        digest: Some(ContentDigest::of(text.as_bytes())),
    };
    assert_eq!(source("[1]").read(), Err(TextChanged));
    assert_eq!(source("[1]").stream(&mut |_| {}), Err(TextChanged));
    assert_eq!(source("[2]").stream(&mut |_| {}), Ok(()));
}

#[test]
fn a_file_whose_text_was_found_changed_is_read_again_however_old() {
    let directory = directory(&[("entities.json", "[]")]);
    let path = directory.path().join("entities.json");
    let mut one = read_all(&directory);
    one.began += Duration::from_secs(3600);
    // Away for a moment, as it is for somebody who may open no more files.
    fs::rename(&path, directory.path().join("away")).unwrap();
    assert!(one.sources().files()[0].text().is_err());
    fs::rename(directory.path().join("away"), &path).unwrap();
    let print = Fingerprint::of(&fs::metadata(&path).unwrap());
    one.prints.files.get_mut("entities.json").unwrap().print = print;

    let two = read_after(&directory, Some(&one));
    assert!(!two.is_torn());
    assert_eq!(two.sources().files()[0].text().as_deref(), Ok("[]"));
}

#[test]
fn many_files_read_by_several_threads_are_each_what_they_are() {
    let directory = directory(&[]);
    for n in 0..40 {
        let text = format!("{n}").repeat(100_000);
        fs::write(directory.path().join(format!("{n:02}.cedar")), text).unwrap();
    }
    let reading = read_all(&directory);
    for (n, file) in reading.sources().files().iter().enumerate() {
        assert_eq!(file.path, format!("{n:02}.cedar"));
        assert_eq!(held(&reading, n), format!("{n}").repeat(100_000));
        assert_eq!(file.digest, ContentDigest::of(held(&reading, n).as_bytes()));
    }
}

#[test]
fn a_reading_that_is_not_torn_never_mixes_two_versions() {
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
                // No two swaps within one tick of a coarse clock.
                thread::sleep(Duration::from_millis(10));
            }
        });
        let (mut whole, mut torn) = (0, 0);
        while whole < 50 || torn < 10 {
            let reading = read_all(&directory);
            if reading.is_torn() {
                torn += 1;
                continue;
            }
            whole += 1;
            let files = reading.sources().files();
            let is_mixed = files.iter().any(|file| file.digest != files[0].digest);
            if is_mixed {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(!is_mixed);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
