//! What planning has to know about the host, as plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The host as planning sees it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs this process may run on.
    pub host_cpus: u32,
    /// The host's memory in bytes.
    pub host_memory: u64,
    /// The root file system, if the bundle names one.
    pub rootfs: Option<SourceFact>,
    /// Sources of bind mounts, by the path the bundle gives (made absolute).
    pub sources: BTreeMap<PathBuf, SourceFact>,
    /// Where the block devices that the bundle lists are, by major and minor number.
    pub disks: BTreeMap<(i64, i64), DiskFact>,
    /// Network namespaces of the host: this process's and that of process 1.
    pub host_networks: Vec<NamespaceId>,
    /// The network namespace that the bundle names by path.
    pub network: NetworkFact,
    /// Containers of ours that live, if the bundle may refer to any.
    pub neighbours: Vec<Neighbour>,
}

/// Another container under the same `--root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its name.
    pub id: String,
    /// Its process on the host.
    pub pid: i32,
    /// The container whose VM it is in: itself, or another one.
    pub sandbox: String,
    /// The network namespace of its process.
    pub network: Option<NamespaceId>,
    /// Memory of the VM in MiB.
    pub memory_mib: u32,
    /// Its virtual CPUs.
    pub vcpus: u8,
}

/// A block device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskFact {
    /// The path of a node of it.
    At(PathBuf),
    /// There is none; why.
    Missing(String),
}

/// Something on the host that is to be seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFact {
    /// Its path without symlinks; the path as given when there is nothing.
    pub canonical: PathBuf,
    /// What it is.
    pub kind: SourceKind,
    /// Whose file system it is on.
    pub place: Place,
    /// Size in bytes of the tmpfs it is on.
    pub tmpfs_size: Option<u64>,
}

/// Kind of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A character device.
    CharDevice {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice,
    /// A Unix socket.
    Socket(SocketFact),
    /// A named pipe.
    Fifo,
    /// It could not be looked at; why.
    Missing(String),
}

/// A Unix socket, and who may connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketFact {
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Whether it is known not to be for streams. Asked only where sockets can be mounted at all.
    pub carries_messages: bool,
}

/// Where a file is, as far as that changes its meaning in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file system with somebody's data.
    Ordinary,
    /// procfs.
    Proc,
    /// sysfs and what is mounted in it.
    Sys,
    /// A cgroup file system, or the directory where they are mounted.
    Cgroup,
    /// The host's /dev, without /dev/shm.
    Dev,
}

/// Identity of a namespace: device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceId {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// The network namespace path of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkFact {
    /// None is given.
    NotGiven,
    /// It is this namespace.
    Is(NamespaceId),
    /// It is a file, but no namespace.
    NotNamespace,
    /// It could not be looked at; why.
    Missing(String),
}
