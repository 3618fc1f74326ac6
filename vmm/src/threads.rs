//! The threads of a machine: which kinds there are, and what the machine's owner has each of them do first.
//!
//! All are spawned by the owner's thread: those of vCPUs and of the devices that the guest finds as it boots when the machine
//! starts, that of a hot-plugged device when it is plugged in. A guest makes none come or go: it only gives parked ones
//! something to do.
//!
//! # System calls
//!
//! What each kind makes from its hook on, until the machine is dropped. Every kind: `futex`, and what the allocator takes (`brk`,
//! `mmap`, `munmap`, `mremap`). When the machine is dropped its threads end, by `sigaltstack`, `munmap`, `rt_sigprocmask`,
//! `madvise`, `exit`: an owner who does not let them leaves the machine to the end of the process.
//!
//! | kind | calls |
//! |---|---|
//! | vCPU | `ioctl(KVM_RUN)`, `rt_sigreturn`, `write` (of an event; of the console, where there is one), `ioctl(KVM_GET_REGS)` when KVM fails |
//! | vCPU of a machine with a file system | the same, `ioctl(KVM_IRQ_LINE)`, and those that [`fs`](crate::virtio::fs) lists, without those that may take long |
//! | every device | `epoll_ctl`, `epoll_wait`, `close` and `read` (of an event), `ioctl(KVM_IRQ_LINE)` |
//! | vsock | `read` and `write` of its wake-up; of streams `recvmsg`, `sendmsg`, `shutdown`, `close`, `socketpair` |
//! | file system | those that [`fs`](crate::virtio::fs) lists |
//! | net | `readv`, `writev`, `ppoll`, `close` of the tap, `ioctl(TUNSETOFFLOAD)`; `read` and `write` of its wake-up |
//! | entropy | `getrandom` |
//! | balloon | `madvise` |
//! | block | `preadv`, `pwritev2`, `fdatasync`, `fallocate`, `ioctl(BLKDISCARD)` |

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids;

/// What a thread of a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// Runs a virtual CPU.
    Vcpu,
    /// Runs a virtual CPU and serves a file-system device when the guest notifies it.
    ServingVcpu,
    /// Serves a socket device.
    Vsock,
    /// Serves a file-system device.
    Fs,
    /// Serves a network device.
    Net,
    /// Serves an entropy device.
    Rng,
    /// Serves a balloon device.
    Balloon,
    /// Serves a block device.
    Block,
    /// Serves a device of this id, which is none of this crate's.
    Other(u32),
}

impl ThreadKind {
    /// The kind of thread that serves a device of this id (virtio 1.2, section 5).
    pub(crate) fn of_device(id: u32) -> Self {
        match id {
            virtio_ids::VIRTIO_ID_NET => Self::Net,
            virtio_ids::VIRTIO_ID_BLOCK => Self::Block,
            virtio_ids::VIRTIO_ID_RNG => Self::Rng,
            virtio_ids::VIRTIO_ID_BALLOON => Self::Balloon,
            virtio_ids::VIRTIO_ID_VSOCK => Self::Vsock,
            virtio_ids::VIRTIO_ID_FS => Self::Fs,
            other => Self::Other(other),
        }
    }

    /// Name of the threads of this kind, at most 15 bytes. Those of vCPUs have a number behind it.
    pub(crate) fn name(self) -> String {
        let name = match self {
            Self::Vcpu | Self::ServingVcpu => "vcpu",
            Self::Vsock => "virtio-vsock",
            Self::Fs => "virtio-fs",
            Self::Net => "virtio-net",
            Self::Rng => "virtio-rng",
            Self::Balloon => "virtio-balloon",
            Self::Block => "virtio-block",
            Self::Other(id) => return format!("virtio-{id}"),
        };
        name.to_owned()
    }
}

/// What each thread of a machine does before anything of the guest's reaches it: the place to take rights from it.
#[derive(Clone)]
pub struct OnThread(Arc<dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync>);

impl OnThread {
    /// Has each thread call this first. A thread for which it fails never serves the guest, and the machine does not start.
    pub fn new(hook: impl Fn(ThreadKind) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    /// To be called by a new thread of this kind.
    pub(crate) fn run(&self, kind: ThreadKind) -> io::Result<()> {
        (self.0)(kind)
    }
}

impl Default for OnThread {
    /// Nothing.
    fn default() -> Self {
        Self::new(|_| Ok(()))
    }
}

impl std::fmt::Debug for OnThread {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("OnThread")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_where_the_kernel_keeps_them() {
        let kinds = [1, 2, 4, 5, 19, 26, u32::from(u16::MAX)].map(ThreadKind::of_device);
        assert!(kinds.iter().all(|kind| kind.name().len() <= 15), "{kinds:?}");
        assert_eq!((kinds[0], kinds[6]), (ThreadKind::Net, ThreadKind::Other(65535)));
    }
}
