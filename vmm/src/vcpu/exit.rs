//! VM exits that end the guest, and how many there were of each kind.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

/// Why the guest stopped by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest asked for a reset: reboot or power-off as our kernel does it, or the end of a panic, which
    /// leaves last words (`Running::last_words`).
    Reset,
    /// KVM cannot run the guest any further; the text says why.
    Failed(String),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Reset => formatter.write_str("reset"),
            Self::Failed(why) => formatter.write_str(why),
        }
    }
}

macro_rules! exit_counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// VM exits that reached user space, by reason, of all vCPUs since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ExitCounts { $($(#[$doc])* pub $name: u64),* }

        /// What [`ExitCounts`] is read from.
        #[derive(Default)]
        pub struct Counters { $(pub $name: AtomicU64),* }

        impl Counters {
            /// The counts so far.
            pub fn read(&self) -> ExitCounts {
                ExitCounts { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }

        impl ExitCounts {
            /// Name and value of each count.
            pub fn each(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

exit_counts! {
    /// Reads of device registers.
    mmio_read,
    /// Writes of device registers (queue notifications end in the kernel and don't count).
    mmio_write,
    /// Port reads.
    port_in,
    /// Port writes.
    port_out,
    /// Accesses of any kind where there is no device; they count above too.
    nowhere,
    /// Kicks by a signal.
    kicked,
    /// Exits for any other reason.
    other,
}

/// How an exit ends the guest.
pub enum Ending {
    /// For the reason that the exit gives.
    Said(Exit),
    /// For a reason that is in `kvm_run`.
    AskRun,
}

/// How an exit that no device answers ends the guest; `None` when the guest goes on.
pub fn ending(exit: &VcpuExit) -> Option<Ending> {
    let failed = |text: String| Some(Ending::Said(Exit::Failed(text)));
    match exit {
        // A triple fault is how our kernel reboots (`reboot=t`).
        VcpuExit::Shutdown => Some(Ending::Said(Exit::Reset)),
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_CRASH, _) => failed("the guest crashed".to_owned()),
        VcpuExit::SystemEvent(..) => Some(Ending::Said(Exit::Reset)),
        VcpuExit::FailEntry(reason, cpu) => {
            failed(format!("KVM cannot enter the guest: hardware reason {reason:#x} on CPU {cpu}"))
        }
        VcpuExit::InternalError => Some(Ending::AskRun),
        // Only without an in-kernel local APIC, or harmless.
        VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::Nmi => None,
        other => failed(format!("KVM stopped the guest with {other:?}")),
    }
}

/// Text for KVM_EXIT_INTERNAL_ERROR (Documentation/virt/kvm/api.rst).
pub fn failure(vcpu: &mut VcpuFd) -> Exit {
    let at = vcpu.get_regs().map_or_else(|_| "an unknown address".to_owned(), |regs| format!("{:#x}", regs.rip));
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, for which this is the union's valid member.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let what = match suberror {
        1 => "it cannot emulate the instruction",
        2 => "exceptions came at the same time",
        3 => "an event could not be delivered",
        4 => "the processor gave an unexpected exit",
        _ => "of an unknown kind",
    };
    let hint = "; perhaps this host has no real KVM";
    Exit::Failed(format!("KVM internal error {suberror} at {at}: {what}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_from_harmless_exits() {
        assert!(matches!(ending(&VcpuExit::Shutdown), Some(Ending::Said(Exit::Reset))));
        assert!(matches!(ending(&VcpuExit::SystemEvent(1, &[])), Some(Ending::Said(Exit::Reset))));
        assert!(ending(&VcpuExit::Hlt).is_none());
        let Some(Ending::Said(exit)) = ending(&VcpuExit::FailEntry(0x80000021, 1)) else { panic!() };
        assert!(exit.to_string().contains("0x80000021"));
    }
}
