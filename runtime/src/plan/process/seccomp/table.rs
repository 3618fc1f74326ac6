//! Table of an architecture: what happens to each system call.

use std::collections::BTreeMap;

use anyhow::bail;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::names::Architecture;

/// `SECCOMP_RET_KILL_THREAD` of linux/seccomp.h; the others below.
pub const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
/// Bits of a filter's value that are data for the action.
const DATA: u32 = 0xffff;

/// Action for a call that does not exist: `ENOSYS`.
pub const NO_SUCH_CALL: u32 = ERRNO | 38;

/// Largest errno of the kernel.
const MAX_ERRNO: u32 = 4095;
const EPERM: u32 = 1;

/// Number of arguments of a system call.
const ARGUMENTS: usize = 6;

/// A comparison of an argument, as if both were unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Index of the argument.
    pub index: u32,
    /// Kind of comparison.
    pub test: Test,
    /// Value to compare with.
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

/// A rule: an action for when all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, at most one for each argument; a rule without any always holds.
    pub conditions: Vec<Condition>,
    /// Value of `SECCOMP_RET_*` with its data.
    pub action: u32,
}

/// A seccomp profile for one architecture.
#[derive(Debug)]
pub struct Table {
    /// The architecture.
    pub architecture: Architecture,
    /// Action for calls without a rule that holds.
    pub default: u32,
    /// Rules by number of the call; the first that holds decides.
    pub calls: BTreeMap<u32, Vec<Rule>>,
    /// First number of the calls that are newer than the profile.
    pub newer: Option<u32>,
}

impl Table {
    /// Reads a profile.
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
        // As runc: a profile that names no call but the first knows of none that is newer.
        table.newer = last.filter(|&last| last > 0 && !lenient).map(|last| last + 1);
        Ok(table)
    }

    /// Adds rules to a call. Rules whose action is the default are left out, as in runc, so that they win over no others.
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

    /// Adds rules to the older form of a call. As in libseccomp, rules with conditions are not for calls without such arguments.
    fn add_older(&mut self, name: &str, rules: &[Rule]) {
        if let (Some((number, first)), [rule]) = (self.architecture.also(name), rules)
            && rule.conditions.is_empty()
        {
            let condition = Condition { index: 0, test: Test::Eq, value: first };
            self.add(number, &[Rule { conditions: vec![condition], action: rule.action }]);
        }
    }
}

/// Rules for a call: one, or as in runc one for each condition when an argument is compared twice.
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
    // As libseccomp: what masks everything out is no condition.
    let says_something = |one: &Condition| (one.test, one.value) != (Test::Masked(0), 0);
    let rule = |of: Vec<Condition>| Rule { conditions: of.into_iter().filter(says_something).collect(), action };
    if twice {
        return Ok(conditions.into_iter().map(|one| rule(vec![one])).collect());
    }
    Ok(vec![rule(conditions)])
}

fn condition(what: &str, argument: &LinuxSeccompArg, architecture: Architecture) -> anyhow::Result<Condition> {
    let index = argument.index();
    if index >= ARGUMENTS {
        bail!("linux.seccomp.syscalls: args.index {index} of {what}: must be 0 to {}", ARGUMENTS - 1);
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
            "linux.seccomp: SCMP_ACT_NOTIFY of {what} is not supported: the guest's kernel sees the call, and the \
             process that would answer it is on the host; use SCMP_ACT_ERRNO or SCMP_ACT_ALLOW"
        ),
    })
}
