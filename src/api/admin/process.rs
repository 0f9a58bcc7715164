//! Metrics of the process, read from `/proc` on Linux; on other systems most are left out.
//!
//! The names are those of all Prometheus client libraries.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use crate::counters::page::{Export, Page, metrics};

metrics! {
    BUILD = Gauge "cedar_pdp_build_info" ["version"]
        "Always 1; the label is the version";
    CPU_SECONDS = Counter "process_cpu_seconds_total" []
        "User and system CPU time of the process, in seconds";
    RESIDENT = Gauge "process_resident_memory_bytes" []
        "Resident memory of the process, in bytes";
    VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the process, in bytes";
    THREADS = Gauge "process_threads" []
        "Threads of the process";
    OPEN_FDS = Gauge "process_open_fds" []
        "Open file descriptors";
    MAX_FDS = Gauge "process_max_fds" []
        "Most open file descriptors; absent without a limit";
    STARTED_AT = Gauge "process_start_time_seconds" []
        "Start time of the process, in seconds since 1970";
}

/// The version of this program, and the resources that the process uses.
pub(crate) struct ProcessMetrics {
    pub(crate) started_at: SystemTime,
}

/// The resources that the process uses now. A value that cannot be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Resources {
    cpu_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    threads: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
}

impl Export for ProcessMetrics {
    fn export(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge(&BUILD, [([env!("CARGO_PKG_VERSION")], 1.0)])?;
        let resources = Resources::read();
        page.seconds_counter(&CPU_SECONDS, resources.cpu_seconds)?;
        for (metric, value) in [
            (&RESIDENT, resources.resident_bytes),
            (&VIRTUAL, resources.virtual_bytes),
            (&THREADS, resources.threads),
            (&OPEN_FDS, resources.open_fds),
            (&MAX_FDS, resources.max_fds),
        ] {
            page.value(metric, value.map(|value| value as f64))?;
        }
        page.timestamp(&STARTED_AT, Some(self.started_at))
    }
}

impl Resources {
    /// Reads `/proc`. Takes about 50 us, and more with many descriptors.
    fn read() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let status = read("/proc/self/status");
        Self {
            cpu_seconds: cpu_seconds(&read("/proc/self/stat")),
            resident_bytes: number_after(&status, "VmRSS:").map(|kib| kib << 10),
            virtual_bytes: number_after(&status, "VmSize:").map(|kib| kib << 10),
            threads: number_after(&status, "Threads:"),
            // One of them is the descriptor that this directory is read through.
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| entries.count().saturating_sub(1) as u64),
            max_fds: number_after(&read("/proc/self/limits"), "Max open files"),
        }
    }
}

/// Unit of CPU time in `/proc`, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns user and system time from `/proc/self/stat`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The program's name is in brackets and may hold any characters. Numbers follow it.
    let mut fields = stat
        .get(stat.rfind(')')? + 1..)?
        .split_whitespace()
        .skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// Returns the first number of the line that begins with `name`; `None` if it is no number.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_name_does_not_shift_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 4 0 99 1 2";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(cpu_seconds("7 (a"), None);
    }

    #[test]
    fn values_are_read_from_kernel_files() {
        let status = "Name:\tx\nVmSize:\t   2048 kB\nVmRSS:\t    512 kB\nThreads:\t5\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(512));
        assert_eq!(number_after(status, "Threads:"), Some(5));
        assert_eq!(number_after(status, "VmHWM:"), None);
        let limits = "Max processes   unlimited  unlimited  processes\n\
                      Max open files            1024                 4096                 files\n";
        assert_eq!(number_after(limits, "Max open files"), Some(1024));
        let unlimited = "Max open files  unlimited unlimited files";
        assert_eq!(number_after(unlimited, "Max open files"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn resources_of_this_process_are_known() {
        let Resources {
            cpu_seconds,
            resident_bytes,
            virtual_bytes,
            threads,
            open_fds,
            max_fds: _,
        } = Resources::read();
        assert!(cpu_seconds.is_some());
        assert!(resident_bytes > Some(1 << 20) && virtual_bytes >= resident_bytes);
        assert!(threads >= Some(1) && open_fds >= Some(3));
    }
}
