//! The containers of this guest and their processes: a table and what may happen to its entries.
//!
//! ```text
//!              CreateContainer          StartContainer
//!   (nothing) ───────────────▶ Created ───────────────▶ Running
//!                                 │    init ended          │
//!                                 └──────────▶ Stopped ◀───┘
//! ```
//!
//! An entry is there as soon as its process is, so that the reaper can't miss its end; it stays until
//! the VM goes. Processes that were executed later leave with the answer to the one who waited.

use crate::container::cgroup::{Cgroup, MemoryEvents};
use crate::error::{Context, Error, Result};
use crate::event::Fd;
use crate::host::sockets::{Queue, Sockets};
use crate::network::resolver::{Bound, Resolver};
use crate::process::child_pipe::Link;
use crate::process::namespaces::Namespaces;
use crate::process::scheduling::Scheduling;
use crate::process::terminal;
use crate::storage::rootfs::Places;
use crate::sys::{self, Spawned};
use protocol::{KeyValue, SeccompFilter};
use rustix::fd::OwnedFd;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use tokio::sync::watch;

/// How many exit statuses of executed processes are kept for somebody who may still ask.
const MAX_FINISHED: usize = 1024;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell says it: 128+n for signal n.
    pub code: u32,
    /// The kernel killed something in the container's cgroup for want of memory.
    pub oom_killed: bool,
}

/// One process that the host asked for.
pub struct Process {
    /// In the guest's initial pid namespace.
    pub pid: i32,
    /// The same process, also when the pid has been used again.
    pub pidfd: OwnedFd,
    exit: watch::Sender<Option<Exit>>,
    terminal: OnceLock<Weak<Fd>>,
}

impl Process {
    /// A process just made.
    pub fn new(spawned: Spawned) -> Self {
        let (exit, _) = watch::channel(None);
        Self { pid: spawned.pid, pidfd: spawned.pidfd, exit, terminal: OnceLock::new() }
    }

    /// Remembers the master of its terminal.
    pub fn set_terminal(&self, master: Weak<Fd>) {
        // Set once, by whoever made the process.
        let _ = self.terminal.set(master);
    }

    /// Whether it has been reaped.
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        ended.ok().flatten().ok_or_else(|| Error::internal("exit status lost"))
    }

    /// Changes the size of its terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        match self.terminal.get().and_then(Weak::upgrade) {
            Some(master) => terminal::set_size(master.get_ref(), terminal::size(rows, columns)),
            None => Err(Error::precondition("process has no terminal")),
        }
    }

    /// Ends it, whatever it is doing.
    pub fn kill(&self) {
        // One that has ended already needs none.
        let _ = sys::pidfd_send_signal(&self.pidfd, libc::SIGKILL as u32);
    }
}

/// What later processes need to know of their container; does not change.
pub struct Shape {
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// How many CPUs the guest should have once it runs; 0: as many as now.
    pub online_cpus: u32,
    /// The filter that all its processes have.
    pub seccomp: SeccompFilter,
    /// Of personality(2); 0: as it is.
    pub personality: u32,
    /// What its first process asked for.
    pub scheduling: Scheduling,
    /// Sysctls of interfaces, to be written once these are there.
    pub late_sysctls: Vec<KeyValue>,
}

/// One container.
struct Container {
    shape: Arc<Shape>,
    init: Arc<Process>,
    sockets: Sockets,
    /// Of its network, if that has one.
    resolver: Option<Resolver>,
    /// To the init process that waits to be started.
    gate: Option<Link>,
    execs: HashMap<String, Arc<Process>>,
    finished: VecDeque<String>,
}

impl Container {
    fn process(&self, exec_id: &str) -> Result<&Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(&self.init);
        }
        self.execs.get(exec_id).ok_or_else(|| Error::not_found(format!("process {exec_id} does not exist")))
    }

    fn kill(&self) -> Arc<Process> {
        self.init.kill();
        self.shape.cgroup.kill();
        self.init.clone()
    }

    /// Notes a finished exec; forgets the oldest that nobody waited for.
    fn finish(&mut self, exec_id: String) {
        self.finished.push_back(exec_id);
        if self.finished.len() > MAX_FINISHED
            && let Some(oldest) = self.finished.pop_front()
        {
            self.execs.remove(&oldest);
        }
    }
}

/// All containers of the guest; usually one.
pub struct Containers {
    /// Where things are in the guest.
    pub places: Places,
    mounted: AtomicBool,
    table: Mutex<HashMap<String, Container>>,
}

impl Containers {
    /// None yet.
    pub fn new(places: Places) -> Self {
        Self { places, mounted: AtomicBool::new(false), table: Mutex::default() }
    }

    /// The one virtio-fs mount; when the first container needs it, not before, so that a template of
    /// the machine has nothing of the host's files in it. And once: a second time the kernel takes the superblock of a
    /// share for that of the device.
    pub fn mount_shares(&self) -> Result<()> {
        let Some(tag) = self.places.shares_tag.as_ref().filter(|_| !self.mounted.load(Relaxed)) else { return Ok(()) };
        sys::mount(tag, &self.places.shares.to_string_lossy(), "virtiofs", 0, "").context(|| "mount virtio-fs")?;
        self.mounted.store(true, Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: &str, act: impl FnOnce(&mut Container) -> Result<T>) -> Result<T> {
        match self.lock().get_mut(id) {
            Some(container) => act(container),
            None => Err(Error::not_found(format!("container {id} does not exist"))),
        }
    }

    /// An error if there is a container of that name.
    pub fn check_free(&self, id: &str) -> Result<()> {
        let free = !self.lock().contains_key(id);
        free.then_some(()).ok_or_else(|| Error::precondition(format!("container with id exists: {id}")))
    }

    /// Enters a container whose init process has just been made.
    pub fn insert(&self, id: &str, shape: Arc<Shape>, init: Arc<Process>, sockets: Sockets) -> Result<()> {
        self.check_free(id)?;
        let container = Container {
            shape,
            init,
            sockets,
            resolver: None,
            gate: None,
            execs: HashMap::new(),
            finished: VecDeque::new(),
        };
        self.lock().insert(id.to_owned(), container);
        Ok(())
    }

    /// Forgets a container whose making failed. Its init is all there is of it, and its cgroup may be
    /// used for the next try.
    pub fn discard(&self, id: &str) {
        if let Some(container) = self.lock().remove(id) {
            container.init.kill();
        }
    }

    /// Its init process is ready to be started.
    pub fn set_gate(&self, id: &str, gate: Link) -> Result<()> {
        self.with(id, |container| {
            container.gate = Some(gate);
            Ok(())
        })
    }

    /// Takes the right to start it.
    pub fn take_gate(&self, id: &str) -> Result<(Link, Arc<Shape>)> {
        self.with(id, |container| {
            if container.init.has_ended() {
                return Err(Error::precondition("cannot start a container that has stopped"));
            }
            let gate = container.gate.take();
            let gate = gate.ok_or_else(|| Error::precondition("cannot start an already running container"))?;
            Ok((gate, container.shape.clone()))
        })
    }

    /// What does not change of it.
    pub fn shape(&self, id: &str) -> Result<Arc<Shape>> {
        self.with(id, |container| Ok(container.shape.clone()))
    }

    /// Serves its network's resolver from now on, by sockets that are made if it was not served before.
    pub fn serve_resolver(&self, id: &str, bind: impl FnOnce() -> Result<Bound>) -> Result<()> {
        self.with(id, |container| {
            if container.resolver.is_none() {
                container.resolver = Some(Resolver::serve(bind()?, container.sockets.door())?);
            }
            Ok(())
        })
    }

    /// Its first process, which others share namespaces with.
    pub fn living(&self, id: &str) -> Result<Arc<Process>> {
        self.with(id, |container| match container.init.has_ended() {
            true => Err(Error::precondition(format!("container {id}, whose namespaces are to be shared, has stopped"))),
            false => Ok(container.init.clone()),
        })
    }

    /// What is needed to execute another process in it.
    pub fn joinable(&self, id: &str, exec_id: &str) -> Result<(Arc<Shape>, Arc<Process>)> {
        self.with(id, |container| {
            if container.init.has_ended() {
                return Err(Error::precondition("cannot exec in a stopped container"));
            }
            if exec_id.is_empty() || container.execs.contains_key(exec_id) {
                return Err(Error::precondition(format!("exec id {exec_id:?} is taken")));
            }
            Ok((container.shape.clone(), container.init.clone()))
        })
    }

    /// Enters a later process that has just been made.
    pub fn insert_exec(&self, id: &str, exec_id: &str, process: Arc<Process>) -> Result<()> {
        self.with(id, |container| {
            if container.execs.contains_key(exec_id) {
                return Err(Error::precondition(format!("exec id {exec_id:?} is taken")));
            }
            container.execs.insert(exec_id.to_owned(), process);
            Ok(())
        })
    }

    /// Forgets a later process: its making failed, or its end has been told.
    pub fn remove_exec(&self, id: &str, exec_id: &str) {
        if let Some(container) = self.lock().get_mut(id) {
            container.execs.remove(exec_id);
            container.finished.retain(|finished| finished != exec_id);
        }
    }

    /// A process; `""` is init.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>> {
        self.with(id, |container| container.process(exec_id).cloned())
    }

    /// The pids of everything in it.
    pub fn pids(&self, id: &str) -> Result<Vec<u32>> {
        self.with(id, |container| Ok(container.shape.cgroup.pids()))
    }

    /// Files of its cgroup.
    pub fn read_cgroup(&self, id: &str, names: &[String]) -> Result<Vec<KeyValue>> {
        self.with(id, |container| container.shape.cgroup.read(names))
    }

    /// Where it is told of connections to sockets of the host.
    pub fn socket_queue(&self, id: &str) -> Result<Queue> {
        self.with(id, |container| Ok(container.sockets.queue()))
    }

    /// Where it is told that memory ran out.
    pub fn memory_events(&self, id: &str) -> Result<MemoryEvents> {
        self.with(id, |container| container.shape.cgroup.memory_events())
    }

    /// Changes its limits.
    pub fn update(&self, id: &str, files: &[KeyValue]) -> Result<()> {
        self.with(id, |container| container.shape.cgroup.apply(files))
    }

    /// Sends a signal to one process, or to all of the container.
    pub fn signal(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        self.with(id, |container| {
            let process = container.process(exec_id)?;
            if process.has_ended() {
                let init = exec_id.is_empty();
                return Err(Error::precondition(if init {
                    "container not running"
                } else {
                    "process already finished"
                }));
            }
            match (all, signal) {
                (false, _) => send(process, signal),
                (true, 9) => {
                    container.shape.cgroup.kill();
                    Ok(())
                }
                (true, _) => {
                    container.shape.cgroup.signal(signal);
                    Ok(())
                }
            }
        })
    }

    /// A child of the agent has been reaped.
    pub fn ended(&self, pid: i32, code: u32) {
        let mut table = self.lock();
        for container in table.values_mut() {
            let exit = || Exit { code, oom_killed: container.shape.cgroup.oom_kills() > 0 };
            if container.init.pid == pid && !container.init.has_ended() {
                container.init.exit.send_replace(Some(exit()));
                container.gate = None;
                // With a pid namespace of its own the kernel has done that.
                if !container.shape.namespaces.makes(libc::CLONE_NEWPID) {
                    container.shape.cgroup.kill();
                }
                return;
            }
            let exec = container.execs.iter().find(|(_, process)| process.pid == pid && !process.has_ended());
            if let Some((exec_id, process)) = exec {
                process.exit.send_replace(Some(exit()));
                let exec_id = exec_id.clone();
                container.finish(exec_id);
                return;
            }
        }
    }

    /// Ends a container; gives the processes whose end is to be awaited.
    pub fn kill(&self, id: &str) -> Result<Vec<Arc<Process>>> {
        self.with(id, |container| {
            Ok(std::iter::once(container.kill()).chain(container.execs.values().cloned()).collect())
        })
    }

    /// Ends every container; gives the processes whose end is to be awaited.
    pub fn kill_all(&self) -> Vec<Arc<Process>> {
        self.lock().values().map(Container::kill).collect()
    }

    /// Takes a container out of the table; its cgroup is for the caller to remove. Of what has not ended nobody will
    /// hear any more.
    pub fn remove(&self, id: &str) -> Option<Arc<Shape>> {
        let container = self.lock().remove(id)?;
        for process in container.execs.values().chain([&container.init]).filter(|process| !process.has_ended()) {
            process.exit.send_replace(Some(Exit { code: 128 + libc::SIGKILL as u32, oom_killed: false }));
        }
        Some(container.shape)
    }
}

fn send(process: &Process, signal: u32) -> Result<()> {
    use rustix::io::Errno;
    match sys::pidfd_send_signal(&process.pidfd, signal) {
        Ok(()) => Ok(()),
        Err(Errno::SRCH) => Err(Error::precondition("process already finished")),
        Err(Errno::INVAL) => Err(Error::invalid(format!("invalid signal {signal}"))),
        Err(errno) => Err(Error::internal(format!("signal {signal}: {}", crate::error::errno_text(errno)))),
    }
}
