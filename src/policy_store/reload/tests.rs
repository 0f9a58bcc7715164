//! The running store on real files: all ways to change a directory, by events and by polling.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Config;
use crate::pdp::CompileError;
use crate::pdp::Workers;
use crate::pdp::id::Revision;
use crate::pdp::settings::Settings;
use crate::pdp::sources::Sources;
use crate::policy_store::directory::{SourceLimits, scan};
use crate::policy_store::status::{RejectedReload, StoreClosed, StoreStatus};
use crate::watch::{Mode, WatchSettings};

const PERMIT: &str = "permit(principal, action, resource);\n";
const FORBID: &str = "forbid(principal, action, resource);\n";
const SCHEMA: &str = "
entity User, Doc;
action read appliesTo { principal: User, resource: Doc };
";

/// Time after which a test fails; long enough for the slowest machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A policy directory inside a temporary directory, so that it can be replaced.
struct TestDirectory {
    outer: TempDir,
    directory: PathBuf,
}

impl TestDirectory {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("policies");
        fs::create_dir(&directory).unwrap();
        Self { outer, directory }
    }

    fn with(files: &[(&str, &str)]) -> Self {
        let dir = Self::new();
        for (name, text) in files {
            dir.write(name, text);
        }
        dir
    }

    fn sibling(&self, name: &str) -> PathBuf {
        self.outer.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.directory, name, text);
    }

    fn revision(&self) -> Revision {
        let (limits, workers) = (SourceLimits::default(), Workers::default());
        let scan = scan(&self.directory, &limits, None, &workers);
        scan.revision().unwrap()
    }

    fn settings(&self, mode: Mode) -> StoreSettings {
        StoreSettings {
            directory: self.directory.clone(),
            watch: WatchSettings {
                mode,
                // With events the poll is never due, so that each is tested alone.
                poll: match mode {
                    Mode::Events => 10 * TIMEOUT,
                    Mode::Poll => Duration::from_millis(20),
                },
            },
            quiet_period: Duration::from_millis(20),
            ..Config::default().store
        }
    }
}

fn write(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Replaces `link` by a link to `target` through a rename, as the kubelet does.
fn swap_link(target: &str, link: &Path) {
    let new = link.with_file_name("..new_link");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// A store whose reload task runs.
struct Running {
    reader: Reader,
    status: StatusReader,
    reloads: ReloadHandle,
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

    /// Waits for a status for which `wanted` holds.
    async fn until(&mut self, wanted: impl Fn(&StoreStatus) -> bool) -> Arc<StoreStatus> {
        let found = tokio::time::timeout(TIMEOUT, async {
            loop {
                let status = self.status.load();
                if wanted(&status) {
                    return status;
                }
                self.status.changed().await.unwrap();
            }
        })
        .await;
        found.unwrap_or_else(|_| panic!("timeout: {:#?}", self.status.load()))
    }

    async fn until_loaded(&mut self, revision: &Revision) -> Arc<StoreStatus> {
        self.until(|status| {
            status.rejected.is_none()
                && status.loaded.as_ref().map(|loaded| &loaded.revision) == Some(revision)
        })
        .await
    }

    async fn until_rejected(&mut self) -> RejectedReload {
        let status = self.until(|status| status.rejected.is_some()).await;
        status.rejected.clone().unwrap()
    }

    async fn reload(&self) -> ReloadReport {
        let report = tokio::time::timeout(TIMEOUT, self.reloads.reload()).await;
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

/// Checks that each change, one after the other, is loaded: by events alone, and by polling alone.
async fn check_loaded(make: impl Fn() -> TestDirectory, changes: &[fn(&TestDirectory)]) {
    for mode in [Mode::Events, Mode::Poll] {
        let dir = make();
        let mut running = Running::start(dir.settings(mode)).await;
        for change in changes {
            let before = running.revision();
            change(&dir);
            let after = dir.revision();
            assert_ne!(before, after, "the test must change something");
            running.until_loaded(&after).await;
            assert_eq!(running.revision(), after, "{mode:?}");
        }
    }
}

fn one_policy() -> TestDirectory {
    TestDirectory::with(&[("a.cedar", PERMIT)])
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_in_place_are_loaded() {
    check_loaded(one_policy, &[|dir| dir.write("a.cedar", FORBID)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_renamed_over_others_are_loaded() {
    check_loaded(
        one_policy,
        &[|dir| {
            dir.write(".a.cedar.tmp", FORBID);
            let directory = &dir.directory;
            fs::rename(directory.join(".a.cedar.tmp"), directory.join("a.cedar")).unwrap();
        }],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn added_and_removed_files_are_loaded() {
    check_loaded(
        one_policy,
        &[
            |dir| {
                for n in 0..20 {
                    dir.write(&format!("{n}.cedar"), FORBID);
                }
            },
            |dir| fs::remove_file(dir.directory.join("7.cedar")).unwrap(),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_created_later_are_watched() {
    check_loaded(
        one_policy,
        &[
            |dir| dir.write("deep/down/b.cedar", FORBID),
            |dir| dir.write("deep/down/b.cedar", PERMIT),
            |dir| {
                fs::rename(dir.directory.join("deep"), dir.directory.join("up")).unwrap();
            },
            |dir| dir.write("up/down/b.cedar", FORBID),
            |dir| {
                fs::remove_dir_all(dir.directory.join("up")).unwrap();
                dir.write("up/down/b.cedar", PERMIT);
            },
            |dir| dir.write("up/down/b.cedar", FORBID),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_map_updates_are_loaded() {
    check_loaded(
        || {
            let dir = TestDirectory::with(&[("..v1/a.cedar", PERMIT), ("..v1/b.cedar", PERMIT)]);
            swap_link("..v1", &dir.directory.join("..data"));
            for name in ["a.cedar", "b.cedar"] {
                symlink(format!("..data/{name}"), dir.directory.join(name)).unwrap();
            }
            dir
        },
        &[
            |dir| {
                dir.write("..v2/a.cedar", FORBID);
                dir.write("..v2/b.cedar", FORBID);
                swap_link("..v2", &dir.directory.join("..data"));
                fs::remove_dir_all(dir.directory.join("..v1")).unwrap();
            },
            |dir| {
                dir.write("..v3/a.cedar", PERMIT);
                dir.write("..v3/b.cedar", FORBID);
                swap_link("..v3", &dir.directory.join("..data"));
                fs::remove_dir_all(dir.directory.join("..v2")).unwrap();
            },
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_directory_is_loaded_and_watched() {
    check_loaded(
        one_policy,
        &[
            |dir| {
                write(&dir.sibling("new"), "a.cedar", FORBID);
                fs::rename(&dir.directory, dir.sibling("old")).unwrap();
                fs::rename(dir.sibling("new"), &dir.directory).unwrap();
            },
            |dir| dir.write("a.cedar", PERMIT),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_directory_is_loaded_and_watched() {
    check_loaded(
        one_policy,
        &[
            |dir| {
                fs::remove_dir_all(&dir.directory).unwrap();
                dir.write("a.cedar", FORBID);
            },
            |dir| dir.write("a.cedar", PERMIT),
            |dir| {
                fs::remove_dir_all(&dir.directory).unwrap();
                dir.write("sub/b.cedar", FORBID);
            },
            |dir| dir.write("sub/b.cedar", PERMIT),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_link_to_the_directory_is_loaded() {
    check_loaded(
        || {
            let dir = TestDirectory::new();
            fs::remove_dir(&dir.directory).unwrap();
            write(&dir.sibling("v1"), "a.cedar", PERMIT);
            write(&dir.sibling("v2"), "a.cedar", FORBID);
            swap_link("v1", &dir.directory);
            dir
        },
        &[
            |dir| swap_link("v2", &dir.directory),
            |dir| write(&dir.sibling("v2"), "a.cedar", PERMIT),
            |dir| write(&dir.sibling("v2"), "b.cedar", FORBID),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn linked_files_elsewhere_are_watched() {
    check_loaded(
        || {
            let dir = TestDirectory::new();
            write(&dir.sibling("far"), "shared.cedar", PERMIT);
            symlink("../far/shared.cedar", dir.directory.join("a.cedar")).unwrap();
            dir
        },
        &[
            |dir| write(&dir.sibling("far"), "shared.cedar", FORBID),
            |dir| {
                write(&dir.sibling("far"), "new", PERMIT);
                let far = dir.sibling("far");
                fs::rename(far.join("new"), far.join("shared.cedar")).unwrap();
            },
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_directory_is_rejected_until_it_returns() {
    for mode in [Mode::Events, Mode::Poll] {
        let dir = one_policy();
        let mut running = Running::start(dir.settings(mode)).await;
        let good = running.revision();

        fs::rename(&dir.directory, dir.sibling("away")).unwrap();
        let rejected = running.until_rejected().await;
        assert_eq!(rejected.total, 1);
        assert!(rejected.diagnostics[0].message.contains("does not exist"));
        assert_eq!(running.revision(), good, "the last valid one stays");

        fs::rename(dir.sibling("away"), &dir.directory).unwrap();
        running.until_loaded(&good).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_edit_keeps_the_current_policies() {
    let dir = one_policy();
    let mut running = Running::start(dir.settings(Mode::Events)).await;
    let good = running.revision();

    dir.write("a.cedar", "permit(");
    let rejected = running.until_rejected().await;
    assert_eq!(rejected.diagnostics[0].file, "a.cedar");
    assert_eq!(running.revision(), good);

    dir.write("a.cedar", FORBID);
    let status = running.until_loaded(&dir.revision()).await;
    assert_eq!((status.reloads.rejected, status.reloads.reloaded), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn reverted_edit_clears_the_rejection() {
    let dir = one_policy();
    let mut running = Running::start(dir.settings(Mode::Events)).await;

    dir.write("a.cedar", "permit(");
    running.until_rejected().await;
    dir.write("a.cedar", PERMIT);
    let status = running.until_loaded(&dir.revision()).await;
    assert_eq!(status.reloads.reloaded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requested_reloads_return_their_outcome() {
    let dir = one_policy();
    // Neither events nor polls: only requested reloads scan.
    let mut settings = dir.settings(Mode::Poll);
    settings.watch.poll = 10 * TIMEOUT;
    let running = Running::start(settings).await;

    let report = running.reload().await;
    assert_eq!(report.outcome, ReloadOutcome::Unchanged);

    dir.write("a.cedar", FORBID);
    let report = running.reload().await;
    assert_eq!(report.outcome, ReloadOutcome::Reloaded);
    assert_eq!(
        report.status.loaded.as_ref().unwrap().revision,
        dir.revision()
    );
    assert_eq!(running.revision(), dir.revision());

    dir.write("a.cedar", "permit(");
    for _ in 0..2 {
        let report = running.reload().await;
        assert_eq!(report.outcome, ReloadOutcome::Rejected);
        assert!(report.status.rejected.is_some());
        assert_eq!(
            report.status.reloads.rejected, 1,
            "equal content counts once"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requested_reloads_are_all_answered() {
    let dir = one_policy();
    let running = Running::start(dir.settings(Mode::Poll)).await;
    dir.write("a.cedar", FORBID);
    let wanted = dir.revision();
    let all: Vec<_> = (0..200)
        .map(|_| {
            let reloads = running.reloads.clone();
            tokio::spawn(async move { reloads.reload().await })
        })
        .collect();
    for one in all {
        let report = tokio::time::timeout(TIMEOUT, one)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(report.status.loaded.as_ref().unwrap().revision, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_store_rejects_reload_requests() {
    let dir = one_policy();
    let opened = open(dir.settings(Mode::Events)).await.unwrap();
    opened.reloader.run(std::future::ready(())).await;
    assert!(matches!(opened.reloads.reload().await, Err(StoreClosed)));
    assert!(
        opened.reader.load().is_some(),
        "the current snapshot stays readable"
    );
}

/// A thread that writes a file over and over, until dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    fn start(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut n = 0;
            while !is_stopped.load(Ordering::Relaxed) {
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
async fn constantly_written_directory_does_not_open() {
    let dir = one_policy();
    let settings = StoreSettings {
        // Longer than the writer may be suspended on a busy machine.
        quiet_period: Duration::from_millis(500),
        max_reload_delay: Duration::from_secs(1),
        ..dir.settings(Mode::Events)
    };
    let writer = Writer::start(dir.directory.join("b.cedar"));
    let rejected = open(settings.clone()).await.unwrap_err();
    assert!(rejected.diagnostics[0].message.starts_with("held back"));

    let unready = StoreSettings {
        start_unready: true,
        ..settings
    };
    let mut running = Running::start(unready).await;
    assert!(running.reader.load().is_none());
    drop(writer);
    running.until_loaded(&dir.revision()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn constant_writes_are_held_back_until_they_end() {
    let dir = one_policy();
    let settings = StoreSettings {
        // Longer than the writer may be suspended on a busy machine.
        quiet_period: Duration::from_millis(500),
        max_reload_delay: Duration::from_secs(1),
        ..dir.settings(Mode::Events)
    };
    let mut running = Running::start(settings).await;
    let good = running.revision();

    let writer = Writer::start(dir.directory.join("b.cedar"));
    let rejected = running.until_rejected().await;
    assert_eq!(rejected.diagnostics[0].file, "b.cedar");
    assert!(rejected.diagnostics[0].message.starts_with("held back"));
    assert_eq!(running.revision(), good);
    let report = running.reload().await;
    assert_eq!(
        report.outcome,
        ReloadOutcome::Rejected,
        "the request must not wait without end"
    );

    drop(writer);
    let status = running.until_loaded(&dir.revision()).await;
    assert_eq!(status.reloads.held_back, 1);
}

/// Checks that `change` is rejected for `file`, unless `allow_empty` is set.
async fn check_rejected_unless_allowed(
    files: &[(&str, &str)],
    change: fn(&TestDirectory),
    file: &str,
    says: &str,
) {
    for allow_empty in [false, true] {
        let dir = TestDirectory::with(files);
        let settings = StoreSettings {
            allow_empty,
            ..dir.settings(Mode::Events)
        };
        let mut running = Running::start(settings).await;
        let before = running.revision();
        change(&dir);
        if allow_empty {
            running.until_loaded(&dir.revision()).await;
            continue;
        }
        let rejected = running.until_rejected().await;
        let diagnostic = rejected
            .diagnostics
            .iter()
            .find(|found| found.file == file && found.message.contains(says));
        let help = diagnostic
            .and_then(|found| found.help.as_deref())
            .unwrap_or_default();
        assert!(help.contains("--allow-empty"), "{rejected:#?}");
        assert_eq!(running.revision(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_that_becomes_empty_is_rejected() {
    check_rejected_unless_allowed(
        &[("a.cedar", PERMIT)],
        |dir| fs::remove_file(dir.directory.join("a.cedar")).unwrap(),
        "",
        "all policies and links were removed",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_schema_is_rejected() {
    check_rejected_unless_allowed(
        &[("a.cedar", PERMIT), ("a.cedarschema", SCHEMA)],
        |dir| fs::remove_file(dir.directory.join("a.cedarschema")).unwrap(),
        "",
        "all schema files were removed",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_policy_file_is_rejected() {
    check_rejected_unless_allowed(
        &[("a.cedar", PERMIT), ("b.cedar", FORBID)],
        |dir| dir.write("b.cedar", ""),
        "b.cedar",
        "all policies of this file (1) were removed",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_policy_file_is_loaded() {
    let make = || TestDirectory::with(&[("a.cedar", PERMIT), ("b.cedar", FORBID)]);
    check_loaded(
        make,
        &[|dir| fs::remove_file(dir.directory.join("b.cedar")).unwrap()],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_directory_loads_at_startup() {
    let dir = TestDirectory::new();
    let running = Running::start(dir.settings(Mode::Events)).await;
    assert_eq!(running.revision(), dir.revision());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_directory_does_not_open() {
    let dir = TestDirectory::with(&[("a.cedar", "permit(")]);
    let rejected = open(dir.settings(Mode::Events)).await.unwrap_err();
    assert_eq!(rejected.diagnostics[0].file, "a.cedar");
}

#[tokio::test(flavor = "multi_thread")]
async fn unready_store_waits_for_a_valid_directory() {
    for mode in [Mode::Events, Mode::Poll] {
        let dir = TestDirectory::new();
        fs::remove_dir(&dir.directory).unwrap();
        let settings = StoreSettings {
            directory: dir.directory.join("not/yet"),
            start_unready: true,
            ..dir.settings(mode)
        };
        let directory = settings.directory.clone();
        let mut running = Running::start(settings).await;
        assert!(running.reader.load().is_none());
        assert!(running.status.load().rejected.is_some());

        write(&directory, "a.cedar", PERMIT);
        let status = running.until(|status| status.loaded.is_some()).await;
        assert!(status.rejected.is_none());
        assert!(running.reader.load().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compiler_panic_is_a_rejection() {
    fn compile_or_panic(
        previous: Option<&Compiled>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Compiled, CompileError> {
        let must_panic = sources
            .files()
            .iter()
            .any(|file| file.text().unwrap().contains("bomb"));
        assert!(!must_panic, "boom");
        compile_from(previous, sources, settings, workers)
    }
    let dir = one_policy();
    let mut running = Running::start_with(dir.settings(Mode::Events), compile_or_panic).await;

    dir.write("a.cedar", "// bomb");
    let rejected = running.until_rejected().await;
    assert!(
        rejected.diagnostics[0].message.ends_with("boom"),
        "{rejected:?}"
    );

    dir.write("a.cedar", FORBID);
    running.until_loaded(&dir.revision()).await;
}

/// A file of entities that changes when the compiler starts.
struct ChangingFile {
    path: PathBuf,
    times: u32,
}

impl ChangingFile {
    /// Writes the file, at most `times` times.
    fn change(&mut self) {
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

fn one_policy_and_entities() -> TestDirectory {
    TestDirectory::with(&[("a.cedar", PERMIT), ("entities.json", "[]")])
}

#[tokio::test(flavor = "multi_thread")]
async fn content_changed_while_compiling_is_scanned_again() {
    static CHANGING: Mutex<Option<ChangingFile>> = Mutex::new(None);
    fn compile_changing(
        previous: Option<&Compiled>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Compiled, CompileError> {
        CHANGING.lock().unwrap().as_mut().unwrap().change();
        compile_from(previous, sources, settings, workers)
    }
    let dir = one_policy_and_entities();
    let path = dir.directory.join("entities.json");
    *CHANGING.lock().unwrap() = Some(ChangingFile { path, times: 3 });
    let mut running = Running::start_with(dir.settings(Mode::Events), compile_changing).await;
    let status = running.until_loaded(&dir.revision()).await;
    assert_eq!(status.loaded.as_ref().unwrap().counts.entities, 1);
    assert_eq!((status.reloads.rejected, status.reloads.reloaded), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_always_changed_while_compiling_is_held_back() {
    static CHANGING: Mutex<Option<ChangingFile>> = Mutex::new(None);
    fn compile_changing(
        previous: Option<&Compiled>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Compiled, CompileError> {
        CHANGING.lock().unwrap().as_mut().unwrap().change();
        compile_from(previous, sources, settings, workers)
    }
    let dir = one_policy_and_entities();
    let path = dir.directory.join("entities.json");
    let times = u32::MAX;
    *CHANGING.lock().unwrap() = Some(ChangingFile { path, times });
    let settings = StoreSettings {
        max_reload_delay: Duration::from_millis(200),
        ..dir.settings(Mode::Events)
    };
    let rejected = open_with(settings, compile_changing).await.unwrap_err();
    assert_eq!(rejected.diagnostics[0].file, "entities.json");
    assert!(rejected.diagnostics[0].message.starts_with("held back"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_changes_start_few_compile_threads() {
    static RUNNING: AtomicU64 = AtomicU64::new(0);
    static MOST: AtomicU64 = AtomicU64::new(0);
    fn compile_slowly(
        previous: Option<&Compiled>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Compiled, CompileError> {
        let running = RUNNING.fetch_add(1, Ordering::Relaxed) + 1;
        MOST.fetch_max(running, Ordering::Relaxed);
        if previous.is_some() {
            thread::sleep(Duration::from_millis(300));
        }
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        compile_from(previous, sources, settings, workers)
    }
    let dir = one_policy();
    let mut running = Running::start_with(dir.settings(Mode::Events), compile_slowly).await;
    for n in 0..40 {
        dir.write("a.cedar", if n % 2 == 0 { FORBID } else { PERMIT });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.until_loaded(&dir.revision()).await;
    assert!(MOST.load(Ordering::Relaxed) <= 2, "{MOST:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn compiler_gets_the_current_snapshot() {
    static PREVIOUS: Mutex<Vec<Option<Revision>>> = Mutex::new(Vec::new());
    fn compile_and_record(
        previous: Option<&Compiled>,
        sources: &Sources,
        settings: &Settings,
        workers: &Workers,
    ) -> Result<Compiled, CompileError> {
        let revision = previous.map(|previous| previous.snapshot.revision().clone());
        PREVIOUS.lock().unwrap().push(revision);
        compile_from(previous, sources, settings, workers)
    }
    let dir = one_policy();
    let first = dir.revision();
    let mut running = Running::start_with(dir.settings(Mode::Events), compile_and_record).await;
    dir.write("a.cedar", FORBID);
    running.until_loaded(&dir.revision()).await;
    let previous = PREVIOUS.lock().unwrap();
    let (at_startup, later) = previous.split_first().unwrap();
    assert_eq!(*at_startup, None);
    assert!(
        !later.is_empty()
            && later
                .iter()
                .all(|previous| previous.as_ref() == Some(&first))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn name_warnings_appear_without_a_reload() {
    let dir = one_policy();
    let mut running = Running::start(dir.settings(Mode::Events)).await;
    let has_warning = |status: &StoreStatus| {
        status
            .warnings
            .iter()
            .any(|warning| warning.file == "schema.json")
    };

    dir.write("schema.json", "{}");
    let status = running.until(has_warning).await;
    assert_eq!(status.reloads.reloaded, 1);
    fs::remove_file(dir.directory.join("schema.json")).unwrap();
    running.until(|status| !has_warning(status)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_map_updates_are_never_mixed() {
    // Many files, so that a link is swapped in the middle of a scan.
    let names: Vec<String> = (0..60).map(|n| format!("{n:02}.cedar")).collect();
    let dir = TestDirectory::new();
    let mut unmixed = Vec::new();
    for (version, text) in [("..v1", PERMIT), ("..v2", FORBID)] {
        for name in &names {
            dir.write(&format!("{version}/{name}"), text);
        }
    }
    for name in &names {
        symlink(format!("..data/{name}"), dir.directory.join(name)).unwrap();
    }
    for version in ["..v1", "..v2"] {
        swap_link(version, &dir.directory.join("..data"));
        unmixed.push(dir.revision());
    }
    let settings = StoreSettings {
        quiet_period: Duration::from_millis(1),
        ..dir.settings(Mode::Events)
    };
    let mut running = Running::start(settings).await;

    let (swaps, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let writer = thread::spawn({
        let (swaps, stop) = (Arc::clone(&swaps), Arc::clone(&stop));
        let link = dir.directory.join("..data");
        move || {
            while !stop.load(Ordering::Relaxed) {
                let n = swaps.fetch_add(1, Ordering::Relaxed);
                swap_link(if n % 2 == 0 { "..v1" } else { "..v2" }, &link);
                // Pauses of many lengths, so that some scans are equal and some are interrupted.
                thread::sleep(Duration::from_micros(n * 7919 % 20_000));
            }
        }
    });
    for _ in 0..40 {
        tokio::time::timeout(TIMEOUT, running.reader.changed())
            .await
            .unwrap()
            .unwrap();
        assert!(
            unmixed.contains(&running.revision()),
            "a mixed scan was published"
        );
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    running.until_loaded(&dir.revision()).await;
}
