//! CreateContainer: from a request to an init process that only has to exec.
//!
//! The agent clones the child into its namespaces and cgroup; the child builds the rest from inside.
//! How the two talk is in [`crate::process::child_pipe`].

use crate::container::config::ContainerConfig;
use crate::container::table::Containers;
use crate::error::{Context, Error, Result};
use crate::guest_paths::GuestPaths;
use crate::host::sockets::HostSockets;
use crate::host::streams::Streams;
use crate::log;
use crate::network::sysctl;
use crate::process::child;
use crate::process::child_pipe::{self, ParentPipe};
use crate::process::handle::Process;
use crate::process::in_namespaces::{self, NamespaceTarget};
use crate::process::namespaces::{self, Namespaces};
use crate::process::setup::{self, Setup};
use crate::process::stdio::{self, ChildStdio, StandardStreams};
use crate::process::terminal::Pty;
use crate::storage::files::Files;
use crate::storage::rootfs::{self, MountCopy};
use crate::storage::{devices, disks};
use crate::sys::{self, SpawnArgs};
use protocol::{CreateContainerRequest, KeyValue, Mount};
use rustix::fd::{AsFd, AsRawFd, RawFd};
use std::io::ErrorKind;
use std::sync::Arc;

/// Makes the container; returns the pid of its init. What fails, or is given up, leaves nothing.
pub async fn create(
    containers: &Arc<Containers>,
    streams: &Arc<Streams>,
    mut request: CreateContainerRequest,
) -> Result<i32> {
    let taken = stdio::take(&request.process, streams).await?;
    let namespaces = check(containers, &request)?;
    disks::resolve(&mut request)?;
    let sockets = HostSockets::open(&mut request, &containers.paths.sockets, streams)?;
    // Once it is mounted a file needs no name any more.
    let _files = Files::make(&mut request, &containers.paths.sockets)?;
    if namespaces.makes(libc::CLONE_NEWUSER) {
        disks::lend(&request.devices, |device| (namespaces.guest_uid(device.uid), namespaces.guest_gid(device.gid)))?;
    }
    let stdio = stdio::prepare(&request.process, taken, &namespaces)?;
    containers.mount_shares(&request)?;
    let peers = Peers::of(containers, &request, &namespaces)?;
    let config = Arc::new(ContainerConfig::new(&request, &containers.paths, namespaces)?);
    let mut unfinished = Unfinished { containers, request: &request, config: &config, entered: false, finished: false };
    let made = unfinished.make(&peers, stdio, sockets).await;
    unfinished.end(made).await
}

/// Checks a request without doing anything yet.
fn check(containers: &Containers, request: &CreateContainerRequest) -> Result<Namespaces> {
    if request.container_id.is_empty() {
        return Err(Error::invalid("container id is empty"));
    }
    child::validate(&request.process)?;
    containers.check_free(&request.container_id)?;
    Namespaces::new(request)
}

/// A container that may come to nothing: then it is undone, also when nobody waits for it any more.
struct Unfinished<'a> {
    containers: &'a Arc<Containers>,
    request: &'a CreateContainerRequest,
    config: &'a Arc<ContainerConfig>,
    /// Whether the container is in the table.
    entered: bool,
    finished: bool,
}

impl Unfinished<'_> {
    /// Everything from the clone on; returns the pid of init.
    async fn make(&mut self, peers: &Peers, stdio: StandardStreams, sockets: HostSockets) -> Result<i32> {
        let (id, process) = (&self.request.container_id, &self.request.process);
        let (pipe, agent) = child_pipe::pair()?;
        let (request, paths, config) = (self.request, &self.containers.paths, self.config);
        let child = Child { request, paths, config, mounts: &peers.mounts, stdio: stdio.child, agent };
        let init = Arc::new(peers.spawn(child)?);
        let entered = self.containers.insert(id, config.clone(), init.clone(), sockets);
        entered.inspect_err(|_| init.kill())?;
        self.entered = true;
        let setup = Setup { pipe, stdio: stdio.agent, scheduling: config.scheduling.clone().on_all_cpus() };
        self.containers.set_start_barrier(id, setup.run(&init, process).await?)?;
        Ok(init.pid)
    }

    async fn end(mut self, made: Result<i32>) -> Result<i32> {
        self.finished = true;
        let Err(error) = made else { return made };
        let error = if self.config.cgroup.oom_kills() > 0 { out_of_memory() } else { error };
        self.discard();
        if let Err(error) = self.config.cgroup.remove().await {
            log::error(&error.message);
        }
        Err(error)
    }

    fn discard(&self) {
        if self.entered {
            self.containers.discard(&self.request.container_id);
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.discard();
        let config = self.config.clone();
        tokio::spawn(async move { config.cgroup.remove().await });
    }
}

fn out_of_memory() -> Error {
    Error::internal("container init was OOM-killed (memory limit too low?)")
}

/// Other containers of which a new one shares something.
struct Peers {
    /// Init processes of containers whose namespaces it shares, and the kinds.
    namespaces: Vec<(Arc<Process>, u64)>,
    /// Copies of mounts of other containers.
    mounts: Vec<MountCopy>,
}

impl Peers {
    fn of(containers: &Containers, request: &CreateContainerRequest, namespaces: &Namespaces) -> Result<Self> {
        let running = |(id, kinds): &(String, u64)| Ok((containers.running_init(id)?, *kinds));
        let copy = |(number, mount): (usize, &Mount)| {
            let owner = containers.running_init(&mount.container_id)?;
            Ok(MountCopy { number, fd: in_namespaces::copy_mount(&owner.pidfd, &mount.source)? })
        };
        let mounts = request.mounts.iter().enumerate().filter(|(_, mount)| !mount.container_id.is_empty());
        Ok(Self {
            namespaces: namespaces.shared().iter().map(running).collect::<Result<_>>()?,
            mounts: mounts.map(copy).collect::<Result<_>>()?,
        })
    }

    fn spawn(&self, child: Child<'_>) -> Result<Process> {
        let namespaces = &child.config.namespaces;
        let cgroup = child.config.cgroup.open()?;
        let args = SpawnArgs { flags: namespaces.clone_flags(), cgroup: Some(cgroup.as_fd()) };
        let targets = self.namespaces.iter().map(|(init, kinds)| NamespaceTarget { pidfd: &init.pidfd, kinds: *kinds });
        let targets: Vec<_> = targets.collect();
        let spawned = in_namespaces::run(&targets, || sys::spawn(&args, || child.agent.failed(&child.run())))?;
        let spawned = spawned.and_then(|spawned| spawned);
        if spawned.is_err() && self.namespaces.iter().any(|(init, _)| !sys::is_alive(&init.pidfd)) {
            return Err(Error::precondition("cannot share namespaces of a stopped container"));
        }
        let process = Process::new(spawned.context(|| "clone init process")?);
        namespaces.write_mappings(process.pid).inspect_err(|_| process.kill())?;
        Ok(process)
    }
}

/// A child that is to become init, with all that it needs for that.
struct Child<'a> {
    request: &'a CreateContainerRequest,
    paths: &'a GuestPaths,
    config: &'a ContainerConfig,
    mounts: &'a [MountCopy],
    stdio: ChildStdio,
    agent: ParentPipe,
}

impl Child<'_> {
    /// Becomes the container's init; returns only an error.
    fn run(&self) -> Error {
        match self.prepare() {
            Ok(pty) => {
                let master = pty.as_ref().map(|pty| pty.master.as_raw_fd());
                child::run(&self.request.process, &self.request.seccomp, &self.agent, master)
            }
            Err(error) => error,
        }
    }

    fn prepare(&self) -> Result<Option<Pty>> {
        let mounts: Vec<RawFd> = self.mounts.iter().map(|copy| copy.fd.as_raw_fd()).collect();
        setup::begin(&self.stdio, &self.agent, &mounts)?;
        setup::set_personality(self.request.personality)?;
        if self.config.namespaces.makes(libc::CLONE_NEWUSER) {
            namespaces::become_root()?;
        }
        self.fill_namespaces()?;
        let mut pty = None;
        let root = rootfs::build(self.request, self.paths, self.mounts, |root| {
            let open = |path: &str, flags| root.open_with(path, flags);
            pty = self.stdio.install(open, stdio::guest_null()?, self.request.process.uid)?;
            pty.as_ref().map_or(Ok(()), |pty| devices::bind_console(root, &pty.name()?))
        })?;
        self.request.sysctls.iter().try_for_each(set_sysctl)?;
        rootfs::enter(root, &self.request.rootfs_propagation)?;
        Ok(pty)
    }

    /// Fills the new namespaces with everything but mounts.
    fn fill_namespaces(&self) -> Result<()> {
        self.config.namespaces.make_the_rest()?;
        if self.config.namespaces.makes(libc::CLONE_NEWNET) {
            sys::link_up("lo").context(|| "set lo up")?;
        }
        if self.config.namespaces.has(libc::CLONE_NEWUTS) && !self.request.hostname.is_empty() {
            rustix::system::sethostname(self.request.hostname.as_bytes()).context(|| "sethostname")?;
        }
        if self.config.namespaces.has(libc::CLONE_NEWUTS) && !self.request.domainname.is_empty() {
            rustix::system::setdomainname(self.request.domainname.as_bytes()).context(|| "setdomainname")?;
        }
        Ok(())
    }
}

/// Writes a sysctl through the guest's /proc, which shows each caller its own namespaces' values.
fn set_sysctl(sysctl: &KeyValue) -> Result<()> {
    let path = &sysctl.key;
    if path.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("sysctl {path:?} is not a path")));
    }
    let write = match sys::write_file(format!("/proc/sys/{path}"), &sysctl.value) {
        // Written when the interface is there.
        Err(error) if error.kind() == ErrorKind::NotFound && sysctl::is_of_interface(path) => Ok(()),
        write => write,
    };
    write.context(|| format!("write sysctl {path} = {:?}", sysctl.value))
}
