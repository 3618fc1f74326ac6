//! CreateContainer: from a request to an init process that only has to exec.
//!
//! The agent clones the child into its namespaces and cgroup; the child builds the rest from inside.
//! How the two talk is in [`crate::process::child_pipe`].

use crate::container::cgroup::Cgroup;
use crate::container::table::{Containers, Process, Shape};
use crate::error::{Context, Error, Result};
use crate::host::sockets::Sockets;
use crate::host::streams::Streams;
use crate::log;
use crate::network::nics;
use crate::process::child;
use crate::process::child_pipe;
use crate::process::child_pipe::{ChildLink, Link};
use crate::process::in_namespaces::{self, Stay};
use crate::process::namespaces::{self, Namespaces};
use crate::process::scheduling::Scheduling;
use crate::process::stdio::{self, AgentStdio, ChildStdio};
use crate::process::terminal::Pty;
use crate::storage::disks;
use crate::storage::files::Files;
use crate::storage::rootfs::{self, Places};
use crate::sys::{self, SpawnArgs};
use protocol::{CreateContainerRequest, KeyValue, Mount};
use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};
use std::io::ErrorKind;
use std::sync::Arc;

/// Soft limit of open files of a process that has none given: programs walk through all of a large one.
const DEFAULT_DESCRIPTORS: u64 = 1024;

/// Makes the container; returns the pid of its init. What fails, or is given up, leaves nothing.
pub async fn create(
    containers: &Arc<Containers>,
    streams: &Arc<Streams>,
    mut request: CreateContainerRequest,
) -> Result<i32> {
    let taken = stdio::take(&request.process, streams).await?;
    disks::resolve(&mut request)?;
    let sockets = Sockets::open(&mut request, &containers.places.sockets, streams)?;
    // Mounted, a file needs no name any more.
    let _files = Files::make(&mut request, &containers.places.sockets)?;
    let id = request.container_id.as_str();
    if id.is_empty() {
        return Err(Error::invalid("container id is empty"));
    }
    child::validate(&request.process)?;
    containers.check_free(id)?;
    let namespaces = Namespaces::new(&request)?;
    disks::lend(&request.devices, &namespaces)?;
    let (agent_stdio, child_stdio) = stdio::prepare(&request.process, taken, &namespaces)?;
    containers.mount_shares()?;
    let neighbours = Neighbours::of(containers, &request, &namespaces)?;
    let shape = Arc::new(shape(&request, &containers.places, namespaces)?);
    let (link, child_link) = child_pipe::pair()?;
    let mut unfinished = Unfinished { containers, id, shape: &shape, entered: false, finished: false };
    let init = neighbours.spawn(&request, &containers.places, &shape, (child_stdio, child_link)).map(Arc::new);
    let made = match init {
        Ok(init) => {
            containers.insert(id, shape.clone(), init.clone(), sockets).inspect_err(|_| init.kill())?;
            unfinished.entered = true;
            let scheduling = shape.scheduling.clone().on_all_cpus();
            let settled = settle(&init, &request.process, &scheduling, (link, agent_stdio)).await;
            settled.and_then(|gate| containers.set_gate(id, gate)).map(|()| init.pid)
        }
        Err(error) => Err(error),
    };
    unfinished.end(made).await
}

/// A container that may come to nothing: then it is undone, also when nobody waits for it any more.
struct Unfinished<'a> {
    containers: &'a Arc<Containers>,
    id: &'a str,
    shape: &'a Arc<Shape>,
    /// It is in the table.
    entered: bool,
    finished: bool,
}

impl Unfinished<'_> {
    async fn end(mut self, made: Result<i32>) -> Result<i32> {
        self.finished = true;
        let Err(error) = made else { return made };
        let error = if self.shape.cgroup.oom_kills() > 0 { out_of_memory() } else { error };
        self.discard();
        if let Err(error) = self.shape.cgroup.remove().await {
            log::error(&error.message);
        }
        Err(error)
    }

    fn discard(&self) {
        if self.entered {
            self.containers.discard(self.id);
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.discard();
        let shape = self.shape.clone();
        tokio::spawn(async move { shape.cgroup.remove().await });
    }
}

/// What is the same for all its processes; its cgroup is made here.
fn shape(request: &CreateContainerRequest, places: &Places, namespaces: Namespaces) -> Result<Shape> {
    let path = if request.cgroup_path.is_empty() { &request.container_id } else { &request.cgroup_path };
    let cgroup = Cgroup::create(&places.cgroup_root, path, &request.cgroup_files)?;
    cgroup.filter_devices(&request.device_filter)?;
    let scheduling = Scheduling::of(&request.process);
    let (online_cpus, personality) = (request.online_cpus, request.personality);
    let seccomp = request.seccomp.clone().unwrap_or_default();
    let late = request.sysctls.iter().filter(|sysctl| nics::is_of_interface(&sysctl.key));
    let late_sysctls = late.cloned().collect();
    Ok(Shape { namespaces, cgroup, online_cpus, seccomp, personality, scheduling, late_sysctls })
}

fn out_of_memory() -> Error {
    Error::internal("container init was OOM-killed (memory limit too low?)")
}

/// The agent's part, from the clone until the child is ready. Later processes have the same.
pub async fn settle(
    child: &Process,
    process: &protocol::Process,
    scheduling: &Scheduling,
    (mut link, stdio): (Link, AgentStdio),
) -> Result<Link> {
    set_oom_score(child.pid, process)?;
    scheduling.begin(child.pid)?;
    link.go().await?;
    let master = link.ready(&child.pidfd).await?;
    for limit in &process.rlimits {
        sys::set_rlimit(child.pid, limit.resource, limit.soft, limit.hard)
            .context(|| format!("error setting rlimit type {}", limit.resource))?;
    }
    scheduling.apply(child.pid)?;
    child.set_terminal(stdio.run(master)?);
    Ok(link)
}

/// From outside, where there is the capability to lower it; the agent's own is never inherited.
fn set_oom_score(pid: i32, process: &protocol::Process) -> Result<()> {
    let score = if process.has_oom_score_adj { process.oom_score_adj } else { 0 };
    sys::write_file(format!("/proc/{pid}/oom_score_adj"), &score.to_string()).context(|| "write oom_score_adj")
}

/// Containers that the new one shares something with.
struct Neighbours {
    /// The first processes of those whose namespaces it shares, and the kinds.
    namespaces: Vec<(Arc<Process>, u64)>,
    /// Copies of mounts of theirs, by their place among its own.
    mounts: Vec<(usize, OwnedFd)>,
}

impl Neighbours {
    fn of(containers: &Containers, request: &CreateContainerRequest, namespaces: &Namespaces) -> Result<Self> {
        let living = |(id, kinds): &(String, u64)| Ok((containers.living(id)?, *kinds));
        let copy = |(place, mount): (usize, &Mount)| {
            let owner = containers.living(&mount.container_id)?;
            Ok((place, in_namespaces::copy_mount(&owner.pidfd, &mount.source)?))
        };
        let mounts = request.mounts.iter().enumerate().filter(|(_, mount)| !mount.container_id.is_empty());
        Ok(Self {
            namespaces: namespaces.shared().iter().map(living).collect::<Result<_>>()?,
            mounts: mounts.map(copy).collect::<Result<_>>()?,
        })
    }

    fn spawn(
        &self,
        request: &CreateContainerRequest,
        places: &Places,
        shape: &Shape,
        (stdio, link): (ChildStdio, ChildLink),
    ) -> Result<Process> {
        let cgroup = shape.cgroup.open()?;
        let args = SpawnArgs { flags: shape.namespaces.clone_flags(), cgroup: Some(cgroup.as_fd()) };
        let child = || {
            let child = Child { request, places, namespaces: &shape.namespaces, mounts: &self.mounts, link: &link };
            link.failed(&child.run(&stdio));
        };
        let stays: Vec<Stay<'_>> = self.namespaces.iter().map(|(init, kinds)| (&init.pidfd, *kinds)).collect();
        let spawned = in_namespaces::during(&stays, || sys::spawn(&args, child))?.and_then(|spawned| spawned);
        if spawned.is_err() && self.namespaces.iter().any(|(init, _)| !sys::is_alive(&init.pidfd)) {
            return Err(Error::precondition("a container whose namespaces are to be shared has stopped"));
        }
        let process = Process::new(spawned.context(|| "clone init process")?);
        shape.namespaces.write_mappings(process.pid).inspect_err(|_| process.kill())?;
        Ok(process)
    }
}

/// What the init process knows before it is one.
struct Child<'a> {
    request: &'a CreateContainerRequest,
    places: &'a Places,
    namespaces: &'a Namespaces,
    mounts: &'a [(usize, OwnedFd)],
    link: &'a ChildLink,
}

impl Child<'_> {
    /// Returns only an error.
    fn run(&self, stdio: &ChildStdio) -> Error {
        match self.prepare(stdio) {
            Ok(pty) => {
                let master = pty.as_ref().map(|pty| pty.master.as_raw_fd());
                child::run(&self.request.process, &self.request.seccomp, self.link, master)
            }
            Err(error) => error,
        }
    }

    fn prepare(&self, stdio: &ChildStdio) -> Result<Option<Pty>> {
        let mounts: Vec<RawFd> = self.mounts.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        begin(stdio, self.link, &mounts)?;
        set_personality(self.request.personality)?;
        if self.namespaces.makes(libc::CLONE_NEWUSER) {
            namespaces::become_root()?;
        }
        self.fill_namespaces()?;
        let mut pty = None;
        let root = rootfs::build(self.request, (self.places, self.mounts), |root| {
            let open = |path: &str, flags| root.open_with(path, flags);
            match stdio {
                ChildStdio::Pipes(pipes) => {
                    stdio::install_pipes(pipes, &stdio::open_null(open, stdio::guest_null()?))?;
                }
                ChildStdio::Terminal(size) => {
                    let opened = Pty::open(open, *size)?;
                    opened.bind_console(root)?;
                    stdio::install_terminal(&opened, self.request.process.uid)?;
                    pty = Some(opened);
                }
            }
            Ok(())
        })?;
        self.request.sysctls.iter().try_for_each(set_sysctl)?;
        rootfs::enter(root, &self.request.rootfs_propagation)?;
        Ok(pty)
    }

    /// What is inside the new namespaces besides mounts.
    fn fill_namespaces(&self) -> Result<()> {
        self.namespaces.make_the_rest()?;
        if self.namespaces.makes(libc::CLONE_NEWNET) {
            sys::link_up("lo").context(|| "set lo up")?;
        }
        if self.namespaces.has(libc::CLONE_NEWUTS) && !self.request.hostname.is_empty() {
            rustix::system::sethostname(self.request.hostname.as_bytes()).context(|| "sethostname")?;
        }
        if self.namespaces.has(libc::CLONE_NEWUTS) && !self.request.domainname.is_empty() {
            rustix::system::setdomainname(self.request.domainname.as_bytes()).context(|| "setdomainname")?;
        }
        Ok(())
    }
}

/// The first steps of every child: a clean process of its own session, with no descriptors but its
/// standard streams to be, the link and `extra`.
pub fn begin(stdio: &ChildStdio, link: &ChildLink, extra: &[RawFd]) -> Result<()> {
    sys::reset_signals();
    sys::die_of_signals();
    let mut keep = stdio.raw_fds();
    keep.push(link.raw_fd());
    keep.extend(extra);
    sys::close_all_but(&keep);
    // What is made from here on gets the mode that was asked for.
    rustix::process::umask(Mode::empty());
    lower_descriptor_limit()?;
    link.wait_go()?;
    rustix::process::setsid().context(|| "setsid").map(drop)
}

/// That of the container, for each of its processes; 0: as it is.
pub fn set_personality(personality: u32) -> Result<()> {
    match personality {
        0 => Ok(()),
        _ => sys::set_personality(personality).context(|| format!("set personality {personality}")),
    }
}

fn lower_descriptor_limit() -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let current = Some(limit.maximum.map_or(DEFAULT_DESCRIPTORS, |hard| hard.min(DEFAULT_DESCRIPTORS)));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current, ..limit }).context(|| "set default rlimits")
}

/// Writes a sysctl through the guest's /proc, which shows each caller its own namespaces' values.
fn set_sysctl(sysctl: &KeyValue) -> Result<()> {
    let path = &sysctl.key;
    if path.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("sysctl {path:?} is not a path")));
    }
    let write = match sys::write_file(format!("/proc/sys/{path}"), &sysctl.value) {
        // Written when the interface is there.
        Err(error) if error.kind() == ErrorKind::NotFound && nics::is_of_interface(path) => Ok(()),
        write => write,
    };
    write.context(|| format!("write sysctl {path} = {:?}", sysctl.value))
}
