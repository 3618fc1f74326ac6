//! ExecProcess: another process in a container that is there already.
//!
//! One fork is enough although a pid namespace can only be entered by being born in it: the agent
//! names the container's as the one for its next child and takes that back afterwards. It has one
//! thread, so no other child comes between. The child joins the other namespaces itself.

use crate::container::create::{begin, set_personality, settle};
use crate::container::table::{Containers, Process, Shape};
use crate::error::{Context, Error, Result};
use crate::host::streams::Streams;
use crate::process::child;
use crate::process::child_pipe;
use crate::process::child_pipe::ChildLink;
use crate::process::in_namespaces;
use crate::process::namespaces;
use crate::process::scheduling::Scheduling;
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
    let (shape, init) = containers.joinable(id, exec_id)?;
    let (agent_stdio, child_stdio) = stdio::prepare(&request.process, taken, &shape.namespaces)?;
    let (link, child_link) = child_pipe::pair()?;
    let joiner = Joiner { containers, shape: &shape, init: &init };
    let child = Arc::new(Process::new(joiner.spawn(&request.process, child_stdio, child_link)?));
    if let Err(error) = containers.insert_exec(id, exec_id, child.clone()) {
        child.kill();
        return Err(error);
    }
    let scheduling = Scheduling::of(&request.process).or(&shape.scheduling);
    let started = match settle(&child, &request.process, &scheduling, (link, agent_stdio)).await {
        Ok(link) => link.start().await,
        Err(error) => Err(error),
    };
    if let Err(error) = started {
        child.kill();
        containers.remove_exec(id, exec_id);
        return Err(if init.has_ended() { stopped() } else { error });
    }
    Ok(child.pid)
}

fn stopped() -> Error {
    Error::precondition("cannot exec in a stopped container")
}

/// Makes children inside a container.
struct Joiner<'a> {
    containers: &'a Containers,
    shape: &'a Shape,
    init: &'a Process,
}

impl Joiner<'_> {
    fn spawn(&self, process: &protocol::Process, stdio: ChildStdio, link: ChildLink) -> Result<Spawned> {
        let child = || {
            let error = match self.join(process, &stdio, &link) {
                Ok(pty) => {
                    child::run(process, &self.shape.seccomp, &link, pty.as_ref().map(|pty| pty.master.as_raw_fd()))
                }
                Err(error) => error,
            };
            link.failed(&error);
        };
        let mut result = self.spawn_in(&self.cgroup()?, child)?;
        if result.as_ref().is_err_and(|&errno| errno == Errno::BUSY) {
            // Init has moved since, and handed the controllers to where it is now.
            result = self.spawn_in(&self.cgroup()?, child)?;
        }
        match result {
            // No process can be born in a pid namespace whose init is gone.
            Err(Errno::NOMEM) if !sys::is_alive(&self.init.pidfd) => Err(stopped()),
            result => result.context(|| "clone process"),
        }
    }

    /// Init's cgroup. An init that shares its cgroup out (systemd, a dind script) leaves the container's own for one
    /// below it, and can hand controllers down only while nothing else is in the container's own.
    fn cgroup(&self) -> Result<OwnedFd> {
        self.shape.cgroup.open_where(&self.containers.places.cgroup_root, self.init.pid)
    }

    /// Clones into the container's pid namespace, and puts the agent's own back in any case.
    fn spawn_in(&self, cgroup: &OwnedFd, child: impl FnOnce()) -> Result<std::result::Result<Spawned, Errno>> {
        let args = SpawnArgs { flags: 0, cgroup: Some(cgroup.as_fd()) };
        if !self.shape.namespaces.has(libc::CLONE_NEWPID) {
            return Ok(sys::spawn(&args, child));
        }
        let there = [(&self.init.pidfd, libc::CLONE_NEWPID as u64)];
        in_namespaces::during(&there, || sys::spawn(&args, child))?.map_err(|_| stopped())
    }

    /// In the child: the other namespaces and the standard streams.
    fn join(&self, process: &protocol::Process, stdio: &ChildStdio, link: &ChildLink) -> Result<Option<Pty>> {
        let init = self.init.pidfd.as_fd();
        begin(stdio, link, &[init.as_raw_fd()])?;
        set_personality(self.shape.personality)?;
        let null = stdio::guest_null()?;
        let flags = ThreadNameSpaceType::from_bits_retain(self.shape.namespaces.join_flags() as u32);
        move_into_thread_name_spaces(init, flags).context(|| "join namespaces of the container")?;
        if self.shape.namespaces.makes(libc::CLONE_NEWUSER) {
            namespaces::become_root()?;
        }
        match stdio {
            ChildStdio::Pipes(pipes) => {
                stdio::install_pipes(pipes, &stdio::open_null(open_here, null))?;
                Ok(None)
            }
            ChildStdio::Terminal(size) => {
                let pty = Pty::open(open_here, *size)?;
                stdio::install_terminal(&pty, process.uid)?;
                Ok(Some(pty))
            }
        }
    }
}
