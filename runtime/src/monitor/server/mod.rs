//! The server of a container: takes commands' requests, has the lifecycle decide, and does what the lifecycle says.
//!
//! ```text
//!  commands ── control socket ──▶ requests ─┐
//!  signals of the host ─────────────────────┤              ┌─▶ answers
//!  end of the process, of the VM, OOM ──────┼─▶ inbox ─▶ lifecycle ─▶ actions ─▶ agent, VM, host
//!  actions that are done ───────────────────┘                             └─▶ the end
//! ```

mod actions;
mod processes;
mod requests;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::inbox::{Events, Inbox, Ticket};
use super::lifecycle::{Ending, Event, State};
use super::network::Network;
use super::network::published_ports::Ports;
use super::node_maker::Loan;
use super::oom_trigger::HostOomTrigger;
use super::pod::Pod;
use super::streams::connections::Guest;
use super::streams::host_sockets::Sockets;
use super::streams::stdio::Stdio;
use super::vm::agent_client::{Agent, End};
use super::vm::clock;
use super::vm::file_systems::STUCK;
use super::vm::share_policies::SharePolicies;
use crate::ipc::Descriptor;
use crate::log;

/// How long output may stay undelivered after the process's end before its reader counts as stuck.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long the reader of a container has, whose guest is gone.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);

/// How long the guest may take to report the end of what was sent SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(3);

/// How long a network or FUSE file system may take over one request of a guest that writes everything back.
const SYNC_PATIENCE: Duration = Duration::from_secs(2);

/// How long a guest that did not may take with each of its last acts. With [`KILL_PATIENCE`] it is less than the five
/// seconds that engines wait.
pub const GRACE: Duration = Duration::from_secs(1);

/// Time between two questions for OOM kills, which add up meanwhile: each answer is a line of `events`.
const OOM_PAUSE: Duration = Duration::from_millis(100);

/// Exit code of what was sent SIGKILL, whatever the guest says.
const KILLED: u8 = 128 + libc::SIGKILL as u8;

/// Exit code of a container whose VM died.
const GUEST_DIED: u8 = 255;

/// How the host is made to notice that memory ran out in the guest.
pub enum OomNotifier {
    /// By this process, if the host limits memory at all.
    Host(Option<HostOomTrigger>),
    /// By the join proxy, at the other end of this connection.
    JoinProxy(Rc<UnixStream>),
}

/// What requests to one container work on. One thread works on it, so there are no locks.
pub struct Server {
    pod: Rc<Pod>,
    agent: Agent,
    inbox: Inbox,
    state: RefCell<State<Ticket>>,
    /// The container's network, unless it joined with the network of another.
    network: RefCell<Option<Rc<Network>>>,
    files: SharePolicies,
    /// What makes device nodes, where an exec brought it.
    nodes: RefCell<Option<Loan>>,
    /// Kept until the container's end.
    _namespace: Option<Descriptor>,
    execs: Cell<u64>,
    /// How many processes the guest's kernel killed for lack of memory.
    oom_kills: watch::Sender<u64>,
    oom_notifier: OomNotifier,
    ending: watch::Sender<Option<Ending>>,
}

/// What a container has of the host and the server changes.
pub struct HostSide {
    /// The container's network, unless it joined with the network of another.
    pub network: Option<Network>,
    /// What the guest may do to the container's files.
    pub files: SharePolicies,
    /// Keeps the mounts of some of these files.
    pub namespace: Option<Descriptor>,
}

/// How a joined container ended.
pub struct Joined {
    /// Its exit code.
    pub code: u8,
    /// Whether the guest has not reported its end.
    pub overdue: bool,
}

/// Why a container ends without the guest's word.
const OVERDUE: &str = "the guest did not report the end of a container that was sent SIGKILL";

/// What a server works with until the container's end.
pub struct Channels {
    /// What is put into the container's inbox.
    pub events: Events,
    /// Where commands connect.
    pub control: UnixListener,
    /// The standard streams of its process.
    pub stdio: Stdio,
    /// The sockets of the host that it may connect to.
    pub sockets: Sockets,
}

/// A container's control socket, for the monitor's one thread.
pub fn control_socket(control: Descriptor) -> std::io::Result<UnixListener> {
    let control = std::os::unix::net::UnixListener::from(control.into_owned()?);
    control.set_nonblocking(true)?;
    UnixListener::from_std(control)
}

impl Server {
    /// A server for a container that is created and not started.
    pub fn new(pod: Rc<Pod>, agent: Agent, inbox: Inbox, host_side: HostSide, oom_notifier: OomNotifier) -> Rc<Self> {
        // The VM may want no memory while its limit on the host is lowered.
        let report_stops_vm = matches!(oom_notifier, OomNotifier::Host(Some(_)));
        Rc::new(Self {
            pod,
            agent,
            inbox,
            state: RefCell::new(State::new(report_stops_vm)),
            network: RefCell::new(host_side.network.map(Rc::new)),
            files: host_side.files,
            nodes: RefCell::default(),
            _namespace: host_side.namespace,
            execs: Cell::new(0),
            oom_kills: watch::Sender::new(0),
            oom_notifier,
            ending: watch::Sender::new(None),
        })
    }

    /// Serves the container that the VM was made for, until it has ended and its output is delivered; returns its exit
    /// code. The VM can be stopped then.
    pub async fn run(self: &Rc<Self>, channels: Channels, ports: Ports) -> u8 {
        let (vm, agent) = (Rc::clone(&self.pod.vm), self.agent.clone());
        tokio::task::spawn_local(clock::keep(vm.clone(), agent.clone()));
        let (mut tasks, mut stdio) = self.begin(channels);
        tasks.spawn_local(ports.serve(Guest { vm, agent }));
        let ending = self.ending().await;
        self.mark("ended");
        match ending {
            Ending::Exited(code) => {
                if let Some(network) = self.network() {
                    network.release();
                }
                self.pod.end_joined().await;
                self.drain(stdio).await;
                self.mark("output delivered");
                self.sync_guest().await;
                self.mark("guest synced");
                self.leave_network().await;
                code
            }
            Ending::VmDied(why) => {
                log::error(&why);
                // Few engines show the log of a container that was created: its user looks at its output.
                if log::file().is_some() {
                    let words = stdio.end_with(format!("runvm: {why}\n"));
                    let _ = tokio::time::timeout(LAST_WORDS_PATIENCE, words).await;
                }
                self.pod.joined_gone().await;
                GUEST_DIED
            }
            Ending::Overdue => {
                log::warning(&format!("{OVERDUE}; its VM is stopped"));
                let last = async { tokio::join!(stdio.end(), self.leave_network(), self.let_go()) };
                let _ = tokio::time::timeout(GRACE, last).await;
                KILLED
            }
        }
    }

    /// What a guest that does not report the container's end may still do: what is well there is ended and written back.
    async fn let_go(&self) {
        self.pod.end_joined().await;
        let _ = self.alive(self.agent.shutdown()).await;
    }

    /// Serves a joined container until its end; returns its exit code. Nothing of the container is left in the guest then.
    pub async fn run_joined(self: &Rc<Self>, channels: Channels) -> Joined {
        let (_tasks, mut stdio) = self.begin(channels);
        let ending = self.ending().await;
        // It is in the container's cgroup, which is to be empty.
        drop(self.nodes.take());
        let overdue = ending == Ending::Overdue;
        let code = match ending {
            Ending::Exited(code) => {
                self.drain(stdio).await;
                if let Err(error) = self.ask(self.agent.delete()).await {
                    log::warning(&format!("remove a container from the VM: {error:#}"));
                }
                code
            }
            Ending::VmDied(_) => GUEST_DIED,
            Ending::Overdue => {
                log::warning(&format!("{OVERDUE}; what of it is left in the VM ends with the VM"));
                let last = async { tokio::join!(stdio.end(), self.ask(self.agent.delete()), self.leave_network()) };
                let _ = tokio::time::timeout(GRACE, last).await;
                return Joined { code: KILLED, overdue };
            }
        };
        self.leave_network().await;
        Joined { code, overdue }
    }

    /// Starts what goes on until it is dropped. Commands are answered until there is nothing left to ask about.
    fn begin(self: &Rc<Self>, channels: Channels) -> (JoinSet<()>, Stdio) {
        let mut tasks = JoinSet::new();
        tasks.spawn_local(Rc::clone(self).handle(channels.events));
        tasks.spawn_local(Rc::clone(self).accept(channels.control));
        tasks.spawn_local(Rc::clone(self).watch_end());
        tasks.spawn_local(Rc::clone(self).watch_oom());
        if let Some(network) = self.network() {
            tasks.spawn_local(network.follow(Rc::clone(&self.pod.vm), self.agent.clone()));
        }
        tasks.spawn_local(channels.sockets.serve(self.pod.vm.vsock.clone(), self.agent.clone()));
        (tasks, channels.stdio)
    }

    /// Has the lifecycle decide on each event, and does what it says.
    async fn handle(self: Rc<Self>, mut events: Events) {
        while let Some(event) = events.recv().await {
            let actions = self.state.borrow_mut().step(event, self.pod.is_shared());
            actions.into_iter().for_each(|action| self.carry_out(action));
        }
    }

    /// Waits for the end of the container's process, or of the VM.
    async fn watch_end(self: Rc<Self>) {
        self.inbox.put(match self.alive(self.agent.wait("")).await {
            Ok(End { code, oom_killed }) => Event::Ended { code, oom_killed },
            Err(error) => Event::VmDied(format!("{error:#}")),
        });
    }

    /// Watches for OOM kills, by one call to the guest for all who wait. A call without an answer says that the guest is gone.
    async fn watch_oom(self: Rc<Self>) {
        loop {
            let kills = *self.oom_kills.borrow();
            let Ok(more) = self.agent.wait_oom(kills).await else { return };
            self.oom_kills.send_replace(more);
            self.inbox.put(Event::OutOfMemory);
            tokio::time::sleep(OOM_PAUSE).await;
        }
    }

    /// How long the guest has to report the end of what was sent SIGKILL. A process that waits for a file system of the host's cannot be
    /// killed there, so where one of those does not answer it is less.
    async fn kill_patience(&self) {
        let devices = self.files.devices_in_reserve();
        tokio::select! {
            () = tokio::time::sleep(KILL_PATIENCE) => {}
            () = self.pod.vm.files.stuck(&devices, STUCK) => {}
        }
    }

    /// Has the guest write everything back. What it has for a file system that does not answer is lost, as on a host that is switched
    /// off then.
    async fn sync_guest(&self) {
        let devices = self.pod.vm.files.in_reserve();
        let done = tokio::select! {
            done = self.alive(self.agent.shutdown()) => done,
            () = self.pod.vm.files.stuck(&devices, SYNC_PATIENCE) => Err(anyhow!("a file system of the host does not answer")),
        };
        if let Err(error) = done {
            log::warning(&format!("stop the guest: {error:#}"));
        }
    }

    async fn ending(&self) -> Ending {
        let mut ending = self.ending.subscribe();
        loop {
            if let Some(ending) = ending.borrow_and_update().clone() {
                return ending;
            }
            // The sender lives as long as `self`.
            let _ = ending.changed().await;
        }
    }

    fn network(&self) -> Option<Rc<Network>> {
        self.network.borrow().clone()
    }

    async fn leave_network(&self) {
        // A command that still waits for something must not keep the namespace.
        let network = self.network.take();
        if let Some(network) = network {
            network.end(&self.pod.vm).await;
        }
    }

    async fn drain(&self, mut stdio: Stdio) {
        if tokio::time::timeout(DRAIN_PATIENCE, stdio.drained()).await.is_err() {
            log::warning("nobody read the rest of the container's output");
        }
    }

    async fn alive<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.pod.vm.or_death(work).await
    }

    async fn ask<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.pod.vm.ask(work).await
    }

    fn mark(&self, what: &str) {
        self.pod.vm.mark(what);
    }
}
