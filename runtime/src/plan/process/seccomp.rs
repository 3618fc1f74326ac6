//! `linux.seccomp` as a BPF program, which the agent only has to load.
//!
//! ```text
//!  profile ─▶ table per architecture (number → what happens) ─▶ program: a binary search for each
//! ```
//!
//! The program does what runc has libseccomp do (seccomp_rule_add(3)): a rule without conditions wins over rules with some; calls
//! newer than any that the profile names do not exist, so that programs fall back to older ones; names of calls that the
//! architecture does not have are skipped, since profiles are written for many architectures.

mod names;
mod program;
mod table;
#[cfg(test)]
mod tests;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompFilterFlag, Spec};
use protocol::SeccompFilter;
use serde_json::json;

use names::Architecture;
use program::compile;
use table::Table;

/// `SECCOMP_FILTER_FLAG_LOG` of seccomp(2).
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// Compiles the profile; the program is empty when there is none.
///
/// # Errors
/// The profile asks for what the guest cannot do, or has invalid values.
pub fn plan(spec: &Spec, notes: &mut Vec<String>) -> anyhow::Result<SeccompFilter> {
    let Some(profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
        return Ok(SeccompFilter::new());
    };
    let tables = architectures(profile, notes).into_iter().map(|it| Table::new(profile, it, notes));
    let program = compile(&tables.collect::<anyhow::Result<Vec<_>>>()?)?;
    Ok(SeccompFilter { program, flags: flags(profile, notes), ..Default::default() })
}

/// Architectures of the profile: always the native one, as with libseccomp, and none that the guest's kernel does not have.
fn architectures(profile: &LinuxSeccomp, notes: &mut Vec<String>) -> Vec<Architecture> {
    let mut list = vec![Architecture::X86_64];
    for arch in profile.architectures().iter().flatten() {
        match arch {
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => {}
            Arch::ScmpArchX86 if !list.contains(&Architecture::X86) => list.push(Architecture::X86),
            Arch::ScmpArchX86 => {}
            other => notes.push(format!("linux.seccomp.architectures: the guest's kernel does not support {other}")),
        }
    }
    list
}

/// Flags of seccomp(2). Without any in the profile, speculation stays allowed, as with runc.
fn flags(profile: &LinuxSeccomp, notes: &mut Vec<String>) -> u32 {
    let Some(flags) = profile.flags() else { return FLAG_SPEC_ALLOW };
    let mut bits = 0;
    for flag in flags {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => bits |= FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => bits |= FLAG_SPEC_ALLOW,
            // One thread, and nobody who is notified.
            other => notes.push(format!("linux.seccomp.flags: {other} has no effect in the guest")),
        }
    }
    bits
}

/// Seccomp section of `runvm features`.
pub fn features() -> serde_json::Value {
    let action = |name: &str| format!("SCMP_ACT_{name}");
    let actions = ["ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRACE", "TRAP"];
    let operators = ["EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE"];
    let known = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
    json!({
        "enabled": true,
        "actions": actions.map(action),
        "operators": operators.map(|name| format!("SCMP_CMP_{name}")),
        "archs": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
        "knownFlags": known,
        "supportedFlags": known,
    })
}
