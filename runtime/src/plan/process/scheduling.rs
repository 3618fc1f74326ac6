//! Scheduling of a process: `process.scheduler`, `ioPriority` and `execCPUAffinity`.

use anyhow::{Context, bail};
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy, Process, Scheduler,
};

use crate::plan::limits;

/// Priorities of `SCHED_FIFO` and `SCHED_RR` (sched(7)).
const PRIORITIES: std::ops::RangeInclusive<i32> = 1..=99;
/// Nice values (sched(7)).
const NICE: std::ops::RangeInclusive<i32> = -20..=19;
/// Bits by which ioprio_set(2) shifts the class.
const CLASS_SHIFT: u32 = 13;

/// Fills in all three settings, for a VM with `vcpus` CPUs.
///
/// # Errors
/// Values contradict each other or do not exist: in runc's words where runc checks them.
pub fn plan(process: &Process, vcpus: u8, message: &mut protocol::Process) -> anyhow::Result<()> {
    message.scheduler = process.scheduler().as_ref().map(scheduler).transpose()?.into();
    message.io_priority = process.io_priority().as_ref().map(io_priority).transpose()?.unwrap_or_default();
    if let Some(affinity) = process.exec_cpu_affinity() {
        message.initial_cpus = cpus("initial", affinity.initial().as_deref(), vcpus)?;
        message.final_cpus = cpus("final", affinity.cpu_affinity_final().as_deref(), vcpus)?;
    }
    Ok(())
}

fn scheduler(given: &Scheduler) -> anyhow::Result<protocol::Scheduler> {
    let policy = *given.policy();
    let (nice, priority) = (given.nice().unwrap_or_default(), given.priority().unwrap_or_default());
    if !NICE.contains(&nice) {
        bail!("invalid scheduler.nice: {nice} when scheduler.policy is {policy}: must be -20 to 19");
    }
    match policy {
        Policy::SchedFifo | Policy::SchedRr if !PRIORITIES.contains(&priority) => {
            bail!("scheduler.priority {priority} when scheduler.policy is {policy}: must be 1 to 99")
        }
        Policy::SchedFifo | Policy::SchedRr => {}
        _ if priority != 0 => {
            bail!("scheduler.priority {priority} can only be specified for SCHED_FIFO or SCHED_RR, not {policy}")
        }
        _ => {}
    }
    deadline(given, policy)?;
    let flags = given.flags().iter().flatten().map(flag).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(protocol::Scheduler {
        policy: number(policy)?,
        flags: flags.into_iter().fold(0, |all, flag| all | flag),
        nice,
        priority: u32::try_from(priority)?,
        runtime: given.runtime().unwrap_or_default(),
        deadline: given.deadline().unwrap_or_default(),
        period: given.period().unwrap_or_default(),
        ..Default::default()
    })
}

fn deadline(given: &Scheduler, policy: Policy) -> anyhow::Result<()> {
    let times = [given.runtime(), given.deadline(), given.period()].map(|time| time.unwrap_or_default());
    let [runtime, deadline, period] = times;
    if policy != Policy::SchedDeadline {
        if times != [0; 3] {
            bail!("scheduler runtime/deadline/period can only be specified for SCHED_DEADLINE, not {policy}");
        }
        return Ok(());
    }
    // sched_setattr(2); a period of 0 is the deadline.
    if runtime == 0 || runtime > deadline || (period != 0 && deadline > period) {
        bail!(
            "scheduler.runtime {runtime}, deadline {deadline}, period {period}: \
             none is 0 and each is at most the next (nanoseconds)"
        );
    }
    Ok(())
}

/// Number of a policy in linux/sched.h.
fn number(policy: Policy) -> anyhow::Result<u32> {
    match policy {
        Policy::SchedOther => Ok(0),
        Policy::SchedFifo => Ok(1),
        Policy::SchedRr => Ok(2),
        Policy::SchedBatch => Ok(3),
        Policy::SchedIdle => Ok(5),
        Policy::SchedDeadline => Ok(6),
        Policy::SchedIso => bail!("scheduler.policy SCHED_ISO: Linux has reserved its number and never had the policy"),
    }
}

/// Value of a flag in linux/sched.h.
fn flag(flag: &Flag) -> anyhow::Result<u64> {
    match flag {
        Flag::SchedResetOnFork => Ok(0x01),
        Flag::SchedFlagReclaim => Ok(0x02),
        Flag::SchedFlagDLOverrun => Ok(0x04),
        Flag::SchedFlagKeepPolicy => Ok(0x08),
        Flag::SchedFlagKeepParams => Ok(0x10),
        Flag::SchedFlagUtilClampMin | Flag::SchedFlagUtilClampMax => {
            bail!("scheduler.flags {flag}: the specification has no field for its value; leave it out")
        }
    }
}

fn io_priority(given: &LinuxIOPriority) -> anyhow::Result<u32> {
    let class = match given.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(given.priority()) {
        Ok(priority @ 0..=7) => Ok(class << CLASS_SHIFT | priority),
        _ => bail!("invalid ioPriority.Priority: {}: must be 0 to 7", given.priority()),
    }
}

/// A list of CPUs as bits. CPUs that the VM does not have are ignored, unless the list names no other.
fn cpus(field: &str, list: Option<&str>, vcpus: u8) -> anyhow::Result<u64> {
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(0) };
    let named = limits::cpus(list)
        .with_context(|| format!("process.execCPUAffinity.{field} {list:?} is not a list of CPUs like 0-2,5"))?;
    let had = named.iter().take(usize::from(vcpus).min(64)).enumerate().filter(|(_, is)| **is);
    match had.fold(0, |mask, (cpu, _)| mask | 1 << cpu) {
        0 => bail!("process.execCPUAffinity.{field} {list:?}: the VM has CPUs 0 to {}", vcpus.saturating_sub(1)),
        mask => Ok(mask),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(field: &str) -> Result<protocol::Process, String> {
        let json = format!(r#"{{"user":{{}},"cwd":"/","args":["a"],{field}}}"#);
        let process: Process = serde_json::from_str(&json).map_err(|error| error.to_string())?;
        let mut message = protocol::Process::new();
        plan(&process, 4, &mut message).map_err(|error| format!("{error:#}"))?;
        Ok(message)
    }

    #[test]
    fn schedulers_become_sched_attr() {
        let message = planned(
            r#""scheduler":{"policy":"SCHED_DEADLINE","runtime":1,"deadline":2,"period":3,
                "flags":["SCHED_RESET_ON_FORK","SCHED_FLAG_RECLAIM"]}"#,
        );
        let scheduler = message.unwrap().scheduler;
        assert_eq!((scheduler.policy, scheduler.flags), (6, 3));
        assert_eq!((scheduler.runtime, scheduler.deadline, scheduler.period), (1, 2, 3));
        let message = planned(r#""scheduler":{"policy":"SCHED_BATCH","nice":-7}"#).unwrap();
        assert_eq!((message.scheduler.policy, message.scheduler.nice), (3, -7));
        let message = planned(r#""scheduler":{"policy":"SCHED_RR","priority":9}"#).unwrap();
        assert_eq!((message.scheduler.policy, message.scheduler.priority), (2, 9));
        assert!(planned(r#""env":[]"#).unwrap().scheduler.is_none());
    }

    #[test]
    fn schedulers_that_contradict_themselves() {
        let table = [
            (
                r#"{"policy":"SCHED_OTHER","nice":20}"#,
                "invalid scheduler.nice: 20 when scheduler.policy is SCHED_OTHER",
            ),
            (r#"{"policy":"SCHED_IDLE","priority":1}"#, "scheduler.priority 1 can only be specified for SCHED_FIFO"),
            (r#"{"policy":"SCHED_FIFO"}"#, "scheduler.priority 0 when scheduler.policy is SCHED_FIFO: must be 1 to 99"),
            (r#"{"policy":"SCHED_RR","priority":-1}"#, "scheduler.priority -1 when"),
            (r#"{"policy":"SCHED_OTHER","period":1}"#, "scheduler runtime/deadline/period can only be specified for"),
            (r#"{"policy":"SCHED_DEADLINE","runtime":3,"deadline":2}"#, "scheduler.runtime 3, deadline 2, period 0"),
            (r#"{"policy":"SCHED_ISO"}"#, "scheduler.policy SCHED_ISO"),
            (r#"{"policy":"SCHED_NONE"}"#, "unknown variant `SCHED_NONE`"),
            (
                r#"{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_UTIL_CLAMP_MIN"]}"#,
                "scheduler.flags SCHED_FLAG_UTIL_CLAMP_MIN",
            ),
        ];
        for (scheduler, text) in table {
            let error = planned(&format!(r#""scheduler":{scheduler}"#)).unwrap_err();
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn io_priorities() {
        let of = |class: &str, priority: i64| {
            planned(&format!(r#""ioPriority":{{"class":"IOPRIO_CLASS_{class}","priority":{priority}}}"#))
                .map(|message| message.io_priority)
        };
        assert_eq!((of("RT", 0), of("BE", 7), of("IDLE", 1)), (Ok(0x2000), Ok(0x4007), Ok(0x6001)));
        assert!(of("BE", 8).unwrap_err().starts_with("invalid ioPriority.Priority: 8"));
        assert!(of("BE", -1).is_err());
        assert!(of("NONE", 1).unwrap_err().contains("IOPRIO_CLASS_NONE"));
    }

    #[test]
    fn cpus_of_the_vm() {
        let of = |list: &str| cpus("final", Some(list), 4);
        assert_eq!((of("0").unwrap(), of("1-2,9").unwrap(), of("").unwrap()), (1, 6, 0));
        let error = of("4-7").unwrap_err().to_string();
        assert_eq!(error, "process.execCPUAffinity.final \"4-7\": the VM has CPUs 0 to 3");
        assert!(of("2-1").unwrap_err().to_string().contains("is not a list of CPUs"));
        let message = planned(r#""execCPUAffinity":{"initial":"0-3","final":"3"}"#).unwrap();
        assert_eq!((message.initial_cpus, message.final_cpus), (15, 8));
    }
}
