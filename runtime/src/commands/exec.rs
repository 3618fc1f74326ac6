//! `runvm exec`

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use nix::unistd::ForkResult;
use oci_spec::runtime::Process;

use crate::cli::{ExecArgs, Global};
use crate::exec_proxy::{Attachment, TerminalCopy};
use crate::host::console::{self, Pty};
use crate::host::requirements::{self, Confinement};
use crate::host::{facts, monitor_namespaces, node_maker};
use crate::ipc::Descriptor;
use crate::launch::write_pid_file;
use crate::signals::Signals;
use crate::state::{Dir, Life, State};
use crate::streams::{self, Streams};
use crate::{bundle, exec_proxy, log, plan};

/// Exit code of an exec that failed, as runc's: distinct from those of programs.
const EXEC_FAILED: u8 = 255;

/// Runs another process in a container.
pub fn run(global: &Global, args: &ExecArgs) -> anyhow::Result<u8> {
    exec(global, args).or_else(|error| {
        log::fatal(&format!("exec failed: {error:#}"));
        Ok(EXEC_FAILED)
    })
}

fn exec(global: &Global, args: &ExecArgs) -> anyhow::Result<u8> {
    if args.preserve_fds > 0 {
        bail!("--preserve-fds {}: open descriptors of the host cannot be passed into a VM", args.preserve_fds);
    }
    let dir = Dir::open(&global.root(), &args.id)?;
    let state = dir.state()?;
    // Whether it is paused, the monitor says.
    if state.life() != Life::Alive {
        bail!("cannot exec in a stopped container");
    }
    let process = process(args, &state)?;
    check_terminal(args, process.terminal)?;
    let signals = Signals::block()?;
    let nodes = node_maker(global, &state, &process)?;
    let job = Job { dir: dir.path(), process: &process, args, signals: &signals };
    if args.detach { detach(&job, nodes) } else { foreground(&job, nodes) }
}

/// A process to be executed, with its container's directory, the flags, and the signals that are passed on.
struct Job<'a> {
    dir: &'a Path,
    process: &'a protocol::Process,
    args: &'a ExecArgs,
    signals: &'a Signals,
}

impl Job<'_> {
    /// Runs it, and stands for it.
    fn run(&self, attachment: Attachment, started: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u8> {
        exec_proxy::exec(self.dir, self.process.clone(), attachment, self.signals, started)
    }
}

/// Starts what makes device nodes, for a process that may make some in a container that came without. To be called while there
/// is one thread.
fn node_maker(global: &Global, state: &State, process: &protocol::Process) -> anyhow::Result<Option<Descriptor>> {
    let wanted = state.exec_brings_node_maker && plan::may_make_device_nodes(process);
    // Only the host's own root makes them.
    if !wanted || monitor_namespaces::is_rootless() {
        return Ok(None);
    }
    let seccomp = requirements::insist(requirements::seccomp(), global.insecure)?.is_some();
    let started = node_maker::start(state, Confinement { user_namespace: false, seccomp });
    started.map(Some).context("start the process that makes device nodes")
}

fn process(args: &ExecArgs, state: &State) -> anyhow::Result<protocol::Process> {
    let process = match &args.process {
        Some(file) => with_capabilities(bundle::load_process(file)?, state)?,
        None => from_arguments(args, state)?,
    };
    let mut process = plan::exec_process(&process, &facts::limits(), state.vcpus)?;
    process.no_new_privileges |= args.no_new_privs;
    if args.process_label.is_some() || args.apparmor.is_some() || !args.cgroup.is_empty() {
        log::debug("labels, AppArmor profiles and sub-cgroups of exec have no effect in the guest");
    }
    Ok(process)
}

/// Gives a process that names no capabilities those of the container, as runc does.
fn with_capabilities(mut process: Process, state: &State) -> anyhow::Result<Process> {
    if process.capabilities().is_none() {
        let container = bundle::load(&state.bundle)?.spec.process().clone();
        process.set_capabilities(container.and_then(|container| container.capabilities().clone()));
    }
    Ok(process)
}

/// The container's own process with the changes of the command line, as in runc.
fn from_arguments(args: &ExecArgs, state: &State) -> anyhow::Result<Process> {
    if args.command.is_empty() {
        bail!("exec: process args cannot be empty");
    }
    let bundle = bundle::load(&state.bundle)?;
    let mut process = bundle.spec.process().clone().context("config.json has no process")?;
    process.set_args(Some(args.command.clone())).set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.into());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    set_user(args, &mut process)?;
    plan::add_capabilities(&mut process, &args.cap)?;
    Ok(process)
}

fn set_user(args: &ExecArgs, process: &mut Process) -> anyhow::Result<()> {
    let mut user = process.user().clone();
    if let Some(text) = &args.user {
        let number = |part: &str| part.parse::<u32>().with_context(|| format!("--user {text}: not UID[:GID]"));
        let (uid, gid) = text.split_once(':').unzip();
        user.set_uid(number(uid.unwrap_or(text))?);
        if let Some(gid) = gid {
            user.set_gid(number(gid)?);
        }
    }
    if !args.additional_gids.is_empty() {
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        user.set_additional_gids(Some(gids));
    }
    process.set_user(user);
    Ok(())
}

fn check_terminal(args: &ExecArgs, terminal: bool) -> anyhow::Result<()> {
    if args.detach && terminal && args.console_socket.is_none() {
        bail!("cannot allocate tty if runvm will detach without setting console socket");
    }
    if (!args.detach || !terminal) && args.console_socket.is_some() {
        bail!("cannot use console socket if runvm will not detach or allocate tty");
    }
    Ok(())
}

fn foreground(job: &Job<'_>, nodes: Option<Descriptor>) -> anyhow::Result<u8> {
    let started = || match &job.args.pid_file {
        Some(path) => write_pid_file(path, std::process::id() as i32),
        None => Ok(()),
    };
    if !job.process.terminal {
        return job.run(standard_streams(nodes), started);
    }
    let Pty { master, slave, .. } = console::open()?;
    console::copy_size(rustix::stdio::stdin(), &master);
    let copy = TerminalCopy::start(&master)?;
    let size_of = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let attachment = Attachment { streams: Streams::Terminal(slave.into()), nodes, size_of: Some(size_of) };
    let code = job.run(attachment, started);
    drop(copy);
    code
}

/// Forks the proxy that stays, and leaves once the process runs.
fn detach(job: &Job<'_>, nodes: Option<Descriptor>) -> anyhow::Result<u8> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this process has a single thread, so the child may go on with ordinary code.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Child => {
            drop(read);
            std::process::exit(i32::from(proxy(job, nodes, write)))
        }
        ForkResult::Parent { child } => {
            drop((write, nodes));
            let mut answer = String::new();
            std::fs::File::from(read).read_to_string(&mut answer)?;
            match answer.as_str() {
                "started" => {}
                "" => bail!("exec failed: its proxy process died (pid {child})"),
                why => bail!("{why}"),
            }
            job.args.pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, child.as_raw()))?;
            Ok(0)
        }
    }
}

/// The child's whole life; tells the parent through the pipe how the start went.
fn proxy(job: &Job<'_>, nodes: Option<Descriptor>, report: OwnedFd) -> u8 {
    let mut report = Some(std::fs::File::from(report));
    let result = detached(job, nodes).and_then(|attachment| {
        let started = || {
            let told = report.take().map(|mut pipe| pipe.write_all(b"started"));
            told.transpose().map(|_| ()).context("report the start")
        };
        job.run(attachment, started)
    });
    match (result, report) {
        (Ok(code), _) => code,
        (Err(error), Some(mut pipe)) => {
            let _ = pipe.write_all(format!("{error:#}").as_bytes());
            1
        }
        (Err(error), None) => {
            log::error(&format!("{error:#}"));
            u8::MAX
        }
    }
}

/// The streams of a detached exec; with a terminal this process becomes the leader of its session.
fn detached(job: &Job<'_>, nodes: Option<Descriptor>) -> anyhow::Result<Attachment> {
    if !job.process.terminal {
        let attachment = standard_streams(nodes);
        forget_standard_streams()?;
        return Ok(attachment);
    }
    let socket = job.args.console_socket.as_deref().context("no console socket")?;
    let pty = console::open()?;
    console::become_controlling(pty.slave.as_fd())?;
    console::send_master(socket, &pty)?;
    forget_standard_streams()?;
    let size_of = Some(pty.slave.try_clone()?);
    Ok(Attachment { streams: Streams::Terminal(pty.slave.into()), nodes, size_of })
}

fn standard_streams(nodes: Option<Descriptor>) -> Attachment {
    Attachment { streams: Streams::standard(), nodes, size_of: None }
}

/// The engine waits until nobody holds the process's pipes: the proxy must not.
fn forget_standard_streams() -> anyhow::Result<()> {
    Ok(streams::replace_standard(streams::open_null()?)?)
}
