//! Gathers the facts for planning: the only look at the host before anything is made.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType};
use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::bundle::Bundle;
use crate::host::{file_id, mounted, sockets};
use crate::plan::facts::{
    DiskFact, Facts, FileId, FileSystemKind, Limit, NamespaceId, NetworkFact, Peer, SocketFact, SourceFact, SourceKind,
};
use crate::plan::{HOST_SETTINGS, bind_source, may_share_vm, rootfs_path, sockets_allowed};
use crate::state::{self, Life, State};

/// linux/magic.h, OVERLAYFS_SUPER_MAGIC.
const OVERLAY: i64 = 0x794c_7630;

/// Gathers facts about everything that the bundle refers to; `root` is the directory of the containers' state.
///
/// # Errors
/// The host's CPUs, memory or other containers cannot be read. A missing file that the bundle names is no error here: planning says
/// what that means.
pub fn gather(bundle: &Bundle, root: &Path) -> anyhow::Result<Facts> {
    let mounts = bundle.spec.mounts().iter().flatten();
    let sources = mounts.filter_map(|mount| bind_source(mount, &bundle.dir));
    // Where it says neither yes nor no, planning does not get far.
    let sockets_allowed = sockets_allowed(&bundle.spec).unwrap_or(false);
    let mounted = LazyCell::new(mounted::points);
    let look = |path: PathBuf| {
        let mut fact = source(&path);
        let below = |point: &PathBuf| *point != fact.canonical && point.starts_with(&fact.canonical);
        fact.has_mounts = fact.kind == SourceKind::Directory && mounted.iter().any(below);
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
        peers: if may_share_vm(&bundle.spec) { peers(root)? } else { Vec::new() },
        limits: limits(),
        settings: settings(),
    })
}

/// All resource limits of this process.
pub fn limits() -> Vec<Limit> {
    // Those of getrlimit(2) on x86-64, where Linux has had the same since 2.6.25.
    (0..=libc::RLIMIT_RTTIME).filter_map(limit).collect()
}

fn limit(resource: u32) -> Option<Limit> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives across the call; 0 is this process.
    let got = unsafe { libc::prlimit64(0, resource, std::ptr::null(), &raw mut limit) };
    (got == 0).then_some(Limit { resource, soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Values of those [`HOST_SETTINGS`] that the host's kernel knows, by name.
fn settings() -> Vec<(&'static str, String)> {
    let Ok(all) = rustix::fs::open("/proc/sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return Vec::new();
    };
    HOST_SETTINGS.iter().filter_map(|&(name, _)| Some((name, setting(&all, name)?))).collect()
}

/// A setting below /proc/sys. Three system calls: each start reads all of them.
fn setting(all: &OwnedFd, name: &str) -> Option<String> {
    let file = rustix::fs::openat(all, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // Longer than any that the kernel takes (a core_pattern of 127).
    let mut text = [0; 256];
    let length = rustix::io::read(&file, &mut text).ok()?;
    Some(std::str::from_utf8(text.get(..length)?).ok()?.trim_end_matches('\n').to_owned())
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

/// Finds a node of a block device. The path is the container's; where the host has another, it is the one that the kernel gave.
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

fn peers(root: &Path) -> anyhow::Result<Vec<Peer>> {
    let lives = |state: &State| state.life() == Life::Alive;
    let peer = |state: State| Peer {
        network: identity(format!("/proc/{}/ns/net", state.pid)),
        sandbox: state.sandbox.unwrap_or_else(|| state.id.clone()),
        id: state.id,
        pid: state.pid,
        memory_mib: state.memory_mib,
        vcpus: state.vcpus,
    };
    Ok(state::all(root)?.into_iter().filter(lives).map(peer).collect())
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
    let (opened, canonical, stat) = match look(path) {
        Ok(found) => found,
        Err(error) => return missing(path, &error.into()),
    };
    let system = rustix::fs::fstatfs(&opened).ok();
    let magic = system.as_ref().map_or(0, |system| system.f_type);
    let file_system = file_system(&canonical, magic);
    let on_tmpfs = system.filter(|system| system.f_type == libc::TMPFS_MAGIC);
    let tmpfs_size =
        on_tmpfs.map(|system| system.f_blocks.saturating_mul(u64::try_from(system.f_bsize).unwrap_or_default()));
    let system = if magic == OVERLAY && !canonical.is_dir() { device_above(&canonical) } else { None };
    let (id, kind) = (file_id::of(&stat), kind(&stat));
    let system = system.unwrap_or(id.device);
    let system = format!("{}:{}", libc::major(system), libc::minor(system));
    let remote = u32::try_from(magic).is_ok_and(|magic| magic != 0 && !vmm::virtio::fs::is_local_kind(magic));
    SourceFact { canonical, id, kind, file_system, system, remote, has_mounts: false, tmpfs_size }
}

/// Device number of the directory that a file is in, if that is on an overlay as well. Files of an overlay may have the device
/// numbers of its layers.
fn device_above(file: &Path) -> Option<u64> {
    let directory = file.parent()?;
    let system = rustix::fs::statfs(directory).ok()?;
    (system.f_type == OVERLAY).then(|| std::fs::metadata(directory).ok().map(|found| found.dev()))?
}

/// What a path leads to: open as a place, its path without symlinks, and its attributes.
fn look(path: &Path) -> rustix::io::Result<(OwnedFd, PathBuf, Stat)> {
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let canonical = rustix::fs::readlink(file_id::path(&opened), Vec::new())?;
    let stat = rustix::fs::fstat(&opened)?;
    Ok((opened, OsString::from_vec(canonical.into_bytes()).into(), stat))
}

fn missing(path: &Path, error: &std::io::Error) -> SourceFact {
    // As strerror(3) says it and runc passes on: engines look for the words.
    let why = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    };
    SourceFact {
        canonical: path.to_owned(),
        id: FileId::default(),
        kind: SourceKind::Missing(why),
        file_system: FileSystemKind::Ordinary,
        system: String::new(),
        remote: false,
        has_mounts: false,
        tmpfs_size: None,
    }
}

fn kind(stat: &Stat) -> SourceKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => SourceKind::Directory,
        FileType::CharacterDevice => {
            SourceKind::CharDevice { major: libc::major(stat.st_rdev), minor: libc::minor(stat.st_rdev) }
        }
        FileType::BlockDevice => SourceKind::BlockDevice,
        FileType::Socket => {
            let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
            SourceKind::Socket(SocketFact { mode, uid, gid, carries_messages: false })
        }
        FileType::Fifo => SourceKind::Fifo,
        _ => SourceKind::File,
    }
}

fn file_system(canonical: &Path, magic: i64) -> FileSystemKind {
    let under = |root: &str| canonical.starts_with(root);
    match magic {
        libc::PROC_SUPER_MAGIC => FileSystemKind::Proc,
        libc::CGROUP_SUPER_MAGIC | libc::CGROUP2_SUPER_MAGIC => FileSystemKind::Cgroup,
        libc::SYSFS_MAGIC => FileSystemKind::Sys,
        _ if under("/proc") => FileSystemKind::Proc,
        _ if under("/sys/fs/cgroup") => FileSystemKind::Cgroup,
        _ if under("/sys") => FileSystemKind::Sys,
        _ if under("/dev") && !under("/dev/shm") => FileSystemKind::Dev,
        _ => FileSystemKind::Ordinary,
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
        let at = |path: &str| source(Path::new(path)).file_system;
        assert_eq!(at("/proc/self/status"), FileSystemKind::Proc);
        assert_eq!(at("/sys/kernel"), FileSystemKind::Sys);
        assert_eq!(at("/sys/fs/cgroup"), FileSystemKind::Cgroup);
        assert_eq!(at("/dev/null"), FileSystemKind::Dev);
        assert_eq!(at("/etc"), FileSystemKind::Ordinary);
        assert_eq!(super::file_system(Path::new("/dev/shm/data"), libc::TMPFS_MAGIC), FileSystemKind::Ordinary);
        assert_eq!(super::file_system(Path::new("/mnt/proc"), libc::PROC_SUPER_MAGIC), FileSystemKind::Proc);
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
    fn limits_and_settings_are_the_kernels() {
        let found = limits();
        assert_eq!(found.len(), 16);
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let ours = found.iter().find(|limit| limit.resource == libc::RLIMIT_NOFILE).unwrap();
        assert_eq!((Some(ours.soft), Some(ours.hard)), (descriptors.current, descriptors.maximum));
        let settings = settings();
        let known = settings.iter().find(|(name, _)| *name == "fs/nr_open").unwrap();
        assert!(known.1.parse::<u64>().unwrap() > 0);
        let sys = std::fs::File::open("/proc/sys").unwrap().into();
        assert_eq!(setting(&sys, "fs/no-such-setting"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(parse_memory("Foo: 1\nMemTotal:       24684220 kB\n"), Some(24_684_220 << 10));
        assert_eq!(parse_memory("MemTotal: x"), None);
        assert!(host_memory().unwrap() > 1 << 20);
        assert!(host_cpus().unwrap() > 0);
    }
}
