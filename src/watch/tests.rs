//! Which events are reported as changes, and which directories stay watched.

use std::ffi::OsStr;
use std::fs;

use notify::event::{
    AccessKind, AccessMode, CreateKind, DataChange, MetadataKind, ModifyKind, RemoveKind,
    RenameMode,
};
use notify::{Event, EventKind};

use super::event_filter::FilterState;
use super::*;

fn filter() -> FilterState {
    let mut paths = WatchedPaths::default();
    paths.add_name(Path::new("/etc"), OsStr::new("policies"));
    paths.add_directory(Path::new("/etc/policies"));
    FilterState {
        paths,
        ..FilterState::default()
    }
}

/// Checks whether `kind` at `path` is a change for a watcher of `/etc/policies`.
#[track_caller]
fn check(kind: EventKind, path: &str, is_change: bool) {
    let event = Event::new(kind).add_path(PathBuf::from(path));
    assert_eq!(filter().record(&event), is_change, "{event:?}");
}

#[test]
fn every_change_in_a_directory_is_reported() {
    for kind in [
        EventKind::Create(CreateKind::File),
        EventKind::Modify(ModifyKind::Data(DataChange::Any)),
        EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)),
        EventKind::Modify(ModifyKind::Name(RenameMode::To)),
        EventKind::Access(AccessKind::Close(AccessMode::Write)),
        EventKind::Remove(RemoveKind::File),
    ] {
        check(kind, "/etc/policies/a.cedar", true);
        check(kind, "/etc/policies", true);
    }
}

#[test]
fn reads_are_not_reported() {
    for access in [
        AccessKind::Open(AccessMode::Any),
        AccessKind::Read,
        AccessKind::Close(AccessMode::Read),
    ] {
        check(EventKind::Access(access), "/etc/policies/a.cedar", false);
    }
}

#[test]
fn other_names_beside_a_watched_name_are_ignored() {
    let created = EventKind::Create(CreateKind::Folder);
    check(created, "/etc/policies", true);
    check(created, "/etc/passwd", false);
}

#[test]
fn moved_parent_directories_are_reported() {
    let moved = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    check(moved, "/etc", true);
    check(moved, "/srv", false);
}

#[test]
fn lost_events_make_every_directory_stale() {
    let mut filter = filter();
    let event = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    assert!(filter.record(&event));
    assert_eq!(filter.stale.len(), 2);
}

#[test]
fn names_do_not_narrow_a_whole_directory() {
    let mut paths = filter().paths;
    paths.add_name(Path::new("/etc/policies"), OsStr::new("..data"));
    assert!(paths.contains(Path::new("/etc/policies/a.cedar")));
}

const POLL: Duration = Duration::from_secs(600);

fn watch_by_events() -> (Watcher, Changes) {
    watch(WatchSettings {
        mode: Mode::Events,
        poll: POLL,
    })
}

/// Waits for a report that is not a poll.
async fn change(changes: &mut Changes) {
    let next = tokio::time::timeout(POLL / 10, changes.next());
    next.await.unwrap();
}

#[tokio::test]
async fn newly_watched_directories_are_reported_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut watcher, mut changes) = watch_by_events();
    let mut paths = WatchedPaths::default();
    paths.add_directory(directory.path());
    watcher.set_paths(&paths);
    change(&mut changes).await;

    watcher.set_paths(&paths);
    fs::write(directory.path().join("a"), "").unwrap();
    change(&mut changes).await;
}

#[tokio::test]
async fn recreated_directories_are_watched_again() {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("policies");
    fs::create_dir(&directory).unwrap();
    let (mut watcher, mut changes) = watch_by_events();
    let mut paths = WatchedPaths::default();
    paths.add_name(outer.path(), OsStr::new("policies"));
    paths.add_directory(&directory);
    watcher.set_paths(&paths);
    change(&mut changes).await;

    for n in 0..200 {
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        // Paths are set at once, so that the removal event may arrive after it. Then they are set
        // after each report, as every caller does, until there are no more.
        watcher.set_paths(&paths);
        let quiet = Duration::from_millis(5);
        while tokio::time::timeout(quiet, changes.next()).await.is_ok() {
            watcher.set_paths(&paths);
        }
        fs::write(directory.join(n.to_string()), "").unwrap();
        change(&mut changes).await;
    }
}

#[tokio::test]
async fn directories_replaced_without_an_event_are_watched() {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("parent/policies");
    fs::create_dir_all(&directory).unwrap();
    let (mut watcher, mut changes) = watch_by_events();
    let mut paths = WatchedPaths::default();
    paths.add_directory(&directory);
    watcher.set_paths(&paths);
    change(&mut changes).await;

    // A directory gets no event when its parent moves.
    fs::rename(outer.path().join("parent"), outer.path().join("old")).unwrap();
    fs::create_dir_all(&directory).unwrap();
    watcher.set_paths(&paths);
    change(&mut changes).await;
    fs::write(directory.join("a"), "").unwrap();
    change(&mut changes).await;
}

#[tokio::test]
async fn two_paths_of_one_directory_both_report() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory
        .path()
        .join("..")
        .join(directory.path().file_name().unwrap());
    let (mut watcher, mut changes) = watch_by_events();
    let mut paths = WatchedPaths::default();
    paths.add_name(&other, OsStr::new("a"));
    paths.add_name(directory.path(), OsStr::new("b"));
    watcher.set_paths(&paths);
    change(&mut changes).await;
    for name in ["a", "b"] {
        fs::write(directory.path().join(name), "").unwrap();
        change(&mut changes).await;
    }
}

#[tokio::test]
async fn polling_works_without_events() {
    let (_watcher, mut changes) = watch(WatchSettings {
        mode: Mode::Poll,
        poll: Duration::from_millis(1),
    });
    change(&mut changes).await;
}
