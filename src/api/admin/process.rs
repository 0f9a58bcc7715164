//! What the process takes of the machine, as Linux tells it; elsewhere nothing is told.
//!
//! The names are those that every client library of Prometheus gives these figures.

use std::fs;

/// What was taken so far, and what is taken now. What cannot be told is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ProcessFigures {
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) virtual_bytes: Option<u64>,
    pub(crate) threads: Option<u64>,
    pub(crate) open_fds: Option<u64>,
    pub(crate) max_fds: Option<u64>,
}

impl ProcessFigures {
    /// Reads `/proc`. Takes some 50 us, and more with many descriptors.
    pub(crate) fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            cpu_seconds: fs::read_to_string("/proc/self/stat")
                .ok()
                .and_then(|stat| cpu_seconds(&stat)),
            resident_bytes: of_status(&status, "VmRSS:").map(|kib| kib << 10),
            virtual_bytes: of_status(&status, "VmSize:").map(|kib| kib << 10),
            threads: of_status(&status, "Threads:"),
            // The descriptor that the directory is read through is among them.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| entries.count().saturating_sub(1) as u64),
            max_fds: fs::read_to_string("/proc/self/limits")
                .ok()
                .and_then(|limits| max_fds(&limits)),
        }
    }
}

/// What Linux counts CPU time in towards programs, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time, of `/proc/self/stat`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name, in brackets, may hold anything; what follows it are numbers.
    let mut fields = stat
        .get(stat.rfind(')')? + 1..)?
        .split_whitespace()
        .skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// A number of `/proc/self/status`.
fn of_status(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The soft limit of `/proc/self/limits`; `None` when there is none.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 4 0 99 1 2";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(cpu_seconds("7 (a"), None);
    }

    #[test]
    fn figures_are_read_off_the_files_of_the_kernel() {
        let status = "Name:\tx\nVmSize:\t   2048 kB\nVmRSS:\t    512 kB\nThreads:\t5\n";
        assert_eq!(of_status(status, "VmRSS:"), Some(512));
        assert_eq!(of_status(status, "Threads:"), Some(5));
        assert_eq!(of_status(status, "VmHWM:"), None);
        let limits = "Max processes   unlimited  unlimited  processes\n\
                      Max open files            1024                 4096                 files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files  unlimited unlimited files"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_figures() {
        let ProcessFigures {
            cpu_seconds,
            resident_bytes,
            virtual_bytes,
            threads,
            open_fds,
            max_fds: _,
        } = ProcessFigures::now();
        assert!(cpu_seconds.is_some());
        assert!(resident_bytes > Some(1 << 20) && virtual_bytes >= resident_bytes);
        assert!(threads >= Some(1) && open_fds >= Some(3));
    }
}
