//! One container's inbox: requests of commands, its end, the end of the VM.

mod pause;
mod processes;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use protobuf::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::lifecycle::{self, Event, Phase};
use super::network::Network;
use super::network::published_ports::{Guest, Ports};
use super::oom_trigger::Witness;
use super::pod::Machine;
use super::pod::joined;
use super::streams::host_sockets::Sockets;
use super::streams::stdio::Stdio;
use super::vm::agent_client::{Agent, End};
use super::wire::{arrange, receive, send};
use crate::control::{Reply, Request};
use crate::log;

pub use processes::follow_signals;

/// How long output may stand still after the process's end before its reader counts as stuck.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long the reader of a container has, whose guest is gone.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);

/// What a command gets when the VM died under its container.
const GUEST_DIED: u8 = 255;

/// Who tells the host that memory ran out in the guest.
enum Herald {
    /// This process, if the host limits memory at all.
    Own(Option<Witness>),
    /// The process that stands for the container.
    StandIn(Notify),
}

/// Everything that requests to one container work on. One thread, so no locks.
pub struct Server {
    machine: Rc<Machine>,
    agent: Agent,
    /// None for one that joined with that of another.
    network: RefCell<Option<Rc<Network>>>,
    phase: Cell<Phase>,
    execs: Cell<u64>,
    /// Signals that came while the machine stood still, and whether for all processes.
    waiting: RefCell<Vec<(u32, bool)>>,
    /// How many processes the guest's kernel killed for lack of memory.
    oom_kills: watch::Sender<u64>,
    /// Who tells the host of them, and whether it was told.
    herald: Herald,
    told: Cell<bool>,
}

impl Server {
    /// A server for the container that the machine was made for, created and not started.
    pub fn new(machine: Rc<Machine>, agent: Agent, witness: Option<Witness>, network: Network) -> Self {
        Self::of(machine, agent, Herald::Own(witness), Some(network))
    }

    /// A server for one that joined.
    pub fn of_member(machine: Rc<Machine>, agent: Agent, network: Option<Network>) -> Self {
        Self::of(machine, agent, Herald::StandIn(Notify::new()), network)
    }

    fn of(machine: Rc<Machine>, agent: Agent, herald: Herald, network: Option<Network>) -> Self {
        let (phase, execs, told) = (Cell::new(Phase::Created), Cell::new(0), Cell::new(false));
        let (oom_kills, waiting) = (watch::Sender::new(0), RefCell::default());
        let network = RefCell::new(network.map(Rc::new));
        Self { machine, agent, network, phase, execs, waiting, oom_kills, herald, told }
    }

    /// Serves until the container has ended and its output is delivered; returns its exit code. The machine can be
    /// stopped then.
    pub async fn run(
        self: &Rc<Self>,
        listener: UnixListener,
        mut stdio: Stdio,
        (sockets, ports): (Sockets, Ports),
    ) -> u8 {
        tokio::task::spawn_local(Rc::clone(&self.machine).keep_time(self.agent.clone()));
        // Commands are answered until there is nothing left to ask about.
        let mut tasks = self.begin(listener, sockets);
        tasks.spawn_local(ports.serve(Guest { machine: Rc::clone(&self.machine), agent: self.agent.clone() }));
        let end = self.ended().await;
        self.machine.vm.mark("ended");
        // The end may have been reported just before the machine was stopped.
        self.machine.go_on();
        match end {
            Ok(code) => {
                self.machine.end_members().await;
                self.drain(stdio).await;
                self.machine.vm.mark("output delivered");
                if let Err(error) = self.alive(self.agent.shutdown()).await {
                    log::warning(&format!("stop the guest: {error:#}"));
                }
                self.machine.vm.mark("guest synced");
                self.leave_network().await;
                code
            }
            Err(error) => {
                log::error(&format!("{error:#}"));
                // Few engines show the log of a container that was created: its user looks at its output.
                if log::file().is_some() {
                    let words = stdio.end_with(format!("runvm: {error:#}\n"));
                    let _ = tokio::time::timeout(LAST_WORDS_PATIENCE, words).await;
                }
                self.machine.members_gone().await;
                GUEST_DIED
            }
        }
    }

    /// The same for one that joined: nothing of it is left in the guest.
    pub async fn run_member(self: &Rc<Self>, listener: UnixListener, stdio: Stdio, sockets: Sockets) -> u8 {
        let _tasks = self.begin(listener, sockets);
        let code = self.ended().await;
        if code.is_ok() {
            self.drain(stdio).await;
            if let Err(error) = self.ask(self.agent.delete()).await {
                log::warning(&format!("remove a container from the VM: {error:#}"));
            }
        }
        self.leave_network().await;
        code.unwrap_or(GUEST_DIED)
    }

    fn network(&self) -> Option<Rc<Network>> {
        self.network.borrow().clone()
    }

    async fn leave_network(&self) {
        // A command that still waits for something must not keep the namespace.
        let network = self.network.take();
        if let Some(network) = network {
            network.end(&self.machine.vm).await;
        }
    }

    /// What goes on until it is dropped.
    fn begin(self: &Rc<Self>, listener: UnixListener, sockets: Sockets) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn_local(Rc::clone(self).accept(listener));
        tasks.spawn_local(Rc::clone(self).watch_oom());
        if let Some(network) = self.network() {
            tasks.spawn_local(network.follow(Rc::clone(&self.machine), self.agent.clone()));
        }
        tasks.spawn_local(sockets.serve(self.machine.vm.vsock().clone(), self.agent.clone()));
        tasks
    }

    /// Waits for the end of the container's process; its exit code.
    async fn ended(&self) -> anyhow::Result<u8> {
        let end = self.alive(self.agent.wait("")).await;
        self.apply(Event::End).ok();
        let End { code, oom_killed } = end?;
        if oom_killed {
            self.out_of_memory().await;
        }
        Ok(code)
    }

    /// Kills the container.
    pub async fn end(&self) {
        // What has ended needs it no more.
        let _ = self.alive(self.agent.signal("", libc::SIGKILL as u32, true)).await;
    }

    /// Where the time of the start went.
    pub fn timeline(&self) -> String {
        self.machine.vm.timeline()
    }

    async fn drain(&self, mut stdio: Stdio) {
        if tokio::time::timeout(DRAIN_PATIENCE, stdio.drained()).await.is_err() {
            log::warning("nobody read the rest of the container's output");
        }
    }

    async fn alive<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.machine.alive(work).await
    }

    async fn ask<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.machine.ask(work).await
    }

    fn apply(&self, event: Event) -> anyhow::Result<()> {
        let next = lifecycle::step(self.phase.get(), event).map_err(anyhow::Error::msg)?;
        self.phase.set(next);
        Ok(())
    }

    async fn accept(self: Rc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::task::spawn_local(Rc::clone(&self).converse(stream));
                }
                Err(error) => {
                    log::warning(&format!("take a command: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn converse(self: Rc<Self>, stream: UnixStream) {
        let reply = match receive(&stream).await {
            Ok(Some((request, fds))) => self.answer(&stream, request, fds).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let reply = reply.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        // A command that did not wait for the answer does not want it.
        let _ = send(&stream, &reply).await;
    }

    async fn answer(
        self: &Rc<Self>,
        stream: &UnixStream,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> anyhow::Result<Reply> {
        match request {
            Request::Start => self.start().await,
            Request::Kill { signal, all } => {
                lifecycle::step(self.phase.get(), Event::Kill).map_err(anyhow::Error::msg)?;
                self.kill(signal, all).await
            }
            Request::Update(files) => {
                lifecycle::step(self.phase.get(), Event::Update).map_err(anyhow::Error::msg)?;
                self.ask(self.agent.update(files)).await.map(|()| Reply::Done)
            }
            Request::Processes => {
                lifecycle::step(self.phase.get(), Event::Ask).map_err(anyhow::Error::msg)?;
                self.ask(self.agent.processes()).await
            }
            Request::ReadCgroup(files) => {
                lifecycle::step(self.phase.get(), Event::Ask).map_err(anyhow::Error::msg)?;
                self.ask(self.agent.read_cgroup(files)).await
            }
            Request::WaitOom(seen) => self.wait_oom(stream, seen).await,
            Request::Pause => self.pause().await,
            Request::Resume => self.resume().await,
            Request::Exec { process, streams } => {
                lifecycle::step(self.phase.get(), Event::Exec).map_err(anyhow::Error::msg)?;
                let process = protocol::Process::parse_from_bytes(&process).context("decode the process")?;
                self.exec(stream, process, arrange(fds, streams)?).await
            }
            Request::Join(join) => joined::join(&self.machine, &self.agent, stream, (join, fds)).await,
            Request::Left(id) => {
                self.machine.left(&id).await;
                Ok(Reply::Done)
            }
            Request::Signal(_) | Request::Resize { .. } => bail!("this connection has no process"),
        }
    }

    async fn start(&self) -> anyhow::Result<Reply> {
        self.apply(Event::Start)?;
        self.machine.vm.mark("start asked");
        if let Some(network) = self.network() {
            self.ask(network.update(&self.machine.vm, &self.agent)).await?;
        }
        self.ask(self.agent.start()).await?;
        self.machine.vm.mark("started");
        Ok(Reply::Done)
    }

    /// One call to the guest serves everybody who waits; the guest is gone when there is no answer.
    async fn watch_oom(self: Rc<Self>) {
        loop {
            let kills = *self.oom_kills.borrow();
            let Ok(more) = self.agent.wait_oom(kills).await else { return };
            self.oom_kills.send_replace(more);
            self.out_of_memory().await;
        }
    }

    /// Tells the host, once.
    async fn out_of_memory(&self) {
        // Whoever comes second, at the container's end, returns when the host has been told and not before.
        let _turn = self.machine.turn().await;
        if self.told.replace(true) {
            return;
        }
        let witness = match &self.herald {
            Herald::StandIn(notice) => return notice.notify_one(),
            Herald::Own(witness) => witness,
        };
        log::warning("the guest's kernel killed a process of the container for lack of memory");
        let Some(witness) = witness else { return };
        // The machine stands still meanwhile, lest it want memory.
        self.machine.vm.pause();
        if let Err(error) = witness.tell().await {
            log::warning(&format!("tell the host that memory ran out in the guest: {error:#}"));
        }
        if !self.machine.is_still() {
            self.machine.vm.resume();
        }
    }

    /// Waits until the host is to be told by who stands for the container.
    pub async fn memory_ran_out(&self) {
        match &self.herald {
            Herald::StandIn(notice) => notice.notified().await,
            Herald::Own(_) => std::future::pending().await,
        }
    }

    /// Answers when the count has grown.
    async fn wait_oom(&self, stream: &UnixStream, seen: u64) -> anyhow::Result<Reply> {
        lifecycle::step(self.phase.get(), Event::Kill).map_err(anyhow::Error::msg)?;
        let mut kills = self.oom_kills.subscribe();
        tokio::select! {
            more = kills.wait_for(|kills| *kills > seen) => Ok(Reply::OomKills(*more?)),
            _ = receive(stream) => bail!("nobody waits any more"),
        }
    }
}
