//! What the plan must know of this host: the only I/O before planning.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use oci_spec::runtime::LinuxNamespaceType;

use crate::bundle::Bundle;
use crate::cgroup::Hierarchy;

/// What a path of the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A character device.
    Device,
    /// A block device.
    Block,
    /// A Unix socket.
    Socket,
    /// A FIFO.
    Fifo,
    /// Nothing.
    Missing,
}

/// What the plan must know of this host.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory of the host in MiB.
    pub memory_mib: u64,
    /// What the root file system and the sources of bind mounts are, by absolute path.
    pub sources: BTreeMap<PathBuf, Kind>,
    /// Size in bytes of the tmpfs or other file system behind a bind mount's source on `/dev/shm`.
    pub shm_size: Option<u64>,
    /// Whether the network namespace that the bundle names by path is the host's own.
    pub network_is_hosts: bool,
    /// The host's cgroup hierarchies.
    pub cgroups: Hierarchy,
}

/// Looks at the host for what this bundle asks for.
pub fn gather(bundle: &Bundle) -> anyhow::Result<Facts> {
    let mut sources = BTreeMap::new();
    let mut shm_size = None;
    let root = bundle.spec.root().as_ref().map(|root| bundle.dir.join(root.path()));
    let mounts = bundle.spec.mounts().iter().flatten();
    let binds = mounts.filter_map(|mount| Some((mount.destination(), bundle.dir.join(mount.source().as_ref()?))));
    for (destination, source) in binds {
        if destination == Path::new("/dev/shm") {
            shm_size = size_of(&source);
        }
        sources.insert(source.clone(), kind(&source));
    }
    sources.extend(root.map(|root| (root.clone(), kind(&root))));
    Ok(Facts {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: memory_mib()?,
        sources,
        shm_size,
        network_is_hosts: network_path(bundle).is_some_and(|path| same_namespace(&path)),
        cgroups: Hierarchy::find(Path::new("/sys/fs/cgroup"))?,
    })
}

fn kind(path: &Path) -> Kind {
    match path.metadata().map(|found| found.file_type()) {
        Err(_) => Kind::Missing,
        Ok(found) if found.is_dir() => Kind::Directory,
        Ok(found) if found.is_char_device() => Kind::Device,
        Ok(found) if found.is_block_device() => Kind::Block,
        Ok(found) if found.is_socket() => Kind::Socket,
        Ok(found) if found.is_fifo() => Kind::Fifo,
        Ok(_) => Kind::File,
    }
}

fn size_of(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    found.f_blocks.checked_mul(found.f_frsize)
}

fn memory_mib() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.context("no MemTotal in /proc/meminfo")? / 1024)
}

fn network_path(bundle: &Bundle) -> Option<PathBuf> {
    let namespaces = bundle.spec.linux().as_ref()?.namespaces().as_ref()?;
    let network = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
    network.path().clone()
}

fn same_namespace(path: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino())).ok();
    let own = identity(Path::new("/proc/1/ns/net")).or_else(|| identity(Path::new("/proc/self/ns/net")));
    own.is_some() && identity(path) == own
}
