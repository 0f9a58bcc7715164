//! The commands as people and scripts run them: output and exit status.
//!
//! Exit status: 0 is success, 1 is a negative result, 2 means that the command could not run.

mod findings;
mod help;
mod watching;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Server, eventually_blocking, policy_directory, revision, shipped_policies};
use serde_json::{Value, json};

const ALL_ARE_PERMITTED: &str = "permit (principal, action, resource);";
const SCHEMA: &str =
    "entity User; entity Doc; action read appliesTo { principal: User, resource: Doc };";

/// The exit code and output of a command.
#[derive(Debug)]
struct CommandResult {
    code: i32,
    out: String,
    err: String,
}

impl CommandResult {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn run(arguments: &[&str]) -> CommandResult {
    run_in(&[], arguments)
}

/// Runs a command with these environment variables.
fn run_in(environment: &[(&str, &str)], arguments: &[&str]) -> CommandResult {
    let mut command = crate::support::command();
    command.envs(environment.iter().copied()).args(arguments);
    let done = command.output().unwrap();
    CommandResult {
        code: done.status.code().expect("no signal ended it"),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

// ---------------------------------------------------------------- validate

#[test]
fn validate_accepts_the_example() {
    let result = run(&["validate", text(&shipped_policies())]);
    assert_eq!((result.code, &*result.err), (0, ""));
    assert!(
        result
            .out
            .contains("good: 16 policies, 1 templates, 3 links"),
        "{}",
        result.out
    );
    assert!(
        result.out.contains("0 warnings\nrevision "),
        "{}",
        result.out
    );
}

#[test]
fn validate_reports_all_findings_of_all_files() {
    let directory = policy_directory(&[
        ("a.cedarschema", SCHEMA),
        (
            "a.cedar",
            "permit (principal, action, resource)\nwhen { foo };\n",
        ),
        ("below/b.cedar", "forbid ("),
        ("c.entities.json", "[{]"),
        (
            "d.links.json",
            r#"[{"template_id": "none", "link_id": "l", "args": {}}]"#,
        ),
        ("schema.json", "{}"),
    ]);
    let result = run(&["validate", text(directory.path())]);
    assert_eq!(result.code, 1, "{result:?}");
    for place in [
        "a.cedar:2:8",
        "below/b.cedar:1:9",
        "c.entities.json:1:",
        "d.links.json",
        "schema.json",
    ] {
        assert!(result.out.contains(place), "{place}: {}", result.out);
    }
    // The report has the source line and a caret under the column.
    assert!(
        result.out.contains("2 | when { foo };\n  |        ^"),
        "{}",
        result.out
    );

    let result = run(&["validate", text(directory.path()), "--format", "json"]);
    assert_eq!(result.code, 1);
    let report = result.json();
    assert_eq!(report["valid"], json!(false));
    assert_eq!(report["revision"], Value::Null);
    let found = report["diagnostics"].as_array().unwrap();
    let of = |file: &str| {
        found
            .iter()
            .find(|finding| finding["file"] == file)
            .unwrap()
    };
    assert_eq!(
        (&of("a.cedar")["line"], &of("a.cedar")["column"]),
        (&json!(2), &json!(8))
    );
    assert_eq!(of("a.cedar")["severity"], "error");
    assert_eq!(of("schema.json")["severity"], "warning");
    let errors = found
        .iter()
        .filter(|finding| finding["severity"] == "error")
        .count();
    assert_eq!(report["errors"], json!(errors));
    assert!(errors >= 4, "{found:?}");
}

#[test]
fn validate_json_has_revision_and_counts() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let result = run(&["validate", text(directory.path()), "--format", "json"]);
    assert_eq!(result.code, 0);
    let report = result.json();
    assert_eq!(report["valid"], json!(true));
    assert_eq!(
        report["revision"],
        revision(&[("a.cedar", ALL_ARE_PERMITTED)])
    );
    assert_eq!(
        report["counts"],
        json!({"policies": 1, "templates": 0, "links": 0, "entities": 0})
    );
    assert!(
        report["warnings"].as_u64().unwrap() > 0,
        "there is no schema"
    );
}

/// Returns whether `serve` starts to listen with this directory and these options.
fn serve_loads(directory: &Path, options: &[&str]) -> bool {
    let mut command = crate::support::command();
    command.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--policies",
        text(directory),
    ]);
    let mut child = command
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let is_listening = line.starts_with("listening on ");
    if is_listening {
        child.kill().unwrap();
        child.wait().unwrap();
    } else {
        assert_eq!(child.wait().unwrap().code(), Some(2));
    }
    is_listening
}

#[test]
fn validate_accepts_exactly_what_serve_loads() {
    type Files<'a> = &'a [(&'a str, &'a str)];
    let ill_typed = "permit (principal, action, resource) when { principal.name == 1 };";
    let entity = r#"[{"uid": {"type": "User", "id": "a"}, "attrs": {"age": 3}, "parents": []}]"#;
    let twice = r#"[{"uid": {"type": "User", "id": "a"}, "attrs": {}, "parents": []}]"#;
    let named = "@id(\"same\") permit (principal, action, resource);";
    let link = r#"[{"template_id": "t", "link_id": "l", "args": {"?principal": "User::\"a\""}}]"#;
    let template = "@id(\"t\") permit (principal == ?principal, action, resource);";
    let deep = format!(
        "permit (principal, action, resource) when {{ {}true{} }};",
        "(".repeat(400),
        ")".repeat(400)
    );
    let cases: &[(Files<'_>, &[&str], bool)] = &[
        (&[], &[], true),
        (&[("a.cedar", ALL_ARE_PERMITTED)], &[], true),
        (&[("a.cedar", "permit (")], &[], false),
        (&[("a.cedar", "permit (")], &["--validation", "off"], false),
        (
            &[("a.cedarschema", SCHEMA), ("a.cedar", ill_typed)],
            &[],
            false,
        ),
        (
            &[("a.cedarschema", SCHEMA), ("a.cedar", ill_typed)],
            &["--validation", "warn"],
            true,
        ),
        (
            &[("a.cedarschema", SCHEMA), ("a.cedar", ill_typed)],
            &["--validation", "off"],
            true,
        ),
        (&[("a.cedar", ill_typed)], &[], true),
        (
            &[("a.cedarschema", "entity User"), ("a.cedar", ill_typed)],
            &["--validation", "off"],
            false,
        ),
        (
            &[("a.cedarschema", SCHEMA), ("entities.json", entity)],
            &[],
            false,
        ),
        (
            &[("a.cedarschema", SCHEMA), ("entities.json", entity)],
            &["--validation", "off"],
            false,
        ),
        (&[("entities.json", entity)], &[], true),
        (
            &[("a.entities.json", twice), ("b.entities.json", twice)],
            &[],
            false,
        ),
        (&[("a.cedar", named), ("b.cedar", named)], &[], false),
        (&[("a.cedar", template), ("a.links.json", link)], &[], true),
        (&[("a.links.json", link)], &[], false),
        (&[("a.cedar.json", "{}")], &[], true),
        (&[("a.test.json", "not read")], &[], true),
        (
            &[("schema.json", "{}"), ("a.cedar", ALL_ARE_PERMITTED)],
            &[],
            true,
        ),
        (
            &[("a.cedar", ALL_ARE_PERMITTED)],
            &["--max-file-bytes", "10"],
            false,
        ),
        (
            &[("a.cedar", ALL_ARE_PERMITTED)],
            &["--max-total-bytes", "10"],
            false,
        ),
        (&[("a.cedar", &deep)], &[], false),
    ];
    for (files, options, is_good) in cases {
        let directory = policy_directory(files);
        let result = run(&[&["validate", text(directory.path())], *options].concat());
        assert_eq!(
            result.code,
            i32::from(!is_good),
            "{files:?} {options:?}: {result:?}"
        );
        assert_eq!(
            serve_loads(directory.path(), options),
            *is_good,
            "{files:?} {options:?}"
        );
    }
}

#[test]
fn validate_and_serve_reject_the_same_files() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let odd = |put: &dyn Fn(&Path)| {
        let path = directory.path().join("b.cedar");
        put(&path);
        let result = run(&["validate", text(directory.path())]);
        assert_eq!(result.code, 1, "{result:?}");
        assert!(result.out.contains("b.cedar"), "{}", result.out);
        assert!(!serve_loads(directory.path(), &[]));
        fs::remove_file(path).unwrap();
    };
    odd(&|path| symlink("b.cedar", path).unwrap());
    odd(&|path| symlink("nowhere", path).unwrap());
    odd(&|path| fs::write(path, b"\xff").unwrap());
    odd(&|path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()));
}

#[test]
fn missing_directory_fails_every_command() {
    let ask = [
        "authorize",
        "--principal",
        r#"U::"a""#,
        "--action",
        r#"Action::"b""#,
        "--resource",
        r#"R::"c""#,
        "--policies",
        "/nowhere",
    ];
    for arguments in [&["validate", "/nowhere"][..], &["test", "/nowhere"], &ask] {
        let result = run(arguments);
        assert_eq!((result.code, &*result.out), (2, ""), "{result:?}");
        assert!(result.err.contains("`/nowhere`"), "{}", result.err);
        assert_eq!(result.err.lines().count(), 1, "{}", result.err);
    }
}

/// Policies of which `any` and `every` have no scope, and `whole` reads the context as a whole. The
/// others cause no advice.
const COSTLY: &str = r#"@id("all")
permit (principal, action == Action::"read", resource);
@id("any")
permit (principal, action, resource)
when { context.amount < 9 && principal in Group::"g" };
@id("whole")
forbid (principal, action == Action::"pay", resource)
when { resource.limits == context };
@id("narrow")
permit (principal in Group::"g", action == Action::"read", resource)
when { context.mfa };
@id("every")
permit (principal, action, resource);
"#;

#[test]
fn validate_advises_on_cost_and_caching() {
    // The advice names policies that every request evaluates, and context reads that prevent cache
    // hits.
    let directory = policy_directory(&[("a.cedar", COSTLY)]);
    let result = run(&["validate", text(directory.path())]);
    assert_eq!((result.code, &*result.err), (0, ""));
    let (_, advice) = result.out.split_once("\nrevision ").unwrap();
    let (_, advice) = advice.split_once('\n').unwrap();
    assert_eq!(
        advice,
        r#"
policies that every request must evaluate: 2
  `any` (a.cedar:3:1): open scope, and the condition begins with `context.amount < 9`
  `every` (a.cedar:12:1): no condition

policies that use the whole context, so that every attribute in it is part of the cache key: 1
  `whole` (a.cedar:6:1)

parts of the cache key, besides principal, action and resource
  Action::"pay": the whole context
  Action::"read": context: amount, mfa
"#
    );

    let result = run(&["validate", text(directory.path()), "--format", "json"]);
    let advice = &result.json()["advice"];
    assert_eq!(
        advice["every_request"],
        json!([
            {
                "at": {"policy": "any", "file": "a.cedar", "line": 3, "column": 1},
                "begins_with": "context.amount < 9",
            },
            {
                "at": {"policy": "every", "file": "a.cedar", "line": 12, "column": 1},
                "begins_with": null,
            },
        ])
    );
    assert_eq!(
        advice["whole_context"],
        json!([{"policy": "whole", "file": "a.cedar", "line": 6, "column": 1}])
    );
    assert_eq!(
        advice["remembered_by"],
        json!([
            {"action": r#"Action::"pay""#, "attributes": null},
            {"action": r#"Action::"read""#, "attributes": ["amount", "mfa"]},
        ])
    );
}

#[test]
fn validate_shortens_advice_in_text_only() {
    // Text output names a few costly policies, JSON output all.
    let policies = ALL_ARE_PERMITTED.repeat(23);
    let directory = policy_directory(&[("a.cedar", &policies)]);
    let result = run(&["validate", text(directory.path())]);
    assert_eq!(
        result.out.matches(": no condition\n").count(),
        20,
        "{}",
        result.out
    );
    assert!(
        result
            .out
            .ends_with("  and 3 more (`--format json` lists all)\n"),
        "{}",
        result.out
    );
    let result = run(&["validate", text(directory.path()), "--format", "json"]);
    let every_request = result.json()["advice"]["every_request"].clone();
    assert_eq!(every_request.as_array().unwrap().len(), 23);
}

#[test]
fn validate_is_silent_about_indexed_policies() {
    // Indexed policies without context reads need no advice.
    let policy = r#"permit (principal in Group::"g", action, resource);"#;
    let directory = policy_directory(&[("a.cedar", policy)]);
    let result = run(&["validate", text(directory.path())]);
    let (_, after) = result.out.split_once("\nrevision ").unwrap();
    assert_eq!(after.lines().count(), 1, "{}", result.out);
}

// ---------------------------------------------------------------- authorize

const INES: &str = r#"Platform::User::"ines.varga""#;
const JONAS: &str = r#"Support::Agent::"jonas.weber""#;
const APPROVE: &str = r#"Invoicing::Action::"approveInvoice""#;
const READ: &str = r#"Invoicing::Action::"readInvoice""#;
const SMALL: &str = r#"Invoicing::Invoice::"INV-2041""#;
const LARGE: &str = r#"Invoicing::Invoice::"INV-2042""#;

/// Runs `authorize` with a source: `--policies DIR` or `--connect ADDR`.
fn authorize(of: &[&str], uids: [&str; 3], more: &[&str]) -> CommandResult {
    let [principal, action, resource] = uids;
    let arguments = [
        "authorize",
        "--principal",
        principal,
        "--action",
        action,
        "--resource",
        resource,
    ];
    run(&[&arguments, of, more].concat())
}

const AT_THE_OFFICE: &str = r#"{"ip": {"__extn": {"fn": "ip", "arg": "203.0.113.42"}},
    "now": {"__extn": {"fn": "datetime", "arg": "2026-03-02T09:30:00Z"}}}"#;

#[test]
fn authorize_agrees_with_the_running_service() {
    let policies = shipped_policies();
    let server = Server::start(&policies, &[]);
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("context.json");
    fs::write(&file, AT_THE_OFFICE).unwrap();
    let mut answers = Vec::new();
    for of in [
        ["--policies", text(&policies)],
        ["--connect", server.address()],
    ] {
        let allowed = authorize(&of, [INES, APPROVE, SMALL], &[]);
        assert_eq!(allowed.code, 0, "{allowed:?}");
        assert!(
            allowed
                .out
                .starts_with("ALLOW\ndetermining policies:\n  invoices.management-approves\n"),
            "{}",
            allowed.out
        );
        assert!(allowed.out.contains("\nrevision: "), "{}", allowed.out);

        let denied = authorize(&of, [INES, APPROVE, LARGE], &["--explain"]);
        assert_eq!(denied.code, 1, "{denied:?}");
        assert!(denied.out.starts_with("DENY\n"), "{}", denied.out);
        assert!(
            denied
                .out
                .contains("resource.amount.lessThanOrEqual(principal.approvalLimit)"),
            "{}",
            denied.out
        );

        let inline = authorize(
            &of,
            [JONAS, READ, SMALL],
            &["--context", AT_THE_OFFICE, "--format", "json"],
        );
        assert_eq!(inline.code, 0, "{inline:?}");
        assert_eq!(inline.json()["decision"], "ALLOW");
        assert_eq!(
            inline.json()["determining_policies"],
            json!(["support.granted-reads"])
        );
        let from_file = authorize(
            &of,
            [JONAS, READ, SMALL],
            &["--context", text(&file), "--format", "json"],
        );
        assert_eq!(from_file.json(), inline.json());

        let explained = authorize(
            &of,
            [INES, APPROVE, LARGE],
            &["--explain", "--format", "json"],
        );
        assert_eq!(explained.json()["explanation"]["unsatisfied_total"], 1);
        answers.push([allowed.out, denied.out, inline.out, explained.out]);
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn authorize_takes_entities_from_a_file() {
    let policies = "permit (principal, action, resource) when { principal in Team::\"a\" && resource.level < 3 };";
    let directory = policy_directory(&[("a.cedar", policies)]);
    let entities = directory.path().join("sent.json");
    fs::write(
        &entities,
        r#"[{"uid": {"type": "User", "id": "u"}, "attrs": {}, "parents": [{"type": "Team", "id": "a"}]},
            {"uid": {"type": "Doc", "id": "d"}, "attrs": {"level": 2}, "parents": []}]"#,
    )
    .unwrap();
    let server = Server::start(directory.path(), &[]);
    let uids = [r#"User::"u""#, r#"Action::"read""#, r#"Doc::"d""#];
    for of in [
        ["--policies", text(directory.path())],
        ["--connect", server.address()],
    ] {
        assert_eq!(authorize(&of, uids, &[]).code, 1);
        let result = authorize(&of, uids, &["--entities", text(&entities)]);
        assert_eq!(result.code, 0, "{result:?}");
    }
}

#[test]
fn authorize_without_answer_exits_with_two() {
    let policies = shipped_policies();
    let of = ["--policies", text(&policies)];
    let broken = policy_directory(&[("a.cedar", "permit (")]);
    let uids = [INES, APPROVE, SMALL];
    let unknown = [INES, r#"Invoicing::Action::"burn""#, SMALL];
    let server = Server::start(&policies, &[]);
    for result in [
        authorize(&of, unknown, &[]),
        authorize(&["--connect", server.address()], unknown, &[]),
        authorize(&["--connect", "127.0.0.1:1"], uids, &[]),
        authorize(&["--policies", text(broken.path())], uids, &[]),
        authorize(&of, uids, &["--context", "{"]),
        authorize(&of, uids, &["--context", "/nowhere"]),
        authorize(&of, uids, &["--entities", "/nowhere"]),
        authorize(&of, uids, &["--context", r#"{"mfa": 1}"#]),
        authorize(&of, ["not a uid", APPROVE, SMALL], &[]),
    ] {
        assert_eq!((result.code, &*result.out), (2, ""), "{result:?}");
        assert!(!result.err.is_empty());
    }
}

#[test]
fn authorize_rejects_tokens_for_a_directory() {
    // Only a running service verifies tokens.
    let policies = policy_directory(&[("a.cedar", "permit(principal, action, resource);")]);
    let token = policies.path().join("token");
    fs::write(&token, "e30.e30.").unwrap();
    let file = policies.path().join("pdp.toml");
    fs::write(&file, format!("policies = '{}'", text(policies.path()))).unwrap();
    for of in [
        &["--policies", text(policies.path())][..],
        &["--config", text(&file)],
        &["--config", text(&file), "--policies", text(policies.path())],
    ] {
        let arguments = ["authorize", "--token", text(&token), "--action", APPROVE];
        let result = run(&[&arguments, of, &["--resource", SMALL]].concat());
        assert_eq!((result.code, &*result.out), (2, ""), "{of:?}: {result:?}");
        assert!(result.err.contains("--token"), "{of:?}: {result:?}");
    }
}

// ---------------------------------------------------------------- test

/// Creates a directory with one policy for `alice` and these test cases.
fn directory_with_tests(tests: &Value) -> tempfile::TempDir {
    let policies = "@id(\"alice-reads\")\npermit (principal == User::\"alice\", action == Action::\"read\", resource)\n\
         when { context.purpose == \"audit\" };\n\
         @id(\"all-list\")\npermit (principal, action == Action::\"list\", resource);\n\
         @id(\"alice-lists\")\npermit (principal == User::\"alice\", action == Action::\"list\", resource);\n";
    policy_directory(&[
        ("a.cedar", policies),
        ("below/a.test.json", &tests.to_string()),
    ])
}

fn test_case(name: &str, action: &str, purpose: &str, decision: &str, reason: &[&str]) -> Value {
    json!({
        "name": name,
        "request": {
            "principal": "User::\"alice\"", "action": format!("Action::{action:?}"),
            "resource": "Doc::\"1\"", "context": {"purpose": purpose}
        },
        "entities": [], "decision": decision, "reason": reason, "num_errors": 0
    })
}

#[test]
fn example_policy_tests_pass() {
    let result = run(&["test", text(&shipped_policies())]);
    assert_eq!(result.code, 0, "{result:?}");
    assert!(
        result.out.ends_with(" passed, 0 failed\n"),
        "{}",
        result.out
    );
}

#[test]
fn failing_test_shows_request_and_reason() {
    // The report has the request, the expected and actual decision, and the reason.
    let directory = directory_with_tests(&json!([
        test_case("alice audits", "read", "audit", "allow", &["alice-reads"]),
        test_case(
            "alice is curious",
            "read",
            "curiosity",
            "allow",
            &["alice-reads"]
        ),
    ]));
    let result = run(&["test", text(directory.path())]);
    assert_eq!(result.code, 1, "{result:?}");
    assert!(
        result.out.contains("ok    alice audits\n"),
        "{}",
        result.out
    );
    assert!(
        result
            .out
            .contains("FAIL  alice is curious\n      below/a.test.json:1\n"),
        "{}",
        result.out
    );
    for line in [
        r#"request:  principal User::"alice""#,
        r#"action Action::"read""#,
        r#"resource Doc::"1""#,
        r#"context {"purpose":"curiosity"}"#,
        "expected: ALLOW by [alice-reads] with 0 errors",
        "got:      DENY by [] with 0 errors",
        r#"its `when` is not satisfied at a.cedar:3:8: context.purpose == "audit""#,
        "1 passed, 1 failed\n",
    ] {
        assert!(result.out.contains(line), "{line}: {}", result.out);
    }
    let result = run(&["test", text(directory.path()), "--format", "json"]);
    assert_eq!(result.code, 1);
    let report = result.json();
    assert_eq!(
        (&report["passed"], &report["failed"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(report["tests"][0]["passed"], json!(true));
    assert_eq!(report["tests"][1]["name"], "alice is curious");
}

#[test]
fn tests_are_filtered_by_name() {
    let directory = directory_with_tests(&json!([
        test_case("alice audits", "read", "audit", "allow", &["alice-reads"]),
        test_case("alice is curious", "read", "curiosity", "allow", &[]),
    ]));
    let result = run(&["test", text(directory.path()), "--filter", "audit"]);
    assert_eq!(result.code, 0, "{result:?}");
    assert!(
        result.out.ends_with("1 passed, 0 failed\n"),
        "{}",
        result.out
    );
    let result = run(&["test", text(directory.path()), "--filter", "nobody"]);
    assert_eq!((result.code, &*result.out), (2, ""));
}

#[test]
fn expected_reasons_are_exact_or_contained() {
    let directory = directory_with_tests(&json!([test_case(
        "alice lists",
        "list",
        "",
        "allow",
        &["all-list"]
    )]));
    let exactly = run(&["test", text(directory.path())]);
    assert_eq!(exactly.code, 1, "{exactly:?}");
    assert!(
        exactly
            .out
            .contains("got:      ALLOW by [alice-lists, all-list]"),
        "{}",
        exactly.out
    );
    let among = run(&["test", text(directory.path()), "--reasons", "contains"]);
    assert_eq!(among.code, 0, "{among:?}");
    let other = directory_with_tests(&json!([test_case(
        "alice lists",
        "list",
        "",
        "allow",
        &["alice-reads"]
    )]));
    let among = run(&["test", text(other.path()), "--reasons", "contains"]);
    assert_eq!(among.code, 1, "{among:?}");
}

#[test]
fn test_results_are_written_as_junit_too() {
    let directory = directory_with_tests(&json!([
        test_case(
            "<alice> & \"audits\"",
            "read",
            "audit",
            "allow",
            &["alice-reads"]
        ),
        test_case(
            "alice is curious",
            "read",
            "]]> \u{1}",
            "allow",
            &["alice-reads"]
        ),
    ]));
    let file = directory.path().join("report.xml");
    let result = run(&["test", text(directory.path()), "--junit", text(&file)]);
    assert_eq!(result.code, 1, "{result:?}");
    let report = quick_junit::Report::deserialize_from_str(&fs::read_to_string(&file).unwrap());
    let report = report.expect("well-formed JUnit XML");
    assert_eq!((report.tests, report.failures), (2, 1));
    let suite = &report.test_suites[0];
    assert_eq!(suite.name.as_str(), "below/a.test.json");
    let names: Vec<_> = suite
        .test_cases
        .iter()
        .map(|case| case.name.as_str())
        .collect();
    assert_eq!(names, ["<alice> & \"audits\"", "alice is curious"]);
    let unwritable = run(&[
        "test",
        text(directory.path()),
        "--junit",
        "/nowhere/report.xml",
    ]);
    assert_eq!(unwritable.code, 2);
}

#[test]
fn unreadable_test_file_is_a_failing_test() {
    for (tests, message) in [
        ("[{]", "below/a.test.json:1"),
        (r#"[{"name": "x"}]"#, "below/a.test.json:1"),
        (&"[".repeat(100_000), "deep"),
        ("{}", "below/a.test.json:1"),
    ] {
        let directory =
            policy_directory(&[("a.cedar", ALL_ARE_PERMITTED), ("below/a.test.json", tests)]);
        let result = run(&["test", text(directory.path())]);
        assert_eq!(result.code, 1, "{result:?}");
        assert!(result.out.contains(message), "{message}: {}", result.out);
    }
}

#[test]
fn tests_of_invalid_policies_fail() {
    let directory = policy_directory(&[("a.cedar", "permit ("), ("a.test.json", "[]")]);
    let result = run(&["test", text(directory.path())]);
    assert_eq!(result.code, 1, "{result:?}");
    assert!(result.err.contains("a.cedar:1:"), "{}", result.err);
}

#[test]
fn directory_without_tests_is_an_error() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let result = run(&["test", text(directory.path())]);
    assert_eq!((result.code, &*result.out), (2, ""), "{result:?}");
}

#[test]
fn test_entities_come_from_three_places() {
    // Entities come from the directory, the test itself, or a file beside it.
    let entity = |level: u8| json!([{"uid": {"type": "User", "id": "alice"}, "attrs": {"level": level}, "parents": []}]);
    let test = |name: &str, entities: Option<Value>, decision: &str| {
        let mut test = json!({
            "name": name,
            "request": {"principal": "User::\"alice\"", "action": "Action::\"a\"", "resource": "Doc::\"1\"", "context": {}},
            "decision": decision, "reason": if decision == "allow" { vec!["a.cedar#0"] } else { Vec::new() }, "num_errors": 0
        });
        if let Some(entities) = entities {
            test["entities"] = entities;
        }
        test
    };
    let tests = json!([
        test("the directory's", None, "allow"),
        test("its own", Some(entity(9)), "deny"),
        test("those of a file", Some(json!("../others.json")), "deny"),
        test(
            "those of a file beside it",
            Some(json!("others.json")),
            "deny"
        ),
        test("those of no file", Some(json!("nowhere.json")), "deny"),
    ]);
    let directory = policy_directory(&[
        (
            "a.cedar",
            "permit (principal, action, resource) when { principal.level == 1 };",
        ),
        ("entities.json", &entity(1).to_string()),
        ("others.json", &entity(8).to_string()),
        ("below/others.json", &entity(7).to_string()),
        ("below/a.test.json", &tests.to_string()),
    ]);
    let result = run(&["test", text(directory.path()), "--format", "json"]);
    assert_eq!(result.code, 1, "{result:?}");
    let report = result.json();
    let passed = |index: usize| report["tests"][index]["passed"].as_bool().unwrap();
    assert!(passed(0) && passed(1) && passed(3), "{report}");
    assert!(!passed(4), "{report}");
}

// ---------------------------------------------------------------- config, healthcheck

#[test]
fn flags_override_environment_file_and_defaults() {
    // In this order of precedence: flags, environment, file, defaults.
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("pdp.toml");
    fs::write(
        &file,
        "poll_interval = \"7s\"\nquiet_period = \"70ms\"\nmax_batch_items = 77\n",
    )
    .unwrap();
    let environment = [
        ("CEDAR_PDP_QUIET_PERIOD", "80ms"),
        ("CEDAR_PDP_MAX_BATCH_ITEMS", "88"),
        ("CEDAR_PDP_LISTEN", "127.0.0.1:8000,unix:/run/pdp.sock"),
    ];
    let flags = ["config", "--config", text(&file), "--max-batch-items", "99"];
    let result = run_in(&environment, &flags);
    assert_eq!(result.code, 0, "{result:?}");
    for line in [
        "poll_interval = \"7s\" # file",
        "quiet_period = \"80ms\" # environment",
        "max_batch_items = 99 # flag",
        "listen = [\"127.0.0.1:8000\", \"unix:/run/pdp.sock\"] # environment",
        "validation = \"strict\" # default",
    ] {
        assert!(
            result.out.lines().any(|found| found == line),
            "{line}: {}",
            result.out
        );
    }
    // The output is a configuration file with the same meaning.
    let printed = place.path().join("printed.toml");
    fs::write(&printed, &result.out).unwrap();
    let again = run(&["config", "--config", text(&printed)]);
    let values = |text: &str| -> toml::Table { text.parse().unwrap() };
    assert_eq!(values(&again.out), values(&result.out));
    let named = run_in(&[("CEDAR_PDP_CONFIG", text(&printed))], &["config"]);
    assert_eq!(named.out, again.out);
}

#[test]
fn file_and_environment_configure_the_service() {
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let file = directory.path().join("pdp.toml");
    fs::write(
        &file,
        format!(
            "policies = {:?}\nlisten = [\"127.0.0.1:1\"]\n",
            directory.path()
        ),
    )
    .unwrap();
    let mut command = crate::support::command();
    command
        .args(["serve", "--config", text(&file)])
        .env("CEDAR_PDP_LISTEN", "127.0.0.1:0");
    let server = Server::spawn(command, 1);
    wait_until_serving(&server);
}

#[test]
fn unknown_settings_and_values_are_errors() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("pdp.toml");
    fs::write(&file, "# ours\npolcies = \"x\"\n").unwrap();
    let result = run(&["config", "--config", text(&file)]);
    assert_eq!((result.code, &*result.out), (2, ""));
    assert!(
        result.err.contains("line 2: unknown key `polcies`"),
        "{}",
        result.err
    );
    assert!(result.err.contains("`policies`"), "{}", result.err);

    let result = run_in(&[("CEDAR_PDP_LISTN", "x")], &["config"]);
    assert_eq!(result.code, 2);
    assert!(
        result.err.contains("`CEDAR_PDP_LISTN`") && result.err.contains("`CEDAR_PDP_LISTEN`"),
        "{}",
        result.err
    );

    for (flag, text) in [
        ("--poll-interval", "5"),
        ("--quiet-period", "0s"),
        ("--validation", "lax"),
        ("--listen", "nowhere"),
        ("--max-value-depth", "33"),
        ("--anonymous-principal", "nobody"),
        ("--log", "loud=very"),
    ] {
        let result = run(&["config", flag, text]);
        assert_eq!((result.code, &*result.out), (2, ""), "{flag} {text}");
        assert!(
            result.err.contains(&flag[2..].replace('-', "_")),
            "{}",
            result.err
        );
    }
    assert_eq!(run(&["config", "--polices", "x"]).code, 2);
    assert_eq!(run(&["config", "--config", "/nowhere"]).code, 2);
    assert_eq!(run(&[]).code, 2);
}

/// Waits until the service is healthy: it listens shortly before it serves.
fn wait_until_serving(server: &Server) {
    eventually_blocking("the server serves", || {
        run(&["healthcheck", "--connect", server.address()]).code == 0
    });
}

#[test]
fn healthcheck_exit_codes_tell_three_states_apart() {
    // Serving, not serving, and not listening.
    let directory = policy_directory(&[("a.cedar", ALL_ARE_PERMITTED)]);
    let server = Server::start(directory.path(), &[]);
    wait_until_serving(&server);
    for service in [
        "",
        "pdp.v1.AuthorizationService",
        "pdp.v1.PolicyStoreService",
    ] {
        let result = run(&[
            "healthcheck",
            "--connect",
            server.address(),
            "--service",
            service,
        ]);
        assert_eq!((result.code, &*result.out), (0, "SERVING\n"), "{result:?}");
    }
    let unknown = run(&[
        "healthcheck",
        "--connect",
        server.address(),
        "--service",
        "nothing",
    ]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    let result = run_in(&[("CEDAR_PDP_LISTEN", server.address())], &["healthcheck"]);
    assert_eq!(
        result.code, 0,
        "it must call the default address of serve: {result:?}"
    );

    let broken = policy_directory(&[("a.cedar", "permit (")]);
    let server = Server::start(broken.path(), &["--start-unready"]);
    let result = run(&["healthcheck", "--connect", server.address()]);
    assert_eq!((result.code, &*result.out), (1, "NOT_SERVING\n"));
    assert_eq!(run(&["healthcheck", "--connect", "127.0.0.1:1"]).code, 2);
}
