//! `liar`: makes process 1 believe that it kills, for ever. Needs CAP_SYS_PTRACE.
//!
//! In a container without a pid namespace process 1 is the agent of the VM. Its kill(2), its pidfd_send_signal(2) and what it
//! writes to a `cgroup.kill` do nothing and succeed. Everything else it does as before. Prints `lying` when it has begun.

use std::io::Error;

/// The tracee: the agent.
const AGENT: libc::pid_t = 1;

/// What a stop at a system call is, with PTRACE_O_TRACESYSGOOD.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// `ptrace(2)`, as the kernel has it.
fn ptrace(request: i64, address: usize, data: usize) -> Result<(), Error> {
    // SAFETY: `data` is a number, or the address of a value that lives across the call and is of the request's type.
    match unsafe { libc::syscall(libc::SYS_ptrace, request, AGENT, address, data) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}

fn registers() -> Result<libc::user_regs_struct, Error> {
    // SAFETY: all fields are numbers, which may be 0.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(12, 0, (&raw mut registers).addr())?; // PTRACE_GETREGS
    Ok(registers)
}

fn set_registers(registers: &libc::user_regs_struct) -> Result<(), Error> {
    ptrace(13, 0, std::ptr::from_ref(registers).addr()) // PTRACE_SETREGS
}

/// First byte at an address of the agent's.
fn first_byte(address: u64) -> Option<u8> {
    let mut word = 0u64;
    ptrace(2, address as usize, (&raw mut word).addr()).ok()?; // PTRACE_PEEKDATA
    word.to_le_bytes().first().copied()
}

/// What a system call is to return without being made; none for most.
fn lie(call: &libc::user_regs_struct) -> Option<u64> {
    match call.orig_rax as i64 {
        libc::SYS_kill | libc::SYS_pidfd_send_signal => Some(0),
        libc::SYS_write if call.rdx == 1 && first_byte(call.rsi) == Some(b'1') => Some(1),
        _ => None,
    }
}

fn wait() -> Result<i32, Error> {
    let mut status = 0;
    // SAFETY: the status lives across the call.
    match unsafe { libc::waitpid(AGENT, &raw mut status, libc::__WALL) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(status),
    }
}

fn main() -> Result<(), Error> {
    ptrace(0x4206, 0, 1)?; // PTRACE_SEIZE, PTRACE_O_TRACESYSGOOD
    ptrace(0x4207, 0, 0)?; // PTRACE_INTERRUPT
    let (mut answer, mut entering, mut begun) = (None, true, false);
    loop {
        let status = wait()?;
        let stop = libc::WSTOPSIG(status);
        let mut signal = 0;
        if stop == SYSCALL_STOP {
            let mut call = registers()?;
            if entering {
                answer = lie(&call);
                if answer.is_some() {
                    call.orig_rax = u64::MAX;
                    set_registers(&call)?;
                }
            } else if let Some(value) = answer.take() {
                call.rax = value;
                set_registers(&call)?;
            }
            entering = !entering;
        } else if status >> 16 == 0 {
            signal = stop;
        }
        ptrace(24, 0, signal as usize)?; // PTRACE_SYSCALL
        if !std::mem::replace(&mut begun, true) {
            println!("lying");
        }
    }
}
