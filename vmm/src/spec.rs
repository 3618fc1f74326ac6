//! Specification of a machine: plain data, checked before anything is built.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::error::Error;
use crate::threads::OnThread;

/// Least memory: what our kernel needs to get anywhere, in MiB.
const MIN_MEMORY_MIB: u32 = 32;
/// Most memory, in MiB: 1 TiB.
const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Most vCPUs: the guest kernel's `CONFIG_NR_CPUS`, and what fits the MP table's page.
pub const MAX_VCPUS: u8 = 64;

/// A machine to build.
#[derive(Debug)]
pub struct MachineSpec {
    /// KVM, from [`open_kvm`](crate::open_kvm). The process that opens it need not be the one that runs the machine.
    pub kvm: OwnedFd,
    /// Guest memory in MiB; backed by the host as the guest touches it.
    pub memory_mib: u32,
    /// Number of virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// An uncompressed x86-64 Linux kernel (`vmlinux`, ELF). The file stays mapped while the machine lives:
    /// replace the file, never write to it.
    pub kernel: PathBuf,
    /// Initial RAM file system (cpio, compressed as the kernel can read). Replace this file, too, and never write to it.
    pub initrd: PathBuf,
    /// Appended to the machine's own kernel arguments.
    pub cmdline: String,
    /// Descriptor that the guest's serial console writes to; without it there is no serial port at all.
    pub console: Option<OwnedFd>,
    /// Whether the guest sees VMX or SVM, if the host's KVM offers them, and can run virtual machines. What emulates them is
    /// the richest source of holes in KVM.
    pub nested: bool,
    /// What each thread of the machine does first.
    pub on_thread: OnThread,
}

impl MachineSpec {
    /// Checks what can be checked without touching the host.
    ///
    /// # Errors
    /// [`Error::Spec`] names the field and its limits.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Spec(text));
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return wrong(format!("{} MiB of memory; {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} work", self.memory_mib));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return wrong(format!("{} vCPUs; 1 to {MAX_VCPUS} work", self.vcpus));
        }
        if self.cmdline.bytes().any(|byte| byte == 0 || byte == b'\n') {
            return wrong("the kernel arguments contain a newline or a zero byte".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(memory_mib: u32, vcpus: u8, cmdline: &str) -> Result<(), Error> {
        let (kernel, initrd) = (PathBuf::from("k"), PathBuf::from("i"));
        let kvm = std::fs::File::open("/dev/null").unwrap().into();
        let (cmdline, on_thread) = (cmdline.to_owned(), OnThread::default());
        let (console, nested) = (None, false);
        MachineSpec { kvm, memory_mib, vcpus, kernel, initrd, cmdline, console, nested, on_thread }.validate()
    }

    #[test]
    fn limits_are_named() {
        assert!(spec(128, 2, "a=b").is_ok());
        assert!(spec(8, 1, "").unwrap_err().to_string().contains("32 to"));
        assert!(spec(128, 0, "").unwrap_err().to_string().contains("1 to 64"));
        assert!(spec(128, 65, "").is_err());
        assert!(spec(128, 1, "a\0b").is_err());
    }
}
