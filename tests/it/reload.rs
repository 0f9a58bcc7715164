//! Policy files change under a running server, in all ways that people and tools change them.
//!
//! Each change is tested twice: by events, with a poll interval that is too long to help, and by
//! polling alone. Clients call continuously: no call fails, and every answer follows from the
//! revision that it names.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{
    Answer, BackgroundClients, Server, TIME_LIMIT, policy_directory, remove_variables, request,
    revision, value, wait_for_status,
};
use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::ReloadOutcome;
use pb::value::Kind;
use tempfile::TempDir;

/// Only events can detect a change.
const BY_EVENTS: &[&str] = &["--watch", "events", "--poll-interval", "1h"];
/// Only polling can detect a change.
const BY_POLLING: &[&str] = &["--watch", "poll", "--poll-interval", "50ms"];
/// Neither detects a change: reloads happen only on demand.
const ON_DEMAND: &[&str] = &["--watch", "poll", "--poll-interval", "1h"];

/// The number of changes to a directory in each test.
const CHANGES: usize = 4;

/// Policies of one version, in two files. A mixture of two versions gives wrong answers.
fn permits(version: usize) -> String {
    format!("@id(\"permits-v{version}\")\npermit (principal, action, resource);\n")
}

fn forbids(version: usize) -> String {
    let turn = version % 2;
    format!(
        "@id(\"forbids-v{version}\")\nforbid (principal, action, resource) when {{ context.turn == {turn} }};\n"
    )
}

const PERMITS: &str = "permits.cedar";
const FORBIDS: &str = "forbids.cedar";

fn write_version(directory: &Path, version: usize) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join(PERMITS), permits(version)).unwrap();
    fs::write(directory.join(FORBIDS), forbids(version)).unwrap();
}

/// Returns the request of all clients: allowed if the version is odd.
fn sample_request() -> pb::AuthorizeRequest {
    let context = BTreeMap::from([("turn".to_owned(), value(Kind::Long(0)))]);
    pb::AuthorizeRequest {
        context,
        ..request(r#"User::"alice""#, r#"Action::"read""#, r#"Doc::"1""#)
    }
}

/// Returns the answer of a directory with these versions of the two files; `None` is a missing
/// file.
fn answer_for(permitting: Option<usize>, forbidding: Option<usize>) -> Answer {
    let permit = permitting.map(permits);
    let forbid = forbidding.map(forbids);
    let mut files = Vec::new();
    files.extend(permit.as_deref().map(|text| (PERMITS, text)));
    files.extend(forbid.as_deref().map(|text| (FORBIDS, text)));
    let (is_allow, determining) = match (permitting, forbidding) {
        (_, Some(version)) if version % 2 == 0 => (false, vec![format!("forbids-v{version}")]),
        (Some(version), _) => (true, vec![format!("permits-v{version}")]),
        (None, _) => (false, Vec::new()),
    };
    Answer {
        is_allow,
        determining,
        revision: revision(&files),
    }
}

/// The answers that are correct while a directory changes.
#[derive(Clone, Copy)]
enum AllowedAnswers {
    /// Answers of complete versions: the whole change is atomic.
    WholeVersions,
    /// Answers of every intermediate state of the files, which may last for the quiet period.
    EveryState,
}

impl AllowedAnswers {
    /// Returns the answers for versions 0 to `last`.
    fn answers(self, last: usize) -> Vec<Answer> {
        let versions = 0..=last;
        match self {
            Self::WholeVersions => versions.map(|v| answer_for(Some(v), Some(v))).collect(),
            Self::EveryState => {
                let states = || versions.clone().map(Some).chain([None]);
                states()
                    .flat_map(|permitting| {
                        states().map(move |forbidding| answer_for(permitting, forbidding))
                    })
                    .collect()
            }
        }
    }
}

/// A way to change a policy directory.
struct ChangeMethod {
    allowed: AllowedAnswers,
    /// Writes version 0 below the path; returns the policy directory.
    set_up: fn(&Path) -> PathBuf,
    /// Changes the files to the next version.
    change: fn(&Path, usize),
}

/// Checks that a served directory follows each change, by events and by polling.
async fn check_changes(method: ChangeMethod) {
    check_changes_in_modes(&[BY_EVENTS, BY_POLLING], method).await;
}

async fn check_changes_in_modes(modes: &[&[&str]], method: ChangeMethod) {
    for mode in modes {
        let place = tempfile::tempdir().unwrap();
        let policies = (method.set_up)(place.path());
        let server = Server::start(&policies, mode);
        let clients =
            BackgroundClients::start(&server, &sample_request(), Duration::from_millis(1)).await;
        let mut client = server.authorization().await;
        for version in 1..=CHANGES {
            (method.change)(place.path(), version);
            let expected = answer_for(Some(version), Some(version));
            let what = format!("version {version} ({mode:?})");
            wait_for_status(&server, &what, |status| {
                status.revision == expected.revision && status.refused.is_none()
            })
            .await;
            let now = client
                .authorize(sample_request())
                .await
                .unwrap()
                .into_inner();
            assert_eq!(Answer::from(now), expected);
        }
        let allowed = method.allowed.answers(CHANGES);
        for answer in clients.finish().await.keys() {
            assert!(
                allowed.contains(answer),
                "no written version explains {answer:?} ({mode:?}):\n{}",
                server.log()
            );
        }
    }
}

fn set_up_files(place: &Path) -> PathBuf {
    let policies = place.join("policies");
    write_version(&policies, 0);
    policies
}

#[tokio::test(flavor = "multi_thread")]
async fn write_in_place_is_detected() {
    check_changes(ChangeMethod {
        allowed: AllowedAnswers::EveryState,
        set_up: set_up_files,
        change: |place, version| write_version(&place.join("policies"), version),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_file_is_detected() {
    check_changes(ChangeMethod {
        allowed: AllowedAnswers::EveryState,
        set_up: set_up_files,
        change: |place, version| {
            for (name, text) in [(PERMITS, permits(version)), (FORBIDS, forbids(version))] {
                let policies = place.join("policies");
                let temporary = policies.join(format!(".{name}.tmp"));
                fs::write(&temporary, text).unwrap();
                fs::rename(temporary, policies.join(name)).unwrap();
            }
        },
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn editor_backup_and_save_is_detected() {
    check_changes(ChangeMethod {
        allowed: AllowedAnswers::EveryState,
        set_up: set_up_files,
        change: |place, version| {
            for (name, text) in [(PERMITS, permits(version)), (FORBIDS, forbids(version))] {
                let file = place.join("policies").join(name);
                let backup = place.join("policies").join(format!("{name}~"));
                fs::rename(&file, &backup).unwrap();
                fs::write(&file, text).unwrap();
                fs::remove_file(backup).unwrap();
            }
        },
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sed_edit_is_detected() {
    check_changes(ChangeMethod {
        allowed: AllowedAnswers::EveryState,
        set_up: set_up_files,
        change: |place, version| {
            let status = Command::new("sed")
                .arg("-i")
                .args(["-e", &format!("s/-v[0-9]*/-v{version}/")])
                .args(["-e", &format!("s/turn == ./turn == {}/", version % 2)])
                .args([PERMITS, FORBIDS])
                .current_dir(place.join("policies"))
                .status();
            assert!(status.unwrap().success());
        },
    })
    .await;
}

/// Runs git in `directory`, independent of the git configuration of this machine.
fn git(directory: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    remove_variables(&mut command, "GIT_");
    let done = command
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .args(["-c", "user.name=test", "-c", "user.email=test@example.com"])
        .args(["-c", "core.hooksPath=/dev/null"])
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("git is installed");
    assert!(done.status.success(), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn git_checkout_is_detected() {
    check_changes(ChangeMethod {
        allowed: AllowedAnswers::EveryState,
        set_up: |place| {
            let policies = place.join("policies");
            fs::create_dir(&policies).unwrap();
            git(&policies, &["init", "--quiet"]);
            for version in (0..=CHANGES).rev() {
                write_version(&policies, version);
                git(&policies, &["add", "."]);
                git(&policies, &["commit", "--quiet", "--message", "a version"]);
                git(&policies, &["tag", &format!("v{version}")]);
            }
            policies
        },
        change: |place, version| {
            let tag = format!("v{version}");
            git(&place.join("policies"), &["checkout", "--quiet", &tag]);
        },
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_map_update_is_atomic() {
    // The change is detected, and no answer mixes two versions.
    check_changes(config_map()).await;
}

/// Updates files as the kubelet does.
fn config_map() -> ChangeMethod {
    fn write_data(policies: &Path, version: usize) {
        let data = format!("..2024_{version}");
        write_version(&policies.join(&data), version);
        symlink(&data, policies.join("..data_tmp")).unwrap();
        fs::rename(policies.join("..data_tmp"), policies.join("..data")).unwrap();
    }
    ChangeMethod {
        allowed: AllowedAnswers::WholeVersions,
        set_up: |place| {
            let policies = place.join("policies");
            fs::create_dir(&policies).unwrap();
            write_data(&policies, 0);
            for name in [PERMITS, FORBIDS] {
                symlink(Path::new("..data").join(name), policies.join(name)).unwrap();
            }
            policies
        },
        change: |place, version| {
            let policies = place.join("policies");
            write_data(&policies, version);
            // The kubelet removes the old directory at once.
            fs::remove_dir_all(policies.join(format!("..2024_{}", version - 1))).unwrap();
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_rename_is_atomic() {
    // The change is detected, and no answer mixes two versions.
    check_changes(ChangeMethod {
        allowed: AllowedAnswers::WholeVersions,
        set_up: set_up_files,
        change: |place, version| {
            write_version(&place.join("new"), version);
            fs::rename(place.join("policies"), place.join(format!("old-{version}"))).unwrap();
            fs::rename(place.join("new"), place.join("policies")).unwrap();
        },
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_exchange_is_atomic() {
    // The change is detected, and no answer mixes two versions.
    check_changes(exchange()).await;
}

fn exchange() -> ChangeMethod {
    ChangeMethod {
        allowed: AllowedAnswers::WholeVersions,
        set_up: set_up_files,
        change: |place, version| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let (new, policies) = (place.join("new"), place.join("policies"));
            write_version(&new, version);
            renameat_with(CWD, new, CWD, policies, RenameFlags::EXCHANGE).unwrap();
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recreated_directory_is_detected() {
    check_changes(ChangeMethod {
        allowed: AllowedAnswers::EveryState,
        set_up: set_up_files,
        change: |place, version| {
            let policies = place.join("policies");
            fs::remove_dir_all(&policies).unwrap();
            write_version(&policies, version);
        },
    })
    .await;
}

/// Returns how long the directory is missing. `CEDAR_PDP_GONE_SECONDS=60` is the long variant.
fn missing_time() -> Duration {
    let seconds = std::env::var("CEDAR_PDP_GONE_SECONDS").map(|text| text.parse());
    Duration::from_secs(seconds.map_or(2, |seconds| seconds.expect("a number of seconds")))
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_directory_keeps_policies_until_it_returns() {
    async fn check(mode: &[&str]) {
        let place = tempfile::tempdir().unwrap();
        let (policies, away) = (place.path().join("policies"), place.path().join("away"));
        write_version(&policies, 0);
        let server = Server::start(&policies, mode);
        let clients =
            BackgroundClients::start(&server, &sample_request(), Duration::from_millis(2)).await;
        fs::rename(&policies, &away).unwrap();
        let is_rejected = |status: &pb::StoreStatus| status.refused.is_some();
        wait_for_status(&server, "the missing directory", is_rejected).await;
        tokio::time::sleep(missing_time()).await;
        write_version(&away, 1);
        fs::rename(&away, &policies).unwrap();
        let new = answer_for(Some(1), Some(1)).revision;
        let is_new = |status: &pb::StoreStatus| status.revision == new && status.refused.is_none();
        wait_for_status(&server, "what came back", is_new).await;
        let answers = clients.finish().await;
        let right = AllowedAnswers::WholeVersions.answers(1);
        assert!(
            answers.keys().all(|answer| right.contains(answer)),
            "{answers:#?}"
        );
    }
    // Both at once, because the directory may be missing for long.
    tokio::join!(check(BY_EVENTS), check(BY_POLLING));
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_directory_link_is_atomic() {
    // The change is detected, and no answer mixes two versions.
    check_changes(linked_directory()).await;
}

fn linked_directory() -> ChangeMethod {
    fn link(place: &Path, version: usize) {
        write_version(&place.join(format!("v{version}")), version);
        symlink(format!("v{version}"), place.join("next")).unwrap();
        fs::rename(place.join("next"), place.join("policies")).unwrap();
    }
    ChangeMethod {
        allowed: AllowedAnswers::WholeVersions,
        set_up: |place| {
            link(place, 0);
            place.join("policies")
        },
        change: link,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_detects_a_replaced_parent_directory() {
    // No answer mixes two versions. Events cover the policy directory, its name in the parent
    // directory, and every link on the way. Only polling detects changes further above.
    let method = ChangeMethod {
        allowed: AllowedAnswers::WholeVersions,
        set_up: |place| {
            let policies = place.join("release/etc/policies");
            write_version(&policies, 0);
            policies
        },
        change: |place, version| {
            write_version(&place.join("next/etc/policies"), version);
            fs::rename(place.join("release"), place.join(format!("old-{version}"))).unwrap();
            fs::rename(place.join("next"), place.join("release")).unwrap();
        },
    };
    check_changes_in_modes(&[BY_POLLING], method).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_atomic_changes_stay_atomic() {
    const RAPID_CHANGES: usize = 150;
    for method in [config_map(), exchange(), linked_directory()] {
        let place = tempfile::tempdir().unwrap();
        let policies = (method.set_up)(place.path());
        // The shortest quiet period, so that many reads coincide with a change.
        let short_delays = ["--quiet-period", "1ms", "--max-reload-delay", "1h"];
        let server = Server::start(&policies, &[BY_EVENTS, &short_delays].concat());
        let clients =
            BackgroundClients::start(&server, &sample_request(), Duration::from_millis(1)).await;
        for version in 1..=RAPID_CHANGES {
            (method.change)(place.path(), version);
            // Uneven pauses, so that changes fall before, into and after reads.
            std::thread::sleep(Duration::from_micros(version as u64 * 700 % 11_000));
        }
        let last = answer_for(Some(RAPID_CHANGES), Some(RAPID_CHANGES));
        wait_for_status(&server, "the last version", |status| {
            status.revision == last.revision
        })
        .await;
        let allowed = method.allowed.answers(RAPID_CHANGES);
        for answer in clients.finish().await.keys() {
            assert!(allowed.contains(answer), "{answer:?}:\n{}", server.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_in_new_subdirectory_is_detected() {
    for mode in [BY_EVENTS, BY_POLLING] {
        let directory = policy_directory(&[(PERMITS, &permits(1))]);
        let server = Server::start(directory.path(), mode);
        let below = directory.path().join("teams/payments");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join(FORBIDS), forbids(2)).unwrap();
        let (permits, forbids) = (permits(1), forbids(2));
        let both = revision(&[
            (PERMITS, &permits),
            ("teams/payments/forbids.cedar", &forbids),
        ]);
        wait_for_status(&server, "the new file", |status| status.revision == both).await;
        fs::remove_dir_all(directory.path().join("teams")).unwrap();
        let one = revision(&[(PERMITS, &permits)]);
        wait_for_status(&server, "the file gone", |status| status.revision == one).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn link_targets_are_watched() {
    for mode in [BY_EVENTS, BY_POLLING] {
        let elsewhere = tempfile::tempdir().unwrap();
        let shared = elsewhere.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join(PERMITS), permits(0)).unwrap();
        fs::write(elsewhere.path().join("one.txt"), forbids(0)).unwrap();
        let directory = policy_directory(&[]);
        symlink(&shared, directory.path().join("team")).unwrap();
        symlink(
            elsewhere.path().join("one.txt"),
            directory.path().join(FORBIDS),
        )
        .unwrap();
        let server = Server::start(directory.path(), mode);
        let both = |permitting: usize, forbidding: usize| {
            revision(&[
                ("team/permits.cedar", &permits(permitting)),
                (FORBIDS, &forbids(forbidding)),
            ])
        };
        fs::write(shared.join(PERMITS), permits(1)).unwrap();
        let wanted = both(1, 0);
        wait_for_status(&server, "the directory", |status| status.revision == wanted).await;
        fs::write(elsewhere.path().join("next"), forbids(1)).unwrap();
        fs::rename(
            elsewhere.path().join("next"),
            elsewhere.path().join("one.txt"),
        )
        .unwrap();
        let wanted = both(1, 1);
        wait_for_status(&server, "the file", |status| status.revision == wanted).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn misnamed_files_warn_and_are_ignored() {
    // They do not change the revision.
    for mode in [BY_EVENTS, BY_POLLING] {
        let (directory, good) = directory_of_version_1();
        let server = Server::start(directory.path(), mode);
        let near = directory.path().join("schema.json");
        fs::write(directory.path().join("README.md"), "About.").unwrap();
        fs::write(directory.path().join(".hidden.cedar"), "permit (").unwrap();
        fs::write(&near, "{}").unwrap();
        let warns = |status: &pb::StoreStatus| {
            status
                .warnings
                .iter()
                .any(|found| found.file == "schema.json")
        };
        let status = wait_for_status(&server, "the warning", warns).await;
        assert_eq!(
            (status.revision, status.refused),
            (good.revision.clone(), None)
        );
        fs::remove_file(near).unwrap();
        wait_for_status(&server, "the warning gone", |status| !warns(status)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cedarignore_takes_effect_live() {
    for mode in [BY_EVENTS, BY_POLLING] {
        let (directory, good) = directory_of_version_1();
        let notes = directory.path().join("notes.txt");
        fs::write(&notes, "").unwrap();
        let server = Server::start(directory.path(), mode);
        let status = wait_for_status(&server, "the start", |_| true).await;
        let last = status.warnings.last().unwrap();
        assert!(last.message.contains("1 file is ignored"), "{last:?}");
        assert_eq!(status.left_out, None);
        // What is left out is counted, and no longer a warning; the revision stays.
        let patterns = directory.path().join(".cedarignore");
        fs::write(directory.path().join("draft.cedar"), "permit (").unwrap();
        fs::write(&patterns, "*.txt\ndraft.*\n").unwrap();
        let left_out =
            |status: &pb::StoreStatus| status.left_out.is_some_and(|it| it.policies == 1);
        let status = wait_for_status(&server, "the patterns", left_out).await;
        assert_eq!(
            (status.revision, status.refused),
            (good.revision.clone(), None)
        );
        assert!(
            !status
                .warnings
                .iter()
                .any(|found| found.message.contains("ignored"))
        );
        // Bad patterns, and patterns that leave out all policies, change nothing.
        for text in ["a[\n", "*.cedar\n"] {
            fs::write(&patterns, text).unwrap();
            let is_refused = |status: &pb::StoreStatus| {
                let refused = status
                    .refused
                    .iter()
                    .flat_map(|refused| &refused.diagnostics);
                refused
                    .into_iter()
                    .any(|found| found.file == ".cedarignore")
            };
            let status = wait_for_status(&server, "the rejection", is_refused).await;
            assert_eq!(status.revision, good.revision);
            fs::write(&patterns, "*.txt\ndraft.*\n").unwrap();
            wait_for_status(&server, "the recovery", |status| status.refused.is_none()).await;
        }
    }
}

/// Returns the current answer.
async fn current_answer(server: &Server) -> Answer {
    let mut client = server.authorization().await;
    client
        .authorize(sample_request())
        .await
        .unwrap()
        .into_inner()
        .into()
}

/// Creates a directory of version 1, which allows.
fn directory_of_version_1() -> (TempDir, Answer) {
    let directory = policy_directory(&[(PERMITS, &permits(1)), (FORBIDS, &forbids(1))]);
    (directory, answer_for(Some(1), Some(1)))
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_edit_keeps_old_policies() {
    // The status names the place of the error.
    for mode in [BY_EVENTS, BY_POLLING] {
        let (directory, good) = directory_of_version_1();
        let server = Server::start(directory.path(), mode);
        let clients =
            BackgroundClients::start(&server, &sample_request(), Duration::from_millis(1)).await;
        let file = directory.path().join(PERMITS);
        fs::write(
            &file,
            "permit (principal, action, resource)\nwhen { principal.näme == };\n",
        )
        .unwrap();
        let status =
            wait_for_status(&server, "the rejection", |status| status.refused.is_some()).await;
        assert_eq!(status.revision, good.revision);
        let rejected = status.refused.unwrap();
        assert!(rejected.at.is_some());
        assert_eq!(rejected.total, rejected.diagnostics.len() as u64);
        let diagnostic = &rejected.diagnostics[0];
        assert_eq!(diagnostic.file, PERMITS);
        assert_eq!(diagnostic.line, 2);
        // The column counts characters: in bytes it would be one more.
        assert_eq!(diagnostic.column, 19, "{diagnostic:?}");
        assert!(!diagnostic.message.is_empty());
        assert_eq!(current_answer(&server).await, good);
        server.wait_for_log("reload rejected");

        fs::write(&file, permits(3)).unwrap();
        let repaired = answer_for(Some(3), Some(1));
        wait_for_status(&server, "the repair", |status| {
            status.refused.is_none() && status.revision == repaired.revision
        })
        .await;
        assert_eq!(current_answer(&server).await, repaired);
        for answer in clients.finish().await.keys() {
            assert!(*answer == good || *answer == repaired, "{answer:?}");
        }
        // Once per rejected content; a write in place may have two.
        let log = server.log();
        let drawn = log.matches("näme == }").count();
        assert_eq!(drawn, 1, "the finding is drawn once:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_lists_the_first_hundred_errors() {
    // The status also has the total.
    let (directory, good) = directory_of_version_1();
    let server = Server::start(directory.path(), ON_DEMAND);
    for number in 0..150 {
        fs::write(
            directory.path().join(format!("{number:03}.cedar")),
            "permit (",
        )
        .unwrap();
    }
    let mut store = server.policy_store().await;
    let report = store
        .reload(pb::ReloadRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(report.outcome(), ReloadOutcome::Refused);
    let status = report.status.unwrap();
    assert_eq!(status.revision, good.revision);
    let rejected = status.refused.unwrap();
    assert_eq!((rejected.diagnostics.len(), rejected.total), (100, 150));
    server.wait_for_log("149.cedar");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejection_ends_when_old_content_returns() {
    for mode in [BY_EVENTS, BY_POLLING] {
        let (directory, good) = directory_of_version_1();
        let server = Server::start(directory.path(), mode);
        fs::write(directory.path().join(FORBIDS), "forbid (").unwrap();
        wait_for_status(&server, "the rejection", |status| status.refused.is_some()).await;
        fs::write(directory.path().join(FORBIDS), forbids(1)).unwrap();
        let status =
            wait_for_status(&server, "the repair", |status| status.refused.is_none()).await;
        assert_eq!(status.revision, good.revision);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn constant_writing_delays_the_reload() {
    // The status reports the delay, and the content is loaded in the end.
    for mode in [BY_EVENTS, BY_POLLING] {
        let (directory, good) = directory_of_version_1();
        let waiting = ["--quiet-period", "500ms", "--max-reload-delay", "500ms"];
        let server = Server::start(directory.path(), &[mode, &waiting].concat());
        let clients =
            BackgroundClients::start(&server, &sample_request(), Duration::from_millis(1)).await;
        let file = directory.path().join("log.cedar");
        let stop = Arc::new(AtomicBool::new(false));
        let writing = std::thread::spawn({
            let (file, stop) = (file.clone(), Arc::clone(&stop));
            move || {
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    fs::write(&file, format!("// {count}\n")).unwrap();
                    // The writer's interval, far shorter than the quiet period.
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let status = wait_for_status(&server, "what is held back", |status| {
            status.refused.is_some()
        })
        .await;
        let diagnostics = status.refused.unwrap().diagnostics;
        assert_eq!(diagnostics[0].file, "log.cedar");
        assert!(
            diagnostics[0].message.contains("held back"),
            "{diagnostics:?}"
        );
        assert_eq!(current_answer(&server).await.is_allow, good.is_allow);
        let mut store = server.policy_store().await;
        let reloads = store
            .get_status(pb::GetStatusRequest {})
            .await
            .unwrap()
            .into_inner()
            .reloads;
        assert!(reloads.unwrap().held_back >= 1);
        // A reload on demand has a time limit too.
        let report = store
            .reload(pb::ReloadRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(report.outcome(), ReloadOutcome::Refused);

        stop.store(true, Ordering::Relaxed);
        writing.join().unwrap();
        let (permits, forbids) = (permits(1), forbids(1));
        let log = fs::read_to_string(&file).unwrap();
        let settled = revision(&[
            (PERMITS, &permits),
            (FORBIDS, &forbids),
            ("log.cedar", &log),
        ]);
        wait_for_status(&server, "the last write", |status| {
            status.refused.is_none() && status.revision == settled
        })
        .await;
        assert!(clients.finish().await.keys().all(|answer| answer.is_allow));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_call_returns_its_outcome() {
    let (directory, good) = directory_of_version_1();
    let server = Server::start(directory.path(), ON_DEMAND);
    let mut store = server.policy_store().await;
    let mut reload = async || {
        store
            .reload(pb::ReloadRequest {})
            .await
            .unwrap()
            .into_inner()
    };

    let report = reload().await;
    assert_eq!(report.outcome(), ReloadOutcome::Unchanged);
    assert_eq!(report.status.unwrap().revision, good.revision);

    write_version(directory.path(), 2);
    let report = reload().await;
    let new = answer_for(Some(2), Some(2));
    assert_eq!(report.outcome(), ReloadOutcome::Reloaded);
    assert_eq!(report.status.unwrap().revision, new.revision);
    assert_eq!(current_answer(&server).await, new);

    fs::write(directory.path().join(PERMITS), "permit").unwrap();
    for _ in 0..2 {
        let report = reload().await;
        assert_eq!(report.outcome(), ReloadOutcome::Refused);
        let status = report.status.unwrap();
        assert_eq!(status.revision, new.revision);
        assert_eq!(status.refused.unwrap().diagnostics[0].file, PERMITS);
    }
    assert_eq!(current_answer(&server).await, new);
    let log = server.log();
    assert_eq!(
        log.matches("reload rejected").count(),
        1,
        "the rejection is logged once:\n{log}"
    );

    fs::write(directory.path().join(PERMITS), permits(2)).unwrap();
    let report = reload().await;
    assert_eq!(report.outcome(), ReloadOutcome::Unchanged);
    assert!(report.status.unwrap().refused.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_rereads_the_directory() {
    let (directory, _) = directory_of_version_1();
    let server = Server::start(directory.path(), ON_DEMAND);
    write_version(directory.path(), 2);
    server.signal("HUP");
    let new = answer_for(Some(2), Some(2));
    wait_for_status(&server, "version 2", |status| {
        status.revision == new.revision
    })
    .await;
    assert_eq!(current_answer(&server).await, new);
}

/// A change that may be a mistake: files before, changes (`None` deletes), and the expected
/// message.
type ShrinkCase<'a> = (
    &'a [(&'a str, &'a str)],
    &'a [(&'a str, Option<&'a str>)],
    &'a str,
);

#[tokio::test(flavor = "multi_thread")]
async fn emptied_directory_is_rejected_unless_allowed() {
    const PERMIT: &str = "permit (principal, action, resource);";
    const SCHEMA: &str =
        "entity User, Doc; action read appliesTo { principal: User, resource: Doc };";
    let changes: &[ShrinkCase<'_>] = &[
        (&[("a.cedar", PERMIT)], &[("a.cedar", None)], "were removed"),
        (
            &[("a.cedar", PERMIT), ("b.cedar", PERMIT)],
            &[("a.cedar", Some("// soon\n"))],
            "a.cedar",
        ),
        (
            &[("a.cedar", PERMIT), ("b.cedarschema", SCHEMA)],
            &[("b.cedarschema", None)],
            "schema",
        ),
    ];
    for (before, after, message) in changes {
        let change = |directory: &Path| {
            for (name, text) in *after {
                match text {
                    Some(text) => fs::write(directory.join(name), text).unwrap(),
                    None => fs::remove_file(directory.join(name)).unwrap(),
                }
            }
        };
        let directory = policy_directory(before);
        let server = Server::start(directory.path(), &[]);
        change(directory.path());
        let status =
            wait_for_status(&server, "the rejection", |status| status.refused.is_some()).await;
        assert_eq!(status.revision, revision(before));
        let diagnostic = &status.refused.unwrap().diagnostics[0];
        assert!(
            format!("{} {}", diagnostic.file, diagnostic.message).contains(message),
            "{diagnostic:?}"
        );

        let directory = policy_directory(before);
        let server = Server::start(directory.path(), &["--allow-empty"]);
        change(directory.path());
        let status = wait_for_status(&server, "the change", |status| {
            status.revision != revision(before)
        })
        .await;
        assert!(status.refused.is_none());
    }
}

/// A file in a policy directory that must not end the process.
struct Obstacle {
    name: &'static str,
    put: fn(&Path),
    message: &'static str,
}

/// Wraps `condition` in a permit.
fn permit_when(condition: &str) -> String {
    format!("permit (principal, action, resource) when {{ {condition} }};\n")
}

/// Wraps `inner` in `count` pairs of `open` and `close`.
fn nested(count: usize, open: &str, inner: &str, close: &str) -> String {
    format!("{}{inner}{}", open.repeat(count), close.repeat(count))
}

const DEEP: usize = 100_000;

const OBSTACLES: &[Obstacle] = &[
    Obstacle {
        name: "bytes.cedar",
        put: |path| fs::write(path, b"permit (principal, action, resource); // \xff\n").unwrap(),
        message: "UTF-8",
    },
    Obstacle {
        name: "half.cedar",
        put: |path| fs::write(path, "permit (principal, act").unwrap(),
        message: "",
    },
    Obstacle {
        name: "huge.cedar",
        put: |path| fs::write(path, "// large\n".repeat(300_000)).unwrap(),
        message: "2700000 bytes",
    },
    Obstacle {
        name: "loop.cedar",
        put: |path| symlink("loop.cedar", path).unwrap(),
        message: "link loop",
    },
    Obstacle {
        name: "dangling.cedar",
        put: |path| symlink("nowhere", path).unwrap(),
        message: "nowhere",
    },
    Obstacle {
        name: "device.cedar",
        put: |path| symlink("/dev/zero", path).unwrap(),
        message: "device",
    },
    Obstacle {
        name: "fifo.cedar",
        put: |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        message: "FIFO",
    },
    Obstacle {
        name: "directory.cedar",
        put: |path| fs::create_dir(path).unwrap(),
        message: "directory",
    },
    Obstacle {
        name: "parentheses.cedar",
        put: |path| fs::write(path, permit_when(&nested(400, "(", "true", ")"))).unwrap(),
        message: "deep",
    },
    Obstacle {
        name: "many-parentheses.cedar",
        put: |path| fs::write(path, permit_when(&nested(DEEP, "(", "true", ")"))).unwrap(),
        message: "deep",
    },
    Obstacle {
        name: "open.cedar",
        put: |path| fs::write(path, "(".repeat(DEEP)).unwrap(),
        message: "deep",
    },
    Obstacle {
        name: "sets.cedar",
        put: |path| fs::write(path, permit_when(&nested(DEEP, "[", "1", "]"))).unwrap(),
        message: "deep",
    },
    Obstacle {
        name: "deep.cedarschema",
        put: |path| {
            fs::write(
                path,
                format!("type T = {};", nested(DEEP, "Set<", "Long", ">")),
            )
            .unwrap()
        },
        message: "deep",
    },
    Obstacle {
        name: "deep.entities.json",
        put: |path| {
            let value = nested(DEEP, r#"{"a":"#, "1", "}");
            let entity = format!(
                r#"[{{"uid":{{"type":"A","id":"a"}},"parents":[],"attrs":{{"x":{value}}}}}]"#
            );
            fs::write(path, entity).unwrap();
        },
        message: "deep",
    },
    Obstacle {
        name: "deep.cedar.json",
        put: |path| fs::write(path, "[".repeat(DEEP)).unwrap(),
        message: "deep",
    },
    Obstacle {
        name: "deep.cedarschema.json",
        put: |path| fs::write(path, nested(DEEP, r#"{"a":"#, "1", "}")).unwrap(),
        message: "deep",
    },
    Obstacle {
        name: "deep.links.json",
        put: |path| fs::write(path, nested(DEEP, "[", "", "]")).unwrap(),
        message: "deep",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_files_are_rejected_by_name() {
    // The old policies stay in force.
    for mode in [BY_EVENTS, BY_POLLING] {
        let (directory, good) = directory_of_version_1();
        let mut server = Server::start(
            directory.path(),
            &[mode, &["--max-file-bytes", "2000000"]].concat(),
        );
        let clients =
            BackgroundClients::start(&server, &sample_request(), Duration::from_millis(1)).await;
        for Obstacle { name, put, message } in OBSTACLES {
            let path = directory.path().join(name);
            put(&path);
            let status = wait_for_status(&server, name, |status| status.refused.is_some()).await;
            assert!(server.is_alive());
            assert_eq!(status.revision, good.revision);
            let diagnostics = status.refused.unwrap().diagnostics;
            assert!(
                diagnostics.iter().all(|found| found.file == *name),
                "{diagnostics:?}"
            );
            assert!(
                diagnostics[0].message.contains(message),
                "{message}: {diagnostics:?}"
            );
            assert_eq!(current_answer(&server).await, good);
            if path.is_dir() {
                fs::remove_dir(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
            wait_for_status(&server, "the repair", |status| status.refused.is_none()).await;
        }
        assert!(clients.finish().await.keys().all(|answer| *answer == good));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parentheses_in_comments_and_texts_are_no_nesting() {
    let parentheses = "(".repeat(400);
    let text = format!(
        "// {parentheses}\n@note(\"{parentheses}\")\npermit (principal, action, resource) when {{ \"{parentheses}\" != \"\" }};\n"
    );
    let directory = policy_directory(&[("a.cedar", &text)]);
    let server = Server::start(directory.path(), &[]);
    assert!(current_answer(&server).await.is_allow);
}

#[tokio::test(flavor = "multi_thread")]
async fn unpermitted_files_are_rejected_by_name() {
    for mode in [BY_EVENTS, BY_POLLING] {
        let (directory, good) = directory_of_version_1();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open.clone()).unwrap();
        let server = start_without_privileges(directory.path(), mode);
        let closed = fs::Permissions::from_mode(0o000);

        let file = directory.path().join("secret.cedar");
        let hidden = directory.path().join(".secret");
        fs::write(&hidden, permits(7)).unwrap();
        fs::set_permissions(&hidden, closed.clone()).unwrap();
        fs::rename(&hidden, &file).unwrap();
        let below = directory.path().join("below");
        fs::create_dir(&below).unwrap();
        fs::set_permissions(&below, closed).unwrap();
        let status = wait_for_status(&server, "both refusals", |status| {
            status
                .refused
                .as_ref()
                .is_some_and(|rejected| rejected.total == 2)
        })
        .await;
        assert_eq!(status.revision, good.revision);
        let diagnostics = status.refused.unwrap().diagnostics;
        let files: Vec<&str> = diagnostics
            .iter()
            .map(|found| found.file.as_str())
            .collect();
        assert_eq!(files, ["below", "secret.cedar"]);
        assert!(
            diagnostics
                .iter()
                .all(|found| found.message.contains("permission denied"))
        );
        assert_eq!(current_answer(&server).await, good);

        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&below, open).unwrap();
        let (permits_1, forbids_1, permits_7) = (permits(1), forbids(1), permits(7));
        let all = revision(&[
            (PERMITS, &permits_1),
            (FORBIDS, &forbids_1),
            ("secret.cedar", &permits_7),
        ]);
        wait_for_status(&server, "the repair", |status| {
            status.refused.is_none() && status.revision == all
        })
        .await;
    }
}

/// Starts a server to which file permissions apply, also when the tests run as root.
fn start_without_privileges(policies: &Path, arguments: &[&str]) -> Server {
    let serve = |mut command: Command| {
        command
            .arg("serve")
            .arg("--policies")
            .arg(policies)
            .args(["--listen", "127.0.0.1:0"]);
        command.args(arguments);
        Server::spawn(command, 1)
    };
    if !rustix::process::geteuid().is_root() {
        return serve(crate::support::command());
    }
    let mut command = crate::support::without_settings(Command::new("setpriv"));
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(crate::support::binary());
    serve(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn first_valid_policies_end_the_wait() {
    for mode in [BY_EVENTS, BY_POLLING] {
        let place = tempfile::tempdir().unwrap();
        let policies = place.path().join("not/yet/there");
        let server = Server::start(&policies, &[mode, &["--start-unready"]].concat());
        let rejected = server
            .authorization()
            .await
            .authorize(sample_request())
            .await
            .unwrap_err();
        assert_eq!(rejected.code(), tonic::Code::Unavailable);
        let status =
            wait_for_status(&server, "that it waits", |status| status.refused.is_some()).await;
        assert_eq!((status.revision.as_str(), status.loaded_at), ("", None));
        fs::create_dir_all(&policies).unwrap();
        fs::write(policies.join(PERMITS), "permit (").unwrap();
        wait_for_status(&server, "the file", |status| {
            status
                .refused
                .as_ref()
                .is_some_and(|rejected| rejected.diagnostics[0].file == PERMITS)
        })
        .await;
        write_version(&policies, 1);
        let good = answer_for(Some(1), Some(1));
        wait_for_status(&server, "the policies", |status| {
            status.revision == good.revision
        })
        .await;
        assert_eq!(current_answer(&server).await, good);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_status_reports_each_change() {
    let (directory, good) = directory_of_version_1();
    let server = Server::start(directory.path(), ON_DEMAND);
    let mut store = server.policy_store().await;
    let mut watch = store
        .watch_status(pb::WatchStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(TIME_LIMIT, watch.message())
            .await
            .expect("a status in time");
        next.unwrap().unwrap().status.unwrap()
    };
    assert_eq!(next().await.revision, good.revision);
    let mut reload = async || {
        store
            .reload(pb::ReloadRequest {})
            .await
            .unwrap()
            .into_inner()
    };
    // An unchanged status is not sent.
    reload().await;
    write_version(directory.path(), 2);
    reload().await;
    let new = answer_for(Some(2), Some(2));
    let status = next().await;
    assert_eq!(
        (status.revision, status.refused),
        (new.revision.clone(), None)
    );
    fs::write(directory.path().join(PERMITS), "permit").unwrap();
    reload().await;
    let status = next().await;
    assert_eq!(status.revision, new.revision);
    assert!(status.refused.is_some());
    fs::write(directory.path().join(PERMITS), permits(2)).unwrap();
    reload().await;
    assert_eq!(next().await.refused, None);
}
