//! What the command does in the namespaces of a container's process on the host, which has no right to it itself.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, anyhow};
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::MoveMountFlags;
use serde::{Deserialize, Serialize};

use crate::ipc::Descriptor;
use crate::log;

/// What fails where there can be no user namespace.
const MAKE: &str = "make a user namespace";

/// A mount that is attached nowhere, and where in the container it is to be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Path in the container.
    pub destination: String,
    /// The mount.
    pub mount: Descriptor,
}

/// Gives a process that has made a user namespace for itself all ids that this process has, each as itself.
///
/// # Errors
/// The kernel's: this process has no right to its own ids (CAP_SETUID, CAP_SETGID, CAP_SETFCAP).
pub fn give_ids(pid: i32) -> anyhow::Result<()> {
    map_ids(pid, &own_ids()?)
}

/// Lines of `uid_map` and `gid_map` that leave the ids of this process as they are.
///
/// # Errors
/// /proc is not there.
pub fn own_ids() -> anyhow::Result<[String; 2]> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    Ok([identity(&read("/proc/self/uid_map")?), identity(&read("/proc/self/gid_map")?)])
}

/// Whether root here is not the host's: it cannot make nodes of devices, nor load programs for cgroups.
pub fn is_rootless() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn map_ids(pid: i32, maps: &[String; 2]) -> anyhow::Result<()> {
    for (file, map) in [("uid_map", &maps[0]), ("gid_map", &maps[1])] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, map).with_context(|| format!("write {:?} to its {file}", map.trim_end()))?;
    }
    Ok(())
}

/// Lines of a map that leaves the ids of this one as they are.
fn identity(map: &str) -> String {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (first, count) = (fields.next()?, fields.nth(1)?);
        Some(format!("{first} {first} {count}\n"))
    };
    map.lines().filter_map(line).collect()
}

/// Makes a user namespace with these lines of `uid_map` and `gid_map`. Only a process can make one: a child, which ends when it
/// has been looked at. To be called while there is one thread.
///
/// # Errors
/// There can be no more user namespaces, or this process may not map these ids.
pub fn user_namespace(maps: &[String; 2]) -> anyhow::Result<OwnedFd> {
    let (mut ready, made) = io::pipe()?;
    let (wait, done) = io::pipe()?;
    // SAFETY: a command has no other threads, and the child only makes system calls before it exits.
    let child = unsafe { nix::unistd::fork() }.context("fork")?;
    let nix::unistd::ForkResult::Parent { child } = child else {
        drop((ready, done));
        let error = nix::sched::unshare(CloneFlags::CLONE_NEWUSER).err().map_or(0, |error| error as i32);
        if (&made).write_all(&error.to_ne_bytes()).is_ok() {
            // Until the parent has what it wants, or is gone.
            let _ = (&wait).read(&mut [0]);
        }
        // SAFETY: ends this process at once; nothing of the parent's is to be undone here.
        unsafe { libc::_exit(0) }
    };
    drop((made, wait));
    let namespace = (|| {
        let mut error = [0; 4];
        ready.read_exact(&mut error).context(MAKE)?;
        match i32::from_ne_bytes(error) {
            0 => map_ids(child.as_raw(), maps)?,
            error => return Err(io::Error::from_raw_os_error(error)).context(MAKE),
        }
        anyhow::Ok(OwnedFd::from(fs::File::open(format!("/proc/{child}/ns/user"))?))
    })();
    drop(done);
    let _ = nix::sys::wait::waitpid(child, None);
    namespace
}

/// Leaves this process's user namespace for a new one.
///
/// # Errors
/// There can be no more.
pub fn leave_user_namespace() -> anyhow::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from).context(MAKE)
}

/// Puts volumes where the guest has made their mount points, in the mount namespace of this process. What cannot be put there
/// is only logged: nobody but an engine that copies files looks for it.
pub fn place(pid: i32, volumes: &[Volume]) {
    if volumes.is_empty() {
        return;
    }
    // A thread cannot leave that namespace again.
    let placed = std::thread::scope(|scope| scope.spawn(|| place_all(pid, volumes)).join());
    if let Err(error) = placed.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))) {
        log::debug(&format!("enter the monitor's mount namespace: {error:#}"));
    }
}

fn place_all(pid: i32, volumes: &[Volume]) -> anyhow::Result<()> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
    nix::sched::unshare(CloneFlags::CLONE_FS)?;
    nix::sched::setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
    for volume in volumes {
        if let Err(error) = volume.place() {
            log::debug(&format!("{} in the monitor's namespace: {error:#}", volume.destination));
        }
    }
    Ok(())
}

impl Volume {
    fn place(&self) -> anyhow::Result<()> {
        // Symlinks are the guest's to make: they lead nowhere but into its own root.
        let (flags, inside) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
        let root = rustix::fs::open("/", flags | OFlags::DIRECTORY, Mode::empty())?;
        let at = rustix::fs::openat2(&root, &self.destination, flags, Mode::empty(), inside)?;
        let by_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(rustix::mount::move_mount(&self.mount, "", &at, "", by_descriptor)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_as_they_are() {
        assert_eq!(identity("         0          0 4294967295\n"), "0 0 4294967295\n");
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(identity(rootless), "0 0 1\n1 1 65536\n");
    }
}
