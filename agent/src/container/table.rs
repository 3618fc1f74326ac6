//! The containers of this guest and their processes: a table and what may happen to its entries.
//!
//! ```text
//!              CreateContainer          StartContainer
//!   (nothing) ───────────────▶ Created ───────────────▶ Running
//!                                 │    init ended          │
//!                                 └──────────▶ Stopped ◀───┘
//! ```
//!
//! An entry is there as soon as its process is, so that the reaper can't miss the end of the process; the entry stays
//! until DeleteContainer or the end of the VM. Executed processes leave with the answer to whoever waits for them.

use crate::container::config::ContainerConfig;
use crate::error::{Context, Error, Result};
use crate::guest_paths::GuestPaths;
use crate::host::devices;
use crate::host::sockets::{ConnectionQueue, HostSocketClient, HostSockets};
use crate::process::child_pipe::ChildPipe;
use crate::process::handle::{Exit, Process};
use crate::sys;
use protocol::{CreateContainerRequest, FileSystem};
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Number of executed processes whose exit status is kept for somebody who may still ask.
const MAX_FINISHED: usize = 1024;

/// A container of the table.
struct Container {
    config: Arc<ContainerConfig>,
    init: Arc<Process>,
    sockets: HostSockets,
    /// Pipe to the init process that waits to be started; `None` once somebody has taken the right to start it.
    start_barrier: Option<ChildPipe>,
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

    fn check_exec_id(&self, exec_id: &str) -> Result<()> {
        let free = !exec_id.is_empty() && !self.execs.contains_key(exec_id);
        free.then_some(()).ok_or_else(|| Error::precondition(format!("exec id {exec_id:?} is taken")))
    }

    fn kill(&self) -> Arc<Process> {
        self.init.kill();
        self.config.cgroup.kill();
        self.init.clone()
    }

    /// Notes the end of one of its processes; false if the pid is none of them.
    fn ended(&mut self, pid: i32, code: u32) -> bool {
        let is_it = |process: &Process| process.pid == pid && !process.has_ended();
        let exit = || Exit { code, oom_killed: self.config.cgroup.oom_kills() > 0 };
        if is_it(&self.init) {
            self.init.set_exit(exit());
            self.start_barrier = None;
            // With a pid namespace of its own the kernel has done that.
            if !self.config.namespaces.makes(libc::CLONE_NEWPID) {
                self.config.cgroup.kill();
            }
            return true;
        }
        let Some((exec_id, process)) = self.execs.iter().find(|(_, process)| is_it(process)) else { return false };
        process.set_exit(exit());
        self.finish(exec_id.clone());
        true
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
    /// Directories of the guest.
    pub paths: GuestPaths,
    mounted: AtomicBool,
    table: Mutex<HashMap<String, Container>>,
}

impl Containers {
    /// An empty table.
    pub fn new(paths: GuestPaths) -> Self {
        Self { paths, mounted: AtomicBool::new(false), table: Mutex::default() }
    }

    /// Mounts what a container's shares are in, unless that is done: the virtio-fs device, and directories of it that are file systems of
    /// their own. The first container that needs a share causes it, so that a template of the machine has nothing of the host's
    /// files in it. A second mount of the device would fail: the kernel takes the superblock of a share for that of the device.
    pub fn mount_shares(&self, request: &CreateContainerRequest) -> Result<()> {
        let Some(tag) = self.paths.shares_tag.as_ref() else { return Ok(()) };
        if !self.mounted.swap(true, Relaxed) {
            let mounted = sys::mount(tag, &self.paths.shares.to_string_lossy(), "virtiofs", 0, "");
            mounted.inspect_err(|_| self.mounted.store(false, Relaxed)).context(|| "mount virtio-fs")?;
        }
        request.file_systems.iter().try_for_each(|system| self.mount_more(tag, system))?;
        let shares = request.mounts.iter().map(|mount| (mount.share_device, &mount.share));
        let shares = shares.chain([(request.share_device, &request.share)]);
        let directory = |(device, place): (u32, &String)| Some((device, place.split_once('/')?.0.to_owned()));
        let mut directories: Vec<_> = shares.filter_map(directory).collect();
        directories.sort_unstable();
        directories.dedup();
        // The kernel mounts one when somebody walks into it. Done in a container's mount namespace, each would have one of its own, and
        // a file that two containers share would be two.
        for (device, directory) in directories {
            let path = self.paths.shares_on(device).join(&directory);
            let opened = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            opened.context(|| format!("mount the shares in {directory:?}"))?;
        }
        Ok(())
    }

    /// Mounts a further virtio-fs device, unless that is done. The kernel is told of it first.
    fn mount_more(&self, tag: &str, system: &FileSystem) -> Result<()> {
        let place = self.paths.shares_on(system.number);
        if system.number == 0 || place.exists() {
            return Ok(());
        }
        devices::plug(system.device, &system.kernel_parameter)?;
        let made = std::fs::create_dir_all(&place);
        made.context(|| format!("make {}", place.display()))?;
        let mounted = sys::mount(&format!("{tag}{}", system.number), &place.to_string_lossy(), "virtiofs", 0, "");
        // It is the mark of a device that is mounted.
        let mounted = mounted.inspect_err(|_| drop(std::fs::remove_dir(&place)));
        mounted.context(|| format!("mount virtio-fs device {}", system.number))
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

    /// Fails if there is a container of that name.
    pub fn check_free(&self, id: &str) -> Result<()> {
        let free = !self.lock().contains_key(id);
        free.then_some(()).ok_or_else(|| Error::precondition(format!("container with id exists: {id}")))
    }

    /// Enters a container whose init process has just been made.
    pub fn insert(
        &self,
        id: &str,
        config: Arc<ContainerConfig>,
        init: Arc<Process>,
        sockets: HostSockets,
    ) -> Result<()> {
        self.check_free(id)?;
        let (execs, finished) = (HashMap::new(), VecDeque::new());
        let container = Container { config, init, sockets, start_barrier: None, execs, finished };
        self.lock().insert(id.to_owned(), container);
        Ok(())
    }

    /// Forgets a container whose making failed, and kills its init, which is all there is of it. The caller removes the
    /// cgroup.
    pub fn discard(&self, id: &str) {
        if let Some(container) = self.lock().remove(id) {
            container.init.kill();
        }
    }

    /// Keeps the pipe to an init process that is ready to be started.
    pub fn set_start_barrier(&self, id: &str, barrier: ChildPipe) -> Result<()> {
        self.with(id, |container| {
            container.start_barrier = Some(barrier);
            Ok(())
        })
    }

    /// Takes the right to start a container.
    pub fn take_start_barrier(&self, id: &str) -> Result<ChildPipe> {
        self.with(id, |container| {
            if container.init.has_ended() {
                return Err(Error::precondition("cannot start a container that has stopped"));
            }
            let barrier = container.start_barrier.take();
            barrier.ok_or_else(|| Error::precondition("cannot start an already running container"))
        })
    }

    /// The part of a container that does not change.
    pub fn config(&self, id: &str) -> Result<Arc<ContainerConfig>> {
        self.with(id, |container| Ok(container.config.clone()))
    }

    /// Init of a container that still runs, whose namespaces others may share or enter.
    pub fn running_init(&self, id: &str) -> Result<Arc<Process>> {
        self.with(id, |container| match container.init.has_ended() {
            true => Err(Error::precondition(format!("container {id} is not running"))),
            false => Ok(container.init.clone()),
        })
    }

    /// Configuration and init of a container in which a process is to be executed under a new id.
    pub fn prepare_exec(&self, id: &str, exec_id: &str) -> Result<(Arc<ContainerConfig>, Arc<Process>)> {
        self.with(id, |container| {
            if container.init.has_ended() {
                return Err(Error::precondition("cannot exec in a stopped container"));
            }
            container.check_exec_id(exec_id)?;
            Ok((container.config.clone(), container.init.clone()))
        })
    }

    /// Enters an executed process that has just been made.
    pub fn insert_exec(&self, id: &str, exec_id: &str, process: Arc<Process>) -> Result<()> {
        self.with(id, |container| {
            container.check_exec_id(exec_id)?;
            container.execs.insert(exec_id.to_owned(), process);
            Ok(())
        })
    }

    /// Forgets an executed process: its making failed, or its end has been reported.
    pub fn remove_exec(&self, id: &str, exec_id: &str) {
        if let Some(container) = self.lock().get_mut(id) {
            container.execs.remove(exec_id);
            container.finished.retain(|finished| finished != exec_id);
        }
    }

    /// A process of a container; `""` is init.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>> {
        self.with(id, |container| container.process(exec_id).cloned())
    }

    /// Connections of a container to sockets of the host, for which the host is to open streams.
    pub fn connection_queue(&self, id: &str) -> Result<ConnectionQueue> {
        self.with(id, |container| Ok(container.sockets.queue()))
    }

    /// Client that asks the host for connections on behalf of a container, besides those to its mounted sockets.
    pub fn socket_client(&self, id: &str) -> Result<HostSocketClient> {
        self.with(id, |container| Ok(container.sockets.client().clone()))
    }

    /// Sends a signal to one process, or to all of the container.
    pub fn signal(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        self.with(id, |container| {
            let process = container.process(exec_id)?;
            if process.has_ended() {
                let what = if exec_id.is_empty() { "container not running" } else { "process already finished" };
                return Err(Error::precondition(what));
            }
            match (all, signal) {
                (false, _) => return process.signal(signal),
                (true, 9) => container.config.cgroup.kill(),
                (true, _) => container.config.cgroup.signal(signal),
            }
            Ok(())
        })
    }

    /// Notes that a child of the agent has been reaped.
    pub fn ended(&self, pid: i32, code: u32) {
        self.lock().values_mut().any(|container| container.ended(pid, code));
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

    /// Takes a container out of the table; its cgroup is for the caller to remove. Whoever waits for a process that has
    /// not ended is told that it was killed.
    pub fn remove(&self, id: &str) -> Option<Arc<ContainerConfig>> {
        let container = self.lock().remove(id)?;
        for process in container.execs.values().chain([&container.init]).filter(|process| !process.has_ended()) {
            process.set_exit(Exit { code: 128 + libc::SIGKILL as u32, oom_killed: false });
        }
        Some(container.config)
    }
}
