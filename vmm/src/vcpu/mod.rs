//! vCPU threads: run the guest, answer its exits, stop when told.
//!
//! ```text
//!   owner                          vCPU thread
//!   ─────                          ───────────
//!   Gate := Pause/Stop             KVM_RUN ──▶ exit: one `match`, then KVM_RUN again
//!   signal ──▶ handler sets         │
//!              immediate_exit       └─ EINTR: look at the gate: pause, end, or run
//! ```
//!
//! No kick is lost: the handler runs on the vCPU's own thread and sets `immediate_exit` there, so a signal just
//! before `KVM_RUN` has it return at once. The flag is cleared *before* the gate is read. `KVM_RUN` finishes a
//! pending access before it returns EINTR, so a paused vCPU's state is complete.

pub mod bus;
pub mod console;
mod exit;

use std::cell::Cell;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::error::Error;
use crate::threads::{OnThread, ThreadKind};
use crate::virtio::EnterThread;
use bus::Bus;
use exit::{Counters, Ending, ending, failure};
pub use exit::{Exit, ExitCounts};

/// The keyboard controller's command port and its "reset the CPU" command.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// The chipset's reset control register; this bit resets.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CPU: u8 = 4;

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Run,
    Pause,
    Stop,
}

struct GateState {
    want: Want,
    /// Number of paused vCPU threads: none of them runs its vCPU until `want` changes.
    paused: usize,
}

/// What the vCPU threads share with each other and with the machine's owner.
pub struct Shared {
    /// Port-mapped devices.
    pub ports: Bus,
    /// Memory-mapped devices.
    pub mmio: Bus,
    /// What each thread does first, to be able to serve devices at exits.
    enter: Vec<EnterThread>,
    /// Written when the guest stops by itself.
    pub ended: EventFd,
    exit: OnceLock<Exit>,
    counters: Counters,
    gate: Mutex<GateState>,
    changed: Condvar,
}

impl Shared {
    /// The state before any vCPU is started.
    pub fn new(ports: Bus, mmio: Bus, enter: Vec<EnterThread>) -> Result<Self, Error> {
        Ok(Self {
            ports,
            mmio,
            enter,
            ended: EventFd::new(libc::EFD_NONBLOCK).map_err(|error| Error::Host("create an event", error))?,
            exit: OnceLock::new(),
            counters: Counters::default(),
            gate: Mutex::new(GateState { want: Want::Run, paused: 0 }),
            changed: Condvar::new(),
        })
    }

    /// Why the guest stopped, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get().cloned()
    }

    /// Exits so far.
    pub fn counts(&self) -> ExitCounts {
        self.counters.read()
    }

    /// Readies the calling thread for a vCPU: for devices that it serves, then as the machine's owner says.
    fn admit(&self, on_thread: &OnThread) -> io::Result<()> {
        self.enter.iter().try_for_each(|enter| enter()).map_err(io::Error::other)?;
        on_thread.run(if self.enter.is_empty() { ThreadKind::Vcpu } else { ThreadKind::ServingVcpu })
    }

    fn gate(&self) -> MutexGuard<'_, GateState> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, want: Want) {
        self.gate().want = want;
        self.changed.notify_all();
    }

    /// Returns when this thread may run its vCPU, or `false` when it is to end.
    fn pass(&self) -> bool {
        let mut gate = self.gate();
        if gate.want == Want::Pause {
            gate.paused += 1;
            // Once: paused threads that answered each wake with another would never sleep.
            self.changed.notify_all();
            while gate.want == Want::Pause {
                gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
            }
            gate.paused -= 1;
        }
        gate.want == Want::Run
    }

    /// The guest is over: says why (the first vCPU to end is right) and wakes the owner.
    fn end(&self, exit: Exit) {
        let _ = self.exit.set(exit);
        // A full counter is readable, which is all that is wanted.
        let _ = self.ended.write(1);
    }
}

/// The vCPU threads of a machine.
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<VcpuFd>>,
    /// This process, and the threads as the kernel knows them.
    process: libc::pid_t,
    ids: Vec<libc::pid_t>,
}

impl Vcpus {
    /// Starts a thread `vcpuN` for each vCPU, which first does what `on_thread` says.
    ///
    /// # Errors
    /// The host has no more threads, or `on_thread` failed; those started are paused for good.
    pub fn start(fds: Vec<VcpuFd>, shared: Arc<Shared>, on_thread: &OnThread) -> Result<Self, Error> {
        register_signal_handler(SIGRTMIN(), on_kick)
            .map_err(|error| Error::Host("handle a signal", io::Error::from_raw_os_error(error.errno())))?;
        let process = std::process::id() as libc::pid_t;
        let mut vcpus = Self { shared, threads: Vec::new(), process, ids: Vec::new() };
        if let Err(error) = vcpus.start_each(fds, on_thread) {
            vcpus.shared.set(Want::Pause);
            vcpus.kick();
            // They may have given up the calls by which they would end.
            std::mem::forget(vcpus);
            return Err(error);
        }
        Ok(vcpus)
    }

    fn start_each(&mut self, fds: Vec<VcpuFd>, on_thread: &OnThread) -> Result<(), Error> {
        let (enter, entered) = mpsc::sync_channel(fds.len());
        for (index, fd) in fds.into_iter().enumerate() {
            let name = format!("{}{index}", ThreadKind::Vcpu.name());
            let (shared, on_thread, enter) = (self.shared.clone(), on_thread.clone(), enter.clone());
            let begin = move || {
                accept_kicks();
                // SAFETY: the call has no arguments.
                let id = unsafe { libc::gettid() };
                let admitted = shared.admit(&on_thread).map(|()| id);
                let runs = admitted.is_ok();
                let heard = enter.send(admitted).is_ok();
                drop(enter);
                if runs && heard { run(fd, &shared) } else { fd }
            };
            let thread = Builder::new().name(name.clone()).spawn(begin);
            self.threads.push(thread.map_err(|error| Error::Thread(name, error))?);
        }
        drop(enter);
        let ids = entered.iter().collect::<io::Result<_>>();
        self.ids = ids.map_err(|error| Error::Thread(ThreadKind::Vcpu.name(), error))?;
        Ok(())
    }

    /// Returns when no vCPU runs any more; those that ended by themselves count.
    pub fn pause(&self) {
        self.shared.set(Want::Pause);
        self.kick();
        let mut gate = self.shared.gate();
        while gate.paused < self.threads.len() {
            gate = self.shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets paused vCPUs run again.
    pub fn resume(&self) {
        self.shared.set(Want::Run);
    }

    /// Ends the threads and gives the vCPUs back, in order.
    pub fn stop(&mut self) -> Vec<VcpuFd> {
        self.shared.set(Want::Stop);
        self.kick();
        self.ids.clear();
        self.threads.drain(..).filter_map(|thread| thread.join().ok()).collect()
    }

    fn kick(&self) {
        for &id in &self.ids {
            // With less around it than pthread_kill(3) has.
            // SAFETY: the call has no pointers; the signal has our handler.
            unsafe { libc::syscall(libc::SYS_tgkill, self.process, id, SIGRTMIN()) };
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

thread_local! {
    /// The `kvm_run` page of this thread's vCPU.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(null_mut()) };
}

extern "C" fn on_kick(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    RUN.with(|run| {
        let run = run.get();
        if !run.is_null() {
            // SAFETY: set only while this thread owns the vCPU whose page it is; KVM reads the byte at KVM_RUN.
            unsafe { (&raw mut (*run).immediate_exit).write_volatile(1) };
        }
    });
}

fn run(mut vcpu: VcpuFd, shared: &Shared) -> VcpuFd {
    RUN.with(|run| run.set(vcpu.get_kvm_run()));
    // The gate may have closed before this thread could be signalled.
    let mut open = shared.pass();
    while open {
        open = match step(&mut vcpu, shared) {
            Step::Continue => true,
            Step::Kicked => {
                vcpu.set_kvm_immediate_exit(0);
                shared.pass()
            }
            Step::Ended(exit) => {
                shared.end(exit);
                wait_for_stop(shared);
                false
            }
        };
    }
    RUN.with(|run| run.set(null_mut()));
    vcpu
}

/// Threads inherit their creator's mask, which may block the signal.
fn accept_kicks() {
    // SAFETY: an all-zero sigset is a valid argument of sigemptyset, and all pointers are to `set`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, null_mut());
    }
}

/// Counts a vCPU that ended as paused until the machine stops, so that pausing doesn't wait for it.
fn wait_for_stop(shared: &Shared) {
    let mut gate = shared.gate();
    gate.paused += 1;
    shared.changed.notify_all();
    while gate.want != Want::Stop {
        gate = shared.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
    }
    gate.paused -= 1;
}

enum Step {
    Continue,
    Kicked,
    Ended(Exit),
}

/// Runs the guest up to its next exit and answers that.
fn step(vcpu: &mut VcpuFd, shared: &Shared) -> Step {
    let counters = &shared.counters;
    let found = match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => {
            count(&counters.mmio_read);
            shared.mmio.read(address, data)
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            count(&counters.mmio_write);
            shared.mmio.write(address, data)
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            count(&counters.port_in);
            shared.ports.read(port.into(), data)
        }
        Ok(VcpuExit::IoOut(KEYBOARD_COMMAND, [KEYBOARD_RESET])) => return Step::Ended(Exit::Reset),
        Ok(VcpuExit::IoOut(RESET_CONTROL, [value])) if *value & RESET_CPU != 0 => return Step::Ended(Exit::Reset),
        Ok(VcpuExit::IoOut(port, data)) => {
            count(&counters.port_out);
            shared.ports.write(port.into(), data)
        }
        Ok(VcpuExit::Intr) => return kicked(counters),
        // EAGAIN: a vCPU that waits to be woken by another one was interrupted.
        Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => return kicked(counters),
        Ok(other) => {
            count(&counters.other);
            match ending(&other) {
                Some(Ending::Said(exit)) => return Step::Ended(exit),
                Some(Ending::AskRun) => return Step::Ended(failure(vcpu)),
                None => true,
            }
        }
        Err(error) => return Step::Ended(Exit::Failed(format!("KVM cannot run the guest: {error}"))),
    };
    if !found {
        count(&counters.nowhere);
    }
    Step::Continue
}

fn kicked(counters: &Counters) -> Step {
    count(&counters.kicked);
    Step::Kicked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ending_counts() {
        let shared = Shared::new(Bus::default(), Bus::default(), Vec::new()).unwrap();
        assert_eq!(shared.exit(), None);
        shared.end(Exit::Reset);
        shared.end(Exit::Failed("late".to_owned()));
        assert_eq!(shared.exit(), Some(Exit::Reset));
        assert_eq!(shared.ended.read().unwrap(), 2);
    }
}
