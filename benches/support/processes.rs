//! Server processes: starting, calling, and reading their CPU time from the system.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use cedar_pdp::api::grpc::pb;
use cedar_pdp::api::grpc::pb::authorization_service_client::AuthorizationServiceClient;
use cedar_pdp::api::grpc::pb::policy_store_service_client::PolicyStoreServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::running::Server;

/// Starts this program again as the server `role`, with a file that it needs.
pub fn start_again_as(role: &str, file: Option<&Path>) -> anyhow::Result<Server> {
    let mut command =
        Command::new(std::env::current_exe().context("cannot tell where this program is")?);
    command.arg(role).args(file);
    Ok(Server::spawn(command, 1))
}

/// A client that waits for each answer.
pub struct Client {
    runtime: Runtime,
    client: AuthorizationServiceClient<Channel>,
    store: PolicyStoreServiceClient<Channel>,
}

impl Client {
    /// Connects to `server`.
    pub fn of(server: &Server) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(server.channel());
        Ok(Self {
            runtime,
            client: AuthorizationServiceClient::new(channel.clone()),
            store: PolicyStoreServiceClient::new(channel),
        })
    }

    /// Makes one unary call.
    pub fn authorize(
        &mut self,
        request: pb::AuthorizeRequest,
    ) -> anyhow::Result<pb::AuthorizeResponse> {
        Ok(self
            .runtime
            .block_on(self.client.authorize(request))?
            .into_inner())
    }

    /// Makes one batch call.
    pub fn authorize_batch(
        &mut self,
        requests: Vec<pb::AuthorizeRequest>,
    ) -> anyhow::Result<pb::BatchAuthorizeResponse> {
        let batch = pb::BatchAuthorizeRequest { requests };
        Ok(self
            .runtime
            .block_on(self.client.batch_authorize(batch))?
            .into_inner())
    }

    /// Returns the cache's counters.
    pub fn cache(&mut self) -> anyhow::Result<pb::CacheFigures> {
        let status = self
            .runtime
            .block_on(self.store.get_status(pb::GetStatusRequest {}))?
            .into_inner();
        status.cache.context("the cache is off")
    }
}

/// The memory of a process, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident memory now.
    pub resident: f64,
    /// Peak resident memory.
    pub peak: f64,
}

impl Memory {
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let file = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read `{file}`"))?;
        let mebibytes = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|kib| kib.parse::<f64>().ok())
                .map(|kib| kib / 1024.0)
                .with_context(|| format!("`{file}` does not contain {name}"))
        };
        Ok(Self {
            resident: mebibytes("VmRSS:")?,
            peak: mebibytes("VmHWM:")?,
        })
    }
}

/// Measures the CPU time of a process from now on.
///
/// `/proc/PID/stat` counts ticks of 10 ms; the scheduler's figures of the process's threads are the
/// same time, user and system, in nanoseconds.
pub struct CpuMeter {
    pid: u32,
    before: BTreeMap<u32, Duration>,
}

impl CpuMeter {
    pub fn start(pid: u32) -> anyhow::Result<Self> {
        Ok(Self {
            pid,
            before: cpu_by_thread(pid)?,
        })
    }

    /// Returns a meter of all CPU that the process has used.
    pub fn since_spawn(pid: u32) -> Self {
        Self {
            pid,
            before: BTreeMap::new(),
        }
    }

    /// Returns the CPU time since the start, without that of threads that have ended. The threads
    /// that serve do not end.
    pub fn used(&self) -> anyhow::Result<Duration> {
        let now = cpu_by_thread(self.pid)?;
        let used = |(thread, now): (u32, Duration)| {
            now.saturating_sub(self.before.get(&thread).copied().unwrap_or_default())
        };
        Ok(now.into_iter().map(used).sum())
    }
}

fn cpu_by_thread(pid: u32) -> anyhow::Result<BTreeMap<u32, Duration>> {
    let mut threads = BTreeMap::new();
    let directory = format!("/proc/{pid}/task");
    for thread in fs::read_dir(&directory).with_context(|| format!("cannot read `{directory}`"))? {
        let thread = thread?;
        let file = thread.path().join("schedstat");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            // It ended just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !thread.path().exists() => {
                continue;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read `{}`", file.display()));
            }
        };
        let nanoseconds = text
            .split_whitespace()
            .next()
            .and_then(|on_cpu| on_cpu.parse().ok());
        let on_cpu = nanoseconds.with_context(|| format!("`{}` holds `{text}`", file.display()))?;
        let id = thread
            .file_name()
            .to_string_lossy()
            .parse()
            .context("a thread has a number")?;
        threads.insert(id, Duration::from_nanos(on_cpu));
    }
    Ok(threads)
}
