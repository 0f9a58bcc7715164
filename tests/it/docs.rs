//! The tables and lists of the documentation equal the code.
//!
//! A page holds them between `<!-- generated: NAME -->` and `<!-- end -->`. To write them anew:
//! `CEDAR_PDP_UPDATE_DOCS=1 cargo test --test it docs`.

use std::path::Path;

use cedar_pdp::api::admin::metrics::METRICS;
use cedar_pdp::api::{ListedReason, listed_reasons};
use cedar_pdp::cli;
use cedar_pdp::config::sources::{ConfigOption, HEADING, options};
use cedar_pdp::counters::page::Metric;
use cedar_pdp::pip::RejectionReason;

/// Compares the text between the markers of `name` on a page with the text from the code, or
/// replaces it.
#[track_caller]
fn check(page: &str, name: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = std::fs::read_to_string(&path).expect("a page");
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text.split_once(&begin).expect("a marker of the begin");
    let (current, after) = rest
        .split_once("<!-- end -->")
        .expect("a marker of the end");
    if current == generated {
        return;
    }
    if std::env::var_os("CEDAR_PDP_UPDATE_DOCS").is_some() {
        let text = format!("{before}{begin}{generated}<!-- end -->{after}");
        std::fs::write(&path, text).expect("a page that can be written");
        return;
    }
    panic!(
        "{page} differs from the code; to update it, run\n\
         CEDAR_PDP_UPDATE_DOCS=1 cargo test --test it docs\n\n{generated}"
    );
}

/// Returns a table with these columns.
fn table<const N: usize>(columns: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut table = line(&columns.map(ToOwned::to_owned));
    table.push_str(&line(&columns.map(|_| "---".to_owned())));
    for row in rows {
        table.push_str(&line(&row.map(|cell| cell.replace('|', "\\|"))));
    }
    table
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

#[test]
fn configuration_page_lists_all_settings() {
    let rows = options().into_iter().map(|option| {
        let ConfigOption {
            key,
            variable,
            flag,
            default,
            meaning,
            ..
        } = option;
        let default = default.map_or_else(|| "none".to_owned(), |default| code(&default));
        [code(&key), code(&variable), code(&flag), default, meaning]
    });
    let columns = ["key", "environment", "flag", "default", "meaning"];
    check("docs/configuration.md", "settings", &table(columns, rows));
}

#[test]
fn cli_page_has_help_of_all_commands() {
    let settings = options();
    let mut commands = cli::command().term_width(100);
    commands.build();
    let mut page = String::new();
    for command in commands.get_subcommands() {
        let name = command.get_name();
        if name == "help" {
            continue;
        }
        // The settings have a page: here are those that the short help lists, but of `serve` none.
        let command = command.clone().term_width(100).mut_args(|arg| {
            let is_setting = arg.get_help_heading() == Some(HEADING)
                && settings.iter().any(|setting| arg.get_id() == &setting.key);
            let is_hidden = arg.is_hide_short_help_set() || (is_setting && name == "serve");
            arg.hide(is_hidden)
        });
        let help = command.clone().render_long_help().to_string();
        let help: Vec<&str> = help.trim().lines().map(str::trim_end).collect();
        page.push_str(&format!(
            "## {name}\n\n```text\n{}\n```\n\n",
            help.join("\n")
        ));
    }
    check("docs/cli.md", "commands", &page);
}

#[test]
fn observability_page_lists_all_metrics() {
    let rows = METRICS.iter().copied().flatten().map(|metric| {
        let Metric {
            name,
            kind,
            labels,
            help,
        } = metric;
        let labels: Vec<String> = labels.iter().map(|label| code(label)).collect();
        [
            code(name),
            kind.to_string(),
            labels.join(", "),
            (*help).to_owned(),
        ]
    });
    let columns = ["metric", "kind", "labels", "meaning"];
    check("docs/observability.md", "metrics", &table(columns, rows));
}

#[test]
fn errors_page_lists_all_token_reasons() {
    let rows = RejectionReason::ALL
        .iter()
        .map(|reason| [code(reason.code()), reason.description().to_owned()]);
    check(
        "docs/errors.md",
        "token reasons",
        &table(["reason", "meaning"], rows),
    );
}

#[test]
fn errors_page_lists_all_other_reasons() {
    for (section, of_section) in [("sent reasons", true), ("logged reasons", false)] {
        let reasons = listed_reasons().into_iter();
        let rows = reasons
            .filter(|reason| reason.is_sent == of_section)
            .map(|reason| {
                let ListedReason {
                    name,
                    status,
                    description,
                    ..
                } = reason;
                [code(name), status.to_owned(), description.to_owned()]
            });
        let columns = ["reason", "status", "meaning"];
        check("docs/errors.md", section, &table(columns, rows));
    }
}
