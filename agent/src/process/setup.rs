//! The setup that init and executed processes have in common: the agent's part of it and the child's first steps.

use crate::error::{Context, Result};
use crate::process::child_pipe::{ChildPipe, ParentPipe};
use crate::process::handle::Process;
use crate::process::scheduling::Scheduling;
use crate::process::stdio::{AgentStdio, ChildStdio};
use crate::{log, sys};
use protocol::Rlimit;
use rustix::fd::RawFd;
use rustix::fs::Mode;
use rustix::process::Resource;

/// Soft limit of open files of a process that has none given: programs walk through all of a large one.
const DEFAULT_DESCRIPTORS: u64 = 1024;

/// The agent's side of a child that has been cloned.
pub struct Setup {
    /// Pipe to the child.
    pub pipe: ChildPipe,
    /// Agent's ends of the child's standard streams.
    pub stdio: AgentStdio,
    /// Scheduling of the process.
    pub scheduling: Scheduling,
}

impl Setup {
    /// Does what has to be done from outside, until the child has only the exec left; gives the pipe that lets it happen.
    pub async fn run(mut self, child: &Process, process: &protocol::Process) -> Result<ChildPipe> {
        set_oom_score(child.pid, process)?;
        self.scheduling.begin(child.pid)?;
        self.pipe.go().await?;
        let master = self.pipe.ready(&child.pidfd).await?;
        for limit in &process.rlimits {
            set_limit(child.pid, limit)?;
        }
        self.scheduling.apply(child.pid)?;
        child.set_terminal(self.stdio.run(master)?);
        Ok(self.pipe)
    }
}

fn set_limit(pid: i32, limit: &Rlimit) -> Result<()> {
    let set = sys::set_rlimit(pid, limit.resource, limit.soft, limit.hard);
    if let (true, Err(errno)) = (limit.inherited, &set) {
        log::debug(|| format!("rlimit type {} of the host: {errno}", limit.resource));
        return Ok(());
    }
    set.context(|| format!("error setting rlimit type {}", limit.resource))
}

/// Sets the child's score from outside, where there is the capability to lower it; a child must not inherit the agent's.
fn set_oom_score(pid: i32, process: &protocol::Process) -> Result<()> {
    let score = if process.has_oom_score_adj { process.oom_score_adj } else { 0 };
    sys::write_file(format!("/proc/{pid}/oom_score_adj"), &score.to_string()).context(|| "write oom_score_adj")
}

/// First steps of every child, which make it a clean process of its own session, with no descriptors but its standard
/// streams to be, the pipe to the agent and `extra`.
pub fn begin(stdio: &ChildStdio, agent: &ParentPipe, extra: &[RawFd]) -> Result<()> {
    sys::reset_signals();
    sys::die_of_signals();
    let mut keep = stdio.raw_fds();
    keep.push(agent.raw_fd());
    keep.extend(extra);
    sys::close_all_but(&keep);
    // What is made from here on gets the mode that was asked for.
    rustix::process::umask(Mode::empty());
    lower_descriptor_limit()?;
    agent.wait_go()?;
    rustix::process::setsid().context(|| "setsid").map(drop)
}

/// Sets the execution domain of the calling process; 0: as it is.
pub fn set_personality(personality: u32) -> Result<()> {
    match personality {
        0 => Ok(()),
        _ => sys::set_personality(personality).context(|| format!("set personality {personality}")),
    }
}

fn lower_descriptor_limit() -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let current = Some(limit.maximum.map_or(DEFAULT_DESCRIPTORS, |hard| hard.min(DEFAULT_DESCRIPTORS)));
    rustix::process::setrlimit(Resource::Nofile, rustix::process::Rlimit { current, ..limit })
        .context(|| "set default rlimits")
}
