//! A small virtual machine monitor on KVM: x86-64, virtio-mmio, direct boot of Linux, nothing else.
//!
//! ```no_run
//! # fn main() -> Result<(), vmm::Error> {
//! use vmm::virtio::rng::Rng;
//! use vmm::{Machine, MachineSpec, OnThread};
//! let spec = MachineSpec {
//!     kvm: vmm::open_kvm()?,
//!     memory_mib: 256,
//!     vcpus: 1,
//!     kernel: "vmlinux".into(),
//!     initrd: "initrd".into(),
//!     cmdline: String::new(),
//!     console: None,
//!     nested: false,
//!     on_thread: OnThread::default(),
//! };
//! let running = Machine::build(spec, vec![Box::new(Rng)], vec![])?.start()?;
//! // Poll `running.ended()`, then:
//! println!("{:?} {:?}", running.exit(), running.last_words());
//! let state = running.stop().state(vmm::open_kvm()?)?;
//! # Ok(()) }
//! ```
//!
//! Threads:
//!
//! ```text
//!  owner's thread        vcpu0, vcpu1, …                virtio-fs, virtio-vsock, …
//!  ──────────────        ───────────────                ──────────────────────────
//!  Machine::build
//!  Machine::start ─────▶ KVM_RUN ◀────────┐
//!  Running::pause ─kick▶ exit ─▶ bus ─────┤
//!                         registers:      │             parked until the driver's DRIVER_OK
//!                         Transport ──────┼─move──────▶ Device + rings
//!                         notifications:  │             ▲        │
//!                         in the kernel ──┼─ioeventfd───┘        │
//!                                         └──────KVM_IRQ_LINE─────┘
//!  Running::ended ◀──────reset, triple fault, KVM error
//!  Running::stop  ─join▶ all of them; Stopped::state is plain data
//! ```
//!
//! The guest is hostile. Whatever it writes to registers, rings or memory is data that lies: it gets
//! an error or nonsense back, one device may stop, the monitor doesn't.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("only x86-64 so far: boot, layout, machine/snapshot and vcpu know it");

mod boot;
mod error;
pub mod event_loop;
pub mod interrupt;
mod layout;
mod machine;
mod memory;
pub mod probe;
pub mod registers;
mod spec;
mod threads;
mod timeline;
mod vcpu;
pub mod virtio;

pub use error::Error;
pub use layout::VIRTIO_MAX as MAX_DEVICES;
#[cfg(feature = "driver")]
pub use machine::last_words;
pub use machine::{Machine, Running, Stopped, open_kvm, snapshot};
pub use spec::{MAX_VCPUS, MachineSpec};
pub use threads::{OnThread, ThreadKind};
pub use timeline::Timeline;
pub use vcpu::{Exit, ExitCounts};
