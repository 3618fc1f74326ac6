//! What the command does in the namespaces of a container's process on the host, which has no right to it itself.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, anyhow};
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::MoveMountFlags;
use serde::{Deserialize, Serialize};

use crate::ipc::Descriptor;
use crate::log;

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
    for file in ["uid_map", "gid_map"] {
        let (ours, theirs) = (format!("/proc/self/{file}"), format!("/proc/{pid}/{file}"));
        let map = identity(&fs::read_to_string(&ours).with_context(|| format!("read {ours}"))?);
        fs::write(&theirs, &map).with_context(|| format!("write {map:?} to {theirs}"))?;
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
