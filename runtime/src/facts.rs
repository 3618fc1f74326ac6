//! What planning has to know about the host. This is the only look at the host before anything is made.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType};

use crate::bundle::Bundle;
use crate::plan::{bind_source, may_share_vm, rootfs_path, sockets_allowed};
use crate::sockets;
use crate::state::{self, Life, State};

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

/// Looks at everything that the bundle refers to; other containers are under `root`.
///
/// # Errors
/// The host's own CPU and memory figures, or the other containers, cannot be read. What the bundle names and is missing is no error
/// here: planning says what that means.
pub fn gather(bundle: &Bundle, root: &Path) -> anyhow::Result<Facts> {
    let mounts = bundle.spec.mounts().iter().flatten();
    let sources = mounts.filter_map(|mount| bind_source(mount, &bundle.dir));
    // Where it says neither yes nor no, planning does not get far.
    let sockets_allowed = sockets_allowed(&bundle.spec).unwrap_or(false);
    let look = |path: PathBuf| {
        let mut fact = source(&path);
        if let (true, SourceKind::Socket(socket)) = (sockets_allowed, &mut fact.kind) {
            socket.carries_messages = sockets::carries_messages(&fact.canonical);
        }
        (path, fact)
    };
    Ok(Facts {
        host_cpus: host_cpus()?,
        host_memory: host_memory()?,
        rootfs: rootfs_path(bundle).map(|path| source(&path)),
        sources: sources.map(look).collect(),
        disks: disks(bundle),
        host_networks: ["/proc/self/ns/net", "/proc/1/ns/net"].iter().filter_map(identity).collect(),
        network: network(bundle),
        neighbours: if may_share_vm(&bundle.spec) { neighbours(root)? } else { Vec::new() },
    })
}

fn disks(bundle: &Bundle) -> BTreeMap<(i64, i64), DiskFact> {
    let mut disks = BTreeMap::new();
    let devices = bundle.spec.linux().iter().flat_map(|linux| linux.devices().iter().flatten());
    for device in devices.filter(|device| device.typ() == LinuxDeviceType::B) {
        let number = (device.major(), device.minor());
        if !matches!(disks.get(&number), Some(DiskFact::At(_))) {
            disks.insert(number, disk(device.path(), number));
        }
    }
    disks
}

/// The path is the container's. The host's may be another: then it is the one that the kernel gave the device.
fn disk(path: &Path, number: (i64, i64)) -> DiskFact {
    let is_it = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|node| {
            let (major, minor) = (libc::major(node.rdev()), libc::minor(node.rdev()));
            node.file_type().is_block_device() && (i64::from(major), i64::from(minor)) == number
        })
    };
    if path.is_absolute() && is_it(path) {
        return DiskFact::At(path.to_owned());
    }
    let Ok(event) = std::fs::read_to_string(format!("/sys/dev/block/{}:{}/uevent", number.0, number.1)) else {
        return DiskFact::Missing("the host has no such block device".to_owned());
    };
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME=")).unwrap_or_default();
    let own = Path::new("/dev").join(name);
    if is_it(&own) {
        return DiskFact::At(own);
    }
    DiskFact::Missing(format!("neither {} nor {} is a node of it on the host", path.display(), own.display()))
}

fn neighbours(root: &Path) -> anyhow::Result<Vec<Neighbour>> {
    let lives = |state: &State| state.life() == Life::Alive;
    let neighbour = |state: State| Neighbour {
        network: identity(format!("/proc/{}/ns/net", state.pid)),
        sandbox: state.sandbox.unwrap_or_else(|| state.id.clone()),
        id: state.id,
        pid: state.pid,
        memory_mib: state.memory_mib,
        vcpus: state.vcpus,
    };
    Ok(state::all(root)?.into_iter().filter(lives).map(neighbour).collect())
}

fn host_cpus() -> anyhow::Result<u32> {
    let cpus = std::thread::available_parallelism().context("count the host's CPUs")?;
    Ok(u32::try_from(cpus.get()).unwrap_or(u32::MAX))
}

fn host_memory() -> anyhow::Result<u64> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}; is /proc mounted?"))?;
    parse_memory(&text).with_context(|| format!("{path} has no MemTotal"))
}

fn parse_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn source(path: &Path) -> SourceFact {
    let looked = path.canonicalize().and_then(|canonical| std::fs::metadata(&canonical).map(|data| (canonical, data)));
    let (canonical, metadata) = match looked {
        Ok(found) => found,
        Err(error) => return missing(path, &error),
    };
    let system = rustix::fs::statfs(&canonical).ok();
    let magic = system.as_ref().map_or(0, |system| system.f_type);
    let place = place(&canonical, magic);
    let on_tmpfs = system.filter(|system| system.f_type == libc::TMPFS_MAGIC);
    let tmpfs_size =
        on_tmpfs.map(|system| system.f_blocks.saturating_mul(u64::try_from(system.f_bsize).unwrap_or_default()));
    SourceFact { canonical, kind: kind(&metadata), place, tmpfs_size }
}

fn missing(path: &Path, error: &std::io::Error) -> SourceFact {
    // As strerror(3) says it and runc passes on: engines look for the words.
    let why = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    };
    SourceFact { canonical: path.to_owned(), kind: SourceKind::Missing(why), place: Place::Ordinary, tmpfs_size: None }
}

fn kind(metadata: &std::fs::Metadata) -> SourceKind {
    let kind = metadata.file_type();
    if kind.is_dir() {
        SourceKind::Directory
    } else if kind.is_char_device() {
        let device = metadata.rdev();
        SourceKind::CharDevice { major: libc::major(device), minor: libc::minor(device) }
    } else if kind.is_block_device() {
        SourceKind::BlockDevice
    } else if kind.is_socket() {
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        SourceKind::Socket(SocketFact { mode, uid, gid, carries_messages: false })
    } else if kind.is_fifo() {
        SourceKind::Fifo
    } else {
        SourceKind::File
    }
}

fn place(canonical: &Path, magic: i64) -> Place {
    let under = |root: &str| canonical.starts_with(root);
    match magic {
        libc::PROC_SUPER_MAGIC => Place::Proc,
        libc::CGROUP_SUPER_MAGIC | libc::CGROUP2_SUPER_MAGIC => Place::Cgroup,
        libc::SYSFS_MAGIC => Place::Sys,
        _ if under("/proc") => Place::Proc,
        _ if under("/sys/fs/cgroup") => Place::Cgroup,
        _ if under("/sys") => Place::Sys,
        _ if under("/dev") && !under("/dev/shm") => Place::Dev,
        _ => Place::Ordinary,
    }
}

fn identity(path: impl AsRef<Path>) -> Option<NamespaceId> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(NamespaceId { device: metadata.dev(), inode: metadata.ino() })
}

fn network(bundle: &Bundle) -> NetworkFact {
    let namespaces = bundle.spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten());
    let mut paths = namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let path = paths.find_map(|namespace| namespace.path().clone()).filter(|path| !path.as_os_str().is_empty());
    let Some(path) = path else { return NetworkFact::NotGiven };
    let identity = std::fs::metadata(&path).map(|data| NamespaceId { device: data.dev(), inode: data.ino() });
    match (identity, rustix::fs::statfs(&path)) {
        (Ok(identity), Ok(system)) if system.f_type == libc::NSFS_MAGIC => NetworkFact::Is(identity),
        (Ok(_), _) => NetworkFact::NotNamespace,
        (Err(error), _) => NetworkFact::Missing(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(source(dir.path()).kind, SourceKind::Directory);
        assert_eq!(source(&link).kind, SourceKind::File);
        assert_eq!(source(&link).canonical, file.canonicalize().unwrap());
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o640)).unwrap();
        let SourceKind::Socket(found) = source(&socket).kind else { panic!("no socket") };
        assert_eq!((found.mode, found.carries_messages), (0o640, false));
        assert_eq!(found.uid, rustix::process::getuid().as_raw());
        assert_eq!(source(Path::new("/dev/null")).kind, SourceKind::CharDevice { major: 1, minor: 3 });
        let none = source(&dir.path().join("none")).kind;
        assert_eq!(none, SourceKind::Missing("no such file or directory".to_owned()));
    }

    #[test]
    fn places_are_told_by_file_system_and_path() {
        let place = |path: &str| source(Path::new(path)).place;
        assert_eq!(place("/proc/self/status"), Place::Proc);
        assert_eq!(place("/sys/kernel"), Place::Sys);
        assert_eq!(place("/sys/fs/cgroup"), Place::Cgroup);
        assert_eq!(place("/dev/null"), Place::Dev);
        assert_eq!(place("/etc"), Place::Ordinary);
        assert_eq!(super::place(Path::new("/dev/shm/data"), libc::TMPFS_MAGIC), Place::Ordinary);
        assert_eq!(super::place(Path::new("/mnt/proc"), libc::PROC_SUPER_MAGIC), Place::Proc);
    }

    #[test]
    fn disks_are_found_by_their_numbers() {
        let gone = DiskFact::Missing("the host has no such block device".to_owned());
        assert_eq!(disk(Path::new("/dev/null"), (1, 3)), gone);
        assert_eq!(disk(Path::new("/none"), (-1, i64::MAX)), gone);
        let nodes = std::fs::read_dir("/dev").unwrap().flatten();
        let block = nodes.filter(|node| node.file_type().is_ok_and(|kind| kind.is_block_device()));
        for node in block {
            let device = node.metadata().unwrap().rdev();
            let number = (i64::from(libc::major(device)), i64::from(libc::minor(device)));
            assert_eq!(disk(&node.path(), number), DiskFact::At(node.path()));
        }
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(parse_memory("Foo: 1\nMemTotal:       24684220 kB\n"), Some(24_684_220 << 10));
        assert_eq!(parse_memory("MemTotal: x"), None);
        assert!(host_memory().unwrap() > 1 << 20);
        assert!(host_cpus().unwrap() > 0);
    }
}
