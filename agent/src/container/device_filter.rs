//! Which devices a cgroup's processes may use: a program in the kernel, as bpf(2) takes it.

use crate::error::{Context, Result};
use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use std::ffi::CStr;

// linux/bpf.h
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Cgroups below may have programs of their own: all must allow.
const ALLOW_MULTI: u32 = 2;
/// It calls nothing of the kernel's that would want another.
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

/// Loads the program and gives it to the cgroup (an open directory), which keeps it.
pub fn attach(cgroup: impl AsFd, program: &[u8]) -> Result<()> {
    let program = load(program).context(|| "load device filter program")?;
    let attributes = Attach {
        target_fd: cgroup.as_fd().as_raw_fd().unsigned_abs(),
        attach_bpf_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are those of this command, plain numbers.
    unsafe { bpf(PROG_ATTACH, &attributes) }.context(|| "attach device filter program to cgroup").map(drop)
}

fn load(program: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    if !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Errno::INVAL);
    }
    let attributes = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len() / INSTRUCTION).map_err(|_| Errno::INVAL)?,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
    };
    // SAFETY: both pointers outlive the call; the kernel reads insn_cnt instructions, which there are, and checks them.
    let fd = unsafe { bpf(PROG_LOAD, &attributes)? };
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2).
///
/// # Safety
/// The attributes are those of the command, and pointers in them lead to what the command reads.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> std::result::Result<libc::c_int, Errno> {
    // SAFETY: the attributes outlive the call, their size is right; the rest is this function's contract.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
