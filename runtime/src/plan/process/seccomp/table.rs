//! What happens to each system call of an architecture.

use std::collections::BTreeMap;

use anyhow::bail;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::names::Architecture;

/// SECCOMP_RET_* of linux/seccomp.h.
pub const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
/// Part of a value that is data for the action.
const DATA: u32 = 0xffff;

/// The call does not exist.
pub const NO_SUCH_CALL: u32 = ERRNO | 38;

/// The largest errno there is.
const MAX_ERRNO: u32 = 4095;
const EPERM: u32 = 1;

/// Arguments of a system call.
const ARGUMENTS: usize = 6;

/// A comparison of an argument, as if both were unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub index: u32,
    /// How.
    pub test: Test,
    /// With what.
    pub value: u64,
}

/// Comparisons of seccomp_rule_add(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `==`
    Eq,
    /// `>=`
    Ge,
    /// `>`
    Gt,
    /// `==` in the bits of the mask.
    Masked(u64),
}

/// An action for when all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Up to one for each argument; none: always.
    pub conditions: Vec<Condition>,
    /// SECCOMP_RET_* with its data.
    pub action: u32,
}

/// A profile for one architecture.
#[derive(Debug)]
pub struct Table {
    /// Which.
    pub architecture: Architecture,
    /// For what has no rule, or none that holds.
    pub default: u32,
    /// By number, in order: the first rule that holds counts.
    pub calls: BTreeMap<u32, Vec<Rule>>,
    /// Calls from this number on are newer than the profile.
    pub newer: Option<u32>,
}

impl Table {
    /// Reads the profile.
    pub fn new(profile: &LinuxSeccomp, architecture: Architecture, notes: &mut Vec<String>) -> anyhow::Result<Self> {
        let default = action("defaultAction", profile.default_action(), profile.default_errno_ret())?;
        let mut table = Self { architecture, default, calls: BTreeMap::new(), newer: None };
        let (mut last, mut unknown) = (None, Vec::new());
        for call in profile.syscalls().iter().flatten() {
            let rules = rules(call, architecture)?;
            for name in call.names() {
                let Some(number) = architecture.number(name) else {
                    unknown.push(name.as_str());
                    continue;
                };
                last = last.max(Some(number));
                table.add(number, &rules);
                table.add_older(name, &rules);
            }
        }
        if !unknown.is_empty() {
            notes.push(format!("linux.seccomp: {architecture} has no system calls {}", unknown.join(", ")));
        }
        let lenient = matches!(default & !DATA, ALLOW | LOG | TRACE) || default == NO_SUCH_CALL;
        table.newer = last.filter(|_| !lenient).map(|last| last + 1);
        Ok(table)
    }

    /// Rules that do as without them are left out, as runc does, so that they don't win over others.
    fn add(&mut self, number: u32, rules: &[Rule]) {
        for rule in rules.iter().filter(|rule| rule.action != self.default) {
            let existing = self.calls.entry(number).or_default();
            if existing.first().is_some_and(|first| first.conditions.is_empty()) {
                continue;
            }
            if rule.conditions.is_empty() {
                existing.clear();
            }
            existing.push(rule.clone());
        }
    }

    /// As libseccomp: where the older call has no argument to compare, a rule with conditions is not for it.
    fn add_older(&mut self, name: &str, rules: &[Rule]) {
        if let (Some((number, first)), [rule]) = (self.architecture.also(name), rules)
            && rule.conditions.is_empty()
        {
            let condition = Condition { index: 0, test: Test::Eq, value: first };
            self.add(number, &[Rule { conditions: vec![condition], action: rule.action }]);
        }
    }
}

/// One rule, or as in runc one for each condition when an argument is compared twice.
fn rules(call: &LinuxSyscall, architecture: Architecture) -> anyhow::Result<Vec<Rule>> {
    let what = call.names().join(", ");
    if call.names().iter().any(String::is_empty) {
        bail!("linux.seccomp.syscalls: empty string is not a valid syscall, in names [{what}]");
    }
    let action = action(&what, call.action(), call.errno_ret())?;
    let arguments = call.args().as_deref().unwrap_or_default();
    let conditions = arguments.iter().map(|argument| condition(&what, argument, architecture));
    let conditions = conditions.collect::<anyhow::Result<Vec<_>>>()?;
    let twice =
        (0..).zip(&conditions).any(|(at, one)| conditions.iter().skip(at + 1).any(|two| two.index == one.index));
    if twice {
        return Ok(conditions.into_iter().map(|one| Rule { conditions: vec![one], action }).collect());
    }
    Ok(vec![Rule { conditions, action }])
}

fn condition(what: &str, argument: &LinuxSeccompArg, architecture: Architecture) -> anyhow::Result<Condition> {
    let index = argument.index();
    if index >= ARGUMENTS {
        bail!("linux.seccomp.syscalls: args.index {index} of {what}: a call has arguments 0 to {}", ARGUMENTS - 1);
    }
    let word = architecture.word();
    let (test, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Test::Ne, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Test::Lt, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Test::Le, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Test::Eq, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Test::Ge, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Test::Gt, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (Test::Masked(argument.value() & word), argument.value_two().unwrap_or_default())
        }
    };
    Ok(Condition { index: index as u32, test, value: value & word })
}

fn action(what: &str, action: LinuxSeccompAction, errno: Option<u32>) -> anyhow::Result<u32> {
    let errno = errno.unwrap_or(EPERM);
    if errno > MAX_ERRNO {
        bail!("linux.seccomp: errnoRet {errno} of {what} is larger than any errno ({MAX_ERRNO})");
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => TRAP,
        LinuxSeccompAction::ScmpActErrno => ERRNO | errno,
        LinuxSeccompAction::ScmpActTrace => TRACE | errno,
        LinuxSeccompAction::ScmpActLog => LOG,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
        LinuxSeccompAction::ScmpActNotify => bail!(
            "linux.seccomp: SCMP_ACT_NOTIFY of {what} is not possible: the call is made in the guest's kernel, and who \
             would answer it is a process of the host; use SCMP_ACT_ERRNO or SCMP_ACT_ALLOW"
        ),
    })
}
