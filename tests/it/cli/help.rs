//! The help of the commands.

use std::collections::BTreeSet;

use cedar_pdp::config::sources::options;

use super::run;

/// Returns the flags that a help text lists, without `--help`.
fn flags(arguments: &[&str]) -> BTreeSet<String> {
    let ended = run(arguments);
    assert_eq!((ended.code, &*ended.err), (0, ""), "{arguments:?}");
    let words = ended.out.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("-h, ").unwrap_or(line);
        let flag = line.split([' ', '=', '[']).next().unwrap_or_default();
        flag.starts_with("--").then(|| flag.to_owned())
    });
    words.filter(|flag| flag != "--help").collect()
}

#[track_caller]
fn check_short(command: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|flag| format!("--{flag}")).collect();
    assert_eq!(flags(&[command, "-h"]), expected, "{command}");
}

#[test]
fn short_help_lists_options_of_command() {
    check_short(
        "validate",
        &[
            "format",
            "deny-warnings",
            "verbose",
            "watch",
            "config",
            "validation",
            "on-policy-error",
            "require-known",
            "allow-empty",
        ],
    );
    check_short(
        "test",
        &[
            "filter",
            "junit",
            "format",
            "reasons",
            "watch",
            "config",
            "validation",
            "on-policy-error",
        ],
    );
    check_short(
        "authorize",
        &[
            "connect",
            "tls-ca",
            "tls-server-name",
            "bearer",
            "tls-cert",
            "tls-key",
            "principal",
            "token",
            "action",
            "resource",
            "context",
            "request-json",
            "entities",
            "explain",
            "format",
            "config",
            "policies",
            "validation",
            "on-policy-error",
        ],
    );
    check_short("config", &["config"]);
    check_short(
        "healthcheck",
        &[
            "connect",
            "tls-ca",
            "tls-server-name",
            "bearer",
            "tls-cert",
            "tls-key",
            "service",
            "config",
        ],
    );
}

#[test]
fn long_help_lists_all_settings() {
    let settings = options();
    for arguments in [
        &["serve", "-h"],
        &["serve", "--help"],
        &["validate", "--help"],
        &["test", "--help"],
        &["authorize", "--help"],
        &["config", "--help"],
    ] {
        let listed = flags(arguments);
        for setting in &settings {
            assert!(
                listed.contains(&setting.flag),
                "{arguments:?}: {}",
                setting.flag
            );
        }
    }
}

#[test]
fn short_help_ends_with_pointer_to_settings() {
    for command in ["validate", "test", "authorize", "config"] {
        let help = run(&[command, "-h"]).out;
        let last = help.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("`--help` lists all settings"),
            "{command}: {last}"
        );
        assert!(help.lines().count() < 50, "{command}");
    }
}
