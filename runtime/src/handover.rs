//! What passes between the command that creates a container and the monitor it spawns: descriptors at
//! birth, the set-up down one pipe, the answer up another.

use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context, bail};
use protobuf::Message;
use serde::{Deserialize, Serialize};

use crate::plan::{self, MachinePlan, Plan};
use crate::spawn::Process;
use crate::timeline::Timeline;
use crate::{control, log};

/// What the monitor is told: the go signal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the container.
    pub id: String,
    /// Where the container goes.
    pub home: VmTarget,
    /// `protocol::CreateContainerRequest`, encoded.
    pub container: Vec<u8>,
    /// Roots of the shares.
    pub shares: Vec<ShareFd>,
    /// Disks of a machine of its own.
    pub disks: Vec<DiskFd>,
    /// Sockets of the host that the container may connect to.
    pub sockets: Vec<RawFd>,
    /// Ports of the host that lead to the container.
    pub ports: Vec<PortFd>,
    /// What leads to passt(1), if the network is its.
    pub uplink: Option<RawFd>,
    /// The container's cgroups on the host.
    pub cgroups: Vec<PathBuf>,
    /// The listening control socket.
    pub control: RawFd,
    /// Where the one answer goes.
    pub ready: RawFd,
    /// Slave of the container's terminal.
    pub terminal: Option<RawFd>,
    /// How to log.
    pub log: log::Settings,
    /// What the command did so far.
    pub timeline: Timeline,
    /// Whether to print all of it.
    pub print_timeline: bool,
}

/// A virtual machine.
#[derive(Debug, Serialize, Deserialize)]
pub enum VmTarget {
    /// One of its own.
    Own(MachineSetup),
    /// Another container's: a connection to its monitor.
    Joined(RawFd),
}

/// How a machine is made.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineSetup {
    /// Its size.
    pub plan: MachinePlan,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// Whether the kernel can be told of devices after boot.
    pub hotplug: bool,
    /// Whether the network namespace was there before the container.
    pub network_stays: bool,
    /// KVM. Cgroups of engines may keep a process in them from opening it.
    pub kvm: RawFd,
}

/// A share whose root is an inherited descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShareFd {
    /// Its name in the guest.
    pub name: String,
    /// Whether the guest may change it.
    pub read_only: bool,
    /// What the guest may keep of it.
    pub cache: plan::CachePlan,
    /// `O_PATH` descriptor of its root.
    pub fd: RawFd,
}

/// A disk, open as an inherited descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct DiskFd {
    /// Its serial number in the guest.
    pub serial: String,
    /// Whether the guest may change it.
    pub read_only: bool,
    /// The block device.
    pub fd: RawFd,
}

/// A published port, open as an inherited descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct PortFd {
    /// The container's.
    pub container: u16,
    /// Whether the descriptor is of a UDP socket, and not one that listens.
    pub datagrams: bool,
    /// The socket.
    pub fd: RawFd,
}

/// The monitor's one answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The container is created.
    Ready,
    /// It is not; why.
    Failed(String),
}

/// What connects the command with the monitor it spawned.
pub struct Pipes {
    /// Where the set-up goes.
    pub setup: std::fs::File,
    /// Where the answer comes from.
    pub ready: std::fs::File,
    /// What the monitor inherited.
    pub numbers: Numbers,
}

/// Numbers of the descriptors that the monitor inherits.
pub struct Numbers {
    /// Roots of the shares, in the plan's order.
    pub shares: Vec<RawFd>,
    /// Disks in the plan's order, and whether each is read-only.
    pub disks: Vec<(RawFd, bool)>,
    /// Sockets of the host, in the plan's order.
    pub sockets: Vec<RawFd>,
    /// Published ports, in the plan's order.
    pub ports: Vec<RawFd>,
    /// What leads to passt(1).
    pub uplink: Option<RawFd>,
    /// The listening control socket.
    pub control: RawFd,
    /// The monitor's end of the ready pipe.
    pub ready: RawFd,
    /// Slave of the container's terminal.
    pub terminal: Option<RawFd>,
    /// What its [`VmTarget`] names: KVM, or a connection to another container's monitor.
    pub home: RawFd,
}

impl Pipes {
    /// Gives the go signal.
    pub fn go(&self, plan: &Plan, home: VmTarget, cgroups: Vec<PathBuf>, timeline: Timeline) -> anyhow::Result<()> {
        let share = |(plan, &fd): (&plan::SharePlan, &RawFd)| ShareFd {
            name: plan.name.clone(),
            read_only: plan.read_only,
            cache: plan.cache,
            fd,
        };
        let disk = |(plan, &(fd, read_only)): (&plan::DiskPlan, &(RawFd, bool))| DiskFd {
            serial: plan.serial.clone(),
            read_only,
            fd,
        };
        let port = |(plan, &fd): (&plan::PortPlan, &RawFd)| PortFd {
            container: plan.container,
            datagrams: plan.datagrams,
            fd,
        };
        let setup = Setup {
            id: plan.container.container_id.clone(),
            home,
            container: plan.container.write_to_bytes()?,
            shares: plan.shares.iter().zip(&self.numbers.shares).map(share).collect(),
            disks: plan.disks.iter().zip(&self.numbers.disks).map(disk).collect(),
            sockets: self.numbers.sockets.clone(),
            ports: plan.ports.iter().zip(&self.numbers.ports).map(port).collect(),
            uplink: self.numbers.uplink,
            cgroups,
            control: self.numbers.control,
            ready: self.numbers.ready,
            terminal: self.numbers.terminal,
            log: log::settings(),
            timeline,
            print_timeline: plan.timeline || log::settings().debug,
        };
        let bytes = control::encode(&setup)?;
        // A monitor that died tells why through its exit status, not through this pipe.
        let _ = (&self.setup).write_all(&bytes);
        Ok(())
    }

    /// Waits for the answer; when there is none, the way the monitor ended says why.
    pub fn answer(mut self, child: Option<&mut Process>, id: &str) -> anyhow::Result<()> {
        drop(self.setup);
        let mut text = Vec::new();
        self.ready.read_to_end(&mut text).context("read the monitor's answer")?;
        if text.is_empty() {
            let status = child.map(Process::wait).transpose().context("wait for the monitor")?;
            let how = status.map_or_else(String::new, |status| format!(" ({status})"));
            bail!("the monitor of container {id} ended before the container was created{how}");
        }
        match serde_json::from_slice(&text).context("the monitor's answer")? {
            Answer::Ready => Ok(()),
            Answer::Failed(why) => bail!("{why}"),
        }
    }
}

/// A pipe of which nothing is inherited by accident.
pub fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")
}

/// Takes over a descriptor that the parent left open for us under this number.
///
/// # Safety
/// The number must have been handed to this process for this purpose, and be taken only once.
pub unsafe fn inherited(fd: RawFd) -> anyhow::Result<OwnedFd> {
    if fd <= 2 {
        bail!("descriptor {fd} was not inherited");
    }
    // SAFETY: the descriptor is only looked at; a number that is not open gives EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let set = rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC);
    set.with_context(|| format!("descriptor {fd} was not inherited"))?;
    // SAFETY: it is open, and by this function's contract nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
