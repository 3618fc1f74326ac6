//! Numbers of system calls.

use std::str::FromStr;

use syscalls::{x86, x86_64};

/// Calls of socketcall(2), from 1 on.
const SOCKET: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// Calls of ipc(2).
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// Architecture of system calls that the guest's kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64 bit.
    X86_64,
    /// 32 bit: i386.
    X86,
}

impl Architecture {
    /// Value of `AUDIT_ARCH_*` in linux/audit.h.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
        }
    }

    /// Number of a system call.
    pub fn number(self, name: &str) -> Option<u32> {
        match self {
            Self::X86_64 => x86_64::Sysno::from_str(name).ok().map(|number| number as u32),
            Self::X86 => x86::Sysno::from_str(name).ok().map(|number| number as u32),
        }
    }

    /// Mask of the bits that an argument has.
    pub fn word(self) -> u64 {
        match self {
            Self::X86_64 => u64::MAX,
            Self::X86 => u64::from(u32::MAX),
        }
    }

    /// Number of the older call that does the same (socketcall(2), ipc(2)), and the first argument that it needs for that.
    pub fn also(self, name: &str) -> Option<(u32, u64)> {
        if self == Self::X86_64 {
            return None;
        }
        let socket = SOCKET.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, n)| ("socketcall", n));
        let ipc = IPC.iter().find(|(known, _)| *known == name).map(|(_, n)| ("ipc", *n));
        let (call, first) = socket.or(ipc)?;
        Some((self.number(call)?, first))
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::X86 => "x86",
        })
    }
}
