//! ExecProcess: another process in a container that is there already.
//!
//! One fork is enough although a pid namespace can only be entered by being born in it: the agent
//! names the container's as the one for its next child and takes that back afterwards. It has one
//! thread, so no other child comes between. The child joins the other namespaces itself.

use crate::container::config::ContainerConfig;
use crate::container::table::Containers;
use crate::error::{Context, Error, Result};
use crate::guest_paths::GuestPaths;
use crate::host::streams::Streams;
use crate::process::child;
use crate::process::child_pipe::{self, ParentPipe};
use crate::process::handle::Process;
use crate::process::in_namespaces::{self, NamespaceTarget};
use crate::process::namespaces;
use crate::process::scheduling::Scheduling;
use crate::process::setup::{self, Setup};
use crate::process::stdio::{self, ChildStdio};
use crate::process::terminal::{Pty, open_here};
use crate::sys::{self, SpawnArgs, Spawned};
use protocol::ExecProcessRequest;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::sync::Arc;

/// Starts the process; returns its pid when its exec has succeeded.
pub async fn exec(containers: &Containers, streams: &Streams, request: ExecProcessRequest) -> Result<i32> {
    let (id, exec_id) = (request.container_id.as_str(), request.exec_id.as_str());
    let taken = stdio::take(&request.process, streams).await?;
    child::validate(&request.process)?;
    let (config, init) = containers.prepare_exec(id, exec_id)?;
    let stdio = stdio::prepare(&request.process, taken, &config.namespaces)?;
    let (pipe, agent) = child_pipe::pair()?;
    let joiner = Joiner { process: &request.process, config: &config, init: &init, stdio: stdio.child, agent };
    let process = Arc::new(Process::new(joiner.spawn(&containers.paths)?));
    containers.insert_exec(id, exec_id, process.clone()).inspect_err(|_| process.kill())?;
    let scheduling = Scheduling::of(&request.process).or(&config.scheduling);
    let started = match (Setup { pipe, stdio: stdio.agent, scheduling }).run(&process, &request.process).await {
        Ok(pipe) => pipe.start().await,
        Err(error) => Err(error),
    };
    if let Err(error) = started {
        process.kill();
        containers.remove_exec(id, exec_id);
        return Err(if init.has_ended() { stopped() } else { error });
    }
    Ok(process.pid)
}

fn stopped() -> Error {
    Error::precondition("cannot exec in a stopped container")
}

/// A process that is to be made inside a container.
struct Joiner<'a> {
    process: &'a protocol::Process,
    config: &'a ContainerConfig,
    init: &'a Process,
    stdio: ChildStdio,
    agent: ParentPipe,
}

impl Joiner<'_> {
    fn spawn(self, paths: &GuestPaths) -> Result<Spawned> {
        let mut result = self.spawn_in(&self.cgroup(paths)?)?;
        if result.as_ref().is_err_and(|&errno| errno == Errno::BUSY) {
            // Init has moved since, and handed the controllers to where it is now.
            result = self.spawn_in(&self.cgroup(paths)?)?;
        }
        match result {
            // No process can be born in a pid namespace whose init is gone.
            Err(Errno::NOMEM) if !sys::is_alive(&self.init.pidfd) => Err(stopped()),
            result => result.context(|| "clone process"),
        }
    }

    /// Init's cgroup. An init that shares its cgroup out (systemd, a dind script) leaves the container's own for one
    /// below it, and can hand controllers down only while nothing else is in the container's own.
    fn cgroup(&self, paths: &GuestPaths) -> Result<OwnedFd> {
        self.config.cgroup.open_where(&paths.cgroup_root, self.init.pid)
    }

    /// Clones into the container's pid namespace, and puts the agent's own back in any case.
    fn spawn_in(&self, cgroup: &OwnedFd) -> Result<std::result::Result<Spawned, Errno>> {
        let args = SpawnArgs { flags: 0, cgroup: Some(cgroup.as_fd()) };
        let spawn = || sys::spawn(&args, || self.agent.failed(&self.run()));
        if !self.config.namespaces.has(libc::CLONE_NEWPID) {
            return Ok(spawn());
        }
        let target = NamespaceTarget { pidfd: &self.init.pidfd, kinds: libc::CLONE_NEWPID as u64 };
        in_namespaces::run(&[target], spawn)?.map_err(|_| stopped())
    }

    /// Executes the program, in the child; returns only an error.
    fn run(&self) -> Error {
        match self.join() {
            Ok(pty) => {
                let master = pty.as_ref().map(|pty| pty.master.as_raw_fd());
                child::run(self.process, &self.config.seccomp, &self.agent, master)
            }
            Err(error) => error,
        }
    }

    /// Enters the other namespaces, in the child, and puts the standard streams in place.
    fn join(&self) -> Result<Option<Pty>> {
        let init = self.init.pidfd.as_fd();
        setup::begin(&self.stdio, &self.agent, &[init.as_raw_fd()])?;
        setup::set_personality(self.config.personality)?;
        let null = stdio::guest_null()?;
        let flags = ThreadNameSpaceType::from_bits_retain(self.config.namespaces.join_flags() as u32);
        move_into_thread_name_spaces(init, flags).context(|| "join namespaces of the container")?;
        if self.config.namespaces.makes(libc::CLONE_NEWUSER) {
            namespaces::become_root()?;
        }
        self.stdio.install(open_here, null, self.process.uid)
    }
}
