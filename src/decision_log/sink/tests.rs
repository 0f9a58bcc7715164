//! Log files: failed writes, files that others move, and rotation.

use std::fs;
use std::os::unix::fs::symlink;

use super::rotating_file::RotatingFile;
use super::*;

fn write_all(file: &mut RotatingFile, lines: &str) {
    let mut rest = lines.as_bytes();
    while !rest.is_empty() {
        let written = file.write(rest).unwrap();
        rest = &rest[written..];
    }
}

fn files(directory: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn full_file_is_rotated_and_the_oldest_removed() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = RotatingFile::open(&directory.path().join("log"), 8, 3).unwrap();
    write_all(&mut file, "1aa\n2bb\n3cc\n4dd\n5ee\n6ff\n7gg\n");
    // A line that is longer than the limit has a file of its own.
    write_all(&mut file, "8 is a long line\n9\n");
    assert_eq!(
        files(directory.path()),
        [
            ("log", "9\n"),
            ("log.1", "8 is a long line\n"),
            ("log.2", "7gg\n")
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
}

#[test]
fn failed_rotations_remove_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut file = RotatingFile::open(&path("log"), 4, 3).unwrap();
    write_all(&mut file, "1aa\n2bb\n3cc\n");
    // A file cannot replace a directory: the last step fails after the first was done.
    let check_kept = |text: &str| {
        let kept = ["log.2", "log.3"].map(|name| fs::read_to_string(path(name)).ok());
        assert!(kept.contains(&Some(text.to_owned())), "{text}: {kept:?}");
    };
    fs::rename(path("log.1"), path("aside")).unwrap();
    fs::create_dir(path("log.1")).unwrap();
    fs::write(path("log.1").join("full"), "").unwrap();
    fs::create_dir(path("log.3")).unwrap();
    fs::write(path("log.3").join("full"), "").unwrap();
    for line in ["4dd\n", "5ee\n", "6ff\n", "7gg\n"] {
        write_all(&mut file, line);
        check_kept("1aa\n");
    }
    // Meanwhile the file grows. It is rotated once that is possible.
    assert_eq!(
        fs::read_to_string(path("log")).unwrap(),
        "3cc\n4dd\n5ee\n6ff\n7gg\n"
    );
    fs::remove_dir_all(path("log.1")).unwrap();
    fs::remove_dir_all(path("log.3")).unwrap();
    write_all(&mut file, "8hh\n");
    assert_eq!(
        fs::read_to_string(path("log.1")).unwrap(),
        "3cc\n4dd\n5ee\n6ff\n7gg\n"
    );
    check_kept("1aa\n");
}

#[test]
fn rotation_continues_after_a_partial_failure() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut file = RotatingFile::open(&path("log"), 4, 4).unwrap();
    write_all(&mut file, "4dd\n");
    // As a failure or a crash leaves the files: one name is free, and there is one file too many.
    fs::write(path("log.2"), "3cc\n").unwrap();
    fs::write(path("log.3"), "2bb\n").unwrap();
    fs::write(path("log.4"), "1aa\n").unwrap();
    write_all(&mut file, "5ee\n");
    let wanted = [
        ("log", "5ee\n"),
        ("log.1", "4dd\n"),
        ("log.2", "3cc\n"),
        ("log.3", "2bb\n"),
    ];
    let wanted = wanted.map(|(name, text)| (name.to_owned(), text.to_owned()));
    assert_eq!(files(directory.path()), wanted);
}

#[test]
fn single_file_is_replaced_when_full() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = RotatingFile::open(&directory.path().join("log"), 8, 1).unwrap();
    write_all(&mut file, "1aa\n2bb\n3cc\n");
    assert_eq!(
        files(directory.path()),
        [("log".to_owned(), "3cc\n".to_owned())]
    );
}

#[test]
fn unlimited_file_is_not_rotated() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = RotatingFile::open(&directory.path().join("log"), 0, 3).unwrap();
    write_all(&mut file, &"line\n".repeat(1_000));
    assert_eq!(files(directory.path()).len(), 1);
}

#[test]
fn moved_or_removed_file_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut file = RotatingFile::open(&path, 0, 3).unwrap();
    write_all(&mut file, "one\n");
    fs::rename(&path, directory.path().join("log.old")).unwrap();
    write_all(&mut file, "two\n");
    fs::remove_file(&path).unwrap();
    write_all(&mut file, "three\n");
    let named = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!(named("log.old"), "one\n");
    assert_eq!(named("log"), "three\n");
}

#[test]
fn missing_directory_fails_until_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let logs = directory.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let mut file = RotatingFile::open(&logs.join("log"), 0, 3).unwrap();
    write_all(&mut file, "one\n");
    fs::remove_dir_all(&logs).unwrap();
    file.write(b"two\n").unwrap_err();
    file.write(b"two\n").unwrap_err();
    fs::create_dir(&logs).unwrap();
    write_all(&mut file, "two\n");
    assert_eq!(fs::read_to_string(logs.join("log")).unwrap(), "two\n");
}

#[test]
fn partial_line_is_completed_in_its_own_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut file = RotatingFile::open(&path, 6, 3).unwrap();
    // Two bytes were written before a failure.
    file.open.as_mut().unwrap().file.write_all(b"on").unwrap();
    file.open.as_mut().unwrap().partial_bytes = 2;
    // The rest of a line goes to the same file, whatever the limit.
    assert_eq!(file.write(b"one and more\ntwo\n").unwrap(), 13);
    assert_eq!(fs::read_to_string(&path).unwrap(), "one and more\n");

    file.open.as_mut().unwrap().file.write_all(b"tw").unwrap();
    file.open.as_mut().unwrap().partial_bytes = 2;
    fs::rename(&path, directory.path().join("moved")).unwrap();
    write_all(&mut file, "two\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
}

#[test]
fn incomplete_last_line_is_ended_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, "one\ntw").unwrap();
    let mut file = RotatingFile::open(&path, 0, 3).unwrap();
    write_all(&mut file, "three\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntw\nthree\n");
}

#[test]
fn full_disk_fails_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    symlink("/dev/full", &path).unwrap();
    let mut file = RotatingFile::open(&path, 100, 3).unwrap();
    let error = file.write(b"one\n").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    fs::remove_file(&path).unwrap();
    write_all(&mut file, "one\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
}
