//! Finds out whether this host's KVM runs kernels. Some `/dev/kvm` emulate every ring-0 instruction in software: all
//! calls succeed, and no ordinary kernel boots. Counting down in ring 0 tells them from real ones.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, Kvm};
use vm_memory::{Bytes, GuestAddress};

use crate::error::{Error, kvm};
use crate::layout::{KVM_TSS, MIB};
use crate::memory;
use crate::threads::OnThread;
use crate::vcpu::bus::{Bus, Registers};
use crate::vcpu::{Exit, Shared, Vcpus};

/// The only version of KVM's API there is.
const API_VERSION: i32 = 12;
/// A guest that has not counted to the end after this long never will: KVM hangs.
const PATIENCE: Duration = Duration::from_secs(3);
/// Real KVM takes microseconds, software emulation more than 5 ms.
const EMULATED: Duration = Duration::from_millis(5);
const CODE_AT: u64 = 0x1000;
/// The guest writes to this port before and after it counts.
const MARK_PORT: u16 = 0x80;

/// Real mode: mark; count 10,000 down to 0; mark; reset by the keyboard controller.
const CODE: [u8; 18] = [
    0xe6, 0x80, // out 0x80, al
    0x66, 0xb9, 0x10, 0x27, 0x00, 0x00, // mov ecx, 10000
    0x66, 0x49, // dec ecx
    0x75, 0xfc, // jnz the line above
    0xe6, 0x80, // out 0x80, al
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
];

/// What a machine needs; names as in the KVM API.
const NEEDED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// What a probe found on a host whose KVM answers.
#[derive(Clone, Debug)]
pub struct ProbeReport {
    /// How long 10,000 iterations took in ring 0.
    pub counting: Duration,
    /// Whether ring 0 is emulated in software, so that kernels will not boot.
    pub emulated: bool,
}

/// Why KVM cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The device cannot be opened.
    #[error("/dev/kvm: {0}")]
    Open(#[source] io::Error),
    /// KVM speaks another version of its API.
    #[error("KVM has API version {0}, not {API_VERSION}")]
    Version(i32),
    /// Capabilities are missing.
    #[error("KVM lacks {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A small VM could not be made.
    #[error(transparent)]
    Build(#[from] Error),
    /// The small VM didn't do what it should.
    #[error("a guest of 6 instructions does not run: {0}")]
    Run(String),
    /// The small VM never came to an end.
    #[error("a guest of 6 instructions hangs in KVM")]
    Hang,
}

/// Looks at `/dev/kvm` and runs a one-page guest in it. Returns within three seconds, whatever KVM does.
///
/// # Errors
/// KVM is missing, lacks something, or cannot run the guest. An *emulated* ring 0 is no error here.
pub fn ring0() -> Result<ProbeReport, ProbeError> {
    let (sender, receiver) = mpsc::channel();
    // KVM may hang where no signal reaches it: then this thread is left behind with all it owns.
    let probe = move || drop(sender.send(probe()));
    std::thread::Builder::new()
        .name("kvm-probe".to_owned())
        .spawn(probe)
        .map_err(|error| Error::Host("start a thread", error))?;
    receiver.recv_timeout(PATIENCE).unwrap_or(Err(ProbeError::Hang))
}

fn probe() -> Result<ProbeReport, ProbeError> {
    let kvm_fd = Kvm::new().map_err(|error| ProbeError::Open(io::Error::from_raw_os_error(error.errno())))?;
    match kvm_fd.get_api_version() {
        API_VERSION => {}
        other => return Err(ProbeError::Version(other)),
    }
    let lacks = |(capability, name): &(Cap, &'static str)| (!kvm_fd.check_extension(*capability)).then_some(*name);
    let missing: Vec<_> = NEEDED.iter().filter_map(lacks).collect();
    if !missing.is_empty() {
        return Err(ProbeError::Missing(missing));
    }
    let counting = count(&kvm_fd)?;
    Ok(ProbeReport { counting, emulated: counting > EMULATED })
}

struct Marks(Arc<Mutex<Vec<Instant>>>);

impl Registers for Marks {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, _data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }
}

fn count(kvm_fd: &Kvm) -> Result<Duration, ProbeError> {
    let vm = kvm_fd.create_vm().map_err(kvm("make a VM"))?;
    let memory = memory::allocate(MIB)?;
    memory.write_slice(&CODE, GuestAddress(CODE_AT)).map_err(Error::from)?;
    memory::register(&vm, &memory)?;
    vm.set_tss_address(KVM_TSS).map_err(kvm("set its TSS address"))?;
    let vcpu = vm.create_vcpu(0).map_err(kvm("make a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(kvm("read system registers"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(kvm("set system registers"))?;
    let regs = kvm_bindings::kvm_regs { rip: CODE_AT, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(kvm("set registers"))?;
    let marks: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let mut ports = Bus::default();
    ports.insert(MARK_PORT.into(), 1, Arc::new(Mutex::new(Marks(marks.clone()))));
    let shared = Arc::new(Shared::new(ports, Bus::default(), Vec::new())?);
    let mut vcpus = Vcpus::start(vec![vcpu], shared.clone(), &OnThread::default())?;
    wait_readable(&shared.ended);
    // Stopped before memory goes away; if this hangs, the caller has its answer by then.
    vcpus.stop();
    let marks = marks.lock().unwrap_or_else(PoisonError::into_inner);
    match (shared.exit(), &marks[..]) {
        (Some(Exit::Reset), [begin, end]) => Ok(*end - *begin),
        (Some(exit), _) => Err(ProbeError::Run(exit.to_string())),
        (None, _) => Err(ProbeError::Hang),
    }
}

fn wait_readable(event: &vmm_sys_util::eventfd::EventFd) {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours, alive across the call. An early return shows as a missing exit.
    unsafe { libc::poll(&mut poll, 1, PATIENCE.as_millis() as libc::c_int - 500) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On any machine: an answer, in time, that makes sense.
    #[test]
    fn answers_within_its_bound() {
        let begin = Instant::now();
        match ring0() {
            Ok(report) => assert_eq!(report.emulated, report.counting > EMULATED),
            Err(error) => eprintln!("no KVM here: {error}"),
        }
        assert!(begin.elapsed() < PATIENCE + Duration::from_secs(1));
    }
}
