//! The tables of the documentation equal the code.

use std::path::Path;

use cedar_pdp::config::sources::{ConfigOption, options};
use cedar_pdp::pip::RejectionReason;

/// Returns the table of settings as the documentation must have it.
fn table() -> String {
    let mut table = String::from(
        "| key | environment | flag | default | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for ConfigOption {
        key,
        variable,
        flag,
        default,
        meaning,
        ..
    } in options()
    {
        let default = default.map_or_else(|| "none".to_owned(), |default| format!("`{default}`"));
        let meaning = meaning.replace('|', "\\|");
        table.push_str(&format!(
            "| `{key}` | `{variable}` | `{flag}` | {default} | {meaning} |\n"
        ));
    }
    table
}

/// Returns the text of a page of the repository.
fn page(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).expect("a page")
}

#[test]
fn configuration_page_lists_all_settings() {
    let table = table();
    assert!(
        page("docs/configuration.md").contains(&table),
        "the table should be:\n\n{table}"
    );
}

#[test]
fn errors_page_lists_all_token_reasons() {
    let mut table = String::from("| reason | meaning |\n| --- | --- |\n");
    for reason in RejectionReason::ALL {
        let (code, meaning) = (reason.code(), reason.description());
        table.push_str(&format!("| `{code}` | {meaning} |\n"));
    }
    assert!(
        page("docs/errors.md").contains(&format!("{table}<!-- end -->")),
        "the table should be:\n\n{table}"
    );
}
