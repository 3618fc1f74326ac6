//! `root` and `mounts` of the bundle as shares of the host and mounts in the guest.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::Mount as Given;
use protocol::Mount;

use super::SharePlan;
use super::options::{self, MountOptions};
use super::validate::absolute;
use crate::bundle::Bundle;
use crate::facts::{Facts, Kind};

/// Name of the share that is the root file system.
pub const ROOTFS: &str = "rootfs";

/// Devices that are the same in every kernel: a bind of the host's means the guest's own.
const PSEUDO_DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// File systems whose content belongs to the kernel: the guest's own, never the host's.
const KERNEL_FILE_SYSTEMS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The shares, the root file system first, and the mounts in the bundle's order.
pub fn plan(bundle: &Bundle, facts: &Facts, notes: &mut Vec<String>) -> anyhow::Result<(Vec<SharePlan>, Vec<Mount>)> {
    let root = bundle.spec.root().as_ref().context("config.json: root is required")?;
    // Read-only is the guest's mount, not the share: the engine's mount points are still made in it.
    let rootfs = SharePlan { name: ROOTFS.to_owned(), source: bundle.dir.join(root.path()), read_only: false };
    let mut planner = Planner { dir: &bundle.dir, facts, notes, shares: vec![rootfs] };
    let given = bundle.spec.mounts().iter().flatten();
    let mounts = given.map(|mount| planner.mount(mount)).collect::<anyhow::Result<_>>()?;
    Ok((planner.shares, mounts))
}

struct Planner<'a> {
    dir: &'a Path,
    facts: &'a Facts,
    notes: &'a mut Vec<String>,
    shares: Vec<SharePlan>,
}

impl Planner<'_> {
    fn mount(&mut self, given: &Given) -> anyhow::Result<Mount> {
        let destination = destination(given)?;
        let parsed = options::parse(given.options().as_deref().unwrap_or_default());
        let kind = given.typ().clone().unwrap_or_default();
        if parsed.bind || kind == "bind" {
            return self.bind(given, destination, parsed).with_context(|| format!("mount {}", destination_of(given)));
        }
        let source = given.source().as_ref().map_or_else(|| kind.clone(), |path| path.display().to_string());
        match kind.as_str() {
            "" => bail!("mount {destination}: it has no type"),
            "cgroup" => Ok(cgroup(destination, parsed)),
            _ => Ok(Mount { source, ..file_system(destination, &kind, parsed) }),
        }
    }

    fn bind(&mut self, given: &Given, destination: String, parsed: MountOptions) -> anyhow::Result<Mount> {
        let source = given.source().as_ref().context("a bind mount needs a source")?;
        let source = self.dir.join(source);
        let text = absolute(&source, "source")?;
        if destination == "/dev/shm" {
            return Ok(self.shared_memory(destination, parsed));
        }
        if text == "/sys/fs/cgroup" {
            return Ok(cgroup(destination, parsed));
        }
        if PSEUDO_DEVICES.contains(&text.as_str()) {
            return Ok(Mount { source: text, ..bind(destination, parsed) });
        }
        let kernels = KERNEL_FILE_SYSTEMS.iter().any(|top| source.starts_with(top)) && !source.starts_with("/dev/shm");
        if kernels {
            bail!("{text} belongs to the host's kernel; the container has a kernel of its own in its VM");
        }
        let is_dir = match self.facts.sources.get(&source).copied().unwrap_or(Kind::Missing) {
            Kind::Directory => true,
            Kind::File => false,
            Kind::Missing => bail!("{text}: no such file or directory"),
            Kind::Socket => bail!("{text} is a socket of the host; sockets do not reach into a VM"),
            Kind::Fifo => bail!("{text} is a FIFO of the host; FIFOs do not reach into a VM"),
            Kind::Device | Kind::Block => bail!("{text} is a device of the host, which a VM does not have"),
        };
        let share = self.share(source, parsed.flags & libc::MS_RDONLY != 0);
        Ok(Mount { share, source_is_dir: is_dir, ..bind(destination, parsed) })
    }

    /// One share for each source; read-only only when every mount of it is.
    fn share(&mut self, source: PathBuf, read_only: bool) -> String {
        if let Some(known) = self.shares.iter_mut().skip(1).find(|share| share.source == source) {
            known.read_only &= read_only;
            return known.name.clone();
        }
        let name = format!("m{}", self.shares.len() - 1);
        self.shares.push(SharePlan { name: name.clone(), source, read_only });
        name
    }

    /// Shared memory over a shared file system is neither fast nor correct: a tmpfs of the same size.
    fn shared_memory(&mut self, destination: String, parsed: MountOptions) -> Mount {
        self.notes.push(format!("{destination} is a tmpfs of the guest"));
        let size = self.facts.shm_size.unwrap_or(64 << 20);
        let flags = parsed.flags | libc::MS_NOSUID | libc::MS_NODEV;
        let data = format!("mode=1777,size={size}");
        Mount { source: "shm".to_owned(), flags, data, ..file_system(destination, "tmpfs", MountOptions::default()) }
    }
}

fn destination_of(given: &Given) -> String {
    given.destination().display().to_string()
}

/// The specification wants it absolute; runc takes a relative one as below the root.
fn destination(given: &Given) -> anyhow::Result<String> {
    absolute(&Path::new("/").join(given.destination()), "mounts.destination")
}

fn file_system(destination: String, kind: &str, parsed: MountOptions) -> Mount {
    Mount {
        destination,
        kind: kind.to_owned(),
        flags: parsed.flags,
        clear_flags: parsed.clear,
        propagation: parsed.propagation,
        data: parsed.data.join(","),
        copy_up: parsed.copy_up,
        ..Default::default()
    }
}

/// The guest has cgroup v2 only, whatever the host has.
fn cgroup(destination: String, parsed: MountOptions) -> Mount {
    let mount = file_system(destination, "cgroup2", parsed);
    Mount { source: "cgroup".to_owned(), data: String::new(), ..mount }
}

fn bind(destination: String, parsed: MountOptions) -> Mount {
    let recursive = parsed.recursive;
    Mount { recursive, data: String::new(), ..file_system(destination, "bind", parsed) }
}
