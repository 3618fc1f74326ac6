//! The guest's agent, as the monitor calls it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use protocol::{
    AcceptSocketRequest, AcceptSocketResponse, AgentClient, ConfigureRequest, ConnectPortRequest,
    CreateContainerRequest, DeleteContainerRequest, Empty, ExecProcessRequest, KeyValue, ListProcessesRequest,
    MAX_SENT_AHEAD, Process, ProcessEntry, ReadCgroupRequest, ResizeTerminalRequest, SendAheadRequest,
    SetNetworkRequest, SignalProcessRequest, StartContainerRequest, UpdateContainerRequest, WaitOomRequest,
    WaitProcessRequest,
};
use tokio::sync::{Mutex, MutexGuard};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{Context as Deadline, with_duration as within};

use super::responses::Responses;
use crate::control::Reply;
use crate::guest_text;
use crate::plan::Setting;

/// A guest that has not done what was asked after this long is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most bytes of a call's message, so that it fits into ttrpc's with what goes before it.
const MAX_CALL: usize = ttrpc::proto::MESSAGE_LENGTH_MAX - 4096;

/// Bytes of a piece of a request that is sent ahead of its call.
const PIECE: usize = 1 << 20;

/// Bytes of entropy given to a new VM.
pub const ENTROPY: usize = 64;

/// A connection to the agent.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    container_id: String,
    /// Held by whoever sends a request ahead of its call: the agent keeps one.
    turn: Arc<Mutex<()>>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// As a shell says it.
    pub code: u8,
    /// Whether the guest's kernel killed something in the container for lack of memory.
    pub oom_killed: bool,
}

impl Agent {
    /// Takes over a stream connected to the agent's port. Needs a running tokio runtime.
    pub fn new(stream: UnixStream, container_id: &str) -> anyhow::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream).context("talk to the guest's agent")?;
        let client = AgentClient::new(Client::new(Socket::new(Responses::new(stream))));
        Ok(Self { client, container_id: container_id.to_owned(), turn: Arc::default() })
    }

    /// This agent, for calls about another container.
    pub fn of(&self, container_id: &str) -> Self {
        Self { container_id: container_id.to_owned(), ..self.clone() }
    }

    /// The container that calls are about.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Gives the guest the time, so many random bytes, and settings of the host.
    pub async fn configure(&self, random: usize, settings: &[Setting]) -> anyhow::Result<()> {
        let mut entropy = vec![0; random];
        let got = rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty());
        entropy.truncate(got.context("getrandom")?);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let request = ConfigureRequest {
            realtime_sec: now.tv_sec,
            realtime_nsec: now.tv_nsec as u32,
            entropy,
            settings: settings.iter().map(key_value).collect(),
            ..Default::default()
        };
        done(self.client.configure(within(PATIENCE), &request).await)
    }

    /// Creates the container.
    pub async fn create(&self, request: &CreateContainerRequest) -> anyhow::Result<()> {
        let what = "the container's arguments, environment and mounts";
        let Some(_turn) = self.send_ahead(request, what).await? else {
            return done(self.client.create_container(within(PATIENCE), request).await);
        };
        let rest = CreateContainerRequest { sent_ahead: true, ..Default::default() };
        done(self.client.create_container(within(PATIENCE), &rest).await)
    }

    /// Sends a request that is longer than a call may be ahead of its call, which has to be made before the guard is
    /// dropped; `None` for one that is not. One that is too long even so is refused before the guest sees anything of it.
    async fn send_ahead(
        &self,
        request: &impl protobuf::Message,
        what: &str,
    ) -> anyhow::Result<Option<MutexGuard<'_, ()>>> {
        let size = usize::try_from(request.compute_size()).unwrap_or(usize::MAX);
        if size <= MAX_CALL {
            return Ok(None);
        }
        if size > MAX_SENT_AHEAD {
            bail!("{what} take {size} bytes: {MAX_SENT_AHEAD} are the most that a VM can be told");
        }
        let turn = self.turn.lock().await;
        let mut offset = 0;
        for piece in request.write_to_bytes().context("encode a request")?.chunks(PIECE) {
            let request = SendAheadRequest { offset, bytes: piece.to_owned(), ..Default::default() };
            done(self.client.send_ahead(within(PATIENCE), &request).await)?;
            offset += piece.len() as u64;
        }
        Ok(Some(turn))
    }

    /// Lets its process run.
    pub async fn start(&self) -> anyhow::Result<()> {
        let request = StartContainerRequest { container_id: self.container_id.clone(), ..Default::default() };
        done(self.client.start_container(within(PATIENCE), &request).await)
    }

    /// Starts another process under a name of our choice.
    pub async fn exec(&self, exec_id: &str, process: Process) -> anyhow::Result<()> {
        let mut request = ExecProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: exec_id.to_owned(),
            process: Some(process).into(),
            ..Default::default()
        };
        let turn = self.send_ahead(&request, "the process's arguments and environment").await?;
        if turn.is_some() {
            request = ExecProcessRequest { sent_ahead: true, ..Default::default() };
        }
        done(self.client.exec_process(within(PATIENCE), &request).await)
    }

    /// Waits for the end of a process, however long it takes. `""` is the container's own.
    pub async fn wait(&self, exec_id: &str) -> anyhow::Result<End> {
        let request = WaitProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self.client.wait_process(Deadline::default(), &request).await.map_err(sentence)?;
        let code = u8::try_from(answer.exit_code).unwrap_or(u8::MAX);
        Ok(End { code, oom_killed: answer.oom_killed })
    }

    /// Sends a signal.
    pub async fn signal(&self, exec_id: &str, signal: u32, all: bool) -> anyhow::Result<()> {
        let request = SignalProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        done(self.client.signal_process(within(Duration::from_secs(4)), &request).await)
    }

    /// Changes its network.
    pub async fn set_network(&self, mut request: SetNetworkRequest) -> anyhow::Result<()> {
        request.container_id = self.container_id.clone();
        done(self.client.set_network(within(PATIENCE), &request).await)
    }

    /// Writes files of its cgroup.
    pub async fn update(&self, files: Vec<(String, String)>) -> anyhow::Result<()> {
        let file = |(key, value)| KeyValue { key, value, ..Default::default() };
        let request = UpdateContainerRequest {
            container_id: self.container_id.clone(),
            cgroup_files: files.into_iter().map(file).collect(),
            ..Default::default()
        };
        done(self.client.update_container(within(PATIENCE), &request).await)
    }

    /// The container's processes.
    pub async fn processes(&self) -> anyhow::Result<Reply> {
        let request = ListProcessesRequest { container_id: self.container_id.clone(), ..Default::default() };
        let mut list = self.client.list_processes(within(PATIENCE), &request).await.map_err(sentence)?;
        list.processes.iter_mut().for_each(clean);
        Ok(Reply::Processes(list))
    }

    /// Files of its cgroup.
    pub async fn read_cgroup(&self, files: Vec<String>) -> anyhow::Result<Reply> {
        let request = ReadCgroupRequest { container_id: self.container_id.clone(), files, ..Default::default() };
        let read = self.client.read_cgroup(within(PATIENCE), &request).await.map_err(sentence)?;
        Ok(Reply::Files(read.files.into_iter().map(|file| (file.key, file.value)).collect()))
    }

    /// Waits until more processes than `seen` were killed for lack of memory, however long it takes.
    pub async fn wait_oom(&self, seen: u64) -> anyhow::Result<u64> {
        let request = WaitOomRequest { container_id: self.container_id.clone(), seen, ..Default::default() };
        Ok(self.client.wait_oom(Deadline::default(), &request).await.map_err(sentence)?.kills)
    }

    /// Waits until a process connects to a socket of the host, however long it takes.
    pub async fn accept_socket(&self) -> anyhow::Result<AcceptSocketResponse> {
        let request = AcceptSocketRequest { container_id: self.container_id.clone(), ..Default::default() };
        self.client.accept_socket(Deadline::default(), &request).await.map_err(sentence)
    }

    /// Has a port of its connected with a stream; the stream's id.
    pub async fn connect_port(&self, port: u16, datagrams: bool) -> anyhow::Result<u64> {
        let request = ConnectPortRequest {
            container_id: self.container_id.clone(),
            port: port.into(),
            datagrams,
            ..Default::default()
        };
        Ok(self.client.connect_port(within(PATIENCE), &request).await.map_err(sentence)?.stream)
    }

    /// Gives a terminal a new size.
    pub async fn resize(&self, exec_id: &str, rows: u16, columns: u16) -> anyhow::Result<()> {
        let request = ResizeTerminalRequest {
            container_id: self.container_id.clone(),
            exec_id: exec_id.to_owned(),
            rows: u32::from(rows),
            columns: u32::from(columns),
            ..Default::default()
        };
        done(self.client.resize_terminal(within(PATIENCE), &request).await)
    }

    /// Has the guest kill and forget the container.
    pub async fn delete(&self) -> anyhow::Result<()> {
        let request = DeleteContainerRequest { container_id: self.container_id.clone(), ..Default::default() };
        done(self.client.delete_container(within(PATIENCE), &request).await)
    }

    /// Has the guest write everything back that programs wrote; afterwards the VM may be stopped.
    pub async fn shutdown(&self) -> anyhow::Result<()> {
        done(self.client.shutdown(within(PATIENCE), &Empty::default()).await)
    }
}

/// Takes control characters out of what the guest says of a process: none reaches a terminal or a log.
fn clean(entry: &mut ProcessEntry) {
    for text in [&mut entry.state, &mut entry.terminal, &mut entry.comm, &mut entry.args] {
        *text = guest_text::printable(text);
    }
}

/// What became of a call whose answer says nothing else.
fn done<T>(answer: ttrpc::Result<T>) -> anyhow::Result<()> {
    answer.map(drop).map_err(sentence)
}

/// The agent's own sentence; failures of the connection are named as such.
fn sentence(error: ttrpc::Error) -> anyhow::Error {
    match error {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::DEADLINE_EXCEEDED => {
            anyhow!("the guest's agent did not answer in time")
        }
        ttrpc::Error::RpcStatus(status) => anyhow!(guest_text::sentence(status.message())),
        other => anyhow!(guest_text::sentence(&format!("the connection to the guest's agent failed: {other}"))),
    }
}

fn key_value(setting: &Setting) -> protocol::KeyValue {
    protocol::KeyValue { key: setting.file.clone(), value: setting.value.clone(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(mib: usize) -> Process {
        Process { env: vec!["x".repeat(1 << 20); mib], ..Default::default() }
    }

    #[tokio::test]
    async fn only_what_is_too_long_for_a_call_is_sent_ahead() {
        let (here, there) = UnixStream::pair().unwrap();
        let agent = Agent::new(here, "c").unwrap();
        // Nobody is there to answer.
        drop(there);
        assert!(agent.send_ahead(&with(3), "arguments").await.unwrap().is_none());
        assert!(agent.send_ahead(&with(5), "arguments").await.unwrap_err().to_string().contains("connection"));
        let error = agent.exec("e", with(17)).await.unwrap_err().to_string();
        let expected =
            "the process's arguments and environment take 17825871 bytes: 16777216 are the most that a VM can be told";
        assert_eq!(error, expected);
    }
}
