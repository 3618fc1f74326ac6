//! Facts: what planning has to know about the host, as plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The host, as far as one bundle refers to it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Number of CPUs that this process may run on.
    pub host_cpus: u32,
    /// Memory of the host in bytes.
    pub host_memory: u64,
    /// The root file system's directory, if the bundle names one.
    pub rootfs: Option<SourceFact>,
    /// Sources of bind mounts, by the absolute form of the path that the bundle gives.
    pub sources: BTreeMap<PathBuf, SourceFact>,
    /// Block devices that the bundle lists, by major and minor number.
    pub disks: BTreeMap<(i64, i64), DiskFact>,
    /// Network namespaces of the host: the one of this process and the one of process 1.
    pub host_networks: Vec<NamespaceId>,
    /// The network namespace that the bundle names by path.
    pub network: NetworkFact,
    /// Living containers under the same `--root`, if the bundle may refer to any.
    pub peers: Vec<Peer>,
    /// Resource limits of this process.
    pub limits: Vec<Limit>,
    /// Values of those [`crate::plan::HOST_SETTINGS`] that the host's kernel knows, by name.
    pub settings: Vec<(&'static str, String)>,
}

/// A resource limit, as getrlimit(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// What holds.
    pub soft: u64,
    /// How far a process may raise that.
    pub hard: u64,
}

/// Another container under the same `--root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Id of the container.
    pub id: String,
    /// Pid of its process on the host.
    pub pid: i32,
    /// Id of the container that its VM was made for: its own, or another one.
    pub sandbox: String,
    /// Network namespace of its process.
    pub network: Option<NamespaceId>,
    /// Memory of its VM in MiB.
    pub memory_mib: u32,
    /// Number of virtual CPUs of its VM.
    pub vcpus: u8,
}

/// A block device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskFact {
    /// Path of a node of the device.
    At(PathBuf),
    /// The reason why no node was found.
    Missing(String),
}

/// A file or directory of the host that a mount of the bundle names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFact {
    /// The path without symlinks; the path as given when nothing is there.
    pub canonical: PathBuf,
    /// Which file it is.
    pub id: FileId,
    /// Kind of the file.
    pub kind: SourceKind,
    /// Kind of the file system that it is on.
    pub file_system: FileSystemKind,
    /// Device number of that file system (`major:minor`), which on some is not the one of each of its files.
    pub system: String,
    /// Whether somebody else may have to answer for that file system: it is neither in this host's memory nor on its disks.
    pub remote: bool,
    /// Whether other file systems are mounted below it.
    pub has_mounts: bool,
    /// Size in bytes of the tmpfs that it is on.
    pub tmpfs_size: Option<u64>,
}

/// Which file of the host a path led to when it was looked at; all 0 for none. What is opened later must be the same one: the
/// plan was made for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    /// Device number of its file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Type, as in `st_mode`.
    pub kind: u32,
    /// Device number of a device node.
    pub node: u64,
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
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice,
    /// A Unix socket.
    Socket(SocketFact),
    /// A named pipe.
    Fifo,
    /// The reason why the file could not be examined.
    Missing(String),
}

/// A Unix socket, and who may connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketFact {
    /// Permission bits.
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id of the owner.
    pub gid: u32,
    /// Whether the socket is known to carry messages rather than a stream. Examined only where the bundle allows sockets.
    pub carries_messages: bool,
}

/// Kind of the file system that a file is on, as far as that changes what the file means in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystemKind {
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
    /// The bundle gives no path.
    NotGiven,
    /// The path leads to this namespace.
    Is(NamespaceId),
    /// The path leads to a file that is no namespace.
    NotNamespace,
    /// The reason why the path could not be examined.
    Missing(String),
}
