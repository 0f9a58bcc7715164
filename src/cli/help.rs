//! The help of the commands: all settings in the long one, and those that matter in the short one.

use clap::{Arg, Command};

use crate::config::sources::{self, ConfigOption, HEADING};

/// The settings that the short help lists, for each command but `serve`, which lists all.
const IN_SHORT_HELP: &[(&str, &[&str])] = &[
    (
        "validate",
        &[
            "validation",
            "on_policy_error",
            "require_known",
            "allow_empty",
        ],
    ),
    ("test", &["validation", "on_policy_error"]),
    ("authorize", &["policies", "validation", "on_policy_error"]),
    ("fmt", &[]),
    ("schema", &[]),
    ("config", &[]),
];

/// Settings that `authorize` uses for its own end of the connection. The environment and the file
/// do not count for them.
const OF_CLIENT: &[(&str, &str)] = &[
    ("tls_cert", "Client certificate chain, PEM"),
    ("tls_key", "Private key of the client certificate, PEM"),
];

/// The commands that run again after every change. For them, `--watch` takes no value.
const WATCHING: &[&str] = &["validate", "test"];

const SHORT_NOTE: &str = "`--help` lists all settings; they are the same for all commands";
const LONG_NOTE: &str = "Flags override the environment, which overrides the configuration file, which overrides the \
     defaults";

/// Returns the commands with the help of the settings: meaning, environment variable and default.
pub(super) fn with_settings(commands: Command) -> Command {
    let options = sources::options();
    commands.mut_subcommands(|command| {
        let has_settings = command.get_arguments().any(is_setting);
        if !has_settings {
            return command;
        }
        let name = command.get_name().to_owned();
        let short = IN_SHORT_HELP.iter().find(|(command, _)| *command == name);
        let short = short.map(|(_, keys)| *keys);
        let command = command
            .mut_args(|arg| {
                let key = arg.get_id().as_str();
                let option = options.iter().find(|option| option.key == key);
                let (Some(option), true) = (option, is_setting(&arg)) else {
                    return arg;
                };
                let of_client = OF_CLIENT.iter().find(|(known, _)| *known == key);
                if let (Some((_, help)), "authorize") = (of_client, name.as_str()) {
                    return arg.help(*help).help_heading("Connection");
                }
                if key == "watch" && WATCHING.contains(&name.as_str()) {
                    return arg
                        .num_args(0)
                        .default_missing_value("poll")
                        .help("Run again after every change of a file that is loaded, until interrupted")
                        .help_heading(None::<&str>);
                }
                let is_hidden = short.is_some_and(|short| !short.contains(&key));
                arg.help(text(option)).hide_short_help(is_hidden)
            })
            .after_long_help(LONG_NOTE);
        match short {
            Some(_) => command.after_help(SHORT_NOTE),
            None => command,
        }
    })
}

/// Returns whether an argument is a setting of the service, or its configuration file.
fn is_setting(arg: &Arg) -> bool {
    arg.get_help_heading() == Some(HEADING)
}

fn text(option: &ConfigOption) -> String {
    let text = format!("{} [env: {}]", option.meaning, option.variable);
    match &option.default {
        Some(default) => format!("{text} [default: {default}]"),
        None => text,
    }
}
