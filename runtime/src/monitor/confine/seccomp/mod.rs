//! A seccomp filter for each kind of thread. Who makes another call ends the VM, and the log says which call it was.

mod tables;
mod violation;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::plan::seccomp::{Architecture, Condition, Rule, Table, Test, compile};

pub use tables::Kind;
use tables::{Call, When};

// linux/seccomp.h
const SET_MODE_FILTER: libc::c_uint = 1;
/// Filters say nothing on speculation.
const SPEC_ALLOW: libc::c_ulong = 1 << 2;
const TRAP: u32 = 0x0003_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Whether the host's kernel has no filters, and the administrator goes on without.
static WITHOUT: AtomicBool = AtomicBool::new(false);

/// Prepares the process for threads that are confined; to be called once. Without filters there are none later either.
///
/// # Errors
/// The kernel's.
pub fn prepare(filters: bool) -> io::Result<()> {
    WITHOUT.store(!filters, Ordering::Relaxed);
    violation::report()
}

/// Confines the calling thread, and threads that it starts, for good.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn confine(kind: Kind) -> io::Result<()> {
    if WITHOUT.load(Ordering::Relaxed) {
        return Ok(());
    }
    let program = program(kind)?;
    violation::name_thread(kind.name());
    let length = u16::try_from(program.len() / size_of::<libc::sock_filter>()).unwrap_or_default();
    // The kernel only reads it.
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the structure and the program it names live across the call.
    let set = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, SPEC_ALLOW, &raw const program) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn program(kind: Kind) -> io::Result<Vec<u8>> {
    let mut calls = BTreeMap::new();
    for call in kind.calls() {
        calls.insert(call.number.id() as u32, rules(call));
    }
    let table = Table { architecture: Architecture::X86_64, default: TRAP, calls, newer: None };
    compile(&[table]).map_err(io::Error::other)
}

fn rules(call: &Call) -> Vec<Rule> {
    let allow = |index, test, value| Rule { conditions: vec![Condition { index, test, value }], action: ALLOW };
    match call.when {
        When::Always => vec![Rule { conditions: Vec::new(), action: ALLOW }],
        // Arguments are 32 bits wide where they are compared: the kernel ignores the rest.
        When::OneOf(index, values) => {
            values.iter().map(|&value| allow(index, Test::Masked(u32::MAX.into()), value)).collect()
        }
        When::Without(index, bits) => vec![allow(index, Test::Masked(bits), 0)],
    }
}

#[cfg(test)]
mod tests;
