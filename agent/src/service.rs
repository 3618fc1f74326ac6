//! The calls of the protocol, each handed to whoever does the work.

use crate::container::table::Containers;
use crate::container::{create, exec};
use crate::error::{Error, Result};
use crate::guest;
use crate::guest_paths::GuestPaths;
use crate::host::streams::Streams;
use crate::network::nics::{Networks, Owner};
use crate::network::{ports, sysctl};
use crate::process::handle::Process;
use crate::process::list;
use crate::sent_ahead::SentAhead;
use async_trait::async_trait;
use protocol::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ttrpc::r#async::TtrpcContext;

/// Longest wait for the end of killed containers.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// The agent's end of the protocol.
pub struct Service {
    /// Table of containers, shared with the reaper.
    pub containers: Arc<Containers>,
    /// Networks of the containers, and which NICs of the guest they have.
    pub networks: Networks,
    /// Streams that the host has opened, shared with the task that accepts them.
    pub streams: Arc<Streams>,
    /// Request that comes ahead of its call.
    pub sent_ahead: SentAhead,
}

impl Service {
    /// A service of a guest without containers.
    pub fn new(paths: GuestPaths) -> Self {
        Self {
            containers: Arc::new(Containers::new(paths)),
            networks: Networks::default(),
            streams: Arc::default(),
            sent_ahead: SentAhead::default(),
        }
    }

    async fn start(&self, id: &str) -> Result<()> {
        let config = self.containers.config(id)?;
        if !config.interface_sysctls.is_empty() {
            sysctl::check(&config.interface_sysctls, &*self.containers.running_init(id)?)?;
        }
        self.containers.take_start_barrier(id)?.start().await?;
        if config.online_cpus > 1 {
            tokio::spawn(guest::bring_up_cpus(config.online_cpus));
        }
        Ok(())
    }

    fn set_network(&self, request: &SetNetworkRequest) -> Result<()> {
        let id = &request.container_id;
        let (init, config) = (self.containers.running_init(id)?, self.containers.config(id)?);
        if !config.namespaces.makes(libc::CLONE_NEWNET) {
            return Err(Error::precondition(format!("container {id} has no network namespace of its own")));
        }
        let socket_client = self.containers.socket_client(id)?;
        self.networks.set(request, &Owner { init: &init, interface_sysctls: &config.interface_sysctls, socket_client })
    }

    async fn delete(&self, id: &str) -> Result<()> {
        let killed = self.containers.kill(id)?;
        // What can't be killed must not keep the others waiting. Nothing has to be written back: what a process writes
        // is on the host, what it has mapped is when it unmaps it.
        let _ = tokio::time::timeout(KILL_PATIENCE, gone(killed)).await;
        self.networks.remove(id).await;
        match self.containers.remove(id) {
            Some(config) => config.cgroup.remove().await,
            None => Ok(()),
        }
    }

    async fn wait(&self, id: &str, exec_id: &str) -> Result<WaitProcessResponse> {
        let exit = self.containers.process(id, exec_id)?.wait().await?;
        if !exec_id.is_empty() {
            self.containers.remove_exec(id, exec_id);
        }
        Ok(WaitProcessResponse { exit_code: exit.code, oom_killed: exit.oom_killed, ..Default::default() })
    }
}

async fn gone(killed: Vec<Arc<Process>>) {
    for process in killed {
        // A lost status is an end as well.
        let _ = process.wait().await;
    }
}

/// Answer of a handler.
type Reply<T> = ttrpc::Result<T>;

/// A pid as the protocol has it.
fn wire(pid: i32) -> u32 {
    pid.unsigned_abs()
}

#[async_trait]
impl Agent for Service {
    async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> Reply<Empty> {
        guest::configure(&request)?;
        Ok(Empty::new())
    }

    async fn send_ahead(&self, _: &TtrpcContext, request: SendAheadRequest) -> Reply<Empty> {
        self.sent_ahead.add(&request)?;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Reply<CreateContainerResponse> {
        let request = self.sent_ahead.resolve(request.sent_ahead, request)?;
        let pid = create::create(&self.containers, &self.streams, request).await?;
        Ok(CreateContainerResponse { pid: wire(pid), ..Default::default() })
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> Reply<Empty> {
        self.start(&request.container_id).await?;
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Reply<ExecProcessResponse> {
        let request = self.sent_ahead.resolve(request.sent_ahead, request)?;
        let pid = exec::exec(&self.containers, &self.streams, request).await?;
        Ok(ExecProcessResponse { pid: wire(pid), ..Default::default() })
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> Reply<WaitProcessResponse> {
        Ok(self.wait(&request.container_id, &request.exec_id).await?)
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> Reply<Empty> {
        self.containers.signal(&request.container_id, &request.exec_id, request.signal, request.all)?;
        Ok(Empty::new())
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeTerminalRequest) -> Reply<Empty> {
        let process = self.containers.process(&request.container_id, &request.exec_id)?;
        process.resize(request.rows, request.columns)?;
        Ok(Empty::new())
    }

    async fn list_processes(&self, _: &TtrpcContext, request: ListProcessesRequest) -> Reply<ListProcessesResponse> {
        let pids = self.containers.config(&request.container_id)?.cgroup.pids();
        let proc = Path::new("/proc");
        let (uptime, processes) = (list::uptime(proc), list::list(proc, &pids));
        Ok(ListProcessesResponse { uptime, processes, memory: list::memory(), ..Default::default() })
    }

    async fn read_cgroup(&self, _: &TtrpcContext, request: ReadCgroupRequest) -> Reply<ReadCgroupResponse> {
        let files = self.containers.config(&request.container_id)?.cgroup.read(&request.files)?;
        Ok(ReadCgroupResponse { files, ..Default::default() })
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> Reply<WaitOomResponse> {
        let events = self.containers.config(&request.container_id)?.cgroup.memory_events()?;
        let init = self.containers.process(&request.container_id, "")?;
        // Nobody is told of the removal of a cgroup.
        let kills = tokio::select! {
            kills = events.more_kills_than(request.seen) => kills?,
            _ = init.wait() => return Err(Error::precondition("container not running").into()),
        };
        Ok(WaitOomResponse { kills, ..Default::default() })
    }

    async fn accept_socket(&self, _: &TtrpcContext, request: AcceptSocketRequest) -> Reply<AcceptSocketResponse> {
        let queue = self.containers.connection_queue(&request.container_id)?;
        Ok(queue.next().await?)
    }

    async fn connect_port(&self, _: &TtrpcContext, request: ConnectPortRequest) -> Reply<ConnectPortResponse> {
        let init = self.containers.running_init(&request.container_id)?;
        let stream = ports::connect(init, &self.streams, &request).await?;
        Ok(ConnectPortResponse { stream, ..Default::default() })
    }

    async fn set_network(&self, _: &TtrpcContext, request: SetNetworkRequest) -> Reply<Empty> {
        Service::set_network(self, &request)?;
        Ok(Empty::new())
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> Reply<Empty> {
        self.containers.config(&request.container_id)?.cgroup.apply(&request.cgroup_files)?;
        Ok(Empty::new())
    }

    async fn delete_container(&self, _: &TtrpcContext, request: DeleteContainerRequest) -> Reply<Empty> {
        self.delete(&request.container_id).await?;
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Reply<Empty> {
        // What can't be killed must not keep the machine from ending.
        let _ = tokio::time::timeout(KILL_PATIENCE, gone(self.containers.kill_all())).await;
        guest::sync();
        tokio::spawn(guest::end());
        Ok(Empty::new())
    }
}
