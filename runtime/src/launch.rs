//! From a bundle to a created container: the host's side of `create` and `run`.
//!
//! ```text
//!  plan (no effect) → reserve id → cgroup → shares → spawn monitor → hooks → set-up down the pipe
//!      → Ready or Failed up the pipe → state.json, pid-file
//! ```
//!
//! Every effect is recorded in [`Launch`] as it happens; dropping a `Launch` that was not finished
//! undoes them all.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use crate::artifacts;
use crate::bundle::{self, Bundle};
use crate::cli::{CreateArgs, Global};
use crate::console::{self, Pty};
use crate::handover::{MachineSetup, Numbers, Pipes, VmTarget, pipe};
use crate::host::cgroup::{self, HostCgroup};
use crate::host::facts;
use crate::host::hooks::{self, Kind};
use crate::plan::{self, CgroupPlan, NetworkPlan, Plan};
use crate::spawn::{self, Process};
use crate::state::{Dir, Lock, State, Status};
use crate::timeline::Timeline;
use crate::{control, disks, log, network, passt, publish, sandbox, shares, sockets, state};

/// Where a container's terminal goes.
#[derive(Clone, Copy, Debug)]
pub enum Terminal<'a> {
    /// The caller leaves: to a console socket, which must be given when the bundle wants a terminal.
    Detached(Option<&'a Path>),
    /// The caller stays and copies between the master and its own terminal.
    Foreground,
}

/// A container being created.
pub struct Launch {
    /// Its directory.
    pub dir: Dir,
    /// Its state.
    pub state: State,
    /// Master of its terminal, when the caller copies it.
    pub master: Option<OwnedFd>,
    child: Option<Process>,
    finished: bool,
    lock: Option<Lock>,
}

/// Creates the container of a bundle; its process waits for `start`.
pub fn create(global: &Global, args: &CreateArgs, terminal: Terminal) -> anyhow::Result<Launch> {
    let mut timeline = Timeline::new();
    let (bundle, plan) = make_plan(global, args)?;
    let destination = Destination::of(&plan, &global.root())?;
    check_terminal(&plan, terminal)?;
    timeline.mark("plan");
    let mut launch = Launch::reserve(&global.root(), &bundle, &plan)?;
    let pipes = launch.spawn(&plan, terminal, &destination)?;
    timeline.mark("monitor spawned");
    launch.run_hooks()?;
    timeline.mark("hooks");
    let cgroups = launch.state.cgroup.as_ref().map(HostCgroup::paths).unwrap_or_default();
    pipes.go(&plan, destination.home(&plan), cgroups, timeline)?;
    pipes.answer(launch.child.as_mut(), &args.id)?;
    match &destination {
        Destination::Machine { .. } => launch.limit(&plan)?,
        Destination::Sandbox { id, .. } => sandbox::share(&global.root(), id)?,
    }
    launch.finish(args.pid_file.as_deref())?;
    Ok(launch)
}

fn make_plan(global: &Global, args: &CreateArgs) -> anyhow::Result<(Bundle, Plan)> {
    plan::validate_id(&args.id)?;
    if args.preserve_fds > 0 {
        bail!("--preserve-fds {}: open descriptors of the host cannot be passed into a VM", args.preserve_fds);
    }
    let bundle = bundle::load(&args.bundle)?;
    let options = options(global, args);
    let facts = facts::gather(&bundle, &global.root())?;
    let plan = plan::plan(&bundle, &facts, &options)?;
    plan.notes.iter().for_each(|note| log::debug(note));
    Ok((bundle, plan))
}

fn options(global: &Global, args: &CreateArgs) -> plan::Options {
    plan::Options {
        id: args.id.clone(),
        systemd_cgroup: global.systemd_cgroup,
        user_network: args.net.is_some(),
        publish: args.publish.clone(),
        allow_net_annotations: global.allow_net_annotations,
        resolv_conf: (args.net.is_some() || global.allow_net_annotations).then(read_resolv_conf).unwrap_or_default(),
    }
}

/// Without one, or with one that cannot be read, there are no settings to be taken from it.
fn read_resolv_conf() -> String {
    std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
}

fn check_terminal(plan: &Plan, terminal: Terminal) -> anyhow::Result<()> {
    let wanted = plan.container.process.terminal;
    match terminal {
        Terminal::Detached(None) if wanted => {
            bail!("cannot allocate tty if runvm will detach without setting console socket")
        }
        Terminal::Detached(Some(_)) if !wanted => {
            bail!("cannot use console socket if runvm will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

/// Where the container goes, and what is open for that.
enum Destination {
    /// Into a VM that is made of these.
    Machine { kernel: artifacts::Image, initrd: PathBuf, kvm: OwnedFd },
    /// Into that of another container.
    Sandbox { id: String, monitor: OwnedFd },
}

impl Destination {
    fn of(plan: &Plan, root: &Path) -> anyhow::Result<Self> {
        if let Some(id) = &plan.sandbox {
            return Ok(Self::Sandbox { id: id.clone(), monitor: sandbox::connect(root, id)?.into() });
        }
        let artifacts = artifacts::find()?;
        let kernel = artifacts.kernel(plan.kernel.as_deref())?;
        kernel.losses().iter().for_each(|losses| log::warning(losses));
        Ok(Self::Machine { kernel, initrd: artifacts.initrd, kvm: vmm::open_kvm()? })
    }

    fn descriptor(&self) -> RawFd {
        match self {
            Self::Machine { kvm: fd, .. } | Self::Sandbox { monitor: fd, .. } => fd.as_raw_fd(),
        }
    }

    fn home(&self, plan: &Plan) -> VmTarget {
        match self {
            Self::Machine { kernel, initrd, kvm } => VmTarget::Own(MachineSetup {
                plan: plan.machine.clone(),
                kernel: kernel.path.clone(),
                initrd: initrd.clone(),
                hotplug: kernel.hotplug(),
                network_stays: matches!(plan.network, NetworkPlan::Path(_)),
                kvm: kvm.as_raw_fd(),
            }),
            Self::Sandbox { monitor, .. } => VmTarget::Joined(monitor.as_raw_fd()),
        }
    }
}

impl Launch {
    fn reserve(root: &Path, bundle: &Bundle, plan: &Plan) -> anyhow::Result<Self> {
        let id = &plan.container.container_id;
        let dir = Dir::reserve(root, id)?;
        let lock = dir.lock(Duration::from_secs(1))?;
        let state = new_state(bundle, plan);
        let mut launch = Self { dir, state, master: None, child: None, finished: false, lock: Some(lock) };
        cgroup::check(&plan.cgroup)?;
        if plan.cgroup.unit.is_none() {
            launch.state.cgroup = Some(cgroup::create(&plan.cgroup)?);
        }
        launch.dir.save(&launch.state)?;
        Ok(launch)
    }

    fn spawn(&mut self, plan: &Plan, terminal: Terminal, destination: &Destination) -> anyhow::Result<Pipes> {
        let shares = shares::open(&plan.shares)?;
        let disks = disks::open(&plan.disks)?;
        let sockets = sockets::open(&plan.sockets)?;
        let ports = publish::open(&plan.ports)?;
        let uplink = plan.user_network.then(passt::pair).transpose()?;
        let listener = control::listen(self.dir.path())?;
        let (setup_read, setup_write) = pipe()?;
        let (ready_read, ready_write) = pipe()?;
        let pty = open_terminal(plan, terminal)?;
        let numbers = Numbers {
            shares: shares.iter().map(AsRawFd::as_raw_fd).collect(),
            disks: disks.iter().map(|disk| (disk.file.as_raw_fd(), disk.read_only)).collect(),
            sockets: sockets.iter().map(AsRawFd::as_raw_fd).collect(),
            ports: ports.iter().map(AsRawFd::as_raw_fd).collect(),
            uplink: uplink.as_ref().map(|(ours, _)| ours.as_raw_fd()),
            control: listener.as_raw_fd(),
            ready: ready_write.as_raw_fd(),
            terminal: pty.as_ref().map(|pty| pty.slave.as_raw_fd()),
            home: destination.descriptor(),
        };
        let cgroup = self.state.cgroup.as_ref().and_then(HostCgroup::open);
        let child = spawn::monitor(plan, setup_read.as_raw_fd(), &numbers, cgroup.as_ref().map(AsFd::as_fd))?;
        self.adopt(child, &plan.cgroup)?;
        if let Some((_, theirs)) = uplink {
            passt::start(theirs, self.state.cgroup.as_ref())?;
        }
        if matches!(terminal, Terminal::Foreground) {
            self.master = pty.map(|pty| pty.master);
        }
        Ok(Pipes { setup: setup_write.into(), ready: ready_read.into(), numbers })
    }

    /// From here on the monitor is ours to kill, and the state says which process it is.
    fn adopt(&mut self, child: Process, plan: &CgroupPlan) -> anyhow::Result<()> {
        let (pid, placed) = (child.id(), child.placed);
        self.child = Some(child);
        self.state.pid = pid;
        self.state.pid_start = state::process_start(pid).unwrap_or_default();
        match (&self.state.cgroup, &plan.unit) {
            (Some(cgroup), _) if !placed => cgroup.add(pid)?,
            // systemd starts no scope without a process in it.
            (None, Some(unit)) => self.state.cgroup = Some(cgroup::create_unit(unit, plan, pid)?),
            _ => {}
        }
        self.dir.save(&self.state)
    }

    fn run_hooks(&self) -> anyhow::Result<()> {
        let state = self.state.oci(Status::Creating);
        hooks::run(Kind::Prestart, &self.state.hooks, &state)?;
        hooks::run(Kind::CreateRuntime, &self.state.hooks, &state)
    }

    /// The guest has booted at full speed; now it gets no more than the bundle gives it.
    fn limit(&self, plan: &Plan) -> anyhow::Result<()> {
        self.state.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.limit(&plan.limits))
    }

    fn finish(&mut self, pid_file: Option<&Path>) -> anyhow::Result<()> {
        self.state.complete = true;
        self.dir.save(&self.state)?;
        if let Some(path) = pid_file {
            write_pid_file(path, self.state.pid)?;
        }
        self.finished = true;
        Ok(())
    }

    /// Lets other commands in. The caller stays and has nothing to change until the container's end.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Waits for the monitor's end; its exit code is the container's.
    pub fn wait(&mut self) -> anyhow::Result<Option<u8>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        Ok(child.try_wait().context("wait for the monitor")?.map(exit_code))
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        sandbox::left(&self.dir, &self.state);
        network::clean_after(&self.state);
        let undone = self.state.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.remove());
        for error in [undone, self.dir.remove()].into_iter().filter_map(Result::err) {
            log::warning(&format!("clean up after a failed create: {error:#}"));
        }
    }
}

fn new_state(bundle: &Bundle, plan: &Plan) -> State {
    let uid = rustix::process::getuid();
    let network = network_to_clean(plan);
    State {
        oci_version: bundle.spec.version().clone(),
        id: plan.container.container_id.clone(),
        complete: false,
        pid: 0,
        pid_start: 0,
        bundle: bundle.dir.clone(),
        rootfs: plan.shares.first().map(|share| share.source.clone()).unwrap_or_default(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        owner: user_name(uid.as_raw()),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        cgroup: None,
        memory_mib: plan.machine.memory_mib,
        vcpus: plan.machine.vcpus,
        sandbox: plan.sandbox.clone(),
        ports: network.as_deref().and_then(network::ports),
        network,
        shared: false,
        hooks: plan.hooks.clone(),
    }
}

fn is_shared_network(namespace: &protocol::Namespace) -> bool {
    namespace.kind == protocol::NamespaceKind::NETWORK.into() && !namespace.container_id.is_empty()
}

/// A namespace that outlives the container, and is not another container's.
fn network_to_clean(plan: &Plan) -> Option<PathBuf> {
    match (&plan.network, plan.container.namespaces.iter().any(is_shared_network)) {
        (NetworkPlan::Path(path), false) => Some(path.clone()),
        _ => None,
    }
}

/// The user's name by /etc/passwd, else the number. Not by libc, whose static form has no name services.
fn user_name(uid: u32) -> String {
    let number = uid.to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    });
    named.unwrap_or(number)
}

fn open_terminal(plan: &Plan, terminal: Terminal) -> anyhow::Result<Option<Pty>> {
    if !plan.container.process.terminal {
        return Ok(None);
    }
    let pty = console::open()?;
    match terminal {
        Terminal::Detached(Some(socket)) => console::send_master(socket, &pty)?,
        Terminal::Detached(None) => {}
        Terminal::Foreground => console::copy_size(rustix::stdio::stdin(), &pty.master),
    }
    Ok(Some(pty))
}

/// Writes a pid-file whole: temporary file, then rename, as runc does.
pub fn write_pid_file(path: &Path, pid: i32) -> anyhow::Result<()> {
    let name = path.file_name().with_context(|| format!("pid-file {} has no name", path.display()))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    let write = || {
        std::fs::write(&temporary, pid.to_string())?;
        std::fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("write pid-file {}", path.display()))
}

/// An exit status as a shell says it: 128 + n for signal n.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
