//! From a bundle to a created container: the host's side of `create` and `run`.
//!
//! ```text
//!  plan (no effect) → reserve id → cgroup → shares → spawn monitor → hooks → set-up down the pipe
//!      → Ready or Failed up the pipe → state.json, pid-file
//! ```
//!
//! Every effect is recorded in [`Launch`] as it happens; dropping a `Launch` that was not finished
//! undoes them all.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use protobuf::Message;
use serde::{Deserialize, Serialize};

use crate::artifacts::{self, Artifacts};
use crate::bundle::{self, Bundle};
use crate::cgroup;
use crate::cli::{CreateArgs, Global};
use crate::console::{self, Pty};
use crate::hooks::{self, Kind};
use crate::plan::{self, MachinePlan, NetworkPlan, Plan};
use crate::state::{Dir, Lock, State, Status};
use crate::timeline::Timeline;
use crate::{control, facts, log, shares, state};

/// What the monitor is told: the go signal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the container.
    pub id: String,
    /// Size of the VM.
    pub machine: MachinePlan,
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// `protocol::CreateContainerRequest`, encoded.
    pub container: Vec<u8>,
    /// Roots of the shares.
    pub shares: Vec<ShareFd>,
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

/// A share whose root is an inherited descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShareFd {
    /// Its name in the guest.
    pub name: String,
    /// Whether the guest may change it.
    pub read_only: bool,
    /// `O_PATH` descriptor of its root.
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
    child: Option<Child>,
    finished: bool,
    _lock: Lock,
}

/// Creates the container of a bundle; its process waits for `start`.
pub fn create(global: &Global, args: &CreateArgs, terminal: Terminal) -> anyhow::Result<Launch> {
    let mut timeline = Timeline::new();
    let (bundle, plan) = make_plan(global, args)?;
    let artifacts = artifacts::find()?;
    check_terminal(&plan, terminal)?;
    timeline.mark("plan");
    let mut launch = Launch::reserve(&global.root(), &bundle, &plan)?;
    let pipes = launch.spawn(&plan, terminal)?;
    timeline.mark("monitor spawned");
    launch.run_hooks()?;
    timeline.mark("hooks");
    pipes.go(&plan, &artifacts, timeline)?;
    pipes.answer(&mut launch)?;
    launch.finish(args.pid_file.as_deref())?;
    Ok(launch)
}

fn make_plan(global: &Global, args: &CreateArgs) -> anyhow::Result<(Bundle, Plan)> {
    plan::validate_id(&args.id)?;
    if args.preserve_fds > 0 {
        bail!("--preserve-fds {}: open descriptors of the host cannot be passed into a VM", args.preserve_fds);
    }
    let bundle = bundle::load(&args.bundle)?;
    let options = plan::Options { id: args.id.clone(), systemd_cgroup: global.systemd_cgroup };
    let facts = facts::gather(&bundle)?;
    let plan = plan::plan(&bundle, &facts, &options)?;
    plan.notes.iter().for_each(|note| log::debug(note));
    Ok((bundle, plan))
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

/// What connects the command with the monitor it spawned.
struct Pipes {
    setup: std::fs::File,
    ready: std::fs::File,
    numbers: Numbers,
}

/// Numbers of the descriptors that the monitor inherits.
struct Numbers {
    shares: Vec<RawFd>,
    control: RawFd,
    ready: RawFd,
    terminal: Option<RawFd>,
}

impl Launch {
    fn reserve(root: &Path, bundle: &Bundle, plan: &Plan) -> anyhow::Result<Self> {
        let id = &plan.container.container_id;
        let dir = Dir::reserve(root, id)?;
        let lock = dir.lock(Duration::from_secs(1))?;
        let state = new_state(bundle, plan);
        let mut launch = Self { dir, state, master: None, child: None, finished: false, _lock: lock };
        launch.state.cgroup = Some(cgroup::create(&plan.cgroup)?);
        launch.dir.save(&launch.state)?;
        Ok(launch)
    }

    fn spawn(&mut self, plan: &Plan, terminal: Terminal) -> anyhow::Result<Pipes> {
        let shares = shares::open(&plan.shares)?;
        let listener = control::listen(self.dir.path())?;
        let (setup_read, setup_write) = pipe()?;
        let (ready_read, ready_write) = pipe()?;
        let pty = open_terminal(plan, terminal)?;
        let numbers = Numbers {
            shares: shares.iter().map(AsRawFd::as_raw_fd).collect(),
            control: listener.as_raw_fd(),
            ready: ready_write.as_raw_fd(),
            terminal: pty.as_ref().map(|pty| pty.slave.as_raw_fd()),
        };
        let child = spawn_monitor(plan, setup_read.as_raw_fd(), &numbers)?;
        self.adopt(child)?;
        if matches!(terminal, Terminal::Foreground) {
            self.master = pty.map(|pty| pty.master);
        }
        Ok(Pipes { setup: setup_write.into(), ready: ready_read.into(), numbers })
    }

    /// From here on the monitor is ours to kill, and the state says which process it is.
    fn adopt(&mut self, child: Child) -> anyhow::Result<()> {
        let pid = child.id() as i32;
        self.child = Some(child);
        self.state.pid = pid;
        self.state.pid_start = state::process_start(pid).unwrap_or_default();
        if let Some(cgroup) = &self.state.cgroup {
            cgroup.add(pid)?;
        }
        self.dir.save(&self.state)
    }

    fn run_hooks(&self) -> anyhow::Result<()> {
        let state = self.state.oci(Status::Creating);
        hooks::run(Kind::Prestart, &self.state.hooks, &state)?;
        hooks::run(Kind::CreateRuntime, &self.state.hooks, &state)
    }

    fn finish(&mut self, pid_file: Option<&Path>) -> anyhow::Result<()> {
        self.state.reached = Status::Created;
        self.dir.save(&self.state)?;
        if let Some(path) = pid_file {
            write_pid_file(path, self.state.pid)?;
        }
        self.finished = true;
        Ok(())
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
        let undone = self.state.cgroup.as_ref().map_or(Ok(()), |cgroup| cgroup.remove());
        for error in [undone, self.dir.remove()].into_iter().filter_map(Result::err) {
            log::warning(&format!("clean up after a failed create: {error:#}"));
        }
    }
}

impl Pipes {
    fn go(&self, plan: &Plan, artifacts: &Artifacts, timeline: Timeline) -> anyhow::Result<()> {
        let share = |(plan, &fd): (&plan::SharePlan, &RawFd)| ShareFd {
            name: plan.name.clone(),
            read_only: plan.read_only,
            fd,
        };
        let setup = Setup {
            id: plan.container.container_id.clone(),
            machine: plan.machine.clone(),
            kernel: artifacts.kernel.clone(),
            initrd: artifacts.initrd.clone(),
            container: plan.container.write_to_bytes()?,
            shares: plan.shares.iter().zip(&self.numbers.shares).map(share).collect(),
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

    fn answer(mut self, launch: &mut Launch) -> anyhow::Result<()> {
        drop(self.setup);
        let mut text = Vec::new();
        self.ready.read_to_end(&mut text).context("read the monitor's answer")?;
        if text.is_empty() {
            let status = launch.child.as_mut().map(Child::wait).transpose().context("wait for the monitor")?;
            let how = status.map_or_else(String::new, |status| format!(" ({status})"));
            bail!("the monitor of container {} ended before the container was created{how}", launch.state.id);
        }
        match serde_json::from_slice(&text).context("the monitor's answer")? {
            Answer::Ready => Ok(()),
            Answer::Failed(why) => bail!("{why}"),
        }
    }
}

fn new_state(bundle: &Bundle, plan: &Plan) -> State {
    let uid = rustix::process::getuid();
    State {
        oci_version: bundle.spec.version().clone(),
        id: plan.container.container_id.clone(),
        reached: Status::Creating,
        pid: 0,
        pid_start: 0,
        bundle: bundle.dir.clone(),
        rootfs: plan.shares.first().map(|share| share.source.clone()).unwrap_or_default(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        owner: user_name(uid.as_raw()),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        cgroup: None,
        hooks: plan.hooks.clone(),
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

/// Starts this binary again as the monitor: in its network namespace, with the descriptors it needs
/// and, unless it has a terminal, with ours as its standard ones.
fn spawn_monitor(plan: &Plan, setup: RawFd, numbers: &Numbers) -> anyhow::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("runvm").arg("monitor").arg(setup.to_string()).env_clear().current_dir("/");
    if numbers.terminal.is_some() {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    }
    let network = open_network(&plan.network)?;
    let mut inherited = numbers.shares.clone();
    inherited.extend([setup, numbers.control, numbers.ready]);
    inherited.extend(numbers.terminal);
    let prepare = move || {
        enter_network(network.as_ref())?;
        inherited.iter().try_for_each(|&fd| keep_open(fd))
    };
    // SAFETY: between fork and exec the closure only makes system calls; it allocates nothing.
    unsafe { command.pre_exec(prepare) };
    command.spawn().context("start the monitor (/proc/self/exe monitor)")
}

fn open_network(plan: &NetworkPlan) -> anyhow::Result<Option<std::fs::File>> {
    match plan {
        NetworkPlan::New => Ok(None),
        NetworkPlan::Path(path) => {
            let opened = std::fs::File::open(path);
            opened.map(Some).with_context(|| format!("open network namespace {}", path.display()))
        }
    }
}

fn enter_network(namespace: Option<&std::fs::File>) -> std::io::Result<()> {
    match namespace {
        Some(file) => nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?,
        None => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?,
    }
    Ok(())
}

fn keep_open(fd: RawFd) -> std::io::Result<()> {
    // SAFETY: the descriptor belongs to the caller, who holds it open across fork and exec.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?)
}

fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")
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
