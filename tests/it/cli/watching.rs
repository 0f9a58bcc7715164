//! `--watch`: a command that runs again after every change.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use crate::support::{command, policy_directory, replace};

const GOOD: &str = "permit (principal == User::\"alice\", action, resource);";

/// A command that watches; killed when dropped.
struct Watching {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Watching {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let out = child.stdout.take().expect("a pipe");
        Self {
            child,
            out: BufReader::new(out),
        }
    }

    /// Reads lines until one contains `text`.
    fn wait_for(&mut self, text: &str) {
        let mut read = String::new();
        loop {
            let start = read.len();
            let length = self.out.read_line(&mut read).expect("text");
            assert!(length > 0, "`{text}` is not in:\n{read}");
            if read[start..].contains(text) {
                return;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn validate_runs_again_after_every_save() {
    let directory = policy_directory(&[("a.cedar", GOOD)]);
    let file = directory.path().join("a.cedar");
    let path = directory.path().display().to_string();
    let mut watching = Watching::start(&["validate", "--watch", &path]);
    watching.wait_for("good: 1 policies");
    // In place, as most editors do, and by a rename, as vim and `sed -i` do.
    fs::write(&file, "permit (principal").unwrap();
    watching.wait_for("bad: 1 errors");
    replace(&file, &format!("{GOOD}\n{}", GOOD.replace("alice", "bob")));
    watching.wait_for("good: 2 policies");
    // A directory that disappears does not end it.
    let aside = directory.path().with_extension("aside");
    fs::rename(directory.path(), &aside).unwrap();
    // Long enough for the watching command to see that it is gone.
    std::thread::sleep(Duration::from_secs(1));
    fs::rename(&aside, directory.path()).unwrap();
    fs::write(&file, GOOD).unwrap();
    watching.wait_for("good: 1 policies");
}

#[test]
fn tests_run_again_after_every_save() {
    let case = |decision: &str| {
        format!(
            r#"[{{"name": "t", "request": {{"principal": "User::\"alice\"", "action": "Action::\"read\"",
               "resource": "Doc::\"1\"", "context": {{}}}}, "decision": "{decision}", "reason": [],
               "num_errors": 0}}]"#
        )
    };
    let directory = policy_directory(&[
        (
            "a.cedar",
            "forbid (principal == User::\"b\", action, resource);",
        ),
        ("t.test.json", &case("deny")),
    ]);
    let path = directory.path().display().to_string();
    let mut watching = Watching::start(&["test", &path, "--watch"]);
    watching.wait_for("1 passed, 0 failed");
    fs::write(directory.path().join("t.test.json"), case("allow")).unwrap();
    watching.wait_for("0 passed, 1 failed");
}
