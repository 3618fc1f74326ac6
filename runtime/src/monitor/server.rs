//! The monitor's inbox: requests of commands, the end of processes, the end of the VM, signals.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use protobuf::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, watch};

use super::agent_client::{Agent, End};
use super::clock::Clock;
use super::lifecycle::{self, Event, Phase};
use super::motion::Motion;
use super::oom::Witness;
use super::stdio::Stdio;
use super::vm::Vm;
use super::wire::{arrange, receive, send};
use crate::control::{Reply, Request};
use crate::{console, log};

/// How long output may stand still after the process's end before its reader counts as stuck.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long the reader of a container has, whose guest is gone.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);

/// What a command gets when the VM died under its container.
const GUEST_DIED: u8 = 255;

/// Everything that requests work on. One thread, so no locks.
pub struct Server {
    vm: Vm,
    agent: Agent,
    vsock: vmm::virtio::vsock::Handle,
    phase: Cell<Phase>,
    motion: Motion,
    /// Held by whoever pauses or resumes.
    turn: Mutex<()>,
    execs: Cell<u64>,
    /// Signals that came while the machine stood still, and whether for all processes.
    waiting: RefCell<Vec<(u32, bool)>>,
    /// How many processes the guest's kernel killed for lack of memory.
    oom_kills: watch::Sender<u64>,
    /// Who tells the host of them, and whether it was told.
    witness: Option<Witness>,
    told: Cell<bool>,
}

impl Server {
    /// A server for a created container.
    pub fn new(vm: Vm, agent: Agent, witness: Option<Witness>) -> Self {
        let vsock = vm.vsock().clone();
        let (phase, execs) = (Cell::new(Phase::Created), Cell::new(0));
        let (oom_kills, told) = (watch::Sender::new(0), Cell::new(false));
        let (motion, turn, waiting) = (Motion::new(), Mutex::default(), RefCell::default());
        Self { vm, agent, vsock, phase, motion, turn, execs, waiting, oom_kills, witness, told }
    }

    /// Serves until the container has ended and its output is delivered; returns its exit code.
    pub async fn run(self: &Rc<Self>, listener: UnixListener, mut stdio: Stdio) -> u8 {
        tokio::task::spawn_local(Rc::clone(self).accept(listener));
        tokio::task::spawn_local(Rc::clone(self).watch_oom());
        tokio::task::spawn_local(Rc::clone(self).keep_time());
        let end = self.alive(self.agent.wait("")).await;
        self.vm.mark("ended");
        self.apply(Event::End).ok();
        // The end may have been reported just before the machine was stopped.
        self.go_on();
        match end {
            Ok(End { code, oom_killed }) => {
                if oom_killed {
                    self.out_of_memory().await;
                }
                self.finish(stdio).await;
                code
            }
            Err(error) => {
                log::error(&format!("{error:#}"));
                // Few engines show the log of a container that was created: its user looks at its output.
                if log::file().is_some() {
                    let words = stdio.end_with(format!("runvm: {error:#}\n"));
                    let _ = tokio::time::timeout(LAST_WORDS_PATIENCE, words).await;
                }
                GUEST_DIED
            }
        }
    }

    /// Where the time of the start went.
    pub fn timeline(&self) -> String {
        self.vm.timeline()
    }

    async fn finish(&self, mut stdio: Stdio) {
        if tokio::time::timeout(DRAIN_PATIENCE, stdio.drained()).await.is_err() {
            log::warning("nobody read the rest of the container's output");
        }
        self.vm.mark("output delivered");
        if let Err(error) = self.alive(self.agent.shutdown()).await {
            log::warning(&format!("stop the guest: {error:#}"));
        }
        self.vm.mark("guest synced");
    }

    /// Waits for the guest's answer, or says why it died.
    async fn alive<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.vm.or_death(work).await
    }

    /// `alive`, for what takes the guest a moment: the machine is not paused meanwhile.
    async fn ask<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let _asking = self.motion.ask().await;
        self.alive(work).await
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
            Request::Signal(_) | Request::Resize { .. } => bail!("this connection has no process"),
        }
    }

    async fn start(&self) -> anyhow::Result<Reply> {
        self.apply(Event::Start)?;
        self.vm.mark("start asked");
        self.ask(self.agent.start()).await?;
        self.vm.mark("started");
        Ok(Reply::Done)
    }

    /// Sends a signal. As in a frozen cgroup v2, one that kills does so at once, any other one when it thaws.
    async fn kill(&self, signal: u32, all: bool) -> anyhow::Result<Reply> {
        if matches!(self.phase.get(), Phase::Paused { .. }) {
            if signal != libc::SIGKILL as u32 {
                self.waiting.borrow_mut().push((signal, all));
                return Ok(Reply::Done);
            }
            // Somebody else may be quicker, or pause it again.
            while matches!(self.phase.get(), Phase::Paused { .. }) {
                self.resume().await.ok();
            }
        }
        self.ask(self.agent.signal("", signal, all)).await.map(|()| Reply::Done)
    }

    async fn pause(&self) -> anyhow::Result<Reply> {
        let _turn = self.turn.lock().await;
        self.apply(Event::Pause)?;
        self.motion.stop().await;
        if self.phase.get() == Phase::Ended {
            bail!("container not running");
        }
        self.vm.pause();
        Ok(Reply::Done)
    }

    fn go_on(&self) {
        self.vm.resume();
        self.motion.go_on();
    }

    async fn resume(&self) -> anyhow::Result<Reply> {
        let _turn = self.turn.lock().await;
        self.apply(Event::Resume)?;
        self.go_on();
        for (signal, all) in self.waiting.take() {
            // The machine goes on in any case, and whoever sent the signal is gone.
            if let Err(error) = self.ask(self.agent.signal("", signal, all)).await {
                log::warning(&format!("signal {signal}, sent during the pause: {error:#}"));
            }
        }
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

    /// The guest's clock goes wrong otherwise, which is no reason to end it.
    async fn keep_time(self: Rc<Self>) {
        let clock = match Clock::new() {
            Ok(clock) => clock,
            Err(error) => return log::warning(&format!("the guest's clock is not kept: {error:#}")),
        };
        while clock.due().await.is_ok() {
            if let Err(error) = self.ask(self.agent.set_time()).await {
                log::debug(&format!("the guest's clock: {error:#}"));
            }
        }
    }

    /// Tells the host, once. The machine stands still meanwhile, lest it want memory.
    async fn out_of_memory(&self) {
        let _turn = self.turn.lock().await;
        if self.told.replace(true) {
            return;
        }
        log::warning("the guest's kernel killed a process of the container for lack of memory");
        let Some(witness) = &self.witness else { return };
        self.vm.pause();
        if let Err(error) = witness.tell().await {
            log::warning(&format!("tell the host that memory ran out in the guest: {error:#}"));
        }
        if !matches!(self.phase.get(), Phase::Paused { .. }) {
            self.vm.resume();
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

    /// The whole life of an exec'd process.
    async fn exec(
        &self,
        stream: &UnixStream,
        mut process: protocol::Process,
        files: [Option<OwnedFd>; 3],
    ) -> anyhow::Result<Reply> {
        let number = self.execs.replace(self.execs.get() + 1);
        let exec_id = format!("exec{number}");
        let mut stdio = Stdio::attach(&self.vsock, files, process.terminal)?;
        stdio.name_in(&mut process);
        self.ask(self.agent.exec(&exec_id, process)).await?;
        // The stub may be gone already; then the first read below says so.
        let _ = send(stream, &Reply::Started).await;
        // One wait for the whole life: its answer is given once.
        let mut wait = std::pin::pin!(self.alive(self.agent.wait(&exec_id)));
        let end = tokio::select! {
            end = &mut wait => end?,
            () = self.attend(stream, &exec_id) => wait.await?,
        };
        // The container's end is the end of its other processes too: they are not waited for longer.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, stdio.drained()).await;
        Ok(Reply::Exited(end.code))
    }

    /// Passes on what the stub sends; when the stub is gone, kills the process.
    async fn attend(&self, stream: &UnixStream, exec_id: &str) {
        loop {
            let done = match receive(stream).await {
                Ok(Some((Request::Signal(number), _))) => self.ask(self.agent.signal(exec_id, number, false)).await,
                Ok(Some((Request::Resize { rows, columns }, _))) => {
                    self.ask(self.agent.resize(exec_id, rows, columns)).await
                }
                Ok(Some(_)) => Err(anyhow::anyhow!("not a request for a process")),
                Ok(None) | Err(_) => {
                    let _ = self.ask(self.agent.signal(exec_id, libc::SIGKILL as u32, false)).await;
                    return;
                }
            };
            if let Err(error) = done {
                log::debug(&format!("{exec_id}: {error:#}"));
            }
        }
    }
}

/// Passes on to the container what is sent to the monitor's own pid, as if the pid were the process.
pub fn follow_signals(server: &Rc<Server>, terminal: Option<OwnedFd>) {
    let forwarded = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP];
    for number in forwarded {
        let Ok(mut signals) = signal(SignalKind::from_raw(number)) else { continue };
        // The terminal's hang-up reaches the process through its own terminal.
        let ignored = number == libc::SIGHUP && terminal.is_some();
        let server = Rc::clone(server);
        tokio::task::spawn_local(async move {
            while signals.recv().await.is_some() {
                if !ignored {
                    let _ = server.ask(server.agent.signal("", number as u32, false)).await;
                }
            }
        });
    }
    if let (Some(terminal), Ok(mut signals)) = (terminal, signal(SignalKind::window_change())) {
        let server = Rc::clone(server);
        tokio::task::spawn_local(async move {
            // The size may have changed while nobody listened.
            loop {
                let (rows, columns) = console::size(&terminal);
                if rows > 0 && columns > 0 {
                    let _ = server.ask(server.agent.resize("", rows, columns)).await;
                }
                if signals.recv().await.is_none() {
                    return;
                }
            }
        });
    }
}
