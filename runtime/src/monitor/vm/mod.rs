//! The container's VM, from its set-up to a connected agent.

pub mod agent_client;
pub mod clock;
pub mod file_systems;
pub mod nics;
pub mod request_gate;
mod responses;
pub mod share_policies;
mod timer;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use protocol::{CreateContainerRequest, Hello, READY_PORT, RPC_PORT};
use tokio::io::unix::AsyncFd;
use vmm::virtio::Device;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::block::Block;
use vmm::virtio::rng::Rng;
use vmm::virtio::vsock::{self, Handle, Listener};
use vmm::{Machine, MachineSpec, Running};

use self::agent_client::{Agent, ENTROPY};
use self::file_systems::{FileSystems, MakesNodes, Placed, Places};
use self::nics::Nics;
use self::request_gate::RequestGate;
use self::timer::Timer;
use crate::host::disks::Disk;
use crate::log::{self, Level};
use crate::monitor::confine;
use crate::parcel::VmSetup;
use crate::plan::{OWN_DEVICES, Setting};
use crate::timeline::Timeline;

/// A guest that has not reported after this long never will. Generous: a host may be overloaded.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// A running VM.
pub struct Vm {
    /// The virtual CPUs, and who runs them.
    pub running: Running,
    ended: AsyncFd<OwnedFd>,
    /// When the guest should be told the time; or why nobody knows that.
    clock: anyhow::Result<Timer>,
    /// Opens streams to the guest.
    pub vsock: Handle,
    /// Where the agent reports; gone once it has, so that the guest can open no stream.
    reports: RefCell<Option<Reports>>,
    container_id: String,
    timeline: RefCell<Timeline>,
    /// Adds, changes and removes shares.
    pub files: FileSystems,
    /// The first of its devices in reserve, among those that are hot-plugged and among all.
    first_in_reserve: [usize; 2],
    /// The NICs of all containers.
    pub nics: Nics,
    /// The gate that requests to the guest pass.
    pub gate: RequestGate,
    /// Settings of the host's kernel that the guest takes over.
    settings: Vec<Setting>,
}

/// What a VM has of the host.
pub struct Parts {
    /// Directories and files.
    pub shares: Vec<Placed>,
    /// Where shares of containers get their places.
    pub places: Places,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Who makes device nodes.
    pub nodes: MakesNodes,
}

/// A VM that is built and has no threads yet.
pub struct BuiltVm {
    machine: Machine,
    vsock: Handle,
    listener: Listener,
    container_id: String,
    timeline: Timeline,
    files: FileSystems,
    first_in_reserve: [usize; 2],
    nics: Nics,
    settings: Vec<Setting>,
}

impl BuiltVm {
    /// Builds the VM. From then on nothing of the host has to be opened for it.
    pub fn new(mut setup: VmSetup, container_id: String, parts: Parts, mut timeline: Timeline) -> anyhow::Result<Self> {
        let settings = std::mem::take(&mut setup.plan.settings);
        let Parts { shares, places, disks, nodes } = parts;
        timeline.mark("parcel unpacked");
        let (vsock_device, vsock) = vsock::new(u64::from(protocol::GUEST_CID)).context("make the vsock device")?;
        let listener = vsock.listen(READY_PORT).context("listen for the guest")?;
        let (first, more, files) = FileSystems::new(shares, places, &nodes)?;
        let own: [Box<dyn Device>; OWN_DEVICES] =
            [Box::new(vsock_device), Box::new(first), Box::new(Rng), Box::new(Balloon)];
        let mut devices: Vec<Box<dyn Device>> = own.into_iter().chain(blocks(disks)?).collect();
        let (mut hotplugged, nics) = Nics::new(devices.len(), setup.hotplug)?;
        if !nics.hotplugged {
            devices.append(&mut hotplugged);
        }
        let first_in_reserve = [hotplugged.len(), devices.len() + hotplugged.len()];
        hotplugged.extend(more.into_iter().map(|device| Box::new(device) as Box<dyn Device>));
        let machine = Machine::build(machine_spec(setup)?, devices, hotplugged)?;
        machine.on_fault(|fault| log::repeated(Level::Error, &format!("a device of the VM stopped: {fault}")));
        Ok(Self { machine, vsock, listener, container_id, timeline, files, first_in_reserve, nics, settings })
    }

    /// Starts the VM. Needs a running tokio runtime.
    pub fn start(self) -> anyhow::Result<Vm> {
        let Self { machine, vsock, listener, container_id, mut timeline, files, first_in_reserve, nics, settings } =
            self;
        let running = machine.start()?;
        for (what, at) in running.timeline().moments() {
            timeline.mark_at(what, u64::try_from(at.as_micros()).unwrap_or(u64::MAX));
        }
        let ended = watch(running.ended().try_clone_to_owned()?)?;
        let reports = RefCell::new(Some(Reports { ready: watch(waiting(&listener)?)?, listener }));
        let (timeline, gate) = (RefCell::new(timeline), RequestGate::new());
        let clock = Timer::new();
        Ok(Vm {
            running,
            ended,
            clock,
            vsock,
            reports,
            container_id,
            timeline,
            files,
            first_in_reserve,
            nics,
            gate,
            settings,
        })
    }
}

impl Vm {
    /// Waits for the agent's report and connects to it.
    pub async fn agent(&self) -> anyhow::Result<Agent> {
        let started = crate::timeline::now_us();
        let hello = self.or_death(self.hello()).await?;
        if hello.version != protocol::VERSION {
            let (theirs, ours) = (hello.version, protocol::VERSION);
            bail!("the initrd's agent speaks protocol {theirs}, this runvm {ours}: install both from one build");
        }
        // The guest counts from where its kernel began; put that on our clock by the later end.
        let begin = crate::timeline::now_us().saturating_sub(u64::from(hello.ready_us)).max(started);
        self.timeline.borrow_mut().mark_at("kernel up to the agent", begin + u64::from(hello.main_us));
        self.timeline.borrow_mut().mark("agent ready");
        let agent = Agent::new(self.vsock.connect(RPC_PORT)?, &self.container_id)?;
        self.or_death(agent.configure(ENTROPY, &self.settings)).await?;
        self.timeline.borrow_mut().mark("agent configured");
        Ok(agent)
    }

    /// Adds a moment to the timeline.
    pub fn mark(&self, what: &str) {
        self.timeline.borrow_mut().mark(what);
    }

    /// Where the time went so far, and how often the guest asked the host for what.
    pub fn timeline(&self) -> String {
        let list = |counts: Vec<(&'static str, u64)>| {
            let counts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
            counts.join(", ")
        };
        let (requests, exits) = (list(self.files.requests()), list(self.running.exits().each()));
        let frames = list(self.nics.frames().to_vec());
        let begin = self.timeline.borrow().summary();
        format!("{begin}; FUSE requests: {requests}; exits to user space: {exits}; frames: {frames}")
    }

    /// Tells the guest, in a request for a container, of the devices that the container's shares are on, by their names.
    pub fn describe_files(
        &self,
        request: &mut CreateContainerRequest,
        devices: &BTreeMap<String, u32>,
    ) -> anyhow::Result<()> {
        self.files.describe(request, devices, self.first_in_reserve, &self.running)
    }

    /// Returns when the VM has stopped by itself.
    pub async fn ended(&self) {
        let _ = self.ended.readable().await;
    }

    /// Waits for something the guest does, or says why it never will.
    pub async fn or_death<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.ended() => Err(self.cause_of_death()),
        }
    }

    /// [`Vm::or_death`] for what takes the guest a moment: the VM is not paused meanwhile.
    pub async fn ask<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let _request = self.gate.enter().await;
        self.or_death(work).await
    }

    /// Why the VM has stopped, with the guest kernel's last words.
    pub fn cause_of_death(&self) -> anyhow::Error {
        let exit = self.running.exit().map_or_else(|| "unknown reason".to_owned(), |exit| exit.to_string());
        match self.running.last_words() {
            Some(words) => anyhow!("the guest stopped ({exit}); its kernel's last words: {}", words.trim()),
            None => anyhow!("the guest stopped ({exit})"),
        }
    }

    async fn hello(&self) -> anyhow::Result<Hello> {
        let reports = self.reports.take().context("the guest has reported already")?;
        let report = tokio::time::timeout(BOOT_PATIENCE, reports.first()).await;
        report.map_err(|_| anyhow!("the guest did not report within {} s of its start", BOOT_PATIENCE.as_secs()))?
    }
}

/// The one port of the host that the guest may connect to, as long as this is there.
struct Reports {
    ready: AsyncFd<OwnedFd>,
    listener: Listener,
}

impl Reports {
    /// Waits for the first report. Whoever connects later is refused.
    async fn first(self) -> anyhow::Result<Hello> {
        let stream = loop {
            let mut guard = self.ready.readable().await?;
            match guard.try_io(|_| self.listener.accept()) {
                Ok(accepted) => break accepted.context("take the guest's report")?,
                Err(_would_block) => {}
            }
        };
        drop(self);
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut bytes = [0; Hello::SIZE];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut bytes).await.context("read the guest's report")?;
        Hello::from_bytes(bytes).context("what the guest reported is no hello of an agent")
    }
}

fn machine_spec(setup: VmSetup) -> anyhow::Result<MachineSpec> {
    Ok(MachineSpec {
        kvm: setup.kvm.into_owned()?,
        memory_mib: setup.plan.memory_mib,
        vcpus: setup.plan.vcpus,
        kernel: setup.kernel,
        initrd: setup.initrd,
        cmdline: setup.plan.cmdline,
        console: console()?,
        nested: setup.plan.nested,
        on_thread: confine::on_thread(),
    })
}

fn blocks(disks: Vec<Disk>) -> anyhow::Result<Vec<Box<dyn Device>>> {
    let block = |disk: Disk| -> anyhow::Result<Box<dyn Device>> {
        let serial = disk.serial.clone();
        Ok(Box::new(Block::new(disk.into_device()?).with_context(|| format!("make block device {serial}"))?))
    };
    disks.into_iter().map(block).collect()
}

/// A descriptor that says when a stream waits; from now on `accept` does not wait for one.
fn waiting(listener: &Listener) -> std::io::Result<OwnedFd> {
    // SAFETY: the listener is borrowed for as long as this descriptor is.
    let fd = unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) };
    rustix::io::ioctl_fionbio(fd, true)?;
    fd.try_clone_to_owned()
}

fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps the same descriptor open until the AsyncFd, which now owns it, is dropped.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// With `--debug` the guest's serial console goes where the log goes.
fn console() -> anyhow::Result<Option<OwnedFd>> {
    if !log::settings().debug {
        return Ok(None);
    }
    let fd = match log::file() {
        Some(file) => file.as_fd().try_clone_to_owned()?,
        None => std::io::stderr().as_fd().try_clone_to_owned()?,
    };
    Ok(Some(fd))
}
