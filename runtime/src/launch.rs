//! From a bundle to a created container: the host's side of `create` and `run`.
//!
//! ```text
//!  plan (no effect) → reserve id → cgroup → pack the parcel → spawn monitor → hooks → hand the parcel over
//!      → Started or Failed → state.json, pid-file
//! ```
//!
//! Every effect is recorded in [`Launch`] as it happens; dropping a `Launch` that was not finished
//! undoes them all.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use crate::artifacts;
use crate::bundle::{self, Bundle};
use crate::cli::{CreateArgs, Global};
use crate::control::{self, Reply};
use crate::host::cgroup::{self, HostCgroup};
use crate::host::console::{self, Pty};
use crate::host::facts;
use crate::host::hooks::{self, Kind};
use crate::host::monitor_namespaces;
use crate::host::network_helper;
use crate::host::passt;
use crate::host::requirements::{self, Confinement, Requirement};
use crate::host::spawn::{self, Place, Process};
use crate::host::users;
use crate::ipc::{self, Frame};
use crate::network::helper::Setup;
use crate::parcel::{Label, Parcel, VmSetup, VmTarget};
use crate::plan::{self, CgroupPlan, NetworkPlan, Plan};
use crate::state::{Dir, Lock, State, Status};
use crate::streams::Streams;
use crate::timeline::Timeline;
use crate::{directory, log, network, sandbox, state};

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
    network_helper: Option<Process>,
    finished: bool,
    lock: Option<Lock>,
    confinement: Confinement,
    /// Whether the caller permits to go on where the host lacks what confines the container's processes on it.
    insecure: bool,
}

/// Creates the container of a bundle; its process waits for `start`.
pub fn create(global: &Global, args: &CreateArgs, terminal: Terminal) -> anyhow::Result<Launch> {
    let mut timeline = Timeline::new();
    let (bundle, plan) = make_plan(global, args)?;
    let target = target(&plan, &global.root())?;
    check_terminal(&plan, terminal)?;
    timeline.mark("plan");
    let mut launch = Launch::reserve(global, &bundle, &plan)?;
    let (parcel, monitor) = launch.spawn(&plan, terminal)?;
    timeline.mark("monitor spawned");
    launch.run_hooks()?;
    timeline.mark("hooks");
    let label = launch.label(&plan, target, &parcel, timeline)?;
    launch.hand_over(label, parcel, &monitor)?;
    match &plan.sandbox {
        // The guest has booted at full speed; now it gets no more than the bundle gives it.
        None => launch.state.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.limit(&plan.limits))?,
        Some(id) => sandbox::share(&global.root(), id)?,
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
    let allowed_annotations = global.allowed_annotations();
    let wants_resolver = args.net.is_some() || !allowed_annotations.is_empty();
    plan::Options {
        id: args.id.clone(),
        systemd_cgroup: global.systemd_cgroup,
        user_network: args.net.is_some(),
        publish: args.publish.clone(),
        allowed_annotations,
        // Without one, or with one that cannot be read, there are no settings to be taken from it.
        resolv_conf: wants_resolver
            .then(|| std::fs::read_to_string("/etc/resolv.conf").ok())
            .flatten()
            .unwrap_or_default(),
    }
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

/// The VM that the container goes into, with what is to be open for that.
fn target(plan: &Plan, root: &Path) -> anyhow::Result<VmTarget> {
    if let Some(id) = &plan.sandbox {
        return Ok(VmTarget::Joined(sandbox::connect(root, id)?.into()));
    }
    let artifacts = artifacts::find()?;
    let kernel = artifacts.kernel(plan.kernel.as_deref())?;
    kernel.losses().iter().for_each(|losses| log::warning(losses));
    Ok(VmTarget::Own(VmSetup {
        plan: plan.machine.clone(),
        hotplug: kernel.hotplug(),
        kernel: kernel.path,
        initrd: artifacts.initrd,
        network_stays: matches!(plan.network, NetworkPlan::Path(_)),
        kvm: vmm::open_kvm()?.into(),
    }))
}

impl Launch {
    fn reserve(global: &Global, bundle: &Bundle, plan: &Plan) -> anyhow::Result<Self> {
        cgroup::check(&plan.cgroup)?;
        let insecure = global.insecure;
        let confinement = Confinement::of_host(insecure)?;
        let dir = Dir::reserve(&global.root(), &plan.container.container_id)?;
        let lock = Some(dir.lock(Duration::from_secs(1))?);
        let state = new_state(bundle, plan);
        let (master, child, network_helper, finished) = (None, None, None, false);
        let mut launch = Self { dir, state, master, child, network_helper, finished, lock, confinement, insecure };
        if plan.cgroup.unit.is_none() {
            launch.take_cgroup(cgroup::create(&plan.cgroup)?)?;
        }
        launch.dir.save(&launch.state)?;
        Ok(launch)
    }

    /// Has the processes in the cgroup open no devices but their few.
    fn take_cgroup(&mut self, cgroup: HostCgroup) -> anyhow::Result<()> {
        let filtered = self.state.cgroup.insert(cgroup).filter_devices();
        requirements::insist(filtered, self.insecure).map(drop)
    }

    /// Packs the parcel and starts the monitor, which waits for it at the other end of the socket.
    fn spawn(&mut self, plan: &Plan, terminal: Terminal) -> anyhow::Result<(Parcel, UnixStream)> {
        let (master, streams) = open_streams(plan, terminal)?;
        let mut parcel = Parcel::pack(plan, control::listen(self.dir.path())?.into(), streams)?;
        self.state.exec_brings_node_maker = parcel.leaves_nodes_to_exec();
        let (ours, theirs) = ipc::pair()?;
        let cgroup = self.state.cgroup.as_ref().and_then(HostCgroup::open);
        let (cgroup, network) = (cgroup.as_ref().map(AsFd::as_fd), network::namespace::open(&plan.network)?);
        if !shares_network(plan) {
            let (helper, socket) = network_helper::start(&self.network_setup(plan), network.as_fd(), cgroup)?;
            (self.network_helper, parcel.network) = (Some(helper), Some(socket));
        }
        let stderr = parcel.streams.terminal().is_none();
        let place = Place { socket: &theirs.into(), network: network.as_fd(), mounts: None, cgroup, stderr };
        let child = spawn::monitor(&place)?;
        self.adopt(child, &plan.cgroup)?;
        if plan.user_network {
            parcel.user_network = Some(passt::start(self.state.cgroup.as_ref())?);
        }
        if matches!(terminal, Terminal::Foreground) {
            self.master = master;
        }
        Ok((parcel, ours.into()))
    }

    fn label(&self, plan: &Plan, target: VmTarget, parcel: &Parcel, timeline: Timeline) -> anyhow::Result<Label> {
        let log = log::settings();
        Ok(Label {
            target,
            print_timeline: plan.timeline || log.debug,
            makes_nodes: parcel.makes_nodes(),
            confinement: self.confinement,
            log,
            cgroups: self.state.cgroup.as_ref().map(HostCgroup::paths).unwrap_or_default(),
            mounts: parcel.mounts()?,
            terminal: parcel.streams.terminal().cloned(),
            timeline,
        })
    }

    /// What the network helper is told.
    fn network_setup(&self, plan: &Plan) -> Setup {
        // The VM of others lives on, and its NICs are to be free.
        let stays = matches!(plan.network, NetworkPlan::Path(_)) || plan.sandbox.is_some();
        Setup { stays, user_network: plan.user_network, seccomp: self.confinement.seccomp }
    }

    /// Gives the go signal, and waits for the container to be created. From then on only the monitor has what was packed.
    fn hand_over(&mut self, label: Label, parcel: Parcel, monitor: &UnixStream) -> anyhow::Result<()> {
        for frame in [Frame::new(&label)?, Frame::new(&parcel)?] {
            match frame.send(monitor) {
                // A monitor that died says why in its answer or by its exit status.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => break,
                sent => sent.context("send the container to its monitor")?,
            }
        }
        drop((label, parcel));
        let mut volumes = Vec::new();
        let mut answer = ipc::receive(monitor).context("the monitor's answer")?;
        // Once: from then on the monitor is not to be trusted.
        if let Some(Reply::LeftHost { needs_ids, volumes: left }) = answer {
            volumes = left;
            self.admit(needs_ids, monitor)?;
            answer = ipc::receive(monitor).context("the monitor's answer")?;
        }
        match answer {
            Some(Reply::Started) => {
                monitor_namespaces::place(self.state.pid, &volumes);
                return Ok(());
            }
            Some(Reply::Failed(why)) => bail!("{why}"),
            _ => {}
        }
        let status = self.child.as_mut().map(Process::wait).transpose().context("wait for the monitor")?;
        let how = status.map_or_else(String::new, |status| format!(" ({status})"));
        bail!("the monitor of container {} ended before the container was created{how}", self.state.id)
    }

    /// Lets the monitor go on, whose new user namespace has ids now.
    fn admit(&self, needs_ids: bool, monitor: &UnixStream) -> anyhow::Result<()> {
        if needs_ids {
            let given = monitor_namespaces::give_ids(self.state.pid);
            given.map_err(|error| Requirement::UserNamespaces.missing(format!("{error:#}")))?;
        }
        // A monitor that died meanwhile says so below.
        let _ = ipc::send(monitor, &Reply::Done);
        Ok(())
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
            (None, Some(unit)) => self.take_cgroup(cgroup::create_unit(unit, plan, pid)?)?,
            _ => {}
        }
        let helper = self.network_helper.as_ref().filter(|helper| !helper.placed).map(Process::id);
        if let (Some(cgroup), Some(helper)) = (&self.state.cgroup, helper) {
            cgroup.add(helper)?;
        }
        self.dir.save(&self.state)
    }

    fn run_hooks(&self) -> anyhow::Result<()> {
        let state = self.state.oci(Status::Creating);
        hooks::run(Kind::Prestart, &self.state.hooks, &state)?;
        hooks::run(Kind::CreateRuntime, &self.state.hooks, &state)
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
        for mut process in [self.child.take(), self.network_helper.take()].into_iter().flatten() {
            let _ = process.kill();
            let _ = process.wait();
        }
        sandbox::wait_detached(&self.dir, &self.state);
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
        owner: users::name(uid.as_raw()),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        cgroup: None,
        memory_mib: plan.machine.memory_mib,
        vcpus: plan.machine.vcpus,
        sandbox: plan.sandbox.clone(),
        ports: network.as_deref().and_then(network::ports),
        network,
        shared: false,
        exec_brings_node_maker: false,
        hooks: plan.hooks.clone(),
    }
}

/// Whether the container has another one's network.
fn shares_network(plan: &Plan) -> bool {
    plan.container.namespaces.iter().any(is_shared_network)
}

fn is_shared_network(namespace: &protocol::Namespace) -> bool {
    namespace.kind == protocol::NamespaceKind::NETWORK.into() && !namespace.container_id.is_empty()
}

/// A namespace that outlives the container, and is not another container's.
fn network_to_clean(plan: &Plan) -> Option<PathBuf> {
    match (&plan.network, shares_network(plan)) {
        (NetworkPlan::Path(path), false) => Some(path.clone()),
        _ => None,
    }
}

/// What the container's process reads and writes, and the master where that is a terminal.
fn open_streams(plan: &Plan, terminal: Terminal) -> anyhow::Result<(Option<OwnedFd>, Streams)> {
    if !plan.container.process.terminal {
        return Ok((None, Streams::standard()));
    }
    let pty = console::open()?;
    match terminal {
        Terminal::Detached(Some(socket)) => console::send_master(socket, &pty)?,
        Terminal::Detached(None) => {}
        Terminal::Foreground => console::copy_size(rustix::stdio::stdin(), &pty.master),
    }
    let Pty { master, slave, .. } = pty;
    Ok((Some(master), Streams::Terminal(slave.into())))
}

/// Writes a pid-file whole, as runc does.
pub fn write_pid_file(path: &Path, pid: i32) -> anyhow::Result<()> {
    path.file_name().with_context(|| format!("pid-file {} has no name", path.display()))?;
    let written = directory::replace(path, 0o666, pid.to_string().as_bytes());
    written.with_context(|| format!("write pid-file {}", path.display()))
}

/// An exit status as a shell says it: 128 + n for signal n.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
