//! passt(1), which is the network of a container without an engine: it does with sockets of its own, as any program may,
//! what frames ask for.
//!
//! It is started where the command stands, in the container's cgroup, and ends when the monitor does: with the other end
//! of its socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::host::cgroup::HostCgroup;
use crate::ipc::{self, Descriptor};
use crate::plan::user_network::{ADDRESS, GATEWAY, PREFIX, RESOLVER};

/// Most bytes of a packet that it takes.
pub const MTU: u32 = 65_520;

/// Starts it; returns the monitor's end of its socket when it is ready, and has left this process.
///
/// # Errors
/// It is not installed, or says why it cannot work.
pub fn start(cgroup: Option<&HostCgroup>) -> anyhow::Result<Descriptor> {
    let (ours, socket) = ipc::pair()?;
    let mut command = Command::new("passt");
    command.args(arguments(&socket)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let directories = cgroup.map(HostCgroup::paths).unwrap_or_default();
    // SAFETY: a command has no other threads, so the child may do what it likes.
    unsafe { command.pre_exec(move || prepare(&socket, &directories)) };
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("--net user: passt is not installed (Debian: apt install passt)")
        }
        output => output.context("--net user: start passt")?,
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        // Its last line says why; those before it what it would have done.
        let why = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
        bail!("--net user: passt: {} ({})", why.trim(), output.status);
    }
    Ok(ours.into())
}

fn arguments(socket: &OwnedFd) -> Vec<String> {
    let (socket, mtu) = (socket.as_raw_fd().to_string(), MTU.to_string());
    let (address, prefix, gateway) = (ADDRESS.to_string(), PREFIX.to_string(), GATEWAY.to_string());
    let numbers = ["--fd", &socket, "--mtu", &mtu, "--address", &address, "--netmask", &prefix, "--gateway", &gateway];
    let resolver = RESOLVER.to_string();
    let names = ["--dns-forward", &resolver];
    // Nothing of the host's loopback; and ports are published by ourselves.
    let closed = ["--quiet", "--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none"];
    numbers.into_iter().chain(names).chain(closed).map(str::to_owned).collect()
}

/// In the child: its socket stays open, and it is the container's from its beginning on.
fn prepare(socket: &OwnedFd, cgroups: &[PathBuf]) -> io::Result<()> {
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
    cgroups.iter().try_for_each(|directory| std::fs::write(directory.join("cgroup.procs"), "0"))
}
