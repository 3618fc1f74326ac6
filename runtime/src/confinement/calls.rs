//! System calls that a thread may make.

use syscalls::Sysno;

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The call.
    pub number: Sysno,
    /// With which arguments.
    pub when: When,
    /// Why no test sees it, where none does.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the list that tests are held against"))]
    pub unseen: Option<&'static str>,
}

/// Arguments with which a call is allowed. They are 32 bits wide where they are compared: the kernel ignores the rest.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// All.
    Always,
    /// Those whose argument of this index is one of these.
    OneOf(u32, &'static [u32]),
    /// Those whose argument of this index has none of these bits.
    Without(u32, u32),
    /// None: the caller is told that the kernel does not have the call, and makes an older one.
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
