//! Which devices the processes of a cgroup of version 2 may use: a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` that the
//! cgroup keeps, as bpf(2) takes it. The agent has one for each container in the guest, the command one for each monitor on
//! the host; the runtime compiles both.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

// linux/bpf.h
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Cgroups below may have programs of their own: all must allow.
const ALLOW_MULTI: u32 = 2;
/// License of the programs, which call nothing of the kernel's that asks for another one.
const LICENSE: &CStr = c"Apache-2.0";
/// Size of `struct bpf_insn`.
const INSTRUCTION: usize = 8;

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` that is needed; what is beyond counts as zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// Attributes of `BPF_PROG_ATTACH` (`union bpf_attr`).
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Attributes of `BPF_PROG_QUERY` (`union bpf_attr`), up to the number of programs, which the kernel writes.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// Has the kernel check a program and keep it, as long as somebody has it open or a cgroup has it.
///
/// # Errors
/// The program is none, the kernel has none of its kind, or this process may not load any.
pub fn load(program: &[u8]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len() / INSTRUCTION).map_err(|_| io::ErrorKind::InvalidInput)?;
    if !program.len().is_multiple_of(INSTRUCTION) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut attributes = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: count,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
    };
    // SAFETY: both pointers outlive the call; the kernel reads insn_cnt instructions, which there are, and checks them.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes)? };
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a program to a cgroup (an open directory), for as long as the cgroup is there.
///
/// # Errors
/// A cgroup above has a program that allows no others, or this process may not attach any.
pub fn attach(cgroup: impl AsFd, program: &OwnedFd) -> io::Result<()> {
    let mut attributes = Attach {
        target_fd: cgroup.as_fd().as_raw_fd().unsigned_abs(),
        attach_bpf_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are those of this command, plain numbers.
    unsafe { bpf(PROG_ATTACH, &mut attributes) }.map(drop)
}

/// Number of such programs that a cgroup has itself, those of cgroups above left out.
///
/// # Errors
/// The kernel has no such programs, or tells only others.
pub fn attached(cgroup: impl AsFd) -> io::Result<u32> {
    let mut attributes = Query {
        target_fd: cgroup.as_fd().as_raw_fd().unsigned_abs(),
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: 0,
        prog_cnt: 0,
        padding: 0,
    };
    // SAFETY: the attributes are those of this command; there is room for no ids, and so the kernel writes none.
    unsafe { bpf(PROG_QUERY, &mut attributes) }?;
    Ok(attributes.prog_cnt)
}

/// bpf(2).
///
/// # Safety
/// The attributes are those of the command, and pointers in them lead to what the command reads.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes outlive the call, their size is right; the rest is this function's contract.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_instruction_is_no_program() {
        assert_eq!(load(&[0; 12]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
