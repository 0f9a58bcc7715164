//! The binary: runs the command of its arguments.
//!
//! Exit status: 0 success, 1 a negative answer, 2 the command cannot run (usage errors included).

use std::io::{self, Write as _};
use std::process::ExitCode;

use cedar_pdp::cli::Cli;

/// The allocator. A call makes some twenty small allocations on one thread, and costs a tenth less
/// than with the system's allocator. Huge pages (a feature of the crate) are off: they would be two
/// thirds of an idle service's memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "switches")]
    if let Ok(name) = std::env::var("FAST_PATH_OFF")
        && !cedar_pdp::pdp::switches::set(&name, false)
    {
        return ExitCode::from(2);
    }
    match Cli::from_process().run() {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            // If stderr is closed, the exit status still reports the error.
            let _ = writeln!(io::stderr(), "cedar-pdp: {}", one_line(&error));
            ExitCode::from(2)
        }
    }
}

/// Returns the error and its causes in one line, each once: our errors already end in the text of
/// their cause.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
