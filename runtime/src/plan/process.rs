//! `process` of the bundle, and of an exec.

use std::collections::HashSet;

use anyhow::{Context, bail};
use oci_spec::runtime::{Capabilities as Names, Capability, PosixRlimitType, Process};
use protocol::{Capabilities, Rlimit};

use super::validate::absolute;

/// Translates the process of an exec.
pub fn exec_process(given: &Process) -> anyhow::Result<protocol::Process> {
    let mut notes = Vec::new();
    let translated = process(given, &mut notes)?;
    notes.iter().for_each(|note| crate::log::debug(note));
    Ok(translated)
}

/// Adds capabilities by name, as `exec --cap` does: to every set but the ambient one.
pub fn add_capabilities(process: &mut Process, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut all = process.capabilities().clone().unwrap_or_default();
    for name in names {
        let plain = name.to_ascii_uppercase();
        let known = serde_json::from_value::<Capability>(serde_json::Value::String(plain));
        let one = known.with_context(|| format!("unknown capability {name:?}"))?;
        let with = |set: &Option<Names>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(one);
            Some(set)
        };
        let (bounding, effective, permitted) = (with(all.bounding()), with(all.effective()), with(all.permitted()));
        all.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    }
    process.set_capabilities(Some(all));
    Ok(())
}

/// Translates a process; the streams are the monitor's to name.
pub fn process(given: &Process, notes: &mut Vec<String>) -> anyhow::Result<protocol::Process> {
    let args = given.args().clone().unwrap_or_default();
    let env = given.env().clone().unwrap_or_default();
    if args.is_empty() {
        bail!("process.args must not be empty");
    }
    if args.iter().chain(&env).any(|text| text.contains('\0')) {
        bail!("process.args and process.env must not contain NUL");
    }
    if given.apparmor_profile().as_ref().is_some_and(|profile| !profile.is_empty()) {
        notes.push("process.apparmorProfile has no effect: the guest's kernel has no AppArmor".to_owned());
    }
    if given.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) {
        notes.push("process.selinuxLabel has no effect: the guest's kernel has no SELinux".to_owned());
    }
    let user = given.user();
    let size = given.console_size().filter(|_| given.terminal().unwrap_or_default());
    Ok(protocol::Process {
        args,
        env,
        cwd: absolute(given.cwd(), "process.cwd")?,
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        has_umask: user.umask().is_some(),
        umask: user.umask().unwrap_or_default(),
        capabilities: given.capabilities().as_ref().map(capabilities).into(),
        rlimits: rlimits(given)?,
        no_new_privileges: given.no_new_privileges().unwrap_or_default(),
        has_oom_score_adj: given.oom_score_adj().is_some(),
        oom_score_adj: given.oom_score_adj().unwrap_or_default(),
        terminal: given.terminal().unwrap_or_default(),
        rows: size.map_or(0, |size| u32::try_from(size.height()).unwrap_or_default()),
        columns: size.map_or(0, |size| u32::try_from(size.width()).unwrap_or_default()),
        ..Default::default()
    })
}

fn capabilities(given: &oci_spec::runtime::LinuxCapabilities) -> Capabilities {
    let bits = |set: &Option<Names>| set.iter().flatten().fold(0, |bits, &one| bits | 1 << number(one));
    Capabilities {
        bounding: bits(given.bounding()),
        effective: bits(given.effective()),
        inheritable: bits(given.inheritable()),
        permitted: bits(given.permitted()),
        ambient: bits(given.ambient()),
        ..Default::default()
    }
}

/// Number of a capability in `linux/capability.h`.
fn number(capability: Capability) -> u32 {
    use Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}

fn rlimits(given: &Process) -> anyhow::Result<Vec<Rlimit>> {
    let mut seen = HashSet::new();
    let mut limits = Vec::new();
    for limit in given.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
        if !seen.insert(resource) {
            bail!("process.rlimits: {} is given twice", limit.typ());
        }
        if limit.soft() > limit.hard() {
            bail!("process.rlimits: {}: soft limit {} above hard limit {}", limit.typ(), limit.soft(), limit.hard());
        }
        limits.push(Rlimit { resource, soft: limit.soft(), hard: limit.hard(), ..Default::default() });
    }
    Ok(limits)
}

fn resource(kind: PosixRlimitType) -> u32 {
    use PosixRlimitType as T;
    match kind {
        T::RlimitCpu => libc::RLIMIT_CPU,
        T::RlimitFsize => libc::RLIMIT_FSIZE,
        T::RlimitData => libc::RLIMIT_DATA,
        T::RlimitStack => libc::RLIMIT_STACK,
        T::RlimitCore => libc::RLIMIT_CORE,
        T::RlimitRss => libc::RLIMIT_RSS,
        T::RlimitNproc => libc::RLIMIT_NPROC,
        T::RlimitNofile => libc::RLIMIT_NOFILE,
        T::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        T::RlimitAs => libc::RLIMIT_AS,
        T::RlimitLocks => libc::RLIMIT_LOCKS,
        T::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        T::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        T::RlimitNice => libc::RLIMIT_NICE,
        T::RlimitRtprio => libc::RLIMIT_RTPRIO,
        T::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
