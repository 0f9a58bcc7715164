//! What wakes a listener and what does not.

use std::fs;

use notify::event::{CreateKind, DataChange, MetadataKind, RemoveKind, RenameMode};

use super::*;

fn places() -> Places {
    let mut places = Places::default();
    places.add_name(Path::new("/etc"), OsStr::new("policies"));
    places.add(Path::new("/etc/policies"));
    places
}

/// Whether `kind` at `path` is a tick for one who listens at `/etc/policies`.
#[track_caller]
fn check(kind: EventKind, path: &str, is_tick: bool) {
    let mut listening = Listening {
        places: places(),
        ..Listening::default()
    };
    let event = Event::new(kind).add_path(PathBuf::from(path));
    assert_eq!(listening.takes(&event), is_tick, "{event:?}");
}

#[test]
fn all_that_changes_in_a_directory_wakes() {
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
fn reading_does_not_wake() {
    for access in [
        AccessKind::Open(AccessMode::Any),
        AccessKind::Read,
        AccessKind::Close(AccessMode::Read),
    ] {
        check(EventKind::Access(access), "/etc/policies/a.cedar", false);
    }
}

#[test]
fn neighbours_of_a_name_do_not_wake() {
    let made = EventKind::Create(CreateKind::Folder);
    check(made, "/etc/policies", true);
    check(made, "/etc/passwd", false);
}

#[test]
fn a_directory_above_that_is_moved_wakes() {
    let moved = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    check(moved, "/etc", true);
    check(moved, "/srv", false);
}

#[test]
fn lost_events_wake_and_have_everything_armed_anew() {
    let mut listening = Listening {
        places: places(),
        ..Listening::default()
    };
    let event = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
    assert!(listening.takes(&event));
    assert_eq!(listening.disturbed.len(), 2);
}

#[test]
fn a_name_does_not_narrow_a_directory_that_is_wholly_of_interest() {
    let mut places = places();
    places.add_name(Path::new("/etc/policies"), OsStr::new("..data"));
    assert!(places.concern(Path::new("/etc/policies/a.cedar")));
}

const LONG: Duration = Duration::from_secs(600);

/// Waits for a tick that is no poll.
async fn tick(ticks: &mut Ticks) {
    tokio::time::timeout(LONG / 10, ticks.next()).await.unwrap();
}

#[tokio::test]
async fn a_place_newly_listened_at_ticks_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut watcher, mut ticks) = watch(Mode::Events, LONG);
    let mut places = Places::default();
    places.add(directory.path());
    watcher.set(&places);
    tick(&mut ticks).await;

    watcher.set(&places);
    fs::write(directory.path().join("a"), "").unwrap();
    tick(&mut ticks).await;
}

#[tokio::test]
async fn a_directory_made_anew_under_its_old_name_is_listened_at_again() {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("policies");
    fs::create_dir(&directory).unwrap();
    let (mut watcher, mut ticks) = watch(Mode::Events, LONG);
    let mut places = Places::default();
    places.add_name(outer.path(), OsStr::new("policies"));
    places.add(&directory);
    watcher.set(&places);
    tick(&mut ticks).await;

    for n in 0..200 {
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        // At once, so that the news of the removal may come after it; then, as everyone does who
        // hears a tick, again and again until it rests.
        watcher.set(&places);
        let rest = Duration::from_millis(5);
        while tokio::time::timeout(rest, ticks.next()).await.is_ok() {
            watcher.set(&places);
        }
        fs::write(directory.join(n.to_string()), "").unwrap();
        tick(&mut ticks).await;
    }
}

#[tokio::test]
async fn a_directory_that_another_has_taken_the_place_of_unheard_is_listened_at() {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("house/policies");
    fs::create_dir_all(&directory).unwrap();
    let (mut watcher, mut ticks) = watch(Mode::Events, LONG);
    let mut places = Places::default();
    places.add(&directory);
    watcher.set(&places);
    tick(&mut ticks).await;

    // No event tells a directory that one above it has moved.
    fs::rename(outer.path().join("house"), outer.path().join("old")).unwrap();
    fs::create_dir_all(&directory).unwrap();
    watcher.set(&places);
    tick(&mut ticks).await;
    fs::write(directory.join("a"), "").unwrap();
    tick(&mut ticks).await;
}

#[tokio::test]
async fn two_names_of_one_directory_are_both_heard() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory
        .path()
        .join("..")
        .join(directory.path().file_name().unwrap());
    let (mut watcher, mut ticks) = watch(Mode::Events, LONG);
    let mut places = Places::default();
    places.add_name(&other, OsStr::new("a"));
    places.add_name(directory.path(), OsStr::new("b"));
    watcher.set(&places);
    tick(&mut ticks).await;
    for name in ["a", "b"] {
        fs::write(directory.path().join(name), "").unwrap();
        tick(&mut ticks).await;
    }
}

#[tokio::test]
async fn polling_needs_no_events() {
    let (_watcher, mut ticks) = watch(Mode::Poll, Duration::from_millis(1));
    tick(&mut ticks).await;
}
