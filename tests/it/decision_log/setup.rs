//! A service that logs its decisions to a file, and the lines of the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cedar_pdp::api::grpc::pb;
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::support::{
    Server, eventually_blocking, get, policy_directory, request, serve_command, value,
};

pub(crate) const POLICIES: &str = r#"
@id("everyone-reads")
permit (principal, action == Action::"read", resource);
@id("small-sums")
permit (principal, action == Action::"pay", resource) when { context.sum < 100 };
@id("not-mallory")
forbid (principal == User::"mallory", action, resource);
"#;

pub(crate) struct LoggedService {
    pub(crate) server: Server,
    pub(crate) logs: TempDir,
    _policies: TempDir,
}

impl LoggedService {
    /// Starts the service with further arguments. It logs every decision to a file.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), arguments)
    }

    /// Starts the service with an existing log directory.
    pub(crate) fn start_with(logs: TempDir, arguments: &[&str]) -> Self {
        let policies = policy_directory(&[("policies.cedar", POLICIES)]);
        Self::start_on(policies, logs, arguments)
    }

    /// Starts the service with these policies.
    pub(crate) fn start_on(policies: TempDir, logs: TempDir, arguments: &[&str]) -> Self {
        let mut command = serve_command(policies.path(), arguments);
        let file = logs.path().join("decisions");
        command
            // Arguments take precedence over the environment.
            .env("CEDAR_PDP_DECISION_LOG", format!("file:{}", file.display()))
            .env("CEDAR_PDP_DECISION_LOG_ALLOW_SAMPLE", "1");
        Self {
            server: Server::spawn(command, 1),
            logs,
            _policies: policies,
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.logs.path().join("decisions")
    }

    /// Waits until the current file has `count` lines, and returns them.
    pub(crate) fn lines(&self, count: usize) -> Vec<Json> {
        let what = format!("{count} lines of the decision log");
        eventually_blocking(&what, || self.lines_now().len() >= count);
        let lines = self.lines_now();
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    /// Fetches the metrics page; the service needs an admin server.
    pub(crate) fn metrics(&self) -> String {
        get(&self.server.admin(), "/metrics")
    }

    /// Returns the lines of the current file.
    pub(crate) fn lines_now(&self) -> Vec<Json> {
        lines(&self.file())
    }

    /// Returns the lines of all files, by decision id.
    pub(crate) fn all_lines(&self) -> BTreeMap<String, Json> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(self.logs.path()).unwrap() {
            for line in lines(&entry.unwrap().path()) {
                let id = line["id"].as_str().unwrap().to_owned();
                assert_eq!(all.insert(id, line), None, "an id is there twice");
            }
        }
        all
    }
}

/// Parses the complete lines of a file; returns none if it does not exist.
pub(crate) fn lines(file: &Path) -> Vec<Json> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}")))
        .collect()
}

/// Returns a request that is allowed.
pub(crate) fn allowed() -> pb::AuthorizeRequest {
    request(r#"User::"alice""#, r#"Action::"read""#, r#"Doc::"1""#)
}

/// Returns a request that is denied.
pub(crate) fn denied() -> pb::AuthorizeRequest {
    request(r#"User::"mallory""#, r#"Action::"read""#, r#"Doc::"1""#)
}

/// Returns a request with `sum` in its context.
pub(crate) fn paying(sum: i64) -> pb::AuthorizeRequest {
    let sum = value(pb::value::Kind::Long(sum));
    pb::AuthorizeRequest {
        context: [("sum".to_owned(), sum)].into(),
        ..request(r#"User::"alice""#, r#"Action::"pay""#, r#"Bill::"1""#)
    }
}

/// Returns a request with this number of bytes in its context.
pub(crate) fn padded(bytes: usize) -> pb::AuthorizeRequest {
    let padding = value(pb::value::Kind::String("x".repeat(bytes)));
    pb::AuthorizeRequest {
        context: [("padding".to_owned(), padding)].into(),
        ..allowed()
    }
}
