//! System calls that a thread may make.

use syscalls::Sysno;

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Number of the call.
    pub number: Sysno,
    /// Arguments with which it is allowed.
    pub when: When,
    /// Reason why no test sees it, where none does.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the list that tests are held against"))]
    pub unseen: Option<&'static str>,
}

/// Arguments with which a call is allowed. They are 32 bits wide where they are compared: the kernel ignores the rest.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// The call is allowed whatever its arguments are.
    Always,
    /// The call is allowed where its argument of this index is one of these numbers.
    OneOf(u32, &'static [u32]),
    /// The call is allowed where its argument of this index has none of these bits.
    Without(u32, u32),
    /// The call is never made: the caller is told that the kernel does not have it, and makes an older one
    /// or does without.
    Absent,
}

const fn call(number: Sysno, when: When) -> Call {
    Call { number, when, unseen: None }
}

/// A call that no test sees, with the reason: other hosts make it, or moments that are rare.
pub const fn unseen(call: Call, why: &'static str) -> Call {
    Call { unseen: Some(why), ..call }
}

/// A call with any arguments.
pub const fn any(number: Sysno) -> Call {
    call(number, When::Always)
}

/// A call one of whose arguments has one of these values.
pub const fn one_of(number: Sysno, argument: u32, values: &'static [u32]) -> Call {
    call(number, When::OneOf(argument, values))
}

/// A call one of whose arguments has none of these bits.
pub const fn without(number: Sysno, argument: u32, bits: u32) -> Call {
    call(number, When::Without(argument, bits))
}

/// A call that the kernel seems not to have.
pub const fn absent(number: Sysno) -> Call {
    call(number, When::Absent)
}

/// Lines that say of each call of a kind of threads with which arguments it is allowed, and why no test sees it, if none does.
#[cfg(test)]
pub fn list(kind: &str, lists: &[&[Call]]) -> String {
    let line = |call: &Call| {
        let only = match call.when {
            When::Always => "",
            When::OneOf(..) => " (some)",
            When::Without(..) => " (not executable)",
            When::Absent => " (seems to be missing)",
        };
        let why = call.unseen.map(|why| format!(": not seen: {why}")).unwrap_or_default();
        format!("{kind} {}{only}{why}\n", call.number.name())
    };
    lists.iter().copied().flatten().map(line).collect()
}
