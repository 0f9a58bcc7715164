//! The README's configuration table lists all settings.

use std::path::Path;

use cedar_pdp::config::sources::{ConfigOption, options};
use cedar_pdp::pip::RejectionReason;

/// Returns the table as the README must contain it.
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

#[test]
fn readme_configuration_table_is_complete() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
        .expect("a README");
    assert!(
        readme.contains(&table()),
        "the README's table should be:\n\n{}",
        table()
    );
}

#[test]
fn readme_lists_all_token_rejection_reasons() {
    let mut table = String::from("| reason | meaning |\n| --- | --- |\n");
    for reason in RejectionReason::ALL {
        let (code, meaning) = (reason.code(), reason.description());
        table.push_str(&format!("| `{code}` | {meaning} |\n"));
    }
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
        .expect("a README");
    assert!(
        readme.contains(&table),
        "the README's table should be:\n\n{table}"
    );
}
