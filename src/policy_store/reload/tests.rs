//! The running store on real files: every way of changing a directory, by events and by polling.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::super::directory::SourceLimits;
use super::super::{ReloadsClosed, StatusReader};
use super::*;
use crate::pdp::id::Revision;
use crate::watch::Mode;

const PERMIT: &str = "permit(principal, action, resource);\n";
const FORBID: &str = "forbid(principal, action, resource);\n";
const SCHEMA: &str = "
entity User, Doc;
action read appliesTo { principal: User, resource: Doc };
";

/// Long enough for the slowest machine; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A policy directory in a directory of its own, so that it can be replaced.
struct Desk {
    outer: TempDir,
    directory: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("policies");
        fs::create_dir(&directory).unwrap();
        Self { outer, directory }
    }

    fn with(files: &[(&str, &str)]) -> Self {
        let desk = Self::new();
        for (name, text) in files {
            desk.write(name, text);
        }
        desk
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.outer.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.directory, name, text);
    }

    fn revision(&self) -> Revision {
        let (limits, workers) = (SourceLimits::default(), Workers::default());
        let reading = directory::read(&self.directory, &limits, None, &workers);
        reading.revision().unwrap()
    }

    fn settings(&self, mode: Mode) -> StoreSettings {
        StoreSettings {
            directory: self.directory.clone(),
            watch: mode,
            // The poll never comes to the help of the events, so that each is tested alone.
            poll: match mode {
                Mode::Events => 10 * PATIENCE,
                Mode::Poll => Duration::from_millis(20),
            },
            quiet: Duration::from_millis(20),
            ..StoreSettings::default()
        }
    }
}

fn write(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Renames a new link to `target` over `link`, as the kubelet does.
fn swap_link(target: &str, link: &Path) {
    let new = link.with_file_name("..new_link");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// A store that follows its directory.
struct Running {
    reader: Reader,
    status: StatusReader,
    reloads: Reloads,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(settings: StoreSettings) -> Self {
        Self::start_with(settings, compile_from).await
    }

    async fn start_with(settings: StoreSettings, compile: Compile) -> Self {
        let opened = open_with(settings, compile).await.unwrap();
        Self {
            reader: opened.reader,
            status: opened.status,
            reloads: opened.reloads,
            task: tokio::spawn(opened.reloader.run(std::future::pending())),
        }
    }

    /// Waits for a status that is as wanted.
    async fn until(&mut self, wanted: impl Fn(&StoreStatus) -> bool) -> Arc<StoreStatus> {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let status = self.status.load();
                if wanted(&status) {
                    return status;
                }
                self.status.changed().await.unwrap();
            }
        })
        .await;
        found.unwrap_or_else(|_| panic!("still: {:#?}", self.status.load()))
    }

    async fn until_loaded(&mut self, revision: &Revision) -> Arc<StoreStatus> {
        self.until(|status| {
            status.refused.is_none()
                && status.loaded.as_ref().map(|loaded| &loaded.revision) == Some(revision)
        })
        .await
    }

    async fn until_refused(&mut self) -> RefusedReload {
        let status = self.until(|status| status.refused.is_some()).await;
        status.refused.clone().unwrap()
    }

    async fn reload(&self) -> ReloadReport {
        let report = tokio::time::timeout(PATIENCE, self.reloads.reload()).await;
        report.unwrap().unwrap()
    }

    fn revision(&self) -> Revision {
        self.reader.load().unwrap().revision().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Each of `changes`, one after the other, is noticed by events alone and by polling alone.
async fn check_noticed(make: impl Fn() -> Desk, changes: &[fn(&Desk)]) {
    for mode in [Mode::Events, Mode::Poll] {
        let desk = make();
        let mut running = Running::start(desk.settings(mode)).await;
        for change in changes {
            let before = running.revision();
            change(&desk);
            let after = desk.revision();
            assert_ne!(before, after, "the test changes something");
            running.until_loaded(&after).await;
            assert_eq!(running.revision(), after, "{mode:?}");
        }
    }
}

fn one_policy() -> Desk {
    Desk::with(&[("a.cedar", PERMIT)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_in_place_is_noticed() {
    check_noticed(one_policy, &[|desk| desk.write("a.cedar", FORBID)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_renamed_over_another_is_noticed() {
    check_noticed(
        one_policy,
        &[|desk| {
            desk.write(".a.cedar.tmp", FORBID);
            let directory = &desk.directory;
            fs::rename(directory.join(".a.cedar.tmp"), directory.join("a.cedar")).unwrap();
        }],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_come_and_go_are_noticed() {
    check_noticed(
        one_policy,
        &[
            |desk| {
                for n in 0..20 {
                    desk.write(&format!("{n}.cedar"), FORBID);
                }
            },
            |desk| fs::remove_file(desk.directory.join("7.cedar")).unwrap(),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_made_later_is_watched_too() {
    check_noticed(
        one_policy,
        &[
            |desk| desk.write("deep/down/b.cedar", FORBID),
            |desk| desk.write("deep/down/b.cedar", PERMIT),
            |desk| {
                fs::rename(desk.directory.join("deep"), desk.directory.join("up")).unwrap();
            },
            |desk| desk.write("up/down/b.cedar", FORBID),
            |desk| {
                fs::remove_dir_all(desk.directory.join("up")).unwrap();
                desk.write("up/down/b.cedar", PERMIT);
            },
            |desk| desk.write("up/down/b.cedar", FORBID),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_update_is_noticed() {
    check_noticed(
        || {
            let desk = Desk::with(&[("..v1/a.cedar", PERMIT), ("..v1/b.cedar", PERMIT)]);
            swap_link("..v1", &desk.directory.join("..data"));
            for name in ["a.cedar", "b.cedar"] {
                symlink(format!("..data/{name}"), desk.directory.join(name)).unwrap();
            }
            desk
        },
        &[
            |desk| {
                desk.write("..v2/a.cedar", FORBID);
                desk.write("..v2/b.cedar", FORBID);
                swap_link("..v2", &desk.directory.join("..data"));
                fs::remove_dir_all(desk.directory.join("..v1")).unwrap();
            },
            |desk| {
                desk.write("..v3/a.cedar", PERMIT);
                desk.write("..v3/b.cedar", FORBID);
                swap_link("..v3", &desk.directory.join("..data"));
                fs::remove_dir_all(desk.directory.join("..v2")).unwrap();
            },
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_replaced_is_noticed_and_watched() {
    check_noticed(
        one_policy,
        &[
            |desk| {
                write(&desk.beside("new"), "a.cedar", FORBID);
                fs::rename(&desk.directory, desk.beside("old")).unwrap();
                fs::rename(desk.beside("new"), &desk.directory).unwrap();
            },
            |desk| desk.write("a.cedar", PERMIT),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_deleted_and_made_anew_is_noticed_and_watched() {
    check_noticed(
        one_policy,
        &[
            |desk| {
                fs::remove_dir_all(&desk.directory).unwrap();
                desk.write("a.cedar", FORBID);
            },
            |desk| desk.write("a.cedar", PERMIT),
            |desk| {
                fs::remove_dir_all(&desk.directory).unwrap();
                desk.write("sub/b.cedar", FORBID);
            },
            |desk| desk.write("sub/b.cedar", PERMIT),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_the_directory_that_is_swapped_is_noticed() {
    check_noticed(
        || {
            let desk = Desk::new();
            fs::remove_dir(&desk.directory).unwrap();
            write(&desk.beside("v1"), "a.cedar", PERMIT);
            write(&desk.beside("v2"), "a.cedar", FORBID);
            swap_link("v1", &desk.directory);
            desk
        },
        &[
            |desk| swap_link("v2", &desk.directory),
            |desk| write(&desk.beside("v2"), "a.cedar", PERMIT),
            |desk| write(&desk.beside("v2"), "b.cedar", FORBID),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_file_elsewhere_is_watched() {
    check_noticed(
        || {
            let desk = Desk::new();
            write(&desk.beside("far"), "shared.cedar", PERMIT);
            symlink("../far/shared.cedar", desk.directory.join("a.cedar")).unwrap();
            desk
        },
        &[
            |desk| write(&desk.beside("far"), "shared.cedar", FORBID),
            |desk| {
                write(&desk.beside("far"), "new", PERMIT);
                let far = desk.beside("far");
                fs::rename(far.join("new"), far.join("shared.cedar")).unwrap();
            },
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_away_for_a_while_is_refused_until_it_is_back() {
    for mode in [Mode::Events, Mode::Poll] {
        let desk = one_policy();
        let mut running = Running::start(desk.settings(mode)).await;
        let good = running.revision();

        fs::rename(&desk.directory, desk.beside("away")).unwrap();
        let refused = running.until_refused().await;
        assert_eq!(refused.total, 1);
        assert!(refused.diagnostics[0].message.contains("does not exist"));
        assert_eq!(running.revision(), good, "the last good one stays");

        fs::rename(desk.beside("away"), &desk.directory).unwrap();
        running.until_loaded(&good).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_edit_keeps_what_is_in_force_and_is_told_until_mended() {
    let desk = one_policy();
    let mut running = Running::start(desk.settings(Mode::Events)).await;
    let good = running.revision();

    desk.write("a.cedar", "permit(");
    let refused = running.until_refused().await;
    assert_eq!(refused.diagnostics[0].file, "a.cedar");
    assert_eq!(running.revision(), good);

    desk.write("a.cedar", FORBID);
    let status = running.until_loaded(&desk.revision()).await;
    assert_eq!((status.reloads.refused, status.reloads.reloaded), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_edit_taken_back_clears_the_refusal_without_a_reload() {
    let desk = one_policy();
    let mut running = Running::start(desk.settings(Mode::Events)).await;

    desk.write("a.cedar", "permit(");
    running.until_refused().await;
    desk.write("a.cedar", PERMIT);
    let status = running.until_loaded(&desk.revision()).await;
    assert_eq!(status.reloads.reloaded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_reload_says_what_became_of_it() {
    let desk = one_policy();
    // Neither events nor polls: what happens is the forced reloads' doing.
    let settings = StoreSettings {
        poll: 10 * PATIENCE,
        ..desk.settings(Mode::Poll)
    };
    let running = Running::start(settings).await;

    let report = running.reload().await;
    assert_eq!(report.outcome, ReloadOutcome::Unchanged);

    desk.write("a.cedar", FORBID);
    let report = running.reload().await;
    assert_eq!(report.outcome, ReloadOutcome::Reloaded);
    assert_eq!(
        report.status.loaded.as_ref().unwrap().revision,
        desk.revision()
    );
    assert_eq!(running.revision(), desk.revision());

    desk.write("a.cedar", "permit(");
    for _ in 0..2 {
        let report = running.reload().await;
        assert_eq!(report.outcome, ReloadOutcome::Refused);
        assert!(report.status.refused.is_some());
        assert_eq!(
            report.status.reloads.refused, 1,
            "the same content counts once"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_reloads_that_wait_together_are_all_answered() {
    let desk = one_policy();
    let running = Running::start(desk.settings(Mode::Poll)).await;
    desk.write("a.cedar", FORBID);
    let wanted = desk.revision();
    let all: Vec<_> = (0..200)
        .map(|_| {
            let reloads = running.reloads.clone();
            tokio::spawn(async move { reloads.reload().await })
        })
        .collect();
    for one in all {
        let report = tokio::time::timeout(PATIENCE, one)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(report.status.loaded.as_ref().unwrap().revision, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_has_ended_reloads_no_more() {
    let desk = one_policy();
    let opened = open(desk.settings(Mode::Events)).await.unwrap();
    opened.reloader.run(std::future::ready(())).await;
    assert!(matches!(opened.reloads.reload().await, Err(ReloadsClosed)));
    assert!(
        opened.reader.load().is_some(),
        "what was in force stays readable"
    );
}

/// Writes a file over and over, until dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    fn start(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut n = 0;
            while !is_over.load(Ordering::Relaxed) {
                n += 1;
                fs::write(&path, format!("{FORBID}// {n}\n")).unwrap();
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_written_all_the_time_does_not_open() {
    let desk = one_policy();
    let settings = StoreSettings {
        // Longer than a busy machine lets the writer wait.
        quiet: Duration::from_millis(500),
        longest_delay: Duration::from_secs(1),
        ..desk.settings(Mode::Events)
    };
    let writer = Writer::start(desk.directory.join("b.cedar"));
    let refused = open(settings.clone()).await.unwrap_err();
    assert!(refused.diagnostics[0].message.starts_with("held back"));

    let unready = StoreSettings {
        start_unready: true,
        ..settings
    };
    let mut running = Running::start(unready).await;
    assert!(running.reader.load().is_none());
    drop(writer);
    running.until_loaded(&desk.revision()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn constant_writing_is_reported_as_held_back_and_taken_when_it_ends() {
    let desk = one_policy();
    let settings = StoreSettings {
        // Longer than a busy machine lets the writer wait.
        quiet: Duration::from_millis(500),
        longest_delay: Duration::from_secs(1),
        ..desk.settings(Mode::Events)
    };
    let mut running = Running::start(settings).await;
    let good = running.revision();

    let writer = Writer::start(desk.directory.join("b.cedar"));
    let refused = running.until_refused().await;
    assert_eq!(refused.diagnostics[0].file, "b.cedar");
    assert!(refused.diagnostics[0].message.starts_with("held back"));
    assert_eq!(running.revision(), good);
    let report = running.reload().await;
    assert_eq!(
        report.outcome,
        ReloadOutcome::Refused,
        "it is not waited for without end"
    );

    drop(writer);
    let status = running.until_loaded(&desk.revision()).await;
    assert_eq!(status.reloads.held_back, 1);
}

/// What is refused unless the operator allows it.
async fn check_suspicious(files: &[(&str, &str)], change: fn(&Desk), file: &str, says: &str) {
    for allow_empty in [false, true] {
        let desk = Desk::with(files);
        let settings = StoreSettings {
            allow_empty,
            ..desk.settings(Mode::Events)
        };
        let mut running = Running::start(settings).await;
        let before = running.revision();
        change(&desk);
        if allow_empty {
            running.until_loaded(&desk.revision()).await;
            continue;
        }
        let refused = running.until_refused().await;
        let told = refused
            .diagnostics
            .iter()
            .find(|told| told.file == file && told.message.contains(says));
        let help = told
            .and_then(|told| told.help.as_deref())
            .unwrap_or_default();
        assert!(help.contains("--allow-empty"), "{refused:#?}");
        assert_eq!(running.revision(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_becomes_empty_is_suspicious() {
    check_suspicious(
        &[("a.cedar", PERMIT)],
        |desk| fs::remove_file(desk.directory.join("a.cedar")).unwrap(),
        "",
        "no policy and no link is left",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_gone_is_suspicious() {
    check_suspicious(
        &[("a.cedar", PERMIT), ("a.cedarschema", SCHEMA)],
        |desk| fs::remove_file(desk.directory.join("a.cedarschema")).unwrap(),
        "",
        "no schema file is left",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_file_that_shrinks_to_nothing_is_suspicious() {
    check_suspicious(
        &[("a.cedar", PERMIT), ("b.cedar", FORBID)],
        |desk| desk.write("b.cedar", ""),
        "b.cedar",
        "no policy is left of 1",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_file_that_is_removed_is_no_mistake() {
    let make = || Desk::with(&[("a.cedar", PERMIT), ("b.cedar", FORBID)]);
    check_noticed(
        make,
        &[|desk| fs::remove_file(desk.directory.join("b.cedar")).unwrap()],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_loads_at_the_start() {
    let desk = Desk::new();
    let running = Running::start(desk.settings(Mode::Events)).await;
    assert_eq!(running.revision(), desk.revision());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_directory_does_not_open() {
    let desk = Desk::with(&[("a.cedar", "permit(")]);
    let refused = open(desk.settings(Mode::Events)).await.unwrap_err();
    assert_eq!(refused.diagnostics[0].file, "a.cedar");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_may_start_unready_and_wait_for_a_good_directory() {
    for mode in [Mode::Events, Mode::Poll] {
        let desk = Desk::new();
        fs::remove_dir(&desk.directory).unwrap();
        let settings = StoreSettings {
            directory: desk.directory.join("not/yet"),
            start_unready: true,
            ..desk.settings(mode)
        };
        let directory = settings.directory.clone();
        let mut running = Running::start(settings).await;
        assert!(running.reader.load().is_none());
        assert!(running.status.load().refused.is_some());

        write(&directory, "a.cedar", PERMIT);
        let status = running.until(|status| status.loaded.is_some()).await;
        assert!(status.refused.is_none());
        assert!(running.reader.load().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_while_compiling_is_a_refusal_and_not_the_end() {
    fn fragile(
        previous: Option<&Snapshot>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Snapshot, CompileError> {
        let is_bomb = sources
            .files()
            .iter()
            .any(|file| file.text().unwrap().contains("bomb"));
        assert!(!is_bomb, "boom");
        compile_from(previous, sources, settings, workers)
    }
    let desk = one_policy();
    let mut running = Running::start_with(desk.settings(Mode::Events), fragile).await;

    desk.write("a.cedar", "// bomb");
    let refused = running.until_refused().await;
    assert!(
        refused.diagnostics[0].message.ends_with("boom"),
        "{refused:?}"
    );

    desk.write("a.cedar", FORBID);
    running.until_loaded(&desk.revision()).await;
}

/// Entities that the compiler finds changed when it comes to read them.
struct Meddling {
    path: PathBuf,
    times: u32,
}

impl Meddling {
    /// Writes the file, unless it has done so often enough.
    fn meddle(&mut self) {
        if self.times > 0 {
            self.times -= 1;
            let entities = format!(
                r#"[{{"uid":{{"type":"U","id":"{}"}},"attrs":{{}},"parents":[]}}]"#,
                self.times
            );
            fs::write(&self.path, entities).unwrap();
        }
    }
}

fn one_policy_and_entities() -> Desk {
    Desk::with(&[("a.cedar", PERMIT), ("entities.json", "[]")])
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changes_while_it_is_loaded_is_looked_at_again_and_not_refused() {
    static MEDDLING: Mutex<Option<Meddling>> = Mutex::new(None);
    fn meddled(
        previous: Option<&Snapshot>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Snapshot, CompileError> {
        MEDDLING.lock().unwrap().as_mut().unwrap().meddle();
        compile_from(previous, sources, settings, workers)
    }
    let desk = one_policy_and_entities();
    let path = desk.directory.join("entities.json");
    *MEDDLING.lock().unwrap() = Some(Meddling { path, times: 3 });
    let mut running = Running::start_with(desk.settings(Mode::Events), meddled).await;
    let status = running.until_loaded(&desk.revision()).await;
    assert_eq!(status.loaded.as_ref().unwrap().counts.entities, 1);
    assert_eq!((status.reloads.refused, status.reloads.reloaded), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_changes_whenever_it_is_loaded_is_held_back() {
    static MEDDLING: Mutex<Option<Meddling>> = Mutex::new(None);
    fn meddled(
        previous: Option<&Snapshot>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Snapshot, CompileError> {
        MEDDLING.lock().unwrap().as_mut().unwrap().meddle();
        compile_from(previous, sources, settings, workers)
    }
    let desk = one_policy_and_entities();
    let path = desk.directory.join("entities.json");
    let times = u32::MAX;
    *MEDDLING.lock().unwrap() = Some(Meddling { path, times });
    let settings = StoreSettings {
        longest_delay: Duration::from_millis(200),
        ..desk.settings(Mode::Events)
    };
    let refused = open_with(settings, meddled).await.unwrap_err();
    assert_eq!(refused.diagnostics[0].file, "entities.json");
    assert!(refused.diagnostics[0].message.starts_with("held back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_changed_to_and_fro_is_compiled_by_few_threads_at_once() {
    static RUNNING: AtomicU64 = AtomicU64::new(0);
    static MOST: AtomicU64 = AtomicU64::new(0);
    fn slow(
        previous: Option<&Snapshot>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Snapshot, CompileError> {
        let running = RUNNING.fetch_add(1, Ordering::Relaxed) + 1;
        MOST.fetch_max(running, Ordering::Relaxed);
        if previous.is_some() {
            thread::sleep(Duration::from_millis(300));
        }
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        compile_from(previous, sources, settings, workers)
    }
    let desk = one_policy();
    let mut running = Running::start_with(desk.settings(Mode::Events), slow).await;
    for n in 0..40 {
        desk.write("a.cedar", if n % 2 == 0 { FORBID } else { PERMIT });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.until_loaded(&desk.revision()).await;
    assert!(MOST.load(Ordering::Relaxed) <= 2, "{MOST:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_force_is_handed_to_the_compiler_and_nothing_at_the_start() {
    static PREVIOUS: Mutex<Vec<Option<Revision>>> = Mutex::new(Vec::new());
    fn noted(
        previous: Option<&Snapshot>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Snapshot, CompileError> {
        let revision = previous.map(|snapshot| snapshot.revision().clone());
        PREVIOUS.lock().unwrap().push(revision);
        compile_from(previous, sources, settings, workers)
    }
    let desk = one_policy();
    let first = desk.revision();
    let mut running = Running::start_with(desk.settings(Mode::Events), noted).await;
    desk.write("a.cedar", FORBID);
    running.until_loaded(&desk.revision()).await;
    let previous = PREVIOUS.lock().unwrap();
    let (at_the_start, later) = previous.split_first().unwrap();
    assert_eq!(*at_the_start, None);
    assert!(
        !later.is_empty()
            && later
                .iter()
                .all(|previous| previous.as_ref() == Some(&first))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_near_miss_is_warned_of_though_the_content_stays() {
    let desk = one_policy();
    let mut running = Running::start(desk.settings(Mode::Events)).await;
    let is_told = |status: &StoreStatus| {
        status
            .warnings
            .iter()
            .any(|warning| warning.file == "schema.json")
    };

    desk.write("schema.json", "{}");
    let status = running.until(is_told).await;
    assert_eq!(status.reloads.reloaded, 1);
    fs::remove_file(desk.directory.join("schema.json")).unwrap();
    running.until(|status| !is_told(status)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_of_a_config_map_are_never_of_two_updates() {
    // Enough files between the two to have the writer meet the reader in the middle.
    let names: Vec<String> = (0..60).map(|n| format!("{n:02}.cedar")).collect();
    let desk = Desk::new();
    let mut pure = Vec::new();
    for (version, text) in [("..v1", PERMIT), ("..v2", FORBID)] {
        for name in &names {
            desk.write(&format!("{version}/{name}"), text);
        }
    }
    for name in &names {
        symlink(format!("..data/{name}"), desk.directory.join(name)).unwrap();
    }
    for version in ["..v1", "..v2"] {
        swap_link(version, &desk.directory.join("..data"));
        pure.push(desk.revision());
    }
    let settings = StoreSettings {
        quiet: Duration::from_millis(1),
        ..desk.settings(Mode::Events)
    };
    let mut running = Running::start(settings).await;

    let (swaps, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let writer = thread::spawn({
        let (swaps, stop) = (Arc::clone(&swaps), Arc::clone(&stop));
        let link = desk.directory.join("..data");
        move || {
            while !stop.load(Ordering::Relaxed) {
                let n = swaps.fetch_add(1, Ordering::Relaxed);
                swap_link(if n % 2 == 0 { "..v1" } else { "..v2" }, &link);
                // Pauses of many lengths, so that some readings agree and some are cut through.
                thread::sleep(Duration::from_micros(n * 7919 % 20_000));
            }
        }
    });
    for _ in 0..40 {
        tokio::time::timeout(PATIENCE, running.reader.changed())
            .await
            .unwrap()
            .unwrap();
        assert!(
            pure.contains(&running.revision()),
            "a mixture was put in force"
        );
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    running.until_loaded(&desk.revision()).await;
}
