//! A process's place among others: its scheduler, its I/O priority, its CPUs.
//!
//! All of it is set by the agent from outside: the process itself may be in a user namespace, where it
//! has no right to most of it.

use crate::error::{Context, Result};
use crate::guest;
use crate::sys;
use protocol::{Process, Scheduler};

/// Scheduling that a request asks for.
#[derive(Clone, Debug, Default)]
pub struct Scheduling {
    scheduler: Option<Scheduler>,
    io_priority: u32,
    initial_cpus: u64,
    final_cpus: u64,
}

impl Scheduling {
    /// Reads what a process asks for.
    pub fn of(process: &Process) -> Self {
        Self {
            scheduler: process.scheduler.as_ref().cloned(),
            io_priority: process.io_priority,
            initial_cpus: process.initial_cpus,
            final_cpus: process.final_cpus,
        }
    }

    /// Without CPUs: the container's first process has those of its cgroup.
    pub fn on_all_cpus(self) -> Self {
        Self { initial_cpus: 0, final_cpus: 0, ..self }
    }

    /// Fills in what an executed process does not ask for: the container's.
    pub fn or(self, container: &Self) -> Self {
        let number = |own, other| if own == 0 { other } else { own };
        let cpus = if self.initial_cpus == 0 && self.final_cpus == 0 { container } else { &self };
        Self {
            initial_cpus: cpus.initial_cpus,
            final_cpus: cpus.final_cpus,
            io_priority: number(self.io_priority, container.io_priority),
            scheduler: self.scheduler.or_else(|| container.scheduler.clone()),
        }
    }

    /// Applies what holds while the process is being made.
    pub fn begin(&self, pid: i32) -> Result<()> {
        set_cpus(pid, self.initial_cpus)
    }

    /// Applies what holds from the exec on; called just before.
    pub fn apply(&self, pid: i32) -> Result<()> {
        set_cpus(pid, self.final_cpus)?;
        if self.io_priority != 0 {
            sys::set_io_priority(pid, self.io_priority)
                .context(|| format!("set ioPriority {:#x}", self.io_priority))?;
        }
        match &self.scheduler {
            Some(scheduler) => {
                sys::set_scheduler(pid, scheduler).context(|| format!("set scheduler with policy {}", scheduler.policy))
            }
            None => Ok(()),
        }
    }
}

fn set_cpus(pid: i32, cpus: u64) -> Result<()> {
    if cpus == 0 {
        return Ok(());
    }
    // They may not be up yet, soon after the container's start.
    (0..u64::BITS).filter(|cpu| cpus & (1 << cpu) != 0).for_each(guest::bring_up_cpu);
    sys::set_cpus(pid, cpus).context(|| format!("set execCPUAffinity {cpus:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_the_containers() {
        let scheduler = Scheduler { policy: 3, ..Default::default() };
        let container = Scheduling { scheduler: Some(scheduler), io_priority: 7, initial_cpus: 1, final_cpus: 2 };
        let same = Scheduling::default().or(&container);
        assert_eq!((same.io_priority, same.initial_cpus, same.final_cpus), (7, 1, 2));
        assert_eq!(same.scheduler.map(|scheduler| scheduler.policy), Some(3));
        let own = Scheduling { final_cpus: 4, io_priority: 8, ..Default::default() }.or(&container);
        assert_eq!((own.io_priority, own.initial_cpus, own.final_cpus), (8, 0, 4));
        let init = container.on_all_cpus();
        assert_eq!((init.initial_cpus, init.final_cpus, init.io_priority), (0, 0, 7));
    }
}
