//! The parcel: what a container consists of on the host.
//!
//! ```text
//!  create, run                                                    monitor
//!  plan ─▶ open ─▶ Label, Parcel ══ one socket (`ipc`) ═════════▶ Label, Parcel ─▶ VM ─▶ create the container
//!                                         │
//!                                         │                       join proxy          monitor of the VM
//!                                         └═════════════════════▶ Label, frame ═════▶ Parcel ─▶ create the container
//! ```
//!
//! The command packs, the monitor of the VM unpacks, each resource with its open file. The [`Label`] says where the parcel
//! goes and what the container's process on the host needs for itself; each process on the way reads it. The parcel itself
//! is for the monitor of the VM alone: a join proxy passes it on unread, as the frame that it came in.
//!
//! # Adding a resource
//!
//! 1. `plan`: from the bundle to what has to be opened.
//! 2. The opener, beside `shares` or `disks`: it opens what the plan names and gives an entry, a struct with a
//!    [`Descriptor`] and what the monitor has to know of it. The entry becomes a field of [`Parcel`], and [`Parcel::pack`]
//!    calls the opener.
//! 3. Its consumer in `monitor`.
//!
//! Nothing in between knows of resources: neither `ipc` nor `spawn`, nor the join proxy. The log file, once a path that
//! every process opened for itself, became a descriptor in the [`Label`] by a change of three files: its opener and entry
//! (`log`: 30 lines in, 37 out), and where the monitor takes it and uses it (`monitor`: 2 lines, `monitor/vm`: 1 line).

use std::path::PathBuf;

use anyhow::Context;
use protocol::{CreateContainerRequest, Mount};
use serde::{Deserialize, Serialize};

use crate::host::disks::{self, Disk};
use crate::host::publish::{self, Port};
use crate::host::requirements::Confinement;
use crate::host::shares::{self, Opened, Share};
use crate::host::sockets;
use crate::ipc::{self, Descriptor};
use crate::log;
use crate::plan::{FileRights, MachinePlan, Plan};
use crate::streams::Streams;
use crate::timeline::Timeline;

/// Everything that a container has of the host.
#[derive(Serialize, Deserialize)]
pub struct Parcel {
    /// What the agent is asked; the ids of the streams are left 0.
    #[serde(with = "ipc::protobuf")]
    pub container: CreateContainerRequest,
    /// Directories and files; the root file system first.
    pub shares: Vec<Share>,
    /// The mount namespace of shares that hear of the host's later mounts; to be kept until the container's end.
    pub namespace: Option<Descriptor>,
    /// What its processes may do to files of the shares.
    pub file_rights: FileRights,
    /// Disks, only for a VM of its own.
    pub disks: Vec<Disk>,
    /// Sockets that the container may connect to, in the order of their numbers.
    pub sockets: Vec<Descriptor>,
    /// Ports of the host that lead to the container.
    pub ports: Vec<Port>,
    /// The connection to the network helper, for a container with a network namespace of its own.
    pub network: Option<Descriptor>,
    /// The connection to passt(1), with `--net user`.
    pub user_network: Option<Descriptor>,
    /// The listening control socket.
    pub control: Descriptor,
    /// What the container's process reads and writes.
    pub streams: Streams,
}

/// Where a parcel goes, and what the container's process on the host needs for itself.
#[derive(Serialize, Deserialize)]
pub struct Label {
    /// The VM that the container goes into.
    pub target: VmTarget,
    /// Settings of logging.
    pub log: log::Settings,
    /// The container's cgroups on the host.
    pub cgroups: Vec<PathBuf>,
    /// What the process's own mount namespace shows.
    pub mounts: Mounts,
    /// The slave of the container's terminal.
    pub terminal: Option<Descriptor>,
    /// What the command did so far.
    pub timeline: Timeline,
    /// Whether to print the timeline when the container ends.
    pub print_timeline: bool,
    /// Whether the container may make device nodes on the host's file systems.
    pub makes_nodes: bool,
    /// What confines the process.
    pub confinement: Confinement,
}

/// A virtual machine that a container can go into.
#[derive(Serialize, Deserialize)]
pub enum VmTarget {
    /// One of its own, made for it.
    Own(VmSetup),
    /// The one that another container was made with: a connection to its monitor.
    Joined(Descriptor),
}

/// How a VM is made.
#[derive(Serialize, Deserialize)]
pub struct VmSetup {
    /// Size and command line of the VM.
    pub plan: MachinePlan,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// Whether the kernel can be told of devices later.
    pub hotplug: bool,
    /// Whether the network namespace was there before the container.
    pub network_stays: bool,
    /// /dev/kvm. Cgroups of engines may keep a process in them from opening it.
    pub kvm: Descriptor,
}

/// What the mount namespace of the container's process on the host shows: the container's files, at its paths.
#[derive(Serialize, Deserialize)]
pub struct Mounts {
    /// The root file system.
    pub root: Descriptor,
    /// What is mounted in it.
    pub volumes: Vec<VolumeMount>,
}

/// A mounted share.
#[derive(Serialize, Deserialize)]
pub struct VolumeMount {
    /// Path of the mount in the container.
    pub destination: String,
    /// Root of the share.
    pub root: Descriptor,
    /// Whether mounts below it are part of it.
    pub recursive: bool,
    /// Whether it is read-only.
    pub read_only: bool,
}

impl Parcel {
    /// Opens everything that a container is to have of the host's, but for its network.
    ///
    /// # Errors
    /// Names the first thing that cannot be opened.
    pub fn pack(plan: &Plan, control: Descriptor, streams: Streams) -> anyhow::Result<Self> {
        let Opened { shares, namespace } = shares::open(&plan.shares, plan.sandbox.is_some())?;
        Ok(Self {
            container: plan.container.clone(),
            shares,
            namespace,
            file_rights: plan.file_rights.clone(),
            disks: disks::open(&plan.disks)?,
            sockets: sockets::open(&plan.sockets)?,
            ports: publish::open(&plan.ports)?,
            network: None,
            user_network: None,
            control,
            streams,
        })
    }

    /// Whether the guest may make device nodes in some share, at some time.
    pub fn makes_nodes(&self) -> bool {
        let policies = |share: &Share| {
            [shares::setup_policy(share.role, &self.file_rights), shares::policy(share.role, &self.file_rights)]
        };
        self.shares.iter().flat_map(policies).any(|policy| policy.device_nodes)
    }

    /// Whether the container comes without what makes device nodes, and an exec may want some all the same.
    pub fn leaves_nodes_to_exec(&self) -> bool {
        !self.makes_nodes() && self.file_rights.may_gain_device_nodes()
    }

    /// Part of the parcel that the container's process on the host shows.
    ///
    /// # Errors
    /// There is no root file system.
    pub fn mounts(&self) -> anyhow::Result<Mounts> {
        let root = self.shares.first().context("a container without a root file system")?.in_place();
        let volume = |mount: &Mount| {
            let share = self
                .shares
                .iter()
                .find(|share| !mount.share.is_empty() && share.common.place(&share.name) == mount.share)?;
            Some(VolumeMount {
                destination: mount.destination.clone(),
                root: share.in_place(),
                recursive: mount.recursive,
                read_only: share.read_only || mount.flags & libc::MS_RDONLY != 0,
            })
        };
        Ok(Mounts { root, volumes: self.container.mounts.iter().filter_map(volume).collect() })
    }
}
